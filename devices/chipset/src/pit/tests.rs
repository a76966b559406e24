//! Facts from the 8254 datasheet (Intel 231164), mode definitions and figures 15 to 20.

use std::sync::Arc;

use super::*;
use crate::testing::{Lines, inb, keeps_contract, outb};

const CLOCK: u64 = regs::CLOCK_HZ;

fn at(tick: u64) -> VirtualTime {
    VirtualTime::from_ticks(tick, CLOCK)
}

/// Programs a channel: control word, low byte, high byte, all in the tick `tick`.
fn program(pit: &mut Pit, channel: u8, mode: u8, count: u16, tick: u64) {
    pit.write(3, channel << 6 | 0x30 | mode << 1, tick);
    pit.write(u64::from(channel), count as u8, tick);
    pit.write(u64::from(channel), (count >> 8) as u8, tick);
}

fn count(pit: &mut Pit, channel: u8, tick: u64) -> u16 {
    pit.write(3, channel << 6, tick);
    u16::from_le_bytes([
        pit.read(u64::from(channel), tick),
        pit.read(u64::from(channel), tick),
    ])
}

/// The output at each tick of a range, as digits.
fn wave(pit: &mut Pit, channel: usize, ticks: std::ops::Range<u64>) -> String {
    ticks
        .map(|tick| {
            pit.run_to(tick);
            if pit.channel(channel).output(tick) {
                '1'
            } else {
                '0'
            }
        })
        .collect()
}

#[test]
fn mode_0_interrupt_on_terminal_count() {
    // Figure 15: count 4 written, loaded by the next clock, output high N + 1 clocks after the write.
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 4, 0);
    assert_eq!(wave(&mut pit, 0, 0..8), "00000111");
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 4, 0);
    let counts: Vec<_> = (1..7).map(|tick| count(&mut pit, 0, tick)).collect();
    assert_eq!(counts, [4, 3, 2, 1, 0, 0xffff]);
}

#[test]
fn mode_0_first_byte_stops_and_lowers() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 4, 0);
    pit.write(0, 3, 2);
    assert_eq!(wave(&mut pit, 0, 2..10), "00000000");
    pit.write(0, 0, 10);
    assert_eq!(wave(&mut pit, 0, 10..16), "000011");
}

#[test]
fn mode_0_gate_suspends_counting() {
    // Figure 15, second wave.
    let mut pit = Pit::new();
    pit.write_control(1, 0);
    program(&mut pit, 2, 0, 3, 0);
    pit.write_control(0, 3);
    assert_eq!(count(&mut pit, 2, 3), 1);
    assert_eq!(count(&mut pit, 2, 9), 1);
    pit.write_control(1, 9);
    assert_eq!(wave(&mut pit, 2, 9..12), "011");
}

#[test]
fn mode_1_retriggerable_one_shot() {
    // Figure 16: the gate's rising edge starts it; N clocks low.
    let mut pit = Pit::new();
    program(&mut pit, 2, 1, 3, 0);
    assert_eq!(wave(&mut pit, 2, 0..3), "111");
    pit.write_control(1, 3);
    assert_eq!(wave(&mut pit, 2, 3..9), "100011");
    pit.write_control(0, 9);
    pit.write_control(1, 10);
    pit.write_control(0, 11);
    pit.write_control(1, 12);
    assert_eq!(
        wave(&mut pit, 2, 12..18),
        "000011",
        "retriggered in tick 12: low to 15"
    );
}

#[test]
fn mode_2_rate_generator() {
    // Figure 17: low for one clock in N.
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 3, 0);
    assert_eq!(wave(&mut pit, 0, 0..11), "11101101101");
    let counts: Vec<_> = (11..15).map(|tick| count(&mut pit, 0, tick)).collect();
    assert_eq!(counts, [2, 1, 3, 2]);
}

