//! The form of an instruction: what a binder chooses a handler by.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::code::Mode;

/// Kind of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// General register.
    Reg,
    /// Memory.
    Mem,
    /// Immediate.
    Imm,
    /// Segment, control or debug register, or anything else.
    Other,
    /// No such operand.
    None,
}

/// A decoded instruction and the mode it was decoded for.
#[derive(Clone, Copy)]
pub struct Form<'a> {
    /// The instruction.
    pub insn: &'a Instruction,
    /// The mode.
    pub mode: Mode,
}

impl Form<'_> {
    /// The mnemonic.
    pub fn mnemonic(&self) -> Mnemonic {
        self.insn.mnemonic()
    }

    /// Kind of operand `i`.
    pub fn kind(&self, i: u32) -> Kind {
        if i >= self.insn.op_count() {
            return Kind::None;
        }
        match self.insn.op_kind(i) {
            OpKind::Register if self.insn.op_register(i).is_gpr() => Kind::Reg,
            OpKind::Register => Kind::Other,
            OpKind::Memory => Kind::Mem,
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Kind::Imm,
            _ => Kind::Other,
        }
    }

    /// The kinds of the first two operands.
    pub fn kinds(&self) -> (Kind, Kind) {
        (self.kind(0), self.kind(1))
    }

    /// Size of operand `i` in bytes.
    pub fn size(&self, i: u32) -> usize {
        if i >= self.insn.op_count() {
            return 0;
        }
        match self.insn.op_kind(i) {
            OpKind::Register => self.insn.op_register(i).size(),
            _ => self.insn.memory_size().size(),
        }
    }

    /// It has a LOCK prefix.
    pub fn locked(&self) -> bool {
        self.insn.has_lock_prefix()
    }

    /// 64-bit mode.
    pub fn long64(&self) -> bool {
        self.mode.bits == 64
    }
}
