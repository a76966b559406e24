//! Random encodings of a form.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpCodeInfo, OpCodeOperandKind,
    OpKind, Register,
};

use crate::case::{CODE_BYTES, Layout};
use crate::random::Random;
use crate::segments::{Setting, draw_selector};

use super::addresses::segment_number;

const GPR8: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];

fn numbered(first: Register, random: &mut Random, count: u64) -> Register {
    Register::try_from(first as usize + random.below(count) as usize)
        .expect("registers of a class are numbered in sequence")
}

/// Registers of a class that code of `bits` bits can name.
fn count(bits: u32) -> u64 {
    if bits == 64 { 16 } else { 8 }
}

/// A register of `size` bits for code of `bits` bits.
fn gpr(size: u32, bits: u32, random: &mut Random) -> Register {
    match size {
        8 if bits == 64 => random.pick(&GPR8),
        8 => random.pick(&GPR8[..8]),
        16 => numbered(Register::AX, random, count(bits)),
        32 => numbered(Register::EAX, random, count(bits)),
        _ => numbered(Register::RAX, random, count(bits)),
    }
}

/// What an operand kind offers.
enum Choice {
    Register(Register),
    Memory,
    Immediate(OpKind, u64),
    Kind(OpKind),
    /// Width of the target and whether it is short.
    Branch(OpKind, bool),
    FarBranch(OpKind),
    Offset,
    Vsib(Register),
    /// `[rBX + AL]` of XLAT.
    Translate,
    /// Filled in by the code value itself.
    None,
}

/// Makes encodings.
pub struct Encodings {
    encoders: [Encoder; 3],
    layout: Layout,
}

/// An encoding and what it decodes to.
pub struct Encoding {
    pub bytes: Vec<u8>,
    pub instruction: Instruction,
    pub rip: u64,
}

impl Encodings {
    pub fn new(layout: Layout) -> Self {
        Self {
            encoders: [16, 32, 64].map(Encoder::new),
            layout,
        }
    }

