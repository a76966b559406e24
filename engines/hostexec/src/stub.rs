//! Canonical instructions and the stubs around them.
//!
//! A canonical instruction is the guest's with its memory operand replaced by `[rsi]` and its general register
//! by RAX; vector, MMX and x87 registers keep their numbers. A stub loads the registers the instruction
//! uses, executes it and stores what it wrote.
//!
//! Registers inside a stub (the call is in `lib.rs`):
//!
//! | register | meaning |
//! |---|---|
//! | RSI | bounce buffer |
//! | R8  | [`ExtState`] |
//! | R9  | the sixteen general registers |
//! | R10 | RFLAGS |
//! | RAX, RCX, RDX, RDI, R11 | scratch |
//!
//! EAX returns 0, or 1 when the stub gave up without effect: for a SIMD exception, with the flags in EDX, or
//! because a short x87 stub does not do. A short x87 stub that succeeds returns FSW in EDX.

use crate::facts::{Facts, Group};
use crate::state::{ExtState, FCW_FNINIT, FX_ST};
use crate::x87_fast::{self, Effect, Shape};
use iced_x86::{
    Code, Encoder, EncodingKind, IcedError, Instruction, InstructionInfoFactory, MemoryOperand,
    OpAccess, OpKind, Register,
};
use std::mem::offset_of;

/// CF, PF, AF, ZF, SF and OF.
const STATUS_FLAGS: i32 = 0x8d5;
/// MXCSR bits taken from the guest: rounding control, FTZ and DAZ.
const MXCSR_CONTROL: i32 = 0xe040;
/// All SIMD exceptions masked, no flags.
const MXCSR_MASKED: i32 = 0x1f80;

/// Offset in the area of the constant MXCSR value every stub leaves behind.
const DEFAULT_MXCSR_AT: u64 = 0;
/// Offset in the area of the x87 control word every stub leaves behind.
const DEFAULT_FCW_AT: u64 = 4;
/// Offset in the area of the code that ends a stub when a SIMD exception is unmasked.
const ABORT_AT: u64 = 32;

/// Offset in the area of the code that ends a short x87 stub without effect.
const ABORT_X87_AT: u64 = 64;

/// An instruction rewritten to run inside a stub.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canonical {
    pub(crate) insn: Instruction,
    /// The guest register that RAX stands for, and how it is used.
    gpr: Option<(u8, OpAccess)>,
    pub(crate) memory_access: OpAccess,
}

fn reads(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Read
            | OpAccess::CondRead
            | OpAccess::ReadWrite
            | OpAccess::ReadCondWrite
            | OpAccess::CondWrite
    )
}

pub(crate) fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// Rewrites `guest`; `None` when an operand is of a kind no instruction of ours has.
pub(crate) fn canonicalize(
    guest: &Instruction,
    info: &mut InstructionInfoFactory,
) -> Option<Canonical> {
    let mut insn = *guest;
    insn.set_has_lock_prefix(false);
    insn.set_has_xacquire_prefix(false);
    insn.set_has_xrelease_prefix(false);
    insn.set_has_rep_prefix(false);
    insn.set_has_repne_prefix(false);
    insn.set_segment_prefix(Register::None);
    insn.set_code_size(iced_x86::CodeSize::Code64);
    let mut gpr = None;
    let mut memory_access = OpAccess::None;
    let accesses = info.info(guest);
    for operand in 0..insn.op_count() {
        let access = accesses.op_access(operand);
        match insn.op_kind(operand) {
            OpKind::Register => {
                let register = insn.op_register(operand);
                let stand_in = match register {
                    r if r.is_gpr32() => Register::EAX,
                    r if r.is_gpr64() => Register::RAX,
                    r if r.is_mm() || r.is_st() || r.is_xmm() || r.is_ymm() => continue,
                    _ => return None,
                };
                if gpr.is_some() {
                    return None;
                }
                gpr = Some((register.number() as u8 & 15, access));
                insn.set_op_register(operand, stand_in);
            }
            OpKind::Memory => {
                memory_access = access;
                insn.set_memory_base(Register::RSI);
                insn.set_memory_index(Register::None);
                insn.set_memory_index_scale(1);
                insn.set_memory_displacement64(0);
                insn.set_memory_displ_size(0);
            }
            OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => {
                memory_access = access;
                insn.set_op_kind(operand, OpKind::MemorySegRDI);
            }
            OpKind::Immediate8 => {}
            _ => return None,
        }
    }
    Some(Canonical {
        insn,
        gpr,
        memory_access,
    })
}

