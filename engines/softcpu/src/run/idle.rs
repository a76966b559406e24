//! While the processor executes nothing: HLT, MWAIT, wait-for-SIPI, shutdown.

use vcpu::{Attention, MpState, RunExit, Wake};

use super::Runner;
use super::boundary::{Boundary, refill};
use super::event::collect_signals;
use crate::code::Op;
use crate::cpu::{Shadow, Trap, pending};

impl Runner {
    pub(super) fn boundary_again(&mut self) -> Boundary {
        if self.cpu.activity == MpState::Shutdown && !self.cpu.vmx.in_guest {
            return Boundary::Leave(RunExit::Shutdown);
        }
        self.sleep()
    }

    /// Whether something ends HLT, wait-for-SIPI or a nested guest's shutdown; an event that is to be
    /// delivered is then taken in `events`.
    pub(super) fn wake(&mut self) -> bool {
        let cpu = &mut self.cpu;
        collect_signals(cpu);
        if self.exit_while_inactive() {
            return true;
        }
        if self.init_or_sipi() {
            return self.cpu.activity == MpState::Running;
        }
        let cpu = &mut self.cpu;
        if cpu.activity != MpState::Halted {
            return false;
        }
        let interrupt = cpu.interrupts_enabled() && cpu.platform.interrupt_pending();
        let mwait = cpu.mwait_wakes();
        let nmi = cpu.nmi_pending && !cpu.nmi_blocked;
        // A VM entry into HLT may bring pending debug exceptions (SDM Vol 3 27.7.3).
        let debug = cpu.pending & pending::DEBUG != 0;
        if interrupt || nmi || debug || mwait {
            cpu.end_mwait();
            cpu.activity = MpState::Running;
            cpu.pending = (cpu.pending & !pending::INACTIVE) | pending::INTERRUPT | pending::SIGNAL;
            cpu.shadow = Shadow::None;
            return true;
        }
        false
    }

    /// VM exits leave an inactive state only by entering the host: the guest's state is saved as inactive
    /// (SDM Vol 3 28.1).
    fn exit_while_inactive(&mut self) -> bool {
        let cpu = &mut self.cpu;
        if !cpu.vmx.in_guest {
            return false;
        }
        let window =
            cpu.pending & pending::VMX != 0 && (cpu.vmx_before_debug() || cpu.vmx_before_nmi());
        let exits = window || self.nmi_exits() || {
            let cpu = &mut self.cpu;
            (cpu.pending & pending::VMX != 0 && cpu.vmx_before_interrupt())
                || (cpu.vmx_interrupt_exits()
                    && cpu.platform.interrupt_pending()
                    && cpu.vmx_external_interrupt())
        };
        if exits {
            self.cpu.end_mwait();
            self.take(Trap::VmExit, &Op::default());
        }
        exits
    }

    pub(super) fn sleep(&mut self) -> Boundary {
        let cpu = &self.cpu;
        let retired = cpu.retired_now();
        let until = cpu.vmx_timer_wakes_at();
        self.cpu.pmu_halts();
        self.leave();
        let wake = self.cpu.platform.idle(retired, until);
        self.enter();
        let cpu = &mut self.cpu;
        cpu.pmu_wakes();
        match wake {
            Wake::Stop => {
                cpu.attention.clear(Attention::STOP);
                Boundary::Leave(RunExit::Stopped)
            }
            Wake::Event => {
                refill(cpu);
                cpu.pending |= pending::INTERRUPT | pending::SIGNAL;
                Boundary::Again
            }
        }
    }
}
