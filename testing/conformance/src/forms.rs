//! Which instruction forms can be compared with the host in which mode, and why the others cannot.

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};

/// Why a form is not tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// Not an instruction of this mode, or a pseudo-instruction of the assembler.
    NotInMode,
    /// An encoding (EVEX, XOP, 3DNow!) the CPU models do not offer.
    Encoding,
    /// AMD and Intel processors decode these bytes differently.
    VendorsDisagree,
    /// A WAIT prefix and an instruction: two instructions to the processor, each tested by itself.
    TwoInstructions,
    /// The outcome is the host's kernel's or hypervisor's, not its processor's.
    HostDependent(&'static str),
    /// The host's processor lacks it.
    HostLacks(CpuidFeature),
    /// Operands that belong to a feature the CPU models do not offer.
    Operands(&'static str),
    /// The subject does not implement it.
    NotImplemented,
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotInMode => "not an instruction of this mode",
            Self::Encoding => "EVEX, XOP or 3DNow! encoding",
            Self::VendorsDisagree => "AMD and Intel decode it differently",
            Self::TwoInstructions => "WAIT and another instruction",
            Self::HostDependent(why) | Self::Operands(why) => why,
            Self::HostLacks(feature) => {
                return write!(f, "the host's processor lacks {feature:?}");
            }
            Self::NotImplemented => "not implemented",
        })
    }
}

/// Forms whose outcome the host's kernel or hypervisor decides.
fn host_dependent(code: Code, bits: u32) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match code.mnemonic() {
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw if host_has_umip() => {
            "emulated by the host's kernel (UMIP, SDM Vol 3 2.5)"
        }
        M::Sgdt | M::Sidt | M::Sldt | M::Str => "reads where the host's kernel has its tables",
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase if !crate::host::has_fsgsbase() => {
            "the host's kernel does not allow it (CR4.FSGSBASE)"
        }
        M::Umonitor | M::Umwait | M::Tpause | M::Monitorx | M::Mwaitx => {
            "waits as long as the host's kernel allows"
        }
        M::Int1 => "its #DB goes through the host's hypervisor",
        M::Clzero => "the cache line's size is the processor's",
        M::Rdpkru | M::Wrpkru => "protection keys are the host kernel's choice (CR4.PKE)",
        M::Xsaveopt | M::Xsaveopt64 => {
            "what it leaves out is the processor's choice (SDM Vol 1 13.9)"
        }
        M::Vmcall | M::Vmmcall | M::Vmfunc | M::Vmgexit | M::Tdcall | M::Seamcall => {
            "goes to the host's hypervisor"
        }
        M::Syscall | M::Sysenter => "a system call of the host's kernel",
        M::Sysexit | M::Sysexitq => {
            "#UD in long mode on AMD's processors (APM Vol 3, SYSEXIT), #GP on Intel's"
        }
        M::Sysretq | M::Sysret if bits != 64 => {
            "#GP in compatibility mode on AMD's processors (APM Vol 3, SYSRET), #UD on Intel's"
        }
        M::Encls | M::Enclu | M::Enclv | M::Getsec | M::Pconfig => {
            "depends on what the host's firmware enabled"
        }
        _ => return None,
    })
}

fn host_has_umip() -> bool {
    cpuid(0).eax >= 7 && cpuid(7).ecx & 1 << 2 != 0
}

/// Whether the host's processor (and its kernel) offers `feature` to a program.
fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    use std::arch::is_x86_feature_detected as detected;
    match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CMOV
        | F::CPUID
        | F::CX8
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::FXSR
        | F::MMX
        | F::MSR
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::RDPMC
        | F::SEP
        | F::SSE
        | F::SSE2
        | F::CLFSH
        | F::TSC
        | F::SYSCALL => true,
        F::ADX => detected!("adx"),
        F::AES => detected!("aes"),
        F::AVX => detected!("avx"),
        F::AVX2 => detected!("avx2"),
        F::BMI1 => detected!("bmi1"),
        F::BMI2 => detected!("bmi2"),
        F::CLFLUSHOPT => leaf7_ebx(23),
        F::CLWB => leaf7_ebx(24),
        F::CMPXCHG16B => detected!("cmpxchg16b"),
        F::F16C => detected!("f16c"),
        F::FMA => detected!("fma"),
        F::FSGSBASE => crate::host::has_fsgsbase(),
        F::GFNI => detected!("gfni"),
        F::INVPCID => leaf7_ebx(10),
        F::LZCNT => detected!("lzcnt"),
        F::MONITOR => cpuid(1).ecx & 1 << 3 != 0,
        F::MOVBE => detected!("movbe"),
        F::PCLMULQDQ => detected!("pclmulqdq"),
        F::POPCNT => detected!("popcnt"),
        // Without CET, ENDBR is one of the reserved NOPs (SDM Vol 1 17.1.1): any processor runs it.
        F::CET_IBT => true,
        // PREFETCHW: CPUID.80000001H:ECX bit 8.
        F::PREFETCHW => cpuid(0x8000_0001).ecx & 1 << 8 != 0,
        F::RDPID => cpuid(7).ecx & 1 << 22 != 0,
        F::RDRAND => detected!("rdrand"),
        F::RDSEED => detected!("rdseed"),
        F::RDTSCP => cpuid(0x8000_0001).edx & 1 << 27 != 0,
        F::SHA => detected!("sha"),
        F::SMAP => leaf7_ebx(20),
        F::SSE3 => detected!("sse3"),
        F::SSSE3 => detected!("ssse3"),
        F::SSE4_1 => detected!("sse4.1"),
        F::SSE4_2 => detected!("sse4.2"),
        F::SSE4A => detected!("sse4a"),
        F::TBM => detected!("tbm"),
        F::VAES => detected!("vaes"),
        F::VPCLMULQDQ => detected!("vpclmulqdq"),
        F::XSAVE => detected!("xsave"),
        F::XSAVEC => detected!("xsavec"),
        F::XSAVEOPT => detected!("xsaveopt"),
        F::XSAVES => detected!("xsaves"),
        // AVX-VNNI: CPUID.(7,1):EAX bit 4; not given to programs by all kernels.
        _ => false,
    }
}

