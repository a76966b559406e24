//! Far transfers: far JMP, CALL, RET; IRET; INT n, INT3, INTO, INT1, BOUND; SYSCALL, SYSRET, SYSENTER, SYSEXIT
//! (SDM Vol 2; Vol 3 5.8, 6.4).

use iced_x86::{Code, Mnemonic};
use vcpu::SegmentRegister;
use x86defs::cr::efer;
use x86defs::exception::{BP, BR, DB, GP, NP, OF, SS, TS};
use x86defs::rflags;
use x86defs::segment::{Access, Descriptor, Selector, system_type};

use super::form::{Form, Kind};
use super::operand::{Int, Mem, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Event, EventKind, Flow, RIP, Trap, canonical, gpr, sreg};
use crate::event::segment_of;

/// Selector and offset of a far pointer in memory; the operand size is `size`.
fn far_pointer(cpu: &mut Cpu, op: &Op, size: u64) -> Result<(Selector, u64), Trap> {
    let va = cpu.linear(op, size + 2, false)?;
    let mut bytes = [0u8; 10];
    cpu.read_bytes(va, &mut bytes[..size as usize + 2])?;
    let mut offset = [0u8; 8];
    offset[..size as usize].copy_from_slice(&bytes[..size as usize]);
    let selector = u16::from_le_bytes([bytes[size as usize], bytes[size as usize + 1]]);
    Ok((Selector(selector), u64::from_le_bytes(offset)))
}

/// Far JMP and CALL. `imm`/`extra` hold a direct pointer; `src` the operand size, `dst` 1 for CALL.
fn far_direct(cpu: &mut Cpu, op: &Op) -> Flow {
    far_transfer(
        cpu,
        op,
        Selector(op.extra),
        op.imm,
        u64::from(op.src),
        op.dst == 1,
    )
}

fn far_indirect(cpu: &mut Cpu, op: &Op) -> Flow {
    let (selector, offset) = far_pointer(cpu, op, u64::from(op.src))?;
    far_transfer(cpu, op, selector, offset, u64::from(op.src), op.dst == 1)
}

fn push_sized(cpu: &mut Cpu, size: u64, v: u64) -> Flow {
    match size {
        8 => cpu.push(v),
        4 => cpu.push(v as u32),
        _ => cpu.push(v as u16),
    }
}

fn far_transfer(
    cpu: &mut Cpu,
    op: &Op,
    selector: Selector,
    offset: u64,
    size: u64,
    call: bool,
) -> Flow {
    let back = cpu.rip_after(op);
    let old_cs = u64::from(cpu.seg[sreg::CS].selector.0);
    let rsp = cpu.regs[gpr::RSP];
    if !cpu.protected() || cpu.v8086() {
        if offset > 0xffff {
            return cpu.gp0();
        }
        if call {
            let done = push_sized(cpu, size, old_cs).and_then(|()| push_sized(cpu, size, back));
            if let Err(t) = done {
                cpu.regs[gpr::RSP] = rsp;
                return Err(t);
            }
        }
        cpu.seg[sreg::CS].selector = selector;
        cpu.seg[sreg::CS].base = u64::from(selector.0) << 4;
        cpu.next_rip = offset;
        cpu.mode_changed();
        return Ok(());
    }
    if selector.is_null() {
        return cpu.gp0();
    }
    let (d, at) = cpu.read_descriptor(selector, GP)?;
    let a = d.access();
    let error = selector.error_code();
    if !a.is_code_or_data() {
        return far_through_gate(cpu, op, selector, d, call);
    }
    if !a.is_code() || (cpu.long_mode() && a.long() && a.default_big()) {
        return cpu.raise_code(GP, error);
    }
    let allowed = if a.is_conforming() {
        a.dpl() <= cpu.cpl
    } else {
        selector.rpl() <= cpu.cpl && a.dpl() == cpu.cpl
    };
    if !allowed {
        return cpu.raise_code(GP, error);
    }
    if !a.present() {
        return cpu.raise_code(NP, error);
    }
    let to64 = cpu.long_mode() && a.long();
    let ok = if to64 {
        canonical(offset)
    } else {
        offset <= u64::from(d.limit())
    };
    if !ok {
        return cpu.gp0();
    }
    if call {
        let done = push_sized(cpu, size, old_cs).and_then(|()| push_sized(cpu, size, back));
        if let Err(t) = done {
            cpu.regs[gpr::RSP] = rsp;
            return Err(t);
        }
    }
    let d = cpu.mark_accessed(d, at)?;
    let new = Selector((selector.0 & !3) | u16::from(cpu.cpl));
    cpu.seg[sreg::CS] = segment_of(new, d);
    cpu.next_rip = offset;
    cpu.mode_changed();
    Ok(())
}

