//! VMX instructions (SDM Vol 3 chapter 31).
//!
//! Each begins with [`Cpu::vmx_gate`]: the #UD conditions, then the VM exit in non-root operation, then #GP
//! by privilege, as the operation sections of chapter 31 have it.

mod invalidate;
mod launch;
mod pointer;
mod vmcs_access;

use iced_x86::Mnemonic;
use x86defs::cr::cr0;
use x86defs::rflags;
use x86defs::vmx::instruction::information::{self, Operand};
use x86defs::vmx::{ExitReason, InstructionError, VmcsField as F};

use super::ExitRequest;
use super::exit::{displacement, memory_operand};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, RIP, Trap};
use crate::insn::{Form, Kind};

/// In [`Op::extra`]: the operand that may be either is a register.
const REGISTER_FORM: u16 = 1;

/// The handler of a VMX instruction. All but VMREAD and VMWRITE end their block.
pub fn bind(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    op.extra = 0;
    let handler: Handler = match form.mnemonic() {
        M::Vmxon => pointer::vmxon,
        M::Vmxoff => pointer::vmxoff,
        M::Vmptrld => pointer::vmptrld,
        M::Vmptrst => pointer::vmptrst,
        M::Vmclear => pointer::vmclear,
        M::Vmread => {
            set_register_form(form, op, 0);
            vmcs_access::vmread
        }
        M::Vmwrite => {
            set_register_form(form, op, 1);
            vmcs_access::vmwrite
        }
        M::Vmlaunch => launch::vmlaunch,
        M::Vmresume => launch::vmresume,
        M::Vmcall => launch::vmcall,
        M::Invept => invalidate::invept,
        M::Invvpid => invalidate::invvpid,
        M::Vmfunc => launch::vmfunc,
        _ => return None,
    };
    Some(handler)
}

fn set_register_form(form: &Form, op: &mut Op, operand: u32) {
    if form.kind(operand) == Kind::Reg {
        op.extra |= REGISTER_FORM;
    }
}

/// What stands in the instruction-information field when the instruction exits.
enum Operands {
    /// None: no information, qualification 0.
    None,
    /// One memory operand.
    Memory,
    /// INVEPT, INVVPID: memory and the register with the type.
    Invalidation,
    /// VMREAD (register 2 in `src`, the other operand in `dst`) and VMWRITE (the other way round).
    Field {
        /// Register that holds the encoding.
        encoding: u8,
        /// Register operand with the value, in the register form.
        value: u8,
    },
}

impl Cpu {
    /// The common conditions: #UD outside VMX operation or in a mode without VMX instructions, the VM exit in
    /// non-root operation, #GP(0) above CPL 0.
    fn vmx_gate(&mut self, op: &Op, reason: ExitReason, operands: Operands) -> Flow {
        if !self.vmx.in_operation() || !self.vmx_mode() {
            return self.ud();
        }
        if self.vmx.in_guest {
            return self.vmx_instruction_exit(op, reason, operands);
        }
        self.vmx_goes_on(op);
        self.require_cpl0()
    }

    /// Execution goes on behind `op`, unless a VM entry follows.
    fn vmx_goes_on(&mut self, op: &Op) {
        let rip = self.rip_after(op);
        self.next_rip = if self.long64 { rip } else { rip & 0xffff_ffff };
    }

    /// Protected mode, not virtual-8086 mode, and 64-bit code in IA-32e mode.
    fn vmx_mode(&self) -> bool {
        self.cr0 & cr0::PE != 0 && !self.v8086() && (!self.long_mode() || self.long64)
    }

    #[cold]
    fn vmx_instruction_exit(&mut self, op: &Op, reason: ExitReason, operands: Operands) -> Flow {
        let memory = memory_operand(op);
        let (information, qualification) = match operands {
            Operands::None => (0, 0),
            Operands::Memory => (
                information::memory(memory),
                displacement(op, self.regs[RIP]),
            ),
            Operands::Invalidation => (
                information::invalidation(memory, op.dst),
                displacement(op, self.regs[RIP]),
            ),
            Operands::Field { encoding, value } => {
                if op.extra & REGISTER_FORM != 0 {
                    let operand = Operand::Register(value);
                    (information::vmread_vmwrite(operand, encoding), 0)
                } else {
                    let operand = Operand::Memory(memory);
                    let q = displacement(op, self.regs[RIP]);
                    (information::vmread_vmwrite(operand, encoding), q)
                }
            }
        };
        self.vm_exit(ExitRequest {
            information,
            ..ExitRequest::instruction(reason, qualification)
        })
    }

    /// VMsucceed (SDM Vol 3 31.2).
    fn vm_succeed(&mut self) {
        self.flags.set_bits(0);
    }

    /// VMfailInvalid.
    fn vm_fail_invalid(&mut self) {
        self.flags.set_bits(rflags::CF);
    }

    /// VMfailValid: the error goes to the current VMCS.
    fn vm_fail_valid(&mut self, error: InstructionError) {
        self.flags.set_bits(rflags::ZF);
        self.vmx
            .current_vmcs_mut()
            .set(F::InstructionError, u64::from(error as u32));
    }

    /// VMfail: valid with a current VMCS, else invalid.
    fn vm_fail(&mut self, error: InstructionError) {
        match self.vmx.current {
            Some(_) => self.vm_fail_valid(error),
            None => self.vm_fail_invalid(),
        }
    }

    /// Reads the 64-bit memory operand.
    fn operand64(&mut self, op: &Op) -> Result<u64, Trap> {
        let va = self.linear(op, 8, false)?;
        self.read_linear(va)
    }
}
