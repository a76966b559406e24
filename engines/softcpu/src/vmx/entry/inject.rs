//! Event injection (SDM Vol 3 27.6) and what is pending after a VM entry (27.7).

use vcpu::MpState;
use x86defs::vmx::control::primary;
use x86defs::vmx::guest::pending_debug;
use x86defs::vmx::{EventType, InterruptionInfo, VmcsField as F};

use crate::cpu::{Cpu, Event, EventKind, Flow, Shadow, pending};
use crate::vmx::event::Mtf;

impl Cpu {
    /// Injects the event of the VM-entry interruption-information field, if there is one, and sets up what
    /// else is pending for the guest's first instruction.
    ///
    /// # Errors
    /// [`crate::cpu::Trap::VmExit`] if the delivery of the event exits.
    pub(in crate::vmx) fn inject(&mut self) -> Flow {
        let v = self.vmx.current_vmcs();
        let info = InterruptionInfo(v.get32(F::EntryInterruptionInfo));
        let mtf = v.primary() & primary::MONITOR_TRAP_FLAG != 0;
        self.tpr_threshold_at_entry();
        self.start_preemption_timer();
        self.load_pending_debug(info);
        if !info.is_valid() {
            self.set_mtf(if mtf { Mtf::AfterNext } else { Mtf::Off });
            return Ok(());
        }
        let Some(kind) = event_kind(info.event_type()) else {
            // "Other event": an MTF VM exit is pending, whatever the control says (27.6.2).
            self.set_mtf(Mtf::Pending);
            return Ok(());
        };
        // With the monitor trap flag the exit follows the delivery (26.5.2).
        self.set_mtf(if mtf { Mtf::Pending } else { Mtf::Off });
        let event = self.injected_event(info, kind);
        self.activity = MpState::Running;
        self.pending &= !pending::INACTIVE;
        self.shadow = Shadow::None;
        self.pending &= !pending::SHADOW;
        if kind == EventKind::Nmi {
            self.nmi_blocked = true;
        }
        self.deliver(event)
    }

    fn set_mtf(&mut self, mtf: Mtf) {
        self.vmx.mtf = mtf;
        if mtf != Mtf::Off {
            self.pending |= pending::STEP | pending::VMX;
        }
    }

    fn injected_event(&self, info: InterruptionInfo, kind: EventKind) -> Event {
        let v = self.vmx.current_vmcs();
        Event {
            vector: info.vector(),
            kind,
            error_code: info
                .has_error_code()
                .then(|| v.get32(F::EntryExceptionErrorCode)),
            // At most 15: checked with the controls.
            length: v.get(F::EntryInstructionLength) as u8,
        }
    }

    /// Pending debug exceptions after VM entry (27.7.3).
    fn load_pending_debug(&mut self, info: InterruptionInfo) {
        let field = self.vmx.current_vmcs().get(F::GuestPendingDebug);
        let lost = if info.is_valid() {
            match info.event_type() {
                EventType::SoftwareInterrupt | EventType::SoftwareException => {
                    self.shadow != Shadow::MovSs
                }
                EventType::Other => false,
                EventType::ExternalInterrupt
                | EventType::Reserved
                | EventType::Nmi
                | EventType::HardwareException
                | EventType::PrivilegedSoftwareException => true,
            }
        } else {
            matches!(self.activity, MpState::Shutdown | MpState::WaitForSipi)
        };
        let valid = field & (pending_debug::BS | pending_debug::ENABLED_BREAKPOINT) != 0;
        self.pending_debug = if lost || !valid {
            0
        } else {
            field & (pending_debug::B | pending_debug::BS)
        };
        if self.pending_debug != 0 {
            self.pending |= pending::DEBUG;
        }
    }
}

/// How an injected event goes through the IDT; `None` for "other event".
fn event_kind(kind: EventType) -> Option<EventKind> {
    match kind {
        EventType::ExternalInterrupt => Some(EventKind::External),
        EventType::Nmi => Some(EventKind::Nmi),
        EventType::HardwareException => Some(EventKind::Hardware),
        EventType::SoftwareInterrupt => Some(EventKind::SoftwareInterrupt),
        EventType::PrivilegedSoftwareException => Some(EventKind::PrivilegedSoftware),
        EventType::SoftwareException => Some(EventKind::SoftwareException),
        EventType::Other | EventType::Reserved => None,
    }
}
