//! The leaves of AMD models (APM Vol 3 appendix E).
//!
//! They identify as family 19h, model 1, stepping 1. AMD processors do not tell the frequency of the TSC (leaves
//! 15h and 16h are Intel's), and answer leaves they do not have with zero.

use super::feature::{ext1_ecx, ext7_edx, leaf1_edx, leaf6_eax};
use super::leaves::{
    ADDRESS_BITS, addressable_ids, brand, hypervisor, topology, vendor, when, xsave,
};
use super::words::Words;
use super::{CpuidResult, CpuidTable, ModelConfig, Vendor};

/// Processor signature: family 0Fh + 0Ah, model 01h, stepping 1 (APM Vol 3 E.3.2).
const SIGNATURE: u32 = 0x00a0_0f11;

/// The package type in bits 31:28 of leaf 80000001h, EBX: a socket SP3.
const PACKAGE: u32 = 4 << 28;

/// Bits of leaf 1, EDX that leaf 80000001h, EDX repeats (APM Vol 3 E.4.2).
pub(super) const REPEATED: u32 = {
    use leaf1_edx as d;
    d::FPU
        | d::VME
        | d::DE
        | d::PSE
        | d::TSC
        | d::MSR
        | d::PAE
        | d::MCE
        | d::CX8
        | d::APIC
        | d::MTRR
        | d::PGE
        | d::MCA
        | d::CMOV
        | d::PAT
        | d::PSE36
        | d::MMX
        | d::FXSR
};

/// MSR 0000_008B: the level of the microcode patch, in the form of this family.
pub const PATCH_LEVEL: u64 = 0x0a00_1100;

const HIGHEST_BASIC: u32 = 0xd;
const HIGHEST_EXTENDED: u32 = 0x8000_0021;

fn leaf1(words: &Words, config: &ModelConfig) -> CpuidResult {
    let vcpus = config.vcpus.clamp(1, 255);
    CpuidResult {
        eax: SIGNATURE,
        // CLFLUSH line of 8 * 8 bytes, logical processors.
        ebx: 8 << 8 | vcpus << 16,
        ecx: words.leaf1_ecx,
        edx: words.leaf1_edx | when(vcpus > 1, leaf1_edx::HTT),
    }
}

/// One cache of leaf 8000001Dh (APM Vol 3 E.4.15).
struct Cache {
    /// 1 data, 2 instruction, 3 unified.
    kind: u32,
    level: u32,
    shared_by: u32,
    ways: u32,
    sets: u32,
}

impl Cache {
    /// Counts are stored less one; lines have 64 bytes, one to a tag; the cache initializes itself.
    fn leaf(&self) -> CpuidResult {
        const SELF_INITIALIZING: u32 = 1 << 8;
        // Leaf 80000006h says the same of the second level: it holds what the first does.
        const INCLUSIVE: u32 = 1 << 1;
        CpuidResult {
            eax: self.kind
                | self.level << 5
                | SELF_INITIALIZING
                | (self.shared_by.min(4096) - 1) << 14,
            ebx: (64 - 1) | (self.ways - 1) << 22,
            ecx: self.sets - 1,
            edx: when(self.level == 2, INCLUSIVE),
        }
    }
}

/// 32 KByte for data and for code, 512 KByte a core, 16 MByte for the package.
fn caches(ids: u32) -> [Cache; 4] {
    let cache = |kind, level, shared_by, ways, sets| Cache {
        kind,
        level,
        shared_by,
        ways,
        sets,
    };
    [
        cache(1, 1, 1, 8, 64),
        cache(2, 1, 1, 8, 64),
        cache(3, 2, 1, 8, 1024),
        cache(3, 3, ids, 16, 16384),
    ]
}

/// Codes of associativity in leaves 80000006h and 80000019h (APM Vol 3 Table E-4).
const WAYS_8: u32 = 6;
const WAYS_16: u32 = 8;
const FULLY: u32 = 0xf;

