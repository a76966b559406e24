//! Segment registers: MOV, LDS and its like, SWAPGS, RDFSBASE and its like (SDM Vol 2).

use iced_x86::{Mnemonic, Register};
use x86defs::cr::cr4;
use x86defs::segment::Selector;

use super::far::far_pointer;
use super::form::{Form, Kind};
use super::operand::{Int, Mem, Place, Source};
use super::{control_registers, debug_registers, next};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Shadow, canonical, pending, sreg};

fn store_segment<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.seg[usize::from(op.src) % 6].selector.0;
    if MEMORY {
        return Mem::set::<u16>(cpu, op, selector);
    }
    T::set_reg(cpu, op.dst, T::from_u64(u64::from(selector)));
    Ok(())
}

fn move_to_segment<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = if MEMORY {
        Mem::get::<u16>(cpu, op)?
    } else {
        u16::reg(cpu, op.src)
    };
    let seg = usize::from(op.dst) % 6;
    cpu.load_segment(seg, Selector(selector))?;
    if seg == sreg::SS {
        cpu.shadow = Shadow::MovSs;
        cpu.pending |= pending::SHADOW;
    }
    next(cpu, op)
}

/// MOV with a segment, control or debug register.
pub fn bind_mov_special(form: &Form, _: &mut Op) -> Option<Handler> {
    let (r0, r1) = (form.insn.op0_register(), form.insn.op1_register());
    Some(match (r0, r1) {
        (_, s) if s.is_segment_register() => match (form.kind(0), form.size(0)) {
            (Kind::Mem, _) => store_segment::<u16, true>,
            (_, 2) => store_segment::<u16, false>,
            (_, 4) => store_segment::<u32, false>,
            _ => store_segment::<u64, false>,
        },
        (s, _) if s.is_segment_register() => {
            if s == Register::CS {
                super::invalid_opcode
            } else if form.kind(1) == Kind::Mem {
                move_to_segment::<true>
            } else {
                move_to_segment::<false>
            }
        }
        (_, c) if c.is_cr() => control_registers::bind_read(form),
        (c, _) if c.is_cr() => control_registers::bind_write(form),
        (_, d) if d.is_dr() => debug_registers::bind_read(form),
        (d, _) if d.is_dr() => debug_registers::bind_write(form),
        _ => return None,
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
    next(cpu, op)
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

fn swapgs(cpu: &mut Cpu, _: &Op) -> Flow {
    if !cpu.long64 {
        return cpu.ud();
    }
    cpu.require_cpl0()?;
    std::mem::swap(&mut cpu.seg[sreg::GS].base, &mut cpu.msr.kernel_gs_base);
    cpu.ea_base[sreg::GS] = cpu.seg[sreg::GS].base;
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: `src` is the segment, `extra` 1 for writes.
fn segment_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    if !cpu.long64 || cpu.cr4 & cr4::FSGSBASE == 0 {
        return cpu.ud();
    }
    let seg = usize::from(op.src) % 6;
    if op.extra == 0 {
        let v = cpu.seg[seg].base;
        T::set_reg(cpu, op.dst, T::from_u64(v));
        return Ok(());
    }
    let v = T::reg(cpu, op.dst).to_u64();
    if !canonical(v) {
        return cpu.gp0();
    }
    cpu.seg[seg].base = v;
    cpu.ea_base[seg] = v;
    Ok(())
}

/// SWAPGS, RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub fn bind_base(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let m = form.mnemonic();
    if m == M::Swapgs {
        return Some(swapgs);
    }
    op.src = if matches!(m, M::Rdfsbase | M::Wrfsbase) {
        sreg::FS
    } else {
        sreg::GS
    } as u8;
    op.extra = u16::from(matches!(m, M::Wrfsbase | M::Wrgsbase));
    Some(if form.size(0) == 4 {
        segment_base::<u32>
    } else {
        segment_base::<u64>
    })
}
