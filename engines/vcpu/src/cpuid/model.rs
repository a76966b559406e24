//! The CPU models: what they are called, what they show, and what they need of the host.

use std::fmt;

use super::feature::{
    ext1_ecx, ext1_edx, ext8_ebx, ext21, leaf1_ecx, leaf1_edx, leaf7_2_edx, leaf7_ebx, leaf7_ecx,
    leaf7_edx, leafd1_eax,
};
use super::host::HostVector;
use super::words::Words;
use super::{CpuidTable, amd, intel};
use crate::NestedVirt;

/// Whose manual a model follows where the vendors differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel, the SDM.
    Intel,
    /// AMD, the APM.
    Amd,
}

impl Vendor {
    /// The vendor string of leaf 0.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Intel => "GenuineIntel",
            Self::Amd => "AuthenticAMD",
        }
    }

    /// The extension with which its processors are virtualized.
    #[must_use]
    pub const fn nested(self) -> NestedVirt {
        match self {
            Self::Intel => NestedVirt::Intel,
            Self::Amd => NestedVirt::Amd,
        }
    }
}

/// Which processor a guest is shown.
///
/// All but [`CpuModel::Max`] are the same on every host that can run them at all ([`CpuModel::check`]), so that a
/// VM can move between hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuModel {
    /// Everything the engine has and this host can execute, on an Intel processor: differs from host to host.
    #[default]
    Max,
    /// An Intel processor of the Skylake generation without its errata.
    NestlingIntel,
    /// An AMD processor of family 19h, without SHA, VAES and VPCLMULQDQ, which many hosts do not have.
    NestlingAmd,
    /// The instructions of level x86-64-v2 of the System V ABI (AMD64 supplement, 3.1.1), on an Intel processor.
    X86_64V2,
    /// The instructions of level x86-64-v3.
    X86_64V3,
}

impl CpuModel {
    /// Every model.
    pub const ALL: [Self; 5] = [
        Self::Max,
        Self::NestlingIntel,
        Self::NestlingAmd,
        Self::X86_64V2,
        Self::X86_64V3,
    ];

    /// The name on the command line and in saved state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::NestlingIntel => "nestling-intel",
            Self::NestlingAmd => "nestling-amd",
            Self::X86_64V2 => "x86-64-v2",
            Self::X86_64V3 => "x86-64-v3",
        }
    }

    /// What it is, in half a line.
    #[must_use]
    pub const fn summary(self) -> &'static str {
        match self {
            Self::Max => "all that this host and the engine can do; not the same on every host",
            Self::NestlingIntel => "an Intel processor of the Skylake generation",
            Self::NestlingAmd => "an AMD processor of family 19h",
            Self::X86_64V2 => "level v2 of the x86-64 ABI: up to SSE4.2",
            Self::X86_64V3 => "level v3 of the x86-64 ABI: up to AVX2, BMI2 and FMA",
        }
    }

    /// The model of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Whose processor it is.
    #[must_use]
    pub const fn vendor(self) -> Vendor {
        match self {
            Self::NestlingAmd => Vendor::Amd,
            Self::Max | Self::NestlingIntel | Self::X86_64V2 | Self::X86_64V3 => Vendor::Intel,
        }
    }

    /// Whether it follows the host: no two hosts need to agree on it, and it can be had on each.
    #[must_use]
    pub const fn follows_host(self) -> bool {
        matches!(self, Self::Max)
    }

    fn words(self) -> Words {
        match self {
            Self::Max => max(),
            Self::NestlingIntel => intel_words(),
            Self::NestlingAmd => amd_words(),
            Self::X86_64V2 => level2(),
            Self::X86_64V3 => level3(),
        }
    }

    /// Checks that the host can execute what the model shows.
    ///
    /// # Errors
    /// [`LackingHost`] names what is missing.
    pub fn check(self, host: &HostVector) -> Result<(), LackingHost> {
        let missing = host.lacking(&self.words());
        if missing.is_empty() || self.follows_host() {
            return Ok(());
        }
        Err(LackingHost {
            model: self,
            missing,
        })
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The host's processor cannot execute what a model shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the CPU model {model} needs {} of the host's processor, which it does not have; choose --cpu max or a lesser model \
     of `nestling cpu list`",
    .missing.join(", ")
)]
pub struct LackingHost {
    /// The model.
    pub model: CpuModel,
    /// Names of the features.
    pub missing: Vec<&'static str>,
}

/// What a model's table depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Number of vCPUs; all are cores of one package, one thread each. 0 counts as 1.
    pub vcpus: u32,
    /// The virtualization extension shown. A model has that of its vendor or none.
    pub nested: NestedVirt,
    /// TSC frequency in Hz.
    pub tsc_hz: u64,
    /// Frequency of the core crystal clock in Hz, which is also what the APIC timer counts (SDM Vol 3
    /// 11.5.4). See [`super::tsc_ratio`] for the pairs that are told exactly.
    pub crystal_hz: u32,
    /// What the host executes for the guest: [`CpuModel::Max`] is made to fit it, other models do not look
    /// ([`CpuModel::check`]).
    pub host: HostVector,
}

/// The CPUID table of `model`.
#[must_use]
pub fn model(model: CpuModel, config: &ModelConfig) -> CpuidTable {
    let mut words = model.words();
    if model.follows_host() {
        words = config.host.fit(words);
    }
    let mut table = match model.vendor() {
        Vendor::Intel => intel::table(&words, config),
        Vendor::Amd => amd::table(&words, config),
    };
    table.exact = !model.follows_host();
    table
}

/// Leaf 1, EDX of every model: what every 64-bit processor has.
const BASIC: u32 = {
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
};

