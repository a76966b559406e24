//! Far CALL and JMP to what is no code segment: call gates (SDM Vol 3 5.8.3 to 5.8.5), task gates and TSSs (8.3).

use x86defs::exception::{GP, NP, TS};
use x86defs::segment::{Descriptor, Selector, system_type};

use super::push_all;
use crate::code::Op;
use crate::cpu::{Cpu, Flow, Trap, canonical, gpr, sreg};
use crate::event::{Stack, Via, null_stack, segment_of};

/// Goes on by the type of the descriptor `d` of `selector`.
pub(super) fn far_to_system(
    cpu: &mut Cpu,
    op: &Op,
    selector: Selector,
    d: Descriptor,
    call: bool,
) -> Flow {
    let a = d.access();
    let error = selector.error_code();
    let kind = a.segment_type();
    let legacy = !cpu.long_mode();
    let known = kind == system_type::CALL_GATE
        || (legacy
            && matches!(
                kind,
                system_type::CALL_GATE16
                    | system_type::TASK_GATE
                    | system_type::TSS_AVAILABLE
                    | system_type::TSS16_AVAILABLE
            ));
    if !known || a.dpl() < cpu.cpl.max(selector.rpl()) {
        return cpu.raise_code(GP, error);
    }
    let via = if call { Via::Call } else { Via::Jump };
    match kind {
        system_type::TSS_AVAILABLE | system_type::TSS16_AVAILABLE => {
            let tss = cpu.find_tss(selector, GP, false)?;
            cpu.switch_by_instruction(op, via, tss)
        }
        _ if !a.present() => cpu.raise_code(NP, error),
        system_type::TASK_GATE => {
            let tss = cpu.find_tss(Selector((d.0 >> 16) as u16), GP, false)?;
            cpu.switch_by_instruction(op, via, tss)
        }
        _ => {
            let target = target(cpu, selector, d, call)?;
            if call && target.cpl < cpu.cpl {
                call_inward(cpu, op, &target)
            } else {
                stay(cpu, op, &target, call)
            }
        }
    }
}

/// Where a call gate leads.
struct Target {
    selector: Selector,
    code: Descriptor,
    code_at: u64,
    offset: u64,
    /// Privilege level of the target.
    cpl: u8,
    /// Bytes of a word on the stack.
    size: u64,
    /// Words to copy to an inner stack.
    parameters: u64,
}

fn target(cpu: &mut Cpu, selector: Selector, gate: Descriptor, call: bool) -> Result<Target, Trap> {
    let long = cpu.long_mode();
    let wide = gate.access().segment_type() == system_type::CALL_GATE;
    let mut offset = gate.0 & 0xffff;
    if wide {
        offset |= gate.0 >> 32 & 0xffff_0000;
    }
    if long {
        let error = selector.error_code();
        let Some(at) = cpu.descriptor_address(selector, 16) else {
            return cpu.raise_code(GP, error);
        };
        let high: u64 = cpu.read_system(at.wrapping_add(8))?;
        if high >> 40 & 0x1f != 0 {
            return cpu.raise_code(GP, error);
        }
        offset |= (high & 0xffff_ffff) << 32;
    }
    let selector = Selector((gate.0 >> 16) as u16);
    if selector.is_null() {
        return cpu.gp0();
    }
    let (code, code_at) = cpu.read_descriptor(selector, GP)?;
    let t = code.access();
    let error = selector.error_code();
    let privilege = t.dpl() <= cpu.cpl && (call || t.is_conforming() || t.dpl() == cpu.cpl);
    if !t.is_code() || !privilege || (long && (!t.long() || t.default_big())) {
        return cpu.raise_code(GP, error);
    }
    if !t.present() {
        return cpu.raise_code(NP, error);
    }
    Ok(Target {
        selector,
        code,
        code_at,
        offset,
        cpl: if t.is_conforming() { cpu.cpl } else { t.dpl() },
        size: match (long, wide) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        },
        parameters: if long { 0 } else { gate.0 >> 32 & 31 },
    })
}

