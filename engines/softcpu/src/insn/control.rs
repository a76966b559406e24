//! Near control transfer: Jcc, JMP, CALL, RET, LOOP family, JrCXZ (SDM Vol 2; Vol 1 6.4).
//!
//! A branch's `imm` is its target relative to the block's start; the fall-through is `rip_after`.

use iced_x86::Mnemonic;

use super::data::condition_code;
use super::form::{Form, Kind};
use super::operand::{Dst, Int, Mem, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, RIP, canonical, gpr, sreg};

/// Masks an instruction pointer to the operand size.
#[inline(always)]
fn target<T: Int>(cpu: &Cpu, op: &Op) -> u64 {
    let t = cpu.regs[RIP].wrapping_add(op.imm);
    if T::BITS == 64 {
        t
    } else {
        T::from_u64(t).to_u64()
    }
}

impl Cpu {
    /// Goes to a near target after the checks of its mode: canonical in 64-bit mode, else within CS's limit.
    #[inline(always)]
    pub fn jump_near(&mut self, rip: u64) -> Flow {
        if self.long64 {
            if !canonical(rip) {
                return self.gp0();
            }
        } else if rip > u64::from(self.seg[sreg::CS].limit) {
            return self.gp0();
        }
        self.next_rip = rip;
        Ok(())
    }
}

/// Sequential RIP, truncated outside 64-bit mode.
#[inline(always)]
fn fall_through<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let rip = cpu.rip_after(op);
    cpu.next_rip = if T::BITS == 64 {
        rip
    } else {
        rip & 0xffff_ffff
    };
    Ok(())
}

fn jcc<T: Int, const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.flags.condition(CONDITION) {
        let t = target::<T>(cpu, op);
        cpu.jump_near(t)
    } else {
        fall_through::<T>(cpu, op)
    }
}

macro_rules! by_condition {
    ($t:ty, $c:expr) => {
        match $c {
            0 => jcc::<$t, 0>,
            1 => jcc::<$t, 1>,
            2 => jcc::<$t, 2>,
            3 => jcc::<$t, 3>,
            4 => jcc::<$t, 4>,
            5 => jcc::<$t, 5>,
            6 => jcc::<$t, 6>,
            7 => jcc::<$t, 7>,
            8 => jcc::<$t, 8>,
            9 => jcc::<$t, 9>,
            10 => jcc::<$t, 10>,
            11 => jcc::<$t, 11>,
            12 => jcc::<$t, 12>,
            13 => jcc::<$t, 13>,
            14 => jcc::<$t, 14>,
            _ => jcc::<$t, 15>,
        }
    };
}

/// Operand size of a near branch: 8, 4 or 2 bytes.
fn branch_size(form: &Form) -> u8 {
    match form.insn.op_kind(0) {
        iced_x86::OpKind::NearBranch64 => 8,
        iced_x86::OpKind::NearBranch32 => 4,
        iced_x86::OpKind::NearBranch16 => 2,
        _ => form.size(0) as u8,
    }
}

pub fn bind_jcc(form: &Form, _: &mut Op) -> Option<Handler> {
    let c = condition_code(form.insn.condition_code());
    Some(match branch_size(form) {
        8 => by_condition!(u64, c),
        4 => by_condition!(u32, c),
        _ => by_condition!(u16, c),
    })
}

fn jmp<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let t = target::<T>(cpu, op);
    cpu.jump_near(t)
}

fn jmp_indirect<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let t = S::get::<T>(cpu, op)?.to_u64();
    cpu.jump_near(t)
}

pub fn bind_jmp(form: &Form, op: &mut Op) -> Option<Handler> {
    if form.insn.is_jmp_far() || form.insn.is_jmp_far_indirect() {
        return super::far::bind_far(form, op);
    }
    Some(match (form.kind(0), branch_size(form)) {
        (Kind::Reg, 8) => jmp_indirect::<u64, Dst>,
        (Kind::Reg, 4) => jmp_indirect::<u32, Dst>,
        (Kind::Reg, _) => jmp_indirect::<u16, Dst>,
        (Kind::Mem, 8) => jmp_indirect::<u64, Mem>,
        (Kind::Mem, 4) => jmp_indirect::<u32, Mem>,
        (Kind::Mem, _) => jmp_indirect::<u16, Mem>,
        (_, 8) => jmp::<u64>,
        (_, 4) => jmp::<u32>,
        _ => jmp::<u16>,
    })
}