fn cpuid(leaf: u32) -> std::arch::x86_64::CpuidResult {
    std::arch::x86_64::__cpuid_count(leaf, 0)
}

fn leaf7_ebx(bit: u32) -> bool {
    cpuid(0).eax >= 7 && cpuid(7).ebx & 1 << bit != 0
}

/// Whether `form` exists in code of `bits` bits, for both vendors alike.
fn in_mode(code: Code, bits: u32) -> Result<(), Skip> {
    let form = code.op_code();
    let (exists, intel, amd) = match bits {
        16 => (
            form.mode16() && form.compatibility_mode(),
            form.intel_decoder16(),
            form.amd_decoder16(),
        ),
        32 => (
            form.mode32() && form.compatibility_mode(),
            form.intel_decoder32(),
            form.amd_decoder32(),
        ),
        _ => (form.mode64(), form.intel_decoder64(), form.amd_decoder64()),
    };
    if !form.is_instruction() || !exists {
        return Err(Skip::NotInMode);
    }
    if !matches!(form.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return Err(Skip::Encoding);
    }
    if !intel || !amd || form.is_reserved_nop() {
        return Err(Skip::VendorsDisagree);
    }
    Ok(())
}

/// Whether `code` can be tested on this host in code of `bits` bits.
///
/// # Errors
/// Why it cannot.
pub fn testable(code: Code, bits: u32) -> Result<(), Skip> {
    in_mode(code, bits)?;
    let form = code.op_code();
    if form.fwait() {
        return Err(Skip::TwoInstructions);
    }
    if let Some(why) = host_dependent(code, bits) {
        return Err(Skip::HostDependent(why));
    }
    if code.flow_control() == FlowControl::XbeginXabortXend {
        return Err(Skip::HostLacks(CpuidFeature::RTM));
    }
    if let Some(&feature) = code.cpuid_features().iter().find(|&&f| !host_has(f)) {
        return Err(Skip::HostLacks(feature));
    }
    use OpCodeOperandKind as K;
    for kind in form.op_kinds() {
        match kind {
            K::tr_reg => return Err(Skip::Operands("test registers of the 486")),
            K::bnd_reg | K::mem_mib | K::mem_mpx | K::bnd_or_mem_mpx => {
                return Err(Skip::Operands("bound registers (MPX)"));
            }
            K::k_reg | K::kp1_reg | K::k_rm | K::k_vvvv | K::k_or_mem => {
                return Err(Skip::Operands("mask registers (AVX-512)"));
            }
            K::tmm_reg | K::tmm_rm | K::tmm_vvvv | K::sibmem => {
                return Err(Skip::Operands("tile registers (AMX)"));
            }
            K::brdisp_2 | K::brdisp_4 => return Err(Skip::Operands("JMPE of Itanium")),
            _ => {}
        }
    }
    Ok(())
}

/// The forms a run covers in one mode and those it leaves out.
#[derive(Clone, Debug, Default)]
pub struct FormList {
    /// Bits of the code segment.
    pub bits: u32,
    /// Tested, in iced's order.
    pub tested: Vec<Code>,
    /// Not tested: how many by reason.
    pub skipped: BTreeMap<Skip, Vec<Code>>,
}

impl FormList {
    /// All forms in code of `bits` bits that `supports` says the subject implements.
    pub fn new(bits: u32, supports: impl Fn(Code, u32) -> bool) -> Self {
        let mut list = Self {
            bits,
            ..Self::default()
        };
        for code in Code::values() {
            match testable(code, bits) {
                Ok(()) if supports(code, bits) => list.tested.push(code),
                Ok(()) => list.skip(Skip::NotImplemented, code),
                Err(why) => list.skip(why, code),
            }
        }
        list
    }

    fn skip(&mut self, why: Skip, code: Code) {
        self.skipped.entry(why).or_default().push(code);
    }
}
