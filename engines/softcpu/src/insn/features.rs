//! Which instructions the model has: an extension that CPUID does not show does not exist.

use iced_x86::{Code, CpuidFeature as F, DecoderOptions};
use vcpu::cpuid::{CpuidTable, Vendor};

/// What the decoder's tables list an instruction under, against the model's CPUID leaves.
pub struct GuestFeatures {
    /// By the decoder's feature number.
    answers: Vec<Answer>,
    /// How the decoder is to read bytes that the vendors read differently.
    pub decoder_options: u32,
}

/// No extension that gives a reserved NOP (0F 0D, 0F 18 to 0F 1F) a meaning changes anything here: prefetches and
/// hints do nothing, and CET and MPX are not shown, so that RDSSP, ENDBR and BND are NOPs (SDM Vol 2 A.3).
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Part of every x86-64 processor, or shown.
    Present,
    /// Not shown.
    Absent,
    /// Nothing this processor knows of.
    Unknown,
}

/// Where CPUID shows a feature: leaf, subleaf, register (EAX to EDX), bit (SDM Vol 2, CPUID).
fn place(feature: F) -> Option<(u32, u32, usize, u32)> {
    const EAX: usize = 0;
    const EBX: usize = 1;
    const ECX: usize = 2;
    const EDX: usize = 3;
    Some(match feature {
        F::SSE3 => (1, 0, ECX, 0),
        F::PCLMULQDQ => (1, 0, ECX, 1),
        F::MONITOR => (1, 0, ECX, 3),
        F::SSSE3 => (1, 0, ECX, 9),
        F::FMA => (1, 0, ECX, 12),
        F::CMPXCHG16B => (1, 0, ECX, 13),
        F::SSE4_1 => (1, 0, ECX, 19),
        F::SSE4_2 => (1, 0, ECX, 20),
        F::MOVBE => (1, 0, ECX, 22),
        F::POPCNT => (1, 0, ECX, 23),
        F::AES => (1, 0, ECX, 25),
        F::XSAVE => (1, 0, ECX, 26),
        F::AVX => (1, 0, ECX, 28),
        F::F16C => (1, 0, ECX, 29),
        F::RDRAND => (1, 0, ECX, 30),
        F::FSGSBASE => (7, 0, EBX, 0),
        F::BMI1 => (7, 0, EBX, 3),
        F::AVX2 => (7, 0, EBX, 5),
        F::BMI2 => (7, 0, EBX, 8),
        F::INVPCID => (7, 0, EBX, 10),
        F::RDSEED => (7, 0, EBX, 18),
        F::ADX => (7, 0, EBX, 19),
        F::SMAP => (7, 0, EBX, 20),
        F::CLFLUSHOPT => (7, 0, EBX, 23),
        F::CLWB => (7, 0, EBX, 24),
        F::SHA => (7, 0, EBX, 29),
        F::PKU => (7, 0, ECX, 3),
        F::GFNI => (7, 0, ECX, 8),
        F::VAES => (7, 0, ECX, 9),
        F::VPCLMULQDQ => (7, 0, ECX, 10),
        F::RDPID => (7, 0, ECX, 22),
        F::XSAVEOPT => (0xd, 1, EAX, 0),
        F::XSAVEC => (0xd, 1, EAX, 1),
        F::XSAVES => (0xd, 1, EAX, 3),
        F::LZCNT => (0x8000_0001, 0, ECX, 5),
        F::SSE4A => (0x8000_0001, 0, ECX, 6),
        F::CLZERO => (0x8000_0008, 0, EBX, 0),
        F::RDTSCP => (0x8000_0001, 0, EDX, 27),
        _ => return None,
    })
}

/// Vector and floating-point extensions of every x86-64 processor.
fn basic(feature: F) -> bool {
    matches!(
        feature,
        F::INTEL8086
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::CMOV
            | F::MMX
            | F::FXSR
            | F::SSE
            | F::SSE2
    )
}

impl GuestFeatures {
    /// What `cpuid` shows.
    pub fn new(cpuid: &CpuidTable) -> Self {
        let answers = F::values()
            .map(|feature| match place(feature) {
                Some((leaf, subleaf, register, bit)) => {
                    let r = cpuid.get(leaf, subleaf).unwrap_or_default();
                    let word = [r.eax, r.ebx, r.ecx, r.edx][register];
                    if word >> bit & 1 != 0 {
                        Answer::Present
                    } else {
                        Answer::Absent
                    }
                }
                None if basic(feature) => Answer::Present,
                None => Answer::Unknown,
            })
            .collect();
        let amd = match cpuid.vendor() {
            Vendor::Intel => 0,
            Vendor::Amd => DecoderOptions::AMD,
        };
        Self {
            answers,
            decoder_options: OPTIONS | amd,
        }
    }

    fn answers(&self, code: Code) -> impl Iterator<Item = Answer> {
        code.cpuid_features()
            .iter()
            .map(|f| self.answers.get(*f as usize).copied())
            .map(|a| a.unwrap_or(Answer::Unknown))
    }

    /// Whether an instruction with a handler here exists.
    pub fn has(&self, code: Code) -> bool {
        self.answers(code).all(|a| a != Answer::Absent)
    }

    /// Whether an instruction that the host would execute exists: all it needs must be known and shown.
    pub fn has_vector(&self, code: Code) -> bool {
        self.answers(code).all(|a| a == Answer::Present)
    }
}
