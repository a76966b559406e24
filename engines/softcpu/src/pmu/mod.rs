//! Performance monitoring: counters of what the processor did, and the interrupt when one overflows (SDM Vol 3
//! chapter 20).
//!
//! [`registers`] has the MSRs and RDPMC. A counter holds what had been counted when it was last looked at; what came
//! since is added, from the run loop's own count of instructions and from the clock, before anybody sees it and before
//! anything it depends on changes ([`Cpu::pmu_sync`]). Between these moments nothing is done for it. A slice of the run
//! loop is cut short where a counter that is to interrupt overflows ([`Cpu::pmu_polled`]), so its interrupt comes with
//! the block that gets there. While branches are counted instructions are executed one by one.
//!
//! What is counted: unhalted cycles, which are those of the TSC also where the "core" is meant; instructions; branch
//! instructions. This processor predicts no branch and has no caches, so the architectural events of mispredicted
//! branches and of the last-level cache never happen, nor do those that are no architectural ones.

mod branches;
mod registers;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_amd;

use crate::cpu::{Cpu, pending};

pub use registers::{Features, saved};

/// The most general-purpose counters; those of fixed function follow them.
const FIXED: usize = 8;
const SLOTS: usize = FIXED + 3;

/// What a counter can count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Cycles in which the processor is not halted.
    Cycles,
    /// Instructions retired.
    Instructions,
    /// Branch instructions retired.
    Branches,
    /// What does not happen here.
    Never,
}

/// The privilege levels a counter counts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Levels {
    /// CPL 0.
    os: bool,
    /// CPL 1 to 3.
    user: bool,
}

impl Levels {
    fn include(self, cpl: u8) -> bool {
        if cpl == 0 { self.os } else { self.user }
    }
}

/// What a counter is set up for.
#[derive(Clone, Copy, Debug)]
struct Setup {
    event: Event,
    levels: Levels,
    /// Least number of events in a cycle that count as one; 0 counts each event.
    mask: u8,
    /// Fewer than that instead.
    invert: bool,
    /// Only when it comes to be so.
    edge: bool,
    /// An overflow raises the interrupt.
    interrupts: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    value: u64,
    /// Set while it counts at some privilege level.
    setup: Option<Setup>,
    /// In the last cycle its condition held (edge detection).
    held: bool,
}

/// What happened in a stretch of time at one privilege level.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    cycles: u64,
    instructions: u64,
    branches: u64,
}

impl Counter {
    /// What it counts of a stretch (SDM Vol 3 20.2.1.1). No cycle has more than one instruction.
    fn counted(&mut self, setup: &Setup, stretch: &Stretch) -> u64 {
        let events = match setup.event {
            Event::Cycles => stretch.cycles,
            Event::Instructions => stretch.instructions,
            Event::Branches => stretch.branches,
            Event::Never => 0,
        };
        let hits = match (setup.mask, setup.invert) {
            (0, _) | (1, false) => events,
            (_, false) => 0,
            (1, true) => stretch.cycles.saturating_sub(events),
            (_, true) => stretch.cycles,
        };
        if !setup.edge {
            return hits;
        }
        let others = stretch.cycles.saturating_sub(hits);
        let held = std::mem::replace(&mut self.held, hits > 0 && others == 0);
        match (hits, others) {
            (0, 0) => {
                self.held = held;
                0
            }
            (_, 0) => u64::from(!held),
            _ => hits.min(others),
        }
    }
}

/// Where the counters were last brought up to date.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Platform TSC.
    tsc: u64,
    instructions: u64,
    /// [`Cpu::retired_now`].
    retired: u64,
    /// The privilege level since.
    cpl: u8,
}

/// The counters of a processor.
#[derive(Clone, Debug, Default)]
pub struct Pmu {
    counters: [Counter; SLOTS],
    /// IA32_PERFEVTSELx.
    select: [u64; FIXED],
    /// IA32_FIXED_CTR_CTRL.
    fixed_control: u64,
    /// IA32_PERF_GLOBAL_CTRL.
    global_control: u64,
    /// IA32_PERF_GLOBAL_STATUS.
    global_status: u64,
    /// Counters that count, a bit each.
    running: u16,
    /// One of them counts at some privilege levels only.
    filtered: bool,
    /// One of them counts branches.
    branches: bool,
    /// Branches since [`Pmu::seen`].
    branches_since: u64,
    seen: Seen,
}

/// What counting led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Overflow {
    /// Slots that overflowed.
    slots: u16,
    /// One of them is to interrupt.
    interrupts: bool,
}

impl Pmu {
    fn running(&self) -> impl Iterator<Item = usize> + use<> {
        let running = self.running;
        (0..SLOTS).filter(move |slot| running >> slot & 1 != 0)
    }

    /// Adds a stretch of time to what counts.
    fn count(&mut self, stretch: &Stretch, features: &Features) -> Overflow {
        let cpl = self.seen.cpl;
        let mut overflow = Overflow::default();
        for slot in self.running() {
            let counter = &mut self.counters[slot];
            let Some(setup) = counter.setup else { continue };
            if !setup.levels.include(cpl) {
                counter.held = false;
                continue;
            }
            let limit = 1u64 << features.bits(slot);
            let sum = counter.value + counter.counted(&setup, stretch);
            counter.value = sum & (limit - 1);
            if sum >= limit {
                overflow.slots |= 1 << slot;
                overflow.interrupts |= setup.interrupts;
            }
        }
        overflow
    }

