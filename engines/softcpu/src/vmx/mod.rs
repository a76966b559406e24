//! VT-x (SDM Vol 3 chapters 24 to 32).

mod intercept;

pub use intercept::{DescriptorAccess, Intercept, IoAccess};

use guestmem::Gpa;

use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap};
use crate::insn::Form;
use crate::mem::{EptCache, Space};

/// A VM exit to be taken at the instruction boundary the run loop stands at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitRequest {
    /// Basic exit reason.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest linear address.
    pub linear: u64,
    /// Guest-physical address (L2).
    pub physical: u64,
}

impl ExitRequest {
    /// EPT violation (reason 48).
    pub fn ept_violation(qualification: u64, linear: u64, physical: u64) -> Self {
        Self { reason: 48, qualification, linear, physical }
    }

    /// EPT misconfiguration (reason 49).
    pub fn ept_misconfiguration(physical: u64) -> Self {
        Self { reason: 49, physical, ..Self::default() }
    }
}

/// VT-x state of a vCPU.
#[derive(Default)]
pub struct Vmx {
    /// In VMX non-root operation.
    pub in_guest: bool,
    /// Cached guest-physical mappings.
    pub ept_cache: EptCache,
    /// The APIC-access page, when "virtualize APIC accesses" is in force.
    pub apic_access_page: Option<Gpa>,
    /// Added to the TSC in non-root operation with TSC offsetting.
    pub tsc_offset: u64,
}

impl Cpu {
    /// CR0 or CR4 as the guest reads it (guest/host masks and read shadows, SDM Vol 3 26.3).
    pub fn vmx_read_cr(&self, cr: u8) -> u64 {
        if cr == 0 { self.cr0 } else { self.cr4 }
    }

    /// The value a MOV to CR0 or CR4 really writes, after the intercept question and the masks.
    pub fn vmx_write_cr(&mut self, _cr: u8, value: u64, _gpr: u8) -> Result<u64, Trap> {
        Ok(value)
    }

    /// VPID and EPT pointer translations belong to now (PCID left zero).
    pub fn vmx_space(&self) -> Space {
        Space::default()
    }

    /// Whether VMX operation allows this CR0 (fixed bits).
    pub fn vmx_cr0_allowed(&self, _value: u64) -> bool {
        true
    }

    /// Whether VMX operation allows this CR4 (fixed bits).
    pub fn vmx_cr4_allowed(&self, _value: u64) -> bool {
        true
    }

    /// A new CR0 with the bits the hypervisor owns kept as they are (LMSW).
    pub fn vmx_mask_cr0(&self, value: u64) -> u64 {
        value
    }

    /// CLTS in non-root operation: exit, or whether TS is to be cleared.
    pub fn vmx_clts(&mut self) -> Result<bool, Trap> {
        Ok(true)
    }

    /// #UD when "enable RDTSCP" is off in non-root operation.
    pub fn vmx_rdtscp_enabled(&mut self) -> Flow {
        Ok(())
    }

    /// #UD when "enable INVPCID" is off in non-root operation.
    pub fn vmx_invpcid_enabled(&mut self) -> Flow {
        Ok(())
    }

    /// An MSR the processor virtualizes for the guest (x2APIC virtualization).
    pub fn vmx_read_virtualized_msr(&mut self, _msr: u32) -> Option<u64> {
        None
    }

    /// The same for writes: whether the write was taken.
    pub fn vmx_write_virtualized_msr(&mut self, _msr: u32, _value: u64) -> Result<bool, Trap> {
        Ok(false)
    }

    /// A VMX capability MSR.
    pub fn vmx_capability(&self, _msr: u32) -> Option<u64> {
        None
    }

    /// CR8 as MOV reads it: the virtual TPR with "use TPR shadow", else the APIC's.
    pub fn read_cr8(&mut self) -> u8 {
        self.platform.cr8()
    }

    /// MOV to CR8; may exit for the TPR threshold afterwards.
    pub fn write_cr8(&mut self, value: u8) -> Flow {
        self.platform.set_cr8(value);
        self.pending |= crate::cpu::pending::INTERRUPT;
        Ok(())
    }

    /// Takes the VM exit in [`Cpu::exit`].
    pub fn take_vm_exit(&mut self) {
        unreachable!("no VM entry has happened")
    }

    /// Events of non-root operation at an instruction boundary; true if a VM exit is requested.
    pub fn vmx_boundary(&mut self) -> bool {
        false
    }

    /// An interrupt is pending: true if it is to cause the VM exit in [`Cpu::exit`].
    pub fn vmx_external_interrupt(&mut self) -> bool {
        false
    }

    /// An NMI is pending: true if it is to cause the VM exit in [`Cpu::exit`].
    pub fn vmx_nmi(&mut self) -> bool {
        false
    }

    /// Whether an external interrupt would exit now (it then also ends HLT with IF clear).
    pub fn vmx_interrupt_exits(&self) -> bool {
        false
    }

    /// INIT arrived: true if it causes a VM exit.
    pub fn vmx_init(&mut self) -> bool {
        false
    }

    /// A start-up IPI arrived: true if it causes a VM exit.
    pub fn vmx_sipi(&mut self, _vector: u8) -> bool {
        false
    }

    /// A read of the APIC-access page.
    pub fn apic_access_read(&mut self, _offset: u64, _data: &mut [u8]) -> Flow {
        unreachable!("no APIC-access page is set")
    }

    /// A write of the APIC-access page.
    pub fn apic_access_write(&mut self, _offset: u64, _data: &[u8]) -> Flow {
        unreachable!("no APIC-access page is set")
    }
}

/// Binds a VT-x instruction.
pub fn bind(_form: &Form, _op: &mut Op) -> Option<Handler> {
    None
}
