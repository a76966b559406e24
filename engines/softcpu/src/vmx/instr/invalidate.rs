//! INVEPT and INVVPID.

use x86defs::vmx::instruction::{invept as ept_type, invvpid as vpid_type};
use x86defs::vmx::{ExitReason, InstructionError as E};

use super::Operands;
use crate::code::Op;
use crate::cpu::{Cpu, Flow, Trap, canonical};
use crate::vmx::entry::controls::eptp_is_valid;

impl Cpu {
    /// The type in the register operand.
    fn invalidation_type(&self, op: &Op) -> u64 {
        let value = self.regs[usize::from(op.dst & 31)];
        if self.long64 {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// The 128-bit descriptor in memory.
    fn invalidation_descriptor(&mut self, op: &Op) -> Result<(u64, u64), Trap> {
        let va = self.linear(op, 16, false)?;
        let mut bytes = [0; 16];
        self.read_bytes(va, &mut bytes)?;
        let both = u128::from_le_bytes(bytes);
        Ok((both as u64, (both >> 64) as u64))
    }

    /// EPT pointers with the same bits 51:12 share their cached mappings (SDM Vol 3 29.4.2).
    fn flush_ept(&mut self, eptp: Option<u64>) {
        self.vmx.ept_cache.flush(eptp);
        match eptp {
            Some(p) => self.tlb.flush(|s| s.eptp != 0 && s.eptp >> 12 == p >> 12),
            None => self.tlb.flush(|s| s.eptp != 0),
        }
    }
}

/// INVEPT.
pub fn invept(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Invept, Operands::Invalidation)?;
    let kind = cpu.invalidation_type(op);
    if !matches!(kind, ept_type::SINGLE_CONTEXT | ept_type::ALL_CONTEXT) {
        cpu.vm_fail(E::InvalidInvalidation);
        return Ok(());
    }
    let (eptp, _) = cpu.invalidation_descriptor(op)?;
    if kind == ept_type::SINGLE_CONTEXT {
        if !eptp_is_valid(&cpu.vmx.caps, eptp) {
            cpu.vm_fail(E::InvalidInvalidation);
            return Ok(());
        }
        cpu.flush_ept(Some(eptp));
    } else {
        cpu.flush_ept(None);
    }
    cpu.vm_succeed();
    Ok(())
}

/// INVVPID.
pub fn invvpid(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_gate(op, ExitReason::Invvpid, Operands::Invalidation)?;
    let kind = cpu.invalidation_type(op);
    if kind > vpid_type::RETAINING_GLOBALS {
        cpu.vm_fail(E::InvalidInvalidation);
        return Ok(());
    }
    let (low, address) = cpu.invalidation_descriptor(op)?;
    let vpid = low as u16;
    let valid = low >> 16 == 0
        && (kind == vpid_type::ALL_CONTEXT || vpid != 0)
        && (kind != vpid_type::INDIVIDUAL_ADDRESS || canonical(address));
    if !valid {
        cpu.vm_fail(E::InvalidInvalidation);
        return Ok(());
    }
    match kind {
        vpid_type::INDIVIDUAL_ADDRESS => cpu.flush_linear(address, |s| s.vpid == vpid),
        vpid_type::ALL_CONTEXT => cpu.tlb.flush(|s| s.vpid != 0),
        // Global translations may go too: an invalidation may always do more (SDM Vol 3 29.4.3.4).
        _ => cpu.tlb.flush(|s| s.vpid == vpid),
    }
    cpu.vm_succeed();
    Ok(())
}
