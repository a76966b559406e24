//! Far CALL and JMP through call gates (SDM Vol 3 5.8.3 to 5.8.5).

use x86defs::exception::{GP, NP, TS};
use x86defs::segment::{Descriptor, Selector, system_type};

use super::{null_stack, push_sized};
use crate::code::Op;
use crate::cpu::{Cpu, Flow, canonical, gpr, sreg};
use crate::event::segment_of;

/// A call gate (SDM Vol 3 5.8.3); task gates and TSSs are refused.
pub(super) fn far_through_gate(
    cpu: &mut Cpu,
    op: &Op,
    selector: Selector,
    gate: Descriptor,
    call: bool,
) -> Flow {
    let a = gate.access();
    let error = selector.error_code();
    if a.segment_type() != system_type::CALL_GATE || a.dpl() < cpu.cpl.max(selector.rpl()) {
        return cpu.raise_code(GP, error);
    }
    if !a.present() {
        return cpu.raise_code(NP, error);
    }
    let long = cpu.long_mode();
    let mut offset = (gate.0 & 0xffff) | (gate.0 >> 32 & 0xffff_0000);
    if long {
        let Some(at) = cpu.descriptor_address(selector, 16) else {
            return cpu.raise_code(GP, error);
        };
        let high: u64 = cpu.read_system(at.wrapping_add(8))?;
        if high >> 40 & 0x1f != 0 {
            return cpu.raise_code(GP, error);
        }
        offset |= (high & 0xffff_ffff) << 32;
    }
    let target = Selector((gate.0 >> 16) as u16);
    if target.is_null() {
        return cpu.gp0();
    }
    let (d, at) = cpu.read_descriptor(target, GP)?;
    let t = d.access();
    let error = target.error_code();
    let privilege = t.dpl() <= cpu.cpl && (call || t.is_conforming() || t.dpl() == cpu.cpl);
    if !t.is_code() || !privilege || (long && (!t.long() || t.default_big())) {
        return cpu.raise_code(GP, error);
    }
    if !t.present() {
        return cpu.raise_code(NP, error);
    }
    if if long {
        !canonical(offset)
    } else {
        offset > u64::from(d.limit())
    } {
        return cpu.gp0();
    }
    let size = if long { 8 } else { 4 };
    let back = cpu.rip_after(op);
    let old_cs = u64::from(cpu.seg[sreg::CS].selector.0);
    let (old_ss, old_rsp) = (cpu.seg[sreg::SS], cpu.regs[gpr::RSP]);
    let new_cpl = if t.is_conforming() { cpu.cpl } else { t.dpl() };
    let old_cpl = cpu.cpl;
    if call {
        let mut words = vec![];
        if new_cpl < cpu.cpl {
            let parameters = if long { 0 } else { gate.0 >> 32 & 31 };
            for i in (0..parameters).rev() {
                words.push(u64::from(cpu.peek::<u32>(4 * i)?));
            }
            words.insert(0, u64::from(old_ss.selector.0));
            words.insert(1, old_rsp);
            if long {
                cpu.regs[gpr::RSP] = cpu.tss64_stack(new_cpl, 0)?;
                cpu.seg[sreg::SS] = null_stack(new_cpl);
            } else {
                let (ss, sp) = cpu.tss32_stack(new_cpl)?;
                cpu.seg[sreg::SS] = cpu.stack_segment(ss, new_cpl, TS)?;
                cpu.regs[gpr::RSP] = sp;
            }
            cpu.cpl = new_cpl;
            cpu.select_view();
        }
        words.extend([old_cs, back]);
        let long64 = std::mem::replace(&mut cpu.long64, long);
        let done = words.into_iter().try_for_each(|w| push_sized(cpu, size, w));
        cpu.long64 = long64;
        if let Err(t) = done {
            cpu.regs[gpr::RSP] = old_rsp;
            cpu.seg[sreg::SS] = old_ss;
            cpu.cpl = old_cpl;
            cpu.mode_changed();
            return Err(t);
        }
    }
    let d = cpu.mark_accessed(d, at)?;
    cpu.cpl = new_cpl;
    cpu.seg[sreg::CS] = segment_of(Selector((target.0 & !3) | u16::from(new_cpl)), d);
    cpu.next_rip = offset;
    cpu.mode_changed();
    Ok(())
}