/// What identifies a stub: two instructions with equal keys share one.
pub(crate) type Key = (u128, u8);

impl Canonical {
    /// The key: the canonical bytes and the guest's general register.
    ///
    /// # Errors
    /// The encoder refuses the instruction, so no decoder made it.
    pub(crate) fn key(&self) -> Result<Key, IcedError> {
        let mut encoder = Encoder::new(64);
        encoder.encode(&self.insn, 0)?;
        let bytes = encoder.take_buffer();
        let mut key = [0; 16];
        let len = bytes.len().min(15);
        key[..len].copy_from_slice(&bytes[..len]);
        key[15] = len as u8;
        Ok((
            u128::from_le_bytes(key),
            self.gpr.map_or(0xff, |(number, _)| number),
        ))
    }
}

/// Encodes instructions one after another for a fixed address.
struct Emitter {
    encoder: Encoder,
    rip: u64,
}

impl Emitter {
    fn new(rip: u64) -> Emitter {
        Emitter {
            encoder: Encoder::new(64),
            rip,
        }
    }

    fn put(&mut self, insn: &Instruction) -> Result<(), IcedError> {
        self.rip += self.encoder.encode(insn, self.rip)? as u64;
        Ok(())
    }

    fn op0(&mut self, code: Code) -> Result<(), IcedError> {
        self.put(&Instruction::with(code))
    }

    fn reg(&mut self, code: Code, register: Register) -> Result<(), IcedError> {
        self.put(&Instruction::with1(code, register)?)
    }

    fn mem(&mut self, code: Code, memory: MemoryOperand) -> Result<(), IcedError> {
        self.put(&Instruction::with1(code, memory)?)
    }

    fn reg_reg(&mut self, code: Code, to: Register, from: Register) -> Result<(), IcedError> {
        self.put(&Instruction::with2(code, to, from)?)
    }

    fn reg_imm(&mut self, code: Code, to: Register, value: i32) -> Result<(), IcedError> {
        self.put(&Instruction::with2(code, to, value)?)
    }

    fn load(&mut self, code: Code, to: Register, from: MemoryOperand) -> Result<(), IcedError> {
        self.put(&Instruction::with2(code, to, from)?)
    }

    fn store(&mut self, code: Code, to: MemoryOperand, from: Register) -> Result<(), IcedError> {
        self.put(&Instruction::with2(code, to, from)?)
    }
}

fn at(base: Register, offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, offset as i64)
}

fn ymm_at(number: u32) -> MemoryOperand {
    at(
        Register::R8,
        offset_of!(ExtState, ymm) + number as usize * 32,
    )
}

fn mm_at(number: u32) -> MemoryOperand {
    at(
        Register::R8,
        offset_of!(ExtState, fx) + FX_ST + number as usize * 16,
    )
}

fn mm_top_at(number: u32) -> MemoryOperand {
    at(
        Register::R8,
        offset_of!(ExtState, fx) + FX_ST + number as usize * 16 + 8,
    )
}

fn gpr_at(number: u8) -> MemoryOperand {
    at(Register::R9, usize::from(number) * 8)
}

/// A constant at the start of the area.
fn constant(base: u64, offset: u64) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RIP, (base + offset) as i64)
}

fn mxcsr() -> MemoryOperand {
    at(Register::R8, offset_of!(ExtState, mxcsr))
}

/// A dword of the red zone below the return address; PUSHF uses the quadword above it.
fn spill() -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RSP, -16)
}

