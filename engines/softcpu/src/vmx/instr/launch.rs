//! VMLAUNCH and VMRESUME; VMCALL and VMFUNC.

use guestmem::Gpa;
use x86defs::vmx::control::secondary;
use x86defs::vmx::{ExitReason, InstructionError as E, VmcsField as F};

use super::Operands;
use crate::code::Op;
use crate::cpu::{Cpu, Flow, Shadow, Trap};
use crate::vmx::entry::{Checked, Subject, controls, guest, host};
use crate::vmx::vmcs::passed;

/// VMLAUNCH.
pub fn vmlaunch(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Vmlaunch, Operands::None)?;
    cpu.vm_entry(op, true)
}

/// VMRESUME.
pub fn vmresume(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Vmresume, Operands::None)?;
    cpu.vm_entry(op, false)
}

/// VMCALL. In root operation there is no SMM monitor to call.
pub fn vmcall(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.vmx.in_guest {
        // The one VMX instruction that exits at any privilege level and in any mode.
        return cpu.vmx_instruction_exit(op, ExitReason::Vmcall, Operands::None);
    }
    cpu.vmx_gate(op, ExitReason::Vmcall, Operands::None)?;
    cpu.vm_fail(E::VmcallInRoot);
    Ok(())
}

/// VMFUNC: #UD, since the model has no "enable VM functions" control.
pub fn vmfunc(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.ud()
}

impl Cpu {
    /// A VM entry, from the checks on (SDM Vol 3 chapter 27).
    fn vm_entry(&mut self, op: &Op, launch: bool) -> Flow {
        // Where a failing instruction continues; an entry goes elsewhere below.
        self.next_rip = self.rip_after(op);
        let Some(current) = self.vmx.current else {
            self.vm_fail_invalid();
            return Ok(());
        };
        if self.shadow == Shadow::MovSs {
            self.vm_fail_valid(E::EntryBlockedByMovSs);
            return Ok(());
        }
        // VM entry with a shadow VMCS fails (27.2); what it fails with is not specified beyond that.
        let word: u32 = self.read_phys(current.pointer.0);
        if word & crate::vmx::vmcs::region::SHADOW_INDICATOR != 0 {
            self.vm_fail_invalid();
            return Ok(());
        }
        let launched = self.vmx.cache.get(current.slot).launched;
        if launch && launched {
            self.vm_fail_valid(E::VmlaunchNonClear);
            return Ok(());
        }
        if !launch && !launched {
            self.vm_fail_valid(E::VmresumeNonLaunched);
            return Ok(());
        }
        if let Err(error) = self.check_controls_and_host() {
            self.vm_fail_valid(error);
            return Ok(());
        }
        let nmi_blocked = self.nmi_blocked;
        if let Err(f) = self.entry_check(guest::check) {
            tracing::debug!(section = f.section, rule = f.rule, "VM-entry failure");
            self.fail_entry(
                ExitReason::EntryFailureGuestState,
                f.qualification,
                nmi_blocked,
            );
            return Ok(());
        }
        self.load_guest_state();
        if let Err(n) = self.load_msr_list(F::EntryMsrLoadCount, F::EntryMsrLoadAddress) {
            self.fail_entry(ExitReason::EntryFailureMsrLoading, n, nmi_blocked);
            return Ok(());
        }
        self.vmx.current_vmcs_mut().launched = true;
        self.link_shadow();
        self.load_controls();
        match self.inject() {
            Err(Trap::VmExit) => self.take_vm_exit(),
            // Exceptions during injection are turned into events or a triple fault on the way.
            Err(Trap::Exception | Trap::Alone | Trap::Restart) | Ok(()) => {}
        }
        Ok(())
    }

    /// The checks whose failure fails the instruction (27.2); those that passed before and depend on nothing
    /// that was written since are not made again.
    fn check_controls_and_host(&mut self) -> Result<(), E> {
        let done = self.vmx.current_vmcs().passed;
        if done & passed::CONTROLS == 0 {
            self.failing_with(E::EntryInvalidControls, controls::check)?;
        }
        self.failing_with(E::EntryInvalidControls, controls::check_variable)?;
        if done & (passed::CONTROLS | passed::HOST) != passed::CONTROLS | passed::HOST
            || !self.long_mode()
        {
            self.failing_with(E::EntryInvalidHostState, host::check)?;
        }
        let host = if self.long_mode() { passed::HOST } else { 0 };
        self.vmx.current_vmcs_mut().passed = passed::CONTROLS | host;
        Ok(())
    }

    fn failing_with(&self, error: E, check: impl Fn(&Subject<'_>) -> Checked) -> Result<(), E> {
        self.entry_check(check).map_err(|f| {
            tracing::debug!(section = f.section, rule = f.rule, "VM entry refused");
            error
        })
    }

    fn entry_check(&self, check: impl Fn(&Subject<'_>) -> Checked) -> Checked {
        check(&Subject {
            vmcs: self.vmx.current_vmcs(),
            caps: &self.vmx.caps,
            ram: &self.ram,
            current: self.vmx.current.map_or(Gpa(u64::MAX), |c| c.pointer),
            host_lma: self.long_mode(),
        })
    }

    /// Makes the VMCS the link pointer names active, for VMCS shadowing.
    fn link_shadow(&mut self) {
        let v = self.vmx.current_vmcs();
        let link = v.get(F::VmcsLinkPointer);
        let shadowing = v.secondary() & secondary::VMCS_SHADOWING != 0;
        self.vmx.shadow = None;
        if !shadowing || link == u64::MAX {
            return;
        }
        let keep = [self.vmx.current.map(|c| c.slot), None];
        if let Some((slot, written)) = self.vmx.cache.activate(&self.ram, Gpa(link), keep) {
            self.vmx.shadow = Some(slot);
            if let Some(w) = written {
                self.region_written(w);
            }
        }
    }
}
