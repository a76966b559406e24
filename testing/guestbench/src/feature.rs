//! What a part may need of the processor. A part is built for exactly what it needs, so that it is the same code on
//! every processor that has it, and is left out on one that does not.

/// A feature of CPUID, usable: the system saves its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// AES instructions.
    Aes,
    /// SHA instructions.
    Sha,
    /// SSSE3.
    Ssse3,
    /// SSE4.1.
    Sse41,
    /// AVX2.
    Avx2,
    /// FMA.
    Fma,
}

impl Feature {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes => "aes",
            Self::Sha => "sha",
            Self::Ssse3 => "ssse3",
            Self::Sse41 => "sse4.1",
            Self::Avx2 => "avx2",
            Self::Fma => "fma",
        }
    }

    /// Whether this processor has it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Aes => is_x86_feature_detected!("aes"),
            Self::Sha => is_x86_feature_detected!("sha"),
            Self::Ssse3 => is_x86_feature_detected!("ssse3"),
            Self::Sse41 => is_x86_feature_detected!("sse4.1"),
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Fma => is_x86_feature_detected!("fma"),
        }
    }
}
