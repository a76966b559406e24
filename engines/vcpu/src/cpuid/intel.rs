//! The leaves of Intel models.
//!
//! They identify as family 6, model A5h, stepping 2: a Skylake-generation core that no guest's errata or
//! microcode lists single out for a work-around of the TSC deadline timer, of microcode with broken
//! speculation control or of self-snoop. What the software CPU does not implement is not advertised.

use x86defs::msr::{arch_capabilities as cap, misc_enable};

use super::feature::{ext7_edx, leaf1_ecx, leaf1_edx, leaf5, leaf6_eax};
use super::leaves::{
    ADDRESS_BITS, addressable_ids, brand, hypervisor, topology, vendor, when, xsave,
};
use super::words::Words;
use super::{CpuidResult, CpuidTable, ModelConfig, Vendor, timing_leaves};
use crate::NestedVirt;

/// Processor signature, CPUID.01H:EAX and EDX after RESET: family 6, model A5h, stepping 2 (SDM Vol 2, Figure
/// 3-6).
const SIGNATURE: u32 = 0x000a_0652;

/// IA32_BIOS_SIGN_ID after CPUID.01H: the revision of the microcode update in bits 63:32 (SDM Vol 3 10.11.7.1).
pub const MICROCODE_REVISION: u64 = 0x100 << 32;

/// IA32_MISC_ENABLE after RESET: fast strings, neither branch trace storage nor event sampling.
pub const MISC_ENABLE_RESET: u64 =
    misc_enable::FAST_STRINGS | misc_enable::BTS_UNAVAILABLE | misc_enable::PEBS_UNAVAILABLE;

const HIGHEST_BASIC: u32 = 0x16;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;

/// IA32_ARCH_CAPABILITIES (SDM Vol 4 Table 2-2). Each "not affected" bit is true of a processor that executes
/// nothing before it is known to be executed; enhanced IBRS is always on for the same reason.
#[must_use]
pub const fn arch_capabilities() -> u64 {
    cap::RDCL_NO
        | cap::IBRS_ALL
        | cap::SKIP_L1DFL_VMENTRY
        | cap::SSB_NO
        | cap::MDS_NO
        | cap::IF_PSCHANGE_MC_NO
        | cap::TAA_NO
        | cap::SBDR_SSDP_NO
        | cap::FBSDP_NO
        | cap::PSDP_NO
        | cap::BHI_NO
        | cap::PBRSB_NO
        | cap::GDS_NO
        | cap::RFDS_NO
        | cap::ITS_NO
}

fn leaf1(words: &Words, config: &ModelConfig) -> CpuidResult {
    let ids = addressable_ids(config.vcpus);
    CpuidResult {
        eax: SIGNATURE,
        // Brand index 0 (unsupported), CLFLUSH line of 8 * 8 bytes, addressable ids in the package.
        ebx: 8 << 8 | ids.min(255) << 16,
        ecx: words.leaf1_ecx | when(config.nested == NestedVirt::Intel, leaf1_ecx::VMX),
        edx: words.leaf1_edx | when(ids > 1, leaf1_edx::HTT),
    }
}

/// Descriptors of Table 3-12: data TLBs of 64 entries for 4 KByte and 32 for larger pages (03H, 63H), code TLBs
/// of 64 and 8 entries (B5H, 76H), a second-level TLB of 1536 entries (C3H), 64-byte prefetch (F0H), caches by
/// leaf 4 (FFH). The low byte says that one read tells all.
const LEAF2: CpuidResult = CpuidResult {
    eax: 0x7603_6301,
    ebx: 0x00f0_b5ff,
    ecx: 0,
    edx: 0x00c3_0000,
};

/// One cache of leaf 4.
struct Cache {
    /// 1 data, 2 instruction, 3 unified.
    kind: u32,
    level: u32,
    /// Addressable ids that share it.
    shared_by: u32,
    ways: u32,
    sets: u32,
    /// Contains what the caches below it contain.
    inclusive: bool,
}

impl Cache {
    /// The encoding of leaf 4 (SDM Vol 2, Table 3-8): counts are stored less one, lines have 64 bytes, the
    /// cache initializes itself.
    fn leaf(&self, cores: u32) -> CpuidResult {
        const SELF_INITIALIZING: u32 = 1 << 8;
        CpuidResult {
            eax: self.kind
                | self.level << 5
                | SELF_INITIALIZING
                | (self.shared_by.min(4096) - 1) << 14
                | (cores.min(64) - 1) << 26,
            ebx: (64 - 1) | (self.ways - 1) << 22,
            ecx: self.sets - 1,
            edx: when(self.inclusive, 1 << 1),
        }
    }
}

