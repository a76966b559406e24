//! IRET, IRETD, IRETQ (SDM Vol 2).

use iced_x86::Mnemonic;
use x86defs::rflags;
use x86defs::segment::Selector;

use super::ret::{
    check_return_pointer, drop_privileged_segments, load_outer_stack, return_stack, return_target,
};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, gpr, sreg};
use crate::event::{Via, segment_of, v8086_segment};
use crate::insn::form::Form;
use crate::insn::operand::Int;

/// IRET, IRETD, IRETQ.
fn iret<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.serialize();
    // NMIs are unblocked even if the rest faults (SDM Vol 3 6.7.1).
    cpu.iret_unblocks_nmi();
    let done = interrupt_return::<T>(cpu, op);
    if done.is_ok() {
        cpu.vmx.iret_unblocked = false;
    }
    done
}

fn interrupt_return<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    if !cpu.protected() || cpu.v8086() {
        return iret_real::<T>(cpu);
    }
    if cpu.rflags_rest & rflags::NT != 0 {
        if cpu.long_mode() {
            return cpu.gp0();
        }
        let tss = cpu.linked_tss()?;
        return cpu.switch_by_instruction(op, Via::Iret, tss);
    }
    let rip = cpu.peek::<T>(0)?.to_u64();
    let cs = Selector(cpu.peek::<T>(T::SIZE)?.to_u64() as u16);
    let image = cpu.peek::<T>(2 * T::SIZE)?.to_u64();
    if !cpu.long_mode() && image & rflags::VM != 0 && cpu.cpl == 0 && T::SIZE == 4 {
        return iret_to_v8086(cpu, rip, cs, image);
    }
    let r = return_target(cpu, cs)?;
    let outer = cs.rpl() > cpu.cpl;
    let mut stack = None;
    if outer || cpu.long64 {
        let rsp = cpu.peek::<T>(3 * T::SIZE)?.to_u64();
        let ss = Selector(cpu.peek::<T>(4 * T::SIZE)?.to_u64() as u16);
        stack = Some((rsp, return_stack(cpu, ss, cs.rpl(), r.to64)?));
    }
    check_return_pointer(cpu, &r, rip)?;
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
            load_outer_stack::<T>(cpu, rsp, r.to64);
        }
    }
    let flags = (cpu.rflags() & !writable & !rflags::RF) | (image & writable);
    let flags = resume(cpu, flags);
    cpu.seg[sreg::CS] = segment_of(cs, d);
    if outer {
        cpu.cpl = cs.rpl();
        drop_privileged_segments(cpu);
    }
    cpu.set_rflags(flags);
    cpu.next_rip = rip;
    cpu.mode_changed();
    Ok(())
}

/// RF in the flags IRET loads. It only matters to breakpoints: without any it is left out, so that the next
/// instruction need not be stepped to clear it.
fn resume(cpu: &mut Cpu, flags: u64) -> u64 {
    let flags = if cpu.dr7 & 0xff == 0 {
        flags & !rflags::RF
    } else {
        flags
    };
    cpu.trapped_kind_sets_rf = flags & rflags::RF != 0;
    flags
}

fn iret_real<T: Int>(cpu: &mut Cpu) -> Flow {
    let virtual_flag = T::SIZE == 2 && cpu.has_virtual_interrupt_flag();
    if cpu.v8086() && cpu.iopl() < 3 && !virtual_flag {
        return cpu.gp0();
    }
    let rip = cpu.peek::<T>(0)?.to_u64();
    let cs = Selector(cpu.peek::<T>(T::SIZE)?.to_u64() as u16);
    let image = cpu.peek::<T>(2 * T::SIZE)?.to_u64();
    if rip > u64::from(cpu.seg[sreg::CS].limit) {
        return cpu.gp0();
    }
    let virtual_flags = match virtual_flag {
        true => Some(cpu.load_virtual_flags(image)?),
        false => None,
    };
    cpu.release_stack(3 * T::SIZE);
    cpu.load_code_real(cs);
    let mut writable = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::IF;
    if !cpu.v8086() {
        writable |= rflags::IOPL;
    }
    if T::SIZE >= 4 {
        writable |= rflags::RF | rflags::AC | rflags::ID;
    }
    let flags = (cpu.rflags() & !writable & !rflags::RF) | (image & writable);
    let flags = resume(cpu, virtual_flags.unwrap_or(flags));
    cpu.set_rflags(flags);
    cpu.next_rip = rip;
    Ok(())
}

fn iret_to_v8086(cpu: &mut Cpu, rip: u64, cs: Selector, image: u64) -> Flow {
    let mut words = [0u64; 6];
    for (i, w) in words.iter_mut().enumerate() {
        *w = u64::from(cpu.peek::<u32>(12 + 4 * i as u64)?);
    }
    if rip > 0xffff {
        return cpu.gp0();
    }
    let flags = resume(cpu, image & rflags::DEFINED);
    cpu.set_rflags(flags);
    cpu.cpl = 3;
    cpu.seg[sreg::CS] = v8086_segment(cs);
    cpu.regs[gpr::RSP] = words[0];
    for (s, w) in [sreg::SS, sreg::ES, sreg::DS, sreg::FS, sreg::GS]
        .into_iter()
        .zip(&words[1..])
    {
        cpu.seg[s] = v8086_segment(Selector(*w as u16));
    }
    cpu.next_rip = rip;
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