    /// How many instructions may be executed before the next interrupt of an overflow can come, in at most
    /// `TICKS_AN_INSTRUCTION` cycles each; near to it the number is low enough to be taken for cycles.
    fn until_interrupt(&self, features: &Features) -> Option<i64> {
        const TICKS_AN_INSTRUCTION: u64 = 4;
        const NEAR: u64 = 64;
        self.running()
            .filter_map(|slot| {
                let counter = &self.counters[slot];
                let setup = counter.setup.filter(|s| s.interrupts)?;
                let left = (1u64 << features.bits(slot)) - counter.value;
                let by_time = setup.event == Event::Cycles || setup.invert;
                Some(if by_time && left > NEAR {
                    (left / TICKS_AN_INSTRUCTION).max(NEAR)
                } else {
                    left
                })
            })
            .min()
            // Counters have at most 48 bits.
            .map(|left| left as i64)
    }
}

impl Cpu {
    /// Instructions retired when [`Cpu::retired_now`] was `retired`.
    fn instructions_at(&self, retired: u64) -> u64 {
        retired.wrapping_sub(self.uncounted)
    }

    /// Brings the counters to where the processor is.
    pub fn pmu_sync(&mut self) {
        if self.pmu.running != 0 {
            self.pmu_sync_at(self.retired_now());
        }
    }

    /// The same inside the last instruction of a block, which has not retired yet.
    pub fn pmu_sync_before_this(&mut self) {
        if self.pmu.running != 0 {
            self.pmu_sync_at(self.retired_now().wrapping_sub(1));
        }
    }

    #[cold]
    fn pmu_sync_at(&mut self, retired: u64) {
        let Some(features) = self.model.pmu else {
            return;
        };
        let before = self.pmu.seen;
        self.pmu_skip(retired);
        let now = self.pmu.seen;
        let stretch = Stretch {
            cycles: now.tsc.saturating_sub(before.tsc),
            instructions: now.instructions.saturating_sub(before.instructions),
            branches: std::mem::take(&mut self.pmu.branches_since),
        };
        self.pmu.seen.cpl = before.cpl;
        let overflow = self.pmu.count(&stretch, &features);
        self.pmu.seen.cpl = self.cpl;
        self.pmu_overflowed(overflow);
    }

    /// Counts on from here: what was before is not counted.
    fn pmu_skip(&mut self, retired: u64) {
        self.pmu.seen = Seen {
            tsc: self.platform.cycles(retired),
            instructions: self.instructions_at(retired),
            retired,
            cpl: self.cpl,
        };
    }

    fn pmu_overflowed(&mut self, overflow: Overflow) {
        if overflow.slots == 0 {
            return;
        }
        self.pmu.note_overflow(overflow.slots);
        if overflow.interrupts {
            // Intel's local APIC masks the entry when it takes the interrupt (SDM Vol 3 11.5.1), AMD's does not (APM
            // Vol 2 16.4.5).
            self.platform.performance_interrupt(!self.amd());
            self.pending |= pending::INTERRUPT | pending::SIGNAL;
        }
    }

    /// The privilege level may have changed.
    #[inline(always)]
    pub fn pmu_privilege(&mut self) {
        if self.pmu.filtered && self.pmu.seen.cpl != self.cpl {
            self.pmu_sync();
        }
    }

    /// To be called when the platform has been polled: counts, and brings the next poll forward to the next overflow
    /// that interrupts.
    #[inline]
    pub fn pmu_polled(&mut self) {
        if self.pmu.running != 0 {
            self.pmu_sync();
            self.pmu_limit();
        }
    }

    fn pmu_limit(&mut self) {
        if let Some(features) = self.model.pmu
            && let Some(most) = self.pmu.until_interrupt(&features)
        {
            self.shorten_slice(most);
        }
    }

    /// The processor is about to be idle: cycles stop.
    pub fn pmu_halts(&mut self) {
        // Between two waits with nothing executed it was halted too.
        if self.pmu.running != 0 && self.retired_now() != self.pmu.seen.retired {
            self.pmu_sync();
        }
    }

    /// It is not idle any more.
    pub fn pmu_wakes(&mut self) {
        if self.pmu.running != 0 {
            self.pmu_skip(self.retired_now());
        }
    }

    /// One instruction was executed by itself.
    pub fn pmu_stepped(&mut self, branch: bool) {
        self.pmu.branches_since += u64::from(branch);
        self.pmu_sync();
    }

    /// Changes registers, which are good from the next instruction on.
    fn pmu_change(&mut self, change: impl FnOnce(&mut Pmu)) {
        self.pmu_sync();
        change(&mut self.pmu);
        self.pmu_configured();
    }

    /// Derives what counts from the registers.
    pub fn pmu_configured(&mut self) {
        let Some(features) = self.model.pmu else {
            return;
        };
        let before = self.pmu.running;
        let careful = self.pmu.branches;
        self.pmu.derive(&features);
        if before == 0 && self.pmu.running != 0 {
            self.pmu_skip(self.retired_now());
        }
        if !careful {
            self.pmu.branches_since = 0;
        }
        self.branches_watched();
        self.pmu_limit();
    }

    /// Has instructions executed one by one as long as branches are counted or recorded.
    pub fn branches_watched(&mut self) {
        if self.pmu.branches || self.records_branches() {
            self.pending |= pending::COUNT;
        } else {
            self.pending &= !pending::COUNT;
        }
    }
}