/// A call gate (SDM Vol 3 5.8.3); task gates and TSSs are refused.
fn far_through_gate(
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

fn null_stack(cpl: u8) -> SegmentRegister {
    SegmentRegister {
        selector: Selector(u16::from(cpl)),
        base: 0,
        limit: 0,
        access: Access(Access::UNUSABLE.0 | u32::from(cpl) << 5),
    }
}

pub fn bind_far(form: &Form, op: &mut Op) -> Option<Handler> {
    op.dst = u8::from(form.mnemonic() == Mnemonic::Call);
    op.src = match form.insn.code() {
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        Code::Jmp_m1632 | Code::Call_m1632 | Code::Jmp_ptr1632 | Code::Call_ptr1632 => 4,
        _ => 2,
    };
    Some(if form.kind(0) == Kind::Mem {
        far_indirect
    } else {
        far_direct
    })
}

/// What RETF and IRET have in common: where they return to.
struct Return {
    rip: u64,
    code: Descriptor,
    code_at: u64,
}

/// Checks the code segment of a return (SDM Vol 2, RET and IRET).
fn return_target(cpu: &mut Cpu, cs: Selector, rip: u64) -> Result<Return, Trap> {
    if cs.is_null() {
        return cpu.gp0();
    }
    let (code, code_at) = cpu.read_descriptor(cs, GP)?;
    let a = code.access();
    let error = cs.error_code();
    let privilege = if a.is_conforming() {
        a.dpl() <= cs.rpl()
    } else {
        a.dpl() == cs.rpl()
    };
    if !a.is_code()
        || cs.rpl() < cpu.cpl
        || !privilege
        || (cpu.long_mode() && a.long() && a.default_big())
    {
        return cpu.raise_code(GP, error);
    }
    if !a.present() {
        return cpu.raise_code(NP, error);
    }
    let to64 = cpu.long_mode() && a.long();
    let ok = if to64 {
        canonical(rip)
    } else {
        rip <= u64::from(code.limit())
    };
    if !ok {
        return cpu.gp0();
    }
    Ok(Return { rip, code, code_at })
}

/// Checks the stack segment of a return to an outer level (or any 64-bit IRET).
fn return_stack(cpu: &mut Cpu, ss: Selector, rpl: u8, to64: bool) -> Result<SegmentRegister, Trap> {
    if ss.is_null() {
        if to64 && rpl < 3 && ss.rpl() == rpl {
            return Ok(SegmentRegister {
                selector: ss,
                ..null_stack(rpl)
            });
        }
        return cpu.gp0();
    }
    let (d, at) = cpu.read_descriptor(ss, GP)?;
    let a = d.access();
    let error = ss.error_code();
    if ss.rpl() != rpl || a.dpl() != rpl || !a.writable() {
        return cpu.raise_code(GP, error);
    }
    if !a.present() {
        return cpu.raise_code(SS, error);
    }
    let d = cpu.mark_accessed(d, at)?;
    Ok(segment_of(ss, d))
}

/// Makes data segments unusable that an outer level may not use (SDM Vol 2, RET, "RETURN-TO-OUTER-PRIVILEGE-LEVEL").
fn drop_privileged_segments(cpu: &mut Cpu) {
    for s in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
        let a = cpu.seg[s].access;
        if !a.unusable() && !a.is_conforming() && a.dpl() < cpu.cpl {
            // The base stays: a hypervisor may have loaded FS or GS with a privileged usable segment, and
            // 64-bit code keeps using its base.
            cpu.seg[s].selector = Selector(0);
            cpu.seg[s].access = Access(a.0 | Access::UNUSABLE.0);
        }
    }
}

