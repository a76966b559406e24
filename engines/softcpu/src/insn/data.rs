//! Data movement: MOV (general), MOVZX, MOVSX, MOVSXD, LEA, XCHG, XADD, CMPXCHG, CMPXCHG8B/16B, BSWAP, MOVBE,
//! CMOVcc, SETcc, MOVNTI, XLATB, CBW family (SDM Vol 2).

use iced_x86::{Mnemonic, OpKind};

use super::form::{Form, Kind};
use super::operand::{Dst, Imm, Int, Locked, Mem, Place, Source, Src, sized, sized_wide};
use crate::code::{Ea, Handler, Op};
use crate::cpu::{Cpu, Flow, gpr};

fn mov<T: Int, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<T>(cpu, op)?;
    D::set(cpu, op, v)
}

/// MOV between the accumulator and a 64-bit absolute address, which stands in `imm`.
fn mov_from_absolute<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let base = if op.ea == Ea::Based {
        cpu.ea_base[(op.seg & 7) as usize]
    } else {
        0
    };
    let v: T = cpu.read_linear(op.imm.wrapping_add(base))?;
    T::set_reg(cpu, 0, v);
    Ok(())
}

fn mov_to_absolute<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let base = if op.ea == Ea::Based {
        cpu.ea_base[(op.seg & 7) as usize]
    } else {
        0
    };
    let v = T::reg(cpu, 0);
    cpu.write_linear(op.imm.wrapping_add(base), v)
}

pub fn bind_mov(form: &Form, op: &mut Op) -> Option<Handler> {
    let absolute = form.long64()
        && (0..2).any(|i| form.insn.op_kind(i) == OpKind::Memory)
        && form.insn.memory_displ_size() == 8
        && i32::try_from(form.insn.memory_displacement64() as i64).is_err()
        && op.base == crate::cpu::ZERO as u8
        && op.index == crate::cpu::ZERO as u8;
    match form.kinds() {
        (Kind::Reg, Kind::Mem) if absolute => sized!(form.size(0), mov_from_absolute),
        (Kind::Mem, Kind::Reg) if absolute => sized!(form.size(0), mov_to_absolute),
        (Kind::Reg, Kind::Reg) => sized!(form.size(0), mov, Dst, Src),
        (Kind::Reg, Kind::Mem) => sized!(form.size(0), mov, Dst, Mem),
        (Kind::Reg, Kind::Imm) => sized!(form.size(0), mov, Dst, Imm),
        (Kind::Mem, Kind::Reg) => sized!(form.size(0), mov, Mem, Src),
        (Kind::Mem, Kind::Imm) => sized!(form.size(0), mov, Mem, Imm),
        _ => super::segment::bind_mov_special(form, op),
    }
}

pub fn bind_movnti(form: &Form, _: &mut Op) -> Option<Handler> {
    sized!(form.size(0), mov, Mem, Src)
}

fn movzx<T: Int, F: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<F>(cpu, op)?.to_u64();
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

fn movsx<T: Int, F: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = crate::flags::sign_extend::<F>(S::get::<F>(cpu, op)?.to_u64());
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

pub fn bind_movx(form: &Form, _: &mut Op) -> Option<Handler> {
    let signed = form.mnemonic() != Mnemonic::Movzx;
    let (to, memory) = (form.size(0), form.kind(1) == Kind::Mem);
    match (signed, form.size(1), memory) {
        (false, 1, false) => sized!(to, movzx, u8, Src),
        (false, 1, true) => sized!(to, movzx, u8, Mem),
        (false, 2, false) => sized!(to, movzx, u16, Src),
        (false, 2, true) => sized!(to, movzx, u16, Mem),
        (true, 1, false) => sized!(to, movsx, u8, Src),
        (true, 1, true) => sized!(to, movsx, u8, Mem),
        (true, 2, false) => sized!(to, movsx, u16, Src),
        (true, 2, true) => sized!(to, movsx, u16, Mem),
        (true, 4, false) => sized!(to, movsx, u32, Src),
        (true, 4, true) => sized!(to, movsx, u32, Mem),
        _ => None,
    }
}

fn lea<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let a = cpu.effective_address(op);
    T::set_reg(cpu, op.dst, T::from_u64(a));
    Ok(())
}

pub fn bind_lea(form: &Form, _: &mut Op) -> Option<Handler> {
    sized!(form.size(0), lea)
}

fn xchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (T::reg(cpu, op.dst), T::reg(cpu, op.src));
    T::set_reg(cpu, op.dst, b);
    T::set_reg(cpu, op.src, a);
    Ok(())
}

/// XCHG with memory, locked with or without the prefix (SDM Vol 3 9.1.2.1); the register is `src`.
fn xchg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut old = T::from_u64(0);
    let new = T::reg(cpu, op.src);
    Locked::modify::<T>(cpu, op, |_, m| {
        old = m;
        new
    })?;
    T::set_reg(cpu, op.src, old);
    Ok(())
}

