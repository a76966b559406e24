//! Facts of the instructions this crate executes: class, memory operand, alignment, exceptions, flags.
//!
//! Sources: SDM Vol. 2, 2.4 "AVX and SSE Instruction Exception Classification" and the instruction pages;
//! SDM Vol. 1, 11.5 (SIMD floating-point exceptions) and 14.9 (memory alignment); SDM Vol. 3, 24.25 (which
//! MMX-register instructions take a pending x87 exception).

use crate::masked::{Gather, MaskedMemory};
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind};

/// Which group of checks an instruction takes before it executes (CR0.EM/TS/MP, CR4.OSFXSR/OSXSAVE, XCR0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// x87 that first takes a pending unmasked exception (#MF); WAIT is one of them.
    X87,
    /// x87 control that does not wait: FNINIT, FNCLEX, FNSTCW, FNSTSW, FNSTENV, FNSAVE, FNENI, FNDISI, FNSETPM.
    X87NoWait,
    /// Uses MMX registers only (and general registers or memory).
    Mmx,
    /// Legacy-encoded, uses XMM registers; with MMX registers as well when [`Facts::x87_state`] is set.
    Sse,
    /// VEX-encoded.
    Vex,
}

/// How an instruction uses its memory operand; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryUse {
    /// No memory operand.
    None,
    /// Reads this many bytes; they must be in the bounce buffer before the run.
    Read(u8),
    /// Writes this many bytes to the bounce buffer.
    Write(u8),
    /// Reads only the elements its mask selects.
    MaskedRead(MaskedMemory),
    /// Writes only the elements its mask selects.
    MaskedWrite(MaskedMemory),
    /// Reads one element from each of several addresses.
    Gather(Gather),
}

/// What a caller must know of an instruction before it runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Group of checks.
    pub class: Class,
    /// The memory operand.
    pub memory: MemoryUse,
    /// Alignment in bytes the memory operand must have, else #GP(0); 1 when none is required.
    pub alignment: u8,
    /// Can raise SIMD floating-point exceptions and depends on MXCSR.
    pub simd_fp: bool,
    /// Uses x87 or MMX state: CR0.TS and a pending x87 exception matter to it (the latter unless it is
    /// [`Class::X87NoWait`]).
    pub x87_state: bool,
    /// Reads RFLAGS (FCMOVcc).
    pub reads_rflags: bool,
    /// Writes CF, PF, AF, ZF, SF and OF.
    pub writes_rflags: bool,
}

/// An x87 control instruction: it moves control state and computes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Wait,
    /// FNENI, FNDISI, FNSETPM: no operation since the 80387.
    Ignored,
    Fninit,
    Fnclex,
    Fldcw,
    Fnstcw,
    FnstswMem,
    FnstswAx,
    Fldenv(EnvSize),
    Fnstenv(EnvSize),
    Frstor(EnvSize),
    Fnsave(EnvSize),
}

/// Operand size of an x87 environment image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnvSize {
    /// 14 bytes, or 94 with the registers.
    Bits16,
    /// 28 bytes, or 108 with the registers.
    Bits32,
}

/// What kind of execution an instruction needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Control(Control),
    X87,
    Emms,
    ZeroUpper,
    ZeroAll,
    Vector,
}

/// The group of `code`, or `None` for what this crate does not execute.
pub(crate) fn group(code: Code) -> Option<Group> {
    if let Some(control) = control(code) {
        return Some(Group::Control(control));
    }
    if matches!(
        code.op_code().encoding(),
        EncodingKind::EVEX | EncodingKind::XOP | EncodingKind::MVEX | EncodingKind::D3NOW
    ) {
        return None;
    }
    if is_fpu(code) {
        // Wait-prefixed forms are two instructions and come from no decoder; the 287/387SL extras are #UD.
        return (!has_wait_prefix(code)).then_some(Group::X87);
    }
    match code {
        Code::Emms => Some(Group::Emms),
        Code::VEX_Vzeroupper => Some(Group::ZeroUpper),
        Code::VEX_Vzeroall => Some(Group::ZeroAll),
        _ => code
            .op_code()
            .op_kinds()
            .iter()
            .any(|&kind| is_vector_operand(kind))
            .then_some(Group::Vector),
    }
}

fn is_fpu(code: Code) -> bool {
    code.cpuid_features().iter().any(|feature| {
        matches!(
            feature,
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387
        )
    })
}

fn has_wait_prefix(code: Code) -> bool {
    code.op_code().fwait()
}

fn is_vector_operand(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::mm_reg
            | K::mm_rm
            | K::mm_or_mem
            | K::xmm_reg
            | K::xmm_rm
            | K::xmm_vvvv
            | K::xmm_is4
            | K::xmm_or_mem
            | K::ymm_reg
            | K::ymm_rm
            | K::ymm_vvvv
            | K::ymm_is4
            | K::ymm_or_mem
    )
}