    /// One encoding of `code` for code in `setting`, or nothing when the operands drawn cannot be encoded
    /// together.
    pub fn draw(&mut self, code: Code, setting: &Setting, random: &mut Random) -> Option<Encoding> {
        let form = code.op_code();
        let rip = self.draw_rip(setting, random)?;
        let bits = setting.bits;
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        for (i, &kind) in form.op_kinds().iter().enumerate() {
            let choice = choose(kind, bits, random);
            self.apply(&mut instruction, i as u32, choice, rip, setting, random);
        }
        if code == Code::Int_imm8 && instruction.immediate8() == 0x80 {
            // A system call of Linux.
            return None;
        }
        if code.mnemonic() == Mnemonic::Enter && random.chance(900) {
            // A frame that the window has room for.
            instruction.set_immediate16(random.below(256) as u16);
            instruction.set_immediate8_2nd(random.below(32) as u8);
        }
        if form.can_use_lock_prefix()
            && instruction.op0_kind() == OpKind::Memory
            && random.chance(400)
        {
            instruction.set_has_lock_prefix(true);
        }
        if form.can_use_rep_prefix() && random.chance(500) {
            instruction.set_has_rep_prefix(true);
        } else if form.can_use_repne_prefix() && random.chance(300) {
            instruction.set_has_repne_prefix(true);
        }
        let encoder = &mut self.encoders[bits as usize / 32];
        if encoder.encode(&instruction, rip).is_err() {
            drop(encoder.take_buffer());
            return None;
        }
        let mut bytes = encoder.take_buffer();
        if random.chance(60) {
            vary(form, bits, &mut bytes, random);
        }
        if bytes.len() > 15 {
            return None;
        }
        let decoded = Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE).decode();
        (decoded.code() == code && decoded.len() == bytes.len()).then_some(Encoding {
            bytes,
            instruction: decoded,
            rip,
        })
    }

    /// Where the instruction lies; sometimes across the two code pages.
    fn draw_rip(&self, setting: &Setting, random: &mut Random) -> Option<u64> {
        let segment = setting.code();
        let reach = segment.base.wrapping_add(u64::from(segment.limit));
        let offset = if random.chance(150) {
            4096 - random.below(15)
        } else if reach < self.layout.code() + CODE_BYTES as u64 && random.chance(100) {
            // Across the end of the segment.
            reach + 1 - random.below(15) - self.layout.code()
        } else {
            256 + random.below(CODE_BYTES as u64 - 512)
        };
        let rip = self.layout.code() + offset - segment.base;
        (rip <= u64::from(segment.limit)).then_some(rip)
    }

    fn apply(
        &self,
        instruction: &mut Instruction,
        i: u32,
        choice: Choice,
        rip: u64,
        setting: &Setting,
        random: &mut Random,
    ) {
        match choice {
            Choice::Register(register) => {
                instruction.set_op_kind(i, OpKind::Register);
                instruction.set_op_register(i, register);
            }
            Choice::Immediate(kind, value) => {
                // The second immediate of ENTER, EXTRQ and INSERTQ has its own place.
                let second = kind == OpKind::Immediate8
                    && (0..i).any(|j| {
                        matches!(
                            instruction.op_kind(j),
                            OpKind::Immediate8 | OpKind::Immediate16
                        )
                    });
                if second {
                    instruction.set_op_kind(i, OpKind::Immediate8_2nd);
                    instruction.set_immediate8_2nd(value as u8);
                } else {
                    instruction.set_op_kind(i, kind);
                    match kind {
                        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
                        OpKind::Immediate8to16 => {
                            instruction.set_immediate8to16(value as i8 as i16)
                        }
                        OpKind::Immediate8to32 => {
                            instruction.set_immediate8to32(value as i8 as i32)
                        }
                        OpKind::Immediate8to64 => {
                            instruction.set_immediate8to64(value as i8 as i64)
                        }
                        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
                        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
                        OpKind::Immediate32to64 => {
                            instruction.set_immediate32to64(i64::from(value as i32));
                        }
                        _ => instruction.set_immediate64(value),
                    }
                }
            }
            Choice::Kind(kind) => instruction.set_op_kind(i, kind),
            Choice::Memory => self.apply_memory(instruction, i, setting, random),
            Choice::Offset => {
                let bits = draw_address_bits(setting.bits, random);
                self.apply_offset(instruction, i, bits, setting, random);
            }
            Choice::Vsib(first) => {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_index(numbered(first, random, count(setting.bits)));
                instruction.set_memory_index_scale(1 << random.below(4));
                let bits = setting.bits.max(32);
                if random.chance(900) {
                    instruction.set_memory_base(gpr(bits, setting.bits, random));
                    instruction.set_memory_displ_size(1);
                    instruction.set_memory_displacement64(displacement(bits, random));
                } else {
                    instruction.set_memory_displ_size(bits / 8);
                    instruction.set_memory_displacement64(self.anywhere(
                        setting,
                        Register::DS,
                        random,
                    ));
                }
            }
            Choice::Translate => {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_base(match draw_address_bits(setting.bits, random) {
                    16 => Register::BX,
                    32 => Register::EBX,
                    _ => Register::RBX,
                });
                instruction.set_memory_index(Register::AL);
                self.override_segment(instruction, setting, random);
            }
            Choice::Branch(kind, short) => {
                let target = self.draw_target(rip, short, setting, random);
                instruction.set_op_kind(i, kind);
                match kind {
                    OpKind::NearBranch16 => instruction.set_near_branch16(target as u16),
                    OpKind::NearBranch32 => instruction.set_near_branch32(target as u32),
                    _ => instruction.set_near_branch64(target),
                }
            }
            Choice::FarBranch(kind) => {
                let mut target = self.draw_far_target(rip, setting, random);
                let mut selector = draw_selector(self.layout, random);
                if self.layout.is_low() {
                    // Real mode: where the code area is.
                    selector = setting.code().selector - random.below(16) as u16;
                    target += setting.code().base - (u64::from(selector) << 4);
                }
                instruction.set_op_kind(i, kind);
                instruction.set_far_branch_selector(selector);
                if kind == OpKind::FarBranch16 {
                    instruction.set_far_branch16(target as u16);
                } else {
                    instruction.set_far_branch32(target as u32);
                }
            }
            Choice::None => {}
        }
    }

    fn apply_memory(
        &self,
        instruction: &mut Instruction,
        i: u32,
        setting: &Setting,
        random: &mut Random,
    ) {
        let bits = draw_address_bits(setting.bits, random);
        self.override_segment(instruction, setting, random);
        instruction.set_op_kind(i, OpKind::Memory);
        if bits == 16 {
            self.apply_memory16(instruction, i, setting, random);
            return;
        }
        let index = |random: &mut Random| loop {
            let index = gpr(bits, setting.bits, random);
            if !matches!(index, Register::RSP | Register::ESP) {
                return index;
            }
        };
        match random.below(100) {
            0..=24 => {
                instruction.set_memory_base(gpr(bits, setting.bits, random));
            }
            25..=49 => {
                instruction.set_memory_base(gpr(bits, setting.bits, random));
                instruction.set_memory_displ_size(1);
                instruction.set_memory_displacement64(displacement(bits, random));
            }
            50..=79 => {
                instruction.set_memory_base(gpr(bits, setting.bits, random));
                instruction.set_memory_index(index(random));
                instruction.set_memory_index_scale(1 << random.below(4));
                instruction.set_memory_displ_size(1);
                instruction.set_memory_displacement64(displacement(bits, random));
            }
            80..=87 => {
                instruction.set_memory_index(index(random));
                instruction.set_memory_index_scale(1 << random.below(4));
                instruction.set_memory_displ_size(bits / 8);
                instruction.set_memory_displacement64(displacement(bits, random));
            }
            88..=95 if setting.bits == 64 => {
                instruction.set_memory_base(Register::RIP);
                instruction.set_memory_displ_size(8);
                let at = self.anywhere(setting, instruction.memory_segment(), random);
                instruction.set_memory_displacement64(at);
            }
            _ => self.apply_offset(instruction, i, bits, setting, random),
        }
    }

    /// The eight combinations of 16-bit addressing (SDM Vol 2 Table 2-1).
    fn apply_memory16(
        &self,
        instruction: &mut Instruction,
        i: u32,
        setting: &Setting,
        random: &mut Random,
    ) {
        use Register as R;
        if random.chance(80) {
            self.apply_offset(instruction, i, 16, setting, random);
            return;
        }
        let (base, index) = random.pick(&[
            (R::BX, R::SI),
            (R::BX, R::DI),
            (R::BP, R::SI),
            (R::BP, R::DI),
            (R::SI, R::None),
            (R::DI, R::None),
            (R::BP, R::None),
            (R::BX, R::None),
        ]);
        instruction.set_memory_base(base);
        instruction.set_memory_index(index);
        if random.chance(700) {
            instruction.set_memory_displ_size(1);
            instruction.set_memory_displacement64(displacement(16, random));
        }
    }

    /// An address that is all in the encoding.
    fn apply_offset(
        &self,
        instruction: &mut Instruction,
        i: u32,
        bits: u32,
        setting: &Setting,
        random: &mut Random,
    ) {
        instruction.set_op_kind(i, OpKind::Memory);
        instruction.set_memory_displ_size(bits / 8);
        self.override_segment(instruction, setting, random);
        let at = self.anywhere(setting, instruction.memory_segment(), random);
        instruction.set_memory_displacement64(at & u64::MAX >> (64 - bits));
    }

    fn override_segment(
        &self,
        instruction: &mut Instruction,
        setting: &Setting,
        random: &mut Random,
    ) {
        if instruction.segment_prefix() == Register::None
            && random.chance(if setting.bits == 64 { 60 } else { 250 })
        {
            instruction.set_segment_prefix(random.pick(&SEGMENTS));
        }
    }

    /// An offset that is in the window for operands whose address is in the encoding.
    fn anywhere(&self, setting: &Setting, segment: Register, random: &mut Random) -> u64 {
        let offset = random.below(4096 + 2048);
        let base = setting.segments[segment_number(segment)].base;
        (self.layout.window()
            + if random.chance(900) {
                offset & !63
            } else {
                offset
            })
        .wrapping_sub(base)
    }

    /// A branch target clear of the instruction and of its exit stub.
    fn draw_target(&self, rip: u64, short: bool, setting: &Setting, random: &mut Random) -> u64 {
        if short {
            return if random.chance(500) {
                rip + 40 + random.below(78)
            } else {
                rip - 16 - random.below(100)
            };
        }
        self.draw_far_target(rip, setting, random)
    }

    /// A branch target anywhere in reach of 32 bits: rarely where no code may be fetched.
    pub fn draw_far_target(&self, rip: u64, setting: &Setting, random: &mut Random) -> u64 {
        let base = setting.code().base;
        match random.below(1000) {
            0..=9 => self.layout.window() + random.below(8192),
            10..=19 => self.layout.slot + random.below(4096),
            _ => loop {
                let at = base + rip;
                let target = self.layout.code() + random.below(CODE_BYTES as u64 - 16);
                if target + 16 <= at || target >= at + 15 + 14 {
                    break target;
                }
            },
        }
        .wrapping_sub(base)
            & setting.rip_mask()
    }
}

