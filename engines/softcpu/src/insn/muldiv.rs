//! MUL, IMUL, DIV, IDIV, MULX, ADCX, ADOX and the BCD adjustments (SDM Vol 2).

use iced_x86::Mnemonic;
use x86defs::exception::DE;

use super::form::{Form, Kind};
use super::operand::{Dst, Int, Mem, Source, Src, sized, sized_wide};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, gpr};
use crate::flags::{mask, sign_extend};

/// Reads the double-width accumulator: AX, or rDX:rAX.
fn wide_accumulator<T: Int>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        return u128::from(cpu.regs[gpr::RAX] & 0xffff);
    }
    u128::from(T::reg(cpu, gpr::RDX as u8).to_u64()) << T::BITS
        | u128::from(T::reg(cpu, gpr::RAX as u8).to_u64())
}

fn set_wide_accumulator<T: Int>(cpu: &mut Cpu, low: u64, high: u64) {
    if T::BITS == 8 {
        u16::set_reg(cpu, gpr::RAX as u8, (low & 0xff | high << 8) as u16);
        return;
    }
    T::set_reg(cpu, gpr::RAX as u8, T::from_u64(low));
    T::set_reg(cpu, gpr::RDX as u8, T::from_u64(high));
}

fn mul<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = S::get::<T>(cpu, op)?.to_u64();
    let product = u128::from(T::reg(cpu, gpr::RAX as u8).to_u64()) * u128::from(b);
    let (low, high) = (product as u64 & mask::<T>(), (product >> T::BITS) as u64);
    set_wide_accumulator::<T>(cpu, low, high);
    cpu.flags.set_result_cf_of::<T>(low, high != 0, high != 0);
    Ok(())
}

fn signed_product<T: Int>(a: u64, b: u64) -> (u64, u64, bool) {
    let product = i128::from(sign_extend::<T>(a) as i64) * i128::from(sign_extend::<T>(b) as i64);
    let low = product as u64 & mask::<T>();
    let overflow = i128::from(sign_extend::<T>(low) as i64) != product;
    (low, (product >> T::BITS) as u64 & mask::<T>(), overflow)
}

fn imul_accumulator<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = S::get::<T>(cpu, op)?.to_u64();
    let (low, high, overflow) = signed_product::<T>(T::reg(cpu, gpr::RAX as u8).to_u64(), b);
    set_wide_accumulator::<T>(cpu, low, high);
    cpu.flags.set_result_cf_of::<T>(low, overflow, overflow);
    Ok(())
}

fn imul<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = S::get::<T>(cpu, op)?.to_u64();
    let (low, _, overflow) = signed_product::<T>(T::reg(cpu, op.dst).to_u64(), b);
    T::set_reg(cpu, op.dst, T::from_u64(low));
    cpu.flags.set_result_cf_of::<T>(low, overflow, overflow);
    Ok(())
}

fn imul_immediate<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let a = S::get::<T>(cpu, op)?.to_u64();
    let (low, _, overflow) = signed_product::<T>(a, op.imm);
    T::set_reg(cpu, op.dst, T::from_u64(low));
    cpu.flags.set_result_cf_of::<T>(low, overflow, overflow);
    Ok(())
}

fn div<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let d = S::get::<T>(cpu, op)?.to_u64();
    if d == 0 {
        return cpu.raise(DE);
    }
    // The common case fits 64 bits and spares a 128-bit division.
    let n = wide_accumulator::<T>(cpu);
    let (q, r) = match u64::try_from(n) {
        Ok(n) => (n / d, n % d),
        Err(_) => {
            let q = n / u128::from(d);
            if q > u128::from(u64::MAX) {
                return cpu.raise(DE);
            }
            (q as u64, (n % u128::from(d)) as u64)
        }
    };
    if q > mask::<T>() {
        return cpu.raise(DE);
    }
    set_wide_accumulator::<T>(cpu, q, r);
    Ok(())
}

fn idiv<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let d = i128::from(sign_extend::<T>(S::get::<T>(cpu, op)?.to_u64()) as i64);
    if d == 0 {
        return cpu.raise(DE);
    }
    let unused = 128 - 2 * T::BITS;
    let n = ((wide_accumulator::<T>(cpu) << unused) as i128) >> unused;
    let (q, r) = match (i64::try_from(n), d) {
        (Ok(n), d) if d != -1 => (i128::from(n / d as i64), i128::from(n % d as i64)),
        _ => match n.checked_div(d) {
            Some(q) => (q, n - q.wrapping_mul(d)),
            None => return cpu.raise(DE),
        },
    };
    let most = i128::from(mask::<T>() >> 1);
    if q > most || q < -most - 1 {
        return cpu.raise(DE);
    }
    set_wide_accumulator::<T>(cpu, q as u64 & mask::<T>(), r as u64 & mask::<T>());
    Ok(())
}

macro_rules! accumulator_form {
    ($form:expr, $f:ident) => {
        match $form.kind(0) {
            Kind::Reg => sized!($form.size(0), $f, Dst),
            _ => sized!($form.size(0), $f, Mem),
        }
    };
}

pub fn bind_muldiv(form: &Form, _: &mut Op) -> Option<Handler> {
    match (form.mnemonic(), form.insn.op_count()) {
        (Mnemonic::Mul, _) => accumulator_form!(form, mul),
        (Mnemonic::Div, _) => accumulator_form!(form, div),
        (Mnemonic::Idiv, _) => accumulator_form!(form, idiv),
        (Mnemonic::Imul, 1) => accumulator_form!(form, imul_accumulator),
        (Mnemonic::Imul, 2) => match form.kind(1) {
            Kind::Reg => sized_wide!(form.size(0), imul, Src),
            _ => sized_wide!(form.size(0), imul, Mem),
        },
        (Mnemonic::Imul, 3) => match form.kind(1) {
            Kind::Reg => sized_wide!(form.size(0), imul_immediate, Src),
            _ => sized_wide!(form.size(0), imul_immediate, Mem),
        },
        _ => None,
    }
}