/// The routines at the start of every area: the MXCSR constant, then the abort code of stubs.
///
/// # Errors
/// None in practice: the instructions are fixed.
pub(crate) fn prologue(base: u64, avx: bool) -> Result<Vec<u8>, IcedError> {
    let mut bytes = vec![0; ABORT_AT as usize];
    bytes[..4].copy_from_slice(&MXCSR_MASKED.to_le_bytes());
    bytes[4..6].copy_from_slice(&FCW_FNINIT.to_le_bytes());
    let mut emit = Emitter::new(base + ABORT_AT);
    if avx {
        emit.op0(Code::VEX_Vzeroupper)?;
    }
    emit.op0(Code::Emms)?;
    emit.reg_imm(Code::Mov_r32_imm32, Register::EAX, 1)?;
    emit.op0(Code::Retnq)?;
    bytes.extend(emit.encoder.take_buffer());
    bytes.resize(ABORT_X87_AT as usize, 0);
    let mut emit = Emitter::new(base + ABORT_X87_AT);
    emit.op0(Code::Fninit)?;
    emit.reg_imm(Code::Mov_r32_imm32, Register::EAX, 1)?;
    emit.op0(Code::Retnq)?;
    bytes.extend(emit.encoder.take_buffer());
    Ok(bytes)
}

/// The registers a stub has to load and store.
#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    vector_in: u16,
    vector_out: u16,
    mm_in: u8,
    mm_out: u8,
    gpr_in: [Option<(Register, u8)>; 2],
    gpr_out: Option<(Register, u8)>,
}

fn registers(canonical: &Canonical, info: &mut InstructionInfoFactory) -> Registers {
    let mut used = Registers::default();
    let insn = &canonical.insn;
    let legacy = insn.code().op_code().encoding() == EncodingKind::Legacy;
    for register in info.info(insn).used_registers() {
        let (register, access) = (register.register(), register.access());
        let number = register.number();
        // VEX destinations are listed as their ZMM register, all of which they define.
        // A legacy destination is loaded even if wholly written: cheaper than to doubt which ones are.
        let load = legacy || reads(access);
        if register.is_vector_register() {
            let bit = 1u16 << (number & 15);
            used.vector_in |= if load { bit } else { 0 };
            used.vector_out |= if writes(access) { bit } else { 0 };
        } else if register.is_mm() {
            let bit = 1u8 << (number & 7);
            used.mm_in |= bit;
            used.mm_out |= if writes(access) { bit } else { 0 };
        }
    }
    if let Some((guest, access)) = canonical.gpr {
        if reads(access) {
            used.gpr_in[0] = Some((Register::RAX, guest));
        }
        if writes(access) {
            used.gpr_out = Some((Register::RAX, guest));
        }
    }
    use iced_x86::Mnemonic as M;
    let mnemonic = insn.mnemonic();
    // Implicit registers of the string comparisons (SDM Vol. 2, PCMPESTRI, PCMPESTRM, PCMPISTRI).
    let explicit_length = matches!(
        mnemonic,
        M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Vpcmpestri
            | M::Vpcmpestrm
            | M::Vpcmpestri64
            | M::Vpcmpestrm64
    );
    if explicit_length {
        used.gpr_in = [Some((Register::RAX, 0)), Some((Register::RDX, 2))];
    }
    let index_out = matches!(
        mnemonic,
        M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpistri
            | M::Vpcmpestri
            | M::Vpcmpestri64
            | M::Vpcmpistri
    );
    if index_out {
        used.gpr_out = Some((Register::RCX, 1));
    }
    used
}

/// The code of a stub.
pub(crate) struct Built {
    pub(crate) code: Vec<u8>,
    /// Offset in `code` of the short form of an x87 stub, and what goes with it.
    pub(crate) short: Option<(u16, Effect)>,
}

/// Builds the stub for `canonical`, to run at `rip` in the area that starts at `base`.
///
/// # Errors
/// The encoder refuses the instruction, so no decoder made it.
pub(crate) fn build(
    canonical: &Canonical,
    group: Group,
    facts: &Facts,
    info: &mut InstructionInfoFactory,
    base: u64,
    rip: u64,
) -> Result<Built, IcedError> {
    let mut emit = Emitter::new(rip);
    let mut short = None;
    if group == Group::X87 {
        x87(&mut emit, canonical, facts)?;
        if let Some(shape) = x87_fast::shape(&canonical.insn) {
            let start = (emit.rip - rip) as u16;
            x87_short(&mut emit, canonical, facts, &shape, base)?;
            short = Some((start, shape.effect()));
        }
    } else {
        let registers = registers(canonical, info);
        vector(&mut emit, canonical, facts, &registers, base)?;
    }
    Ok(Built {
        code: emit.encoder.take_buffer(),
        short,
    })
}

