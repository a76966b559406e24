//! What of a model rests on the host's processor.

use super::feature::{leaf1_ecx, leaf7_ebx, leaf7_ecx};
use super::words::Words;

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
    /// GFNI.
    pub gfni: bool,
    /// AES on YMM registers; needs AVX.
    pub vaes: bool,
    /// PCLMULQDQ on YMM registers; needs AVX.
    pub vpclmulqdq: bool,
}

/// Which feature word a host feature shows in.
enum Word {
    Leaf1Ecx,
    Leaf7Ebx,
    Leaf7Ecx,
}

impl HostVector {
    /// Everything a model can rest on.
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
        gfni: true,
        vaes: true,
        vpclmulqdq: true,
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
            gfni: std::is_x86_feature_detected!("gfni"),
            vaes: std::is_x86_feature_detected!("vaes"),
            vpclmulqdq: std::is_x86_feature_detected!("vpclmulqdq"),
        }
    }

    /// Each feature: its name, whether it can be had, and where it shows. What needs AVX goes with AVX (SDM
    /// Vol 1 14.5.3, 14.7.1: software checks AVX before F16C, FMA, AVX2).
    fn list(&self) -> [(&'static str, bool, Word, u32); 14] {
        use Word::{Leaf1Ecx, Leaf7Ebx, Leaf7Ecx};
        let avx = self.avx;
        [
            ("sse3", self.sse3, Leaf1Ecx, leaf1_ecx::SSE3),
            ("ssse3", self.ssse3, Leaf1Ecx, leaf1_ecx::SSSE3),
            ("sse4_1", self.sse4_1, Leaf1Ecx, leaf1_ecx::SSE4_1),
            ("sse4_2", self.sse4_2, Leaf1Ecx, leaf1_ecx::SSE4_2),
            ("pclmulqdq", self.pclmulqdq, Leaf1Ecx, leaf1_ecx::PCLMULQDQ),
            ("aes", self.aes, Leaf1Ecx, leaf1_ecx::AES),
            ("sha", self.sha, Leaf7Ebx, leaf7_ebx::SHA),
            ("avx", avx, Leaf1Ecx, leaf1_ecx::AVX),
            ("f16c", self.f16c && avx, Leaf1Ecx, leaf1_ecx::F16C),
            ("fma", self.fma && avx, Leaf1Ecx, leaf1_ecx::FMA),
            ("avx2", self.avx2 && avx, Leaf7Ebx, leaf7_ebx::AVX2),
            ("gfni", self.gfni, Leaf7Ecx, leaf7_ecx::GFNI),
            ("vaes", self.vaes && avx, Leaf7Ecx, leaf7_ecx::VAES),
            (
                "vpclmulqdq",
                self.vpclmulqdq && avx,
                Leaf7Ecx,
                leaf7_ecx::VPCLMULQDQ,
            ),
        ]
    }

    /// The names of what `words` show and this host lacks.
    pub(super) fn lacking(&self, words: &Words) -> Vec<&'static str> {
        self.list()
            .into_iter()
            .filter(|(_, has, word, bit)| !has && *word.of(&mut words.clone()) & bit != 0)
            .map(|(name, ..)| name)
            .collect()
    }

    /// `words` without what this host lacks.
    pub(super) fn fit(&self, mut words: Words) -> Words {
        for (_, has, word, bit) in self.list() {
            if !has {
                *word.of(&mut words) &= !bit;
            }
        }
        words
    }
}

impl Word {
    fn of<'a>(&self, words: &'a mut Words) -> &'a mut u32 {
        match self {
            Self::Leaf1Ecx => &mut words.leaf1_ecx,
            Self::Leaf7Ebx => &mut words.leaf7_ebx,
            Self::Leaf7Ecx => &mut words.leaf7_ecx,
        }
    }
}
