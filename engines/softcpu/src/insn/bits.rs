//! Bit instructions: BT family, BSF, BSR, TZCNT, LZCNT, POPCNT, BMI1, BMI2, CRC32 (SDM Vol 2).

use iced_x86::Mnemonic;

use super::form::{Form, Kind};
use super::operand::{Imm, Int, Mem, Source, Src};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow};
use crate::flags::{mask, sign_extend};

const TEST: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

#[inline(always)]
fn change<const KIND: u8>(v: u64, bit: u32) -> u64 {
    match KIND {
        SET => v | 1 << bit,
        RESET => v & !(1 << bit),
        COMPLEMENT => v ^ 1 << bit,
        _ => v,
    }
}

fn bit_in_register<T: Int, S: Source, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let bit = S::get::<T>(cpu, op)?.to_u64() as u32 & (T::BITS - 1);
    let v = T::reg(cpu, op.dst).to_u64();
    cpu.flags.set_cf(v >> bit & 1 != 0);
    if KIND != TEST {
        T::set_reg(cpu, op.dst, T::from_u64(change::<KIND>(v, bit)));
    }
    Ok(())
}

fn bit_in_memory<T: Int, const KIND: u8, const IMMEDIATE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (bit, reach) = if IMMEDIATE {
        (op.imm as u32 & (T::BITS - 1), 0)
    } else {
        // A register bit offset is signed and reaches beyond the operand (SDM Vol 2, BT).
        let offset = sign_extend::<T>(T::reg(cpu, op.src).to_u64()) as i64;
        (
            offset as u32 & (T::BITS - 1),
            (offset >> T::BITS.trailing_zeros()) * T::SIZE as i64,
        )
    };
    let mut moved = *op;
    let base = cpu.effective_address(op).wrapping_add(reach as u64);
    // The address size still truncates; hand the sum over as a plain displacement from a scratch register.
    moved.base = SCRATCH;
    moved.index = crate::cpu::ZERO as u8;
    moved.disp = 0;
    cpu.regs[SCRATCH as usize] = base;
    let va = cpu.linear(&moved, T::SIZE, KIND != TEST)?;
    if KIND == TEST {
        let v: T = cpu.read_linear(va)?;
        cpu.flags.set_cf(v.to_u64() >> bit & 1 != 0);
        return Ok(());
    }
    let f = |cpu: &mut Cpu, v: T| {
        let v = v.to_u64();
        cpu.flags.set_cf(v >> bit & 1 != 0);
        T::from_u64(change::<KIND>(v, bit))
    };
    if op.extra == LOCKED {
        cpu.lock_linear(va, f)
    } else {
        cpu.modify_linear(va, f)
    }
}

/// In [`Op::extra`]: the instruction has a LOCK prefix.
const LOCKED: u16 = 1;

/// A slot of `Cpu::regs` no guest register uses.
const SCRATCH: u8 = 20;

macro_rules! bit_form {
    ($form:expr, $k:ident) => {
        match ($form.kinds(), $form.size(0)) {
            ((Kind::Reg, Kind::Reg), s) => match s {
                2 => Some(bit_in_register::<u16, Src, $k> as Handler),
                4 => Some(bit_in_register::<u32, Src, $k> as Handler),
                _ => Some(bit_in_register::<u64, Src, $k> as Handler),
            },
            ((Kind::Reg, Kind::Imm), s) => match s {
                2 => Some(bit_in_register::<u16, Imm, $k> as Handler),
                4 => Some(bit_in_register::<u32, Imm, $k> as Handler),
                _ => Some(bit_in_register::<u64, Imm, $k> as Handler),
            },
            ((Kind::Mem, Kind::Imm), s) => match s {
                2 => Some(bit_in_memory::<u16, $k, true> as Handler),
                4 => Some(bit_in_memory::<u32, $k, true> as Handler),
                _ => Some(bit_in_memory::<u64, $k, true> as Handler),
            },
            ((Kind::Mem, Kind::Reg), _) => match $form.size(1) {
                2 => Some(bit_in_memory::<u16, $k, false> as Handler),
                4 => Some(bit_in_memory::<u32, $k, false> as Handler),
                _ => Some(bit_in_memory::<u64, $k, false> as Handler),
            },
            _ => None,
        }
    };
}

pub fn bind_bt(form: &Form, op: &mut Op) -> Option<Handler> {
    op.extra = if form.locked() { LOCKED } else { 0 };
    match form.mnemonic() {
        Mnemonic::Bt => bit_form!(form, TEST),
        Mnemonic::Bts => bit_form!(form, SET),
        Mnemonic::Btr => bit_form!(form, RESET),
        _ => bit_form!(form, COMPLEMENT),
    }
}

