//! The software CPU's Intel model.
//!
//! It identifies as family 6, model A5h, stepping 2: a Skylake-generation core that no guest's errata or
//! microcode lists single out for a work-around of the TSC deadline timer, of microcode with broken
//! speculation control or of self-snoop. What the software CPU does not implement is not advertised.

use x86defs::msr::{arch_capabilities as cap, misc_enable};

use super::feature::{
    ext1_ecx, ext1_edx, ext7_edx, leaf1_ecx, leaf1_edx, leaf6_eax, leaf7_ebx, leaf7_ecx, leaf7_edx,
    leafd1_eax, xstate,
};
use super::{
    CpuidLeaf, CpuidResult, CpuidTable, HYPERVISOR_SIGNATURE, LINEAR_BITS, MAXPHYADDR, ModelConfig,
    timing_leaves, xsave_standard_bytes,
};
use crate::NestedVirt;

/// Processor signature, CPUID.01H:EAX and EDX after RESET: family 6, model A5h, stepping 2 (SDM Vol 2, Figure
/// 3-6).
pub const SIGNATURE: u32 = 0x000a_0652;

/// IA32_BIOS_SIGN_ID after CPUID.01H: the revision of the microcode update in bits 63:32 (SDM Vol 3 10.11.7.1).
pub const MICROCODE_REVISION: u64 = 0x100 << 32;

/// IA32_MISC_ENABLE after RESET: fast strings, neither branch trace storage nor event sampling.
pub const MISC_ENABLE_RESET: u64 =
    misc_enable::FAST_STRINGS | misc_enable::BTS_UNAVAILABLE | misc_enable::PEBS_UNAVAILABLE;

const BRAND: &[u8] = b"Nestling Processor";
const HIGHEST_BASIC: u32 = 0x16;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
const HIGHEST_HYPERVISOR: u32 = 0x4000_0000;

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

/// Bits if the condition holds.
const fn when(on: bool, bits: u32) -> u32 {
    if on { bits } else { 0 }
}

