//! The feature words of CPUID: what a model is made of, and the names of its bits.

use super::CpuidTable;
use super::feature::{
    ext1_ecx, ext1_edx, ext7_edx, ext8_ebx, ext21, leaf1_ecx, leaf1_edx, leaf6_eax, leaf7_2_edx,
    leaf7_ebx, leaf7_ecx, leaf7_edx, leafd1_eax,
};

/// A register of a leaf that holds feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// EAX in.
    pub leaf: u32,
    /// ECX in.
    pub subleaf: u32,
    /// 0 to 3 for EAX, EBX, ECX, EDX.
    pub register: usize,
}

impl CpuidTable {
    /// The register at `place`; zero where the model has no such leaf.
    #[must_use]
    pub fn word(&self, place: Place) -> u32 {
        let r = self.get(place.leaf, place.subleaf).unwrap_or_default();
        [r.eax, r.ebx, r.ecx, r.edx][place.register & 3]
    }

    /// The names of the features the model shows, in the order of [`NAMES`].
    pub fn features(&self) -> impl Iterator<Item = &'static str> {
        NAMES
            .iter()
            .filter(|n| self.word(n.place) & n.bit != 0)
            .map(|n| n.name)
    }
}

/// A feature's bit and what it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Lower case, as operating systems list it.
    pub name: &'static str,
    /// The register.
    pub place: Place,
    /// The bit in it.
    pub bit: u32,
}

