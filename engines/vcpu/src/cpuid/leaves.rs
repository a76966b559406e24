//! Leaves that processors of both vendors answer alike.

use super::feature::{leaf1_ecx, leaf7_ecx, xstate};
use super::words::Words;
use super::{CpuidLeaf, CpuidResult, CpuidTable, HYPERVISOR_SIGNATURE, LINEAR_BITS, MAXPHYADDR};

const BRAND: &[u8] = b"Nestling Processor";
const HIGHEST_HYPERVISOR: u32 = 0x4000_0000;

/// Bits if the condition holds.
pub(super) const fn when(on: bool, bits: u32) -> u32 {
    if on { bits } else { 0 }
}

/// Four bytes of a text.
pub(super) fn word_of(text: &[u8], at: usize) -> u32 {
    let byte = |i: usize| u32::from(text.get(at + i).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

/// The highest leaf and the vendor's name, in EBX, EDX, ECX.
pub(super) fn vendor(highest: u32, name: &str) -> CpuidResult {
    CpuidResult {
        eax: highest,
        ebx: word_of(name.as_bytes(), 0),
        edx: word_of(name.as_bytes(), 4),
        ecx: word_of(name.as_bytes(), 8),
    }
}

/// Leaves 80000002h to 80000004h; `part` from 0.
pub(super) fn brand(part: usize) -> CpuidResult {
    CpuidResult {
        eax: word_of(BRAND, part * 16),
        ebx: word_of(BRAND, part * 16 + 4),
        ecx: word_of(BRAND, part * 16 + 8),
        edx: word_of(BRAND, part * 16 + 12),
    }
}

/// Widths of addresses: EAX of leaf 80000008h.
pub(super) const ADDRESS_BITS: u32 = MAXPHYADDR | LINEAR_BITS << 8;

/// What hypervisors tell their guests.
pub(super) fn hypervisor() -> CpuidResult {
    CpuidResult {
        eax: HIGHEST_HYPERVISOR,
        ebx: word_of(HYPERVISOR_SIGNATURE, 0),
        ecx: word_of(HYPERVISOR_SIGNATURE, 4),
        edx: word_of(HYPERVISOR_SIGNATURE, 8),
    }
}

/// Addressable APIC ids in a package of `vcpus` cores: the next power of two (SDM Vol 3 9.9.3.1).
pub(super) fn addressable_ids(vcpus: u32) -> u32 {
    vcpus.clamp(1, 1 << 16).next_power_of_two()
}

/// Leaf 0BH (SDM Vol 2; APM Vol 3 E.3.8): one thread a core, all cores in one package.
pub(super) fn topology(vcpus: u32) -> [CpuidResult; 2] {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    [
        CpuidResult {
            eax: 0,
            ebx: 1,
            ecx: SMT << 8,
            edx: 0,
        },
        CpuidResult {
            eax: addressable_ids(vcpus).ilog2(),
            ebx: vcpus.clamp(1, 0xffff),
            ecx: CORE << 8 | 1,
            edx: 0,
        },
    ]
}

/// A state component of XSAVE.
struct Component {
    number: u32,
    bytes: u32,
    /// In the standard format.
    offset: u32,
}

/// The components of a model above SSE.
fn components(words: &Words) -> Vec<Component> {
    let mut list = Vec::new();
    if words.leaf1(leaf1_ecx::AVX) {
        list.push(Component {
            number: xstate::AVX.trailing_zeros(),
            bytes: xstate::AVX_BYTES,
            offset: xstate::AVX_OFFSET,
        });
    }
    if words.leaf7_ecx & leaf7_ecx::PKU != 0 {
        list.push(Component {
            number: xstate::PKRU.trailing_zeros(),
            bytes: xstate::PKRU_BYTES,
            offset: xstate::PKRU_OFFSET,
        });
    }
    list
}

/// Leaf 0DH as RESET leaves it (XCR0 = x87).
pub(super) fn xsave(words: &Words) -> Vec<(u32, CpuidResult)> {
    if !words.leaf1(leaf1_ecx::XSAVE) {
        return Vec::new();
    }
    let components = components(words);
    let xcr0 = components
        .iter()
        .fold(xstate::X87 | xstate::SSE, |all, c| all | 1 << c.number);
    let end = components
        .iter()
        .map(|c| c.offset + c.bytes)
        .max()
        .unwrap_or(xstate::LEGACY_AND_HEADER_BYTES);
    let mut leaves = vec![
        (
            0,
            CpuidResult {
                eax: xcr0 as u32,
                ebx: xstate::LEGACY_AND_HEADER_BYTES,
                ecx: end,
                edx: (xcr0 >> 32) as u32,
            },
        ),
        (
            1,
            CpuidResult {
                eax: words.leafd1_eax,
                ebx: when(words.leafd1_eax != 0, xstate::LEGACY_AND_HEADER_BYTES),
                ..CpuidResult::default()
            },
        ),
    ];
    for c in components {
        let r = CpuidResult {
            eax: c.bytes,
            ebx: c.offset,
            ..CpuidResult::default()
        };
        leaves.push((c.number, r));
    }
    leaves
}

impl CpuidTable {
    /// Adds a leaf behind the last one.
    pub(super) fn push(&mut self, leaf: u32, subleaf: Option<u32>, result: CpuidResult) {
        self.leaves.push(CpuidLeaf {
            leaf,
            subleaf,
            result,
        });
    }
}