/// Loads the stack pointer a return found on the stack, after SS: a 16-bit stack takes SP and keeps the upper
/// bits.
fn load_outer_stack<T: Int>(cpu: &mut Cpu, value: u64, to64: bool) {
    let old = cpu.regs[gpr::RSP];
    let narrow = !to64 && !cpu.seg[sreg::SS].access.default_big();
    cpu.regs[gpr::RSP] = if narrow || T::SIZE == 2 {
        (old & !0xffff) | (value & 0xffff)
    } else if to64 {
        value
    } else {
        value & 0xffff_ffff
    };
}

/// RETF; bytes to release in `imm`.
fn far_return<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let rip = cpu.peek::<T>(0)?.to_u64();
    let cs = Selector(cpu.peek::<T>(T::SIZE)?.to_u64() as u16);
    if !cpu.protected() || cpu.v8086() {
        if rip > 0xffff {
            return cpu.gp0();
        }
        cpu.release_stack(2 * T::SIZE + op.imm);
        cpu.seg[sreg::CS].selector = cs;
        cpu.seg[sreg::CS].base = u64::from(cs.0) << 4;
        cpu.next_rip = rip;
        cpu.mode_changed();
        return Ok(());
    }
    let r = return_target(cpu, cs, rip)?;
    let outer = cs.rpl() > cpu.cpl;
    let mut stack = None;
    if outer {
        let rsp = cpu.peek::<T>(2 * T::SIZE + op.imm)?.to_u64();
        let ss = Selector(cpu.peek::<T>(3 * T::SIZE + op.imm)?.to_u64() as u16);
        let to64 = cpu.long_mode() && r.code.access().long();
        stack = Some((rsp, return_stack(cpu, ss, cs.rpl(), to64)?));
    }
    let d = cpu.mark_accessed(r.code, r.code_at)?;
    match stack {
        None => cpu.release_stack(2 * T::SIZE + op.imm),
        Some((rsp, ss)) => {
            cpu.seg[sreg::SS] = ss;
            let to64 = cpu.long_mode() && d.access().long();
            load_outer_stack::<T>(cpu, rsp.wrapping_add(op.imm), to64);
            cpu.cpl = cs.rpl();
            drop_privileged_segments(cpu);
        }
    }
    cpu.seg[sreg::CS] = segment_of(cs, d);
    cpu.next_rip = r.rip;
    cpu.mode_changed();
    Ok(())
}

pub fn bind_retf(form: &Form, op: &mut Op) -> Option<Handler> {
    op.imm &= 0xffff;
    op.seg = sreg::SS as u8;
    Some(match form.insn.code() {
        Code::Retfq | Code::Retfq_imm16 => far_return::<u64>,
        Code::Retfd | Code::Retfd_imm16 => far_return::<u32>,
        _ => far_return::<u16>,
    })
}

/// IRET, IRETD, IRETQ.
fn iret<T: Int>(cpu: &mut Cpu, _: &Op) -> Flow {
    // NMIs are unblocked even if the rest faults (SDM Vol 3 6.7.1).
    cpu.iret_unblocks_nmi();
    let done = interrupt_return::<T>(cpu);
    if done.is_ok() {
        cpu.vmx.iret_unblocked = false;
    }
    done
}

