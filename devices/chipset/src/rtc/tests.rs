//! Facts from the MC146818A datasheet and the calendar.

use std::sync::Arc;

use super::*;
use crate::testing::{Lines, inb, keeps_contract, outb};

/// 2024-02-29 23:59:57 UTC, a Thursday.
const LEAP: i64 = 1_709_251_197;
const S: u64 = 1_000_000_000;

struct Clock {
    rtc: RtcDevice,
    lines: Arc<Lines>,
}

impl Clock {
    fn new(epoch_s: i64) -> Self {
        let lines = Lines::new();
        Self {
            rtc: RtcDevice::new(epoch_s, lines.line(8)),
            lines,
        }
    }

    fn read(&mut self, index: u8, ns: u64) -> u8 {
        outb(&mut self.rtc, 0, 0, index, VirtualTime(ns));
        inb(&mut self.rtc, 0, 1, VirtualTime(ns))
    }

    fn write(&mut self, index: u8, value: u8, ns: u64) {
        outb(&mut self.rtc, 0, 0, index, VirtualTime(ns));
        outb(&mut self.rtc, 0, 1, value, VirtualTime(ns));
    }

    /// Century, year, month, day, weekday, hours, minutes, seconds.
    fn time(&mut self, ns: u64) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index, ns))
    }
}

#[test]
fn days_and_dates() {
    let days = |year, month, day| Date { year, month, day }.to_days();
    assert_eq!(days(1970, 1, 1), 0);
    assert_eq!(days(2000, 3, 1), 11_017);
    assert_eq!(days(2024, 2, 29), LEAP / 86_400);
    assert_eq!(days(1969, 12, 31), -1);
    for day in (-800_000..800_000).step_by(13) {
        assert_eq!(Date::from_days(day).to_days(), day);
    }
}

#[test]
fn shows_bcd_and_24_hours_after_power_up() {
    let mut clock = Clock::new(LEAP);
    assert_eq!(clock.time(0), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x57]);
    assert_eq!(
        clock.time(3 * S - 1),
        [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x59]
    );
    assert_eq!(
        clock.time(3 * S),
        [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]
    );
    assert_eq!(clock.read(0x0d, 0), 0x80);
}

#[test]
fn binary_and_12_hours() {
    let mut clock = Clock::new(LEAP);
    clock.write(0x0b, 0x06, 0);
    assert_eq!(clock.time(0), [20, 24, 2, 29, 5, 23, 59, 57]);
    // 12 hours: PM is bit 7.
    clock.write(0x0b, 0x04, 0);
    assert_eq!(clock.read(4, 0), 0x80 | 11);
    assert_eq!(clock.read(4, 3 * S), 12, "midnight is 12 AM");
    assert_eq!(
        clock.read(4, 3 * S + 43_200 * S),
        0x80 | 12,
        "noon is 12 PM"
    );
    clock.write(0x0b, 0x00, 0);
    assert_eq!(clock.read(4, 0), 0x80 | 0x11);
}

#[test]
fn setting_the_time() {
    let mut clock = Clock::new(LEAP);
    // SET inhibits updates; the time goes on from what was written.
    clock.write(0x0b, 0x82, S / 2);
    for (index, value) in [
        (0, 0x58),
        (2, 0x59),
        (4, 0x23),
        (6, 0x07),
        (7, 0x31),
        (8, 0x12),
        (9, 0x99),
        (0x32, 0x19),
    ] {
        clock.write(index, value, S / 2);
    }
    assert_eq!(clock.read(0, 20 * S), 0x58);
    clock.write(0x0b, 0x02, 20 * S + S / 2);
    assert_eq!(
        clock.time(20 * S + S / 2),
        [0x19, 0x99, 0x12, 0x31, 7, 0x23, 0x59, 0x58]
    );
    assert_eq!(clock.time(22 * S), [0x20, 0x00, 0x01, 0x01, 1, 0, 0, 0]);
}

#[test]
fn update_in_progress() {
    // 244 us before each update.
    let mut clock = Clock::new(LEAP);
    assert_eq!(clock.read(0x0a, 0), 0x26);
    assert_eq!(clock.read(0x0a, S - 244_001), 0x26);
    assert_eq!(clock.read(0x0a, S - 244_000), 0xa6);
    assert_eq!(clock.read(0x0a, S), 0x26);
    clock.write(0x0b, 0x82, S);
    assert_eq!(clock.read(0x0a, 2 * S - 1), 0x26, "SET clears it");
}

#[test]
fn the_divider_reset_delays_the_first_update_by_half_a_second() {
    let mut clock = Clock::new(LEAP);
    clock.write(0x0a, 0x76, 2 * S);
    assert_eq!(clock.read(0, 9 * S), 0x59);
    assert_eq!(clock.rtc.deadline(), None);
    clock.write(0x0a, 0x26, 10 * S);
    assert_eq!(clock.read(0, 10 * S + S / 2 - 1), 0x59);
    assert_eq!(clock.read(0, 10 * S + S / 2), 0x00);
}

#[test]
fn update_ended_interrupt() {
    let mut clock = Clock::new(LEAP);
    clock.write(0x0b, 0x12, 0);
    clock.read(0x0c, 0);
    assert_eq!(clock.rtc.deadline(), Some(VirtualTime(S)));
    clock.rtc.advance(VirtualTime(S));
    assert!(clock.lines.level(8));
    assert_eq!(clock.rtc.deadline(), None, "until register C is read");
    assert_eq!(clock.read(0x0c, S) & 0x90, 0x90);
    assert!(!clock.lines.level(8));
    assert_eq!(clock.read(0x0c, S), 0);
    assert_eq!(clock.rtc.deadline(), Some(VirtualTime(2 * S)));
}

