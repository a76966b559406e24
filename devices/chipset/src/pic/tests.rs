//! Facts from the 8259A datasheet (Intel 231468), by its section names.

use super::regs;
use super::*;
use crate::fabric::{FabricConfig, InterruptFabric};
use crate::testing::keeps_contract;

/// Initialized as Linux and every PC does: vectors 30h and 38h, all unmasked, with `icw4` for both.
fn initialized(icw4: u8) -> PicPair {
    let mut pic = PicPair::new();
    for (slave, base, cascade) in [(false, 0x30, 1 << 2), (true, 0x38, 2)] {
        pic.write(slave, false, 0x11);
        pic.write(slave, true, base);
        pic.write(slave, true, cascade);
        pic.write(slave, true, icw4);
        pic.write(slave, true, 0);
    }
    pic
}

fn pulse(pic: &mut PicPair, irq: u8) {
    pic.set_line(irq, true);
    pic.set_line(irq, false);
}

#[test]
fn initialization_takes_icw2_to_icw4_and_clears_the_mask() {
    let mut pic = PicPair::new();
    pic.write(false, true, 0xff);
    pic.write(false, false, 0x11);
    // "The Interrupt Mask Register is cleared" (ICW1).
    assert_eq!(pic.read(false, true), 0);
    pic.write(false, true, 0x47);
    pic.write(false, true, 0x04);
    pic.write(false, true, 0x01);
    pic.write(false, true, 0xf0);
    assert_eq!(pic.read(false, true), 0xf0);
    pic.set_line(1, true);
    // The low three bits of ICW2 are the input's number.
    assert_eq!(pic.acknowledge(), 0x41);
}

#[test]
fn without_icw4_none_is_awaited() {
    let mut pic = PicPair::new();
    pic.write(false, false, 0x10);
    pic.write(false, true, 0x20);
    pic.write(false, true, 0x04);
    pic.write(false, true, 0xab);
    assert_eq!(pic.read(false, true), 0xab);
}

#[test]
fn fully_nested_mode_lets_only_higher_priority_through() {
    let mut pic = initialized(1);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x34);
    pulse(&mut pic, 6);
    assert!(!pic.intr());
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    // OCW3: read ISR.
    pic.write(false, false, 0x0b);
    assert_eq!(pic.read(false, false), 1 << 4 | 1 << 1);
    // Non-specific EOI ends the highest level in service.
    pic.write(false, false, 0x20);
    assert_eq!(pic.read(false, false), 1 << 4);
    pic.write(false, false, 0x64);
    assert_eq!(pic.read(false, false), 0);
    assert_eq!(pic.acknowledge(), 0x36);
}

#[test]
fn slave_vectors_come_through_the_cascade() {
    let mut pic = initialized(1);
    pulse(&mut pic, 12);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x3c);
    assert!(!pic.intr());
    // Both chips need their EOI.
    pic.write(true, false, 0x20);
    pulse(&mut pic, 9);
    assert!(!pic.intr());
    pic.write(false, false, 0x20);
    assert_eq!(pic.acknowledge(), 0x39);
}

#[test]
fn special_fully_nested_master_lets_the_slave_nest() {
    // ICW4 bit 4; the slave stays fully nested.
    let mut pic = initialized(1);
    pic.write(false, false, 0x11);
    for word in [0x30, 4, 0x11, 0] {
        pic.write(false, true, word);
    }
    pulse(&mut pic, 14);
    assert_eq!(pic.acknowledge(), 0x3e);
    pulse(&mut pic, 8);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x38);
}

