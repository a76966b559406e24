//! What the run loop looks at between instructions.

use vcpu::{Attention, MpState, RunExit};

use super::Runner;
use crate::cpu::{Cpu, pending};

/// What a boundary asks for.
pub(super) enum Boundary {
    Go,
    /// One instruction only, then look again.
    Step,
    /// Nothing to execute yet: look again.
    Again,
    Leave(RunExit),
}

impl Runner {
    /// Everything that may happen between instructions, in the order of SDM Vol 3 Table 6-2.
    #[cold]
    #[inline(never)]
    pub(super) fn boundary(&mut self) -> Boundary {
        self.cpu.end_sti_shadow();
        let attention = self.cpu.attention.get();
        if self.cpu.pending & pending::CODE != 0 || attention & Attention::CODE != 0 {
            self.drop_stale();
        }
        let cpu = &mut self.cpu;
        if attention & Attention::PAUSE != 0 {
            cpu.attention.clear(Attention::PAUSE);
            cpu.world.give_way();
        }
        if attention & Attention::LOOK != 0 {
            cpu.attention.clear(Attention::LOOK);
            cpu.end_slice();
        }
        if cpu.budget <= 0 {
            refill(cpu);
        }
        if attention & Attention::STOP != 0 {
            cpu.attention.clear(Attention::STOP);
            return Boundary::Leave(RunExit::Stopped);
        }
        cpu.follow_remap();
        if attention & Attention::MONITOR != 0 {
            cpu.monitored_store();
        }
        if attention & Attention::INTERRUPT != 0 {
            cpu.attention.clear(Attention::INTERRUPT);
            cpu.pending |= pending::INTERRUPT | pending::SIGNAL;
        }
        if cpu.pending & pending::INACTIVE != 0 {
            match cpu.activity {
                MpState::Shutdown if !cpu.vmx.in_guest => {
                    return Boundary::Leave(RunExit::Shutdown);
                }
                MpState::Halted | MpState::WaitForSipi | MpState::Shutdown => {
                    if !self.wake() {
                        return self.sleep();
                    }
                }
                MpState::Running => self.cpu.pending &= !pending::INACTIVE,
            }
        }
        self.events();
        let cpu = &mut self.cpu;
        if cpu.activity != MpState::Running {
            return self.boundary_again();
        }
        // What was just taken may have been sent after a store to code or a change of the memory map, and the look at
        // the top was before that.
        if cpu.pending & pending::CODE != 0 || cpu.attention.get() & Attention::CODE != 0 {
            self.drop_stale();
        }
        let cpu = &mut self.cpu;
        cpu.follow_remap();
        if cpu.pending & (pending::SHADOW | pending::STEP | pending::COUNT) != 0 {
            Boundary::Step
        } else {
            Boundary::Go
        }
    }
}

pub(super) fn refill(cpu: &mut Cpu) {
    let retired = cpu.retired_now();
    let slice = cpu.platform.poll(retired).clamp(1, i64::MAX as u64 / 2) as i64;
    cpu.retired_base = retired;
    cpu.budget = slice;
    cpu.budget_given = slice;
    cpu.vmx_polled();
    cpu.pmu_polled();
}
