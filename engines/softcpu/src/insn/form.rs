//! The form of an instruction: what a binder chooses a handler by.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::code::{Ea, Mode, Op, register_code};
use crate::cpu::{gpr, sreg};

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

    /// Makes rAX, by address size, the address of the memory operand (CLZERO, MONITOR); its segment is DS or the
    /// override, in 64-bit mode FS or GS alone.
    pub fn address_in_rax(&self, op: &mut Op) {
        let over = self.insn.segment_prefix();
        let (fs, gs) = (Register::FS, Register::GS);
        op.seg = match over {
            Register::None => sreg::DS as u8,
            s if self.long64() && s != fs && s != gs => sreg::DS as u8,
            s => register_code(s),
        };
        op.base = gpr::RAX as u8;
        op.ea = match self.insn.code() {
            Code::Monitorq | Code::Clzeroq if over == fs || over == gs => Ea::Based,
            Code::Monitorq | Code::Clzeroq => Ea::Flat,
            Code::Monitorw | Code::Clzerow => Ea::Legacy16,
            _ if self.long64() => Ea::Addr32,
            _ => Ea::Legacy32,
        };
    }

    /// 64-bit mode.
    pub fn long64(&self) -> bool {
        self.mode.bits == 64
    }
}