#[test]
fn periodic_interrupt() {
    // Table 5: rate 6 is 1024 Hz, 976.5625 us; rate 1 is 256 Hz, rate 2 is 128 Hz, rate 15 is 2 Hz.
    for (rate, hz) in [(6, 1024), (1, 256), (2, 128), (3, 8192), (15, 2)] {
        let mut clock = Clock::new(LEAP);
        clock.write(0x0a, 0x20 | rate, 0);
        clock.write(0x0b, 0x42, 0);
        clock.read(0x0c, 0);
        for n in 1..50u64 {
            let due = clock.rtc.deadline().expect("it runs");
            assert_eq!(due.0, (n * S).div_ceil(hz), "rate {rate}");
            clock.rtc.advance(due);
            assert!(clock.lines.level(8));
            assert_eq!(clock.read(0x0c, due.0) & 0xc0, 0xc0);
        }
        assert_eq!(clock.lines.edges(8), 49);
    }
}

#[test]
fn a_late_board_gets_one_periodic_interrupt_and_stays_in_phase() {
    let mut clock = Clock::new(LEAP);
    clock.write(0x0a, 0x26, 0);
    clock.write(0x0b, 0x42, 0);
    clock.read(0x0c, 0);
    // PF is one flag, whatever number of periods set it, and the line is high until register C is read.
    let late = 5 * S + 100;
    clock.rtc.advance(VirtualTime(late));
    clock.rtc.advance(VirtualTime(late + S));
    assert_eq!(clock.lines.edges(8), 1);
    assert_eq!(clock.rtc.deadline(), None);
    assert_eq!(clock.read(0x0c, late + S) & 0xc0, 0xc0);
    assert_eq!(clock.read(0x0c, late + S), 0);
    assert!(!clock.lines.level(8));
    assert_eq!(
        clock.rtc.deadline(),
        Some(VirtualTime(6 * S + S.div_ceil(1024)))
    );
}

#[test]
fn alarm() {
    let mut clock = Clock::new(LEAP);
    // 00:00:05.
    for (index, value) in [(1, 0x05), (3, 0x00), (5, 0x00)] {
        clock.write(index, value, 0);
    }
    clock.write(0x0b, 0x22, 0);
    for second in 1..8 {
        clock.rtc.advance(VirtualTime(second * S));
        assert!(!clock.lines.level(8), "{second}");
    }
    clock.rtc.advance(VirtualTime(8 * S));
    assert!(clock.lines.level(8));
    assert_eq!(clock.read(0x0c, 8 * S) & 0xa0, 0xa0);
    // "Don't care" in the hours and minutes: each minute.
    clock.write(3, 0xff, 8 * S);
    clock.write(5, 0xc0, 8 * S);
    clock.rtc.advance(VirtualTime(67 * S));
    assert!(!clock.lines.level(8));
    clock.rtc.advance(VirtualTime(68 * S));
    assert!(clock.lines.level(8));
    // A late look finds an alarm that passed.
    clock.read(0x0c, 68 * S);
    clock.rtc.advance(VirtualTime(500 * S));
    assert_eq!(clock.read(0x0c, 500 * S) & 0x20, 0x20);
}

#[test]
fn ram_keeps_bytes_in_both_banks() {
    let mut clock = Clock::new(LEAP);
    clock.rtc.set_ram(0x34, 0x12);
    clock.rtc.set_ram(0xb4, 0x56);
    assert_eq!(clock.read(0x34, 0), 0x12);
    outb(&mut clock.rtc, 0, 2, 0x34, VirtualTime(0));
    assert_eq!(inb(&mut clock.rtc, 0, 3, VirtualTime(0)), 0x56);
    clock.write(0x34 | 0x80, 0x9a, 0);
    assert_eq!(
        clock.read(0x34, 0),
        0x9a,
        "bit 7 of the index is the NMI mask"
    );
}

#[test]
fn reset_turns_interrupts_off_and_keeps_the_time() {
    let mut clock = Clock::new(LEAP);
    clock.write(0x0b, 0x7a, 0);
    clock.rtc.advance(VirtualTime(S));
    assert!(clock.lines.level(8));
    clock.rtc.reset();
    assert!(!clock.lines.level(8));
    assert_eq!(clock.read(0x0b, S), 0x02);
    assert_eq!(clock.read(0, S), 0x58);
}

#[test]
fn keeps_the_device_contract() {
    // The battery keeps time and RAM over a reset, so what it shows is compared for the index ports only.
    struct Volatile(RtcDevice);
    impl Device for Volatile {
        fn name(&self) -> &'static str {
            self.0.name()
        }
        fn reset(&mut self) {
            self.0.reset();
        }
        fn read(&mut self, region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
            self.0.read(region, offset, data, now);
            if offset & 1 != 0 {
                data.fill(0);
            }
        }
        fn write(&mut self, region: Region, offset: u64, data: &[u8], now: VirtualTime) {
            self.0.write(region, offset, data, now);
        }
        fn advance(&mut self, now: VirtualTime) {
            self.0.advance(now);
        }
        fn deadline(&self) -> Option<VirtualTime> {
            self.0.deadline()
        }
    }
    keeps_contract(|| Volatile(Clock::new(LEAP).rtc), &[(0, 4)]);
}
