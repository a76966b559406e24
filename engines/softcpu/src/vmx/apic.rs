//! The TPR shadow and the APIC-access page (SDM Vol 3 30.1 to 30.4).

use x86defs::vmx::control::primary;
use x86defs::vmx::qualification::{self, ApicAccess};
use x86defs::vmx::{ExitReason, VmcsField as F};

use super::{Cause, ExitRequest};
use crate::cpu::{Cpu, Flow, pending};

/// Offset of the TPR in an APIC page.
const TPR: u64 = 0x80;

impl Cpu {
    /// CR8 as MOV from CR8 reads it, after the intercept question.
    pub fn read_cr8(&mut self) -> u8 {
        if self.tpr_shadowed() {
            self.vtpr() >> 4
        } else {
            self.platform.cr8()
        }
    }

    /// MOV to CR8 of a value from 0 to 15, after the intercept question. If the shadowed TPR falls below the
    /// threshold, an exit follows the instruction.
    ///
    /// # Errors
    /// None; a [`Flow`] like what else writes registers.
    pub fn write_cr8(&mut self, priority: u8) -> Flow {
        if self.tpr_shadowed() {
            self.set_vtpr(priority << 4);
            self.tpr_virtualization();
        } else {
            self.platform.set_cr8(priority);
            self.pending |= pending::INTERRUPT;
        }
        Ok(())
    }

    fn vtpr(&self) -> u8 {
        self.read_phys(self.vmx.current_vmcs().get(F::VirtualApicAddress) + TPR)
    }

    /// Writes VTPR; its bytes 3:1 become zero (SDM Vol 3 30.4.3.2).
    fn set_vtpr(&mut self, value: u8) {
        let page = self.vmx.current_vmcs().get(F::VirtualApicAddress);
        self.write_phys::<u32>(page + TPR, u32::from(value));
    }

    /// TPR virtualization (SDM Vol 3 30.1.2): the exit is for after the instruction, at the boundary.
    fn tpr_virtualization(&mut self) {
        let threshold = self.vmx.current_vmcs().get(F::TprThreshold) & 0xf;
        if u64::from(self.vtpr() >> 4) < threshold {
            self.vmx.tpr_exit_pending = true;
            self.pending |= pending::VMX;
        }
    }

    /// After a VM entry with virtualized APIC accesses the threshold may be above VTPR (SDM Vol 3 27.7.7).
    pub(super) fn tpr_threshold_at_entry(&mut self) {
        if self.vmx.apic_access_page.is_some() && self.tpr_shadowed() {
            self.tpr_virtualization();
        }
    }

    /// A read of the APIC-access page at `offset`.
    ///
    /// # Errors
    /// [`crate::cpu::Trap::VmExit`] unless it is a read of the shadowed TPR.
    pub fn apic_access_read(&mut self, offset: u64, data: &mut [u8]) -> Flow {
        if !self.is_virtual_tpr(offset, data.len()) {
            return self.apic_access_exit(offset, ApicAccess::LinearRead);
        }
        let page = self.vmx.current_vmcs().get(F::VirtualApicAddress);
        let word: u32 = self.read_phys(page + TPR);
        let from = (offset - TPR) as usize;
        for (to, byte) in data.iter_mut().zip(word.to_le_bytes().iter().skip(from)) {
            *to = *byte;
        }
        Ok(())
    }

    /// A write of the APIC-access page at `offset`.
    ///
    /// # Errors
    /// [`crate::cpu::Trap::VmExit`] unless it is a write of the shadowed TPR.
    pub fn apic_access_write(&mut self, offset: u64, data: &[u8]) -> Flow {
        if offset != TPR || !self.is_virtual_tpr(offset, data.len()) {
            return self.apic_access_exit(offset, ApicAccess::LinearWrite);
        }
        self.set_vtpr(data.first().copied().unwrap_or(0));
        self.tpr_virtualization();
        Ok(())
    }

    /// An instruction fetch from the APIC-access page.
    ///
    /// # Errors
    /// Always [`crate::cpu::Trap::VmExit`].
    pub fn apic_access_fetch(&mut self, offset: u64) -> Flow {
        self.apic_access_exit(offset, ApicAccess::LinearFetch)
    }

    /// Without APIC-register virtualization only the TPR is virtualized, for accesses of at most 32 bits
    /// inside its low 4 bytes (SDM Vol 3 30.4.1, 30.4.2).
    fn is_virtual_tpr(&self, offset: u64, len: usize) -> bool {
        self.vmx.primary(primary::TPR_SHADOW)
            && offset >= TPR
            && offset + len as u64 <= TPR + 4
            && len <= 4
    }

    fn apic_access_exit(&mut self, offset: u64, kind: ApicAccess) -> Flow {
        let kind = if self.delivering.is_some() {
            ApicAccess::LinearEventDelivery
        } else {
            kind
        };
        self.vm_exit(ExitRequest {
            reason: ExitReason::ApicAccess as u32,
            qualification: qualification::apic_access(kind, offset as u16),
            cause: Cause::Access,
            ..ExitRequest::default()
        })
    }
}
