//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with their REP prefixes (SDM Vol 2; Vol 1
//! 7.3.9).
//!
//! Repeats run in bulk where the strings lie in RAM pages that hit the TLB and go upwards, else element by
//! element. Either way an iteration that faults leaves the registers at that iteration, and long repeats give
//! way to events ([`Trap::Restart`]).

use iced_x86::Mnemonic;

use super::form::Form;
use super::operand::{Int, sized};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap, gpr, sreg};
use crate::flags::mask;
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
fn repeat(cpu: &mut Cpu, op: &Op, mut one: impl FnMut(&mut Cpu) -> Result<bool, Trap>) -> Flow {
    if !op.repeats() {
        one(cpu)?;
        return Ok(());
    }
    for _ in 0..SLICE {
        let count = get(cpu, op, gpr::RCX);
        if count == 0 {
            return Ok(());
        }
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

/// How many elements from `va` upwards lie in its page.
fn in_page<T: Int>(va: u64) -> u64 {
    (4096 - (va & 0xfff)) / T::SIZE
}

fn upwards(cpu: &Cpu) -> bool {
    cpu.rflags_rest & x86defs::rflags::DF == 0 && cpu.pending & crate::cpu::pending::STEP == 0
}

fn after_bulk<T: Int>(cpu: &mut Cpu, op: &Op, n: u64, source: bool) {
    let bytes = n * T::SIZE;
    let count = get(cpu, op, gpr::RCX);
    put(cpu, op, gpr::RCX, count - n);
    let di = get(cpu, op, gpr::RDI);
    put(cpu, op, gpr::RDI, di.wrapping_add(bytes));
    if source {
        let si = get(cpu, op, gpr::RSI);
        put(cpu, op, gpr::RSI, si.wrapping_add(bytes));
    }
}

/// Copies what of a repeated MOVS lies in one page on both sides; false if that is not possible.
fn movs_bulk<T: Int>(cpu: &mut Cpu, op: &Op) -> bool {
    if !op.repeats() || !cpu.long64 || op.address_bytes() != 8 || !upwards(cpu) {
        return false;
    }
    let count = cpu.regs[gpr::RCX];
    let from = cpu.regs[gpr::RSI].wrapping_add(cpu.ea_base[(op.seg & 7) as usize]);
    let to = cpu.regs[gpr::RDI];
    let n = count.min(in_page::<T>(from)).min(in_page::<T>(to));
    if n == 0 {
        return false;
    }
    let bytes = n * T::SIZE;
    let (Some(a), Some(b)) = (cpu.tlb.read_hit(from, bytes), cpu.tlb.write_hit(to, bytes)) else {
        return false;
    };
    // An upward copy onto bytes it has yet to read repeats them: not what memmove does.
    if a.0 < b.0 && b.0 < a.0 + bytes {
        return false;
    }
    cpu.ram.copy_within(a, b, bytes);
    cpu.stored(b, bytes);
    after_bulk::<T>(cpu, op, n, true);
    true
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

fn stos_bulk<T: Int>(cpu: &mut Cpu, op: &Op) -> bool {
    if !op.repeats() || !cpu.long64 || op.address_bytes() != 8 || !upwards(cpu) {
        return false;
    }
    let to = cpu.regs[gpr::RDI];
    let n = cpu.regs[gpr::RCX].min(in_page::<T>(to));
    if n == 0 {
        return false;
    }
    let v = T::reg(cpu, 0).to_u64();
    let Some(at) = cpu.tlb.write_hit(to, n * T::SIZE) else {
        return false;
    };
    let byte = v as u8;
    if v == u64::from(byte) * (0x0101_0101_0101_0101 & mask::<T>()) {
        cpu.ram.fill(at, byte, n * T::SIZE);
    } else {
        for i in 0..n {
            cpu.ram
                .store(guestmem::RamOffset(at.0 + i * T::SIZE), T::from_u64(v));
        }
    }
    cpu.stored(at, n * T::SIZE);
    after_bulk::<T>(cpu, op, n, false);
    true
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
    bulk_or_single(cpu, op, movs_bulk::<T>, one_movs::<T>)
}

fn rep_stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    bulk_or_single(cpu, op, stos_bulk::<T>, one_stos::<T>)
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
    repeat(cpu, op, |cpu| {
        let at = destination(cpu, op, T::SIZE, false)?;
        let b = cpu.read_linear::<T>(at)?.to_u64();
        let a = T::reg(cpu, 0).to_u64();
        cpu.flags.after_sub::<T>(a, b, a.wrapping_sub(b));
        advance::<T>(cpu, op, gpr::RDI);
        Ok(go_on(cpu, op))
    })
}

fn cmps<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    repeat(cpu, op, |cpu| {
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
