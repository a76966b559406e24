//! Facts from the IA-PC HPET specification 1.0a.

use super::*;
use crate::testing::{Lines, keeps_contract};

struct Board {
    hpet: HpetDevice,
    legacy: Arc<LegacyRoute>,
    lines: Arc<Lines>,
}

impl Board {
    fn new() -> Self {
        let lines = Lines::new();
        let legacy = LegacyRoute::new(lines.clone());
        Self {
            hpet: HpetDevice::new(lines.clone(), legacy.clone()),
            legacy,
            lines,
        }
    }

    fn read(&mut self, offset: u64, ns: u64) -> u64 {
        let mut data = [0; 8];
        self.hpet
            .read(Region(0), offset, &mut data, VirtualTime(ns));
        u64::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u64, ns: u64) {
        self.hpet
            .write(Region(0), offset, &value.to_le_bytes(), VirtualTime(ns));
    }

    fn write32(&mut self, offset: u64, value: u32, ns: u64) {
        self.hpet
            .write(Region(0), offset, &value.to_le_bytes(), VirtualTime(ns));
    }
}

#[test]
fn capabilities() {
    // 2.3.4: revision, number of timers less one, 64-bit counter, legacy route, vendor, period in femtoseconds.
    let mut board = Board::new();
    let capabilities = board.read(0, 0);
    assert_eq!(capabilities >> 32, 10_000_000);
    assert!(capabilities >> 32 <= 0x05f5_e100, "at least 10 MHz");
    assert_eq!(capabilities as u32, 0x8086_a201);
    board.write(0, 0, 0);
    assert_eq!(board.read(0, 0), capabilities);
    // Timer 0 can be periodic; no timer has an FSB route (bit 15).
    assert_eq!(board.read(0x100, 0) & 0x8030, 0x0030);
    assert_eq!(board.read(0x120, 0) & 0x8030, 0x0020);
    assert_eq!(board.read(0x100, 0) >> 32, 0x00f0_0000);
}

#[test]
fn the_counter_runs_while_enabled() {
    let mut board = Board::new();
    assert_eq!(board.read(0xf0, 5_000), 0);
    board.write(0x10, 1, 5_000);
    assert_eq!(board.read(0xf0, 6_000), 100);
    board.write(0x10, 0, 7_000);
    assert_eq!(board.read(0xf0, 9_000), 200);
    board.write(0xf0, 0xffff_ffff, 9_000);
    board.write(0x10, 1, 9_000);
    assert_eq!(board.read(0xf0, 9_010), 0x1_0000_0000);
    // Halves.
    let mut half = [0; 4];
    board
        .hpet
        .read(Region(0), 0xf4, &mut half, VirtualTime(9_010));
    assert_eq!(half, [1, 0, 0, 0]);
}

#[test]
fn one_shot_edge() {
    let mut board = Board::new();
    board.write(0x10, 1, 0);
    // Route to input 21, edge, enabled.
    board.write(0x120, 21 << 9 | 1 << 2, 0);
    board.write(0x128, 1000, 0);
    assert_eq!(board.hpet.deadline(), Some(VirtualTime(10_000)));
    board.hpet.advance(VirtualTime(9_999));
    assert_eq!(board.lines.edges(21), 0);
    board.hpet.advance(VirtualTime(10_000));
    assert_eq!(board.lines.edges(21), 1);
    assert_eq!(board.read(0x20, 10_000), 0, "2.3.6: zero for edge");
    board.hpet.advance(VirtualTime(1_000_000_000));
    assert_eq!(board.lines.edges(21), 1);
}

#[test]
fn a_32_bit_timer_wraps() {
    let mut board = Board::new();
    board.write(0xf0, 0xffff_ff00, 0);
    board.write(0x10, 1, 0);
    board.write(0x100, 20 << 9 | 1 << 2 | 1 << 8, 0);
    board.write32(0x108, 0x0000_0010, 0);
    assert_eq!(board.read(0x108, 0), 0x10, "the upper half reads zero");
    assert_eq!(board.hpet.deadline(), Some(VirtualTime(0x110 * 10)));
}