fn interrupt_return<T: Int>(cpu: &mut Cpu) -> Flow {
    if !cpu.protected() || cpu.v8086() {
        return iret_real::<T>(cpu);
    }
    if cpu.rflags_rest & rflags::NT != 0 {
        if cpu.long_mode() {
            return cpu.gp0();
        }
        // A return to a linked task: hardware task switches are not implemented.
        return cpu.raise_code(TS, cpu.tr.selector.error_code());
    }
    let rip = cpu.peek::<T>(0)?.to_u64();
    let cs = Selector(cpu.peek::<T>(T::SIZE)?.to_u64() as u16);
    let image = cpu.peek::<T>(2 * T::SIZE)?.to_u64();
    if !cpu.long_mode() && image & rflags::VM != 0 && cpu.cpl == 0 && T::SIZE == 4 {
        return iret_to_v8086(cpu, rip, cs, image);
    }
    let r = return_target(cpu, cs, rip)?;
    let outer = cs.rpl() > cpu.cpl;
    let mut stack = None;
    if outer || cpu.long64 {
        let rsp = cpu.peek::<T>(3 * T::SIZE)?.to_u64();
        let ss = Selector(cpu.peek::<T>(4 * T::SIZE)?.to_u64() as u16);
        let to64 = cpu.long_mode() && r.code.access().long();
        stack = Some((rsp, return_stack(cpu, ss, cs.rpl(), to64)?));
    }
    let d = cpu.mark_accessed(r.code, r.code_at)?;
    let mut writable = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT;
    if T::SIZE >= 4 {
        writable |= rflags::RF | rflags::AC | rflags::ID;
    }
    if cpu.cpl <= cpu.iopl() {
        writable |= rflags::IF;
    }
    if cpu.cpl == 0 {
        writable |= rflags::IOPL;
        if T::SIZE >= 4 {
            writable |= rflags::VIF | rflags::VIP;
        }
    }
    match stack {
        None => cpu.release_stack(3 * T::SIZE),
        Some((rsp, ss)) => {
            cpu.seg[sreg::SS] = ss;
            let to64 = cpu.long_mode() && d.access().long();
            load_outer_stack::<T>(cpu, rsp, to64);
        }
    }
    if cpu.dr7 & 0xff == 0 {
        // RF only matters to breakpoints: without any, the next instruction need not be stepped to clear it.
        writable &= !rflags::RF;
    }
    let flags = (cpu.rflags() & !writable & !rflags::RF) | (image & writable);
    cpu.trapped_kind_sets_rf = flags & rflags::RF != 0;
    cpu.seg[sreg::CS] = segment_of(cs, d);
    if outer {
        cpu.cpl = cs.rpl();
        drop_privileged_segments(cpu);
    }
    cpu.set_rflags(flags);
    cpu.next_rip = r.rip;
    cpu.mode_changed();
    Ok(())
}

fn iret_real<T: Int>(cpu: &mut Cpu) -> Flow {
    if cpu.v8086() && cpu.iopl() < 3 {
        return cpu.gp0();
    }
    let rip = cpu.peek::<T>(0)?.to_u64();
    let cs = Selector(cpu.peek::<T>(T::SIZE)?.to_u64() as u16);
    let image = cpu.peek::<T>(2 * T::SIZE)?.to_u64();
    if rip > 0xffff {
        return cpu.gp0();
    }
    cpu.release_stack(3 * T::SIZE);
    cpu.seg[sreg::CS].selector = cs;
    cpu.seg[sreg::CS].base = u64::from(cs.0) << 4;
    let mut writable = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::IF;
    if !cpu.v8086() {
        writable |= rflags::IOPL;
    }
    if T::SIZE >= 4 {
        writable |= rflags::RF | rflags::AC | rflags::ID;
    }
    let flags = (cpu.rflags() & !writable) | (image & writable);
    cpu.set_rflags(flags);
    cpu.next_rip = rip;
    cpu.mode_changed();
    Ok(())
}

