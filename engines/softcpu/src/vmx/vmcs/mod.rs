//! The virtual-machine control structure as the processor holds it (SDM Vol 3 chapter 25).
//!
//! A [`Vmcs`] is the cached copy of an active VMCS: a flat array of fields indexed by [`VmcsField`], so that
//! VMREAD, VMWRITE, VM entries and VM exits touch no guest memory. [`region`] is its form in the 4-KByte
//! VMCS region, [`cache`] the set of VMCSs that are active on a vCPU.
//!
//! Invariant: a field never holds bits outside its width, wherever its value came from.

pub mod cache;
pub mod region;

use vcpu::SegmentRegister;
use x86defs::segment::{Access, Selector};
use x86defs::vmx::{FieldAccess, FieldType, VmcsField};

/// Checks of VM entry that passed for a VMCS and that no write has touched since; bits of [`Vmcs::passed`].
pub mod passed {
    /// Control fields (SDM Vol 3 27.2.1), but for what depends on guest state or memory.
    pub const CONTROLS: u8 = 1;
    /// Host-state fields (SDM Vol 3 27.2.2 to 27.2.4), for a VM entry from IA-32e mode.
    pub const HOST: u8 = 2;
}

/// An active VMCS.
#[derive(Clone, Debug)]
pub struct Vmcs {
    fields: [u64; VmcsField::COUNT],
    /// Launch state (SDM Vol 3 25.11.3): launched, not clear.
    pub launched: bool,
    /// VM-entry checks that need not be repeated ([`passed`]).
    pub passed: u8,
}

impl Default for Vmcs {
    fn default() -> Self {
        Self {
            fields: [0; VmcsField::COUNT],
            launched: false,
            passed: 0,
        }
    }
}

impl Vmcs {
    /// A field's value, zero-extended.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, field: VmcsField) -> u64 {
        self.fields[field.index()]
    }

    /// A field of at most 32 bits.
    #[inline(always)]
    #[must_use]
    pub fn get32(&self, field: VmcsField) -> u32 {
        self.fields[field.index()] as u32
    }

    /// A field of 16 bits.
    #[inline(always)]
    #[must_use]
    pub fn get16(&self, field: VmcsField) -> u16 {
        self.fields[field.index()] as u16
    }

    /// Stores a field; bits beyond its width are dropped. For the processor's own updates (VM exits), which
    /// never touch what [`passed`] speaks about.
    #[inline(always)]
    pub fn set(&mut self, field: VmcsField, value: u64) {
        self.fields[field.index()] = value & field.mask();
    }

    /// What VMREAD returns (SDM Vol 3 25.11.2).
    #[inline]
    #[must_use]
    pub fn read(&self, field: VmcsField, access: FieldAccess) -> u64 {
        match access {
            FieldAccess::Full => self.get(field),
            FieldAccess::High => self.get(field) >> 32,
        }
    }

    /// VMWRITE of `value` (SDM Vol 3 25.11.2). Outside 64-bit mode the caller passes 32 bits, which clears
    /// bits 63:32 of a field written in full.
    #[inline]
    pub fn write(&mut self, field: VmcsField, access: FieldAccess, value: u64) {
        match access {
            FieldAccess::Full => self.set(field, value),
            FieldAccess::High => {
                let low = self.get(field) & 0xffff_ffff;
                self.set(field, value << 32 | low);
            }
        }
        match field.field_type() {
            FieldType::Control => self.passed &= !passed::CONTROLS,
            // Host-state checks depend on VM-entry and VM-exit controls too, and look at `CONTROLS`.
            FieldType::Host => self.passed &= !passed::HOST,
            FieldType::Guest | FieldType::ExitInformation => {}
        }
    }

    /// Guest state of a segment register: 0 to 7 for ES, CS, SS, DS, FS, GS, LDTR, TR.
    #[inline]
    #[must_use]
    pub fn guest_segment(&self, segment: usize) -> SegmentRegister {
        SegmentRegister {
            selector: Selector(self.get16(VmcsField::GUEST_SELECTORS[segment])),
            base: self.get(VmcsField::GUEST_BASES[segment]),
            limit: self.get32(VmcsField::GUEST_LIMITS[segment]),
            access: Access(self.get32(VmcsField::GUEST_ACCESS[segment])),
        }
    }

    /// Saves a segment register as guest state; numbering as for [`Vmcs::guest_segment`].
    #[inline]
    pub fn set_guest_segment(&mut self, segment: usize, value: &SegmentRegister) {
        self.set(
            VmcsField::GUEST_SELECTORS[segment],
            u64::from(value.selector.0),
        );
        self.set(VmcsField::GUEST_BASES[segment], value.base);
        self.set(VmcsField::GUEST_LIMITS[segment], u64::from(value.limit));
        self.set(VmcsField::GUEST_ACCESS[segment], u64::from(value.access.0));
    }

    /// Pin-based controls.
    #[inline(always)]
    #[must_use]
    pub fn pin(&self) -> u32 {
        self.get32(VmcsField::PinControls)
    }

    /// Primary processor-based controls.
    #[inline(always)]
    #[must_use]
    pub fn primary(&self) -> u32 {
        self.get32(VmcsField::PrimaryControls)
    }

    /// Secondary processor-based controls as they take effect: zero unless activated (SDM Vol 3 25.6.2).
    #[inline(always)]
    #[must_use]
    pub fn secondary(&self) -> u32 {
        let activated = self.primary() & x86defs::vmx::control::primary::ACTIVATE_SECONDARY != 0;
        if activated {
            self.get32(VmcsField::SecondaryControls)
        } else {
            0
        }
    }

    /// VM-exit controls.
    #[inline(always)]
    #[must_use]
    pub fn exit_controls(&self) -> u32 {
        self.get32(VmcsField::ExitControls)
    }

    /// VM-entry controls.
    #[inline(always)]
    #[must_use]
    pub fn entry_controls(&self) -> u32 {
        self.get32(VmcsField::EntryControls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_and_halves() {
        let mut v = Vmcs::default();
        v.write(VmcsField::Vpid, FieldAccess::Full, 0x1_2345);
        assert_eq!(
            v.get(VmcsField::Vpid),
            0x2345,
            "16-bit field drops bits 63:16"
        );
        v.write(VmcsField::PinControls, FieldAccess::Full, u64::MAX);
        assert_eq!(v.get(VmcsField::PinControls), 0xffff_ffff);
        v.write(VmcsField::TscOffset, FieldAccess::Full, 0x1111_2222);
        v.write(
            VmcsField::TscOffset,
            FieldAccess::High,
            0x9999_0000_3333_4444,
        );
        assert_eq!(v.get(VmcsField::TscOffset), 0x3333_4444_1111_2222);
        assert_eq!(
            v.read(VmcsField::TscOffset, FieldAccess::High),
            0x3333_4444,
            "bits 63:32 in bits 31:0, rest zero"
        );
    }

    #[test]
    fn writes_void_the_checks_they_touch() {
        let mut v = Vmcs {
            passed: passed::CONTROLS | passed::HOST,
            ..Vmcs::default()
        };
        v.write(VmcsField::GuestRip, FieldAccess::Full, 1);
        assert_eq!(v.passed, passed::CONTROLS | passed::HOST);
        v.write(VmcsField::HostRip, FieldAccess::Full, 1);
        assert_eq!(v.passed, passed::CONTROLS);
        v.write(VmcsField::ExitMsrLoadCount, FieldAccess::Full, 1);
        assert_eq!(v.passed, 0);
    }
}
