//! Virtual time: the one clock of a VM, which feeds TSC, APIC timer, PIT, HPET, PM timer and RTC.
//!
//! # Real time less a lag
//!
//! A guest that measures one clock against another reads both in a tight loop. When the host takes the processor away
//! from its vCPU in between, milliseconds pass between two reads that belong together, and the measurement is spoilt,
//! which does not happen on a processor of the guest's own. So where an engine looks at the clock for its guest
//! ([`Clock::new`] in host mode), the time it is shown moves at most by what executing could have taken: a little for
//! the look and for each instruction since that vCPU's last one. What is left is *lag*. The next looks make it up,
//! since executing takes less than that. It never exceeds a tenth of a second, and whoever has no reads to be torn apart
//! shows it at once ([`Clock::catch_up`]).
//!
//! The shown time is one word that only grows, so all clocks and all vCPUs agree and none goes back. It is never ahead
//! of real time.

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How far a look may move the shown time. Linux compares TSC and PIT within an uncertainty of 24.4 us (1/2048 of
/// 50 ms), which is that of twelve looks.
const LOOK_NS: u64 = 1_500;
/// How far each instruction before a look may move the shown time: more than one takes, so that lag is made up.
const INSTRUCTION_NS: u64 = 32;
/// So many instructions without a look belong to no measurement that a little more time would spoil.
const FEW_INSTRUCTIONS: u64 = 1_024;
/// How far those beyond these move the shown time. It is more than slow ones take too.
const FURTHER_INSTRUCTION_NS: u64 = 128;
/// A longer lag is shown at once: the process was stopped, or the host is too busy to follow real time smoothly.
const MAX_LAG_NS: u64 = 100_000_000;

/// Nanoseconds since the VM was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualTime(pub u64);

impl VirtualTime {
    /// Ticks of a clock of `hz` that have passed at this time, rounded down.
    #[must_use]
    pub fn to_ticks(self, hz: u64) -> u64 {
        (u128::from(self.0) * u128::from(hz) / 1_000_000_000) as u64
    }

    /// The first time at which a clock of `hz` shows `ticks`.
    #[must_use]
    pub fn from_ticks(ticks: u64, hz: u64) -> Self {
        let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(hz.max(1)));
        Self(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// Adds nanoseconds, saturating.
impl Add<u64> for VirtualTime {
    type Output = Self;
    fn add(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// Nanoseconds between two times, zero if `other` is later.
impl Sub for VirtualTime {
    type Output = u64;
    fn sub(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

/// Where virtual time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockMode {
    /// Follows real time, as closely as a guest can bear.
    Host,
    /// Advances with executed instructions and jumps over idle.
    Virtual,
}

/// Where real time comes from.
#[derive(Clone, Debug)]
pub enum RealTime {
    /// The host's monotonic clock, since this moment.
    Since(Instant),
    /// Nanoseconds that whoever holds this too writes: a clock for tests.
    Given(Arc<AtomicU64>),
}

impl RealTime {
    /// The host's clock from now on.
    #[must_use]
    pub fn start() -> Self {
        Self::Since(Instant::now())
    }

    fn ns(&self) -> u64 {
        match self {
            Self::Since(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Self::Given(ns) => ns.load(Ordering::Acquire),
        }
    }
}

/// What moves a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Real time.
    Real,
    /// Looks, towards real time.
    Looks,
    /// Executed instructions.
    Virtual,
}

/// The clock of a VM.
#[derive(Debug)]
pub struct Clock {
    pace: Pace,
    real: RealTime,
    /// The time that was shown last, unless it is real time.
    shown_ns: AtomicU64,
}

impl Clock {
    /// Starts a clock at time zero for an engine that looks at it for its guest: in host mode, with [`Clock::look`].
    #[must_use]
    pub fn new(mode: ClockMode) -> Self {
        Self::with_real_time(mode, RealTime::start())
    }

    /// As [`Clock::new`], with real time from `real`.
    #[must_use]
    pub fn with_real_time(mode: ClockMode, real: RealTime) -> Self {
        let pace = match mode {
            ClockMode::Host => Pace::Looks,
            ClockMode::Virtual => Pace::Virtual,
        };
        Self {
            pace,
            real,
            shown_ns: AtomicU64::new(0),
        }
    }

    /// Starts a clock in host mode that is real time itself, for an engine whose guest reads the host's TSC.
    #[must_use]
    pub fn real_time() -> Self {
        Self {
            pace: Pace::Real,
            real: RealTime::start(),
            shown_ns: AtomicU64::new(0),
        }
    }

    /// Where time comes from.
    #[must_use]
    pub fn mode(&self) -> ClockMode {
        match self.pace {
            Pace::Real | Pace::Looks => ClockMode::Host,
            Pace::Virtual => ClockMode::Virtual,
        }
    }

    /// The time now, as far as it has been shown.
    #[must_use]
    pub fn now(&self) -> VirtualTime {
        match self.pace {
            Pace::Real => self.real(),
            Pace::Looks | Pace::Virtual => VirtualTime(self.shown_ns.load(Ordering::Acquire)),
        }
    }

    /// In virtual mode, moves time forward to `to`; never backward. No effect in host mode.
    pub fn advance_to(&self, to: VirtualTime) {
        if self.pace == Pace::Virtual {
            self.shown_ns.fetch_max(to.0, Ordering::AcqRel);
        }
    }

    /// Real time since the start, which the shown time follows in host mode.
    #[must_use]
    pub fn real(&self) -> VirtualTime {
        VirtualTime(self.real.ns())
    }

    /// How far the shown time is behind real time, in nanoseconds; none but in host mode.
    #[must_use]
    pub fn lag(&self) -> u64 {
        match self.pace {
            Pace::Looks => self.real() - self.now(),
            Pace::Real | Pace::Virtual => 0,
        }
    }

    /// A vCPU that runs looks at the clock: it was at `last` when it looked before, or when it began to run, and has
    /// executed so many instructions since. In virtual mode, the time as it is.
    pub fn look(&self, last: VirtualTime, executed: u64) -> VirtualTime {
        let step = step_ns(executed);
        self.show(|real| real.min((last + step).0))
    }

    /// Shows all of real time: nobody runs whose reads belong together. In virtual mode, the time as it is.
    pub fn catch_up(&self) -> VirtualTime {
        self.show(|real| real)
    }

    /// The time for a vCPU that waits while others run: it is theirs to move. In virtual mode, the time as it is.
    pub fn watch(&self) -> VirtualTime {
        self.show(|_| 0)
    }

    /// Moves the shown time to what `wanted` makes of real time, or to that itself where the lag is too long.
    #[inline]
    fn show(&self, wanted: impl FnOnce(u64) -> u64) -> VirtualTime {
        if self.pace != Pace::Looks {
            return self.now();
        }
        let real = self.real.ns();
        let shown = self.shown_ns.load(Ordering::Acquire);
        let to = if real.saturating_sub(shown) > MAX_LAG_NS {
            real
        } else {
            wanted(real)
        };
        if to <= shown {
            return VirtualTime(shown);
        }
        VirtualTime(self.shown_ns.fetch_max(to, Ordering::AcqRel).max(to))
    }
}

/// How far a look after so many instructions may move the shown time.
fn step_ns(executed: u64) -> u64 {
    let few = executed.min(FEW_INSTRUCTIONS);
    let further = (executed - few).saturating_mul(FURTHER_INSTRUCTION_NS);
    (LOOK_NS + few * INSTRUCTION_NS).saturating_add(further)
}

#[cfg(test)]
mod tests;
