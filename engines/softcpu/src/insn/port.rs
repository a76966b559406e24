//! IN and OUT, and who may use a port (SDM Vol 1 chapter 19; Vol 2).

use iced_x86::Mnemonic;

use super::form::{Form, Kind};
use super::next;
use super::operand::Int;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap, gpr};
use crate::vmx::{Intercept, IoAccess};

impl Cpu {
    /// Port permission: IOPL, then the TSS's bitmap (SDM Vol 1 19.5).
    pub fn check_io_permission(&mut self, port: u16, size_bytes: u8) -> Flow {
        if !self.protected() || (self.cpl <= self.iopl() && !self.v8086()) {
            return Ok(());
        }
        // A 16-bit TSS has no bitmap.
        if self.tr.access.segment_type() & 8 == 0 || self.tr.limit < 0x67 {
            return self.gp0();
        }
        let map: u16 = self.read_system(self.tr.base.wrapping_add(0x66))?;
        let at = u64::from(map) + u64::from(port) / 8;
        if at + 1 > u64::from(self.tr.limit) {
            return self.gp0();
        }
        let bits: u16 = self.read_system(self.tr.base.wrapping_add(at))?;
        let wanted = ((1u16 << size_bytes) - 1) << (port & 7);
        if bits & wanted != 0 {
            self.gp0()
        } else {
            Ok(())
        }
    }
}

fn port<T: Int>(cpu: &mut Cpu, op: &Op, input: bool) -> Result<u16, Trap> {
    let immediate = op.extra == 1;
    let port = if immediate {
        op.imm as u16 & 0xff
    } else {
        cpu.regs[gpr::RDX] as u16
    };
    cpu.check_io_permission(port, T::SIZE as u8)?;
    cpu.intercept(Intercept::Io(IoAccess {
        port,
        size_bytes: T::SIZE as u8,
        input,
        string: false,
        rep: false,
        immediate,
        linear: 0,
    }))?;
    cpu.watch_io(port, T::SIZE as u8);
    Ok(port)
}

fn input<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = port::<T>(cpu, op, true)?;
    let retired = cpu.retired_now();
    let v = cpu.platform.pio_read(port, T::SIZE as u8, retired);
    T::set_reg(cpu, 0, T::from_u64(u64::from(v)));
    next(cpu, op)
}

fn output<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = port::<T>(cpu, op, false)?;
    let v = T::reg(cpu, 0).to_u64() as u32;
    let retired = cpu.retired_now();
    cpu.platform.pio_write(port, T::SIZE as u8, v, retired);
    cpu.end_slice();
    cpu.follow_remap();
    next(cpu, op)
}

pub fn bind_io(form: &Form, op: &mut Op) -> Option<Handler> {
    let is_in = form.mnemonic() == Mnemonic::In;
    let data = if is_in { form.size(0) } else { form.size(1) };
    let other = if is_in { form.kind(1) } else { form.kind(0) };
    op.extra = u16::from(other == Kind::Imm);
    Some(match (is_in, data) {
        (true, 1) => input::<u8>,
        (true, 2) => input::<u16>,
        (true, _) => input::<u32>,
        (false, 1) => output::<u8>,
        (false, 2) => output::<u16>,
        (false, _) => output::<u32>,
    })
}
