//! Answers of CPUID that a translator's code finds by itself.
//!
//! They are those of 64-bit mode outside VMX non-root operation, and hold until something changes that CPUID shows:
//! whatever does calls [`KnownLeaves::forget`] (CR4, XCR0, IA32_XSS, IA32_APIC_BASE, IA32_MISC_ENABLE, the name on AMD
//! models, VM entries and VM exits).

use vcpu::cpuid::CpuidResult;

/// Slots.
const SLOTS: usize = 64;

/// The answers, by leaf and subleaf.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct KnownLeaves {
    /// The bits of [`spread`] that choose the slot.
    pub mask: u64,
    /// The negated [`key`] of what is there.
    pub keys: [u64; SLOTS],
    /// EAX, EBX, ECX, EDX.
    pub answers: [[u32; 4]; SLOTS],
    /// Something is there.
    any: bool,
}

/// Leaf and subleaf as one number.
const fn key(leaf: u32, subleaf: u32) -> u64 {
    leaf as u64 | (subleaf as u64) << 32
}

/// How far [`spread`] turns a key to the right: basic, hypervisor's and extended leaves differ in bits 31:30.
pub const SPREAD: u32 = 30;

/// What the slot of a key is chosen by.
const fn spread(key: u64) -> u64 {
    key.wrapping_add(key.rotate_right(SPREAD))
}

/// A negated key that never comes to slot `i`.
const fn nothing(i: usize) -> u64 {
    key(((i + 1) % SLOTS) as u32, 0).wrapping_neg()
}

impl Default for KnownLeaves {
    fn default() -> Self {
        Self {
            mask: SLOTS as u64 - 1,
            keys: std::array::from_fn(nothing),
            answers: [[0; 4]; SLOTS],
            any: false,
        }
    }
}

impl KnownLeaves {
    /// Something has changed that CPUID may show.
    pub fn forget(&mut self) {
        if std::mem::take(&mut self.any) {
            self.keys = std::array::from_fn(nothing);
        }
    }

    /// Remembers an answer.
    pub(super) fn learn(&mut self, leaf: u32, subleaf: u32, r: CpuidResult) {
        let key = key(leaf, subleaf);
        let i = (spread(key) & self.mask) as usize;
        self.keys[i] = key.wrapping_neg();
        self.answers[i] = [r.eax, r.ebx, r.ecx, r.edx];
        self.any = true;
    }
}
