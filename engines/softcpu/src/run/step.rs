//! Executing one instruction by itself.

use guestmem::RamOffset;
use iced_x86::Mnemonic;
use vcpu::RunExit;
use x86defs::cr::dr;
use x86defs::exception;
use x86defs::rflags;

use super::Runner;
use super::boundary::Boundary;
use super::lookup::{NoBlock, fetch_address, mode_of};
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
        let before = cpu.retired_now().wrapping_sub(cpu.uncounted);
        let held = cpu.pending_debug;
        self.gave_way = false;
        self.cpu.step_cancelled = false;
        let mut branch = None;
        let from = self.cpu.rip();
        match self.find(true) {
            Ok(index) => {
                if self.cpu.pending & pending::COUNT != 0 {
                    branch = self.branch(index);
                }
                self.execute(index);
            }
            Err(NoBlock::Delivered) => {}
            // What holds for the next instruction still does.
            Err(NoBlock::Changed) => return self.cpu.vmx_no_instruction(),
        }
        let cpu = &mut self.cpu;
        // An iteration of a repeated string instruction counts as an instruction (18.3.1.4).
        let completed = cpu.retired_now().wrapping_sub(cpu.uncounted) != before || self.gave_way;
        if !completed {
            // What a faulting instruction hit on its way is not reported.
            cpu.pending_debug = held;
        }
        if cpu.pending & pending::COUNT != 0 {
            let branch = branch.filter(|_| completed);
            if let Some(Branch { passed, by_itself }) = branch
                && by_itself
                && cpu.rip() != passed
            {
                cpu.record_branch(from, cpu.rip());
            }
            cpu.pmu_stepped(branch.is_some());
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

    /// The branch a block of one instruction holds, as the performance counters have it: whatever goes elsewhere, far or
    /// near, if the condition is met or not.
    fn branch(&self, index: u32) -> Option<Branch> {
        use iced_x86::{Decoder, DecoderOptions, FlowControl as F};
        let block = self.cache.block(index);
        let mut bytes = [0; 15];
        let first = usize::from(block.bytes).min(bytes.len());
        let ram = &self.cpu.ram;
        let (here, there) = bytes.split_at_mut(first);
        ram.read_at(RamOffset(block.start), here);
        if block.crosses {
            ram.read_at(RamOffset(self.cache.second_page(index)), there);
        }
        let bits = mode_of(&self.cpu, true).bits;
        let instruction = Decoder::new(u32::from(bits), &bytes, DecoderOptions::NONE).decode();
        let flow = instruction.flow_control();
        let passed = match flow {
            // Also one to the next instruction goes somewhere.
            F::UnconditionalBranch | F::IndirectBranch | F::Return | F::Call | F::IndirectCall => {
                u64::MAX
            }
            F::ConditionalBranch | F::Interrupt => {
                self.cpu.rip().wrapping_add(instruction.len() as u64)
            }
            F::Next | F::XbeginXabortXend | F::Exception => return None,
        };
        (!is_vmx(instruction.mnemonic())).then_some(Branch {
            passed,
            by_itself: flow != F::Interrupt,
        })
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

/// A branch instruction.
struct Branch {
    /// Where RIP is behind it if it was not taken.
    passed: u64,
    /// It goes to its target itself, not by way of the IDT.
    by_itself: bool,
}

/// Decoders have VM entries and calls for branches.
fn is_vmx(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vmcall | M::Vmlaunch | M::Vmresume | M::Vmfunc | M::Vmmcall | M::Vmrun
    )
}