/// BSF and BSR: with a zero source the destination is left alone, as processors do.
fn scan<T: Int, S: Source, const REVERSE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<T>(cpu, op)?.to_u64();
    if v == 0 {
        cpu.flags.set_zf(true);
        return Ok(());
    }
    let bit = if REVERSE {
        63 - v.leading_zeros()
    } else {
        v.trailing_zeros()
    };
    cpu.flags.set_zf(false);
    T::set_reg(cpu, op.dst, T::from_u64(u64::from(bit)));
    Ok(())
}

/// TZCNT and LZCNT: CF if the source is zero, ZF if the result is.
fn count<T: Int, S: Source, const LEADING: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<T>(cpu, op)?.to_u64();
    let n = if LEADING {
        v.leading_zeros() - (64 - T::BITS)
    } else {
        v.trailing_zeros().min(T::BITS)
    };
    T::set_reg(cpu, op.dst, T::from_u64(u64::from(n)));
    cpu.flags.set_cf(v == 0);
    cpu.flags.set_zf(n == 0);
    Ok(())
}

fn popcnt<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<T>(cpu, op)?.to_u64();
    T::set_reg(cpu, op.dst, T::from_u64(u64::from(v.count_ones())));
    // All flags clear but ZF.
    cpu.flags
        .set_bits(if v == 0 { x86defs::rflags::ZF } else { 0 });
    Ok(())
}

macro_rules! scan_form {
    ($form:expr, $f:ident $(, $k:literal)?) => {
        match ($form.size(0), $form.kind(1)) {
            (2, Kind::Reg) => Some($f::<u16, Src $(, $k)?> as Handler),
            (4, Kind::Reg) => Some($f::<u32, Src $(, $k)?> as Handler),
            (8, Kind::Reg) => Some($f::<u64, Src $(, $k)?> as Handler),
            (2, Kind::Mem) => Some($f::<u16, Mem $(, $k)?> as Handler),
            (4, Kind::Mem) => Some($f::<u32, Mem $(, $k)?> as Handler),
            (8, Kind::Mem) => Some($f::<u64, Mem $(, $k)?> as Handler),
            _ => None,
        }
    };
}

pub fn bind_scan(form: &Form, _: &mut Op) -> Option<Handler> {
    match form.mnemonic() {
        Mnemonic::Bsf => scan_form!(form, scan, false),
        Mnemonic::Bsr => scan_form!(form, scan, true),
        Mnemonic::Tzcnt => scan_form!(form, count, false),
        Mnemonic::Lzcnt => scan_form!(form, count, true),
        _ => scan_form!(form, popcnt),
    }
}

/// TZCNT and LZCNT on a processor that has them not; nothing for any other instruction.
pub fn bind_without_count(form: &Form) -> Option<Handler> {
    match form.mnemonic() {
        Mnemonic::Tzcnt => scan_form!(form, scan, false),
        Mnemonic::Lzcnt => scan_form!(form, scan, true),
        _ => None,
    }
}

/// ANDN, PDEP, PEXT: destination, first source register (`src`), second source register or memory.
fn three<T: Int, const KIND: u8, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_vex()?;
    let b = if MEMORY {
        Mem::get::<T>(cpu, op)?
    } else {
        T::reg(cpu, op.extra as u8)
    }
    .to_u64();
    let a = T::reg(cpu, op.src).to_u64();
    let r = match KIND {
        0 => {
            let r = !a & b;
            cpu.flags.after_logic::<T>(r);
            r
        }
        1 => deposit(a, b),
        _ => extract(a, b),
    };
    T::set_reg(cpu, op.dst, T::from_u64(r));
    Ok(())
}

fn deposit(source: u64, selector: u64) -> u64 {
    let (mut r, mut left, mut k) = (0, selector, 0);
    while left != 0 {
        let lowest = left & left.wrapping_neg();
        if source >> k & 1 != 0 {
            r |= lowest;
        }
        left ^= lowest;
        k += 1;
    }
    r
}

fn extract(source: u64, selector: u64) -> u64 {
    let (mut r, mut left, mut k) = (0, selector, 0);
    while left != 0 {
        let lowest = left & left.wrapping_neg();
        if source & lowest != 0 {
            r |= 1 << k;
        }
        left ^= lowest;
        k += 1;
    }
    r
}