#[test]
fn mode_2_new_count_waits_for_the_cycle() {
    // Figure 17, third wave: 4 running, 5 written.
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 4, 0);
    pit.run_to(2);
    pit.write(0, 5, 2);
    pit.write(0, 0, 2);
    // Loaded at 1; the cycle ends at 5; then 5 clocks to 10.
    assert_eq!(wave(&mut pit, 0, 2..11), "110111101");
    // Gate low: output high; its rise loads again.
    let mut pit = Pit::new();
    pit.write_control(1, 0);
    program(&mut pit, 2, 2, 3, 0);
    pit.write_control(0, 3);
    assert_eq!(wave(&mut pit, 2, 3..6), "111");
    pit.write_control(1, 6);
    assert_eq!(wave(&mut pit, 2, 6..11), "11101");
}

#[test]
fn mode_3_square_wave() {
    // Figure 18: N = 4 is two high, two low, counted by two; N = 5 is three high, two low.
    let mut pit = Pit::new();
    program(&mut pit, 0, 3, 4, 0);
    assert_eq!(wave(&mut pit, 0, 1..9), "11001100");
    let counts: Vec<_> = (9..13).map(|tick| count(&mut pit, 0, tick)).collect();
    assert_eq!(counts, [4, 2, 4, 2]);
    let mut pit = Pit::new();
    program(&mut pit, 0, 3, 5, 0);
    let counts: Vec<_> = (1..6).map(|tick| count(&mut pit, 0, tick)).collect();
    assert_eq!(counts, [4, 2, 0, 4, 2]);
    assert_eq!(wave(&mut pit, 0, 6..16), "1110011100");
}

#[test]
fn mode_3_new_count_waits_for_the_half_cycle() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 3, 8, 0);
    pit.run_to(2);
    pit.write(0, 4, 2);
    pit.write(0, 0, 2);
    // High from 1 to 4; then the low half of 4.
    assert_eq!(wave(&mut pit, 0, 2..13), "11100110011");
}

#[test]
fn mode_4_software_strobe() {
    // Figure 19: low for one clock, N + 1 after the write.
    let mut pit = Pit::new();
    program(&mut pit, 0, 4, 3, 0);
    assert_eq!(wave(&mut pit, 0, 0..8), "11110111");
}

#[test]
fn mode_5_hardware_strobe() {
    // Figure 20.
    let mut pit = Pit::new();
    program(&mut pit, 2, 5, 3, 0);
    pit.write_control(1, 2);
    assert_eq!(wave(&mut pit, 2, 2..9), "1111011");
}

#[test]
fn counting_in_bcd() {
    let mut pit = Pit::new();
    pit.write(3, 0x31, 0);
    pit.write(0, 0x00, 0);
    pit.write(0, 0x10, 0);
    assert_eq!(count(&mut pit, 0, 1), 0x1000);
    assert_eq!(count(&mut pit, 0, 2), 0x0999);
    // Zero is 10,000.
    pit.write(3, 0x35, 10);
    pit.write(0, 0, 10);
    pit.write(0, 0, 10);
    assert_eq!(count(&mut pit, 0, 12), 0x9999);
    assert_eq!(count(&mut pit, 0, 10_011), 0x0000);
}

#[test]
fn a_latched_count_stays_until_read() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 1000, 0);
    pit.write(3, 0x00, 101);
    // "If a counter is latched and then, some time later, latched again before the count is read, the second is ignored."
    pit.write(3, 0x00, 201);
    assert_eq!(
        u16::from_le_bytes([pit.read(0, 301), pit.read(0, 401)]),
        900
    );
    // Without latch: low byte, then high byte, of the running counter.
    assert_eq!(
        u16::from_le_bytes([pit.read(0, 501), pit.read(0, 501)]),
        500
    );
}

#[test]
fn read_back_latches_status_and_count() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 1000, 0);
    program(&mut pit, 2, 3, 500, 0);
    // Channels 0 and 2, status and count: the status is read first.
    pit.write(3, 0xca, 101);
    assert_eq!(pit.read(0, 110), 0b1011_0100);
    assert_eq!(
        u16::from_le_bytes([pit.read(0, 110), pit.read(0, 110)]),
        900
    );
    // Channel 2's gate is low, so its count was not loaded; output high.
    assert_eq!(pit.read(2, 110) & 0b1011_1111, 0b1011_0110);
    // Null count: set by a control word, cleared when the count is loaded.
    pit.write(3, 0x30, 200);
    pit.write(3, 0xe2, 200);
    assert_eq!(pit.read(0, 200) & 0xc0, 0x40);
    pit.write(0, 9, 201);
    pit.write(0, 0, 201);
    pit.write(3, 0xe2, 202);
    assert_eq!(pit.read(0, 202) & 0xc0, 0x00);
}

