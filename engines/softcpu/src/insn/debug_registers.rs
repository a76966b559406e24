//! MOV with debug registers (SDM Vol 3 18.2; Vol 2).

use x86defs::cr::{cr4, dr};
use x86defs::exception::DB;

use super::form::Form;
use super::next;
use super::operand::Int;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Fault, Flow, Trap};
use crate::vmx::Intercept;

/// DR accesses: general detect, CR4.DE aliasing (SDM Vol 3 18.2).
fn debug_register(cpu: &mut Cpu, n: u8, gpr: u8, read: bool) -> Result<usize, Trap> {
    // This one exit comes before the faults of privilege and CR4.DE (SDM Vol 3 26.1.3).
    cpu.intercept(Intercept::DrAccess { dr: n, gpr, read })?;
    if matches!(n, 4 | 5) && cpu.cr4 & cr4::DE != 0 {
        return cpu.ud();
    }
    cpu.require_cpl0()?;
    if cpu.dr7 & dr::DR7_GD != 0 {
        cpu.fault = Fault {
            vector: DB,
            error_code: 0,
            detail: dr::DR6_BD,
        };
        return Err(Trap::Exception);
    }
    Ok(usize::from(if matches!(n, 4 | 5) { n + 2 } else { n }))
}

fn read_dr<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let n = debug_register(cpu, op.src, op.dst, true)?;
    let v = match n {
        0..=3 => cpu.dr[n],
        6 => cpu.dr6,
        _ => cpu.dr7,
    };
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

fn write_dr<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let n = debug_register(cpu, op.dst, op.src, false)?;
    let v = T::reg(cpu, op.src).to_u64();
    if n >= 6 && v >> 32 != 0 {
        return cpu.gp0();
    }
    match n {
        0..=3 => cpu.dr[n] = v,
        6 => cpu.dr6 = (v & dr::DR6_WRITABLE) | dr::DR6_FIXED_1,
        _ => {
            cpu.dr7 = (v & dr::DR7_WRITABLE) | dr::DR7_FIXED_1;
            cpu.debug_changed();
        }
    }
    next(cpu, op)
}

/// MOV from a debug register.
pub fn bind_read(form: &Form) -> Handler {
    if form.long64() {
        read_dr::<u64>
    } else {
        read_dr::<u32>
    }
}

/// MOV to a debug register.
pub fn bind_write(form: &Form) -> Handler {
    if form.long64() {
        write_dr::<u64>
    } else {
        write_dr::<u32>
    }
}
