//! The local APIC's timer: one-shot, periodic and TSC-deadline (SDM Vol 3 12.5.4).
//!
//! The counter is never stepped. It is known by the bus tick at which it held a known count, so that it
//! does not drift however seldom it is looked at. Counting goes on while the LVT entry is masked.

use bus::VirtualTime;

/// How virtual time is seen by one vCPU's time-stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscClock {
    /// Ticks a second.
    pub hz: u64,
    /// What is added to the ticks since time zero, modulo 2^64; an IA32_TSC write changes it.
    pub offset: u64,
}

impl TscClock {
    /// The TSC at `now`.
    #[must_use]
    pub fn read(self, now: VirtualTime) -> u64 {
        now.to_ticks(self.hz).wrapping_add(self.offset)
    }

    /// The first time at or after `now` at which the TSC is at least `deadline`.
    #[must_use]
    pub fn reaches(self, deadline: u64, now: VirtualTime) -> VirtualTime {
        let left = deadline.saturating_sub(self.read(now));
        if left == 0 {
            return now;
        }
        VirtualTime::from_ticks(now.to_ticks(self.hz).saturating_add(left), self.hz)
    }
}

/// The timer mode of the LVT entry, bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    /// Counts down once.
    OneShot,
    /// Counts down and reloads.
    Periodic,
    /// Expires when the TSC reaches IA32_TSC_DEADLINE.
    TscDeadline,
    /// Value 3: the timer does not run.
    Reserved,
}

impl TimerMode {
    /// Decodes an LVT timer entry.
    #[must_use]
    pub fn from_lvt(entry: u32) -> Self {
        match entry >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// The counter held `count` at bus tick `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counting {
    base: u64,
    count: u32,
}

/// The timer's registers and where its counter stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    bus_hz: u64,
    mode: TimerMode,
    initial: u32,
    divide: u32,
    counting: Option<Counting>,
    /// IA32_TSC_DEADLINE; zero when disarmed.
    tsc_deadline: u64,
    tsc_due: VirtualTime,
}

impl Timer {
    /// A stopped timer whose input clock has `bus_hz`.
    #[must_use]
    pub fn new(bus_hz: u64) -> Self {
        Self {
            bus_hz: bus_hz.max(1),
            mode: TimerMode::OneShot,
            initial: 0,
            divide: 0,
            counting: None,
            tsc_deadline: 0,
            tsc_due: VirtualTime(0),
        }
    }

    /// Bus ticks a count (SDM Vol 3 figure 12-10).
    fn divisor(&self) -> u64 {
        let field = (self.divide >> 1 & 4) | (self.divide & 3);
        1 << ((field + 1) & 7)
    }

    /// The counter at `now`.
    #[must_use]
    pub fn current_count(&self, now: VirtualTime) -> u32 {
        let Some(c) = self.counting else { return 0 };
        let elapsed = now.to_ticks(self.bus_hz).saturating_sub(c.base) / self.divisor();
        u64::from(c.count).saturating_sub(elapsed) as u32
    }

    /// The initial count.
    #[must_use]
    pub fn initial_count(&self) -> u32 {
        self.initial
    }

    /// Starts the counter, or stops it with zero. Ignored in TSC-deadline mode.
    pub fn set_initial_count(&mut self, count: u32, now: VirtualTime) {
        if !self.mode.counts() {
            return;
        }
        self.initial = count;
        self.counting = (count != 0).then(|| Counting {
            base: now.to_ticks(self.bus_hz),
            count,
        });
    }

    /// The divide configuration register.
    #[must_use]
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Changes the divide configuration; a running counter goes on from where it is.
    pub fn set_divide(&mut self, value: u32, now: VirtualTime) {
        let count = self.current_count(now);
        self.divide = value & 0xb;
        if let Some(c) = &mut self.counting {
            *c = Counting {
                base: now.to_ticks(self.bus_hz),
                count,
            };
        }
    }

    /// Follows the LVT entry's mode. Going to or from TSC-deadline mode disarms (SDM Vol 3 12.5.4.1).
    pub fn set_mode(&mut self, mode: TimerMode) {
        if mode == self.mode {
            return;
        }
        if !(mode.counts() && self.mode.counts()) {
            self.initial = 0;
            self.counting = None;
            self.tsc_deadline = 0;
        }
        self.mode = mode;
    }

    /// IA32_TSC_DEADLINE: zero when disarmed or in another mode.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Arms the deadline, or disarms it with zero. Ignored in other modes.
    pub fn set_tsc_deadline(&mut self, deadline: u64, tsc: TscClock, now: VirtualTime) {
        if self.mode == TimerMode::TscDeadline {
            self.tsc_deadline = deadline;
            self.tsc_due = tsc.reaches(deadline, now);
        }
    }

    /// Recomputes when an armed deadline is due, after the TSC was written.
    pub fn retime(&mut self, tsc: TscClock, now: VirtualTime) {
        self.tsc_due = tsc.reaches(self.tsc_deadline, now);
    }

    /// When the timer next expires.
    #[must_use]
    pub fn due(&self) -> Option<VirtualTime> {
        if self.tsc_deadline != 0 {
            return Some(self.tsc_due);
        }
        let c = self.counting?;
        let ticks = u64::from(c.count).saturating_mul(self.divisor());
        Some(VirtualTime::from_ticks(
            c.base.saturating_add(ticks),
            self.bus_hz,
        ))
    }

    /// Lets time pass; true when the timer expired at least once since the last call.
    pub fn advance(&mut self, now: VirtualTime) -> bool {
        if self.due().is_none_or(|due| due > now) {
            return false;
        }
        if self.tsc_deadline != 0 {
            self.tsc_deadline = 0;
            return true;
        }
        let Some(c) = self.counting else { return false };
        let divisor = self.divisor();
        self.counting = None;
        if self.mode == TimerMode::Periodic && self.initial != 0 {
            let expired = c
                .base
                .saturating_add(u64::from(c.count).saturating_mul(divisor));
            let period = u64::from(self.initial).saturating_mul(divisor);
            let since = now.to_ticks(self.bus_hz).saturating_sub(expired);
            let base = expired.saturating_add(since - since % period);
            self.counting = Some(Counting {
                base,
                count: self.initial,
            });
        }
        true
    }
}
