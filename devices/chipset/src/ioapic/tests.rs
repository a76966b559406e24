//! Facts from the 82093AA datasheet (Intel 290566) and the ICH9 datasheet, chapter 13.5.

use super::regs;
use super::*;
use crate::fabric::{FabricConfig, InterruptFabric};
use crate::message::{DeliveryMode, Destination, InterruptMessage, LapicBus, Trigger};
use crate::testing::keeps_contract;

/// Notes messages; accepts them if told so.
struct Sink {
    messages: Vec<InterruptMessage>,
    accepts: bool,
}

impl Sink {
    fn new() -> Self {
        Self {
            messages: Vec::new(),
            accepts: true,
        }
    }

    fn vectors(&mut self) -> Vec<u8> {
        self.messages.drain(..).map(|m| m.vector).collect()
    }
}

impl LapicBus for Sink {
    fn deliver(&mut self, message: InterruptMessage) -> bool {
        self.messages.push(message);
        self.accepts
    }
}

fn read(io: &mut IoApic, index: u8) -> u32 {
    io.write(regs::IOREGSEL, &[index], &mut Sink::new());
    let mut data = [0; 4];
    io.read(regs::IOWIN, &mut data);
    u32::from_le_bytes(data)
}

fn write(io: &mut IoApic, index: u8, value: u32, sink: &mut Sink) {
    io.write(regs::IOREGSEL, &u32::from(index).to_le_bytes(), sink);
    io.write(regs::IOWIN, &value.to_le_bytes(), sink);
}

/// Sets a redirection entry.
fn entry(io: &mut IoApic, pin: u8, value: u64, sink: &mut Sink) {
    write(io, 0x11 + 2 * pin, (value >> 32) as u32, sink);
    write(io, 0x10 + 2 * pin, value as u32, sink);
}

#[test]
fn registers_after_reset() {
    let mut io = IoApic::new();
    // 3.2.2: bits 23:16 are the number of entries less one.
    assert_eq!(read(&mut io, 1), 0x0017_0020);
    for pin in 0..24 {
        assert_eq!(read(&mut io, 0x10 + 2 * pin), 1 << 16, "3.2.4: masked");
    }
    assert_eq!(read(&mut io, 0x40), u32::MAX);
    write(&mut io, 0, 0x0f00_0000, &mut Sink::new());
    assert_eq!(read(&mut io, 0), 0x0f00_0000);
    assert_eq!(
        read(&mut io, 2),
        0x0f00_0000,
        "3.2.3: the arbitration ID follows the ID"
    );
}

#[test]
fn read_only_bits_do_not_change() {
    let mut io = IoApic::new();
    entry(&mut io, 3, !(1 << 15), &mut Sink::new());
    // Delivery status (12) and remote IRR (14) are read-only; 17 to 55 are reserved.
    assert_eq!(read(&mut io, 0x16), 0x0001_2fff);
    assert_eq!(read(&mut io, 0x17), 0xff00_0000);
}

#[test]
fn an_edge_sends_one_message() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    // Logical destination 3, lowest priority.
    entry(&mut io, 4, 0x0300_0000_0000_0931, &mut sink);
    io.set_line(4, true, &mut sink);
    io.set_line(4, true, &mut sink);
    let expected = InterruptMessage {
        destination: Destination::Logical(3),
        mode: DeliveryMode::LowestPriority,
        vector: 0x31,
        trigger: Trigger::Edge,
    };
    assert_eq!(sink.messages, [expected]);
    io.set_line(4, false, &mut sink);
    io.set_line(4, true, &mut sink);
    assert_eq!(sink.messages.len(), 2);
}

#[test]
fn a_masked_edge_is_lost() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    entry(&mut io, 4, 0x1_0031, &mut sink);
    io.set_line(4, true, &mut sink);
    entry(&mut io, 4, 0x31, &mut sink);
    assert_eq!(sink.vectors(), []);
}