fn iret_to_v8086(cpu: &mut Cpu, rip: u64, cs: Selector, image: u64) -> Flow {
    let mut words = [0u64; 6];
    for (i, w) in words.iter_mut().enumerate() {
        *w = u64::from(cpu.peek::<u32>(12 + 4 * i as u64)?);
    }
    cpu.set_rflags(image & rflags::DEFINED);
    cpu.cpl = 3;
    let v86 = |s: u64| SegmentRegister {
        selector: Selector(s as u16),
        base: (s & 0xffff) << 4,
        limit: 0xffff,
        access: Access(0xf3),
    };
    cpu.seg[sreg::CS] = v86(u64::from(cs.0));
    cpu.regs[gpr::RSP] = words[0];
    for (s, w) in [sreg::SS, sreg::ES, sreg::DS, sreg::FS, sreg::GS]
        .into_iter()
        .zip(&words[1..])
    {
        cpu.seg[s] = v86(*w);
    }
    cpu.next_rip = rip & 0xffff;
    cpu.mode_changed();
    Ok(())
}

pub fn bind_iret(form: &Form, op: &mut Op) -> Option<Handler> {
    op.seg = sreg::SS as u8;
    Some(match form.mnemonic() {
        Mnemonic::Iretq => iret::<u64>,
        Mnemonic::Iretd => iret::<u32>,
        _ => iret::<u16>,
    })
}

/// INT n, INT3, INTO, INT1: delivered here, because the return address is behind the instruction.
fn software_interrupt(cpu: &mut Cpu, op: &Op, vector: u8, kind: EventKind) -> Flow {
    if cpu.v8086() && kind == EventKind::SoftwareInterrupt && cpu.iopl() < 3 {
        return cpu.gp0();
    }
    let start = cpu.regs[RIP];
    cpu.regs[RIP] = start.wrapping_add(u64::from(op.offset));
    let event = Event {
        vector,
        kind,
        error_code: None,
        length: op.length,
    };
    let asked = match kind {
        EventKind::SoftwareInterrupt => Ok(()),
        _ => cpu.intercept_exception(event, 0),
    };
    let done = asked.and_then(|()| cpu.deliver(event));
    if done.is_err() {
        // The run loop adds the offset itself.
        cpu.regs[RIP] = start;
    }
    cpu.step_cancelled = done.is_ok();
    done
}

fn int_n(cpu: &mut Cpu, op: &Op) -> Flow {
    software_interrupt(cpu, op, op.imm as u8, EventKind::SoftwareInterrupt)
}
fn int3(cpu: &mut Cpu, op: &Op) -> Flow {
    software_interrupt(cpu, op, BP, EventKind::SoftwareException)
}
fn int1(cpu: &mut Cpu, op: &Op) -> Flow {
    software_interrupt(cpu, op, DB, EventKind::PrivilegedSoftware)
}
fn into(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.flags.of() {
        return software_interrupt(cpu, op, OF, EventKind::SoftwareException);
    }
    cpu.next_rip = cpu.rip_after(op) & 0xffff_ffff;
    Ok(())
}

pub fn bind_int(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(match form.mnemonic() {
        Mnemonic::Int => int_n,
        Mnemonic::Int3 => int3,
        Mnemonic::Int1 => int1,
        _ => into,
    })
}

fn bound<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let va = cpu.linear(op, 2 * T::SIZE, false)?;
    let signed = |v: T| crate::flags::sign_extend::<T>(v.to_u64()) as i64;
    let low = signed(cpu.read_linear(va)?);
    let high = signed(cpu.read_linear(va.wrapping_add(T::SIZE))?);
    let v = signed(T::reg(cpu, op.dst));
    if v < low || v > high {
        cpu.raise(BR)
    } else {
        Ok(())
    }
}

