//! The MC146818A with the battery-backed RAM of a PC.
//!
//! Time is a count of seconds at a known nanosecond; the time registers are computed from it when read. While SET
//! inhibits updates they are plain memory, and the time goes on from them when SET is cleared.

use bus::VirtualTime;

use super::calendar::{DAY_S, Date, weekday};
use super::regs;

const SECOND_NS: i128 = 1_000_000_000;
/// The divider chain's clock.
const CRYSTAL_HZ: i128 = 32_768;

/// Origin while the divider chain is held: later than any time, so that none passes.
const HELD_ORIGIN: i128 = i128::MAX / 2;

/// The clock's registers and RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rtc {
    ram: [u8; 256],
    index: [u8; 2],
    /// Seconds since 1970 at `origin_ns`, where a second begins.
    seconds: i64,
    origin_ns: i128,
    /// Added to the calendar's day of the week, since the guest sets it apart from the date.
    weekday_shift: i64,
    flags: u8,
    /// Whole seconds, and periodic ticks, since `origin_ns` that were looked at.
    seen_seconds: i128,
    seen_periods: i128,
}

impl Rtc {
    /// A clock that shows `epoch_s` (seconds since 1970, UTC) at time zero.
    #[must_use]
    pub fn new(epoch_s: i64) -> Self {
        let mut ram = [0; 256];
        ram[usize::from(regs::A)] = regs::A_DEFAULT;
        ram[usize::from(regs::B)] = regs::B_DEFAULT;
        Self {
            ram,
            index: [0; 2],
            // The years 0 to 9999.
            seconds: epoch_s.clamp(-62_167_219_200, 253_402_300_799),
            origin_ns: 0,
            weekday_shift: 0,
            flags: 0,
            seen_seconds: 0,
            seen_periods: 0,
        }
    }

    /// The RESET pin: interrupts off, flags cleared. Time and RAM are the battery's and stay.
    pub fn reset(&mut self) {
        self.index = [0; 2];
        self.flags = 0;
        *self.reg(regs::B) &= !(regs::PERIODIC | regs::ALARM | regs::UPDATE | regs::B_SQWE);
    }

    fn reg(&mut self, index: u8) -> &mut u8 {
        &mut self.ram[usize::from(index)]
    }

    fn get(&self, index: u8) -> u8 {
        self.ram[usize::from(index)]
    }

    /// The divider chain is held in reset (register A, DV = 11x).
    fn held(&self) -> bool {
        self.get(regs::A) & 0x60 == 0x60
    }

    fn updating(&self) -> bool {
        self.get(regs::B) & regs::B_SET == 0 && !self.held()
    }

    // ---- time ----

    fn elapsed_ns(&self, now: VirtualTime) -> i128 {
        (i128::from(now.0) - self.origin_ns).max(0)
    }

    fn seconds_at(&self, now: VirtualTime) -> i64 {
        self.seconds
            .saturating_add((self.elapsed_ns(now) / SECOND_NS) as i64)
    }

    /// 32.768 kHz ticks between periodic interrupts; none for rate 0 (datasheet table 5).
    fn period_ticks(&self) -> Option<i128> {
        let rate = self.get(regs::A) & 0xf;
        match rate {
            0 => None,
            1 | 2 => Some(128 << (rate - 1)),
            _ => Some(1 << (rate - 1)),
        }
    }

    fn periods_at(&self, now: VirtualTime) -> i128 {
        let ticks = self.elapsed_ns(now) * CRYSTAL_HZ / SECOND_NS;
        self.period_ticks().map_or(0, |period| ticks / period)
    }

    /// Moves the origin to the last whole second, with the seconds that are shown then.
    fn rebase(&mut self, seconds: i64, now: VirtualTime) {
        if self.held() {
            self.set_origin(seconds, HELD_ORIGIN, now);
            return;
        }
        let phase = self.elapsed_ns(now) % SECOND_NS;
        self.set_origin(seconds, i128::from(now.0) - phase, now);
    }

    fn set_origin(&mut self, seconds: i64, origin_ns: i128, now: VirtualTime) {
        self.seconds = seconds;
        self.origin_ns = origin_ns;
        self.seen_seconds = self.elapsed_ns(now) / SECOND_NS;
        self.seen_periods = self.periods_at(now);
    }