#[test]
fn single_byte_access() {
    let mut pit = Pit::new();
    // Low byte only.
    pit.write(3, 0x14, 0);
    pit.write(0, 0x20, 0);
    assert_eq!(pit.read(0, 1), 0x20);
    assert_eq!(pit.read(0, 3), 0x1e);
    // High byte only.
    pit.write(3, 0x24, 10);
    pit.write(0, 0x20, 10);
    assert_eq!(pit.read(0, 11), 0x20);
    assert_eq!(pit.read(0, 12), 0x1f);
}

fn device() -> (PitDevice, Arc<Lines>) {
    let lines = Lines::new();
    (PitDevice::new(lines.line(0)), lines)
}

fn start(device: &mut PitDevice, mode: u8, count: u16, now: VirtualTime) {
    outb(device, 0, 3, 0x30 | mode << 1, now);
    outb(device, 0, 0, count as u8, now);
    outb(device, 0, 0, (count >> 8) as u8, now);
}

#[test]
fn ticks_come_without_drift() {
    // Linux at 1000 Hz loads 1193. Each of the 10,000 rises is due at its own tick of the clock.
    let (mut device, lines) = device();
    start(&mut device, 2, 1193, VirtualTime(0));
    let before = lines.edges(0);
    for n in 1..=10_000 {
        let due = device.deadline().expect("it runs");
        assert_eq!(due, at(1 + 1193 * n));
        device.advance(VirtualTime(due.0 - 1));
        assert_eq!(lines.edges(0), before + n as usize - 1);
        device.advance(due);
        assert_eq!(lines.edges(0), before + n as usize);
    }
}

#[test]
fn a_late_board_gets_one_edge_and_stays_in_phase() {
    let (mut device, lines) = device();
    start(&mut device, 3, 1000, VirtualTime(0));
    let before = lines.edges(0);
    device.advance(at(1_000_000_501));
    assert_eq!(lines.edges(0), before + 1);
    assert_eq!(device.deadline(), Some(at(1_000_001_001)));
}

#[test]
fn one_shot_raises_once() {
    // Linux's one-shot clock event: mode 4.
    let (mut device, lines) = device();
    outb(&mut device, 0, 3, 0x38, VirtualTime(0));
    let before = lines.edges(0);
    outb(&mut device, 0, 0, 100, VirtualTime(0));
    outb(&mut device, 0, 0, 0, VirtualTime(0));
    device.advance(at(102));
    assert_eq!(lines.edges(0), before + 1);
    device.advance(at(100_000));
    assert_eq!(lines.edges(0), before + 1);
    assert_eq!(device.deadline(), None);
}

#[test]
fn port_61h() {
    let (mut device, _) = device();
    outb(&mut device, 1, 0, 0x01, VirtualTime(0));
    outb(&mut device, 0, 3, 0xb0, VirtualTime(0));
    outb(&mut device, 0, 2, 100, VirtualTime(0));
    outb(&mut device, 0, 2, 0, VirtualTime(0));
    assert_eq!(inb(&mut device, 1, 0, at(100)) & 0x2f, 0x01);
    assert_eq!(inb(&mut device, 1, 0, at(101)) & 0x2f, 0x21, "OUT2");
    // Bit 4 toggles with each refresh request, 15 us apart.
    let toggles: Vec<_> = (0..4)
        .map(|n| inb(&mut device, 1, 0, at(n * 18)) >> 4 & 1)
        .collect();
    assert!(toggles == [0, 1, 0, 1] || toggles == [1, 0, 1, 0]);
}

#[test]
fn keeps_the_device_contract() {
    keeps_contract(|| device().0, &[(0, 4), (1, 1)]);
}
