//! What CPUID answers: tables of leaves, the models that make them, and the fields that follow a vCPU's
//! own state.
//!
//! A table holds what is the same for all vCPUs of a VM. What depends on the asking vCPU (APIC ids, OSXSAVE,
//! XSAVE sizes, SYSCALL outside 64-bit mode) is put in by [`CpuidTable::for_vcpu`], so that every engine
//! answers alike.

pub mod feature;
mod intel;
mod timing;

#[cfg(test)]
mod tests;

pub use intel::{MICROCODE_REVISION, MISC_ENABLE_RESET, SIGNATURE, arch_capabilities};
pub use timing::{TscRatio, timing_leaves, tsc_ratio};

use crate::NestedVirt;
use feature::{ext1_edx, leaf1_ecx, leaf1_edx, leafd1_eax, xstate};

/// Width of a guest-physical address in bits: `CPUID.80000008H:EAX[7:0]`, MAXPHYADDR.
pub const MAXPHYADDR: u32 = 40;

/// Width of a linear address in bits: `CPUID.80000008H:EAX[15:8]`.
pub const LINEAR_BITS: u32 = 48;

/// What leaf 40000000h returns in EBX, ECX and EDX under the software CPU.
pub const HYPERVISOR_SIGNATURE: &[u8; 12] = b"NestlingNest";

/// EAX, EBX, ECX, EDX of one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// One leaf; `subleaf` is `None` where ECX does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX in.
    pub leaf: u32,
    /// ECX in.
    pub subleaf: Option<u32>,
    /// The answer, without what [`CpuidTable::for_vcpu`] fills in.
    pub result: CpuidResult,
}

/// The answers of a CPU model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidTable {
    /// Sorted by leaf and subleaf.
    pub leaves: Vec<CpuidLeaf>,
}

/// The state of the asking vCPU that CPUID answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuFields {
    /// Its (initial) APIC id.
    pub apic_id: u32,
    /// `IA32_APIC_BASE[11]`: the APIC is globally enabled.
    pub apic_enabled: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
    /// It is in 64-bit mode (IA-32e mode with CS.L set).
    pub mode64: bool,
}

/// Which processor a guest is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuModel {
    /// The software CPU's own model: an Intel processor of the Skylake generation without its errata.
    NestlingIntel,
}

impl CpuModel {
    /// The name on the command line and in saved state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NestlingIntel => "nestling-intel",
        }
    }
}

/// Vector extensions that the engine executes by the host's own instructions, so that a guest can have them
/// only where the host does. SSE and SSE2 are part of every x86-64 host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostVector {
    /// SSE3.
    pub sse3: bool,
    /// SSSE3.
    pub ssse3: bool,
    /// SSE4.1.
    pub sse4_1: bool,
    /// SSE4.2.
    pub sse4_2: bool,
    /// PCLMULQDQ.
    pub pclmulqdq: bool,
    /// AES.
    pub aes: bool,
    /// SHA.
    pub sha: bool,
    /// AVX.
    pub avx: bool,
    /// F16C; needs AVX.
    pub f16c: bool,
    /// FMA; needs AVX.
    pub fma: bool,
    /// AVX2; needs AVX.
    pub avx2: bool,
}

impl HostVector {
    /// Everything the model knows.
    pub const ALL: Self = Self {
        sse3: true,
        ssse3: true,
        sse4_1: true,
        sse4_2: true,
        pclmulqdq: true,
        aes: true,
        sha: true,
        avx: true,
        f16c: true,
        fma: true,
        avx2: true,
    };

    /// What the processor we run on has, and its operating system lets us use.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn detect() -> Self {
        Self {
            sse3: std::is_x86_feature_detected!("sse3"),
            ssse3: std::is_x86_feature_detected!("ssse3"),
            sse4_1: std::is_x86_feature_detected!("sse4.1"),
            sse4_2: std::is_x86_feature_detected!("sse4.2"),
            pclmulqdq: std::is_x86_feature_detected!("pclmulqdq"),
            aes: std::is_x86_feature_detected!("aes"),
            sha: std::is_x86_feature_detected!("sha"),
            avx: std::is_x86_feature_detected!("avx"),
            f16c: std::is_x86_feature_detected!("f16c"),
            fma: std::is_x86_feature_detected!("fma"),
            avx2: std::is_x86_feature_detected!("avx2"),
        }
    }
}

/// What a model's table depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Number of vCPUs; all are cores of one package, one thread each. 0 counts as 1.
    pub vcpus: u32,
    /// The virtualization extension shown. An Intel model has VT-x or none: [`NestedVirt::Amd`] shows none
    /// (the engine's capabilities say what can be asked for).
    pub nested: NestedVirt,
    /// TSC frequency in Hz.
    pub tsc_hz: u64,
    /// Frequency of the core crystal clock in Hz, which is also what the APIC timer counts (SDM Vol 3
    /// 11.5.4). See [`tsc_ratio`] for the pairs that are told exactly.
    pub crystal_hz: u32,
    /// What the host executes for the guest.
    pub host: HostVector,
}

