//! The compact form of a decoded instruction.

use crate::cpu::{Cpu, Flow, ZERO};

/// Executes one operation.
pub type Handler = fn(&mut Cpu, &Op) -> Flow;

/// How an effective address becomes a linear one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Ea {
    /// 64-bit mode, no segment base.
    #[default]
    Flat,
    /// 64-bit mode, FS or GS.
    Based,
    /// 64-bit mode with 32-bit address size.
    Addr32,
    /// 32-bit address size outside 64-bit mode.
    Legacy32,
    /// 16-bit address size.
    Legacy16,
}

/// One decoded instruction: 32 bytes.
///
/// `dst`, `src` are register encodings of the operands; for byte registers, bit 5 set means AH, CH, DH, BH of
/// register `n & 3`. `base` and `index` index [`Cpu::regs`], so that "none" and "RIP" need no branch.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Op {
    /// What executes it.
    pub run: Handler,
    /// Immediate, branch distance from the block's start, or whatever the handler's binder put here.
    pub imm: u64,
    /// Displacement.
    pub disp: i32,
    /// Base register.
    pub base: u8,
    /// Index register.
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// Segment register.
    pub seg: u8,
    /// First register operand.
    pub dst: u8,
    /// Second register operand.
    pub src: u8,
    /// How the address is formed.
    pub ea: Ea,
    /// Instruction length in bytes.
    pub length: u8,
    /// Byte offset of the instruction from the block's start.
    pub offset: u16,
    /// Spare for binders: a third register, flags of the form.
    pub extra: u16,
}

impl Default for Op {
    fn default() -> Self {
        Self {
            run: |_, _| Ok(()),
            imm: 0,
            disp: 0,
            base: ZERO as u8,
            index: ZERO as u8,
            scale: 0,
            seg: 3,
            dst: 0,
            src: 0,
            ea: Ea::Flat,
            length: 0,
            offset: 0,
            extra: 0,
        }
    }
}

const _: () = assert!(size_of::<Op>() == 32);
