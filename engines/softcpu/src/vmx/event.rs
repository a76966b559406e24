//! VM exits by events, and what is looked at between instructions (SDM Vol 3 26.2, 26.5, 27.7).
//!
//! Priorities at an instruction boundary, highest first (SDM Vol 3 6.9, 26.2, 26.5, 28.2): INIT and SIPI, MTF
//! and TPR-below-threshold exits, debug traps, preemption timer, NMI window, NMI, interrupt window, external
//! interrupt. The run loop asks in this order.

use vcpu::MpState;
use x86defs::exception;
use x86defs::vmx::control::{exit, pin, primary};
use x86defs::vmx::{EventType, ExitReason, InterruptionInfo, VmcsField as F};

use super::{Cause, ExitRequest};
use crate::cpu::{Cpu, Event, EventKind, Flow, Shadow, pending};

/// The monitor trap flag (SDM Vol 3 26.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtf {
    /// Nothing to come.
    #[default]
    Off,
    /// An exit follows the next instruction or event delivery.
    AfterNext,
    /// An exit is to be taken at once.
    Pending,
}

/// The type an event has in interruption information.
pub(super) fn event_type(kind: EventKind) -> EventType {
    match kind {
        EventKind::External => EventType::ExternalInterrupt,
        EventKind::Nmi => EventType::Nmi,
        EventKind::Hardware => EventType::HardwareException,
        EventKind::SoftwareInterrupt => EventType::SoftwareInterrupt,
        EventKind::PrivilegedSoftware => EventType::PrivilegedSoftwareException,
        EventKind::SoftwareException => EventType::SoftwareException,
    }
}

/// An event as interruption information describes it.
pub(super) fn information(event: &Event) -> InterruptionInfo {
    InterruptionInfo::new(
        event_type(event.kind),
        event.vector,
        event.error_code.is_some(),
    )
}

/// Whether an exception is a fault, so that its frame shows RF set (SDM Vol 3 18.3.1.1, Table 6-1).
fn is_fault(event: &Event) -> bool {
    event.kind == EventKind::Hardware
        && !matches!(event.vector, exception::DB | exception::DF | exception::MC)
}

impl Cpu {
    /// Asks about an exception that is about to be delivered (SDM Vol 3 26.2): `detail` is the address of a
    /// page fault, or the DR6 bits of a debug exception.
    ///
    /// # Errors
    /// [`crate::cpu::Trap::VmExit`] if it exits instead; CR2, DR6 and DR7 are then to stay as they are.
    #[inline]
    pub fn intercept_exception(&mut self, event: Event, detail: u64) -> Flow {
        if !self.vmx.in_guest {
            return Ok(());
        }
        self.vmx_exception(event, detail)
    }

    fn vmx_exception(&mut self, event: Event, detail: u64) -> Flow {
        if matches!(
            event.kind,
            EventKind::External | EventKind::Nmi | EventKind::SoftwareInterrupt
        ) {
            return Ok(());
        }
        let v = self.vmx.current_vmcs();
        let mut exits = v.get32(F::ExceptionBitmap) >> (event.vector & 31) & 1 != 0;
        let is_page_fault = event.kind == EventKind::Hardware && event.vector == exception::PF;
        if is_page_fault {
            let matches = event.error_code.unwrap_or(0) & v.get32(F::PageFaultErrorCodeMask)
                == v.get32(F::PageFaultErrorCodeMatch);
            exits = exits == matches;
        }
        if !exits {
            return Ok(());
        }
        if event.vector == exception::DF && event.kind == EventKind::Hardware {
            // An exit by a double fault is not an exit during the delivery of the event that led to it
            // (SDM Vol 3 28.2.4).
            self.delivering = None;
        }
        let qualification = match event.vector {
            exception::PF | exception::DB if event.kind == EventKind::Hardware => detail,
            _ => 0,
        };
        self.vm_exit(ExitRequest {
            reason: ExitReason::ExceptionOrNmi as u32,
            qualification,
            interruption: information(&event),
            error_code: event.error_code.unwrap_or(0),
            cause: Cause::Event {
                fault: is_fault(&event),
            },
            ..ExitRequest::default()
        })
    }

    /// Asks about a triple fault.
    ///
    /// # Errors
    /// [`crate::cpu::Trap::VmExit`] in non-root operation.
    pub fn intercept_triple_fault(&mut self) -> Flow {
        if !self.vmx.in_guest {
            return Ok(());
        }
        self.delivering = None;
        self.vm_exit(ExitRequest {
            reason: ExitReason::TripleFault as u32,
            cause: Cause::Event { fault: false },
            ..ExitRequest::default()
        })
    }

    /// Requests an exit, for the boundary functions.
    pub(super) fn request_exit(&mut self, exit: ExitRequest) -> bool {
        self.exit = exit;
        true
    }

    /// At an instruction boundary, before debug traps: TPR below threshold, the monitor trap flag. True if
    /// the exit in [`Cpu::exit`] is due, as for all functions here.
    #[must_use]
    pub fn vmx_before_debug(&mut self) -> bool {
        if !self.vmx.in_guest {
            return false;
        }
        if self.vmx.tpr_exit_pending {
            return self.request_exit(ExitRequest::before_debug(ExitReason::TprBelowThreshold));
        }
        match self.vmx.mtf {
            Mtf::Off => false,
            Mtf::AfterNext => {
                self.vmx.mtf = Mtf::Pending;
                false
            }
            Mtf::Pending => {
                self.request_exit(ExitRequest::before_debug(ExitReason::MonitorTrapFlag))
            }
        }
    }

