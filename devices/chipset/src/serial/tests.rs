//! Facts from the PC16550D datasheet, and the probes Linux's 8250 driver makes.

use super::*;
use crate::testing::{Lines, Output, inb, keeps_contract, outb};

const T0: VirtualTime = VirtualTime(0);

struct Port {
    serial: Serial,
    input: SerialInput,
    lines: Arc<Lines>,
    output: Output,
    now: VirtualTime,
}

impl Port {
    fn new() -> Self {
        let lines = Lines::new();
        let output = Output::default();
        let (serial, input) = Serial::new(lines.line(4), Box::new(output.clone()));
        Self {
            serial,
            input,
            lines,
            output,
            now: T0,
        }
    }

    fn read(&mut self, register: u8) -> u8 {
        inb(&mut self.serial, 0, u64::from(register), self.now)
    }

    fn write(&mut self, register: u8, value: u8) {
        outb(&mut self.serial, 0, u64::from(register), value, self.now);
    }

    /// Bytes arrive, and the board lets the device act, as `Bus::advance` does.
    fn type_in(&mut self, bytes: &[u8]) {
        assert_eq!(self.input.push(bytes), bytes.len());
        if self.serial.deadline().is_some_and(|at| at <= self.now) {
            self.serial.advance(self.now);
        }
    }

    fn irq(&self) -> bool {
        self.lines.level(4)
    }
}

#[test]
fn registers_after_reset() {
    // Table III.
    let mut port = Port::new();
    assert_eq!(port.read(1), 0);
    assert_eq!(port.read(2), 0x01);
    assert_eq!(port.read(3), 0);
    assert_eq!(port.read(4), 0);
    assert_eq!(port.read(5), 0x60);
    assert_eq!(port.read(6) & 0x0f, 0);
}

#[test]
fn output_goes_out_byte_by_byte() {
    let mut port = Port::new();
    for byte in b"hello" {
        assert_eq!(port.read(5) & 0x60, 0x60);
        port.write(0, *byte);
    }
    assert_eq!(*port.output.0.lock().expect("unpoisoned"), b"hello");
}

#[test]
fn divisor_latch() {
    let mut port = Port::new();
    port.write(3, 0x83);
    port.write(0, 0x34);
    port.write(1, 0x12);
    assert_eq!((port.read(0), port.read(1)), (0x34, 0x12));
    port.write(3, 0x03);
    assert_eq!(port.read(1), 0);
    assert!(port.output.0.lock().expect("unpoisoned").is_empty());
    port.write(7, 0xa5);
    assert_eq!(port.read(7), 0xa5);
}

#[test]
fn thre_interrupt() {
    let mut port = Port::new();
    port.write(4, 0x08);
    // Enabling it while the register is empty raises it.
    port.write(1, 0x02);
    assert!(port.irq());
    // Reading IIR clears it when it is the source (table V).
    assert_eq!(port.read(2), 0x02);
    assert!(!port.irq());
    assert_eq!(port.read(2), 0x01);
    // Each write makes an edge, also while the request stands.
    let edges = port.lines.edges(4);
    port.write(0, b'a');
    port.write(0, b'b');
    assert_eq!(port.lines.edges(4), edges + 2);
    assert!(port.irq());
    // Taking the enable away and giving it back raises it again: Linux's test for broken chips.
    port.read(2);
    port.write(1, 0x00);
    port.write(1, 0x02);
    assert_eq!(port.read(2), 0x02);
}

#[test]
fn received_data_and_trigger_level() {
    let mut port = Port::new();
    port.write(4, 0x08);
    port.write(1, 0x01);
    port.write(2, 0x41);
    // Trigger level 4.
    port.type_in(b"abc");
    assert!(!port.irq());
    assert_eq!(port.read(2), 0xc1);
    assert_eq!(port.read(5) & 1, 1);
    port.type_in(b"d");
    assert!(port.irq());
    assert_eq!(port.read(2), 0xc4);
    assert_eq!(port.read(0), b'a');
    assert!(!port.irq(), "below the level");
}

#[test]
fn character_timeout() {
    let mut port = Port::new();
    port.write(4, 0x08);
    // 115200 baud, 8 data bits, no parity, one stop bit: 10 bits a character.
    port.write(3, 0x83);
    port.write(0, 1);
    port.write(1, 0);
    port.write(3, 0x03);
    port.write(1, 0x01);
    port.write(2, 0xc1);
    port.type_in(b"ab");
    assert!(!port.irq());
    let due = port.serial.deadline().expect("a timeout is due");
    // Four character times: 4 * 10 bits at 115200 a second.
    assert_eq!(due.0, 40 * 1_000_000_000 / 115_200);
    port.now = due;
    port.serial.advance(due);
    assert!(port.irq());
    assert_eq!(port.read(2), 0xcc);
    // Reading a character clears it and starts the time anew.
    assert_eq!(port.read(0), b'a');
    assert!(!port.irq());
    assert_eq!(port.serial.deadline(), Some(due + due.0));
    assert_eq!(port.read(0), b'b');
    assert_eq!(port.serial.deadline(), None);
}

