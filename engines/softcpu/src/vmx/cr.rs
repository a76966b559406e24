//! CR0 and CR4 under the guest/host masks (SDM Vol 3 25.6.6, 26.1.3, 26.3), and the bits VMX operation fixes
//! (24.8).

use x86defs::cr::cr0;
use x86defs::vmx::{ExitReason, VmcsField as F, qualification};

use super::{ExitRequest, Intercept};
use crate::cpu::{Cpu, Trap};

/// The bits LMSW can change.
const LMSW_BITS: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;

impl Cpu {
    /// CR0 or CR4 as the guest reads it: owned bits from the read shadow.
    #[inline]
    #[must_use]
    pub fn vmx_read_cr(&self, cr: u8) -> u64 {
        let real = if cr == 0 { self.cr0 } else { self.cr4 };
        if !self.vmx.in_guest {
            return real;
        }
        let (mask, shadow) = self.cr_mask(cr);
        (real & !mask) | (shadow & mask)
    }

    /// The value a MOV of general register `gpr` to CR0 or CR4 really writes: owned bits stay as they are.
    ///
    /// # Errors
    /// [`Trap::VmExit`] if the write differs from the read shadow in an owned bit.
    pub fn vmx_write_cr(&mut self, cr: u8, value: u64, gpr: u8) -> Result<u64, Trap> {
        if !self.vmx.in_guest {
            return Ok(value);
        }
        let (mask, shadow) = self.cr_mask(cr);
        if (value ^ shadow) & mask != 0 {
            let q = qualification::cr::mov(qualification::cr::Access::MovTo, cr, gpr);
            return self.vm_exit(ExitRequest::instruction(ExitReason::CrAccess, q));
        }
        let real = if cr == 0 { self.cr0 } else { self.cr4 };
        Ok((value & !mask) | (real & mask))
    }

    /// A new CR0 with the owned bits as they are (LMSW).
    #[must_use]
    pub fn vmx_mask_cr0(&self, value: u64) -> u64 {
        if !self.vmx.in_guest {
            return value;
        }
        let (mask, _) = self.cr_mask(0);
        (value & !mask) | (self.cr0 & mask)
    }

    /// CLTS in non-root operation: whether it clears CR0.TS.
    ///
    /// # Errors
    /// [`Trap::VmExit`] if TS is owned and set in the read shadow.
    pub fn vmx_clts(&mut self) -> Result<bool, Trap> {
        self.intercept(Intercept::Clts)?;
        Ok(self.cr_mask(0).0 & cr0::TS == 0)
    }

    /// Whether VMX operation allows this CR0 (SDM Vol 3 24.8); an unrestricted guest may clear PE and PG. If
    /// not, the write raises #GP(0).
    #[must_use]
    pub fn vmx_cr0_allowed(&self, value: u64) -> bool {
        let free = if self.unrestricted_guest() {
            cr0::PE | cr0::PG
        } else {
            0
        };
        !self.vmx.in_operation() || self.vmx.caps.cr0_allowed(value | free)
    }

    /// Whether VMX operation allows this CR4.
    #[must_use]
    pub fn vmx_cr4_allowed(&self, value: u64) -> bool {
        !self.vmx.in_operation() || self.vmx.caps.cr4_allowed(value)
    }

    fn cr_mask(&self, cr: u8) -> (u64, u64) {
        let v = self.vmx.current_vmcs();
        if cr == 0 {
            (v.get(F::Cr0Mask), v.get(F::Cr0ReadShadow))
        } else {
            (v.get(F::Cr4Mask), v.get(F::Cr4ReadShadow))
        }
    }

    /// Whether CLTS exits: TS owned and set in the shadow (SDM Vol 3 26.1.3).
    pub(super) fn clts_exits(&self) -> bool {
        let (mask, shadow) = self.cr_mask(0);
        mask & shadow & cr0::TS != 0
    }

    /// Whether LMSW exits (SDM Vol 3 26.1.3): it sets an owned PE whose shadow is 0 (it cannot clear PE), or
    /// changes another owned bit against its shadow.
    pub(super) fn lmsw_exits(&self, source: u16) -> bool {
        let (mask, shadow) = self.cr_mask(0);
        let source = u64::from(source);
        let sets_pe = mask & source & !shadow & cr0::PE != 0;
        sets_pe || (source ^ shadow) & mask & LMSW_BITS & !cr0::PE != 0
    }
}
