//! Far RET, and what it shares with IRET (SDM Vol 2; Vol 3 5.8.6).

use iced_x86::Code;
use vcpu::SegmentRegister;
use x86defs::exception::{GP, NP, SS};
use x86defs::segment::{Access, Descriptor, Selector};

use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap, canonical, gpr, sreg};
use crate::event::{null_stack, segment_of};
use crate::insn::form::Form;
use crate::insn::operand::Int;

/// What RETF and IRET have in common: where they return to.
pub(super) struct Return {
    pub code: Descriptor,
    pub code_at: u64,
    /// To 64-bit mode.
    pub to64: bool,
}

/// Checks the code segment of a return (SDM Vol 2, RET and IRET).
pub(super) fn return_target(cpu: &mut Cpu, cs: Selector) -> Result<Return, Trap> {
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
    Ok(Return {
        code,
        code_at,
        to64: cpu.long_mode() && a.long(),
    })
}

/// Checks the instruction pointer of a return, which comes after the stack's checks.
pub(super) fn check_return_pointer(cpu: &mut Cpu, r: &Return, rip: u64) -> Flow {
    let inside = if r.to64 {
        canonical(rip)
    } else {
        rip <= u64::from(r.code.limit())
    };
    if inside { Ok(()) } else { cpu.gp0() }
}

/// Checks the stack segment of a return to an outer level (or any 64-bit IRET).
pub(super) fn return_stack(
    cpu: &mut Cpu,
    ss: Selector,
    rpl: u8,
    to64: bool,
) -> Result<SegmentRegister, Trap> {
    if ss.is_null() {
        if to64 && rpl < 3 && ss.rpl() == rpl {
            return Ok(null_stack(ss, rpl));
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
pub(super) fn drop_privileged_segments(cpu: &mut Cpu) {
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
pub(super) fn load_outer_stack<T: Int>(cpu: &mut Cpu, value: u64, to64: bool) {
    let old = cpu.regs[gpr::RSP];
    let narrow = !to64 && !cpu.seg[sreg::SS].access.default_big();
    cpu.regs[gpr::RSP] = if narrow {
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
        if rip > u64::from(cpu.seg[sreg::CS].limit) {
            return cpu.gp0();
        }
        cpu.release_stack(2 * T::SIZE + op.imm);
        cpu.load_code_real(cs);
        cpu.next_rip = rip;
        return Ok(());
    }
    let r = return_target(cpu, cs)?;
    let outer = cs.rpl() > cpu.cpl;
    let mut stack = None;
    if outer {
        let rsp = cpu.peek::<T>(2 * T::SIZE + op.imm)?.to_u64();
        let ss = Selector(cpu.peek::<T>(3 * T::SIZE + op.imm)?.to_u64() as u16);
        stack = Some((rsp, return_stack(cpu, ss, cs.rpl(), r.to64)?));
    }
    check_return_pointer(cpu, &r, rip)?;
    let d = cpu.mark_accessed(r.code, r.code_at)?;
    match stack {
        None => cpu.release_stack(2 * T::SIZE + op.imm),
        Some((rsp, ss)) => {
            cpu.seg[sreg::SS] = ss;
            load_outer_stack::<T>(cpu, rsp.wrapping_add(op.imm), r.to64);
            cpu.cpl = cs.rpl();
            drop_privileged_segments(cpu);
        }
    }
    cpu.seg[sreg::CS] = segment_of(cs, d);
    cpu.next_rip = rip;
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
