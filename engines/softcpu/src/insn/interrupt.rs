//! INT n, INT3, INTO, INT1 and BOUND (SDM Vol 2; Vol 3 6.4).

use iced_x86::Mnemonic;
use x86defs::exception::{BP, BR, DB, OF};
use x86defs::rflags;

use super::form::Form;
use super::next;
use super::operand::Int;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Event, EventKind, Flow, RIP};

/// INT n, INT3, INTO, INT1: delivered here, because the return address is behind the instruction.
fn software_interrupt(cpu: &mut Cpu, op: &Op, vector: u8, kind: EventKind) -> Flow {
    if cpu.v8086()
        && kind == EventKind::SoftwareInterrupt
        && cpu.iopl() < 3
        && !cpu.v8086_redirects(vector)?
    {
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
    // Only a task switch leaves RF set.
    cpu.trapped_kind_sets_rf = done.is_ok() && cpu.rflags_rest & rflags::RF != 0;
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
    next(cpu, op)
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
