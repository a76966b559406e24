//! ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST, INC, DEC, NEG, NOT (SDM Vol 2).

use super::form::{Form, Kind};
use super::operand::{Dst, Imm, Int, Locked, Mem, Place, Source, Src, sized};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow};

/// A two-operand operation with its flags.
trait Alu {
    /// Computes and sets the flags.
    fn apply<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T;
}

macro_rules! alu {
    ($name:ident, |$cpu:ident, $a:ident, $b:ident| $body:expr) => {
        struct $name;
        impl Alu for $name {
            #[inline(always)]
            fn apply<T: Int>($cpu: &mut Cpu, a: T, b: T) -> T {
                let ($a, $b) = (a.to_u64(), b.to_u64());
                T::from_u64($body)
            }
        }
    };
}

alu!(Add, |cpu, a, b| {
    let r = a.wrapping_add(b);
    cpu.flags.after_add::<T>(a, b, r);
    r
});
alu!(Adc, |cpu, a, b| {
    let r = a.wrapping_add(b).wrapping_add(u64::from(cpu.flags.cf()));
    cpu.flags.after_add::<T>(a, b, r);
    r
});
alu!(Sub, |cpu, a, b| {
    let r = a.wrapping_sub(b);
    cpu.flags.after_sub::<T>(a, b, r);
    r
});
alu!(Sbb, |cpu, a, b| {
    let r = a.wrapping_sub(b).wrapping_sub(u64::from(cpu.flags.cf()));
    cpu.flags.after_sub::<T>(a, b, r);
    r
});
alu!(And, |cpu, a, b| {
    let r = a & b;
    cpu.flags.after_logic::<T>(r);
    r
});
alu!(Or, |cpu, a, b| {
    let r = a | b;
    cpu.flags.after_logic::<T>(r);
    r
});
alu!(Xor, |cpu, a, b| {
    let r = a ^ b;
    cpu.flags.after_logic::<T>(r);
    r
});

fn update<T: Int, O: Alu, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = S::get::<T>(cpu, op)?;
    D::modify::<T>(cpu, op, |cpu, a| O::apply(cpu, a, b))
}

fn compare<T: Int, O: Alu, D: Source, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let a = D::get::<T>(cpu, op)?;
    let b = S::get::<T>(cpu, op)?;
    O::apply(cpu, a, b);
    Ok(())
}

fn inc<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Flow {
    D::modify::<T>(cpu, op, |cpu, a| {
        let (cf, a) = (cpu.flags.cf(), a.to_u64());
        let r = a.wrapping_add(1);
        cpu.flags.after_add::<T>(a, 1, r);
        cpu.flags.set_cf(cf);
        T::from_u64(r)
    })
}

fn dec<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Flow {
    D::modify::<T>(cpu, op, |cpu, a| {
        let (cf, a) = (cpu.flags.cf(), a.to_u64());
        let r = a.wrapping_sub(1);
        cpu.flags.after_sub::<T>(a, 1, r);
        cpu.flags.set_cf(cf);
        T::from_u64(r)
    })
}

fn neg<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Flow {
    D::modify::<T>(cpu, op, |cpu, a| {
        let b = a.to_u64();
        let r = 0u64.wrapping_sub(b);
        cpu.flags.after_sub::<T>(0, b, r);
        T::from_u64(r)
    })
}

fn not<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Flow {
    D::modify::<T>(cpu, op, |_, a| T::from_u64(!a.to_u64()))
}

/// XOR or SUB of a register with itself, which Linux is full of.
fn clear<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    T::set_reg(cpu, op.dst, T::from_u64(0));
    cpu.flags.after_logic::<T>(0);
    Ok(())
}

macro_rules! binary {
    ($form:expr, $f:ident, $o:ty) => {
        match $form.kinds() {
            (Kind::Reg, Kind::Reg) => sized!($form.size(0), $f, $o, Dst, Src),
            (Kind::Reg, Kind::Mem) => sized!($form.size(0), $f, $o, Dst, Mem),
            (Kind::Reg, Kind::Imm) => sized!($form.size(0), $f, $o, Dst, Imm),
            (Kind::Mem, Kind::Reg) if $form.locked() => {
                sized!($form.size(0), $f, $o, Locked, Src)
            }
            (Kind::Mem, Kind::Imm) if $form.locked() => {
                sized!($form.size(0), $f, $o, Locked, Imm)
            }
            (Kind::Mem, Kind::Reg) => sized!($form.size(0), $f, $o, Mem, Src),
            (Kind::Mem, Kind::Imm) => sized!($form.size(0), $f, $o, Mem, Imm),
            _ => None,
        }
    };
}

macro_rules! unary {
    ($form:expr, $f:ident) => {
        match $form.kind(0) {
            Kind::Reg => sized!($form.size(0), $f, Dst),
            Kind::Mem if $form.locked() => sized!($form.size(0), $f, Locked),
            Kind::Mem => sized!($form.size(0), $f, Mem),
            _ => None,
        }
    };
}

pub fn bind_add(form: &Form, _: &mut Op) -> Option<Handler> {
    binary!(form, update, Add)
}
pub fn bind_adc(form: &Form, _: &mut Op) -> Option<Handler> {
    binary!(form, update, Adc)
}
pub fn bind_sub(form: &Form, op: &mut Op) -> Option<Handler> {
    if form.kinds() == (Kind::Reg, Kind::Reg) && op.dst == op.src && form.size(0) >= 4 {
        return sized!(form.size(0), clear);
    }
    binary!(form, update, Sub)
}
pub fn bind_sbb(form: &Form, _: &mut Op) -> Option<Handler> {
    binary!(form, update, Sbb)
}
pub fn bind_and(form: &Form, _: &mut Op) -> Option<Handler> {
    binary!(form, update, And)
}
pub fn bind_or(form: &Form, _: &mut Op) -> Option<Handler> {
    binary!(form, update, Or)
}
pub fn bind_xor(form: &Form, op: &mut Op) -> Option<Handler> {
    if form.kinds() == (Kind::Reg, Kind::Reg) && op.dst == op.src && form.size(0) >= 4 {
        return sized!(form.size(0), clear);
    }
    binary!(form, update, Xor)
}
pub fn bind_cmp(form: &Form, _: &mut Op) -> Option<Handler> {
    binary!(form, compare, Sub)
}
pub fn bind_test(form: &Form, _: &mut Op) -> Option<Handler> {
    binary!(form, compare, And)
}
pub fn bind_inc(form: &Form, _: &mut Op) -> Option<Handler> {
    unary!(form, inc)
}
pub fn bind_dec(form: &Form, _: &mut Op) -> Option<Handler> {
    unary!(form, dec)
}
pub fn bind_neg(form: &Form, _: &mut Op) -> Option<Handler> {
    unary!(form, neg)
}
pub fn bind_not(form: &Form, _: &mut Op) -> Option<Handler> {
    unary!(form, not)
}