#[test]
fn a_level_waits_for_its_eoi() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    entry(&mut io, 16, 0x8041, &mut sink);
    io.set_line(16, true, &mut sink);
    assert_eq!(sink.messages[0].trigger, Trigger::Level);
    assert_eq!(sink.vectors(), [0x41]);
    assert_eq!(read(&mut io, 0x30) & 1 << 14, 1 << 14, "remote IRR");
    io.set_line(16, true, &mut sink);
    assert_eq!(sink.vectors(), []);
    io.eoi(0x40, &mut sink);
    assert_eq!(sink.vectors(), []);
    // Still asserted: again at the EOI.
    io.eoi(0x41, &mut sink);
    assert_eq!(sink.vectors(), [0x41]);
    io.set_line(16, false, &mut sink);
    io.eoi(0x41, &mut sink);
    assert_eq!(sink.vectors(), []);
    assert_eq!(read(&mut io, 0x30) & 1 << 14, 0);
}

#[test]
fn the_eoi_register_ends_a_level() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    entry(&mut io, 16, 0x8041, &mut sink);
    io.set_line(16, true, &mut sink);
    io.set_line(16, false, &mut sink);
    io.write(regs::EOI, &0x41u32.to_le_bytes(), &mut sink);
    assert_eq!(read(&mut io, 0x30) & 1 << 14, 0);
}

#[test]
fn unmasking_a_high_level_sends() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    entry(&mut io, 20, 0x1_8041, &mut sink);
    io.set_line(20, true, &mut sink);
    assert_eq!(sink.vectors(), []);
    entry(&mut io, 20, 0x8041, &mut sink);
    assert_eq!(sink.vectors(), [0x41]);
}

#[test]
fn a_level_nobody_accepts_is_tried_again() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    sink.accepts = false;
    entry(&mut io, 20, 0x8041, &mut sink);
    io.set_line(20, true, &mut sink);
    assert_eq!(sink.vectors(), [0x41]);
    assert_eq!(
        read(&mut io, 0x38) & 1 << 14,
        0,
        "remote IRR means accepted"
    );
    sink.accepts = true;
    io.retry(&mut sink);
    assert_eq!(sink.vectors(), [0x41]);
    io.retry(&mut sink);
    assert_eq!(sink.vectors(), []);
}

#[test]
fn making_an_entry_edge_clears_remote_irr() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    entry(&mut io, 9, 0x8041, &mut sink);
    io.set_line(9, true, &mut sink);
    entry(&mut io, 9, 0x1_0041, &mut sink);
    assert_eq!(read(&mut io, 0x22) & 1 << 14, 0);
}

#[test]
fn nmi_is_an_edge_whatever_the_entry_says() {
    let (mut io, mut sink) = (IoApic::new(), Sink::new());
    entry(&mut io, 9, 0xff00_0000_0000_8400, &mut sink);
    io.set_line(9, true, &mut sink);
    let expected = InterruptMessage {
        destination: Destination::All,
        mode: DeliveryMode::Nmi,
        vector: 0,
        trigger: Trigger::Edge,
    };
    assert_eq!(sink.messages, [expected]);
    assert_eq!(read(&mut io, 0x22) & 1 << 14, 0);
}

/// 82093AA 3.2.4, delivery mode: these are edges even if the entry says level. A line that is driven high again, a
/// write to the entry and a local APIC that comes up are none.
#[test]
fn what_has_no_vector_is_sent_once_an_edge() {
    for mode in [0x400, 0x500, 0x700] {
        let (mut io, mut sink) = (IoApic::new(), Sink::new());
        entry(&mut io, 9, 0x8000 | mode, &mut sink);
        io.set_line(9, true, &mut sink);
        assert_eq!(sink.vectors().len(), 1, "{mode:#x}");
        io.set_line(9, true, &mut sink);
        write(&mut io, 0x23, 0, &mut sink);
        io.retry(&mut sink);
        assert_eq!(sink.vectors(), [], "{mode:#x}");
        io.set_line(9, false, &mut sink);
        io.set_line(9, true, &mut sink);
        assert_eq!(sink.vectors().len(), 1, "{mode:#x}");
    }
}

#[test]
fn keeps_the_device_contract() {
    let make = || {
        IoApicDevice::new(InterruptFabric::new(&FabricConfig {
            apic_ids: vec![0, 1],
            bus_hz: 1_000_000_000,
            tsc_hz: 2_000_000_000,
            physical_address_bits: 39,
            x2apic: true,
            tsc_deadline: true,
        }))
    };
    keeps_contract(make, &[(0, 0x60)]);
}