/// It lets only the slave's own requests through; lower inputs of the master stay held back.
#[test]
fn special_fully_nested_master_holds_lower_inputs_back() {
    let mut pic = initialized(1);
    pic.write(false, false, 0x11);
    for word in [0x30, 4, 0x11, 0] {
        pic.write(false, true, word);
    }
    pulse(&mut pic, 14);
    assert_eq!(pic.acknowledge(), 0x3e);
    pulse(&mut pic, 5);
    assert!(!pic.intr());
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    // While a higher one is in service, the slave is held back like the others.
    pulse(&mut pic, 8);
    assert!(!pic.intr());
    pic.write(false, false, 0x20);
    assert_eq!(pic.acknowledge(), 0x38);
    // Ends of the slave's two and of the master's one.
    pic.write(true, false, 0x20);
    pic.write(true, false, 0x20);
    pic.write(false, false, 0x20);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn a_request_that_vanishes_gives_the_spurious_vector() {
    let mut pic = initialized(1);
    // "the lowest priority interrupt level 7 vector", and no ISR bit.
    assert_eq!(pic.acknowledge(), 0x37);
    pic.write(false, false, 0x0b);
    assert_eq!(pic.read(false, false), 0);
    // Level-triggered on the slave, masked between request and acknowledge.
    pic.write_elcr(true, 1 << 2);
    pic.set_line(10, true);
    assert!(pic.intr());
    pic.set_line(10, false);
    assert!(!pic.intr());
}

#[test]
fn level_triggered_inputs_request_as_long_as_they_are_high() {
    let mut pic = initialized(1);
    pic.write_elcr(false, 0xff);
    // IRQ 0, 1 and 2 stay edge triggered (ICH9 13.4.9).
    assert_eq!(pic.read_elcr(false), 0xf8);
    pic.set_line(5, true);
    assert_eq!(pic.acknowledge(), 0x35);
    pic.write(false, false, 0x20);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x35);
    pic.set_line(5, false);
    pic.write(false, false, 0x20);
    assert!(!pic.intr());
}

#[test]
fn an_edge_is_one_request() {
    let mut pic = initialized(1);
    pic.set_line(3, true);
    assert_eq!(pic.acknowledge(), 0x33);
    pic.set_line(3, true);
    pic.write(false, false, 0x20);
    assert!(!pic.intr());
}

#[test]
fn automatic_end_of_interrupt_and_its_rotation() {
    let mut pic = initialized(3);
    // Rotate in automatic EOI mode (set).
    pic.write(false, false, 0x80);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.write(false, false, 0x0b);
    assert_eq!(pic.read(false, false), 0);
    // Input 1 has become the lowest, so 7 goes before 0.
    pulse(&mut pic, 0);
    pulse(&mut pic, 7);
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn rotation_makes_a_level_the_lowest() {
    let mut pic = initialized(1);
    // Set priority: 5 is the lowest, so 6 is the highest.
    pic.write(false, false, 0xc5);
    pulse(&mut pic, 0);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x36);
    // Rotate on non-specific EOI: 6 becomes the lowest.
    pic.write(false, false, 0xa0);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x30);
    // Rotate on specific EOI of 0: then 1 is the highest, 6 goes before 0.
    pic.write(false, false, 0xe0);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x36);
}

#[test]
fn special_mask_mode_opens_the_lower_levels() {
    let mut pic = initialized(1);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x33);
    pulse(&mut pic, 5);
    assert!(!pic.intr());
    pic.write(false, true, 1 << 3);
    assert!(!pic.intr());
    // OCW3: set special mask.
    pic.write(false, false, 0x68);
    assert_eq!(pic.acknowledge(), 0x35);
    // Reset special mask.
    pic.write(false, false, 0x48);
    pulse(&mut pic, 6);
    assert!(!pic.intr());
}

#[test]
fn poll_acknowledges_by_a_read() {
    let mut pic = initialized(1);
    pic.write(false, false, 0x0c);
    assert_eq!(pic.read(false, false), 0);
    pulse(&mut pic, 6);
    pic.write(false, false, 0x0c);
    // Bit 7: an interrupt; bits 2:0: the level.
    assert_eq!(pic.read(false, false), 0x86);
    assert!(!pic.intr());
    pic.write(false, false, 0x0b);
    assert_eq!(pic.read(false, false), 1 << 6);
}

#[test]
fn keeps_the_device_contract() {
    let make = || {
        PicDevice::new(InterruptFabric::new(&FabricConfig {
            apic_ids: vec![0],
            bus_hz: 1_000_000_000,
            tsc_hz: 2_000_000_000,
            physical_address_bits: 39,
            x2apic: true,
            tsc_deadline: true,
        }))
    };
    keeps_contract(
        make,
        &[
            (regs::REGION_MASTER, 2),
            (regs::REGION_SLAVE, 2),
            (regs::REGION_ELCR, 2),
        ],
    );
}