    /// Sets the flags of what happened since the last call.
    pub fn advance(&mut self, now: VirtualTime) {
        if self.held() {
            return;
        }
        let periods = self.periods_at(now);
        if periods > self.seen_periods {
            self.flags |= regs::PERIODIC;
            self.seen_periods = periods;
        }
        let seconds = self.elapsed_ns(now) / SECOND_NS;
        let passed = seconds - self.seen_seconds;
        if passed > 0 {
            self.seen_seconds = seconds;
            if self.updating() {
                self.flags |= regs::UPDATE;
                if self.alarm_within(self.seconds_at(now), passed) {
                    self.flags |= regs::ALARM;
                }
            }
        }
    }

    /// Whether the alarm matched in the `passed` seconds up to and including `until`.
    fn alarm_within(&self, until: i64, passed: i128) -> bool {
        let field = |index, decode: &dyn Fn(u8) -> i64| {
            let raw = self.get(index);
            // The two top bits set are "don't care".
            (raw & 0xc0 != 0xc0).then(|| decode(raw))
        };
        let second = field(regs::SECONDS_ALARM, &|v| self.decode(v));
        let minute = field(regs::MINUTES_ALARM, &|v| self.decode(v));
        let hour = field(regs::HOURS_ALARM, &|v| self.decode_hour(v));
        let matches = |field: Option<i64>, value: i64| field.is_none_or(|f| f == value);
        let count = passed.min(i128::from(DAY_S)) as i64;
        (0..count).any(|ago| {
            let of_day = (until - ago).rem_euclid(DAY_S);
            matches(second, of_day % 60)
                && matches(minute, of_day / 60 % 60)
                && matches(hour, of_day / 3600)
        })
    }

