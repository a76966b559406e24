//! x87 instructions without the FXRSTOR/FXSAVE round trip.
//!
//! Most x87 instructions touch one or two registers. When all exceptions are masked and no register involved is
//! unexpectedly empty or full, it is enough to load those registers onto the host's empty stack, execute and
//! store them back; TOP, tags and condition codes are bookkeeping. Everything else (unmasked exceptions, stack
//! faults, instructions with a varying stack effect) takes the complete stub, and so does an instruction that
//! raises a flag the guest does not have yet: the host's sticky flags are not cleared between instructions, so
//! a new flag may be a leftover, and only the complete stub knows.

use crate::state::{ExtState, FSW_EXCEPTIONS, FSW_TOP};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

/// Condition codes C0, C1, C2 and C3 in FSW.
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;

/// What a short stub does around its instruction, in terms of the guest's stack before the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// ST(0) is loaded (on top).
    pub(crate) load_st0: bool,
    /// ST(i), i > 0, is loaded (beneath) and is ST(1) for the instruction, or ST(0) if ST(0) is not loaded.
    pub(crate) load_sti: Option<u8>,
    /// Registers the instruction pops: 0, 1 or 2.
    pub(crate) pops: u8,
    /// Whether the instruction pushes a register.
    pub(crate) push: bool,
    effect: Effect,
}

/// The check before and the bookkeeping after a short stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Registers, relative to the top, that must be in use.
    need: u8,
    /// Registers, relative to the top, whose tags are looked at: `need` and the one a push takes.
    look: u8,
    /// Registers, relative to the top, in use afterwards if they were not.
    fill: u8,
    /// Registers, relative to the top, empty afterwards.
    drain: u8,
    /// Added to TOP, modulo 8.
    top: u8,
    /// Condition codes the instruction defines.
    codes: u16,
    /// Condition codes that must be clear before: processors differ in whether the instruction clears them or
    /// leaves them, and on the host's stack they are clear.
    clear: u16,
}

impl Shape {
    pub(crate) fn effect(&self) -> Effect {
        self.effect
    }
}

impl Effect {
    /// Whether the short stub may run on `ext`.
    #[inline]
    pub(crate) fn applies(&self, ext: &ExtState) -> bool {
        let tags = ext.ftw_abridged().rotate_right(u32::from(ext.top()));
        ext.fcw() & FSW_EXCEPTIONS == FSW_EXCEPTIONS
            && tags & self.look == self.need
            && ext.fsw() & self.clear == 0
    }

    /// Tags, TOP and condition codes after a short stub that left `host_fsw`.
    #[inline]
    pub(crate) fn finish(&self, ext: &mut ExtState, host_fsw: u16) {
        let top = ext.top();
        let rotate = |mask: u8| mask.rotate_left(u32::from(top));
        ext.set_ftw_abridged((ext.ftw_abridged() | rotate(self.fill)) & !rotate(self.drain));
        let new_top = u16::from(top.wrapping_add(self.top) & 7) << 11;
        ext.set_fsw(ext.fsw() & !(FSW_TOP | self.codes) | new_top | host_fsw & self.codes);
    }
}

/// Families of equal stack behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// On ST(0), or ST(0) and memory.
    Top,
    /// On ST(0), which is popped (into memory, if it has an operand).
    TopPop,
    /// Pushes memory or a constant.
    Push,
    /// Pushes a copy of ST(i).
    PushCopy,
    /// On ST(0) and ST(i).
    Pair,
    /// On ST(0) and ST(i), popping ST(0).
    PairPop,
    /// On ST(0) and ST(1), popping both.
    PairPopBoth,
    /// Copies ST(0) to ST(i).
    Copy,
    /// Copies ST(0) to ST(i) and pops.
    CopyPop,
}

fn family(insn: &Instruction) -> Option<Family> {
    let registers = insn.op_count() > 0 && insn.op0_kind() == OpKind::Register;
    let either = |with_registers, without| Some(if registers { with_registers } else { without });
    match insn.mnemonic() {
        M::Fchs
        | M::Fabs
        | M::Fsqrt
        | M::Frndint
        | M::F2xm1
        | M::Fsin
        | M::Fcos
        | M::Ftst
        | M::Fxam
        | M::Fiadd
        | M::Fimul
        | M::Fisub
        | M::Fisubr
        | M::Fidiv
        | M::Fidivr
        | M::Ficom
        | M::Fist => Some(Family::Top),
        M::Fadd | M::Fmul | M::Fsub | M::Fsubr | M::Fdiv | M::Fdivr | M::Fcom => {
            either(Family::Pair, Family::Top)
        }
        M::Fst => either(Family::Copy, Family::Top),
        M::Fstp => either(Family::CopyPop, Family::TopPop),
        M::Fcomp => either(Family::PairPop, Family::TopPop),
        M::Ficomp | M::Fistp | M::Fisttp | M::Fbstp => Some(Family::TopPop),
        M::Fld => either(Family::PushCopy, Family::Push),
        M::Fild
        | M::Fbld
        | M::Fld1
        | M::Fldz
        | M::Fldpi
        | M::Fldl2e
        | M::Fldl2t
        | M::Fldlg2
        | M::Fldln2 => Some(Family::Push),
        M::Fucom
        | M::Fcomi
        | M::Fucomi
        | M::Fxch
        | M::Fcmovb
        | M::Fcmove
        | M::Fcmovbe
        | M::Fcmovu
        | M::Fcmovnb
        | M::Fcmovne
        | M::Fcmovnbe
        | M::Fcmovnu
        | M::Fscale => Some(Family::Pair),
        M::Fucomp
        | M::Fcomip
        | M::Fucomip
        | M::Faddp
        | M::Fmulp
        | M::Fsubp
        | M::Fsubrp
        | M::Fdivp
        | M::Fdivrp
        | M::Fyl2x
        | M::Fyl2xp1
        | M::Fpatan => Some(Family::PairPop),
        M::Fcompp | M::Fucompp => Some(Family::PairPopBoth),
        _ => None,
    }
}