/// MULX: high to `dst`, low to `src`, multiplicand RDX, multiplier the third operand.
fn mulx<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_vex()?;
    let b = if MEMORY {
        Mem::get::<T>(cpu, op)?
    } else {
        T::reg(cpu, op.extra as u8)
    };
    let product = u128::from(T::reg(cpu, gpr::RDX as u8).to_u64()) * u128::from(b.to_u64());
    // With equal destinations the high half is what stays.
    T::set_reg(cpu, op.src, T::from_u64(product as u64));
    T::set_reg(cpu, op.dst, T::from_u64((product >> T::BITS) as u64));
    Ok(())
}

pub fn bind_mulx(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(match (form.size(0), form.kind(2)) {
        (4, Kind::Reg) => mulx::<u32, false>,
        (4, _) => mulx::<u32, true>,
        (_, Kind::Reg) => mulx::<u64, false>,
        _ => mulx::<u64, true>,
    })
}

/// ADCX (`OVERFLOW` false: carry through CF) and ADOX (through OF); no other flag changes.
fn add_with<T: Int, S: Source, const OVERFLOW: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = u128::from(S::get::<T>(cpu, op)?.to_u64());
    let carry = if OVERFLOW {
        cpu.flags.of()
    } else {
        cpu.flags.cf()
    };
    let sum = u128::from(T::reg(cpu, op.dst).to_u64()) + b + u128::from(carry);
    T::set_reg(cpu, op.dst, T::from_u64(sum as u64));
    let out = sum >> T::BITS != 0;
    if OVERFLOW {
        cpu.flags.set_of(out);
    } else {
        cpu.flags.set_cf(out);
    }
    Ok(())
}

pub fn bind_adx(form: &Form, _: &mut Op) -> Option<Handler> {
    let overflow = form.mnemonic() == Mnemonic::Adox;
    Some(match (form.size(0), form.kind(1), overflow) {
        (4, Kind::Reg, false) => add_with::<u32, Src, false>,
        (4, _, false) => add_with::<u32, Mem, false>,
        (4, Kind::Reg, true) => add_with::<u32, Src, true>,
        (4, _, true) => add_with::<u32, Mem, true>,
        (_, Kind::Reg, false) => add_with::<u64, Src, false>,
        (_, _, false) => add_with::<u64, Mem, false>,
        (_, Kind::Reg, true) => add_with::<u64, Src, true>,
        (_, _, true) => add_with::<u64, Mem, true>,
    })
}

/// DAA, DAS, AAA, AAS, AAM, AAD (not in 64-bit mode, where iced refuses them).
fn bcd(cpu: &mut Cpu, op: &Op) -> Flow {
    let ax = cpu.regs[gpr::RAX] as u16;
    let (al, ah) = (ax as u8, (ax >> 8) as u8);
    let (af, cf) = (cpu.flags.af(), cpu.flags.cf());
    let (mut new_al, mut new_ah) = (al, ah);
    let (mut new_af, mut new_cf) = (false, false);
    let low_adjust = al & 15 > 9 || af;
    match op.extra {
        DAA | DAS => {
            let sub = op.extra == DAS;
            let adjust = |v: u8, by: u8| {
                if sub {
                    v.wrapping_sub(by)
                } else {
                    v.wrapping_add(by)
                }
            };
            if low_adjust {
                new_al = adjust(new_al, 6);
                new_af = true;
                new_cf = cf || (if sub { al < 6 } else { al > 0xf9 });
            }
            if al > 0x99 || cf {
                new_al = adjust(new_al, 0x60);
                new_cf = true;
            } else if !sub {
                new_cf = false;
            }
        }
        AAA | AAS => {
            if low_adjust {
                let v = if op.extra == AAA {
                    ax.wrapping_add(0x106)
                } else {
                    ax.wrapping_sub(0x106)
                };
                (new_al, new_ah) = (v as u8, (v >> 8) as u8);
                (new_af, new_cf) = (true, true);
            }
            new_al &= 15;
        }
        AAM => {
            let base = op.imm as u8;
            if base == 0 {
                return cpu.raise(DE);
            }
            (new_ah, new_al) = (al / base, al % base);
        }
        _ => {
            new_al = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
            new_ah = 0;
        }
    }
    u16::set_reg(cpu, 0, u16::from(new_ah) << 8 | u16::from(new_al));
    cpu.flags
        .set_result_cf_of::<u8>(u64::from(new_al), new_cf, false);
    cpu.flags.aux |= if new_af { 8 } else { 0 };
    Ok(())
}

const DAA: u16 = 0;
const DAS: u16 = 1;
const AAA: u16 = 2;
const AAS: u16 = 3;
const AAM: u16 = 4;
const AAD: u16 = 5;

pub fn bind_bcd(form: &Form, op: &mut Op) -> Option<Handler> {
    op.extra = match form.mnemonic() {
        Mnemonic::Daa => DAA,
        Mnemonic::Das => DAS,
        Mnemonic::Aaa => AAA,
        Mnemonic::Aas => AAS,
        Mnemonic::Aam => AAM,
        _ => AAD,
    };
    Some(bcd)
}
