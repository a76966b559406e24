//! Register layout of the MC146818A and of a PC's CMOS RAM (MC146818A datasheet; ICH9 datasheet 13.6).

/// First of four ports: index and data of the standard bank, index and data of the extended bank.
pub const PORT: u16 = 0x70;
/// ISA interrupt.
pub const IRQ: u32 = 8;

/// Seconds.
pub const SECONDS: u8 = 0x00;
/// Alarm's seconds.
pub const SECONDS_ALARM: u8 = 0x01;
/// Minutes.
pub const MINUTES: u8 = 0x02;
/// Alarm's minutes.
pub const MINUTES_ALARM: u8 = 0x03;
/// Hours.
pub const HOURS: u8 = 0x04;
/// Alarm's hours.
pub const HOURS_ALARM: u8 = 0x05;
/// Day of the week, Sunday is 1.
pub const WEEKDAY: u8 = 0x06;
/// Day of the month.
pub const DAY: u8 = 0x07;
/// Month.
pub const MONTH: u8 = 0x08;
/// Year of the century.
pub const YEAR: u8 = 0x09;
/// Register A: UIP, divider, rate.
pub const A: u8 = 0x0a;
/// Register B: control.
pub const B: u8 = 0x0b;
/// Register C: flags.
pub const C: u8 = 0x0c;
/// Register D: valid RAM and time.
pub const D: u8 = 0x0d;
/// Century, as the FADT tells.
pub const CENTURY: u8 = 0x32;

/// A: update in progress.
pub const A_UIP: u8 = 1 << 7;
/// A after power-up: 32.768 kHz, 1024 Hz.
pub const A_DEFAULT: u8 = 0x26;

/// B: updates are inhibited.
pub const B_SET: u8 = 1 << 7;
/// B, C: periodic interrupt.
pub const PERIODIC: u8 = 1 << 6;
/// B, C: alarm interrupt.
pub const ALARM: u8 = 1 << 5;
/// B, C: update-ended interrupt.
pub const UPDATE: u8 = 1 << 4;
/// B: square wave.
pub const B_SQWE: u8 = 1 << 3;
/// B: binary, not BCD.
pub const B_BINARY: u8 = 1 << 2;
/// B: 24 hours.
pub const B_24H: u8 = 1 << 1;
/// B after power-up: BCD, 24 hours.
pub const B_DEFAULT: u8 = B_24H;

/// C: an enabled flag is set.
pub const C_IRQF: u8 = 1 << 7;
/// D: RAM and time are valid.
pub const D_VRT: u8 = 1 << 7;

/// UIP rises this long before an update.
pub const UIP_NS: u64 = 244_000;