const SEGMENTS: [Register; 6] = [
    Register::ES,
    Register::CS,
    Register::SS,
    Register::DS,
    Register::FS,
    Register::GS,
];

fn draw_address_bits(bits: u32, random: &mut Random) -> u32 {
    match bits {
        64 if random.chance(60) => 32,
        32 if random.chance(150) => 16,
        16 if random.chance(350) => 32,
        _ => bits,
    }
}

fn displacement(bits: u32, random: &mut Random) -> u64 {
    let value = match random.below(4) {
        0 => 0,
        1 | 2 => random.integer(8) as i8 as i64 as u64,
        _ => random.integer(32) as i32 as i64 as u64,
    };
    value & u64::MAX >> (64 - bits)
}

fn choose(kind: OpCodeOperandKind, bits: u32, random: &mut Random) -> Choice {
    let count = count(bits);
    use OpCodeOperandKind as K;
    let or_memory = |register: Register, random: &mut Random| {
        if random.chance(500) {
            Choice::Memory
        } else {
            Choice::Register(register)
        }
    };
    match kind {
        K::mem | K::mem_mib | K::mem_mpx | K::sibmem => Choice::Memory,
        K::mem_offs => Choice::Offset,
        K::mem_vsib32x | K::mem_vsib64x => Choice::Vsib(Register::XMM0),
        K::mem_vsib32y | K::mem_vsib64y => Choice::Vsib(Register::YMM0),
        K::r8_or_mem => {
            let register = gpr(8, bits, random);
            or_memory(register, random)
        }
        K::r16_or_mem => {
            let register = gpr(16, bits, random);
            or_memory(register, random)
        }
        K::r32_or_mem => {
            let register = gpr(32, bits, random);
            or_memory(register, random)
        }
        K::r64_or_mem => {
            let register = gpr(64, bits, random);
            or_memory(register, random)
        }
        K::mm_or_mem => {
            let register = numbered(Register::MM0, random, 8);
            or_memory(register, random)
        }
        K::xmm_or_mem => {
            let register = numbered(Register::XMM0, random, count);
            or_memory(register, random)
        }
        K::ymm_or_mem => {
            let register = numbered(Register::YMM0, random, count);
            or_memory(register, random)
        }
        K::r8_reg | K::r8_opcode => Choice::Register(gpr(8, bits, random)),
        K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
            Choice::Register(gpr(16, bits, random))
        }
        K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            Choice::Register(gpr(32, bits, random))
        }
        K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            Choice::Register(gpr(64, bits, random))
        }
        K::seg_reg => Choice::Register(numbered(Register::ES, random, 6)),
        K::mm_reg | K::mm_rm => Choice::Register(numbered(Register::MM0, random, 8)),
        K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
            Choice::Register(numbered(Register::XMM0, random, count))
        }
        K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
            Choice::Register(numbered(Register::YMM0, random, count))
        }
        K::sti_opcode => Choice::Register(numbered(Register::ST0, random, 8)),
        K::st0 => Choice::Register(Register::ST0),
        K::es => Choice::Register(Register::ES),
        K::cs => Choice::Register(Register::CS),
        K::ss => Choice::Register(Register::SS),
        K::ds => Choice::Register(Register::DS),
        K::fs => Choice::Register(Register::FS),
        K::gs => Choice::Register(Register::GS),
        K::al => Choice::Register(Register::AL),
        K::cl => Choice::Register(Register::CL),
        K::ax => Choice::Register(Register::AX),
        K::dx => Choice::Register(Register::DX),
        K::eax => Choice::Register(Register::EAX),
        K::rax => Choice::Register(Register::RAX),
        K::imm4_m2z => Choice::Immediate(OpKind::Immediate8, random.below(16)),
        K::imm8 => Choice::Immediate(OpKind::Immediate8, random.integer(8)),
        K::imm8_const_1 => Choice::Immediate(OpKind::Immediate8, 1),
        K::imm8sex16 => Choice::Immediate(OpKind::Immediate8to16, random.integer(8)),
        K::imm8sex32 => Choice::Immediate(OpKind::Immediate8to32, random.integer(8)),
        K::imm8sex64 => Choice::Immediate(OpKind::Immediate8to64, random.integer(8)),
        K::imm16 => Choice::Immediate(OpKind::Immediate16, random.integer(16)),
        K::imm32 => Choice::Immediate(OpKind::Immediate32, random.integer(32)),
        K::imm32sex64 => Choice::Immediate(OpKind::Immediate32to64, random.integer(32)),
        K::imm64 => Choice::Immediate(OpKind::Immediate64, random.integer(64)),
        // The second string operand must agree in address size; the encoder refuses a mixture.
        K::seg_rSI => Choice::Kind(match draw_address_bits(bits, random) {
            16 => OpKind::MemorySegSI,
            32 => OpKind::MemorySegESI,
            _ => OpKind::MemorySegRSI,
        }),
        K::es_rDI => Choice::Kind(match draw_address_bits(bits, random) {
            16 => OpKind::MemoryESDI,
            32 => OpKind::MemoryESEDI,
            _ => OpKind::MemoryESRDI,
        }),
        K::seg_rDI => Choice::Kind(match draw_address_bits(bits, random) {
            16 => OpKind::MemorySegDI,
            32 => OpKind::MemorySegEDI,
            _ => OpKind::MemorySegRDI,
        }),
        K::seg_rBX_al => Choice::Translate,
        K::cr_reg => Choice::Register(random.pick(&[
            Register::CR0,
            Register::CR2,
            Register::CR3,
            Register::CR4,
        ])),
        K::dr_reg => Choice::Register(random.pick(&[
            Register::DR0,
            Register::DR1,
            Register::DR2,
            Register::DR3,
            Register::DR6,
            Register::DR7,
        ])),
        K::br16_1 => Choice::Branch(OpKind::NearBranch16, true),
        K::br32_1 => Choice::Branch(OpKind::NearBranch32, true),
        K::br64_1 => Choice::Branch(OpKind::NearBranch64, true),
        K::br16_2 => Choice::Branch(OpKind::NearBranch16, false),
        K::br32_4 => Choice::Branch(OpKind::NearBranch32, false),
        K::br64_4 => Choice::Branch(OpKind::NearBranch64, false),
        K::farbr2_2 => Choice::FarBranch(OpKind::FarBranch16),
        K::farbr4_2 => Choice::FarBranch(OpKind::FarBranch32),
        _ => Choice::None,
    }
}

/// Adds a prefix that the form ignores, or a REX prefix; the caller checks that it still is the form.
fn vary(form: &OpCodeInfo, bits: u32, bytes: &mut Vec<u8>, random: &mut Random) {
    let legacy = bytes
        .iter()
        .take_while(|b| {
            matches!(
                b,
                0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65
            )
        })
        .count();
    let branch = form.code().flow_control() != iced_x86::FlowControl::Next;
    match random.below(4) {
        0 if !branch => bytes.insert(0, 0x66),
        // F2 turns LOOPE into LOOPNE on some processors: no manual defines it.
        1 if !form.code().is_loopcc() => bytes.insert(0, random.pick(&[0xf2, 0xf3])),
        2 => bytes.insert(0, random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65])),
        _ if bits != 64 => {}
        // With REX.B, F3 90 is PAUSE to some and XCHG to others.
        _ if form.code() == Code::Pause => {}
        _ => {
            if bytes.get(legacy).is_some_and(|b| b & 0xf0 != 0x40) {
                bytes.insert(legacy, 0x40 | random.below(16) as u8);
            }
        }
    }
}