/// The instruction pointer of the gate must be one of the code segment.
fn check_offset(cpu: &mut Cpu, t: &Target) -> Flow {
    let inside = if t.size == 8 {
        canonical(t.offset)
    } else {
        t.offset <= u64::from(t.code.limit())
    };
    if inside { Ok(()) } else { cpu.gp0() }
}

fn enter(cpu: &mut Cpu, t: &Target) -> Flow {
    let d = cpu.mark_accessed(t.code, t.code_at)?;
    cpu.cpl = t.cpl;
    cpu.seg[sreg::CS] = segment_of(Selector((t.selector.0 & !3) | u16::from(t.cpl)), d);
    cpu.next_rip = t.offset;
    cpu.mode_changed();
    Ok(())
}

/// To code of the same privilege, or by JMP.
fn stay(cpu: &mut Cpu, op: &Op, t: &Target, call: bool) -> Flow {
    let rsp = cpu.regs[gpr::RSP];
    if !call {
        check_offset(cpu, t)?;
        return enter(cpu, t);
    }
    let back = cpu.rip_after(op);
    let words = [u64::from(cpu.seg[sreg::CS].selector.0), back];
    // A 64-bit gate has a 64-bit stack, also from compatibility mode.
    let long64 = std::mem::replace(&mut cpu.long64, t.size == 8);
    let done = check_offset(cpu, t).and_then(|()| push_all(cpu, t.size, &words));
    cpu.long64 = long64;
    let done = done.and_then(|()| enter(cpu, t));
    if done.is_err() {
        cpu.regs[gpr::RSP] = rsp;
    }
    done
}

/// CALL to more privileged code: on the stack of that level, with the parameters copied (SDM Vol 3 5.8.5).
fn call_inward(cpu: &mut Cpu, op: &Op, t: &Target) -> Flow {
    let back = cpu.rip_after(op);
    let old_cs = u64::from(cpu.seg[sreg::CS].selector.0);
    let (old_ss, old_rsp) = (cpu.seg[sreg::SS], cpu.regs[gpr::RSP]);
    let frame = [u64::from(old_ss.selector.0), old_rsp, old_cs, back];
    if t.size == 8 {
        let rsp = cpu.tss64_stack(t.cpl, 0)?;
        check_offset(cpu, t)?;
        let old_cpl = std::mem::replace(&mut cpu.cpl, t.cpl);
        let long64 = std::mem::replace(&mut cpu.long64, true);
        cpu.select_view();
        cpu.regs[gpr::RSP] = rsp;
        let done = push_all(cpu, 8, &frame);
        cpu.cpl = old_cpl;
        cpu.long64 = long64;
        cpu.select_view();
        let done = done.and_then(|()| enter(cpu, t));
        if done.is_err() {
            cpu.regs[gpr::RSP] = old_rsp;
            return done;
        }
        cpu.seg[sreg::SS] = null_stack(Selector(u16::from(t.cpl)), t.cpl);
        return Ok(());
    }
    let (selector, sp) = cpu.tss32_stack(t.cpl)?;
    let ss = cpu.stack_segment(selector, t.cpl, TS)?;
    let stack = Stack { ss, sp, cpl: t.cpl };
    let count = frame.len() + t.parameters as usize;
    cpu.stack_room(&stack, count, t.size, selector.error_code())?;
    check_offset(cpu, t)?;
    let mut words = [0u64; 35];
    words[..2].copy_from_slice(&frame[..2]);
    for i in 0..t.parameters {
        let from = t.size * (t.parameters - 1 - i);
        words[2 + i as usize] = if t.size == 4 {
            u64::from(cpu.peek::<u32>(from)?)
        } else {
            u64::from(cpu.peek::<u16>(from)?)
        };
    }
    words[count - 2..count].copy_from_slice(&frame[2..]);
    let sp = cpu.push_words(&stack, t.size, &words[..count])?;
    enter(cpu, t)?;
    cpu.regs[gpr::RSP] = sp;
    cpu.seg[sreg::SS] = ss;
    cpu.mode_changed();
    Ok(())
}
