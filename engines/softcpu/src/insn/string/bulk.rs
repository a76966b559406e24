//! Repeated string instructions, a page at a time: what lies in RAM and hits the TLB.
//!
//! Each gives what its iterations one by one would give, also where the strings overlap.

use guestmem::{GuestRam, RamOffset};

use super::{form_bits, go_on};
use crate::code::Op;
use crate::cpu::{Cpu, gpr, pending};
use crate::flags::mask;
use crate::insn::operand::Int;

/// Bytes looked at together.
const CHUNK: u64 = 256;

/// It repeats in 64-bit mode with 64-bit addresses, and nothing is to happen after each iteration.
fn possible(cpu: &Cpu, op: &Op) -> bool {
    op.repeats() && cpu.long64 && op.address_bytes() == 8 && cpu.pending & pending::STEP == 0
}

fn upwards(cpu: &Cpu) -> bool {
    cpu.rflags_rest & x86defs::rflags::DF == 0
}

/// How many elements lie in the page of the one at `va`, it included.
fn in_page<T: Int>(va: u64, upwards: bool) -> u64 {
    let offset = va & 0xfff;
    if upwards {
        (4096 - offset) / T::SIZE
    } else if offset + T::SIZE <= 4096 {
        offset / T::SIZE + 1
    } else {
        0
    }
}

/// The lowest address of `n` elements that begin with the one at `va`.
fn lowest<T: Int>(va: u64, n: u64, upwards: bool) -> u64 {
    if upwards { va } else { va - (n - 1) * T::SIZE }
}

fn finish<T: Int>(cpu: &mut Cpu, n: u64, source: bool, destination: bool) {
    let bytes = n * T::SIZE;
    let bytes = if upwards(cpu) {
        bytes
    } else {
        bytes.wrapping_neg()
    };
    cpu.regs[gpr::RCX] -= n;
    if source {
        cpu.regs[gpr::RSI] = cpu.regs[gpr::RSI].wrapping_add(bytes);
    }
    if destination {
        cpu.regs[gpr::RDI] = cpu.regs[gpr::RDI].wrapping_add(bytes);
    }
}

/// Where some bytes of one page are stored to. Pages with code have no right to write in the TLB; a page that is reused
/// is often full of them.
fn destination(cpu: &mut Cpu, to: u64, bytes: u64) -> Option<RamOffset> {
    match cpu.tlb.write_hit(to, bytes) {
        Some(at) => Some(at),
        None => cpu.code_to_store(to, bytes),
    }
}

fn source(cpu: &Cpu, op: &Op) -> u64 {
    cpu.regs[gpr::RSI].wrapping_add(cpu.ea_base[(op.seg & 7) as usize])
}

/// Copies what of a repeated MOVS lies in one page on both sides; false if that is not possible.
pub fn movs<T: Int>(cpu: &mut Cpu, op: &Op) -> bool {
    if !possible(cpu, op) {
        return false;
    }
    let up = upwards(cpu);
    let (from, to) = (source(cpu, op), cpu.regs[gpr::RDI]);
    let n = cpu.regs[gpr::RCX]
        .min(in_page::<T>(from, up))
        .min(in_page::<T>(to, up));
    if n == 0 {
        return false;
    }
    let bytes = n * T::SIZE;
    let (from, to) = (lowest::<T>(from, n, up), lowest::<T>(to, n, up));
    let Some(a) = cpu.tlb.read_hit(from, bytes) else {
        return false;
    };
    let Some(b) = destination(cpu, to, bytes) else {
        return false;
    };
    // A copy onto bytes it has yet to read repeats them: not what memmove does.
    let repeats = if up {
        a.0 < b.0 && b.0 < a.0 + bytes
    } else {
        b.0 < a.0 && a.0 < b.0 + bytes
    };
    if repeats {
        for i in 0..n {
            let at = T::SIZE * if up { i } else { n - 1 - i };
            let element: T = cpu.ram.load(RamOffset(a.0 + at));
            cpu.ram.store(RamOffset(b.0 + at), element);
        }
    } else {
        cpu.ram.copy_within(a, b, bytes);
    }
    cpu.note_store(b, bytes);
    finish::<T>(cpu, n, true, true);
    true
}

/// Fills what of a repeated STOS lies in one page; false if that is not possible.
pub fn stos<T: Int>(cpu: &mut Cpu, op: &Op) -> bool {
    if !possible(cpu, op) {
        return false;
    }
    let up = upwards(cpu);
    let to = cpu.regs[gpr::RDI];
    let n = cpu.regs[gpr::RCX].min(in_page::<T>(to, up));
    if n == 0 {
        return false;
    }
    let v = T::reg(cpu, 0).to_u64();
    let bytes = n * T::SIZE;
    let Some(at) = destination(cpu, lowest::<T>(to, n, up), bytes) else {
        return false;
    };
    let byte = v as u8;
    if v == u64::from(byte) * (0x0101_0101_0101_0101 & mask::<T>()) {
        cpu.ram.fill(at, byte, bytes);
    } else {
        for i in 0..n {
            cpu.ram.store(RamOffset(at.0 + i * T::SIZE), T::from_u64(v));
        }
    }
    cpu.note_store(at, bytes);
    finish::<T>(cpu, n, false, true);
    true
}

