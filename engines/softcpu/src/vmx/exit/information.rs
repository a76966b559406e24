//! The VM-exit instruction-information field (SDM Vol 3 28.2.5), and the parts of the exit qualification
//! (28.2.1) that come from the instruction's operands.

use x86defs::vmx::ExitReason;
use x86defs::vmx::instruction::{MemoryOperand, information};
use x86defs::vmx::qualification::io;

use crate::code::{Ea, Op};
use crate::cpu::{Cpu, RIP, TWO_GIB};
use crate::insn::OPERAND_SIZE_16;
use crate::vmx::{Cause, ExitRequest};

/// How an operand of `op` in memory is described.
pub(in crate::vmx) fn memory_operand(op: &Op) -> MemoryOperand {
    let register = |r: u8| (usize::from(r) < RIP).then_some(r);
    MemoryOperand {
        scale_log2: op.scale,
        address_size: match op.ea {
            Ea::Legacy16 => 0,
            Ea::Addr32 | Ea::Legacy32 => 1,
            Ea::Flat | Ea::Based => 2,
        },
        segment: op.seg,
        index: register(op.index),
        base: register(op.base),
    }
}

/// The displacement of `op`'s memory operand as the exit qualification holds it: sign-extended, or the sum
/// with RIP for RIP-relative addresses. `block` is the RIP of the start of `op`'s block, to which [`Op`]
/// makes displacements relative.
pub(in crate::vmx) fn displacement(op: &Op, block: u64) -> u64 {
    let d = op.disp as i64 as u64;
    if usize::from(op.base) != RIP {
        return d;
    }
    let far = if usize::from(op.index) == TWO_GIB {
        1 << 31
    } else {
        0
    };
    block.wrapping_add(d).wrapping_add(far)
}

impl Cpu {
    /// Exit qualification and instruction information of an exit.
    pub(super) fn instruction_details(&self, exit: &ExitRequest) -> (u64, u32) {
        let (q, info) = (exit.qualification, exit.information);
        if exit.cause != Cause::Instruction {
            return (q, info);
        }
        let op = &self.trapped;
        // At an exit RIP is the instruction's.
        let block = self.regs[RIP].wrapping_sub(u64::from(op.offset));
        if exit.is(ExitReason::Io) && q & io::STRING != 0 {
            return (q, ins_outs(op, q & io::IN != 0));
        }
        if exit.is(ExitReason::GdtrIdtrAccess) {
            let operand_32 = op.extra != OPERAND_SIZE_16;
            let i = information::gdtr_idtr(memory_operand(op), operand_32, (info >> 28) as u8);
            return (displacement(op, block), i);
        }
        if exit.is(ExitReason::LdtrTrAccess) {
            let operand = if op.extra != 0 {
                information::Operand::Memory(memory_operand(op))
            } else {
                information::Operand::Register(op.dst)
            };
            let i = information::ldtr_tr(operand, (info >> 28) as u8);
            return (displacement(op, block), i);
        }
        if exit.is(ExitReason::Invpcid) {
            let i = information::invalidation(memory_operand(op), op.dst);
            return (displacement(op, block), i);
        }
        if exit.is(ExitReason::Rdrand) || exit.is(ExitReason::Rdseed) {
            // The operand's size in bytes is kept in the immediate.
            let size = match op.imm {
                2 => 0,
                4 => 1,
                _ => 2,
            };
            return (q, information::random(op.dst, size));
        }
        (q, info)
    }
}

/// INS and OUTS keep their address size in bytes above bit 4 of [`Op::extra`].
fn ins_outs(op: &Op, input: bool) -> u32 {
    let address_size = match op.extra >> 4 {
        2 => 0,
        4 => 1,
        _ => 2,
    };
    let segment = if input { 0 } else { op.seg };
    information::ins_outs(address_size, segment)
}