fn extended(leaf: u32, words: &Words, config: &ModelConfig) -> CpuidResult {
    let vcpus = config.vcpus.max(1);
    match leaf {
        0x8000_0000 => vendor(HIGHEST_EXTENDED, Vendor::Amd.text()),
        0x8000_0001 => CpuidResult {
            eax: SIGNATURE,
            ebx: PACKAGE,
            ecx: words.ext1_ecx | when(vcpus > 1, ext1_ecx::CMP_LEGACY),
            edx: words.ext1_edx,
        },
        0x8000_0002..=0x8000_0004 => brand((leaf - 0x8000_0002) as usize),
        // TLBs of 64 entries, fully associative (FFH); 32 KByte, 8 ways, one line of 64 bytes a tag.
        0x8000_0005 => CpuidResult {
            eax: 0xff40_ff40,
            ebx: 0xff40_ff40,
            ecx: 32 << 24 | 8 << 16 | 1 << 8 | 64,
            edx: 32 << 24 | 8 << 16 | 1 << 8 | 64,
        },
        // TLBs of 2048 and 512 entries; 512 KByte; 32 * 512 KByte.
        0x8000_0006 => {
            let tlb = WAYS_8 << 28 | 2048 << 16 | WAYS_8 << 12 | 512;
            CpuidResult {
                eax: tlb,
                ebx: tlb,
                ecx: 512 << 16 | WAYS_8 << 12 | 1 << 8 | 64,
                edx: 32 << 18 | WAYS_16 << 12 | 1 << 8 | 64,
            }
        }
        0x8000_0007 => CpuidResult {
            edx: ext7_edx::INVARIANT_TSC,
            ..CpuidResult::default()
        },
        // ECX: threads less one, bits of the APIC id that number them.
        0x8000_0008 => CpuidResult {
            eax: ADDRESS_BITS,
            ebx: words.ext8_ebx,
            ecx: (vcpus - 1).min(255) | addressable_ids(vcpus).ilog2() << 12,
            edx: 0,
        },
        // First-level TLBs for 1 GByte pages, none of the second level.
        0x8000_0019 => {
            let tlb = FULLY << 12 | 64;
            CpuidResult {
                eax: tlb << 16 | tlb,
                ..CpuidResult::default()
            }
        }
        // FP256 and MOVU: 256 bits at once, unaligned moves as fast as aligned ones.
        0x8000_001a => CpuidResult {
            eax: 1 << 2 | 1 << 1,
            ..CpuidResult::default()
        },
        0x8000_0021 => CpuidResult {
            eax: words.ext21_eax,
            ecx: words.ext21_ecx,
            ..CpuidResult::default()
        },
        _ => CpuidResult::default(),
    }
}

/// The table of an AMD model; leaves that are all zero are left out. Leaf 8000001Eh follows the vCPU
/// ([`CpuidTable::for_vcpu`]): one thread a core, one node.
pub(super) fn table(words: &Words, config: &ModelConfig) -> CpuidTable {
    let mut t = CpuidTable::default();
    t.push(0, None, vendor(HIGHEST_BASIC, Vendor::Amd.text()));
    t.push(1, None, leaf1(words, config));
    let arat = CpuidResult {
        eax: leaf6_eax::ARAT,
        ..CpuidResult::default()
    };
    t.push(6, None, arat);
    let leaf7 = CpuidResult {
        eax: 0,
        ebx: words.leaf7_ebx,
        ecx: words.leaf7_ecx,
        edx: words.leaf7_edx,
    };
    t.push(7, Some(0), leaf7);
    for (n, level) in (0..).zip(topology(config.vcpus)) {
        t.push(0xb, Some(n), level);
    }
    for (n, result) in xsave(words) {
        t.push(0xd, Some(n), result);
    }
    t.push(0x4000_0000, None, hypervisor());
    for leaf in 0x8000_0000..=HIGHEST_EXTENDED {
        match leaf {
            0x8000_001d => {
                for (n, cache) in (0..).zip(caches(addressable_ids(config.vcpus))) {
                    t.push(leaf, Some(n), cache.leaf());
                }
            }
            0x8000_001e => t.push(leaf, None, CpuidResult::default()),
            _ => match extended(leaf, words, config) {
                r if r == CpuidResult::default() => {}
                r => t.push(leaf, None, r),
            },
        }
    }
    t
}
