//! The MSRs of architectural performance monitoring, version 2 (SDM Vol 3 20.2), those of AMD's four performance counters
//! (APM Vol 2 13.2), and RDPMC.

use vcpu::cpuid::{CpuidTable, Vendor};
use x86defs::cr::cr4;
use x86defs::msr::*;

use super::{Event, FIXED, Levels, Pmu, SLOTS, Setup};
use crate::cpu::{Cpu, Flow, Trap, gpr};

/// IA32_PERFEVTSELx (SDM Vol 3 Figure 20-1).
mod select {
    pub const USR: u64 = 1 << 16;
    pub const OS: u64 = 1 << 17;
    pub const EDGE: u64 = 1 << 18;
    pub const INT: u64 = 1 << 20;
    pub const ENABLE: u64 = 1 << 22;
    pub const INV: u64 = 1 << 23;
    pub const CMASK_SHIFT: u32 = 24;
    /// Bit 21 is AnyThread from version 3 on.
    pub const WRITABLE: u64 = 0xffff_ffff & !(1 << 21);
    /// AMD's: bits 11:8 of the event are at 35:32. Reserved bits are dropped, not refused; bits 41:40 belong to AMD-V.
    pub const AMD_KEPT: u64 = 0xf_ffff_ffff & !(1 << 19 | 1 << 21);
}

/// A counter's four bits of IA32_FIXED_CTR_CTRL (SDM Vol 3 Figure 20-2).
mod fixed {
    pub const OS: u64 = 1;
    pub const USR: u64 = 2;
    pub const PMI: u64 = 8;
    /// Bit 2 is AnyThread from version 3 on.
    pub const WRITABLE: u64 = OS | USR | PMI;
    pub const BITS: usize = 4;
}

/// IA32_PERF_GLOBAL_OVF_CTRL: OvfDSBuffer and CondChgd, which are never set here.
const CLEAR_OTHERS: u64 = 3 << 62;
/// RDPMC: the counters of fixed function.
const RDPMC_FIXED: u32 = 1 << 30;
/// Where their bits begin in the global registers.
const GLOBAL_FIXED: usize = 32;

/// What performance monitoring a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// AMD's counters: no global registers.
    amd: bool,
    /// General-purpose counters.
    general: usize,
    general_bits: u32,
    /// Counters of fixed function.
    fixed: usize,
    fixed_bits: u32,
}

impl Features {
    /// What CPUID tells; nothing if there is none.
    #[must_use]
    pub fn of(cpuid: &CpuidTable) -> Option<Self> {
        if cpuid.vendor() == Vendor::Amd {
            // Every processor has these four; more and others are told by bits that no model shows.
            return Some(Self {
                amd: true,
                general: 4,
                general_bits: 48,
                fixed: 0,
                fixed_bits: 48,
            });
        }
        let leaf = cpuid.get(0xa, 0)?;
        if leaf.eax & 0xff < 2 {
            return None;
        }
        Some(Self {
            amd: false,
            general: (leaf.eax >> 8 & 0xff).min(FIXED as u32) as usize,
            general_bits: (leaf.eax >> 16 & 0xff).clamp(32, 48),
            fixed: (leaf.edx & 0x1f).min((SLOTS - FIXED) as u32) as usize,
            fixed_bits: (leaf.edx >> 5 & 0xff).clamp(32, 48),
        })
    }

    /// Width of a counter.
    pub(super) fn bits(&self, slot: usize) -> u32 {
        if slot < FIXED {
            self.general_bits
        } else {
            self.fixed_bits
        }
    }

    /// Bits of IA32_PERF_GLOBAL_CTRL that can be set; nothing without that MSR.
    #[must_use]
    pub fn perf_global(&self) -> Option<u64> {
        (!self.amd).then(|| self.global())
    }

    fn global(&self) -> u64 {
        self.general_mask() | ((1 << self.fixed) - 1) << GLOBAL_FIXED
    }

    fn general_mask(&self) -> u64 {
        (1 << self.general) - 1
    }

    /// The slot of an MSR that is a counter.
    fn counter(&self, msr: u32) -> Option<usize> {
        let first = if self.amd { AMD_PERF_CTR0 } else { IA32_PMC0 };
        let general = msr.wrapping_sub(first) as usize;
        let fixed = msr.wrapping_sub(IA32_FIXED_CTR0) as usize;
        if general < self.general {
            Some(general)
        } else {
            (fixed < self.fixed).then_some(FIXED + fixed)
        }
    }

    fn selector(&self, msr: u32) -> Option<usize> {
        let n = msr.wrapping_sub(self.first_selector()) as usize;
        (n < self.general).then_some(n)
    }

    fn first_selector(&self) -> u32 {
        if self.amd {
            AMD_PERF_EVT_SEL0
        } else {
            IA32_PERFEVTSEL0
        }
    }

