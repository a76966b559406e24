//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with their REP prefixes (SDM Vol 2; Vol 1
//! 7.3.9).
//!
//! Repeats run in bulk where the strings lie in RAM pages that hit the TLB (`bulk`), else element by element. Either
//! way an iteration that faults leaves the registers at that iteration, and long repeats give way to events
//! ([`Trap::Restart`]).

mod bulk;

use iced_x86::Mnemonic;

use super::form::Form;
use super::operand::{Int, sized};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap, gpr, sreg};
use crate::vmx::{Intercept, IoAccess};

/// Bits of [`Op::extra`].
mod form_bits {
    pub const REP: u16 = 1;
    /// REPNE instead of REPE, for SCAS and CMPS.
    pub const WHILE_NOT_EQUAL: u16 = 2;
    pub const ADDRESS_SHIFT: u16 = 4;
}

/// Most elements done one by one before events are looked at.
const SLICE: u64 = 4096;

impl Op {
    fn address_bytes(&self) -> u64 {
        u64::from(self.extra >> form_bits::ADDRESS_SHIFT)
    }
    fn repeats(&self) -> bool {
        self.extra & form_bits::REP != 0
    }
}

#[inline(always)]
fn address_mask(op: &Op) -> u64 {
    u64::MAX >> (64 - 8 * op.address_bytes())
}

#[inline(always)]
fn get(cpu: &Cpu, op: &Op, r: usize) -> u64 {
    cpu.regs[r] & address_mask(op)
}

/// Writes an address-size register by the rules of its width.
#[inline(always)]
fn put(cpu: &mut Cpu, op: &Op, r: usize, value: u64) {
    match op.address_bytes() {
        8 => cpu.regs[r] = value,
        4 => cpu.regs[r] = value & 0xffff_ffff,
        _ => cpu.regs[r] = (cpu.regs[r] & !0xffff) | (value & 0xffff),
    }
}

#[inline(always)]
fn step<T: Int>(cpu: &Cpu) -> u64 {
    if cpu.rflags_rest & x86defs::rflags::DF != 0 {
        T::SIZE.wrapping_neg()
    } else {
        T::SIZE
    }
}

#[inline(always)]
fn advance<T: Int>(cpu: &mut Cpu, op: &Op, r: usize) {
    let v = get(cpu, op, r).wrapping_add(step::<T>(cpu));
    put(cpu, op, r, v);
}

fn source(cpu: &mut Cpu, op: &Op, size: u64) -> Result<u64, Trap> {
    let at = get(cpu, op, gpr::RSI);
    cpu.linear_in(usize::from(op.seg), at, size, false)
}

fn destination(cpu: &mut Cpu, op: &Op, size: u64, write: bool) -> Result<u64, Trap> {
    let at = get(cpu, op, gpr::RDI);
    if cpu.long64 {
        Ok(at)
    } else {
        cpu.segmented(sreg::ES, at, size, write)
    }
}

/// Runs `one` once, or as often as the count says; `one` returns whether to go on (REPE, REPNE).
fn repeat(cpu: &mut Cpu, op: &Op, one: impl FnMut(&mut Cpu) -> Result<bool, Trap>) -> Flow {
    repeat_in_bulk(cpu, op, |_, _| None, one)
}

/// The same with `bulk`, which does some of at most so many iterations at once, if it can: it gives how many it has done,
/// and whether to go on.
fn repeat_in_bulk(
    cpu: &mut Cpu,
    op: &Op,
    bulk: impl Fn(&mut Cpu, u64) -> Option<(u64, bool)>,
    mut one: impl FnMut(&mut Cpu) -> Result<bool, Trap>,
) -> Flow {
    if !op.repeats() {
        one(cpu)?;
        return Ok(());
    }
    let mut left = SLICE;
    while left > 0 {
        let count = get(cpu, op, gpr::RCX);
        if count == 0 {
            return Ok(());
        }
        if let Some((done, go_on)) = bulk(cpu, left.min(count)) {
            left -= done;
            if !go_on {
                return Ok(());
            }
            continue;
        }
        left -= 1;
        let go_on = one(cpu)?;
        put(cpu, op, gpr::RCX, count - 1);
        if !go_on {
            return Ok(());
        }
        if cpu.pending & crate::cpu::pending::STEP != 0 && count > 1 {
            return stepped(cpu);
        }
    }
    slice_done(cpu, op)
}