/// Condition codes the instruction defines (SDM Vol. 1, table 8-1); the others stay.
fn codes(mnemonic: M) -> u16 {
    match mnemonic {
        M::Fcom
        | M::Fcomp
        | M::Fcompp
        | M::Fucom
        | M::Fucomp
        | M::Fucompp
        | M::Ficom
        | M::Ficomp
        | M::Ftst
        | M::Fxam => C0 | C1 | C2 | C3,
        M::Fsin | M::Fcos => C1 | C2,
        M::Fcmovb
        | M::Fcmove
        | M::Fcmovbe
        | M::Fcmovu
        | M::Fcmovnb
        | M::Fcmovne
        | M::Fcmovnbe
        | M::Fcmovnu => 0,
        _ => C1,
    }
}

/// The number of the stack register other than ST(0) that `insn` names, or implies.
fn other_register(insn: &Instruction) -> u8 {
    match insn.mnemonic() {
        M::Fscale | M::Fyl2x | M::Fyl2xp1 | M::Fpatan | M::Fcompp | M::Fucompp => 1,
        _ => (0..insn.op_count())
            .filter(|&i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_st())
            .map(|i| insn.op_register(i).number() as u8)
            .max()
            .unwrap_or(0),
    }
}

/// The short form of `insn`, if it has one.
pub(crate) fn shape(insn: &Instruction) -> Option<Shape> {
    let family = family(insn)?;
    let i = other_register(insn);
    let one = 1u8;
    let sti = one.checked_shl(u32::from(i)).unwrap_or(0);
    let other = (i != 0).then_some(i);
    let (load_st0, load_sti, pops, need, fill) = match family {
        Family::Top => (true, None, 0, 1, 0),
        Family::TopPop => (true, None, 1, 1, 0),
        Family::Push => (false, None, 0, 0, 0x80),
        // A copy of ST(7) has no place, or the register it takes is empty.
        Family::PushCopy if i == 7 => return None,
        Family::PushCopy => (i == 0, other, 0, sti, 0x80),
        Family::Pair => (true, other, 0, 1 | sti, 0),
        // The result would go to the register that is popped.
        Family::PairPop if i == 0 && writes_other(insn.mnemonic()) => return None,
        Family::PairPop => (true, other, 1, 1 | sti, 0),
        Family::PairPopBoth => (true, other, 2, 1 | sti, 0),
        Family::Copy => (true, other, 0, 1, sti),
        Family::CopyPop => (true, other, 1, 1, sti),
    };
    let push = matches!(family, Family::Push | Family::PushCopy);
    Some(Shape {
        load_st0,
        load_sti,
        pops,
        push,
        effect: Effect {
            need,
            look: need | if push { 0x80 } else { 0 },
            fill,
            drain: (1 << pops) - 1,
            top: if push { 7 } else { pops },
            codes: codes(insn.mnemonic()),
            clear: may_leave_c1(insn.mnemonic()),
        },
    })
}

/// C1 if the instruction does not define it on every processor.
fn may_leave_c1(mnemonic: M) -> u16 {
    match mnemonic {
        M::Fcomi
        | M::Fcomip
        | M::Fucomi
        | M::Fucomip
        | M::Fcmovb
        | M::Fcmove
        | M::Fcmovbe
        | M::Fcmovu
        | M::Fcmovnb
        | M::Fcmovne
        | M::Fcmovnbe
        | M::Fcmovnu => C1,
        _ => 0,
    }
}

fn writes_other(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Faddp | M::Fmulp | M::Fsubp | M::Fsubrp | M::Fdivp | M::Fdivrp
    )
}

/// `insn` on the host's short stack: ST(i) is ST(1) there, or ST(0) when it is alone.
pub(crate) fn renamed(insn: &Instruction, shape: &Shape) -> Instruction {
    let mut renamed = *insn;
    let place = if shape.load_st0 {
        Register::ST1
    } else {
        Register::ST0
    };
    for operand in 0..insn.op_count() {
        if insn.op_kind(operand) == OpKind::Register
            && insn.op_register(operand).is_st()
            && insn.op_register(operand) != Register::ST0
        {
            renamed.set_op_register(operand, place);
        }
    }
    renamed
}
