//! Operand places: the building blocks handlers are generic over.

use guestmem::Word;

use crate::code::Op;
use crate::cpu::{Cpu, Flow, Trap};

/// An operand width with its register file rules (SDM Vol 1 3.4.1.1).
pub trait Int: Word {
    /// Bits in the operand.
    const BITS: u32 = 8 * Self::SIZE as u32;
    /// Reads register `code`.
    fn reg(cpu: &Cpu, code: u8) -> Self;
    /// Writes register `code`: 32-bit writes clear the upper half, narrower ones keep the rest.
    fn set_reg(cpu: &mut Cpu, code: u8, value: Self);
}

impl Int for u8 {
    #[inline(always)]
    fn reg(cpu: &Cpu, code: u8) -> Self {
        let high = code & 0x20 != 0;
        let r = cpu.regs[(code & 31) as usize];
        if high { (r >> 8) as u8 } else { r as u8 }
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, code: u8, value: Self) {
        let r = &mut cpu.regs[(code & 31) as usize];
        let shift = u32::from(code & 0x20) >> 2;
        *r = (*r & !(0xff << shift)) | u64::from(value) << shift;
    }
}

impl Int for u16 {
    #[inline(always)]
    fn reg(cpu: &Cpu, code: u8) -> Self {
        cpu.regs[(code & 31) as usize] as u16
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, code: u8, value: Self) {
        let r = &mut cpu.regs[(code & 31) as usize];
        *r = (*r & !0xffff) | u64::from(value);
    }
}

impl Int for u32 {
    #[inline(always)]
    fn reg(cpu: &Cpu, code: u8) -> Self {
        cpu.regs[(code & 31) as usize] as u32
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, code: u8, value: Self) {
        cpu.regs[(code & 31) as usize] = u64::from(value);
    }
}

impl Int for u64 {
    #[inline(always)]
    fn reg(cpu: &Cpu, code: u8) -> Self {
        cpu.regs[(code & 31) as usize]
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, code: u8, value: Self) {
        cpu.regs[(code & 31) as usize] = value;
    }
}

/// Something to read an operand from.
pub trait Source {
    /// Reads it.
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap>;
}

/// Something to read, write, or modify.
pub trait Place: Source {
    /// Writes it.
    fn set<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Flow;
    /// Reads, applies `f`, writes; `f` runs only if the write cannot fault. It may run again, with the flags of
    /// before, when another vCPU came between.
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, f: impl FnMut(&mut Cpu, T) -> T) -> Flow;
}

/// The register in [`Op::dst`].
pub struct Dst;
/// The register in [`Op::src`].
pub struct Src;
/// The immediate.
pub struct Imm;
/// The memory operand.
pub struct Mem;
/// The memory operand of an instruction that changes it in one piece: LOCK, or XCHG.
pub struct Locked;

impl Source for Dst {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
        Ok(T::reg(cpu, op.dst))
    }
}

impl Place for Dst {
    #[inline(always)]
    fn set<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Flow {
        T::set_reg(cpu, op.dst, value);
        Ok(())
    }
    #[inline(always)]
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(&mut Cpu, T) -> T) -> Flow {
        let v = T::reg(cpu, op.dst);
        let v = f(cpu, v);
        T::set_reg(cpu, op.dst, v);
        Ok(())
    }
}

impl Source for Src {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
        Ok(T::reg(cpu, op.src))
    }
}

impl Source for Imm {
    #[inline(always)]
    fn get<T: Int>(_: &mut Cpu, op: &Op) -> Result<T, Trap> {
        Ok(T::from_u64(op.imm))
    }
}

impl Source for Mem {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
        let va = cpu.linear(op, T::SIZE, false)?;
        cpu.read_linear(va)
    }
}

impl Place for Mem {
    #[inline(always)]
    fn set<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Flow {
        let va = cpu.linear(op, T::SIZE, true)?;
        cpu.write_linear(va, value)
    }
    #[inline(always)]
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, f: impl FnMut(&mut Cpu, T) -> T) -> Flow {
        let va = cpu.linear(op, T::SIZE, true)?;
        cpu.modify_linear(va, f)
    }
}

impl Source for Locked {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
        Mem::get(cpu, op)
    }
}

impl Place for Locked {
    #[inline(always)]
    fn set<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Flow {
        Mem::set(cpu, op, value)
    }
    #[inline(always)]
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, f: impl FnMut(&mut Cpu, T) -> T) -> Flow {
        let va = cpu.linear(op, T::SIZE, true)?;
        cpu.lock_linear(va, f)
    }
}

/// Picks the instance of a generic handler for an operand size in bytes.
macro_rules! sized {
    ($size:expr, $f:ident $(, $g:ty)*) => {
        match $size {
            1 => Some($f::<u8 $(, $g)*> as Handler),
            2 => Some($f::<u16 $(, $g)*> as Handler),
            4 => Some($f::<u32 $(, $g)*> as Handler),
            8 => Some($f::<u64 $(, $g)*> as Handler),
            _ => None,
        }
    };
}

/// The same for handlers without a byte form.
macro_rules! sized_wide {
    ($size:expr, $f:ident $(, $g:ty)*) => {
        match $size {
            2 => Some($f::<u16 $(, $g)*> as Handler),
            4 => Some($f::<u32 $(, $g)*> as Handler),
            8 => Some($f::<u64 $(, $g)*> as Handler),
            _ => None,
        }
    };
}

pub(crate) use {sized, sized_wide};