/// An iteration by itself, as single-stepping and breakpoints want it: it takes the time of an instruction (SDM Vol 3
/// 18.3.1.4). With none, a long REP would hold up the clock, and with it every timer.
fn stepped(cpu: &mut Cpu) -> Flow {
    cpu.charge(1);
    Err(Trap::Restart)
}

/// The end of a slice of iterations. They took time, or a long REP would stop it: as much as bulk copying takes.
fn slice_done(cpu: &mut Cpu, op: &Op) -> Flow {
    if get(cpu, op, gpr::RCX) == 0 {
        return Ok(());
    }
    cpu.charge(SLICE >> 3);
    Err(Trap::Restart)
}

fn one_movs<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let from = source(cpu, op, T::SIZE)?;
    let v: T = cpu.read_linear(from)?;
    let to = destination(cpu, op, T::SIZE, true)?;
    cpu.write_linear(to, v)?;
    advance::<T>(cpu, op, gpr::RSI);
    advance::<T>(cpu, op, gpr::RDI);
    Ok(())
}

fn one_stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let to = destination(cpu, op, T::SIZE, true)?;
    let v = T::reg(cpu, 0);
    cpu.write_linear(to, v)?;
    advance::<T>(cpu, op, gpr::RDI);
    Ok(())
}

/// Repeats with a bulk routine for what hits the TLB and a single step for what does not.
fn bulk_or_single(
    cpu: &mut Cpu,
    op: &Op,
    bulk: impl Fn(&mut Cpu, &Op) -> bool,
    one: impl Fn(&mut Cpu, &Op) -> Flow,
) -> Flow {
    if !op.repeats() {
        return one(cpu, op);
    }
    for _ in 0..SLICE {
        let count = get(cpu, op, gpr::RCX);
        if count == 0 {
            return Ok(());
        }
        if !bulk(cpu, op) {
            one(cpu, op)?;
            put(cpu, op, gpr::RCX, count - 1);
            if cpu.pending & crate::cpu::pending::STEP != 0 && count > 1 {
                return stepped(cpu);
            }
        }
        // An instruction's time for eight elements, by the count alone: what the TLB holds must not matter, or virtual
        // time would depend on how code is executed.
        let left = get(cpu, op, gpr::RCX);
        cpu.charge((count >> 3) - (left >> 3));
        if cpu.budget <= 0 && left != 0 {
            return Err(Trap::Restart);
        }
    }
    match get(cpu, op, gpr::RCX) {
        0 => Ok(()),
        _ => Err(Trap::Restart),
    }
}

fn rep_movs<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    bulk_or_single(cpu, op, bulk::movs::<T>, one_movs::<T>)
}

fn rep_stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    bulk_or_single(cpu, op, bulk::stos::<T>, one_stos::<T>)
}

fn lods<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    repeat(cpu, op, |cpu| {
        let from = source(cpu, op, T::SIZE)?;
        let v: T = cpu.read_linear(from)?;
        T::set_reg(cpu, 0, v);
        advance::<T>(cpu, op, gpr::RSI);
        Ok(true)
    })
}

fn go_on(cpu: &Cpu, op: &Op) -> bool {
    cpu.flags.zf() != (op.extra & form_bits::WHILE_NOT_EQUAL != 0)
}

fn scas<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let bulk = |cpu: &mut Cpu, most| bulk::scas::<T>(cpu, op, most);
    repeat_in_bulk(cpu, op, bulk, |cpu| {
        let at = destination(cpu, op, T::SIZE, false)?;
        let b = cpu.read_linear::<T>(at)?.to_u64();
        let a = T::reg(cpu, 0).to_u64();
        cpu.flags.after_sub::<T>(a, b, a.wrapping_sub(b));
        advance::<T>(cpu, op, gpr::RDI);
        Ok(go_on(cpu, op))
    })
}