#[test]
fn level_interrupt_and_status() {
    let mut board = Board::new();
    board.write(0x10, 1, 0);
    board.write(0x140, 22 << 9 | 1 << 2 | 1 << 1, 0);
    board.write(0x148, 100, 0);
    board.hpet.advance(VirtualTime(1_000));
    assert!(board.lines.level(22));
    assert_eq!(board.read(0x20, 1_000), 1 << 2);
    board.write(0x20, 1 << 1, 1_000);
    assert!(board.lines.level(22));
    board.write(0x20, 1 << 2, 1_000);
    assert!(!board.lines.level(22));
}

#[test]
fn periodic_as_linux_sets_it_up() {
    // 2.3.9.2.2: with VALUE_SET the first write is the accumulator, the next the period.
    let mut board = Board::new();
    board.write(0x10, 1, 0);
    board.write32(0x100, 20 << 9 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8, 0);
    board.write32(0x108, 500, 0);
    assert_eq!(board.read(0x100, 0) & 1 << 6, 0, "VALUE_SET clears itself");
    board.write32(0x108, 100, 0);
    assert_eq!(board.read(0x108, 0), 500);
    for n in 0..100u64 {
        let due = board.hpet.deadline().expect("periodic");
        assert_eq!(due, VirtualTime(5_000 + n * 1_000));
        board.hpet.advance(due);
        assert_eq!(board.lines.edges(20), n as usize + 1);
    }
    assert_eq!(
        board.read(0x108, 104_000),
        10_500,
        "the comparator is the next match"
    );
    // Late: one edge, in phase.
    board.hpet.advance(VirtualTime(1_000_000_500));
    assert_eq!(board.lines.edges(20), 101);
    assert_eq!(board.hpet.deadline(), Some(VirtualTime(1_000_001_000)));
}

#[test]
fn only_timer_0_is_periodic() {
    let mut board = Board::new();
    board.write(0x120, 1 << 3 | 1 << 6, 0);
    assert_eq!(board.read(0x120, 0) & (1 << 3 | 1 << 6), 0);
}

#[test]
fn legacy_replacement() {
    // 2.3.5: timer 0 takes the place of the PIT, timer 1 that of the RTC.
    let mut board = Board::new();
    let (pit, rtc) = (board.legacy.pit_line(), board.legacy.rtc_line());
    pit.set(true);
    assert!(board.lines.level(0));
    board.write(0x10, 3, 0);
    assert!(!board.lines.level(0));
    rtc.pulse();
    pit.pulse();
    assert_eq!((board.lines.edges(0), board.lines.edges(8)), (1, 0));
    board.write(0x100, 1 << 2, 0);
    board.write(0x108, 10, 0);
    board.write(0x120, 1 << 2, 0);
    board.write(0x128, 20, 0);
    board.hpet.advance(VirtualTime(200));
    assert_eq!((board.lines.edges(0), board.lines.edges(8)), (2, 1));
    // Given back, the lines are their devices' again.
    pit.set(true);
    assert!(!board.lines.level(0));
    board.write(0x10, 1, 200);
    assert!(board.lines.level(0));
}

#[test]
fn a_timer_without_a_valid_route_is_silent() {
    let mut board = Board::new();
    board.write(0x10, 1, 0);
    board.write(0x100, 3 << 9 | 1 << 2, 0);
    board.write(0x108, 10, 0);
    board.hpet.advance(VirtualTime(1_000));
    assert!((0..32).all(|n| board.lines.edges(n) == 0));
}

#[test]
fn keeps_the_device_contract() {
    keeps_contract(|| Board::new().hpet, &[(0, 0x180)]);
    assert_eq!(Board::new().hpet.deadline(), None);
}
