//! Instructions on single flags: CLC, STC, CMC, CLD, STD, LAHF, SAHF, CLI, STI, CLAC, STAC (SDM Vol 2).

use iced_x86::Mnemonic;
use x86defs::cr::cr4;
use x86defs::rflags;

use super::form::Form;
use super::next;
use super::operand::Int;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Shadow, pending};

fn flag_instruction(cpu: &mut Cpu, op: &Op) -> Flow {
    match op.extra {
        0 => cpu.flags.set_cf(false),
        1 => cpu.flags.set_cf(true),
        2 => {
            let cf = cpu.flags.cf();
            cpu.flags.set_cf(!cf);
        }
        3 => cpu.rflags_rest &= !rflags::DF,
        4 => cpu.rflags_rest |= rflags::DF,
        5 => {
            let image = cpu.flags.bits() & 0xff | rflags::FIXED_1;
            u8::set_reg(cpu, 0x20, image as u8);
        }
        7 => {
            // SALC (APM Vol 3 Table A-1, D6h; not in the SDM, though its processors have it).
            let carry = cpu.flags.bits() & rflags::CF != 0;
            u8::set_reg(cpu, 0, if carry { 0xff } else { 0 });
        }
        _ => {
            let low = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF;
            let ah = u64::from(u8::reg(cpu, 0x20));
            let bits = (cpu.flags.bits() & !low) | (ah & low);
            cpu.flags.set_bits(bits);
        }
    }
    Ok(())
}

fn cli(cpu: &mut Cpu, op: &Op) -> Flow {
    let _ = op;
    if cpu.interrupt_flag_is_virtual() {
        cpu.rflags_rest &= !rflags::VIF;
        return Ok(());
    }
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        return cpu.gp0();
    }
    cpu.rflags_rest &= !rflags::IF;
    Ok(())
}

fn sti(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.interrupt_flag_is_virtual() {
        if cpu.rflags_rest & rflags::VIP != 0 {
            return cpu.gp0();
        }
        cpu.rflags_rest |= rflags::VIF;
        return next(cpu, op);
    }
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        return cpu.gp0();
    }
    if cpu.rflags_rest & rflags::IF == 0 {
        cpu.rflags_rest |= rflags::IF;
        cpu.interrupts_opened();
        // With the next instruction in its block a boundary comes only behind that.
        if op.extra == 0 {
            cpu.shadow = Shadow::Sti;
            cpu.pending |= pending::SHADOW;
        } else if cpu.vmx.in_guest {
            // A VM exit of that one tells of it.
            cpu.shadow = Shadow::StiInBlock;
            cpu.pending |= pending::SHADOW;
        }
    }
    next(cpu, op)
}

fn alignment_flag<const SET: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cpl != 0 || cpu.model.cr4_allowed & cr4::SMAP == 0 {
        return cpu.ud();
    }
    let _ = op;
    if SET {
        cpu.rflags_rest |= rflags::AC;
    } else {
        cpu.rflags_rest &= !rflags::AC;
    }
    cpu.select_view();
    Ok(())
}

pub fn bind_flag(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    op.extra = match form.mnemonic() {
        M::Clc => 0,
        M::Stc => 1,
        M::Cmc => 2,
        M::Cld => 3,
        M::Std => 4,
        M::Lahf => 5,
        M::Sahf => 6,
        M::Salc => 7,
        M::Cli => return Some(cli),
        M::Sti => return Some(sti),
        M::Stac => return Some(alignment_flag::<true>),
        _ => return Some(alignment_flag::<false>),
    };
    Some(flag_instruction)
}