    /// The value a counter has after a write: AMD's keep what fits, Intel's general-purpose counters continue bit 31
    /// upwards, as full-width writes are not there (SDM Vol 3 20.2.8); beyond the width of those of fixed function is
    /// reserved.
    fn counter_value(&self, slot: usize, value: u64) -> Option<u64> {
        let limit = (1 << self.bits(slot)) - 1;
        if self.amd {
            Some(value & limit)
        } else if slot < FIXED {
            Some(value as u32 as i32 as u64 & limit)
        } else {
            (value <= limit).then_some(value)
        }
    }

    /// The value a selector has after a write.
    fn selector_value(&self, value: u64) -> Option<u64> {
        if self.amd {
            return Some(value & select::AMD_KEPT);
        }
        (value & !select::WRITABLE == 0).then_some(value)
    }

    /// What a general-purpose counter counts: SDM Vol 3 Table 20-1, or cycles not halted, instructions and branch
    /// instructions retired of AMD's processors.
    fn event(&self, select: u64) -> Event {
        if self.amd {
            return match select & 0xff | select >> 24 & 0xf00 {
                0x76 => Event::Cycles,
                0xc0 => Event::Instructions,
                0xc2 => Event::Branches,
                _ => Event::Never,
            };
        }
        match (select as u8, (select >> 8) as u8) {
            // Core cycles; reference cycles.
            (0x3c, 0 | 1) => Event::Cycles,
            (0xc0, 0) => Event::Instructions,
            (0xc4, 0) => Event::Branches,
            _ => Event::Never,
        }
    }

    fn general_setup(&self, select: u64) -> Option<Setup> {
        let on = |bit| select & bit != 0;
        on(select::ENABLE).then_some(Setup {
            event: self.event(select),
            levels: Levels {
                os: on(select::OS),
                user: on(select::USR),
            },
            mask: (select >> select::CMASK_SHIFT) as u8,
            invert: on(select::INV),
            edge: on(select::EDGE),
            interrupts: on(select::INT),
        })
    }

    /// The slot of a number in RDPMC's ECX (SDM Vol 2, RDPMC).
    fn rdpmc(&self, number: u32) -> Option<usize> {
        let n = (number & !RDPMC_FIXED) as usize;
        match number & RDPMC_FIXED {
            _ if self.amd => ((number as usize) < self.general).then_some(number as usize),
            0 => (n < self.general).then_some(n),
            _ => (n < self.fixed).then_some(FIXED + n),
        }
    }
}

/// The bit of a slot in the global registers.
fn global_bit(slot: usize) -> u64 {
    if slot < FIXED {
        1 << slot
    } else {
        1 << (GLOBAL_FIXED + slot - FIXED)
    }
}

/// SDM Vol 3 Table 20-2: instructions, core cycles, reference cycles.
fn fixed_setup(n: usize, control: u64) -> Setup {
    let on = |bit| control >> (fixed::BITS * n) & bit != 0;
    Setup {
        event: if n == 0 {
            Event::Instructions
        } else {
            Event::Cycles
        },
        levels: Levels {
            os: on(fixed::OS),
            user: on(fixed::USR),
        },
        mask: 0,
        invert: false,
        edge: false,
        interrupts: on(fixed::PMI),
    }
}

impl Pmu {
    /// After RESET the general-purpose counters are enabled globally (SDM Vol 3 Table 10-1).
    #[must_use]
    pub fn new(features: Option<&Features>) -> Self {
        Self {
            global_control: features.map_or(0, Features::general_mask),
            ..Self::default()
        }
    }

    /// Finds what counts.
    pub(super) fn derive(&mut self, features: &Features) {
        let (mut running, mut filtered, mut branches) = (0, false, false);
        for slot in 0..SLOTS {
            let setup = if slot < FIXED {
                features.general_setup(self.select[slot])
            } else {
                Some(fixed_setup(slot - FIXED, self.fixed_control))
            };
            let enabled =
                features.amd || self.global_control & features.global() & global_bit(slot) != 0;
            let setup = setup.filter(|s| {
                let counts = s.event != Event::Never || (s.invert && s.mask != 0);
                enabled && counts && (s.levels.os || s.levels.user)
            });
            if let Some(setup) = setup {
                running |= 1 << slot;
                filtered |= setup.levels.os != setup.levels.user;
                branches |= setup.event == Event::Branches;
            } else {
                self.counters[slot].held = false;
            }
            self.counters[slot].setup = setup;
        }
        (self.running, self.filtered, self.branches) = (running, filtered, branches);
    }

    /// Sets the bits of slots that overflowed.
    pub(super) fn note_overflow(&mut self, slots: u16) {
        for slot in 0..SLOTS {
            if slots >> slot & 1 != 0 {
                self.global_status |= global_bit(slot);
            }
        }
    }
}

