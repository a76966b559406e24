//! VT-x (SDM Vol 3 chapters 24 to 32).

mod intercept;

pub use intercept::{DescriptorAccess, Intercept, IoAccess};

use guestmem::Gpa;

use crate::cpu::{Cpu, Flow, Trap};
use crate::mem::EptCache;

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
    pub fn vmx_write_cr(&mut self, _cr: u8, value: u64) -> Result<u64, Trap> {
        Ok(value)
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