/// The vector and bit instructions of a Haswell and all that came after it, with AES.
const VECTOR: u32 = {
    use leaf1_ecx as c;
    LEVEL2 | c::PCLMULQDQ | c::FMA | c::MOVBE | c::AES | c::XSAVE | c::AVX | c::F16C | c::RDRAND
};

const LEVEL2: u32 = {
    use leaf1_ecx as c;
    c::SSE3 | c::SSSE3 | c::CX16 | c::SSE4_1 | c::SSE4_2 | c::POPCNT
};

/// Level v2 as programs see it, with what an operating system expects of a processor of today.
fn level2() -> Words {
    use leaf1_ecx as c;
    use leaf7_ebx as b;
    Words {
        leaf1_ecx: LEVEL2 | c::PCID | c::X2APIC | c::TSC_DEADLINE | c::HYPERVISOR,
        leaf1_edx: BASIC | leaf1_edx::SS,
        leaf7_ebx: b::TSC_ADJUST | b::SMEP | b::ERMS | b::INVPCID | b::NO_FPU_CS_DS | b::SMAP,
        leaf7_ecx: leaf7_ecx::UMIP,
        leaf7_edx: leaf7_edx::FSRM | leaf7_edx::SPEC_CTRL | leaf7_edx::ARCH_CAPABILITIES,
        ext1_ecx: ext1_ecx::LAHF64,
        ext1_edx: ext1_edx::SYSCALL
            | ext1_edx::NX
            | ext1_edx::PAGE_1GB
            | ext1_edx::RDTSCP
            | ext1_edx::LM,
        ..Words::default()
    }
}

fn level3() -> Words {
    use leaf1_ecx as c;
    use leaf7_ebx as b;
    let mut w = level2();
    w.leaf1_ecx |= c::FMA | c::MOVBE | c::XSAVE | c::AVX | c::F16C;
    w.leaf7_ebx |= b::BMI1 | b::AVX2 | b::BMI2;
    w.ext1_ecx |= ext1_ecx::LZCNT;
    w
}

fn intel_words() -> Words {
    use leaf7_ebx as b;
    let mut w = level3();
    w.leaf1_ecx |= VECTOR;
    w.leaf7_ebx |= b::FSGSBASE | b::RDSEED | b::ADX | b::CLFLUSHOPT;
    w.leaf7_ecx |= leaf7_ecx::RDPID;
    w.leafd1_eax |=
        leafd1_eax::XSAVEOPT | leafd1_eax::XSAVEC | leafd1_eax::XGETBV1 | leafd1_eax::XSAVES;
    w.ext1_ecx |= ext1_ecx::PREFETCHW;
    w
}

fn max() -> Words {
    let mut w = intel_words();
    w.leaf1_ecx |= leaf1_ecx::MONITOR;
    w.leaf7_ebx |= leaf7_ebx::SHA | leaf7_ebx::CLWB;
    w.leaf7_ecx |= leaf7_ecx::PKU | leaf7_ecx::GFNI | leaf7_ecx::VAES | leaf7_ecx::VPCLMULQDQ;
    // Without it an operating system clears the branch history by a loop at each entry to its kernel, whatever BHI_NO
    // says. The named models do without: no processor of their generation has it, nor would KVM there.
    w.leaf7_2_edx |= leaf7_2_edx::BHI_CTRL;
    w
}

/// What an AMD processor says in words of its own: APM Vol 3 appendix E.
fn amd_words() -> Words {
    use ext8_ebx as e;
    use leaf1_ecx as c;
    use leaf7_ebx as b;
    Words {
        leaf1_ecx: VECTOR | c::PCID | c::X2APIC | c::HYPERVISOR,
        leaf1_edx: BASIC,
        leaf7_ebx: b::FSGSBASE
            | b::BMI1
            | b::AVX2
            | b::SMEP
            | b::BMI2
            | b::ERMS
            | b::INVPCID
            | b::NO_FPU_CS_DS
            | b::RDSEED
            | b::ADX
            | b::SMAP
            | b::CLFLUSHOPT
            | b::CLWB,
        leaf7_ecx: leaf7_ecx::UMIP | leaf7_ecx::PKU | leaf7_ecx::RDPID,
        leaf7_edx: leaf7_edx::FSRM,
        leaf7_2_edx: 0,
        leafd1_eax: leafd1_eax::XSAVEOPT
            | leafd1_eax::XSAVEC
            | leafd1_eax::XGETBV1
            | leafd1_eax::XSAVES,
        ext1_ecx: ext1_ecx::LAHF64
            | ext1_ecx::ALT_MOV_CR8
            | ext1_ecx::LZCNT
            | ext1_ecx::SSE4A
            | ext1_ecx::PREFETCHW
            | ext1_ecx::TOPOLOGY,
        ext1_edx: amd::REPEATED & BASIC
            | ext1_edx::SYSCALL
            | ext1_edx::NX
            | ext1_edx::MMXEXT
            | ext1_edx::PAGE_1GB
            | ext1_edx::RDTSCP
            | ext1_edx::LM,
        ext8_ebx: e::CLZERO
            | e::X87_POINTERS
            | e::WBNOINVD
            | e::IBPB
            | e::IBRS
            | e::STIBP
            | e::NO_LMSLE
            | e::SSB_NO
            | e::BTC_NO,
        ext21_eax: ext21::LFENCE_SERIALIZES
            | ext21::NULL_CLEARS_BASE
            | ext21::AUTOMATIC_IBRS
            | ext21::NO_SMM_CTL
            | ext21::SRSO_NO,
        ext21_ecx: ext21::TSA_SQ_NO | ext21::TSA_L1_NO,
    }
}
