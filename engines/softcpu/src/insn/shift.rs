//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD and the flagless BMI2 ones (SDM Vol 2).
//!
//! Undefined flags are left as current processors leave them where that is known; tests mask them.

use iced_x86::Mnemonic;

use super::form::{Form, Kind};
use super::operand::{Dst, Imm, Int, Mem, Place, Source, Src, sized, sized_wide};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, gpr};
use crate::flags::{mask, sign_extend};

/// A shift or rotate by an already masked, non-zero count.
trait Shift {
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64;
}

/// The count is CL.
struct Cl;
impl Source for Cl {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, _: &Op) -> Result<T, crate::cpu::Trap> {
        Ok(T::from_u64(cpu.regs[gpr::RCX] & 0xff))
    }
}

#[inline(always)]
fn count_mask<T: Int>() -> u32 {
    if T::BITS == 64 { 63 } else { 31 }
}

fn shift<T: Int, O: Shift, D: Place, C: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = C::get::<u8>(cpu, op)? as u32 & count_mask::<T>();
    D::modify::<T>(cpu, op, |cpu, a| {
        if count == 0 {
            a
        } else {
            T::from_u64(O::apply::<T>(cpu, a.to_u64(), count))
        }
    })
}

struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64 {
        let wide = u128::from(a) << count;
        let r = wide as u64 & mask::<T>();
        let cf = wide >> T::BITS & 1 != 0;
        let of = cf ^ (r >> (T::BITS - 1) & 1 != 0);
        cpu.flags.set_result_cf_of::<T>(r, cf, of);
        r
    }
}

struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64 {
        let r = a >> count;
        let cf = a >> (count - 1) & 1 != 0;
        // OF is the sign before a shift by one.
        let of = a >> (T::BITS - 1) & 1 != 0 && count == 1;
        cpu.flags.set_result_cf_of::<T>(r, cf, of);
        r
    }
}

struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64 {
        let wide = sign_extend::<T>(a) as i64;
        let r = (wide >> count) as u64;
        let cf = wide >> (count - 1) & 1 != 0;
        cpu.flags.set_result_cf_of::<T>(r, cf, false);
        r
    }
}

struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64 {
        let n = count % T::BITS;
        let r = if n == 0 {
            a
        } else {
            ((a << n) | (a >> (T::BITS - n))) & mask::<T>()
        };
        let cf = r & 1 != 0;
        let of = cf ^ (r >> (T::BITS - 1) & 1 != 0);
        cpu.flags.set_cf_of(cf, of);
        r
    }
}

struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64 {
        let n = count % T::BITS;
        let r = if n == 0 {
            a
        } else {
            ((a >> n) | (a << (T::BITS - n))) & mask::<T>()
        };
        let cf = r >> (T::BITS - 1) & 1 != 0;
        let of = cf ^ (r >> (T::BITS - 2) & 1 != 0);
        cpu.flags.set_cf_of(cf, of);
        r
    }
}

struct Rcl;
impl Shift for Rcl {
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64 {
        let n = count % (T::BITS + 1);
        let mut r = a;
        let mut cf = cpu.flags.cf();
        for _ in 0..n {
            let out = r >> (T::BITS - 1) & 1 != 0;
            r = (r << 1 | u64::from(cf)) & mask::<T>();
            cf = out;
        }
        let of = cf ^ (r >> (T::BITS - 1) & 1 != 0);
        cpu.flags.set_cf_of(cf, of);
        r
    }
}

struct Rcr;
impl Shift for Rcr {
    fn apply<T: Int>(cpu: &mut Cpu, a: u64, count: u32) -> u64 {
        let n = count % (T::BITS + 1);
        let mut r = a;
        let mut cf = cpu.flags.cf();
        for _ in 0..n {
            let out = r & 1 != 0;
            r = r >> 1 | u64::from(cf) << (T::BITS - 1);
            cf = out;
        }
        let of = (r >> (T::BITS - 1) ^ r >> (T::BITS - 2)) & 1 != 0;
        cpu.flags.set_cf_of(cf, of);
        r
    }
}

macro_rules! shift_form {
    ($form:expr, $o:ty) => {
        match $form.kinds() {
            (Kind::Reg, Kind::Imm) => sized!($form.size(0), shift, $o, Dst, Imm),
            (Kind::Mem, Kind::Imm) => sized!($form.size(0), shift, $o, Mem, Imm),
            (Kind::Reg, Kind::Reg) => sized!($form.size(0), shift, $o, Dst, Cl),
            (Kind::Mem, Kind::Reg) => sized!($form.size(0), shift, $o, Mem, Cl),
            _ => None,
        }
    };
}

pub fn bind_shift(form: &Form, _: &mut Op) -> Option<Handler> {
    match form.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift_form!(form, Shl),
        Mnemonic::Shr => shift_form!(form, Shr),
        Mnemonic::Sar => shift_form!(form, Sar),
        Mnemonic::Rol => shift_form!(form, Rol),
        Mnemonic::Ror => shift_form!(form, Ror),
        Mnemonic::Rcl => shift_form!(form, Rcl),
        Mnemonic::Rcr => shift_form!(form, Rcr),
        _ => None,
    }
}