pub fn bind_xchg(form: &Form, op: &mut Op) -> Option<Handler> {
    match form.kinds() {
        (Kind::Reg, Kind::Reg) => sized!(form.size(0), xchg_reg),
        (Kind::Mem, Kind::Reg) => sized!(form.size(1), xchg_mem),
        (Kind::Reg, Kind::Mem) => {
            op.src = op.dst;
            sized!(form.size(0), xchg_mem)
        }
        _ => None,
    }
}

fn xadd<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = T::reg(cpu, op.src);
    let mut old = T::from_u64(0);
    // The register gets the old value first, the destination the sum (they may be the same register).
    let mut sum = b;
    D::modify::<T>(cpu, op, |cpu, a| {
        old = a;
        let (x, y) = (a.to_u64(), b.to_u64());
        let r = x.wrapping_add(y);
        cpu.flags.after_add::<T>(x, y, r);
        sum = T::from_u64(r);
        sum
    })?;
    T::set_reg(cpu, op.src, old);
    if op.extra == SAME_REGISTER {
        T::set_reg(cpu, op.dst, sum);
    }
    Ok(())
}

const SAME_REGISTER: u16 = 1;

pub fn bind_xadd(form: &Form, op: &mut Op) -> Option<Handler> {
    match form.kind(0) {
        Kind::Reg => {
            op.extra = if op.dst == op.src { SAME_REGISTER } else { 0 };
            sized!(form.size(0), xadd, Dst)
        }
        Kind::Mem if form.locked() => sized!(form.size(0), xadd, Locked),
        Kind::Mem => sized!(form.size(0), xadd, Mem),
        _ => None,
    }
}

fn cmpxchg<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Flow {
    let expected = T::reg(cpu, 0);
    let new = T::reg(cpu, op.src);
    let mut found = expected;
    // The destination is written in any case (SDM Vol 2, CMPXCHG).
    D::modify::<T>(cpu, op, |cpu, m| {
        found = m;
        let (a, b) = (expected.to_u64(), m.to_u64());
        cpu.flags.after_sub::<T>(a, b, a.wrapping_sub(b));
        if a == b { new } else { m }
    })?;
    if found.to_u64() != expected.to_u64() {
        T::set_reg(cpu, 0, found);
    }
    Ok(())
}

/// With a 32-bit register destination that does not match, hardware leaves its upper half alone.
fn cmpxchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (expected, found, new) = (T::reg(cpu, 0), T::reg(cpu, op.dst), T::reg(cpu, op.src));
    let (a, b) = (expected.to_u64(), found.to_u64());
    cpu.flags.after_sub::<T>(a, b, a.wrapping_sub(b));
    if a == b {
        T::set_reg(cpu, op.dst, new);
    } else {
        T::set_reg(cpu, 0, found);
    }
    Ok(())
}

pub fn bind_cmpxchg(form: &Form, _: &mut Op) -> Option<Handler> {
    match form.kind(0) {
        Kind::Reg => sized!(form.size(0), cmpxchg_reg),
        Kind::Mem if form.locked() => sized!(form.size(0), cmpxchg, Locked),
        Kind::Mem => sized!(form.size(0), cmpxchg, Mem),
        _ => None,
    }
}

/// CMPXCHG8B; atomic with or without the prefix, which costs nothing.
fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Flow {
    let join =
        |cpu: &Cpu, high: usize, low: usize| cpu.regs[high] << 32 | cpu.regs[low] & 0xffff_ffff;
    let expected = join(cpu, gpr::RDX, gpr::RAX);
    let new = join(cpu, gpr::RCX, gpr::RBX);
    let mut found = expected;
    let va = cpu.linear(op, 8, true)?;
    // The destination is written in any case (SDM Vol 2, CMPXCHG8B).
    cpu.lock_linear::<u64>(va, |_, m| {
        found = m;
        if m == expected { new } else { m }
    })?;
    cpu.flags.set_zf(found == expected);
    if found != expected {
        u32::set_reg(cpu, gpr::RAX as u8, found as u32);
        u32::set_reg(cpu, gpr::RDX as u8, (found >> 32) as u32);
    }
    Ok(())
}

/// CMPXCHG16B.
fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Flow {
    let join = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.regs[high]) << 64 | u128::from(cpu.regs[low])
    };
    let expected = join(cpu, gpr::RDX, gpr::RAX);
    let new = join(cpu, gpr::RCX, gpr::RBX);
    let va = cpu.linear(op, 16, true)?;
    if va & 15 != 0 {
        return cpu.gp0();
    }
    let found = cpu.lock_pair(va, expected, new)?;
    cpu.flags.set_zf(found == expected);
    if found != expected {
        cpu.regs[gpr::RAX] = found as u64;
        cpu.regs[gpr::RDX] = (found >> 64) as u64;
    }
    Ok(())
}

