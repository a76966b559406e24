//! VM exits (SDM Vol 3 chapter 28), by stage: record what happened ([`record`]), save guest state
//! ([`save`]), store MSRs, load host state ([`host`]), load MSRs. A failure on the way is a VMX abort.

mod host;
mod information;
pub(in crate::vmx) use information::{displacement, memory_operand};
mod record;
mod save;

use vcpu::MpState;
use x86defs::vmx::control::pin;
use x86defs::vmx::exit::{AbortIndicator, ENTRY_FAILURE};
use x86defs::vmx::{EventType, ExitReason, VmcsField as F};

use super::ExitRequest;
use super::vmcs::region;
use crate::cpu::{Cpu, pending};

impl Cpu {
    /// Takes the VM exit in [`Cpu::exit`]: the guest's state is at an instruction boundary or at the
    /// instruction [`Cpu::trapped`] that caused it, [`Cpu::delivering`] is the event whose delivery it
    /// interrupts. Afterwards the processor is in VMX root operation at the host's RIP (which also stands in
    /// `next_rip`), or in shutdown after a VMX abort.
    pub fn take_vm_exit(&mut self) {
        assert!(self.vmx.in_guest, "VM exit outside non-root operation");
        let exit = self.exit;
        let delivering = self.delivering.take();
        self.record_exit(&exit, delivering);
        self.save_guest_state(&exit, delivering);
        if self.store_msr_list().is_err() {
            return self.vmx_abort(AbortIndicator::SaveGuestMsrs);
        }
        let by_nmi =
            exit.interruption.is_valid() && exit.interruption.event_type() == EventType::Nmi;
        // Blocking by NMI is the host's: set by an NMI that exits, else what it was; virtual NMIs leave NMIs
        // unblocked in the guest (28.5.5, Table 25-5).
        let blocked = by_nmi || self.nmi_blocked && !self.vmx.pin(pin::VIRTUAL_NMIS);
        self.enter_host(blocked);
    }

    /// A VM entry fails after its checks on controls and host state (SDM Vol 3 27.8): `nmi_blocked` is the
    /// blocking by NMI from before the VM entry.
    pub(super) fn fail_entry(&mut self, reason: ExitReason, qualification: u64, nmi_blocked: bool) {
        self.delivering = None;
        let vmcs = self.vmx.current_vmcs_mut();
        vmcs.set(F::ExitReason, u64::from(reason as u32 | ENTRY_FAILURE));
        vmcs.set(F::ExitQualification, qualification);
        self.enter_host(nmi_blocked);
    }

    /// Loads host state and MSRs.
    fn enter_host(&mut self, nmi_blocked: bool) {
        let flush = self.vmx.vpid == 0;
        self.vmx.leave_guest();
        if flush {
            self.flush_without_vpid();
        }
        if let Err(indicator) = self.load_host_state() {
            return self.vmx_abort(indicator);
        }
        self.nmi_blocked = nmi_blocked;
        self.world_switched();
        if self
            .load_msr_list(F::ExitMsrLoadCount, F::ExitMsrLoadAddress)
            .is_err()
        {
            self.vmx_abort(AbortIndicator::LoadHostMsrs);
        }
    }

    /// VMX abort (SDM Vol 3 28.7): the indicator goes to the VMCS region, the processor into shutdown.
    fn vmx_abort(&mut self, indicator: AbortIndicator) {
        if let Some(c) = self.vmx.current {
            let at = c.pointer.offset(region::ABORT_OFFSET);
            self.write_phys::<u32>(at.0, indicator as u32);
        }
        self.vmx.leave_guest();
        self.vmx.aborted = true;
        self.activity = MpState::Shutdown;
        self.pending |= pending::INACTIVE;
    }
}

impl ExitRequest {
    /// Whether the basic reason is `reason`.
    fn is(&self, reason: ExitReason) -> bool {
        self.reason == reason as u32
    }
}
