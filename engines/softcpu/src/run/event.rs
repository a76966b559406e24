//! Events that are taken between instructions.

use vcpu::MpState;
use x86defs::exception;
use x86defs::rflags;

use super::Runner;
use crate::code::Op;
use crate::cpu::{Cpu, Event, EventKind, Fault, Shadow, Trap, pending};

impl Runner {
    pub(super) fn events(&mut self) {
        // Between the iterations of a repeated string instruction events find RF set (SDM Vol 3 18.3.1.1). Where
        // there was none, a code breakpoint is not met anew by the next iteration.
        let mid_repeat = std::mem::take(&mut self.gave_way);
        if mid_repeat {
            self.cpu.rflags_rest |= rflags::RF;
        }
        let taken = self.take_event();
        if mid_repeat && !taken && self.cpu.pending & pending::STEP == 0 {
            self.cpu.rflags_rest &= !rflags::RF;
        }
    }

    /// Takes the first of the events that are due; whether there was one.
    fn take_event(&mut self) -> bool {
        let cpu = &mut self.cpu;
        collect_signals(cpu);
        if self.init_or_sipi() {
            return true;
        }
        let cpu = &mut self.cpu;
        if cpu.pending & pending::VMX != 0 && cpu.vmx_before_debug() {
            return self.take_boundary(Trap::VmExit);
        }
        if cpu.pending & pending::DEBUG != 0 && cpu.shadow != Shadow::MovSs {
            cpu.pending &= !pending::DEBUG;
            let bits = std::mem::take(&mut cpu.pending_debug);
            cpu.fault = Fault {
                vector: exception::DB,
                error_code: 0,
                detail: bits,
            };
            return self.take_boundary(Trap::Exception);
        }
        if cpu.pending & pending::VMX != 0 && cpu.vmx_before_nmi() {
            return self.take_boundary(Trap::VmExit);
        }
        if cpu.nmi_pending && cpu.shadow == Shadow::None {
            if self.nmi_exits() {
                return self.take_boundary(Trap::VmExit);
            }
            let cpu = &mut self.cpu;
            if !cpu.nmi_blocked {
                cpu.nmi_pending = false;
                cpu.nmi_blocked = true;
                self.deliver(Event {
                    vector: exception::NMI,
                    kind: EventKind::Nmi,
                    error_code: None,
                    length: 0,
                });
                return true;
            }
        }
        let cpu = &mut self.cpu;
        if cpu.pending & pending::VMX != 0 && cpu.vmx_before_interrupt() {
            return self.take_boundary(Trap::VmExit);
        }
        if cpu.pending & pending::INTERRUPT != 0 && cpu.shadow == Shadow::None {
            cpu.interrupt_waiting = cpu.platform.interrupt_pending();
            if !cpu.interrupt_waiting {
                cpu.pending &= !pending::INTERRUPT;
            } else if cpu.vmx_external_interrupt() {
                return self.take_boundary(Trap::VmExit);
            } else if cpu.interrupts_enabled() {
                match cpu.platform.acknowledge_interrupt() {
                    Some(vector) => {
                        self.deliver(Event {
                            vector,
                            kind: EventKind::External,
                            error_code: None,
                            length: 0,
                        });
                        return true;
                    }
                    None => cpu.pending &= !pending::INTERRUPT,
                }
            } else {
                // Taken up again when IF is set.
                cpu.pending &= !pending::INTERRUPT;
            }
        }
        false
    }

    pub(super) fn take_boundary(&mut self, trap: Trap) -> bool {
        self.take(trap, &Op::default());
        true
    }

    /// Takes a pending NMI off if it exits.
    pub(super) fn nmi_exits(&mut self) -> bool {
        let cpu = &mut self.cpu;
        let exits = cpu.nmi_pending && cpu.vmx_nmi_open() && cpu.vmx_nmi();
        if exits {
            cpu.nmi_pending = false;
        }
        exits
    }

    /// Follows an INIT and a start-up IPI; true if the processor's state is another now. They may have been taken
    /// together, and nothing else would wake a processor for the second.
    pub(super) fn init_or_sipi(&mut self) -> bool {
        let init = self.follow_init();
        self.follow_sipi() || init
    }

    fn follow_init(&mut self) -> bool {
        let cpu = &mut self.cpu;
        if cpu.init_pending && !cpu.vmx_blocks_init() {
            cpu.init_pending = false;
            if cpu.vmx_init() {
                cpu.end_mwait();
                self.take(Trap::VmExit, &Op::default());
            } else {
                cpu.init();
            }
            return true;
        }
        false
    }

    fn follow_sipi(&mut self) -> bool {
        let cpu = &mut self.cpu;
        // A processor that does not wait for a start-up IPI drops it (SDM Vol 3 9.4.4.1).
        let Some(vector) = cpu.sipi_pending.take() else {
            return false;
        };
        if cpu.activity != MpState::WaitForSipi {
            return false;
        }
        if cpu.vmx_sipi(vector) {
            self.take(Trap::VmExit, &Op::default());
        } else {
            cpu.start_up(vector);
        }
        true
    }

    fn deliver(&mut self, event: Event) {
        match self.cpu.deliver(event) {
            Ok(()) => {}
            Err(trap) => self.take(trap, &Op::default()),
        }
    }
}

impl Cpu {
    /// The block with an STI and the instruction it held for is over.
    #[inline]
    pub(super) fn end_sti_shadow(&mut self) {
        if self.shadow == Shadow::StiInBlock {
            self.shadow = Shadow::None;
            self.pending &= !pending::SHADOW;
            self.interrupts_opened();
        }
    }
}

/// Takes NMI, INIT and SIPI from the controller.
pub(super) fn collect_signals(cpu: &mut Cpu) {
    if cpu.pending & pending::SIGNAL == 0 {
        return;
    }
    cpu.pending &= !pending::SIGNAL;
    if cpu.platform.take_nmi() {
        cpu.nmi_pending = true;
    }
    let start = cpu.platform.take_start();
    if start.init {
        cpu.init_pending = true;
        cpu.sipi_pending = None;
    }
    if start.sipi.is_some() {
        cpu.sipi_pending = start.sipi;
    }
}