/// The CPUID table of `model`.
#[must_use]
pub fn model(model: CpuModel, config: &ModelConfig) -> CpuidTable {
    match model {
        CpuModel::NestlingIntel => intel::table(config),
    }
}

impl CpuidTable {
    /// The stored answer for `(leaf, subleaf)`, if the model has it.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<CpuidResult> {
        let start = self.leaves.partition_point(|l| l.leaf < leaf);
        self.leaves[start..]
            .iter()
            .take_while(|l| l.leaf == leaf)
            .find(|l| l.subleaf.is_none_or(|s| s == subleaf))
            .map(|l| l.result)
    }

    /// Puts a leaf in its place, over one that is there.
    pub fn set(&mut self, leaf: u32, subleaf: Option<u32>, result: CpuidResult) {
        let entry = CpuidLeaf {
            leaf,
            subleaf,
            result,
        };
        match self
            .leaves
            .binary_search_by_key(&(leaf, subleaf), |l| (l.leaf, l.subleaf))
        {
            Ok(at) => self.leaves[at] = entry,
            Err(at) => self.leaves.insert(at, entry),
        }
    }

    /// The answer as the processor gives it, for the fields that are the same on all vCPUs: leaves beyond the
    /// highest basic or extended leaf answer as the highest basic leaf (SDM Vol 2, CPUID, "If a value
    /// entered for CPUID.EAX is higher than the maximum"), absent leaves below it are zero. The range left to
    /// hypervisors, 40000000h to 4FFFFFFFh, is zero where it is not used.
    #[must_use]
    pub fn answer(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        if let Some(r) = self.get(leaf, subleaf) {
            return r;
        }
        let highest_basic = self.get(0, 0).map_or(0, |r| r.eax);
        let within = match leaf >> 28 {
            0 => leaf <= highest_basic,
            4 => true,
            8 => leaf <= self.get(0x8000_0000, 0).map_or(0, |r| r.eax),
            _ => false,
        };
        if !within {
            return self.get(highest_basic, subleaf).unwrap_or_default();
        }
        // An invalid level of the topology leaves returns the input in ECX[7:0] (SDM Vol 2, leaf 0BH).
        let ecx = if leaf == 0xb { subleaf & 0xff } else { 0 };
        CpuidResult {
            ecx,
            ..CpuidResult::default()
        }
    }

    /// The whole answer for one vCPU: [`CpuidTable::answer`] with the fields that follow its state.
    #[must_use]
    pub fn for_vcpu(&self, leaf: u32, subleaf: u32, vcpu: &VcpuFields) -> CpuidResult {
        let mut r = self.answer(leaf, subleaf);
        let put = |word: &mut u32, bits: u32, on: bool| {
            *word = if on { *word | bits } else { *word & !bits };
        };
        match leaf {
            1 => {
                r.ebx = r.ebx & 0x00ff_ffff | vcpu.apic_id << 24;
                let osxsave = vcpu.osxsave && r.ecx & leaf1_ecx::XSAVE != 0;
                put(&mut r.ecx, leaf1_ecx::OSXSAVE, osxsave);
                let apic = vcpu.apic_enabled && r.edx & leaf1_edx::APIC != 0;
                put(&mut r.edx, leaf1_edx::APIC, apic);
            }
            0xb => r.edx = vcpu.apic_id,
            0xd if subleaf == 0 && r.eax != 0 => {
                r.ebx = xsave_standard_bytes(vcpu.xcr0);
            }
            0xd if subleaf == 1 && r.eax & (leafd1_eax::XSAVEC | leafd1_eax::XSAVES) != 0 => {
                r.ebx = xsave_compacted_bytes(vcpu.xcr0);
            }
            0x8000_0001 if !vcpu.mode64 => put(&mut r.edx, ext1_edx::SYSCALL, false),
            _ => {}
        }
        r
    }
}

/// Bytes of an XSAVE area in standard format for the components of `xcr0` that models have (SDM Vol 1 13.4.3):
/// up to the end of the component with the highest offset.
#[must_use]
pub const fn xsave_standard_bytes(xcr0: u64) -> u32 {
    if xcr0 & xstate::AVX != 0 {
        xstate::AVX_OFFSET + xstate::AVX_BYTES
    } else {
        xstate::LEGACY_AND_HEADER_BYTES
    }
}

/// Bytes of an XSAVE area in compacted format for the components of `xcr0` that models have (SDM Vol 1
/// 13.4.3): components follow the header without gaps.
#[must_use]
pub const fn xsave_compacted_bytes(xcr0: u64) -> u32 {
    let avx = if xcr0 & xstate::AVX != 0 {
        xstate::AVX_BYTES
    } else {
        0
    };
    xstate::LEGACY_AND_HEADER_BYTES + avx
}