pub fn bind_cmpxchg_pair(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(if form.mnemonic() == Mnemonic::Cmpxchg16b {
        cmpxchg16b
    } else {
        cmpxchg8b
    })
}

fn bswap<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = T::reg(cpu, op.dst).to_u64().swap_bytes() >> (64 - T::BITS);
    // The 16-bit form is undefined; zero is what processors give.
    let v = if T::BITS == 16 { 0 } else { v };
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

pub fn bind_bswap(form: &Form, _: &mut Op) -> Option<Handler> {
    sized_wide!(form.size(0), bswap)
}

fn movbe_load<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = Mem::get::<T>(cpu, op)?.to_u64().swap_bytes() >> (64 - T::BITS);
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

fn movbe_store<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = T::reg(cpu, op.src).to_u64().swap_bytes() >> (64 - T::BITS);
    Mem::set(cpu, op, T::from_u64(v))
}

pub fn bind_movbe(form: &Form, _: &mut Op) -> Option<Handler> {
    match form.kind(0) {
        Kind::Reg => sized_wide!(form.size(0), movbe_load),
        _ => sized_wide!(form.size(1), movbe_store),
    }
}

/// CMOVcc; the condition's code is in `extra`. The source is read in any case, and a 32-bit destination is
/// zero-extended in any case.
fn cmov<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<T>(cpu, op)?;
    let v = if cpu.flags.condition(op.extra as u8) {
        v
    } else {
        T::reg(cpu, op.dst)
    };
    T::set_reg(cpu, op.dst, v);
    Ok(())
}

pub fn bind_cmov(form: &Form, op: &mut Op) -> Option<Handler> {
    op.extra = u16::from(condition_code(form.insn.condition_code()));
    match form.kind(1) {
        Kind::Reg => sized_wide!(form.size(0), cmov, Src),
        _ => sized_wide!(form.size(0), cmov, Mem),
    }
}

fn setcc<D: Place>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = u8::from(cpu.flags.condition(op.extra as u8));
    D::set::<u8>(cpu, op, v)
}

pub fn bind_setcc(form: &Form, op: &mut Op) -> Option<Handler> {
    op.extra = u16::from(condition_code(form.insn.condition_code()));
    Some(if form.kind(0) == Kind::Reg {
        setcc::<Dst>
    } else {
        setcc::<Mem>
    })
}

/// The 4-bit encoding of a condition (SDM Vol 2 Table B-10).
pub fn condition_code(c: iced_x86::ConditionCode) -> u8 {
    use iced_x86::ConditionCode as C;
    match c {
        C::None | C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}

/// CBW, CWDE, CDQE: sign-extends the lower half of the accumulator.
fn extend_accumulator<T: Int, F: Int>(cpu: &mut Cpu, _: &Op) -> Flow {
    let v = crate::flags::sign_extend::<F>(F::reg(cpu, 0).to_u64());
    T::set_reg(cpu, 0, T::from_u64(v));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign into the data register.
fn sign_to_data<T: Int>(cpu: &mut Cpu, _: &Op) -> Flow {
    let negative = (crate::flags::sign_extend::<T>(T::reg(cpu, 0).to_u64()) as i64) < 0;
    T::set_reg(
        cpu,
        gpr::RDX as u8,
        T::from_u64(if negative { u64::MAX } else { 0 }),
    );
    Ok(())
}

pub fn bind_extend(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(match form.mnemonic() {
        Mnemonic::Cbw => extend_accumulator::<u16, u8>,
        Mnemonic::Cwde => extend_accumulator::<u32, u16>,
        Mnemonic::Cdqe => extend_accumulator::<u64, u32>,
        Mnemonic::Cwd => sign_to_data::<u16>,
        Mnemonic::Cdq => sign_to_data::<u32>,
        _ => sign_to_data::<u64>,
    })
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Flow {
    let va = cpu.linear(op, 1, false)?;
    let v: u8 = cpu.read_linear(va)?;
    u8::set_reg(cpu, 0, v);
    Ok(())
}

pub fn bind_xlat(form: &Form, op: &mut Op) -> Option<Handler> {
    // iced gives [rBX+AL] as the memory operand; AL has no slot of its own, so add it here.
    fn with_al(cpu: &mut Cpu, op: &Op) -> Flow {
        let mut moved = *op;
        moved.index = crate::cpu::ZERO as u8;
        moved.disp = i32::from(cpu.regs[gpr::RAX] as u8);
        xlat(cpu, &moved)
    }
    op.scale = 0;
    let _ = form;
    Some(with_al)
}