fn control(code: Code) -> Option<Control> {
    Some(match code {
        Code::Wait => Control::Wait,
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => Control::Ignored,
        Code::Fninit => Control::Fninit,
        Code::Fnclex => Control::Fnclex,
        Code::Fldcw_m2byte => Control::Fldcw,
        Code::Fnstcw_m2byte => Control::Fnstcw,
        Code::Fnstsw_m2byte => Control::FnstswMem,
        Code::Fnstsw_AX => Control::FnstswAx,
        Code::Fldenv_m14byte => Control::Fldenv(EnvSize::Bits16),
        Code::Fldenv_m28byte => Control::Fldenv(EnvSize::Bits32),
        Code::Fnstenv_m14byte => Control::Fnstenv(EnvSize::Bits16),
        Code::Fnstenv_m28byte => Control::Fnstenv(EnvSize::Bits32),
        Code::Frstor_m94byte => Control::Frstor(EnvSize::Bits16),
        Code::Frstor_m108byte => Control::Frstor(EnvSize::Bits32),
        Code::Fnsave_m94byte => Control::Fnsave(EnvSize::Bits16),
        Code::Fnsave_m108byte => Control::Fnsave(EnvSize::Bits32),
        _ => return None,
    })
}

impl Control {
    /// Whether it takes a pending unmasked x87 exception first (SDM Vol. 1, 8.6 and 8.3.12).
    pub(crate) fn waits(self) -> bool {
        match self {
            Control::Wait | Control::Fldcw | Control::Fldenv(_) | Control::Frstor(_) => true,
            Control::Ignored
            | Control::Fninit
            | Control::Fnclex
            | Control::Fnstcw
            | Control::FnstswMem
            | Control::FnstswAx
            | Control::Fnstenv(_)
            | Control::Fnsave(_) => false,
        }
    }
}

/// Whether the instruction is one whose semantics depend on MXCSR and which can raise #XM
/// (SDM Vol. 1, appendix C tables; Vol. 2, 2.4: classes 2, 3 and those marked "with FP exception").
pub(crate) fn is_simd_fp(code: Code) -> bool {
    use Mnemonic as M;
    if code.cpuid_features().contains(&CpuidFeature::FMA) {
        return true;
    }
    #[rustfmt::skip]
    let fp = matches!(
        code.mnemonic(),
        M::Addps | M::Addpd | M::Addss | M::Addsd | M::Subps | M::Subpd | M::Subss | M::Subsd
        | M::Mulps | M::Mulpd | M::Mulss | M::Mulsd | M::Divps | M::Divpd | M::Divss | M::Divsd
        | M::Minps | M::Minpd | M::Minss | M::Minsd | M::Maxps | M::Maxpd | M::Maxss | M::Maxsd
        | M::Sqrtps | M::Sqrtpd | M::Sqrtss | M::Sqrtsd | M::Cmpps | M::Cmppd | M::Cmpss | M::Cmpsd
        | M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd
        | M::Addsubps | M::Addsubpd | M::Haddps | M::Haddpd | M::Hsubps | M::Hsubpd | M::Dpps | M::Dppd
        | M::Roundps | M::Roundpd | M::Roundss | M::Roundsd
        | M::Cvtpi2ps | M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi
        | M::Cvtsi2ss | M::Cvtsi2sd | M::Cvtss2si | M::Cvttss2si | M::Cvtsd2si | M::Cvttsd2si
        | M::Cvtps2pd | M::Cvtpd2ps | M::Cvtss2sd | M::Cvtsd2ss
        | M::Cvtdq2ps | M::Cvtps2dq | M::Cvttps2dq | M::Cvtpd2dq | M::Cvttpd2dq
        | M::Vaddps | M::Vaddpd | M::Vaddss | M::Vaddsd | M::Vsubps | M::Vsubpd | M::Vsubss | M::Vsubsd
        | M::Vmulps | M::Vmulpd | M::Vmulss | M::Vmulsd | M::Vdivps | M::Vdivpd | M::Vdivss | M::Vdivsd
        | M::Vminps | M::Vminpd | M::Vminss | M::Vminsd | M::Vmaxps | M::Vmaxpd | M::Vmaxss | M::Vmaxsd
        | M::Vsqrtps | M::Vsqrtpd | M::Vsqrtss | M::Vsqrtsd | M::Vcmpps | M::Vcmppd | M::Vcmpss | M::Vcmpsd
        | M::Vcomiss | M::Vcomisd | M::Vucomiss | M::Vucomisd
        | M::Vaddsubps | M::Vaddsubpd | M::Vhaddps | M::Vhaddpd | M::Vhsubps | M::Vhsubpd | M::Vdpps | M::Vdppd
        | M::Vroundps | M::Vroundpd | M::Vroundss | M::Vroundsd
        | M::Vcvtsi2ss | M::Vcvtsi2sd | M::Vcvtss2si | M::Vcvttss2si | M::Vcvtsd2si | M::Vcvttsd2si
        | M::Vcvtps2pd | M::Vcvtpd2ps | M::Vcvtss2sd | M::Vcvtsd2ss
        | M::Vcvtdq2ps | M::Vcvtps2dq | M::Vcvttps2dq | M::Vcvtpd2dq | M::Vcvttpd2dq
        | M::Vcvtph2ps | M::Vcvtps2ph
    );
    fp
}

