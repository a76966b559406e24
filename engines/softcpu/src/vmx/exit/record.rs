//! Recording VM-exit information (SDM Vol 3 28.2).

use x86defs::exception;
use x86defs::vmx::qualification::ept;
use x86defs::vmx::{ExitReason, InterruptionInfo, VmcsField as F};

use crate::cpu::{Cpu, Event};
use crate::vmx::event::information;
use crate::vmx::{Cause, ExitRequest};

impl Cpu {
    /// Fills in the VM-exit information fields and clears the "valid" bit of the event injected last.
    pub(super) fn record_exit(&mut self, exit: &ExitRequest, delivering: Option<Event>) {
        let (mut qualification, instruction_info) = self.instruction_details(exit);
        let mut interruption = exit.interruption;
        // NMI unblocking due to IRET (28.2.3): the IRET that ended the blocking did not complete.
        if std::mem::take(&mut self.vmx.iret_unblocked) && delivering.is_none() {
            if exit.is(ExitReason::EptViolation) {
                qualification |= ept::NMI_UNBLOCKING;
            } else if interruption.is_valid() && interruption.vector() != exception::DF {
                interruption.0 |= InterruptionInfo::NMI_UNBLOCKING;
            }
        }
        let length = self.exit_instruction_length(exit, delivering);
        let v = self.vmx.current_vmcs_mut();
        v.set(F::ExitReason, u64::from(exit.reason));
        v.set(F::ExitQualification, qualification);
        v.set(F::GuestLinearAddress, exit.linear);
        v.set(F::GuestPhysicalAddress, exit.physical);
        v.set(F::ExitInterruptionInfo, u64::from(interruption.0));
        v.set(F::ExitInterruptionErrorCode, u64::from(exit.error_code));
        // 28.2.4.
        let vectoring = delivering.map_or(InterruptionInfo(0), |e| information(&e));
        v.set(F::IdtVectoringInfo, u64::from(vectoring.0));
        let code = delivering.and_then(|e| e.error_code).unwrap_or(0);
        v.set(F::IdtVectoringErrorCode, u64::from(code));
        v.set(F::ExitInstructionLength, u64::from(length));
        v.set(F::ExitInstructionInfo, u64::from(instruction_info));
        let injected = v.get32(F::EntryInterruptionInfo) & !InterruptionInfo::VALID;
        v.set(F::EntryInterruptionInfo, u64::from(injected));
    }

    /// VM-exit instruction length (28.2.5): of the instruction that exits or faults, or that raised the
    /// software event.
    fn exit_instruction_length(&self, exit: &ExitRequest, delivering: Option<Event>) -> u8 {
        if let Some(e) = delivering {
            return e.length;
        }
        match exit.cause {
            Cause::Instruction | Cause::Access => self.trapped.length,
            Cause::Event { .. }
                if exit.is(ExitReason::ExceptionOrNmi)
                    && exit.interruption.event_type().is_software() =>
            {
                self.trapped.length
            }
            Cause::Event { .. } | Cause::Boundary | Cause::BeforeDebug => 0,
        }
    }
}