/// 32 KByte for data and for code, 256 KByte a core, 8 MByte for the package.
fn caches(ids: u32) -> [Cache; 4] {
    let own = |kind, level, ways, sets| Cache {
        kind,
        level,
        shared_by: 1,
        ways,
        sets,
        inclusive: false,
    };
    [
        own(1, 1, 8, 64),
        own(2, 1, 8, 64),
        own(3, 2, 4, 1024),
        Cache {
            kind: 3,
            level: 3,
            shared_by: ids,
            ways: 16,
            sets: 8192,
            inclusive: true,
        },
    ]
}

/// Leaf 5: lines of 64 bytes, one C1 state, no C0 states of MWAIT (SDM Vol 2, Table 3-8).
const LEAF5: CpuidResult = CpuidResult {
    eax: 64,
    ebx: 64,
    ecx: leaf5::EXTENSIONS | leaf5::INTERRUPT_BREAK,
    edx: 1 << leaf5::C1_SHIFT,
};

/// Leaf 0AH (SDM Vol 2, Table 3-8): version 2 of architectural performance monitoring, all seven events of it, four
/// general-purpose counters and three of fixed function with 48 bits each. Mispredicted branches and references to the
/// last-level cache are events that are there and never happen, on a processor that neither predicts nor caches.
const LEAF_A: CpuidResult = CpuidResult {
    eax: 7 << 24 | 48 << 16 | 4 << 8 | 2,
    ebx: 0,
    ecx: 0,
    edx: 48 << 5 | 3,
};

fn extended(leaf: u32, words: &Words) -> CpuidResult {
    match leaf {
        0x8000_0000 => CpuidResult {
            eax: HIGHEST_EXTENDED,
            ..CpuidResult::default()
        },
        0x8000_0001 => CpuidResult {
            ecx: words.ext1_ecx,
            edx: words.ext1_edx,
            ..CpuidResult::default()
        },
        0x8000_0002..=0x8000_0004 => brand((leaf - 0x8000_0002) as usize),
        // The second-level cache: 256 KByte, 4 ways (code 4), lines of 64 bytes.
        0x8000_0006 => CpuidResult {
            ecx: 256 << 16 | 4 << 12 | 64,
            ..CpuidResult::default()
        },
        0x8000_0007 => CpuidResult {
            edx: ext7_edx::INVARIANT_TSC,
            ..CpuidResult::default()
        },
        0x8000_0008 => CpuidResult {
            eax: ADDRESS_BITS,
            ..CpuidResult::default()
        },
        _ => CpuidResult::default(),
    }
}

/// The table of an Intel model; leaves that are all zero are left out.
pub(super) fn table(words: &Words, config: &ModelConfig) -> CpuidTable {
    let ids = addressable_ids(config.vcpus);
    let mut t = CpuidTable::default();
    t.push(0, None, vendor(HIGHEST_BASIC, Vendor::Intel.text()));
    t.push(1, None, leaf1(words, config));
    t.push(2, None, LEAF2);
    for (n, cache) in (0..).zip(caches(ids)) {
        t.push(4, Some(n), cache.leaf(ids));
    }
    if words.leaf1(leaf1_ecx::MONITOR) {
        t.push(5, None, LEAF5);
    }
    let arat = CpuidResult {
        eax: leaf6_eax::ARAT,
        ..CpuidResult::default()
    };
    t.push(6, None, arat);
    let leaf7 = CpuidResult {
        eax: when(words.leaf7_2_edx != 0, 2),
        ebx: words.leaf7_ebx,
        ecx: words.leaf7_ecx,
        edx: words.leaf7_edx,
    };
    t.push(7, Some(0), leaf7);
    if words.leaf7_2_edx != 0 {
        let leaf7_2 = CpuidResult {
            edx: words.leaf7_2_edx,
            ..CpuidResult::default()
        };
        t.push(7, Some(2), leaf7_2);
    }
    t.push(0xa, None, LEAF_A);
    for (n, level) in (0..).zip(topology(config.vcpus)) {
        t.push(0xb, Some(n), level);
    }
    for (n, result) in xsave(words) {
        t.push(0xd, Some(n), result);
    }
    let (leaf15, leaf16) = timing_leaves(config.tsc_hz, config.crystal_hz);
    t.push(0x15, None, leaf15);
    t.push(0x16, None, leaf16);
    t.push(0x4000_0000, None, hypervisor());
    for leaf in 0x8000_0000..=HIGHEST_EXTENDED {
        if leaf != 0x8000_0005 {
            t.push(leaf, None, extended(leaf, words));
        }
    }
    t
}