fn cmps<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let bulk = |cpu: &mut Cpu, most| bulk::cmps::<T>(cpu, op, most);
    repeat_in_bulk(cpu, op, bulk, |cpu| {
        let from = source(cpu, op, T::SIZE)?;
        let a = cpu.read_linear::<T>(from)?.to_u64();
        let at = destination(cpu, op, T::SIZE, false)?;
        let b = cpu.read_linear::<T>(at)?.to_u64();
        cpu.flags.after_sub::<T>(a, b, a.wrapping_sub(b));
        advance::<T>(cpu, op, gpr::RSI);
        advance::<T>(cpu, op, gpr::RDI);
        Ok(go_on(cpu, op))
    })
}

fn io_access<T: Int>(cpu: &Cpu, op: &Op, input: bool, linear: u64) -> IoAccess {
    IoAccess {
        port: cpu.regs[gpr::RDX] as u16,
        size_bytes: T::SIZE as u8,
        input,
        string: true,
        rep: op.repeats(),
        immediate: false,
        linear,
    }
}

fn ins<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    repeat(cpu, op, |cpu| {
        let port = cpu.regs[gpr::RDX] as u16;
        cpu.check_io_permission(port, T::SIZE as u8)?;
        let at = destination(cpu, op, T::SIZE, true)?;
        cpu.intercept(Intercept::Io(io_access::<T>(cpu, op, true, at)))?;
        // The store must not fault after the device has been read.
        if cpu.tlb.write_hit(at, T::SIZE).is_none() {
            cpu.probe_write(at, T::SIZE)?;
        }
        cpu.watch_io(port, T::SIZE as u8);
        let retired = cpu.retired_now();
        let v = cpu.platform.pio_read(port, T::SIZE as u8, retired);
        cpu.write_linear(at, T::from_u64(u64::from(v)))?;
        advance::<T>(cpu, op, gpr::RDI);
        Ok(true)
    })
}

fn outs<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    repeat(cpu, op, |cpu| {
        let port = cpu.regs[gpr::RDX] as u16;
        cpu.check_io_permission(port, T::SIZE as u8)?;
        let from = source(cpu, op, T::SIZE)?;
        cpu.intercept(Intercept::Io(io_access::<T>(cpu, op, false, from)))?;
        let v = cpu.read_linear::<T>(from)?.to_u64();
        cpu.watch_io(port, T::SIZE as u8);
        let retired = cpu.retired_now();
        cpu.platform
            .pio_write(port, T::SIZE as u8, v as u32, retired);
        cpu.follow_remap();
        advance::<T>(cpu, op, gpr::RSI);
        Ok(true)
    })
}

fn element_bytes(m: Mnemonic) -> usize {
    use Mnemonic as M;
    match m {
        M::Movsb | M::Stosb | M::Lodsb | M::Scasb | M::Cmpsb | M::Insb | M::Outsb => 1,
        M::Movsw | M::Stosw | M::Lodsw | M::Scasw | M::Cmpsw | M::Insw | M::Outsw => 2,
        M::Movsq | M::Stosq | M::Lodsq | M::Scasq | M::Cmpsq => 8,
        _ => 4,
    }
}

fn address_bytes(form: &Form) -> u16 {
    use iced_x86::OpKind as K;
    for i in 0..form.insn.op_count() {
        match form.insn.op_kind(i) {
            K::MemorySegSI | K::MemoryESDI | K::MemorySegDI => return 2,
            K::MemorySegESI | K::MemoryESEDI | K::MemorySegEDI => return 4,
            K::MemorySegRSI | K::MemoryESRDI | K::MemorySegRDI => return 8,
            _ => {}
        }
    }
    8
}

pub fn bind_string(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let insn = form.insn;
    op.extra = address_bytes(form) << form_bits::ADDRESS_SHIFT;
    if insn.has_rep_prefix() || insn.has_repe_prefix() || insn.has_repne_prefix() {
        op.extra |= form_bits::REP;
    }
    if insn.has_repne_prefix() {
        op.extra |= form_bits::WHILE_NOT_EQUAL;
    }
    let size = element_bytes(form.mnemonic());
    match form.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => sized!(size, rep_movs),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => sized!(size, rep_stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => sized!(size, lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => sized!(size, scas),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => sized!(size, cmps),
        M::Insb | M::Insw | M::Insd => sized!(size, ins),
        M::Outsb | M::Outsw | M::Outsd => sized!(size, outs),
        _ => None,
    }
}
