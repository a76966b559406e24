//! VM entries (SDM Vol 3 chapter 27), by stage: checks on controls and host state, which fail the
//! instruction; checks on guest state and the loads, which end in a VM exit; event injection.

pub mod controls;
pub mod guest;
pub mod host;
mod inject;
pub mod load;

use guestmem::{Gpa, GuestRam};
use x86defs::vmx::exit::entry_failure;

use super::caps::Caps;
use super::vmcs::Vmcs;

/// A check of VM entry that did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckFailure {
    /// Section of SDM Vol 3.
    pub section: &'static str,
    /// What the section asks for.
    pub rule: &'static str,
    /// Exit qualification, for checks on guest state (SDM Vol 3 27.8).
    pub qualification: u64,
}

/// Outcome of a check.
pub type Checked = Result<(), CheckFailure>;

impl CheckFailure {
    /// A failure with the default exit qualification.
    #[must_use]
    pub const fn new(section: &'static str, rule: &'static str) -> Self {
        Self {
            section,
            rule,
            qualification: entry_failure::DEFAULT,
        }
    }
}

/// What the checks look at.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The current VMCS.
    pub vmcs: &'a Vmcs,
    /// What the CPU model allows.
    pub caps: &'a Caps,
    /// Memory, for the virtual-APIC page, the PDPTEs and the VMCS link pointer.
    pub ram: &'a GuestRam,
    /// The current-VMCS pointer.
    pub current: Gpa,
    /// IA32_EFER.LMA of VMX root operation at the time of the VM entry.
    pub host_lma: bool,
}

/// Fails with `section` and `rule` unless `condition` holds.
macro_rules! require {
    ($condition:expr, $section:expr, $rule:expr) => {
        if !$condition {
            return Err($crate::vmx::entry::CheckFailure::new($section, $rule));
        }
    };
}
use require;

impl Subject<'_> {
    /// Whether `address` is aligned to 4 KByte and inside the physical-address width.
    #[inline]
    fn page_address(&self, address: u64) -> bool {
        address & 0xfff == 0 && self.caps.fits_physical(address)
    }

    /// A physical read; memory that is not RAM reads as ones.
    fn physical_u32(&self, gpa: Gpa) -> u32 {
        self.ram
            .find(gpa, 4)
            .map_or(u32::MAX, |at| self.ram.load(at))
    }
}

/// Whether every byte of an IA32_PAT value is a memory type (SDM Vol 3 12.12.2).
#[must_use]
pub const fn valid_pat(pat: u64) -> bool {
    let bytes = pat.to_le_bytes();
    let mut i = 0;
    while i < 8 {
        if !matches!(bytes[i], 0 | 1 | 4..=7) {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests;