pub fn bind_bound(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(if form.size(0) == 2 {
        bound::<u16>
    } else {
        bound::<u32>
    })
}

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
    if !cpu.long64 || cpu.efer & efer::SCE == 0 {
        return cpu.ud();
    }
    cpu.regs[gpr::RCX] = cpu.rip_after(op);
    cpu.regs[gpr::R11] = cpu.rflags() & !rflags::RF;
    let flags = cpu.rflags() & !(cpu.msr.fmask & !rflags::FIXED_1) & !rflags::RF;
    let selector = (cpu.msr.star >> 32) as u16;
    cpu.cpl = 0;
    cpu.seg[sreg::CS] = flat_code(selector & !3, 0, true);
    cpu.seg[sreg::SS] = flat_stack(selector.wrapping_add(8), 0);
    cpu.step_cancelled = flags & rflags::TF == 0;
    cpu.set_rflags(flags);
    cpu.next_rip = cpu.msr.lstar;
    cpu.mode_changed();
    Ok(())
}

fn sysret<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    if !cpu.long64 || cpu.efer & efer::SCE == 0 {
        return cpu.ud();
    }
    cpu.require_cpl0()?;
    let target = cpu.regs[gpr::RCX];
    if LONG && !canonical(target) {
        return cpu.gp0();
    }
    let base = (cpu.msr.star >> 48) as u16;
    let code = if LONG { base.wrapping_add(16) } else { base };
    cpu.cpl = 3;
    cpu.seg[sreg::CS] = flat_code(code | 3, 3, LONG);
    cpu.seg[sreg::SS] = flat_stack(base.wrapping_add(8) | 3, 3);
    let flags =
        (cpu.regs[gpr::R11] & rflags::DEFINED & !(rflags::RF | rflags::VM)) | rflags::FIXED_1;
    cpu.set_rflags(flags);
    cpu.next_rip = if LONG { target } else { target & 0xffff_ffff };
    cpu.mode_changed();
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Flow {
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

/// LDS, LES, LFS, LGS, LSS: `src` is the segment, `extra` the offset's size.
fn load_far_pointer(cpu: &mut Cpu, op: &Op) -> Flow {
    let (selector, offset) = far_pointer(cpu, op, u64::from(op.extra))?;
    cpu.load_segment(usize::from(op.src), selector)?;
    match op.extra {
        2 => u16::set_reg(cpu, op.dst, offset as u16),
        4 => u32::set_reg(cpu, op.dst, offset as u32),
        _ => u64::set_reg(cpu, op.dst, offset),
    }
    cpu.next_rip = cpu.rip_after(op);
    Ok(())
}

pub fn bind_load_far(form: &Form, op: &mut Op) -> Option<Handler> {
    op.extra = form.size(0) as u16;
    op.src = match form.mnemonic() {
        Mnemonic::Les => sreg::ES,
        Mnemonic::Lss => sreg::SS,
        Mnemonic::Lds => sreg::DS,
        Mnemonic::Lfs => sreg::FS,
        _ => sreg::GS,
    } as u8;
    Some(load_far_pointer)
}

/// LAR, LSL, VERR, VERW ask what a selector would give.
fn probe(cpu: &mut Cpu, op: &Op, selector: Selector, what: Mnemonic) -> Result<Option<u64>, Trap> {
    if !cpu.protected() || cpu.v8086() {
        return cpu.ud();
    }
    let _ = op;
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
    Ok(Selector(if memory {
        Mem::get::<u16>(cpu, op)?
    } else {
        u16::reg(cpu, register)
    }))
}

fn lar_lsl<T: Int, const LAR: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = selector_operand(cpu, op, MEMORY, op.src)?;
    let what = if LAR { Mnemonic::Lar } else { Mnemonic::Lsl };
    let found = probe(cpu, op, selector, what)?;
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
    let found = probe(cpu, op, selector, what)?;
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
    if !cpu.protected() || cpu.v8086() {
        return cpu.ud();
    }
    let source = u16::reg(cpu, op.src) & 3;
    let adjust = |cpu: &mut Cpu, v: u16| {
        let lower = v & 3 < source;
        cpu.flags.set_zf(lower);
        if lower { (v & !3) | source } else { v }
    };
    if MEMORY {
        let va = cpu.linear(op, 2, true)?;
        cpu.modify_linear(va, adjust)
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
