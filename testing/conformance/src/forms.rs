//! Which instruction forms can be compared with the host, and why the others cannot.

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};

/// Why a form is not tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// Not an instruction of 64-bit mode, or a pseudo-instruction of the assembler.
    NotInLongMode,
    /// An encoding (EVEX, XOP, 3DNow!) the CPU models do not offer.
    Encoding,
    /// AMD and Intel processors decode these bytes differently.
    VendorsDisagree,
    /// A WAIT prefix and an instruction: two instructions to the processor, each tested by itself.
    TwoInstructions,
    /// Needs CPL 0 or I/O privilege; the guests in `guests/` test these.
    Privileged,
    /// The result depends on the host's configuration or on time.
    HostDependent(&'static str),
    /// The host's processor lacks it.
    HostLacks,
    /// A far transfer, system call or software interrupt; the guests in `guests/` test these.
    FarTransfer,
    /// Operands the generator does not make.
    Operands,
    /// The subject does not implement it.
    NotImplemented,
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotInLongMode => "not an instruction of 64-bit mode",
            Self::Encoding => "EVEX, XOP or 3DNow! encoding",
            Self::VendorsDisagree => "AMD and Intel decode it differently",
            Self::TwoInstructions => "WAIT and another instruction",
            Self::Privileged => "privileged",
            Self::HostDependent(why) => why,
            Self::HostLacks => "the host's processor lacks it",
            Self::FarTransfer => "far transfer, system call or interrupt",
            Self::Operands => "bound, mask, tile, control or debug register operands",
            Self::NotImplemented => "not implemented",
        })
    }
}

/// Forms whose result the host decides: mnemonic and reason.
fn host_dependent(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match code.mnemonic() {
        M::Rdtsc | M::Rdtscp | M::Rdpru | M::Rdpmc => "reads a counter",
        M::Rdrand | M::Rdseed => "reads random numbers",
        M::Cpuid | M::Xgetbv | M::Rdpid => "reads what identifies the processor",
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => {
            "emulated by the host's kernel (UMIP, SDM Vol 3 2.5)"
        }
        M::Lar | M::Lsl | M::Verr | M::Verw => "reads the host's descriptor tables",
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
            "FS and GS belong to the host's program"
        }
        M::Lss | M::Lfs | M::Lgs => "reads the host's descriptor tables",
        M::Monitor | M::Mwait | M::Monitorx | M::Mwaitx | M::Umonitor | M::Umwait | M::Tpause => {
            "depends on the host's kernel and on time"
        }
        M::Clzero => "the cache line's size is the processor's",
        M::Rdpkru | M::Wrpkru => "protection keys are the host kernel's choice",
        M::Xsaves | M::Xsaves64 | M::Xrstors | M::Xrstors64 => "supervisor states",
        M::Xsaveopt | M::Xsaveopt64 => {
            "what it leaves out is the processor's choice (SDM Vol 1 13.9)"
        }
        M::Xsetbv => "privileged, and the host decides XCR0",
        M::Vmcall | M::Vmmcall | M::Vmfunc | M::Vmgexit => "goes to the host's hypervisor",
        M::Pop | M::Mov
            if matches!(
                code,
                Code::Popw_FS
                    | Code::Popw_GS
                    | Code::Popq_FS
                    | Code::Popq_GS
                    | Code::Mov_Sreg_rm16
                    | Code::Mov_Sreg_r32m16
                    | Code::Mov_Sreg_r64m16
            ) =>
        {
            "reads the host's descriptor tables"
        }
        _ => return None,
    })
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
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::SSE
        | F::SSE2
        | F::CLFSH
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
        F::GFNI => detected!("gfni"),
        F::LZCNT => detected!("lzcnt"),
        F::MOVBE => detected!("movbe"),
        F::PCLMULQDQ => detected!("pclmulqdq"),
        F::POPCNT => detected!("popcnt"),
        // Without CET, ENDBR is one of the reserved NOPs (SDM Vol 1 17.1.1): any processor runs it.
        F::CET_IBT => true,
        // PREFETCHW: CPUID.80000001H:ECX bit 8.
        F::PREFETCHW => cpuid(0x8000_0001).ecx & 1 << 8 != 0,
        F::SHA => detected!("sha"),
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

/// Whether `code` can be tested on this host.
///
/// # Errors
/// Why it cannot.
pub fn testable(code: Code) -> Result<(), Skip> {
    let form = code.op_code();
    if !form.is_instruction() || !form.mode64() {
        return Err(Skip::NotInLongMode);
    }
    if !matches!(form.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return Err(Skip::Encoding);
    }
    if form.fwait() {
        return Err(Skip::TwoInstructions);
    }
    if let Some(why) = host_dependent(code) {
        return Err(Skip::HostDependent(why));
    }
    if form.is_privileged() || form.must_be_cpl0() || !form.cpl3() || form.is_input_output() {
        return Err(Skip::Privileged);
    }
    if !form.intel_decoder64() || !form.amd_decoder64() || form.is_reserved_nop() {
        return Err(Skip::VendorsDisagree);
    }
    if matches!(
        code.flow_control(),
        FlowControl::Interrupt | FlowControl::XbeginXabortXend
    ) && code != Code::Int3
    {
        return Err(Skip::FarTransfer);
    }
    if code.is_jmp_far()
        || code.is_jmp_far_indirect()
        || code.is_call_far()
        || code.is_call_far_indirect()
        || matches!(
            code.mnemonic(),
            Mnemonic::Retf
                | Mnemonic::Iret
                | Mnemonic::Iretd
                | Mnemonic::Iretq
                | Mnemonic::Syscall
                | Mnemonic::Sysenter
                | Mnemonic::Sysexit
                | Mnemonic::Sysexitq
                | Mnemonic::Sysret
                | Mnemonic::Sysretq
        )
    {
        return Err(Skip::FarTransfer);
    }
    if !code.cpuid_features().iter().all(|&f| host_has(f)) {
        return Err(Skip::HostLacks);
    }
    use OpCodeOperandKind as K;
    let refused = |kind: &K| {
        matches!(
            kind,
            K::cr_reg
                | K::dr_reg
                | K::tr_reg
                | K::bnd_reg
                | K::k_reg
                | K::kp1_reg
                | K::k_rm
                | K::k_vvvv
                | K::k_or_mem
                | K::tmm_reg
                | K::tmm_rm
                | K::tmm_vvvv
                | K::sibmem
                | K::mem_mib
                | K::mem_mpx
                | K::bnd_or_mem_mpx
                | K::farbr2_2
                | K::farbr4_2
                | K::xbegin_2
                | K::xbegin_4
                | K::brdisp_2
                | K::brdisp_4
        )
    };
    if form.op_kinds().iter().any(refused) {
        return Err(Skip::Operands);
    }
    Ok(())
}

/// The forms a run covers and those it leaves out.
#[derive(Clone, Debug, Default)]
pub struct FormList {
    /// Tested, in iced's order.
    pub tested: Vec<Code>,
    /// Not tested: how many by reason.
    pub skipped: BTreeMap<Skip, Vec<Code>>,
}

impl FormList {
    /// All forms that `supports` says the subject implements.
    pub fn new(supports: impl Fn(Code) -> bool) -> Self {
        let mut list = Self::default();
        for code in Code::values() {
            match testable(code) {
                Ok(()) if supports(code) => list.tested.push(code),
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
