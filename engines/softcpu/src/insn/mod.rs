//! The instruction table and the handlers.
//!
//! [`table`] says of every mnemonic what it is; [`bind`] turns a decoded instruction into the handler of its
//! form. What has no row (and is not executed by the host) does not exist: #UD.

mod alu;
mod amd_msr;
mod bits;
mod control;
mod control_registers;
mod data;
mod debug_registers;
mod descriptor_tables;
mod far;
mod fast_call;
mod features;
mod flag;
mod form;
mod interrupt;
pub mod known_leaves;
mod monitor;
mod msr;
mod muldiv;
pub(crate) mod operand;
mod port;
mod segment;
mod selector;
mod shift;
mod sse4a;
mod stack;
mod string;
mod system;
pub mod table;
mod translation;
mod vector;
mod x87_error;
mod xsave;

#[cfg(test)]
mod tests;

use iced_x86::Instruction;

pub use descriptor_tables::OPERAND_SIZE_16;
pub use form::{Form, Kind};
pub use hostexec::{Class, Facts, MemoryUse};
pub use known_leaves::KnownLeaves;
pub use monitor::Monitor;
pub use msr::{DEBUGCTL_ALLOWED, FEATURE_CONTROL_LOCKED_VMX, valid_pat};
pub use vector::{HostSide, VectorTable};

use crate::code::{Mode, Op};
use crate::cpu::{Cpu, Flow, Trap};
use table::Bind;

/// The handler of bytes that are no instruction, or none this processor has.
pub fn invalid_opcode(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.ud()
}

/// The handler of an instruction longer than 15 bytes: #GP(0).
pub fn too_long(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.gp0()
}

/// The handler of an instruction that could not be prepared for want of room: decode again.
pub fn retry(_: &mut Cpu, _: &Op) -> Flow {
    Err(Trap::Alone)
}

/// Handlers that end their block continue behind themselves.
#[inline]
fn next(cpu: &mut Cpu, op: &Op) -> Flow {
    let rip = cpu.rip_after(op);
    cpu.next_rip = if cpu.long64 { rip } else { rip & 0xffff_ffff };
    Ok(())
}

/// The handler that ends a block which no branch ends: goes on behind its last instruction.
pub fn fall_through(cpu: &mut Cpu, op: &Op) -> Flow {
    next(cpu, op)
}

/// Chooses the handler of a decoded instruction; true if it ends its block (and sets `next_rip` itself).
pub fn bind(insn: &Instruction, mode: Mode, side: &mut HostSide, op: &mut Op) -> bool {
    let form = Form { insn, mode };
    let row = table::row(insn.mnemonic());
    let handler = match row.map(|r| r.bind) {
        Some(Bind::Here(f)) if side.table.features.has(insn.code()) => f(&form, op),
        // Without the extension the prefix means nothing: BSF and BSR.
        Some(Bind::Here(_)) => bits::bind_without_count(&form),
        Some(Bind::StringOrHost(f)) if insn.is_string_instruction() => f(&form, op),
        Some(Bind::Vmx) => crate::vmx::bind(&form, op),
        Some(Bind::StringOrHost(_)) | None => vector::bind_host(&form, op, side),
    };
    let host = matches!(row.map(|r| r.bind), Some(Bind::StringOrHost(_)) | None);
    match handler {
        Some(h) => {
            op.run = h;
            !host && (row.is_some_and(|r| r.ends_block) || ends_special(insn))
        }
        None => {
            op.run = invalid_opcode;
            true
        }
    }
}

/// MOV and POP to a segment, control or debug register change what decoding or event delivery depend on.
fn ends_special(insn: &Instruction) -> bool {
    use iced_x86::{Mnemonic, OpKind};
    matches!(insn.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
        && insn.op0_kind() == OpKind::Register
        && !insn.op0_register().is_gpr()
}
