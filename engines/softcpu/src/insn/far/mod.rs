//! Far transfers: far JMP and CALL here, through call gates in [`gate`], far RET in [`ret`], IRET in [`iret`]
//! (SDM Vol 2; Vol 3 5.8).

mod gate;
mod iret;
mod ret;

use iced_x86::{Code, Mnemonic};
use x86defs::exception::{GP, NP};
use x86defs::segment::Selector;

use super::form::{Form, Kind};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap, canonical, gpr, sreg};
use crate::event::{Stack, segment_of};
pub use iret::bind_iret;
pub use ret::bind_retf;

/// Selector and offset of a far pointer in memory; the operand size is `size`.
pub(super) fn far_pointer(cpu: &mut Cpu, op: &Op, size: u64) -> Result<(Selector, u64), Trap> {
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

/// Pushes words one after the other, if there is room for all of them. The stack pointer may have moved when it fails.
fn push_all(cpu: &mut Cpu, size: u64, words: &[u64]) -> Flow {
    if !cpu.long64 {
        let stack = Stack {
            ss: cpu.seg[sreg::SS],
            sp: cpu.regs[gpr::RSP],
            cpl: cpu.cpl,
        };
        cpu.stack_room(&stack, words.len(), size, 0)?;
    }
    words.iter().try_for_each(|&w| push_sized(cpu, size, w))
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
        if offset > u64::from(cpu.seg[sreg::CS].limit) {
            return cpu.gp0();
        }
        if call {
            let done = push_all(cpu, size, &[old_cs, back]);
            if let Err(t) = done {
                cpu.regs[gpr::RSP] = rsp;
                return Err(t);
            }
        }
        cpu.load_code_real(selector);
        cpu.next_rip = offset;
        return Ok(());
    }
    if selector.is_null() {
        return cpu.gp0();
    }
    let (d, at) = cpu.read_descriptor(selector, GP)?;
    let a = d.access();
    let error = selector.error_code();
    if !a.is_code_or_data() {
        return gate::far_to_system(cpu, op, selector, d, call);
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
        let done = push_all(cpu, size, &[old_cs, back]);
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