/// The MSRs of the model, for saving.
pub fn saved(features: &Features) -> impl Iterator<Item = u32> + use<> {
    let (general, fixed) = (features.general as u32, features.fixed as u32);
    let global = [
        IA32_FIXED_CTR_CTRL,
        IA32_PERF_GLOBAL_STATUS,
        IA32_PERF_GLOBAL_CTRL,
    ];
    let first = features.first_selector();
    let counters = if features.amd {
        AMD_PERF_CTR0
    } else {
        IA32_PMC0
    };
    (first..first + general)
        .chain(counters..counters + general)
        .chain(IA32_FIXED_CTR0..IA32_FIXED_CTR0 + fixed)
        .chain(global.into_iter().filter(move |_| fixed > 0))
}

impl Cpu {
    /// Reads an MSR of performance monitoring, as of the last [`Cpu::pmu_sync`]; `None` if there is no such one.
    pub fn read_pmu_msr(&self, msr: u32) -> Option<u64> {
        let features = self.model.pmu.as_ref()?;
        let p = &self.pmu;
        if let Some(slot) = features.counter(msr) {
            return Some(p.counters[slot].value);
        }
        if let Some(n) = features.selector(msr) {
            return Some(p.select[n]);
        }
        if features.amd {
            return None;
        }
        Some(match msr {
            IA32_FIXED_CTR_CTRL => p.fixed_control,
            IA32_PERF_GLOBAL_STATUS => p.global_status,
            IA32_PERF_GLOBAL_CTRL => p.global_control,
            // Writes of ones do something; nothing is kept.
            IA32_PERF_GLOBAL_OVF_CTRL => 0,
            _ => return None,
        })
    }

    /// Writes an MSR of performance monitoring; false if there is no such one.
    pub fn write_pmu_msr(&mut self, msr: u32, value: u64) -> Result<bool, Trap> {
        let Some(features) = self.model.pmu else {
            return Ok(false);
        };
        if let Some(slot) = features.counter(msr) {
            let Some(value) = features.counter_value(slot, value) else {
                return self.gp0();
            };
            self.pmu_change(|p| p.counters[slot].value = value);
            return Ok(true);
        }
        if let Some(n) = features.selector(msr) {
            let Some(value) = features.selector_value(value) else {
                return self.gp0();
            };
            self.pmu_change(|p| p.select[n] = value);
            return Ok(true);
        }
        if features.amd {
            return Ok(false);
        }
        match msr {
            IA32_FIXED_CTR_CTRL => {
                let writable = (0..features.fixed)
                    .fold(0, |all, n| all | fixed::WRITABLE << (fixed::BITS * n));
                if value & !writable != 0 {
                    return self.gp0();
                }
                self.pmu_change(|p| p.fixed_control = value);
            }
            IA32_PERF_GLOBAL_CTRL => {
                if value & !features.global() != 0 {
                    return self.gp0();
                }
                self.set_perf_global_control(value);
            }
            IA32_PERF_GLOBAL_OVF_CTRL => {
                if value & !(features.global() | CLEAR_OTHERS) != 0 {
                    return self.gp0();
                }
                self.pmu_change(|p| p.global_status &= !value);
            }
            // Read-only.
            IA32_PERF_GLOBAL_STATUS => return self.gp0(),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Loads IA32_PERF_GLOBAL_CTRL with a value that was checked.
    pub fn set_perf_global_control(&mut self, value: u64) {
        if self.pmu.global_control != value {
            self.pmu_change(|p| p.global_control = value);
        }
    }

    /// Puts a saved value back; false if it is not one of these MSRs.
    pub fn restore_pmu_msr(&mut self, msr: u32, value: u64) -> bool {
        let Some(features) = self.model.pmu else {
            return false;
        };
        if let Some(slot) = features.counter(msr) {
            let value = value & ((1 << features.bits(slot)) - 1);
            self.pmu_change(|p| p.counters[slot].value = value);
        } else if msr == IA32_PERF_GLOBAL_STATUS && !features.amd {
            self.pmu_change(|p| p.global_status = value & features.global());
        } else {
            return false;
        }
        true
    }

    /// RDPMC behind its checks of privilege.
    pub fn read_counter(&mut self) -> Flow {
        let number = self.regs[gpr::RCX] as u32;
        let slot = self.model.pmu.as_ref().and_then(|f| f.rdpmc(number));
        let Some(slot) = slot else {
            return self.gp0();
        };
        self.pmu_sync_before_this();
        let value = self.pmu.counters[slot].value;
        self.regs[gpr::RAX] = value & 0xffff_ffff;
        self.regs[gpr::RDX] = value >> 32;
        Ok(())
    }

    /// Whether RDPMC is allowed at this privilege level (SDM Vol 2, RDPMC).
    pub fn may_read_counters(&self) -> bool {
        self.cr4 & cr4::PCE != 0 || self.cpl == 0
    }
}
