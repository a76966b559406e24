//! Executing one instruction by itself.

use vcpu::RunExit;
use x86defs::cr::dr;
use x86defs::exception;
use x86defs::rflags;

use super::Runner;
use super::boundary::Boundary;
use super::lookup::{NoBlock, fetch_address};
use crate::code::Op;
use crate::cpu::{Fault, Shadow, Trap, pending};

impl Runner {
    /// Executes one instruction and the events around it; for tests and debuggers.
    pub fn single_step(&mut self) -> Option<RunExit> {
        self.enter();
        let exit = match self.boundary() {
            Boundary::Leave(exit) => Some(exit),
            Boundary::Again => None,
            Boundary::Go | Boundary::Step => {
                self.step();
                None
            }
        };
        self.leave();
        exit
    }

    /// Takes what is due, then executes blocks until the platform is to be polled or something else is due; for tests.
    pub fn turn(&mut self) -> Option<RunExit> {
        self.enter();
        let exit = self.turn_inside();
        self.leave();
        exit
    }

    /// Whether the last instruction is a repeated string instruction that has given way and goes on.
    #[must_use]
    pub fn gave_way(&self) -> bool {
        self.gave_way
    }

    /// One instruction with what the boundary before it called for: the interrupt shadow, TF, breakpoints.
    pub(super) fn step(&mut self) {
        let cpu = &mut self.cpu;
        let shadow = cpu.shadow;
        let tf = cpu.rflags_rest & rflags::TF != 0;
        if cpu.rflags_rest & rflags::RF == 0
            && shadow != Shadow::MovSs
            && self.instruction_breakpoint()
        {
            return;
        }
        let cpu = &mut self.cpu;
        let vm_level = cpu.vmx.in_guest;
        let before = cpu.retired_now().wrapping_sub(cpu.faults);
        let held = cpu.pending_debug;
        self.gave_way = false;
        self.cpu.step_cancelled = false;
        match self.find(true) {
            Ok(index) => {
                self.execute(index);
            }
            Err(NoBlock::Delivered) => {}
            // What holds for the next instruction still does.
            Err(NoBlock::Changed) => return self.cpu.vmx_no_instruction(),
        }
        let cpu = &mut self.cpu;
        // An iteration of a repeated string instruction counts as an instruction (18.3.1.4).
        let completed = cpu.retired_now().wrapping_sub(cpu.faults) != before || self.gave_way;
        if !completed {
            // What a faulting instruction hit on its way is not reported.
            cpu.pending_debug = held;
        }
        if completed && vm_level == cpu.vmx.in_guest {
            // RF lasts one instruction, unless that instruction set it (IRET).
            if cpu.trapped_kind_sets_rf {
                cpu.trapped_kind_sets_rf = false;
            } else {
                cpu.rflags_rest &= !rflags::RF;
            }
        }
        if shadow != Shadow::None && cpu.shadow == shadow && vm_level == cpu.vmx.in_guest {
            cpu.shadow = Shadow::None;
            cpu.pending = (cpu.pending & !pending::SHADOW) | pending::INTERRUPT | pending::VMX;
        }
        // A load of SS swallows its own single-step trap (SDM Vol 3 6.8.3).
        let loads_ss = cpu.shadow == Shadow::MovSs;
        if completed && tf && !loads_ss && !cpu.step_cancelled && vm_level == cpu.vmx.in_guest {
            cpu.pending_debug |= dr::DR6_BS;
        }
        if cpu.pending_debug != 0 {
            cpu.pending |= pending::DEBUG;
        }
    }

    /// Code breakpoints at RIP are faults (SDM Vol 3 18.3.1.1); true if one was delivered.
    fn instruction_breakpoint(&mut self) -> bool {
        let cpu = &mut self.cpu;
        if cpu.dr7 & 0xff == 0 {
            return false;
        }
        let va = fetch_address(cpu);
        let mut hit = 0;
        let mut enabled_hit = false;
        for i in 0..4 {
            let kind = cpu.dr7 >> (16 + 4 * i) & 15;
            if kind == 0 && cpu.dr[i as usize] == va {
                hit |= 1 << i;
                enabled_hit |= cpu.dr7 >> (2 * i) & 3 != 0;
            }
        }
        if !enabled_hit {
            return false;
        }
        cpu.fault = Fault {
            vector: exception::DB,
            error_code: 0,
            detail: hit,
        };
        self.take(Trap::Exception, &Op::default());
        true
    }
}
