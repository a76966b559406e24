//! What a selector would give: LAR, LSL, VERR, VERW, ARPL (SDM Vol 3 5.10; Vol 2).

use iced_x86::Mnemonic;
use x86defs::segment::{Descriptor, Selector};

use super::form::{Form, Kind};
use super::operand::{Int, Mem, Place, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap};

/// LAR, LSL, VERR, VERW ask what a selector would give.
fn probe(cpu: &mut Cpu, selector: Selector, what: Mnemonic) -> Result<Option<u64>, Trap> {
    if selector.is_null() {
        return Ok(None);
    }
    let Some(at) = cpu.descriptor_address(selector, 8) else {
        return Ok(None);
    };
    let d = Descriptor(cpu.read_system(at)?);
    let a = d.access();
    let visible = a.is_conforming() || a.dpl() >= cpu.cpl.max(selector.rpl());
    let long = cpu.long_mode();
    let system_ok = match what {
        Mnemonic::Lar => {
            matches!(a.segment_type(), 2 | 9 | 11 | 12)
                || (!long && matches!(a.segment_type(), 1 | 3 | 4 | 5))
        }
        Mnemonic::Lsl => {
            matches!(a.segment_type(), 2 | 9 | 11) || (!long && matches!(a.segment_type(), 1 | 3))
        }
        _ => false,
    };
    if !visible || !(a.is_code_or_data() || system_ok) {
        return Ok(None);
    }
    Ok(match what {
        Mnemonic::Lar => Some(u64::from(crate::event::read_descriptor_access(d))),
        Mnemonic::Lsl => Some(u64::from(d.limit())),
        Mnemonic::Verr => a.readable().then_some(0),
        _ => a.writable().then_some(0),
    })
}

fn selector_operand(cpu: &mut Cpu, op: &Op, memory: bool, register: u8) -> Result<Selector, Trap> {
    cpu.require_protected()?;
    Ok(Selector(if memory {
        Mem::get::<u16>(cpu, op)?
    } else {
        u16::reg(cpu, register)
    }))
}

fn lar_lsl<T: Int, const LAR: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = selector_operand(cpu, op, MEMORY, op.src)?;
    let what = if LAR { Mnemonic::Lar } else { Mnemonic::Lsl };
    let found = probe(cpu, selector, what)?;
    cpu.flags.set_zf(found.is_some());
    if let Some(v) = found {
        T::set_reg(cpu, op.dst, T::from_u64(v));
    }
    Ok(())
}

fn verify<const WRITE: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = selector_operand(cpu, op, MEMORY, op.dst)?;
    let what = if WRITE {
        Mnemonic::Verw
    } else {
        Mnemonic::Verr
    };
    let found = probe(cpu, selector, what)?;
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

pub fn bind_probe(form: &Form, _: &mut Op) -> Option<Handler> {
    let memory = form.kind(1) == Kind::Mem || form.kind(0) == Kind::Mem;
    macro_rules! by_size {
        ($lar:literal) => {
            match (form.size(0), memory) {
                (2, false) => lar_lsl::<u16, $lar, false>,
                (2, true) => lar_lsl::<u16, $lar, true>,
                (4, false) => lar_lsl::<u32, $lar, false>,
                (4, true) => lar_lsl::<u32, $lar, true>,
                (_, false) => lar_lsl::<u64, $lar, false>,
                (_, true) => lar_lsl::<u64, $lar, true>,
            }
        };
    }
    Some(match (form.mnemonic(), memory) {
        (Mnemonic::Lar, _) => by_size!(true),
        (Mnemonic::Lsl, _) => by_size!(false),
        (Mnemonic::Verr, false) => verify::<false, false>,
        (Mnemonic::Verr, true) => verify::<false, true>,
        (_, false) => verify::<true, false>,
        (_, true) => verify::<true, true>,
    })
}

/// ARPL (SDM Vol 2).
fn arpl<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_protected()?;
    let source = u16::reg(cpu, op.src) & 3;
    let adjust = |cpu: &mut Cpu, v: u16| {
        let lower = v & 3 < source;
        cpu.flags.set_zf(lower);
        if lower { (v & !3) | source } else { v }
    };
    if MEMORY {
        let v = Mem::get::<u16>(cpu, op)?;
        if v & 3 < source {
            // Only now does it write.
            Mem::set::<u16>(cpu, op, (v & !3) | source)?;
        }
        adjust(cpu, v);
        Ok(())
    } else {
        let v = u16::reg(cpu, op.dst);
        let v = adjust(cpu, v);
        u16::set_reg(cpu, op.dst, v);
        Ok(())
    }
}

pub fn bind_arpl(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(if form.kind(0) == Kind::Mem {
        arpl::<true>
    } else {
        arpl::<false>
    })
}