    /// No instruction followed the last boundary: the monitor trap flag still waits for one.
    pub fn vmx_no_instruction(&mut self) {
        if self.vmx.mtf == Mtf::Pending {
            self.vmx.mtf = Mtf::AfterNext;
        }
    }

    /// At an instruction boundary, after debug traps and before NMIs: preemption timer, NMI window.
    #[must_use]
    pub fn vmx_before_nmi(&mut self) -> bool {
        if !self.vmx.in_guest || self.activity == MpState::WaitForSipi {
            return false;
        }
        if self.preemption_timer_expired() {
            return true;
        }
        self.vmx.primary(primary::NMI_WINDOW_EXITING)
            && !self.nmi_blocked
            && self.shadow != Shadow::MovSs
            && self.request_exit(ExitRequest::boundary(ExitReason::NmiWindow))
    }

    /// At an instruction boundary, after NMIs and before external interrupts: the interrupt window. The last
    /// look at what [`pending::VMX`] stands for.
    #[must_use]
    pub fn vmx_before_interrupt(&mut self) -> bool {
        if !self.vmx.in_guest {
            self.pending &= !pending::VMX;
            return false;
        }
        let active = matches!(self.activity, MpState::Running | MpState::Halted);
        if self.vmx.primary(primary::INTERRUPT_WINDOW_EXITING)
            && active
            && self.interrupts_enabled()
            && self.shadow == Shadow::None
        {
            return self.request_exit(ExitRequest::boundary(ExitReason::InterruptWindow));
        }
        // What else VMX waits for comes back by itself: IF and the end of NMI blocking set the bit, and the
        // timer is looked at when the platform is polled. Shadows end after one instruction.
        if self.vmx.mtf == Mtf::Off && self.shadow == Shadow::None {
            self.pending &= !pending::VMX;
        }
        false
    }

    /// Whether an NMI can be taken now. With virtual NMIs NMIs are never blocked by NMIs (SDM Vol 3 Table 25-5).
    #[must_use]
    pub fn vmx_nmi_open(&self) -> bool {
        (!self.nmi_blocked || self.vmx.pin(pin::VIRTUAL_NMIS))
            && self.shadow != Shadow::MovSs
            && self.activity != MpState::WaitForSipi
    }

    /// An NMI is about to be taken: whether it exits ("NMI exiting").
    #[must_use]
    pub fn vmx_nmi(&mut self) -> bool {
        self.vmx.pin(pin::NMI_EXITING)
            && self.request_exit(ExitRequest {
                reason: ExitReason::ExceptionOrNmi as u32,
                interruption: InterruptionInfo::new(EventType::Nmi, exception::NMI, false),
                cause: Cause::Boundary,
                ..ExitRequest::default()
            })
    }

    /// IRET ends blocking by NMI: with virtual NMIs the virtual one; with "NMI exiting" alone it changes
    /// nothing (SDM Vol 3 26.3).
    pub fn iret_unblocks_nmi(&mut self) {
        let held = self.vmx.pin(pin::NMI_EXITING) && !self.vmx.pin(pin::VIRTUAL_NMIS);
        if self.nmi_blocked && !held {
            self.nmi_blocked = false;
            self.vmx.iret_unblocked = self.vmx.in_guest;
            self.pending |= pending::SIGNAL | pending::VMX;
        }
    }

    /// Whether an external interrupt would exit now, whatever RFLAGS.IF says (SDM Vol 3 26.2).
    #[must_use]
    pub fn vmx_interrupt_exits(&self) -> bool {
        self.vmx.pin(pin::EXTERNAL_INTERRUPT_EXITING)
            && self.shadow == Shadow::None
            && matches!(self.activity, MpState::Running | MpState::Halted)
    }

    /// An external interrupt is pending: whether it exits.
    #[must_use]
    pub fn vmx_external_interrupt(&mut self) -> bool {
        if !self.vmx_interrupt_exits() {
            return false;
        }
        let mut request = ExitRequest::boundary(ExitReason::ExternalInterrupt);
        if self.vmx.current_vmcs().exit_controls() & exit::ACKNOWLEDGE_INTERRUPT != 0 {
            let Some(vector) = self.platform.acknowledge_interrupt() else {
                return false;
            };
            request.interruption =
                InterruptionInfo::new(EventType::ExternalInterrupt, vector, false);
        }
        self.request_exit(request)
    }

    /// Whether an INIT has to wait: in VMX root operation (SDM Vol 3 24.8), and in a guest that waits for a SIPI
    /// (26.2).
    #[must_use]
    pub fn vmx_blocks_init(&self) -> bool {
        self.vmx.vmxon.is_some() && (!self.vmx.in_guest || self.activity == MpState::WaitForSipi)
    }

    /// An INIT signal has arrived: whether it exits (SDM Vol 3 26.2). It is blocked while waiting for a SIPI.
    #[must_use]
    pub fn vmx_init(&mut self) -> bool {
        self.vmx.in_guest
            && self.activity != MpState::WaitForSipi
            && self.request_exit(ExitRequest::before_debug(ExitReason::Init))
    }

    /// A start-up IPI has arrived while waiting for one: whether it exits.
    #[must_use]
    pub fn vmx_sipi(&mut self, vector: u8) -> bool {
        self.vmx.in_guest
            && self.request_exit(ExitRequest {
                qualification: u64::from(vector),
                ..ExitRequest::before_debug(ExitReason::Sipi)
            })
    }
}
