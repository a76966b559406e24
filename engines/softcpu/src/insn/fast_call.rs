//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM Vol 3 5.8.7, 5.8.8; Vol 2; for AMD models APM Vol 3).
//!
//! AMD has SYSCALL and SYSRET in every mode, Intel in 64-bit mode; Intel has SYSENTER and SYSEXIT in every protected
//! mode, AMD not in long mode.

use iced_x86::Mnemonic;
use vcpu::SegmentRegister;
use x86defs::cr::efer;
use x86defs::rflags;
use x86defs::segment::{Access, Selector};

use super::form::Form;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, canonical, gpr, sreg};

/// Flat segments as SYSCALL and friends load them (SDM Vol 3 5.8.7, 5.8.8).
fn flat_code(selector: u16, dpl: u32, long: bool) -> SegmentRegister {
    let size = if long { 1 << 13 } else { 1 << 14 };
    SegmentRegister {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access: Access(0x809b | size | dpl << 5),
    }
}

fn flat_stack(selector: u16, dpl: u32) -> SegmentRegister {
    SegmentRegister {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access: Access(0xc093 | dpl << 5),
    }
}

fn syscall(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.efer & efer::SCE == 0 || !(cpu.long64 || cpu.amd()) {
        return cpu.ud();
    }
    if !cpu.long_mode() {
        return syscall_legacy(cpu, op);
    }
    // Compatibility mode: AMD only, with a target of its own (APM Vol 3, SYSCALL).
    let target = if cpu.long64 {
        cpu.msr.lstar
    } else {
        cpu.msr.cstar
    };
    cpu.regs[gpr::RCX] = cpu.rip_after(op);
    cpu.regs[gpr::R11] = cpu.rflags() & !rflags::RF;
    let flags = cpu.rflags() & !(cpu.msr.fmask & !rflags::FIXED_1) & !rflags::RF;
    let selector = (cpu.msr.star >> 32) as u16;
    cpu.cpl = 0;
    cpu.seg[sreg::CS] = flat_code(selector & !3, 0, true);
    cpu.seg[sreg::SS] = flat_stack(selector.wrapping_add(8), 0);
    cpu.step_cancelled = flags & rflags::TF == 0;
    cpu.set_rflags(flags);
    cpu.next_rip = target;
    cpu.mode_changed();
    Ok(())
}

/// SYSCALL outside IA-32e mode: STAR has the 32-bit target, the mask does not count (APM Vol 3, SYSCALL).
fn syscall_legacy(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.regs[gpr::RCX] = cpu.rip_after(op) & 0xffff_ffff;
    let flags = cpu.rflags() & !(rflags::VM | rflags::IF | rflags::RF);
    let selector = (cpu.msr.star >> 32) as u16;
    cpu.cpl = 0;
    cpu.seg[sreg::CS] = flat_code(selector & !3, 0, false);
    cpu.seg[sreg::SS] = flat_stack(selector.wrapping_add(8), 0);
    cpu.set_rflags(flags);
    cpu.next_rip = cpu.msr.star & 0xffff_ffff;
    cpu.mode_changed();
    Ok(())
}

/// What SYSRET leaves in SS: AMD changes the selector alone (APM Vol 3, SYSRET). The privilege level, which is in SS
/// here, follows CPL.
fn sysret_stack(cpu: &Cpu, selector: u16) -> SegmentRegister {
    if !cpu.amd() {
        return flat_stack(selector | 3, 3);
    }
    let mut ss = cpu.seg[sreg::SS];
    ss.selector = Selector(selector);
    ss.access = Access(ss.access.0 | 3 << 5);
    ss
}

fn sysret<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.efer & efer::SCE == 0 || !(cpu.long64 || cpu.amd()) {
        return cpu.ud();
    }
    if !cpu.protected() || cpu.v8086() {
        return cpu.gp0();
    }
    cpu.require_cpl0()?;
    let target = cpu.regs[gpr::RCX];
    // AMD looks at the address only when it fetches from it, at CPL 3.
    if LONG && !canonical(target) && !cpu.amd() {
        return cpu.gp0();
    }
    let base = (cpu.msr.star >> 48) as u16;
    let code = if LONG { base.wrapping_add(16) } else { base };
    cpu.cpl = 3;
    cpu.seg[sreg::CS] = flat_code(code | 3, 3, LONG);
    cpu.seg[sreg::SS] = sysret_stack(cpu, base.wrapping_add(8));
    let flags = if cpu.long64 {
        (cpu.regs[gpr::R11] & rflags::DEFINED & !(rflags::RF | rflags::VM)) | rflags::FIXED_1
    } else {
        cpu.rflags() | rflags::IF
    };
    cpu.set_rflags(flags);
    cpu.next_rip = if LONG { target } else { target & 0xffff_ffff };
    cpu.mode_changed();
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Flow {
    // Not in long mode on AMD (APM Vol 3, SYSENTER).
    if cpu.amd() && cpu.long_mode() {
        return cpu.ud();
    }
    let cs = cpu.msr.sysenter_cs as u16;
    if !cpu.protected() || cs & !3 == 0 {
        return cpu.gp0();
    }
    let long = cpu.long_mode();
    cpu.cpl = 0;
    cpu.seg[sreg::CS] = flat_code(cs & !3, 0, long);
    cpu.seg[sreg::SS] = flat_stack((cs & !3).wrapping_add(8), 0);
    let flags = cpu.rflags() & !(rflags::VM | rflags::IF | rflags::RF);
    cpu.set_rflags(flags);
    let narrow = |v: u64| if long { v } else { v & 0xffff_ffff };
    cpu.regs[gpr::RSP] = narrow(cpu.msr.sysenter_esp);
    cpu.next_rip = narrow(cpu.msr.sysenter_eip);
    cpu.mode_changed();
    Ok(())
}

fn sysexit<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.amd() && cpu.long_mode() {
        return cpu.ud();
    }
    let cs = cpu.msr.sysenter_cs as u16;
    if !cpu.protected() || cs & !3 == 0 || cpu.cpl != 0 {
        return cpu.gp0();
    }
    let (rip, rsp) = (cpu.regs[gpr::RDX], cpu.regs[gpr::RCX]);
    if LONG && !(canonical(rip) && canonical(rsp)) {
        return cpu.gp0();
    }
    let base = (cs & !3).wrapping_add(if LONG { 32 } else { 16 });
    cpu.cpl = 3;
    cpu.seg[sreg::CS] = flat_code(base | 3, 3, LONG);
    cpu.seg[sreg::SS] = flat_stack(base.wrapping_add(8) | 3, 3);
    cpu.regs[gpr::RSP] = if LONG { rsp } else { rsp & 0xffff_ffff };
    cpu.next_rip = if LONG { rip } else { rip & 0xffff_ffff };
    cpu.mode_changed();
    Ok(())
}

pub fn bind_fast_call(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(match form.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysretq => sysret::<true>,
        Mnemonic::Sysret => sysret::<false>,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexitq => sysexit::<true>,
        _ => sysexit::<false>,
    })
}
