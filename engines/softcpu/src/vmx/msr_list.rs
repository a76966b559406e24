//! MSR areas: loading at VM entry (SDM Vol 3 27.4) and VM exit (28.6), storing at VM exit (28.4).
//!
//! An entry is 16 bytes: the index in bits 31:0, zeros in bits 63:32, the value in bits 127:64.

use x86defs::msr;
use x86defs::vmx::VmcsField as F;

use crate::cpu::Cpu;

const ENTRY_BYTES: u64 = 16;

/// IA32_SMM_MONITOR_CTL and IA32_SMBASE exist only in SMM.
const SMM_ONLY: [u32; 2] = [0x9b, 0x9e];
/// MSRs with these bits 31:8 are the registers of a local APIC in x2APIC mode, which no area may name.
const X2APIC: u32 = 0x8;
/// A microcode update is not started by an area (SDM Vol 3 32.5).
const NO_LOAD: [u32; 1] = [msr::IA32_BIOS_UPDT_TRIG];

/// What IA32_VMX_MISC bits 27:25 recommend as the most (SDM Vol 3 A.6): 512. More is undefined; here it fails
/// like an entry that cannot be loaded, so that no guest can make one instruction last for ever.
const MOST_ENTRIES: u64 = 512;

impl Cpu {
    /// Loads `count` MSRs from the area at `address`. `Err` holds the 1-based number of the entry that could
    /// not be loaded.
    pub(super) fn load_msr_list(&mut self, count: F, address: F) -> Result<(), u64> {
        let (count, address) = self.msr_area(count, address);
        if count > MOST_ENTRIES {
            return Err(MOST_ENTRIES + 1);
        }
        for i in 0..count {
            let (index, value) = self.msr_entry(address + i * ENTRY_BYTES);
            let loaded = index.is_some_and(|index| {
                msr_in_list(index)
                    && !NO_LOAD.contains(&index)
                    && self.write_msr(index, value).is_ok()
            });
            if !loaded {
                return Err(i + 1);
            }
        }
        Ok(())
    }

    /// Stores MSRs into the VM-exit MSR-store area. `Err` holds the 1-based number of the entry whose MSR
    /// could not be read.
    pub(super) fn store_msr_list(&mut self) -> Result<(), u64> {
        let (count, address) = self.msr_area(F::ExitMsrStoreCount, F::ExitMsrStoreAddress);
        self.pmu_sync();
        if count > MOST_ENTRIES {
            return Err(MOST_ENTRIES + 1);
        }
        for i in 0..count {
            let at = address + i * ENTRY_BYTES;
            let value = match self.msr_entry(at).0 {
                // The guest's TSC offset is no part of the MSR.
                Some(msr::IA32_TSC) => Some(self.guest_tsc().wrapping_sub(self.vmx.tsc_offset)),
                Some(index) if msr_in_list(index) => self.read_msr(index).ok(),
                _ => None,
            };
            let Some(value) = value else {
                return Err(i + 1);
            };
            self.write_phys::<u64>(at + 8, value);
        }
        Ok(())
    }

    fn msr_area(&self, count: F, address: F) -> (u64, u64) {
        let v = self.vmx.current_vmcs();
        (v.get(count), v.get(address))
    }

    /// The index, if bits 63:32 of the first half are clear, and the value.
    fn msr_entry(&self, at: u64) -> (Option<u32>, u64) {
        let first: u64 = self.read_phys(at);
        let value: u64 = self.read_phys(at + 8);
        (u32::try_from(first).ok(), value)
    }
}

/// MSRs that may be in an area at all (SDM Vol 3 27.4, 28.4, 28.6).
fn msr_in_list(index: u32) -> bool {
    !matches!(index, msr::IA32_FS_BASE | msr::IA32_GS_BASE)
        && index >> 8 != X2APIC
        && !SMM_ONLY.contains(&index)
}
