//! What the host processor and its operating system offer (SDM Vol. 1, 14.3 and chapter 12 and later "Detection").
//!
//! A guest CPU model may only advertise what the host can execute. The AVX family also needs the operating
//! system to save YMM state (CPUID.1:ECX.OSXSAVE and XCR0[2:1] = 11b), which the detection includes.

use iced_x86::{Code, CpuidFeature, EncodingKind};
use std::sync::OnceLock;

/// One instruction-set extension this crate can execute. x87, MMX, SSE and SSE2 are part of x86-64 itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Feature {
    /// CPUID.1:ECX\[0\].
    Sse3,
    /// CPUID.1:ECX\[9\].
    Ssse3,
    /// CPUID.1:ECX\[19\].
    Sse4_1,
    /// CPUID.1:ECX\[20\].
    Sse4_2,
    /// CPUID.1:ECX\[25\].
    Aes,
    /// CPUID.1:ECX\[1\].
    Pclmulqdq,
    /// CPUID.7.0:EBX\[29\].
    Sha,
    /// CPUID.7.0:ECX\[8\].
    Gfni,
    /// CPUID.1:ECX\[28\], with XCR0\[2:1\] = 11b.
    Avx,
    /// CPUID.7.0:EBX\[5\], with AVX.
    Avx2,
    /// CPUID.1:ECX\[12\], with AVX.
    Fma,
    /// CPUID.1:ECX\[29\], with AVX.
    F16c,
    /// CPUID.7.0:ECX\[9\], with AVX.
    Vaes,
    /// CPUID.7.0:ECX\[10\], with AVX.
    Vpclmulqdq,
}

impl Feature {
    /// Every feature, in declaration order.
    pub const ALL: [Feature; 14] = [
        Feature::Sse3,
        Feature::Ssse3,
        Feature::Sse4_1,
        Feature::Sse4_2,
        Feature::Aes,
        Feature::Pclmulqdq,
        Feature::Sha,
        Feature::Gfni,
        Feature::Avx,
        Feature::Avx2,
        Feature::Fma,
        Feature::F16c,
        Feature::Vaes,
        Feature::Vpclmulqdq,
    ];
}

/// The set of [`Feature`]s the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFeatures(u32);

impl HostFeatures {
    /// The host's features; CPUID is asked once a process.
    pub fn get() -> HostFeatures {
        static FEATURES: OnceLock<HostFeatures> = OnceLock::new();
        *FEATURES.get_or_init(HostFeatures::detect)
    }

    /// Whether the host has `feature`.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u32) != 0
    }

    fn detect() -> HostFeatures {
        let avx = std::is_x86_feature_detected!("avx");
        let present = [
            (Feature::Sse3, std::is_x86_feature_detected!("sse3")),
            (Feature::Ssse3, std::is_x86_feature_detected!("ssse3")),
            (Feature::Sse4_1, std::is_x86_feature_detected!("sse4.1")),
            (Feature::Sse4_2, std::is_x86_feature_detected!("sse4.2")),
            (Feature::Aes, std::is_x86_feature_detected!("aes")),
            (
                Feature::Pclmulqdq,
                std::is_x86_feature_detected!("pclmulqdq"),
            ),
            (Feature::Sha, std::is_x86_feature_detected!("sha")),
            (Feature::Gfni, std::is_x86_feature_detected!("gfni")),
            (Feature::Avx, avx),
            (Feature::Avx2, avx && std::is_x86_feature_detected!("avx2")),
            (Feature::Fma, avx && std::is_x86_feature_detected!("fma")),
            (Feature::F16c, avx && std::is_x86_feature_detected!("f16c")),
            (Feature::Vaes, avx && std::is_x86_feature_detected!("vaes")),
            (
                Feature::Vpclmulqdq,
                avx && std::is_x86_feature_detected!("vpclmulqdq"),
            ),
        ];
        HostFeatures(
            present
                .iter()
                .filter(|(_, has)| *has)
                .fold(0, |bits, (feature, _)| bits | 1 << *feature as u32),
        )
    }
}

/// Whether the host has `feature` (CPUID, and for the AVX family XCR0).
pub fn host_has(feature: Feature) -> bool {
    HostFeatures::get().has(feature)
}

/// What the CPUID features of an instruction mean for this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// An extension this crate does not execute.
    Foreign,
    /// One of ours, but the host lacks it.
    HostLacks(Feature),
    /// The host executes it.
    Present,
}

/// Judges `code` by the CPUID features it is listed under.
pub(crate) fn support(code: Code, host: HostFeatures) -> Support {
    let mut lacking = None;
    let mut need = |feature| {
        if !host.has(feature) && lacking.is_none() {
            lacking = Some(feature);
        }
    };
    if code.op_code().encoding() == EncodingKind::VEX {
        need(Feature::Avx);
    }
    for cpuid in code.cpuid_features() {
        match cpuid {
            CpuidFeature::INTEL8086
            | CpuidFeature::FPU
            | CpuidFeature::FPU287
            | CpuidFeature::FPU387
            | CpuidFeature::CMOV
            | CpuidFeature::MMX
            | CpuidFeature::SSE
            | CpuidFeature::SSE2 => {}
            CpuidFeature::SSE3 => need(Feature::Sse3),
            CpuidFeature::SSSE3 => need(Feature::Ssse3),
            CpuidFeature::SSE4_1 => need(Feature::Sse4_1),
            CpuidFeature::SSE4_2 => need(Feature::Sse4_2),
            CpuidFeature::AES => need(Feature::Aes),
            CpuidFeature::PCLMULQDQ => need(Feature::Pclmulqdq),
            CpuidFeature::SHA => need(Feature::Sha),
            CpuidFeature::GFNI => need(Feature::Gfni),
            CpuidFeature::AVX => need(Feature::Avx),
            CpuidFeature::AVX2 => need(Feature::Avx2),
            CpuidFeature::FMA => need(Feature::Fma),
            CpuidFeature::F16C => need(Feature::F16c),
            CpuidFeature::VAES => need(Feature::Vaes),
            CpuidFeature::VPCLMULQDQ => need(Feature::Vpclmulqdq),
            _ => return Support::Foreign,
        }
    }
    lacking.map_or(Support::Present, Support::HostLacks)
}