macro_rules! names {
    ($(($leaf:literal, $subleaf:literal, $register:expr) { $($name:literal = $bit:expr),+ $(,)? })+) => {
        &[$($(Named {
            name: $name,
            place: Place { leaf: $leaf, subleaf: $subleaf, register: $register },
            bit: $bit,
        },)+)+]
    };
}

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Every feature a model can show.
pub const NAMES: &[Named] = names! {
    (1, 0, EDX) {
        "fpu" = leaf1_edx::FPU, "vme" = leaf1_edx::VME, "de" = leaf1_edx::DE, "pse" = leaf1_edx::PSE,
        "tsc" = leaf1_edx::TSC, "msr" = leaf1_edx::MSR, "pae" = leaf1_edx::PAE, "mce" = leaf1_edx::MCE,
        "cx8" = leaf1_edx::CX8, "apic" = leaf1_edx::APIC, "sep" = leaf1_edx::SEP, "mtrr" = leaf1_edx::MTRR,
        "pge" = leaf1_edx::PGE, "mca" = leaf1_edx::MCA, "cmov" = leaf1_edx::CMOV, "pat" = leaf1_edx::PAT,
        "pse36" = leaf1_edx::PSE36, "clflush" = leaf1_edx::CLFSH, "mmx" = leaf1_edx::MMX,
        "fxsr" = leaf1_edx::FXSR, "sse" = leaf1_edx::SSE, "sse2" = leaf1_edx::SSE2, "ss" = leaf1_edx::SS,
        "ht" = leaf1_edx::HTT,
    }
    (1, 0, ECX) {
        "sse3" = leaf1_ecx::SSE3, "pclmulqdq" = leaf1_ecx::PCLMULQDQ, "monitor" = leaf1_ecx::MONITOR,
        "vmx" = leaf1_ecx::VMX, "ssse3" = leaf1_ecx::SSSE3, "fma" = leaf1_ecx::FMA, "cx16" = leaf1_ecx::CX16,
        "pcid" = leaf1_ecx::PCID, "sse4_1" = leaf1_ecx::SSE4_1, "sse4_2" = leaf1_ecx::SSE4_2,
        "x2apic" = leaf1_ecx::X2APIC, "movbe" = leaf1_ecx::MOVBE, "popcnt" = leaf1_ecx::POPCNT,
        "tsc_deadline" = leaf1_ecx::TSC_DEADLINE, "aes" = leaf1_ecx::AES, "xsave" = leaf1_ecx::XSAVE,
        "avx" = leaf1_ecx::AVX, "f16c" = leaf1_ecx::F16C, "rdrand" = leaf1_ecx::RDRAND,
        "hypervisor" = leaf1_ecx::HYPERVISOR,
    }
    (6, 0, EAX) { "arat" = leaf6_eax::ARAT }
    (7, 0, EBX) {
        "fsgsbase" = leaf7_ebx::FSGSBASE, "tsc_adjust" = leaf7_ebx::TSC_ADJUST, "bmi1" = leaf7_ebx::BMI1,
        "avx2" = leaf7_ebx::AVX2, "smep" = leaf7_ebx::SMEP, "bmi2" = leaf7_ebx::BMI2, "erms" = leaf7_ebx::ERMS,
        "invpcid" = leaf7_ebx::INVPCID, "no_fpu_cs_ds" = leaf7_ebx::NO_FPU_CS_DS,
        "rdseed" = leaf7_ebx::RDSEED, "adx" = leaf7_ebx::ADX, "smap" = leaf7_ebx::SMAP,
        "clflushopt" = leaf7_ebx::CLFLUSHOPT, "clwb" = leaf7_ebx::CLWB, "sha" = leaf7_ebx::SHA,
    }
    (7, 0, ECX) {
        "umip" = leaf7_ecx::UMIP, "pku" = leaf7_ecx::PKU, "gfni" = leaf7_ecx::GFNI, "vaes" = leaf7_ecx::VAES,
        "vpclmulqdq" = leaf7_ecx::VPCLMULQDQ, "rdpid" = leaf7_ecx::RDPID,
    }
    (7, 0, EDX) {
        "fsrm" = leaf7_edx::FSRM, "spec_ctrl" = leaf7_edx::SPEC_CTRL,
        "arch_capabilities" = leaf7_edx::ARCH_CAPABILITIES,
    }
    (7, 2, EDX) { "bhi_ctrl" = leaf7_2_edx::BHI_CTRL }
    (0xd, 1, EAX) {
        "xsaveopt" = leafd1_eax::XSAVEOPT, "xsavec" = leafd1_eax::XSAVEC, "xgetbv1" = leafd1_eax::XGETBV1,
        "xsaves" = leafd1_eax::XSAVES,
    }
    (0x8000_0001, 0, ECX) {
        "lahf_lm" = ext1_ecx::LAHF64, "cmp_legacy" = ext1_ecx::CMP_LEGACY, "svm" = ext1_ecx::SVM,
        "cr8_legacy" = ext1_ecx::ALT_MOV_CR8, "lzcnt" = ext1_ecx::LZCNT, "sse4a" = ext1_ecx::SSE4A,
        "prefetchw" = ext1_ecx::PREFETCHW, "topoext" = ext1_ecx::TOPOLOGY,
    }
    (0x8000_0001, 0, EDX) {
        "syscall" = ext1_edx::SYSCALL, "nx" = ext1_edx::NX, "mmxext" = ext1_edx::MMXEXT,
        "pdpe1gb" = ext1_edx::PAGE_1GB, "rdtscp" = ext1_edx::RDTSCP, "lm" = ext1_edx::LM,
    }
    (0x8000_0007, 0, EDX) { "invariant_tsc" = ext7_edx::INVARIANT_TSC }
    (0x8000_0008, 0, EBX) {
        "clzero" = ext8_ebx::CLZERO, "x87_pointers" = ext8_ebx::X87_POINTERS, "wbnoinvd" = ext8_ebx::WBNOINVD,
        "ibpb" = ext8_ebx::IBPB, "ibrs" = ext8_ebx::IBRS, "stibp" = ext8_ebx::STIBP,
        "no_lmsle" = ext8_ebx::NO_LMSLE, "ssb_no" = ext8_ebx::SSB_NO, "btc_no" = ext8_ebx::BTC_NO,
    }
    (0x8000_0021, 0, EAX) {
        "lfence_serializes" = ext21::LFENCE_SERIALIZES, "null_clears_base" = ext21::NULL_CLEARS_BASE,
        "automatic_ibrs" = ext21::AUTOMATIC_IBRS, "no_smm_ctl" = ext21::NO_SMM_CTL,
        "srso_no" = ext21::SRSO_NO,
    }
    (0x8000_0021, 0, ECX) { "tsa_sq_no" = ext21::TSA_SQ_NO, "tsa_l1_no" = ext21::TSA_L1_NO }
};

/// The feature words of a model, before what follows from the configuration (VT-x, HTT) is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    pub leaf1_ecx: u32,
    pub leaf1_edx: u32,
    pub leaf7_ebx: u32,
    pub leaf7_ecx: u32,
    pub leaf7_edx: u32,
    pub leaf7_2_edx: u32,
    pub leafd1_eax: u32,
    pub ext1_ecx: u32,
    pub ext1_edx: u32,
    pub ext8_ebx: u32,
    pub ext21_eax: u32,
    pub ext21_ecx: u32,
}

impl Words {
    /// Whether a bit of leaf 1, ECX is shown.
    pub const fn leaf1(&self, bit: u32) -> bool {
        self.leaf1_ecx & bit != 0
    }
}
