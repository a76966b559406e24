//! VMREAD and VMWRITE, of the current VMCS and, in non-root operation, of the shadow VMCS.

use x86defs::rflags;
use x86defs::vmx::control::secondary;
use x86defs::vmx::{ExitReason, FieldAccess, InstructionError as E, VmcsField as F};

use super::{Operands, REGISTER_FORM};
use crate::code::Op;
use crate::cpu::{Cpu, Flow, Trap};
use crate::insn::operand::{Dst, Mem, Place, Source, Src};
use crate::vmx::vmcs::cache::Slot;

/// Bits of an encoding that the VMREAD and VMWRITE bitmaps cover (SDM Vol 3 25.6.15).
const BITMAP_BITS: u64 = 0x7fff;

impl Cpu {
    /// The VMCS that VMREAD or VMWRITE of a field goes to; `None` after VMfailInvalid.
    #[inline]
    fn accessed_vmcs(
        &mut self,
        op: &Op,
        reason: ExitReason,
        operands: Operands,
        encoding: u64,
    ) -> Result<Option<Slot>, Trap> {
        if self.vmx.in_guest && self.shadowed(reason, encoding) && self.vmx_mode() {
            self.require_cpl0()?;
            if self.vmx.shadow.is_none() {
                self.vm_fail_invalid();
            }
            return Ok(self.vmx.shadow);
        }
        self.vmx_gate(op, reason, operands)?;
        match self.vmx.current {
            Some(c) => Ok(Some(c.slot)),
            None => {
                self.vm_fail_invalid();
                Ok(None)
            }
        }
    }

    /// Whether an access in non-root operation goes to the shadow VMCS instead of exiting (SDM Vol 3 26.1.3).
    fn shadowed(&self, reason: ExitReason, encoding: u64) -> bool {
        if !self.vmx.secondary(secondary::VMCS_SHADOWING) || encoding & !BITMAP_BITS != 0 {
            return false;
        }
        let bitmap = if reason == ExitReason::Vmread {
            F::VmreadBitmap
        } else {
            F::VmwriteBitmap
        };
        let at = self.vmx.current_vmcs().get(bitmap) + encoding / 8;
        let byte: u8 = self.read_phys(at);
        byte >> (encoding & 7) & 1 == 0
    }

    /// The field a register names, if the model has it (SDM Vol 3 25.11.2).
    #[inline]
    fn field(&self, encoding: u64) -> Option<(F, FieldAccess)> {
        let (field, access) = F::decode(u32::try_from(encoding).ok()?)?;
        self.vmx.caps.has_field(field).then_some((field, access))
    }

    /// A register that holds an encoding: 32 bits outside 64-bit mode.
    #[inline]
    fn encoding(&self, register: u8) -> u64 {
        let value = self.regs[usize::from(register & 31)];
        if self.long64 {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// VMfailValid with the error in the VMCS that was accessed.
    fn fail_access(&mut self, slot: Slot, error: E) {
        self.flags.set_bits(rflags::ZF);
        let vmcs = self.vmx.cache.get_mut(slot);
        vmcs.set(F::InstructionError, u64::from(error as u32));
    }
}

/// VMREAD: the encoding in `src`, the destination in `dst` or memory.
pub fn vmread(cpu: &mut Cpu, op: &Op) -> Flow {
    let encoding = cpu.encoding(op.src);
    let operands = Operands::Field {
        encoding: op.src,
        value: op.dst,
    };
    let Some(slot) = cpu.accessed_vmcs(op, ExitReason::Vmread, operands, encoding)? else {
        return Ok(());
    };
    let Some((field, access)) = cpu.field(encoding) else {
        cpu.fail_access(slot, E::UnsupportedComponent);
        return Ok(());
    };
    let value = cpu.vmx.cache.get(slot).read(field, access);
    match (op.extra & REGISTER_FORM != 0, cpu.long64) {
        (true, true) => Dst::set::<u64>(cpu, op, value)?,
        (true, false) => Dst::set::<u32>(cpu, op, value as u32)?,
        (false, true) => Mem::set::<u64>(cpu, op, value)?,
        (false, false) => Mem::set::<u32>(cpu, op, value as u32)?,
    }
    cpu.vm_succeed();
    Ok(())
}

/// VMWRITE: the encoding in `dst`, the value in `src` or memory.
pub fn vmwrite(cpu: &mut Cpu, op: &Op) -> Flow {
    let encoding = cpu.encoding(op.dst);
    let operands = Operands::Field {
        encoding: op.dst,
        value: op.src,
    };
    let Some(slot) = cpu.accessed_vmcs(op, ExitReason::Vmwrite, operands, encoding)? else {
        return Ok(());
    };
    let value = match (op.extra & REGISTER_FORM != 0, cpu.long64) {
        (true, true) => Src::get::<u64>(cpu, op)?,
        (true, false) => u64::from(Src::get::<u32>(cpu, op)?),
        (false, true) => Mem::get::<u64>(cpu, op)?,
        (false, false) => u64::from(Mem::get::<u32>(cpu, op)?),
    };
    let Some((field, access)) = cpu.field(encoding) else {
        cpu.fail_access(slot, E::UnsupportedComponent);
        return Ok(());
    };
    // IA32_VMX_MISC bit 29 is set: VM-exit information fields can be written too.
    cpu.vmx.cache.get_mut(slot).write(field, access, value);
    cpu.vm_succeed();
    Ok(())
}
