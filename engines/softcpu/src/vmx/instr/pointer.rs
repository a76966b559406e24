//! VMXON, VMXOFF, VMPTRLD, VMPTRST, VMCLEAR: entering VMX operation and naming VMCSs.

use guestmem::Gpa;
use x86defs::cr::cr4;
use x86defs::vmx::capability::feature_control;
use x86defs::vmx::{ExitReason, InstructionError as E};

use super::Operands;
use crate::code::Op;
use crate::cpu::{Cpu, Flow};
use crate::vmx::vmcs::region::{REVISION, SHADOW_INDICATOR};
use crate::vmx::{Current, Vmx};

impl Vmx {
    /// Whether an address may be a VMXON or VMCS pointer: 4-KByte aligned, inside the physical width.
    fn valid_pointer(&self, address: u64) -> bool {
        address & 0xfff == 0 && self.caps.fits_physical(address)
    }
}

/// VMXON.
pub fn vmxon(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cr4 & cr4::VMXE == 0 || !cpu.vmx_mode() {
        return cpu.ud();
    }
    if cpu.vmx.in_guest {
        return cpu.vmx_instruction_exit(op, ExitReason::Vmxon, Operands::Memory);
    }
    cpu.require_cpl0()?;
    cpu.vmx_goes_on(op);
    if cpu.vmx.in_operation() {
        cpu.vm_fail(E::VmxonInRoot);
        return Ok(());
    }
    let needed = feature_control::LOCK | feature_control::VMX_OUTSIDE_SMX;
    let ready = cpu.vmx.caps.cr0_allowed(cpu.cr0)
        && cpu.vmx.caps.cr4_allowed(cpu.cr4)
        && cpu.msr.feature_control & needed == needed;
    if !ready {
        return cpu.gp0();
    }
    let pointer = cpu.operand64(op)?;
    let valid = cpu.vmx.valid_pointer(pointer) && cpu.read_phys::<u32>(pointer) == REVISION;
    if !valid {
        cpu.vm_fail_invalid();
        return Ok(());
    }
    cpu.vmx.vmxon = Some(Gpa(pointer));
    cpu.vmx.current = None;
    cpu.vm_succeed();
    Ok(())
}

/// VMXOFF.
pub fn vmxoff(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Vmxoff, Operands::None)?;
    // VMCSs that were not cleared keep their data on chip; a VMPTRLD after the next VMXON may find it.
    cpu.vmx.vmxon = None;
    cpu.vmx.current = None;
    cpu.vmx.shadow = None;
    // INIT signals were blocked.
    cpu.pending |= crate::cpu::pending::SIGNAL;
    cpu.vm_succeed();
    Ok(())
}

/// VMPTRLD.
pub fn vmptrld(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Vmptrld, Operands::Memory)?;
    let pointer = cpu.operand64(op)?;
    if !cpu.vmx.valid_pointer(pointer) {
        cpu.vm_fail(E::VmptrldInvalidAddress);
        return Ok(());
    }
    let pointer = Gpa(pointer);
    if cpu.vmx.vmxon == Some(pointer) {
        cpu.vm_fail(E::VmptrldVmxonPointer);
        return Ok(());
    }
    // The model has VMCS shadowing, so the shadow-VMCS indicator is allowed here.
    let revision = cpu.read_phys::<u32>(pointer.0);
    let keep = [cpu.vmx.current.map(|c| c.slot), None];
    let known = revision & !SHADOW_INDICATOR == REVISION;
    let active = if known {
        cpu.vmx.cache.activate(&cpu.ram, pointer, keep)
    } else {
        None
    };
    let Some((slot, written)) = active else {
        cpu.vm_fail(E::VmptrldRevision);
        return Ok(());
    };
    if let Some(w) = written {
        cpu.region_written(w);
    }
    cpu.vmx.current = Some(Current { pointer, slot });
    cpu.vm_succeed();
    Ok(())
}

/// VMPTRST.
pub fn vmptrst(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Vmptrst, Operands::Memory)?;
    let value = cpu.vmx.current.map_or(u64::MAX, |c| c.pointer.0);
    let va = cpu.linear(op, 8, true)?;
    cpu.write_linear(va, value)?;
    cpu.vm_succeed();
    Ok(())
}

/// VMCLEAR.
pub fn vmclear(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Vmclear, Operands::Memory)?;
    let pointer = cpu.operand64(op)?;
    if !cpu.vmx.valid_pointer(pointer) {
        cpu.vm_fail(E::VmclearInvalidAddress);
        return Ok(());
    }
    let pointer = Gpa(pointer);
    if cpu.vmx.vmxon == Some(pointer) {
        cpu.vm_fail(E::VmclearVmxonPointer);
        return Ok(());
    }
    if let Some(w) = cpu.vmx.cache.clear(&cpu.ram, pointer) {
        cpu.region_written(w);
    }
    if cpu.vmx.current.is_some_and(|c| c.pointer == pointer) {
        cpu.vmx.current = None;
    }
    cpu.vm_succeed();
    Ok(())
}