/// BLSI, BLSMSK, BLSR: destination is the VEX.vvvv register, operand 0.
fn lowest<T: Int, S: Source, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_vex()?;
    let a = S::get::<T>(cpu, op)?.to_u64();
    let (r, cf) = match KIND {
        0 => (a & a.wrapping_neg(), a != 0),
        1 => ((a ^ a.wrapping_sub(1)) & mask::<T>(), a == 0),
        _ => (a & a.wrapping_sub(1), a == 0),
    };
    T::set_reg(cpu, op.dst, T::from_u64(r));
    cpu.flags.set_result_cf_of::<T>(r, cf, false);
    Ok(())
}

/// BEXTR and BZHI: source is operand 1, the control register operand 2.
fn field<T: Int, S: Source, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_vex()?;
    let a = S::get::<T>(cpu, op)?.to_u64();
    let control = T::reg(cpu, op.extra as u8).to_u64();
    let low = control as u32 & 0xff;
    let (r, cf) = if KIND == 0 {
        let len = (control >> 8) as u32 & 0xff;
        let shifted = if low < T::BITS { a >> low } else { 0 };
        (
            if len < 64 {
                shifted & ((1 << len) - 1)
            } else {
                shifted
            },
            false,
        )
    } else if low < T::BITS {
        (a & ((1 << low) - 1), false)
    } else {
        (a, true)
    };
    T::set_reg(cpu, op.dst, T::from_u64(r));
    cpu.flags.set_result_cf_of::<T>(r, cf, false);
    Ok(())
}

macro_rules! two_widths {
    ($form:expr, $operand:literal, $f:ident, $k:literal) => {
        match ($form.size(0), $form.kind($operand)) {
            (4, Kind::Reg) => Some($f::<u32, Src, $k> as Handler),
            (4, _) => Some($f::<u32, Mem, $k> as Handler),
            (_, Kind::Reg) => Some($f::<u64, Src, $k> as Handler),
            _ => Some($f::<u64, Mem, $k> as Handler),
        }
    };
}

macro_rules! three_form {
    ($form:expr, $k:literal) => {
        match ($form.size(0), $form.kind(2)) {
            (4, Kind::Reg) => Some(three::<u32, $k, false> as Handler),
            (4, _) => Some(three::<u32, $k, true> as Handler),
            (_, Kind::Reg) => Some(three::<u64, $k, false> as Handler),
            _ => Some(three::<u64, $k, true> as Handler),
        }
    };
}

pub fn bind_bmi(form: &Form, _: &mut Op) -> Option<Handler> {
    match form.mnemonic() {
        Mnemonic::Andn => three_form!(form, 0),
        Mnemonic::Pdep => three_form!(form, 1),
        Mnemonic::Pext => three_form!(form, 2),
        Mnemonic::Blsi => two_widths!(form, 1, lowest, 0),
        Mnemonic::Blsmsk => two_widths!(form, 1, lowest, 1),
        Mnemonic::Blsr => two_widths!(form, 1, lowest, 2),
        Mnemonic::Bextr => two_widths!(form, 1, field, 0),
        Mnemonic::Bzhi => two_widths!(form, 1, field, 1),
        _ => None,
    }
}

/// CRC32 with the polynomial 11EDC6F41h, bit-reflected (SDM Vol 2, CRC32).
fn crc32<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<T>(cpu, op)?.to_u64();
    let mut crc = cpu.regs[(op.dst & 31) as usize] as u32;
    for i in 0..T::SIZE {
        crc = CRC_TABLE[((crc ^ (v >> (8 * i)) as u32) & 0xff) as usize] ^ crc >> 8;
    }
    cpu.regs[(op.dst & 31) as usize] = u64::from(crc);
    Ok(())
}

static CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut v = i as u32;
        let mut k = 0;
        while k < 8 {
            v = if v & 1 != 0 {
                v >> 1 ^ 0x82f6_3b78
            } else {
                v >> 1
            };
            k += 1;
        }
        table[i] = v;
        i += 1;
    }
    table
};

pub fn bind_crc32(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(match (form.size(1), form.kind(1)) {
        (1, Kind::Reg) => crc32::<u8, Src>,
        (2, Kind::Reg) => crc32::<u16, Src>,
        (4, Kind::Reg) => crc32::<u32, Src>,
        (_, Kind::Reg) => crc32::<u64, Src>,
        (1, _) => crc32::<u8, Mem>,
        (2, _) => crc32::<u16, Mem>,
        (4, _) => crc32::<u32, Mem>,
        _ => crc32::<u64, Mem>,
    })
}
