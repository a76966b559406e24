//! SSE4A: EXTRQ, INSERTQ, MOVNTSS, MOVNTSD (APM Vol 4). Only AMD models show it; it rests on nothing of the host's.

use iced_x86::Mnemonic;
use x86defs::cr::{cr0, cr4};
use x86defs::exception::{NM, UD};

use super::form::Form;
use super::operand::{Mem, Place};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow};

/// The checks of legacy SSE instructions (APM Vol 2 11.3.3; SDM Vol 3 2.5).
fn allowed(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0 {
        return cpu.raise(UD);
    }
    if cpu.cr0 & cr0::TS != 0 {
        return cpu.raise(NM);
    }
    Ok(())
}

/// A field of bits: a length of 0 means 64, and a field beyond bit 63 has an undefined result; what is there of
/// it is taken.
fn field(length: u64, index: u64) -> (u64, u32) {
    let mask = match length & 63 {
        0 => u64::MAX,
        n => (1 << n) - 1,
    };
    (mask, (index & 63) as u32)
}

/// The upper quadword of the destination becomes undefined; it is kept.
fn extrq(cpu: &mut Cpu, op: &Op) -> Flow {
    allowed(cpu)?;
    let by = match op.extra {
        // Length in bits 5:0, index in bits 13:8 of the second operand.
        0 => cpu.ext.ymm[usize::from(op.src & 15)][0],
        _ => op.imm,
    };
    let (mask, index) = field(by, by >> 8);
    let low = &mut cpu.ext.ymm[usize::from(op.dst & 15)][0];
    *low = *low >> index & mask;
    Ok(())
}

fn insertq(cpu: &mut Cpu, op: &Op) -> Flow {
    allowed(cpu)?;
    let source = cpu.ext.ymm[usize::from(op.src & 15)];
    let by = if op.extra == 0 { source[1] } else { op.imm };
    let (mask, index) = field(by, by >> 8);
    let low = &mut cpu.ext.ymm[usize::from(op.dst & 15)][0];
    *low = (*low & !(mask << index)) | (source[0] & mask) << index;
    Ok(())
}

fn movnts<const DOUBLE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    allowed(cpu)?;
    let v = cpu.ext.ymm[usize::from(op.src & 15)][0];
    if DOUBLE {
        Mem::set::<u64>(cpu, op, v)
    } else {
        Mem::set::<u32>(cpu, op, v as u32)
    }
}

/// `extra` is 1 where length and index are immediates; `imm` then has the length in bits 7:0, the index in 15:8.
pub fn bind_sse4a(form: &Form, op: &mut Op) -> Option<Handler> {
    let immediates: Vec<u64> = (0..form.insn.op_count())
        .filter(|&i| form.kind(i) == super::form::Kind::Imm)
        .map(|i| form.insn.immediate(i))
        .collect();
    op.extra = 0;
    if let [length, index] = immediates[..] {
        op.extra = 1;
        op.imm = length & 0xff | (index & 0xff) << 8;
    }
    Some(match form.mnemonic() {
        Mnemonic::Extrq => extrq,
        Mnemonic::Insertq => insertq,
        Mnemonic::Movntss => movnts::<false>,
        _ => movnts::<true>,
    })
}