/// Does iterations of a repeated SCAS in one page, at most so many; gives how many, and whether it goes on.
pub fn scas<T: Int>(cpu: &mut Cpu, op: &Op, most: u64) -> Option<(u64, bool)> {
    if !possible(cpu, op) || !upwards(cpu) {
        return None;
    }
    let to = cpu.regs[gpr::RDI];
    let n = most.min(in_page::<T>(to, true));
    if n == 0 {
        return None;
    }
    let at = cpu.tlb.read_hit(to, n * T::SIZE)?;
    let wanted = T::reg(cpu, 0).to_u64();
    let found = if op.extra & form_bits::WHILE_NOT_EQUAL == 0 {
        first_other::<T>(&cpu.ram, at, n, wanted)
    } else if T::SIZE == 1 {
        first_byte(&cpu.ram, at, n, wanted as u8)
    } else {
        (0..n).find(|i| element::<T>(&cpu.ram, at, *i) == wanted)
    };
    let done = found.map_or(n, |i| i + 1);
    let b = element::<T>(&cpu.ram, at, done - 1);
    cpu.flags.after_sub::<T>(wanted, b, wanted.wrapping_sub(b));
    finish::<T>(cpu, done, false, true);
    Some((done, go_on(cpu, op)))
}

/// The same for CMPS.
pub fn cmps<T: Int>(cpu: &mut Cpu, op: &Op, most: u64) -> Option<(u64, bool)> {
    if !possible(cpu, op) || !upwards(cpu) {
        return None;
    }
    let (from, to) = (source(cpu, op), cpu.regs[gpr::RDI]);
    let n = most
        .min(in_page::<T>(from, true))
        .min(in_page::<T>(to, true));
    if n == 0 {
        return None;
    }
    let bytes = n * T::SIZE;
    let a = cpu.tlb.read_hit(from, bytes)?;
    let b = cpu.tlb.read_hit(to, bytes)?;
    let ram = &cpu.ram;
    let found = if op.extra & form_bits::WHILE_NOT_EQUAL == 0 {
        first_difference(ram, a, b, bytes).map(|byte| byte / T::SIZE)
    } else {
        (0..n).find(|i| element::<T>(ram, a, *i) == element::<T>(ram, b, *i))
    };
    let done = found.map_or(n, |i| i + 1);
    let a = element::<T>(ram, a, done - 1);
    let b = element::<T>(ram, b, done - 1);
    cpu.flags.after_sub::<T>(a, b, a.wrapping_sub(b));
    finish::<T>(cpu, done, true, true);
    Some((done, go_on(cpu, op)))
}

fn element<T: Int>(ram: &GuestRam, at: RamOffset, i: u64) -> u64 {
    ram.load::<T>(RamOffset(at.0 + i * T::SIZE)).to_u64()
}

/// Calls `look` with where each chunk begins and how long it is until it has found something.
fn in_chunks(len: u64, mut look: impl FnMut(u64, usize) -> Option<usize>) -> Option<u64> {
    let starts = (0..len).step_by(CHUNK as usize);
    starts
        .into_iter()
        .find_map(|at| look(at, CHUNK.min(len - at) as usize).map(|found| at + found as u64))
}

fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// The first byte in which `len` bytes differ.
fn first_difference(ram: &GuestRam, a: RamOffset, b: RamOffset, len: u64) -> Option<u64> {
    let (mut x, mut y) = ([0; CHUNK as usize], [0; CHUNK as usize]);
    in_chunks(len, |at, n| {
        ram.read_at(RamOffset(a.0 + at), &mut x[..n]);
        ram.read_at(RamOffset(b.0 + at), &mut y[..n]);
        difference(&x[..n], &y[..n])
    })
}

/// The first of `n` elements that is another one than `wanted`.
fn first_other<T: Int>(ram: &GuestRam, at: RamOffset, n: u64, wanted: u64) -> Option<u64> {
    let (mut x, mut y) = ([0; CHUNK as usize], [0; CHUNK as usize]);
    let size = T::SIZE as usize;
    for element in y.chunks_exact_mut(size) {
        element.copy_from_slice(&wanted.to_le_bytes()[..size]);
    }
    let byte = in_chunks(n * T::SIZE, |from, n| {
        ram.read_at(RamOffset(at.0 + from), &mut x[..n]);
        difference(&x[..n], &y[..n])
    });
    byte.map(|byte| byte / T::SIZE)
}

/// The first of `n` bytes that is `wanted`.
fn first_byte(ram: &GuestRam, at: RamOffset, n: u64, wanted: u8) -> Option<u64> {
    let mut x = [0; CHUNK as usize];
    in_chunks(n, |from, n| {
        ram.read_at(RamOffset(at.0 + from), &mut x[..n]);
        let x = &x[..n];
        // The first of the two is quick.
        (x.contains(&wanted))
            .then(|| x.iter().position(|b| *b == wanted))
            .flatten()
    })
}
