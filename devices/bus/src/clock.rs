//! Virtual time: the one clock of a VM, which feeds TSC, APIC timer, PIT, HPET, PM timer and RTC.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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
    /// Follows real time.
    Host,
    /// Advances with executed instructions and jumps over idle.
    Virtual,
}

/// The clock of a VM.
#[derive(Debug)]
pub struct Clock {
    mode: ClockMode,
    started: Instant,
    virtual_ns: AtomicU64,
}

impl Clock {
    /// Starts a clock at time zero.
    #[must_use]
    pub fn new(mode: ClockMode) -> Self {
        Self {
            mode,
            started: Instant::now(),
            virtual_ns: AtomicU64::new(0),
        }
    }

    /// Where time comes from.
    #[must_use]
    pub fn mode(&self) -> ClockMode {
        self.mode
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> VirtualTime {
        match self.mode {
            ClockMode::Host => {
                VirtualTime(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
            }
            ClockMode::Virtual => VirtualTime(self.virtual_ns.load(Ordering::Acquire)),
        }
    }

    /// In virtual mode, moves time forward to `to`; never backward. No effect in host mode.
    pub fn advance_to(&self, to: VirtualTime) {
        if self.mode == ClockMode::Virtual {
            self.virtual_ns.fetch_max(to.0, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_round_down_and_back_up() {
        // The PIT's 1.193182 MHz: one tick is 838.09 ns.
        assert_eq!(VirtualTime(838).to_ticks(1_193_182), 0);
        assert_eq!(VirtualTime::from_ticks(1, 1_193_182), VirtualTime(839));
        assert_eq!(VirtualTime(839).to_ticks(1_193_182), 1);
    }

    #[test]
    fn virtual_time_only_moves_forward() {
        let c = Clock::new(ClockMode::Virtual);
        c.advance_to(VirtualTime(5));
        c.advance_to(VirtualTime(3));
        assert_eq!(c.now(), VirtualTime(5));
    }
}