fn vector(
    emit: &mut Emitter,
    canonical: &Canonical,
    facts: &Facts,
    used: &Registers,
    base: u64,
) -> Result<(), IcedError> {
    let vex = canonical.insn.code().op_code().encoding() == EncodingKind::VEX;
    let mmx = used.mm_in | used.mm_out != 0;
    if facts.simd_fp {
        emit.load(Code::Mov_r32_rm32, Register::ECX, mxcsr())?;
        emit.reg_reg(Code::Mov_r32_rm32, Register::EDX, Register::ECX)?;
        emit.reg_imm(Code::And_rm32_imm32, Register::EDX, MXCSR_CONTROL)?;
        emit.reg_imm(Code::Or_rm32_imm32, Register::EDX, MXCSR_MASKED)?;
        emit.store(Code::Mov_rm32_r32, spill(), Register::EDX)?;
        emit.mem(Code::Ldmxcsr_m32, spill())?;
    }
    load_registers(emit, used, vex)?;
    if canonical.insn.op_kind(0) == OpKind::MemorySegRDI {
        emit.reg_reg(Code::Mov_r64_rm64, Register::RDI, Register::RSI)?;
    }
    emit.put(&canonical.insn)?;
    if facts.simd_fp {
        emit.mem(Code::Stmxcsr_m32, spill())?;
        emit.mem(Code::Ldmxcsr_m32, constant(base, DEFAULT_MXCSR_AT))?;
    }
    if facts.writes_rflags {
        emit.op0(Code::Pushfq)?;
        emit.reg(Code::Pop_r64, Register::R11)?;
    }
    if facts.simd_fp {
        // RDX: flags raised now. Those whose mask bit (7 higher in MXCSR) is clear end the stub here.
        emit.load(Code::Mov_r32_rm32, Register::EDX, spill())?;
        emit.reg_imm(Code::And_rm32_imm8, Register::EDX, 0x3f)?;
        emit.reg_reg(Code::Mov_r32_rm32, Register::EDI, Register::ECX)?;
        emit.reg(Code::Not_rm32, Register::EDI)?;
        emit.reg_imm(Code::Shr_rm32_imm8, Register::EDI, 7)?;
        emit.reg_reg(Code::Test_rm32_r32, Register::EDI, Register::EDX)?;
        emit.put(&Instruction::with_branch(
            Code::Jne_rel32_64,
            base + ABORT_AT,
        )?)?;
        emit.reg_reg(Code::Or_r32_rm32, Register::ECX, Register::EDX)?;
        emit.store(Code::Mov_rm32_r32, mxcsr(), Register::ECX)?;
    }
    store_registers(emit, used, vex)?;
    if facts.writes_rflags {
        merge_rflags(emit, Register::R11, Register::EDX)?;
    }
    if vex {
        emit.op0(Code::VEX_Vzeroupper)?;
    }
    if mmx {
        emit.op0(Code::Emms)?;
    }
    emit.reg_reg(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?;
    emit.op0(Code::Retnq)
}

fn load_registers(emit: &mut Emitter, used: &Registers, vex: bool) -> Result<(), IcedError> {
    for number in (0..16).filter(|number| used.vector_in & 1 << number != 0) {
        if vex {
            emit.load(
                Code::VEX_Vmovdqa_ymm_ymmm256,
                Register::YMM0 + number,
                ymm_at(number),
            )?;
        } else {
            emit.load(
                Code::Movaps_xmm_xmmm128,
                Register::XMM0 + number,
                ymm_at(number),
            )?;
        }
    }
    for number in (0..8).filter(|number| used.mm_in & 1 << number != 0) {
        emit.load(Code::Movq_mm_mmm64, Register::MM0 + number, mm_at(number))?;
    }
    for (register, guest) in used.gpr_in.into_iter().flatten() {
        emit.load(Code::Mov_r64_rm64, register, gpr_at(guest))?;
    }
    Ok(())
}

/// Legacy instructions leave the upper halves alone, so the low half is all there is to store; VEX ones
/// define all of the register.
fn store_registers(emit: &mut Emitter, used: &Registers, vex: bool) -> Result<(), IcedError> {
    for number in (0..16).filter(|number| used.vector_out & 1 << number != 0) {
        if vex {
            emit.store(
                Code::VEX_Vmovdqa_ymmm256_ymm,
                ymm_at(number),
                Register::YMM0 + number,
            )?;
        } else {
            emit.store(
                Code::Movaps_xmmm128_xmm,
                ymm_at(number),
                Register::XMM0 + number,
            )?;
        }
    }
    for number in (0..8).filter(|number| used.mm_out & 1 << number != 0) {
        emit.store(Code::Movq_mmm64_mm, mm_at(number), Register::MM0 + number)?;
        // A write to an MMX register sets bits 79:64 of the x87 register (SDM Vol. 1, 9.5.1).
        emit.put(&Instruction::with2(
            Code::Mov_rm16_imm16,
            mm_top_at(number),
            0xffff,
        )?)?;
    }
    if let Some((register, guest)) = used.gpr_out {
        emit.store(Code::Mov_rm64_r64, gpr_at(guest), register)?;
    }
    Ok(())
}

/// Replaces the guest's status flags by those in `flags`, with `scratch` (a 32-bit register) clobbered.
fn merge_rflags(emit: &mut Emitter, flags: Register, scratch: Register) -> Result<(), IcedError> {
    let low = |register: Register| Register::EAX + register.number() as u32;
    emit.reg_imm(Code::And_rm32_imm32, low(flags), STATUS_FLAGS)?;
    emit.load(
        Code::Mov_r32_rm32,
        scratch,
        MemoryOperand::with_base(Register::R10),
    )?;
    emit.reg_imm(Code::And_rm32_imm32, scratch, !STATUS_FLAGS)?;
    emit.reg_reg(Code::Or_r32_rm32, scratch, low(flags))?;
    emit.store(
        Code::Mov_rm32_r32,
        MemoryOperand::with_base(Register::R10),
        scratch,
    )
}

/// Loads the guest's status flags: OF by an addition that overflows when it is set, then the others. An
/// instruction that writes only some, or none after all (FCOMI with unmasked invalid operation), must find
/// the guest's.
fn load_rflags(emit: &mut Emitter) -> Result<(), IcedError> {
    emit.load(
        Code::Mov_r32_rm32,
        Register::EAX,
        MemoryOperand::with_base(Register::R10),
    )?;
    emit.reg_reg(Code::Mov_r32_rm32, Register::ECX, Register::EAX)?;
    emit.reg_imm(Code::Shr_rm32_imm8, Register::ECX, 11)?;
    emit.reg_imm(Code::And_rm32_imm8, Register::ECX, 1)?;
    emit.reg_imm(Code::Add_rm8_imm8, Register::CL, 0x7f)?;
    emit.reg_reg(Code::Mov_r8_rm8, Register::AH, Register::AL)?;
    emit.op0(Code::Sahf)
}

/// The instruction between loading and saving the status flags (in R11), as far as it uses them.
fn with_rflags(emit: &mut Emitter, insn: &Instruction, facts: &Facts) -> Result<(), IcedError> {
    if facts.reads_rflags || facts.writes_rflags {
        load_rflags(emit)?;
    }
    emit.put(insn)?;
    if facts.writes_rflags {
        emit.op0(Code::Pushfq)?;
        emit.reg(Code::Pop_r64, Register::R11)?;
    }
    Ok(())
}

fn fx(offset: usize) -> MemoryOperand {
    at(Register::R8, offset_of!(ExtState, fx) + offset)
}

/// Loads the whole x87 state, executes, stores it. The image's MXCSR is the default one, so FXRSTOR leaves
/// the host's as it must be; the XMM fields go in and out unchanged.
fn x87(emit: &mut Emitter, canonical: &Canonical, facts: &Facts) -> Result<(), IcedError> {
    emit.mem(Code::Fxrstor64_m512byte, fx(0))?;
    with_rflags(emit, &canonical.insn, facts)?;
    emit.mem(Code::Fxsave64_m512byte, fx(0))?;
    emit.op0(Code::Fninit)?;
    if facts.writes_rflags {
        merge_rflags(emit, Register::R11, Register::EDX)?;
    }
    emit.reg_reg(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?;
    emit.op0(Code::Retnq)
}

/// FLDCW from `from` unless the guest's control word is the host's.
fn load_fcw_if_other(emit: &mut Emitter, from: MemoryOperand) -> Result<(), IcedError> {
    emit.put(&Instruction::with2(
        Code::Cmp_rm16_imm16,
        fx(0),
        u32::from(FCW_FNINIT),
    )?)?;
    // The jump is two bytes long; FLDCW is as long at every address.
    let fldcw = Instruction::with1(Code::Fldcw_m2byte, from)?;
    let length = Encoder::new(64).encode(&fldcw, emit.rip + 2)? as u64;
    emit.put(&Instruction::with_branch(
        Code::Je_rel8_64,
        emit.rip + 2 + length,
    )?)?;
    emit.put(&fldcw)
}

/// Moves the ten bytes of one register of the image, in the sizes FLD and FSTP access them.
fn move_st(emit: &mut Emitter, from: u32, to: u32) -> Result<(), IcedError> {
    emit.load(Code::Mov_r64_rm64, Register::RAX, mm_at(from))?;
    emit.load(Code::Movzx_r32_rm16, Register::ECX, mm_top_at(from))?;
    emit.store(Code::Mov_rm64_r64, mm_at(to), Register::RAX)?;
    emit.store(Code::Mov_rm16_r16, mm_top_at(to), Register::CX)
}

/// Loads only the registers `shape` names; see `x87_fast`.
fn x87_short(
    emit: &mut Emitter,
    canonical: &Canonical,
    facts: &Facts,
    shape: &Shape,
    base: u64,
) -> Result<(), IcedError> {
    load_fcw_if_other(emit, fx(0))?;
    if let Some(i) = shape.load_sti {
        emit.mem(Code::Fld_m80fp, mm_at(u32::from(i)))?;
    }
    if shape.load_st0 {
        emit.mem(Code::Fld_m80fp, mm_at(0))?;
    }
    with_rflags(emit, &x87_fast::renamed(&canonical.insn, shape), facts)?;
    emit.reg(Code::Fnstsw_AX, Register::AX)?;
    // A flag the guest does not have: not for a short stub to tell if it is raised now.
    emit.reg_reg(Code::Mov_r32_rm32, Register::EDX, Register::EAX)?;
    emit.load(Code::Movzx_r32_rm16, Register::ECX, fx(2))?;
    emit.reg(Code::Not_rm32, Register::ECX)?;
    emit.reg_reg(Code::And_r32_rm32, Register::ECX, Register::EAX)?;
    emit.reg_imm(Code::And_rm32_imm8, Register::ECX, 0x3f)?;
    emit.put(&Instruction::with_branch(
        Code::Jne_rel32_64,
        base + ABORT_X87_AT,
    )?)?;
    store_stack(emit, shape)?;
    load_fcw_if_other(emit, constant(base, DEFAULT_FCW_AT))?;
    if facts.writes_rflags {
        merge_rflags(emit, Register::R11, Register::ECX)?;
    }
    emit.reg_reg(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?;
    emit.op0(Code::Retnq)
}

/// Empties the host's stack into the image and turns the image, which is in stack order, with the top.
fn store_stack(emit: &mut Emitter, shape: &Shape) -> Result<(), IcedError> {
    if shape.push {
        for from in (0..7).rev() {
            move_st(emit, from, from + 1)?;
        }
        emit.mem(Code::Fstp_m80fp, mm_at(0))?;
        if shape.load_st0 || shape.load_sti.is_some() {
            emit.reg(Code::Fstp_sti, Register::ST0)?;
        }
        return Ok(());
    }
    if shape.pops == 0 {
        emit.mem(Code::Fstp_m80fp, mm_at(0))?;
    }
    if let Some(i) = shape.load_sti.filter(|_| shape.pops < 2) {
        emit.mem(Code::Fstp_m80fp, mm_at(u32::from(i)))?;
    }
    for _ in 0..shape.pops {
        emit.load(Code::Mov_r64_rm64, Register::RDI, mm_at(0))?;
        emit.load(Code::Movzx_r32_rm16, Register::ESI, mm_top_at(0))?;
        for to in 0..7 {
            move_st(emit, to + 1, to)?;
        }
        emit.store(Code::Mov_rm64_r64, mm_at(7), Register::RDI)?;
        emit.store(Code::Mov_rm16_r16, mm_top_at(7), Register::SI)?;
    }
    Ok(())
}