fn words(text: &[u8], at: usize) -> u32 {
    let byte = |i: usize| u32::from(text.get(at + i).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

/// The vendor string's order: EBX, EDX, ECX.
fn leaf0() -> CpuidResult {
    CpuidResult {
        eax: HIGHEST_BASIC,
        ebx: words(b"GenuineIntel", 0),
        edx: words(b"GenuineIntel", 4),
        ecx: words(b"GenuineIntel", 8),
    }
}

fn leaf1(config: &ModelConfig) -> CpuidResult {
    use leaf1_ecx as c;
    use leaf1_edx as d;
    let host = config.host;
    let ids = addressable_ids(config.vcpus);
    CpuidResult {
        eax: SIGNATURE,
        // Brand index 0 (unsupported), CLFLUSH line of 8 * 8 bytes, addressable ids in the package.
        ebx: 8 << 8 | ids.min(255) << 16,
        ecx: when(host.sse3, c::SSE3)
            | when(host.pclmulqdq, c::PCLMULQDQ)
            | when(config.nested == NestedVirt::Intel, c::VMX)
            | when(host.ssse3, c::SSSE3)
            | when(host.fma && host.avx, c::FMA)
            | c::CX16
            | c::PCID
            | when(host.sse4_1, c::SSE4_1)
            | when(host.sse4_2, c::SSE4_2)
            | c::X2APIC
            | c::MOVBE
            | c::POPCNT
            | c::TSC_DEADLINE
            | when(host.aes, c::AES)
            | c::XSAVE
            | when(host.avx, c::AVX)
            | when(host.f16c && host.avx, c::F16C)
            | c::RDRAND
            | c::HYPERVISOR,
        edx: d::FPU
            | d::VME
            | d::DE
            | d::PSE
            | d::TSC
            | d::MSR
            | d::PAE
            | d::MCE
            | d::CX8
            | d::APIC
            | d::SEP
            | d::MTRR
            | d::PGE
            | d::MCA
            | d::CMOV
            | d::PAT
            | d::PSE36
            | d::CLFSH
            | d::MMX
            | d::FXSR
            | d::SSE
            | d::SSE2
            | d::SS
            | when(ids > 1, d::HTT),
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

fn leaf7(config: &ModelConfig) -> CpuidResult {
    use leaf7_ebx as b;
    let host = config.host;
    CpuidResult {
        eax: 0,
        ebx: b::FSGSBASE
            | b::TSC_ADJUST
            | b::BMI1
            | when(host.avx2 && host.avx, b::AVX2)
            | b::SMEP
            | b::BMI2
            | b::ERMS
            | b::INVPCID
            | b::NO_FPU_CS_DS
            | b::RDSEED
            | b::ADX
            | b::SMAP
            | b::CLFLUSHOPT
            | when(host.sha, b::SHA),
        ecx: leaf7_ecx::UMIP | leaf7_ecx::RDPID,
        edx: leaf7_edx::FSRM | leaf7_edx::SPEC_CTRL | leaf7_edx::ARCH_CAPABILITIES,
    }
}

/// Addressable APIC ids in a package of `vcpus` cores: the next power of two (SDM Vol 3 9.9.3.1).
fn addressable_ids(vcpus: u32) -> u32 {
    vcpus.clamp(1, 1 << 16).next_power_of_two()
}

/// Topology (SDM Vol 2, leaf 0BH): one thread a core, all cores in one package.
fn topology(vcpus: u32) -> [CpuidResult; 2] {
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

/// Leaf 0DH as RESET leaves it (XCR0 = x87), subleaves 0, 1 and, with AVX, 2.
fn xsave(avx: bool) -> Vec<(u32, CpuidResult)> {
    let xcr0 = xstate::X87 | xstate::SSE | if avx { xstate::AVX } else { 0 };
    let mut leaves = vec![
        (
            0,
            CpuidResult {
                eax: xcr0 as u32,
                ebx: xsave_standard_bytes(xstate::X87),
                ecx: xsave_standard_bytes(xcr0),
                edx: (xcr0 >> 32) as u32,
            },
        ),
        (
            1,
            CpuidResult {
                eax: leafd1_eax::XSAVEOPT | leafd1_eax::XSAVEC | leafd1_eax::XGETBV1,
                ebx: xstate::LEGACY_AND_HEADER_BYTES,
                ..CpuidResult::default()
            },
        ),
    ];
    if avx {
        leaves.push((
            2,
            CpuidResult {
                eax: xstate::AVX_BYTES,
                ebx: xstate::AVX_OFFSET,
                ..CpuidResult::default()
            },
        ));
    }
    leaves
}

fn extended(leaf: u32) -> CpuidResult {
    let brand = |n: usize| CpuidResult {
        eax: words(BRAND, n * 16),
        ebx: words(BRAND, n * 16 + 4),
        ecx: words(BRAND, n * 16 + 8),
        edx: words(BRAND, n * 16 + 12),
    };
    match leaf {
        0x8000_0000 => CpuidResult {
            eax: HIGHEST_EXTENDED,
            ..CpuidResult::default()
        },
        0x8000_0001 => CpuidResult {
            ecx: ext1_ecx::LAHF64 | ext1_ecx::LZCNT | ext1_ecx::PREFETCHW,
            edx: ext1_edx::SYSCALL
                | ext1_edx::NX
                | ext1_edx::PAGE_1GB
                | ext1_edx::RDTSCP
                | ext1_edx::LM,
            ..CpuidResult::default()
        },
        0x8000_0002 => brand(0),
        0x8000_0003 => brand(1),
        0x8000_0004 => brand(2),
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
            eax: MAXPHYADDR | LINEAR_BITS << 8,
            ..CpuidResult::default()
        },
        _ => CpuidResult::default(),
    }
}

/// The model's table; leaves that are all zero are left out.
pub(super) fn table(config: &ModelConfig) -> CpuidTable {
    let ids = addressable_ids(config.vcpus);
    let mut t = CpuidTable::default();
    let mut add = |leaf, subleaf, result| {
        t.leaves.push(CpuidLeaf {
            leaf,
            subleaf,
            result,
        });
    };
    add(0, None, leaf0());
    add(1, None, leaf1(config));
    add(2, None, LEAF2);
    for (n, cache) in (0..).zip(caches(ids)) {
        add(4, Some(n), cache.leaf(ids));
    }
    add(
        6,
        None,
        CpuidResult {
            eax: leaf6_eax::ARAT,
            ..CpuidResult::default()
        },
    );
    add(7, Some(0), leaf7(config));
    for (n, level) in (0..).zip(topology(config.vcpus)) {
        add(0xb, Some(n), level);
    }
    for (n, result) in xsave(config.host.avx) {
        add(0xd, Some(n), result);
    }
    let (leaf15, leaf16) = timing_leaves(config.tsc_hz, config.crystal_hz);
    add(0x15, None, leaf15);
    add(0x16, None, leaf16);
    add(
        0x4000_0000,
        None,
        CpuidResult {
            eax: HIGHEST_HYPERVISOR,
            ebx: words(HYPERVISOR_SIGNATURE, 0),
            ecx: words(HYPERVISOR_SIGNATURE, 4),
            edx: words(HYPERVISOR_SIGNATURE, 8),
        },
    );
    for leaf in 0x8000_0000..=HIGHEST_EXTENDED {
        if leaf != 0x8000_0005 {
            add(leaf, None, extended(leaf));
        }
    }
    t
}