fn call<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let t = target::<T>(cpu, op);
    cpu.jump_near(t)?;
    let back = cpu.rip_after(op);
    cpu.push(T::from_u64(back))
}

fn call_indirect<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let t = S::get::<T>(cpu, op)?.to_u64();
    cpu.jump_near(t)?;
    let back = cpu.rip_after(op);
    cpu.push(T::from_u64(back))
}

pub fn bind_call(form: &Form, op: &mut Op) -> Option<Handler> {
    if form.insn.is_call_far() || form.insn.is_call_far_indirect() {
        return super::far::bind_far(form, op);
    }
    Some(match (form.kind(0), branch_size(form)) {
        (Kind::Reg, 8) => call_indirect::<u64, Dst>,
        (Kind::Reg, 4) => call_indirect::<u32, Dst>,
        (Kind::Reg, _) => call_indirect::<u16, Dst>,
        (Kind::Mem, 8) => call_indirect::<u64, Mem>,
        (Kind::Mem, 4) => call_indirect::<u32, Mem>,
        (Kind::Mem, _) => call_indirect::<u16, Mem>,
        (_, size) => {
            op.seg = sreg::SS as u8;
            match size {
                8 => call::<u64>,
                4 => call::<u32>,
                _ => call::<u16>,
            }
        }
    })
}

/// RET, with the bytes to release in `imm` (zero for the plain form).
fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let rip = cpu.peek::<T>(0)?.to_u64();
    cpu.jump_near(rip)?;
    cpu.release_stack(T::SIZE + op.imm);
    Ok(())
}

pub fn bind_ret(form: &Form, op: &mut Op) -> Option<Handler> {
    use iced_x86::Code as C;
    op.seg = sreg::SS as u8;
    op.imm &= 0xffff;
    Some(match form.insn.code() {
        C::Retnq | C::Retnq_imm16 => ret::<u64>,
        C::Retnd | C::Retnd_imm16 => ret::<u32>,
        _ => ret::<u16>,
    })
}

const LOOP: u8 = 0;
const LOOPE: u8 = 1;
const LOOPNE: u8 = 2;
const JRCXZ: u8 = 3;

/// LOOP family: counter width `A` by address size, target width `T`.
fn counted<T: Int, A: Int, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = A::reg(cpu, gpr::RCX as u8).to_u64();
    let left = if KIND == JRCXZ {
        count
    } else {
        A::from_u64(count.wrapping_sub(1)).to_u64()
    };
    let taken = match KIND {
        LOOP => left != 0,
        LOOPE => left != 0 && cpu.flags.zf(),
        LOOPNE => left != 0 && !cpu.flags.zf(),
        _ => left == 0,
    };
    if taken {
        let t = target::<T>(cpu, op);
        cpu.jump_near(t)?;
    } else {
        fall_through::<T>(cpu, op)?;
    }
    if KIND != JRCXZ {
        A::set_reg(cpu, gpr::RCX as u8, A::from_u64(left));
    }
    Ok(())
}

macro_rules! counted_form {
    ($t:expr, $a:expr, $k:ident) => {
        match ($t, $a) {
            (8, 8) => counted::<u64, u64, $k> as Handler,
            (8, _) => counted::<u64, u32, $k>,
            (4, 4) => counted::<u32, u32, $k>,
            (4, _) => counted::<u32, u16, $k>,
            // AMD: an operand-size prefix in 64-bit mode.
            (_, 8) => counted::<u16, u64, $k>,
            (_, 4) => counted::<u16, u32, $k>,
            _ => counted::<u16, u16, $k>,
        }
    };
}

pub fn bind_loop(form: &Form, _: &mut Op) -> Option<Handler> {
    let t = branch_size(form);
    let code = format!("{:?}", form.insn.code());
    // iced names the counter in the code: Loop_rel8_64_RCX, Jecxz_rel8_32.
    let a = if code.ends_with("_RCX") || code.starts_with("Jrcxz") {
        8
    } else if code.ends_with("_ECX") || code.starts_with("Jecxz") {
        4
    } else {
        2
    };
    Some(match form.mnemonic() {
        Mnemonic::Loop => counted_form!(t, a, LOOP),
        Mnemonic::Loope => counted_form!(t, a, LOOPE),
        Mnemonic::Loopne => counted_form!(t, a, LOOPNE),
        _ => counted_form!(t, a, JRCXZ),
    })
}