fn writes_rflags(code: Code) -> bool {
    use Mnemonic as M;
    #[rustfmt::skip]
    let writes = matches!(
        code.mnemonic(),
        M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd | M::Vcomiss | M::Vcomisd | M::Vucomiss | M::Vucomisd
        | M::Ptest | M::Vptest | M::Vtestps | M::Vtestpd
        | M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm
        | M::Pcmpestri64 | M::Pcmpestrm64
        | M::Vpcmpestri | M::Vpcmpestrm | M::Vpcmpistri | M::Vpcmpistrm
        | M::Vpcmpestri64 | M::Vpcmpestrm64
        | M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip
    );
    writes
}

fn reads_rflags(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Fcmovb
            | M::Fcmove
            | M::Fcmovbe
            | M::Fcmovu
            | M::Fcmovnb
            | M::Fcmovne
            | M::Fcmovnbe
            | M::Fcmovnu
    )
}

/// The alignment a memory operand of `size` bytes must have.
///
/// Legacy SSE: 16-byte operands are aligned unless the page says otherwise (Vol. 2, 2.4, types 1, 2 and 4).
/// VEX: only the explicitly aligned moves (type 1) are.
fn alignment(code: Code, class: Class, size: u8) -> u8 {
    use Mnemonic as M;
    let mnemonic = code.mnemonic();
    match class {
        Class::X87 | Class::X87NoWait | Class::Mmx => 1,
        Class::Sse => {
            let unaligned = matches!(
                mnemonic,
                M::Movups
                    | M::Movupd
                    | M::Movdqu
                    | M::Lddqu
                    | M::Maskmovdqu
                    | M::Pcmpestri
                    | M::Pcmpestrm
                    | M::Pcmpestri64
                    | M::Pcmpestrm64
                    | M::Pcmpistri
                    | M::Pcmpistrm
            );
            if size == 16 && !unaligned { 16 } else { 1 }
        }
        Class::Vex => {
            let aligned = matches!(
                mnemonic,
                M::Vmovaps
                    | M::Vmovapd
                    | M::Vmovdqa
                    | M::Vmovntps
                    | M::Vmovntpd
                    | M::Vmovntdq
                    | M::Vmovntdqa
            );
            if aligned { size } else { 1 }
        }
    }
}

fn uses_mmx_register(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .any(|i| insn.op_kind(i) == iced_x86::OpKind::Register && insn.op_register(i).is_mm())
}

fn class(insn: &Instruction, group: Group) -> Class {
    match group {
        Group::Control(control) if !control.waits() => Class::X87NoWait,
        Group::Control(_) | Group::X87 => Class::X87,
        Group::Emms => Class::Mmx,
        Group::ZeroUpper | Group::ZeroAll => Class::Vex,
        Group::Vector => {
            let code = insn.code().op_code();
            if code.encoding() == EncodingKind::VEX {
                return Class::Vex;
            }
            let mmx_only = !code.op_kinds().iter().any(|kind| {
                use OpCodeOperandKind as K;
                matches!(kind, K::xmm_reg | K::xmm_rm | K::xmm_or_mem)
            });
            if mmx_only { Class::Mmx } else { Class::Sse }
        }
    }
}

/// The facts of a canonical instruction. `memory` is how it uses its memory operand.
pub(crate) fn facts(insn: &Instruction, group: Group, memory: MemoryUse) -> Facts {
    let code = insn.code();
    let class = class(insn, group);
    let alignment = match memory {
        MemoryUse::Read(size) | MemoryUse::Write(size) => alignment(code, class, size),
        MemoryUse::None
        | MemoryUse::MaskedRead(_)
        | MemoryUse::MaskedWrite(_)
        | MemoryUse::Gather(_) => 1,
    };
    Facts {
        class,
        memory,
        alignment,
        simd_fp: group == Group::Vector && is_simd_fp(code),
        x87_state: matches!(class, Class::X87 | Class::X87NoWait | Class::Mmx)
            || uses_mmx_register(insn),
        reads_rflags: reads_rflags(code),
        writes_rflags: writes_rflags(code),
    }
}
