//! MSRs that AMD processors have and Intel ones do not (APM Vol 2 appendix A).

use vcpu::cpuid::{CpuidResult, CpuidTable};
use x86defs::msr::*;

use crate::cpu::{AmdMsrs, Cpu, Trap};

/// SYSCFG (APM Vol 2 7.9): bits that can be set, but for SMEE, as memory encryption is not shown.
mod syscfg {
    /// The fixed MTRRs' RdMem and WrMem bits are in force.
    pub const MTRR_FIX_DRAM: u64 = 1 << 18;
    /// They can be read and written.
    pub const MTRR_FIX_DRAM_MODIFY: u64 = 1 << 19;
    /// The IORRs and TOP_MEM are in force.
    pub const MTRR_VAR_DRAM: u64 = 1 << 20;
    /// TOP_MEM2 is in force.
    pub const TOM2: u64 = 1 << 21;
    /// Memory from 4 GByte to TOP_MEM2 is write-back.
    pub const TOM2_FORCE_WB: u64 = 1 << 22;
    pub const ALLOWED: u64 =
        MTRR_FIX_DRAM | MTRR_FIX_DRAM_MODIFY | MTRR_VAR_DRAM | TOM2 | TOM2_FORCE_WB;
}

/// HWCR: bits that change nothing here (cache and x87 legacy controls), those of a machine check, and the one that
/// says that the TSC counts at the frequency of P0, which is always set.
mod hwcr {
    pub const TSC_FREQUENCY: u64 = 1 << 24;
    pub const ALLOWED: u64 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 18 | TSC_FREQUENCY;
}

/// DE_CFG: LFENCE is dispatch serializing, always.
const LFENCE_SERIALIZES: u64 = 1 << 1;
/// RdMem and WrMem of each byte of a fixed MTRR (APM Vol 2 7.9.1).
const DRAM_BITS: u64 = 0x1818_1818_1818_1818;
/// TOP_MEM, TOP_MEM2: multiples of 8 MByte.
const TOP_MEM_LOW: u64 = (1 << 23) - 1;
/// IORR masks: bit 11 is "valid", below it all is reserved; bases have RdMem and WrMem in bits 4 and 3.
const IORR_MASK_LOW: u64 = 0x7ff;
const IORR_BASE_LOW: u64 = 0xfff & !0x18;

/// The leaves of CPUID with the processor's name.
const NAME_LEAVES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

impl AmdMsrs {
    /// As RESET leaves them.
    #[must_use]
    pub fn after_reset(cpuid: &CpuidTable) -> Self {
        let mut name = [0; 6];
        for (leaf, words) in NAME_LEAVES.zip(name.chunks_exact_mut(2)) {
            let r = cpuid.get(leaf, 0).unwrap_or_default();
            words[0] = u64::from(r.ebx) << 32 | u64::from(r.eax);
            words[1] = u64::from(r.edx) << 32 | u64::from(r.ecx);
        }
        Self {
            name,
            ..Self::default()
        }
    }

    /// The answer of one of the leaves with the processor's name; `None` for another leaf.
    #[must_use]
    pub fn name_leaf(&self, leaf: u32) -> Option<CpuidResult> {
        let n = 2 * leaf.checked_sub(*NAME_LEAVES.start())? as usize;
        let [low, high] = *self.name.get(n..n + 2)? else {
            return None;
        };
        Some(CpuidResult {
            eax: low as u32,
            ebx: (low >> 32) as u32,
            ecx: high as u32,
            edx: (high >> 32) as u32,
        })
    }
}

impl Cpu {
    /// Bits of fixed MTRRs that read as 0 and keep their value on writes now.
    pub(super) fn hidden_mtrr_bits(&self) -> u64 {
        DRAM_BITS & !self.shown_mtrr_bits()
    }

    /// Bits of fixed MTRRs beyond the memory type that can be written now.
    pub(super) fn shown_mtrr_bits(&self) -> u64 {
        if self.msr.amd.syscfg & syscfg::MTRR_FIX_DRAM_MODIFY != 0 {
            DRAM_BITS
        } else {
            0
        }
    }

    /// Reads one of AMD's MSRs; `None` if there is no such one.
    pub(super) fn read_amd_msr(&self, msr: u32) -> Option<u64> {
        if !self.amd() {
            return None;
        }
        let m = &self.msr.amd;
        Some(match msr {
            AMD_SYSCFG => m.syscfg,
            AMD_HWCR => m.hwcr | hwcr::TSC_FREQUENCY,
            AMD_IORR_BASE0..=AMD_IORR_MASK1 => m.iorr[(msr - AMD_IORR_BASE0) as usize],
            AMD_TOP_MEM => m.top_mem,
            AMD_TOP_MEM2 => m.top_mem2,
            AMD_NAME_STRING0..=AMD_NAME_STRING5 => m.name[(msr - AMD_NAME_STRING0) as usize],
            IA32_LASTBRANCHFROMIP => m.last_branch[0],
            IA32_LASTBRANCHTOIP => m.last_branch[1],
            IA32_LASTINTFROMIP => m.last_interrupt[0],
            IA32_LASTINTTOIP => m.last_interrupt[1],
            // No configuration space beyond 256 bytes is reached through ports.
            AMD_NB_CFG => 0,
            AMD_DE_CFG => LFENCE_SERIALIZES,
            _ => return None,
        })
    }

    /// Writes one of AMD's MSRs; false if there is no such one.
    pub(super) fn write_amd_msr(&mut self, msr: u32, value: u64) -> Result<bool, Trap> {
        if !self.amd() {
            return Ok(false);
        }
        let above = !((1u64 << self.model.maxphyaddr) - 1);
        let m = &mut self.msr.amd;
        let (place, reserved) = match msr {
            AMD_SYSCFG => (&mut m.syscfg, !syscfg::ALLOWED),
            AMD_HWCR => (&mut m.hwcr, !hwcr::ALLOWED),
            AMD_IORR_BASE0..=AMD_IORR_MASK1 => {
                let at = (msr - AMD_IORR_BASE0) as usize;
                let low = if at & 1 == 0 {
                    IORR_BASE_LOW
                } else {
                    IORR_MASK_LOW
                };
                (&mut m.iorr[at], above | low)
            }
            AMD_TOP_MEM => (&mut m.top_mem, above | TOP_MEM_LOW),
            AMD_TOP_MEM2 => (&mut m.top_mem2, above | TOP_MEM_LOW),
            AMD_NAME_STRING0..=AMD_NAME_STRING5 => {
                (&mut m.name[(msr - AMD_NAME_STRING0) as usize], 0)
            }
            // Both read as above whatever is written.
            AMD_NB_CFG => return Ok(true),
            AMD_DE_CFG if value & !LFENCE_SERIALIZES == 0 => return Ok(true),
            _ => return Ok(false),
        };
        if value & reserved != 0 {
            return self.gp0();
        }
        *place = value;
        self.known_leaves.forget();
        Ok(true)
    }
}