    /// The level of the interrupt line.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.flags & self.get(regs::B) & (regs::PERIODIC | regs::ALARM | regs::UPDATE) != 0
    }

    /// When [`Self::advance`] is next needed. None while the line is high: the guest has to read register C first.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        if self.held() || self.interrupt() {
            return None;
        }
        let b = self.get(regs::B);
        let period = self
            .period_ticks()
            .filter(|_| b & regs::PERIODIC != 0)
            .map(|period| {
                let ticks = (self.seen_periods + 1) * period * SECOND_NS;
                self.origin_ns + (ticks + CRYSTAL_HZ - 1) / CRYSTAL_HZ
            });
        let second = (b & (regs::ALARM | regs::UPDATE) != 0 && self.updating())
            .then(|| self.origin_ns + (self.seen_seconds + 1) * SECOND_NS);
        let ns = match (period, second) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        u64::try_from(ns.max(0)).ok().map(VirtualTime)
    }

    // ---- encoding ----

    fn encode(&self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.get(regs::B) & regs::B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, raw: u8) -> i64 {
        if self.get(regs::B) & regs::B_BINARY != 0 {
            return i64::from(raw);
        }
        i64::from(raw >> 4) * 10 + i64::from(raw & 0xf)
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.get(regs::B) & regs::B_24H != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, raw: u8) -> i64 {
        if self.get(regs::B) & regs::B_24H != 0 {
            return self.decode(raw);
        }
        self.decode(raw & 0x7f) % 12 + if raw & 0x80 != 0 { 12 } else { 0 }
    }

    /// Stores what the time registers show at `now`.
    fn store_time(&mut self, now: VirtualTime) {
        let seconds = self.seconds_at(now);
        let days = seconds.div_euclid(DAY_S);
        let of_day = seconds.rem_euclid(DAY_S);
        let date = Date::from_days(days);
        let weekday = (weekday(days) + self.weekday_shift).rem_euclid(7) + 1;
        let values = [
            (regs::SECONDS, self.encode(of_day % 60)),
            (regs::MINUTES, self.encode(of_day / 60 % 60)),
            (regs::HOURS, self.encode_hour(of_day / 3600)),
            (regs::WEEKDAY, self.encode(weekday)),
            (regs::DAY, self.encode(date.day)),
            (regs::MONTH, self.encode(date.month)),
            (regs::YEAR, self.encode(date.year)),
            (regs::CENTURY, self.encode(date.year.div_euclid(100))),
        ];
        for (index, value) in values {
            *self.reg(index) = value;
        }
    }

    /// Lets the time go on from what the time registers hold.
    fn load_time(&mut self, now: VirtualTime) {
        let date = Date {
            year: self.decode(self.get(regs::CENTURY)) * 100 + self.decode(self.get(regs::YEAR)),
            month: self.decode(self.get(regs::MONTH)),
            day: self.decode(self.get(regs::DAY)),
        };
        let days = date.to_days();
        let seconds = days * DAY_S
            + self.decode_hour(self.get(regs::HOURS)) * 3600
            + self.decode(self.get(regs::MINUTES)) * 60
            + self.decode(self.get(regs::SECONDS));
        self.weekday_shift = self.decode(self.get(regs::WEEKDAY)) - 1 - weekday(days);
        self.rebase(seconds, now);
    }

    fn is_time(index: u8) -> bool {
        matches!(
            index,
            regs::SECONDS
                | regs::MINUTES
                | regs::HOURS
                | regs::WEEKDAY
                | regs::DAY
                | regs::MONTH
                | regs::YEAR
                | regs::CENTURY
        )
    }

    // ---- access ----

    /// Writes an index port: the standard bank's (`extended` false) or the extended one's. Bit 7, the NMI mask, is dropped.
    pub fn select(&mut self, extended: bool, value: u8) {
        self.index[usize::from(extended)] = value & 0x7f;
    }

    /// The index a bank's index port holds.
    #[must_use]
    pub fn selected(&self, extended: bool) -> u8 {
        self.index[usize::from(extended)]
    }

    /// Sets a byte of RAM, as firmware or a battery would have left it. Indices 80h and up are the extended bank.
    /// Time and control registers are not changed by it.
    pub fn set_ram(&mut self, index: u8, value: u8) {
        if index > regs::D && index != regs::CENTURY {
            *self.reg(index) = value;
        }
    }

    /// Reads the selected byte.
    pub fn read(&mut self, extended: bool, now: VirtualTime) -> u8 {
        self.advance(now);
        let index = self.index[usize::from(extended)];
        if extended {
            return self.get(0x80 | index);
        }
        match index {
            regs::A => {
                let phase = self.elapsed_ns(now) % SECOND_NS;
                let uip = self.updating() && phase >= SECOND_NS - i128::from(regs::UIP_NS);
                self.get(regs::A) | if uip { regs::A_UIP } else { 0 }
            }
            regs::C => {
                let irqf = if self.interrupt() { regs::C_IRQF } else { 0 };
                std::mem::take(&mut self.flags) | irqf
            }
            regs::D => regs::D_VRT,
            _ => {
                if Self::is_time(index) && self.get(regs::B) & regs::B_SET == 0 {
                    self.store_time(now);
                }
                self.get(index)
            }
        }
    }

    /// Writes the selected byte.
    pub fn write(&mut self, extended: bool, value: u8, now: VirtualTime) {
        self.advance(now);
        let index = self.index[usize::from(extended)];
        if extended {
            *self.reg(0x80 | index) = value;
            return;
        }
        match index {
            regs::A => self.write_a(value, now),
            regs::B => self.write_b(value, now),
            regs::C | regs::D => {}
            _ if Self::is_time(index) && self.get(regs::B) & regs::B_SET == 0 => {
                self.store_time(now);
                *self.reg(index) = value;
                self.load_time(now);
            }
            _ => *self.reg(index) = value,
        }
    }

    /// The first update comes half a second after the divider chain is released (datasheet, divider control).
    fn write_a(&mut self, value: u8, now: VirtualTime) {
        let was_held = self.held();
        let seconds = self.seconds_at(now);
        *self.reg(regs::A) = value & !regs::A_UIP;
        match (was_held, self.held()) {
            (true, false) => self.set_origin(self.seconds, i128::from(now.0) - SECOND_NS / 2, now),
            // The time stands at what it is.
            (false, true) => self.set_origin(seconds, HELD_ORIGIN, now),
            _ => self.seen_periods = self.periods_at(now),
        }
    }

    fn write_b(&mut self, value: u8, now: VirtualTime) {
        let was_set = self.get(regs::B) & regs::B_SET != 0;
        if !was_set {
            self.store_time(now);
        }
        // SET clears the update-ended enable (datasheet, register B).
        let value = if value & regs::B_SET != 0 {
            value & !regs::UPDATE
        } else {
            value
        };
        if was_set && value & regs::B_SET == 0 {
            // The registers are in the format that was in force when they were written, unless that changes now.
            *self.reg(regs::B) = value;
            self.load_time(now);
        } else {
            *self.reg(regs::B) = value;
        }
    }
}