#[test]
fn input_waits_in_the_queue_and_is_not_lost() {
    let mut port = Port::new();
    port.write(2, 0x01);
    let text: Vec<u8> = (0..100).collect();
    port.type_in(&text);
    let mut got = Vec::new();
    while port.read(5) & 1 != 0 {
        got.push(port.read(0));
    }
    assert_eq!(got, text);
    assert_eq!(port.read(5) & 0x02, 0, "no overrun");
    // The queue is bounded and says what it takes.
    assert_eq!(port.input.room(), INPUT_QUEUE_BYTES);
    assert_eq!(
        port.input.push(&vec![0; INPUT_QUEUE_BYTES + 5]),
        INPUT_QUEUE_BYTES
    );
    assert_eq!(port.input.push(b"x"), 0);
    assert!(!port.input.wait_for_room(Duration::from_millis(1)));
    port.serial.advance(T0);
    assert!(port.input.wait_for_room(Duration::ZERO));
}

#[test]
fn priorities_of_interrupts() {
    // Table V: line status, received data, transmitter empty, modem status.
    let mut port = Port::new();
    port.write(1, 0x0f);
    port.write(4, 0x10);
    port.write(4, 0x11);
    // In loopback: two characters without FIFO overrun; DTR changed DSR.
    port.write(0, b'a');
    port.write(0, b'b');
    assert_eq!(port.read(2), 0x06);
    assert_eq!(port.read(5), 0x63);
    assert_eq!(port.read(5), 0x61, "the error is cleared by the read");
    assert_eq!(port.read(2), 0x04);
    assert_eq!(port.read(0), b'b', "the new character replaced the old");
    assert_eq!(port.read(2), 0x02);
    assert_eq!(port.read(2), 0x00);
    port.read(6);
    assert_eq!(port.read(2), 0x01);
}

#[test]
fn loopback_turns_modem_control_into_status() {
    let mut port = Port::new();
    // Linux's autoconfig: RTS and OUT2 in loopback must read as CTS and DCD.
    port.write(4, 0x1a);
    assert_eq!(port.read(6) & 0xf0, 0x90);
    port.write(4, 0x15);
    assert_eq!(port.read(6) & 0xf0, 0x60);
    port.write(4, 0x00);
    assert_eq!(port.read(6) & 0xf0, 0xb0, "connected");
    assert_eq!(port.read(6) & 0x0f, 0, "deltas are cleared by the read");
    port.write(4, 0x10);
    port.write(0, b'x');
    assert!(port.output.0.lock().expect("unpoisoned").is_empty());
    assert_eq!(port.read(0), b'x');
    // The line is cut off: input waits.
    port.type_in(b"y");
    assert_eq!(port.read(5) & 1, 0);
    port.write(4, 0x00);
    assert_eq!(port.read(0), b'y');
}

#[test]
fn out2_gates_the_interrupt() {
    let mut port = Port::new();
    port.write(1, 0x02);
    assert!(!port.irq());
    port.write(4, 0x08);
    assert!(port.irq());
    port.write(4, 0x18);
    assert!(!port.irq());
}

#[test]
fn linux_sees_a_16550a() {
    let mut port = Port::new();
    // IER: the upper bits do not exist.
    port.write(1, 0xff);
    assert_eq!(port.read(1), 0x0f);
    port.write(1, 0);
    port.write(2, 0x01);
    assert_eq!(port.read(2) >> 6, 3, "FIFOs that work");
    // No 64-byte FIFO (bit 5), with and without DLAB; no EFR.
    port.write(2, 0x21);
    assert_eq!(port.read(2) >> 5, 6);
    port.write(3, 0x80);
    port.write(2, 0x21);
    assert_eq!(port.read(2) >> 5, 6);
    port.write(3, 0xbf);
    assert_ne!(port.read(2), 0);
    port.write(3, 0);
    port.write(2, 0);
    assert_eq!(port.read(2) >> 6, 0);
}

#[test]
fn clearing_the_fifo() {
    let mut port = Port::new();
    port.write(2, 0x01);
    port.type_in(b"abc");
    assert_eq!(port.read(0), b'a');
    port.write(2, 0x03);
    assert_eq!(port.read(5) & 1, 0);
}

#[test]
fn keeps_the_device_contract() {
    keeps_contract(|| Port::new().serial, &[(0, 8)]);
}