fn double<T: Int, D: Place, C: Source, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = C::get::<u8>(cpu, op)? as u32 & count_mask::<T>();
    let fill = T::reg(cpu, op.src).to_u64();
    D::modify::<T>(cpu, op, |cpu, a| {
        let a = a.to_u64();
        if count == 0 {
            return T::from_u64(a);
        }
        // A 16-bit operand shifted by more than 16 is undefined; processors rotate through dest:src:dest.
        let bits = T::BITS;
        let (r, cf) = if LEFT {
            let wide =
                (u128::from(a) << (2 * bits) | u128::from(fill) << bits | u128::from(a)) << count;
            (
                (wide >> (2 * bits)) as u64 & mask::<T>(),
                double_cf_left(a, fill, bits, count),
            )
        } else {
            let wide = (u128::from(fill) << bits | u128::from(a)) >> count;
            let wide = if bits == 16 && count > 16 {
                wide | u128::from(a) << (32 - count)
            } else {
                wide
            };
            let cf = if count <= bits {
                a >> (count - 1) & 1 != 0
            } else {
                fill >> (count - bits - 1) & 1 != 0
            };
            (wide as u64 & mask::<T>(), cf)
        };
        let of = (r ^ a) >> (bits - 1) & 1 != 0;
        cpu.flags.set_result_cf_of::<T>(r, cf, of);
        T::from_u64(r)
    })
}

fn double_cf_left(a: u64, fill: u64, bits: u32, count: u32) -> bool {
    if count <= bits {
        a >> (bits - count) & 1 != 0
    } else {
        fill >> (2 * bits - count) & 1 != 0
    }
}

/// 64-bit SHLD and SHRD, where 128 bits do not hold three operands.
fn double64<D: Place, C: Source, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = C::get::<u8>(cpu, op)? as u32 & 63;
    let fill = cpu.regs[(op.src & 31) as usize];
    D::modify::<u64>(cpu, op, |cpu, a| {
        if count == 0 {
            return a;
        }
        let (r, cf) = if LEFT {
            (
                a << count | fill >> (64 - count),
                a >> (64 - count) & 1 != 0,
            )
        } else {
            (a >> count | fill << (64 - count), a >> (count - 1) & 1 != 0)
        };
        cpu.flags.set_result_cf_of::<u64>(r, cf, (r ^ a) >> 63 != 0);
        r
    })
}

macro_rules! double_form {
    ($form:expr, $left:literal) => {{
        let imm = $form.kind(2) == Kind::Imm;
        match ($form.size(0), $form.kind(0), imm) {
            (2, Kind::Reg, true) => Some(double::<u16, Dst, Imm, $left> as Handler),
            (2, Kind::Reg, false) => Some(double::<u16, Dst, Cl, $left> as Handler),
            (2, Kind::Mem, true) => Some(double::<u16, Mem, Imm, $left> as Handler),
            (2, Kind::Mem, false) => Some(double::<u16, Mem, Cl, $left> as Handler),
            (4, Kind::Reg, true) => Some(double::<u32, Dst, Imm, $left> as Handler),
            (4, Kind::Reg, false) => Some(double::<u32, Dst, Cl, $left> as Handler),
            (4, Kind::Mem, true) => Some(double::<u32, Mem, Imm, $left> as Handler),
            (4, Kind::Mem, false) => Some(double::<u32, Mem, Cl, $left> as Handler),
            (8, Kind::Reg, true) => Some(double64::<Dst, Imm, $left> as Handler),
            (8, Kind::Reg, false) => Some(double64::<Dst, Cl, $left> as Handler),
            (8, Kind::Mem, true) => Some(double64::<Mem, Imm, $left> as Handler),
            (8, Kind::Mem, false) => Some(double64::<Mem, Cl, $left> as Handler),
            _ => None,
        }
    }};
}

pub fn bind_double(form: &Form, _: &mut Op) -> Option<Handler> {
    if form.mnemonic() == Mnemonic::Shld {
        double_form!(form, true)
    } else {
        double_form!(form, false)
    }
}

/// SHLX, SHRX, SARX: destination `dst`, source `S`, count in `extra`.
fn flagless<T: Int, S: Source, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_vex()?;
    let a = S::get::<T>(cpu, op)?.to_u64();
    let count = T::reg(cpu, op.extra as u8).to_u64() as u32 & count_mask::<T>();
    let r = match KIND {
        0 => a << count,
        1 => a >> count,
        _ => ((sign_extend::<T>(a) as i64) >> count) as u64,
    };
    T::set_reg(cpu, op.dst, T::from_u64(r));
    Ok(())
}

fn rorx<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_vex()?;
    let a = S::get::<T>(cpu, op)?.to_u64();
    let n = op.imm as u32 & count_mask::<T>();
    let r = if n == 0 {
        a
    } else {
        (a >> n | a << (T::BITS - n)) & mask::<T>()
    };
    T::set_reg(cpu, op.dst, T::from_u64(r));
    Ok(())
}

macro_rules! flagless_form {
    ($form:expr, $k:literal) => {
        match ($form.size(0), $form.kind(1)) {
            (4, Kind::Reg) => Some(flagless::<u32, Src, $k> as Handler),
            (8, Kind::Reg) => Some(flagless::<u64, Src, $k> as Handler),
            (4, _) => Some(flagless::<u32, Mem, $k> as Handler),
            _ => Some(flagless::<u64, Mem, $k> as Handler),
        }
    };
}

pub fn bind_flagless(form: &Form, _: &mut Op) -> Option<Handler> {
    match form.mnemonic() {
        Mnemonic::Shlx => flagless_form!(form, 0),
        Mnemonic::Shrx => flagless_form!(form, 1),
        Mnemonic::Sarx => flagless_form!(form, 2),
        _ => match form.kind(1) {
            Kind::Reg => sized_wide!(form.size(0), rorx, Src),
            _ => sized_wide!(form.size(0), rorx, Mem),
        },
    }
}
