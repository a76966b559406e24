//! Facts from the IBM PS/2 Technical Reference, and the dialogue Linux's i8042 and atkbd drivers have.

mod keys;

use super::*;
use crate::testing::{Control, Lines, inb, keeps_contract, outb};

const T0: VirtualTime = VirtualTime(0);

struct Kbc {
    device: I8042Device,
    lines: Arc<Lines>,
    control: Arc<Control>,
}

impl Kbc {
    fn new() -> Self {
        let (lines, control) = (Lines::new(), Arc::new(Control::default()));
        Self {
            device: I8042Device::new(lines.line(1), lines.line(12), control.clone()),
            lines,
            control,
        }
    }

    fn status(&mut self) -> u8 {
        inb(&mut self.device, regs::REGION_COMMAND, 0, T0)
    }

    fn command(&mut self, value: u8) {
        outb(&mut self.device, regs::REGION_COMMAND, 0, value, T0);
    }

    fn data(&mut self, value: u8) {
        outb(&mut self.device, regs::REGION_DATA, 0, value, T0);
    }

    /// The bytes that wait, each with whether it is the auxiliary device's.
    fn drain(&mut self) -> Vec<(u8, bool)> {
        let mut all = Vec::new();
        loop {
            let status = self.status();
            if status & 1 == 0 {
                return all;
            }
            all.push((
                inb(&mut self.device, regs::REGION_DATA, 0, T0),
                status & 0x20 != 0,
            ));
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.drain().into_iter().map(|(byte, _)| byte).collect()
    }

    fn mode(&mut self, value: u8) {
        self.command(0x60);
        self.data(value);
    }
}

#[test]
fn self_tests_pass() {
    let mut kbc = Kbc::new();
    assert_eq!(kbc.status() & 0x13, 0x10, "empty, not locked");
    kbc.command(0xaa);
    assert_eq!(kbc.bytes(), [0x55]);
    kbc.command(0xab);
    assert_eq!(kbc.bytes(), [0x00]);
    kbc.command(0xa9);
    assert_eq!(kbc.bytes(), [0x00]);
    assert_eq!(
        kbc.status() & 0x0c,
        0x0c,
        "system flag; the last write was a command"
    );
}

#[test]
fn the_command_byte_is_kept() {
    let mut kbc = Kbc::new();
    kbc.mode(0x77);
    kbc.command(0x20);
    assert_eq!(kbc.bytes(), [0x77]);
    kbc.command(0xa8);
    kbc.command(0xae);
    kbc.command(0x20);
    assert_eq!(kbc.bytes(), [0x47]);
    kbc.command(0xa7);
    kbc.command(0xad);
    kbc.command(0x20);
    assert_eq!(kbc.bytes(), [0x77]);
}

#[test]
fn linux_finds_a_port_for_the_auxiliary_device() {
    // i8042_check_aux: the loop command gives the byte back, marked as auxiliary, with interrupt 12.
    let mut kbc = Kbc::new();
    kbc.mode(0x47);
    kbc.command(0xd3);
    kbc.data(0xa5);
    assert!(kbc.lines.level(12) && !kbc.lines.level(1));
    assert_eq!(kbc.drain(), [(0xa5, true)]);
    assert!(!kbc.lines.level(12));
    // Nobody answers there.
    kbc.command(0xd4);
    kbc.data(0xf2);
    assert_eq!(kbc.status() & 0x61, 0x61, "timeout");
    assert_eq!(kbc.drain(), [(0xfe, true)]);
}

#[test]
fn the_keyboard_answers() {
    let mut kbc = Kbc::new();
    kbc.mode(0x05);
    kbc.data(0xff);
    assert!(kbc.lines.level(1));
    assert_eq!(kbc.bytes(), [0xfa, 0xaa]);
    assert_eq!(kbc.lines.edges(1), 2, "an edge for each byte");
    kbc.data(0xf2);
    assert_eq!(kbc.bytes(), [0xfa, 0xab, 0x83]);
    kbc.data(0xed);
    kbc.data(0x07);
    assert_eq!(kbc.bytes(), [0xfa, 0xfa]);
    kbc.data(0xf0);
    kbc.data(0x00);
    assert_eq!(kbc.bytes(), [0xfa, 0xfa, 0x02]);
    kbc.data(0xee);
    assert_eq!(kbc.bytes(), [0xee]);
    kbc.data(0x17);
    assert_eq!(kbc.bytes(), [0xfe]);
}

#[test]
fn translation_changes_the_identity() {
    // Set 2 to set 1: 83h becomes 41h.
    let mut kbc = Kbc::new();
    kbc.data(0xf2);
    assert_eq!(kbc.bytes(), [0xfa, 0xab, 0x41]);
    // 1Ch is A in set 2, 1Eh in set 1; 5Ah and 1Ch are Enter.
    assert_eq!(scan::translate(0x1c), 0x1e);
    assert_eq!(scan::translate(0x5a), 0x1c);
    assert_eq!(scan::translate(0x76), 0x01);
}

#[test]
fn a_disabled_keyboard_waits() {
    let mut kbc = Kbc::new();
    kbc.data(0xf2);
    inb(&mut kbc.device, regs::REGION_DATA, 0, T0);
    // The byte in the buffer stays; the next waits.
    kbc.command(0xad);
    assert_eq!(kbc.bytes(), [0xab]);
    kbc.command(0xae);
    assert_eq!(kbc.bytes(), [0x41]);
}

#[test]
fn resets() {
    let mut kbc = Kbc::new();
    kbc.command(0xff);
    assert!(kbc.control.taken().is_empty());
    kbc.command(0xfe);
    assert_eq!(kbc.control.taken(), ["reset"]);
    kbc.command(0xd1);
    kbc.data(0xfe);
    assert_eq!(kbc.control.taken(), ["reset"]);
    outb(&mut kbc.device, regs::REGION_FAST, 0, 0x03, T0);
    assert_eq!(kbc.control.taken(), ["reset"]);
    outb(&mut kbc.device, regs::REGION_FAST, 0, 0x03, T0);
    assert!(kbc.control.taken().is_empty(), "a rising edge");
}

#[test]
fn a20_is_one_state_for_three_ways() {
    let mut kbc = Kbc::new();
    assert_eq!(inb(&mut kbc.device, regs::REGION_FAST, 0, T0) & 2, 2);
    kbc.command(0xdd);
    assert_eq!(inb(&mut kbc.device, regs::REGION_FAST, 0, T0) & 2, 0);
    kbc.command(0xd1);
    kbc.data(0xdf);
    assert_eq!(inb(&mut kbc.device, regs::REGION_FAST, 0, T0) & 2, 2);
    outb(&mut kbc.device, regs::REGION_FAST, 0, 0x00, T0);
    kbc.command(0xd0);
    assert_eq!(kbc.bytes()[0] & 3, 1);
    kbc.command(0xdf);
    assert_eq!(inb(&mut kbc.device, regs::REGION_FAST, 0, T0) & 2, 2);
}

#[test]
fn bytes_that_nobody_reads_are_bounded() {
    let mut kbc = Kbc::new();
    for _ in 0..1000 {
        kbc.data(0xf2);
        kbc.data(0xfe);
        kbc.command(0x20);
        kbc.command(0xd3);
        kbc.data(0x11);
    }
    assert!(kbc.bytes().len() < 64);
    assert_eq!(kbc.status() & 1, 0);
}

#[test]
fn the_controllers_ram_is_kept() {
    // Commands 21h to 3Fh read, 61h to 7Fh write byte 1 to 31.
    let mut kbc = Kbc::new();
    for index in 1..0x20 {
        kbc.command(0x60 | index);
        kbc.data(0x80 | index);
    }
    for index in 1..0x20 {
        kbc.command(0x20 | index);
        assert_eq!(kbc.bytes(), [0x80 | index]);
    }
}

#[test]
fn ports_of_the_controller_are_read() {
    let mut kbc = Kbc::new();
    // Input port: bit 7 set, the keyboard is not inhibited.
    kbc.command(0xc0);
    assert_eq!(kbc.bytes()[0] & 0x80, 0x80);
    // Test inputs: bit 0 the keyboard's clock, bit 1 the auxiliary device's; a disabled device's is held low.
    for (enable, lines) in [(0xad, 0), (0xae, 1), (0xa8, 3), (0xa7, 1)] {
        kbc.command(enable);
        kbc.command(0xe0);
        assert_eq!(kbc.bytes(), [lines]);
    }
    // Output port: bit 0 the reset line, bit 4 interrupt 1.
    kbc.command(0xd0);
    assert_eq!(kbc.bytes()[0] & 0x31, 0x01);
    kbc.mode(0x05);
    kbc.command(0xd2);
    kbc.data(0x55);
    kbc.command(0xd0);
    assert_eq!(kbc.bytes()[0], 0x55);
    // No password: F1h.
    kbc.command(0xa4);
    assert_eq!(kbc.bytes(), [0xf1]);
}

#[test]
fn the_loop_command_gives_a_byte_as_from_the_keyboard() {
    let mut kbc = Kbc::new();
    kbc.command(0xd2);
    kbc.data(0x1c);
    assert!(kbc.lines.level(1));
    assert_eq!(kbc.drain(), [(0x1c, false)], "it is not translated");
    assert!(!kbc.lines.level(1));
}

#[test]
fn interrupts_follow_the_buffer_and_the_command_byte() {
    let mut kbc = Kbc::new();
    kbc.mode(0x44);
    kbc.data(0xee);
    assert!(!kbc.lines.level(1), "not enabled");
    kbc.mode(0x45);
    assert!(kbc.lines.level(1), "the buffer is full");
    kbc.mode(0x44);
    assert!(!kbc.lines.level(1));
    assert_eq!(kbc.bytes(), [0xee]);
    kbc.mode(0x45);
    assert!(!kbc.lines.level(1), "the buffer is empty");
}

#[test]
fn the_controllers_answer_goes_before_keys_that_wait() {
    let mut kbc = Kbc::new();
    for key in [0x04, 0x05, 0x06] {
        kbc.device
            .press(Key::from_usage(key).expect("a letter"), T0);
    }
    kbc.command(0x20);
    // One byte at a time: A was in the buffer, then comes the command byte.
    assert_eq!(kbc.bytes(), [0x1e, 0x65, 0x30, 0x2e]);
    assert_eq!(
        inb(&mut kbc.device, regs::REGION_DATA, 0, T0),
        0x2e,
        "the last byte again"
    );
}

#[test]
fn keeps_the_device_contract() {
    keeps_contract(|| Kbc::new().device, &[(0, 1), (1, 1), (2, 1)]);
}
