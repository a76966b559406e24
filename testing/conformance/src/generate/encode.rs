//! Random encodings of a form.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpCodeInfo, OpCodeOperandKind,
    OpKind, Register,
};

use crate::case::{CODE_BYTES, Layout};
use crate::random::Random;

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

fn gpr(bits: u32, random: &mut Random) -> Register {
    match bits {
        8 => random.pick(&GPR8),
        16 => numbered(Register::AX, random, 16),
        32 => numbered(Register::EAX, random, 16),
        _ => numbered(Register::RAX, random, 16),
    }
}

/// What an operand kind offers.
enum Choice {
    Register(Register),
    Memory,
    Immediate(OpKind, u64),
    Kind(OpKind),
    Branch,
    Offset,
    Vsib(Register),
    /// `[rBX + AL]` of XLAT.
    Translate,
    /// Filled in by the code value itself.
    None,
}

/// Makes encodings.
pub struct Encodings {
    encoder: Encoder,
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
            encoder: Encoder::new(64),
            layout,
        }
    }

    /// One encoding of `code`, or nothing when the operands drawn cannot be encoded together.
    pub fn draw(&mut self, code: Code, random: &mut Random) -> Option<Encoding> {
        let form = code.op_code();
        let rip = self.draw_rip(random);
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        for (i, &kind) in form.op_kinds().iter().enumerate() {
            let choice = choose(kind, random);
            self.apply(&mut instruction, i as u32, choice, rip, random);
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
        self.encoder.encode(&instruction, rip).ok()?;
        let mut bytes = self.encoder.take_buffer();
        if random.chance(60) {
            vary(form, &mut bytes, random);
        }
        if bytes.len() > 15 {
            return None;
        }
        let decoded = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
        let segment = decoded.segment_prefix();
        (decoded.code() == code
            && decoded.len() == bytes.len()
            && !matches!(segment, Register::FS | Register::GS))
        .then_some(Encoding {
            bytes,
            instruction: decoded,
            rip,
        })
    }

    /// Where the instruction lies; sometimes across the two code pages.
    fn draw_rip(&self, random: &mut Random) -> u64 {
        let offset = if random.chance(150) {
            4096 - random.below(15)
        } else {
            256 + random.below(CODE_BYTES as u64 - 512)
        };
        self.layout.code() + offset
    }

    fn apply(
        &self,
        instruction: &mut Instruction,
        i: u32,
        choice: Choice,
        rip: u64,
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
            Choice::Memory => self.apply_memory(instruction, i, random),
            Choice::Offset => {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(self.anywhere(random));
            }
            Choice::Vsib(first) => {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_index(numbered(first, random, 16));
                instruction.set_memory_index_scale(1 << random.below(4));
                if random.chance(900) {
                    instruction.set_memory_base(gpr(64, random));
                    instruction.set_memory_displ_size(1);
                    instruction.set_memory_displacement64(displacement(random));
                } else {
                    instruction.set_memory_displ_size(8);
                    instruction.set_memory_displacement64(self.anywhere(random));
                }
            }
            Choice::Translate => {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_base(if random.chance(60) {
                    Register::EBX
                } else {
                    Register::RBX
                });
                instruction.set_memory_index(Register::AL);
            }
            Choice::Branch => {
                instruction.set_op_kind(i, OpKind::NearBranch64);
                instruction.set_near_branch64(self.draw_target(rip, instruction.code(), random));
            }
            Choice::None => {}
        }
    }

    fn apply_memory(&self, instruction: &mut Instruction, i: u32, random: &mut Random) {
        instruction.set_op_kind(i, OpKind::Memory);
        let bits = if random.chance(60) { 32 } else { 64 };
        let index = |random: &mut Random| loop {
            let index = gpr(bits, random);
            if index.full_register() != Register::RSP {
                return index;
            }
        };
        match random.below(100) {
            0..=24 => {
                instruction.set_memory_base(gpr(bits, random));
            }
            25..=49 => {
                instruction.set_memory_base(gpr(bits, random));
                instruction.set_memory_displ_size(1);
                instruction.set_memory_displacement64(displacement(random));
            }
            50..=79 => {
                instruction.set_memory_base(gpr(bits, random));
                instruction.set_memory_index(index(random));
                instruction.set_memory_index_scale(1 << random.below(4));
                instruction.set_memory_displ_size(1);
                instruction.set_memory_displacement64(displacement(random));
            }
            80..=87 => {
                instruction.set_memory_index(index(random));
                instruction.set_memory_index_scale(1 << random.below(4));
                instruction.set_memory_displ_size(bits / 8);
                instruction.set_memory_displacement64(displacement(random));
            }
            88..=95 => {
                instruction.set_memory_base(Register::RIP);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(self.anywhere(random));
            }
            _ => {
                instruction.set_memory_displ_size(bits / 8);
                instruction.set_memory_displacement64(self.anywhere(random));
            }
        }
        if bits == 32 && instruction.memory_base() != Register::RIP {
            let low = instruction.memory_displacement64() & 0xffff_ffff;
            instruction.set_memory_displacement64(low);
        }
        if random.chance(30) {
            instruction.set_segment_prefix(random.pick(&[
                Register::ES,
                Register::CS,
                Register::SS,
                Register::DS,
            ]));
        }
    }

    /// An address in the window for operands whose address is in the encoding.
    fn anywhere(&self, random: &mut Random) -> u64 {
        let offset = random.below(4096 + 2048);
        self.layout.window()
            + if random.chance(900) {
                offset & !63
            } else {
                offset
            }
    }

    /// A branch target clear of the instruction and of its exit stub.
    fn draw_target(&self, rip: u64, code: Code, random: &mut Random) -> u64 {
        let short = code.op_code().op0_kind() == OpCodeOperandKind::br64_1;
        if short {
            return if random.chance(500) {
                rip + 40 + random.below(78)
            } else {
                rip - 16 - random.below(100)
            };
        }
        self.draw_far_target(rip, random)
    }

    /// A branch target anywhere in reach of 32 bits: rarely where no code may be fetched.
    pub fn draw_far_target(&self, rip: u64, random: &mut Random) -> u64 {
        match random.below(1000) {
            0..=9 => self.layout.window() + random.below(8192),
            10..=19 => self.layout.slot + random.below(4096),
            _ => loop {
                let target = self.layout.code() + random.below(CODE_BYTES as u64 - 16);
                if target + 16 <= rip || target >= rip + 15 + 14 {
                    return target;
                }
            },
        }
    }
}

fn displacement(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 0,
        1 | 2 => random.integer(8) as i8 as i64 as u64,
        _ => random.integer(32) as i32 as i64 as u64,
    }
}

fn choose(kind: OpCodeOperandKind, random: &mut Random) -> Choice {
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
            let register = gpr(8, random);
            or_memory(register, random)
        }
        K::r16_or_mem => {
            let register = gpr(16, random);
            or_memory(register, random)
        }
        K::r32_or_mem => {
            let register = gpr(32, random);
            or_memory(register, random)
        }
        K::r64_or_mem => {
            let register = gpr(64, random);
            or_memory(register, random)
        }
        K::mm_or_mem => {
            let register = numbered(Register::MM0, random, 8);
            or_memory(register, random)
        }
        K::xmm_or_mem => {
            let register = numbered(Register::XMM0, random, 16);
            or_memory(register, random)
        }
        K::ymm_or_mem => {
            let register = numbered(Register::YMM0, random, 16);
            or_memory(register, random)
        }
        K::r8_reg | K::r8_opcode => Choice::Register(gpr(8, random)),
        K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
            Choice::Register(gpr(16, random))
        }
        K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            Choice::Register(gpr(32, random))
        }
        K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            Choice::Register(gpr(64, random))
        }
        K::seg_reg => Choice::Register(numbered(Register::ES, random, 6)),
        K::mm_reg | K::mm_rm => Choice::Register(numbered(Register::MM0, random, 8)),
        K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
            Choice::Register(numbered(Register::XMM0, random, 16))
        }
        K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
            Choice::Register(numbered(Register::YMM0, random, 16))
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
        K::seg_rSI => Choice::Kind(if random.chance(60) {
            OpKind::MemorySegESI
        } else {
            OpKind::MemorySegRSI
        }),
        // The second string operand must agree in address size; the encoder refuses a mixture.
        K::es_rDI => Choice::Kind(if random.chance(60) {
            OpKind::MemoryESEDI
        } else {
            OpKind::MemoryESRDI
        }),
        K::seg_rDI => Choice::Kind(if random.chance(60) {
            OpKind::MemorySegEDI
        } else {
            OpKind::MemorySegRDI
        }),
        K::seg_rBX_al => Choice::Translate,
        K::br64_1 | K::br64_4 => Choice::Branch,
        _ => Choice::None,
    }
}

/// Adds a prefix that the form ignores, or a REX prefix; the caller checks that it still is the form.
fn vary(form: &OpCodeInfo, bytes: &mut Vec<u8>, random: &mut Random) {
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
        2 => bytes.insert(0, random.pick(&[0x26, 0x2e, 0x36, 0x3e])),
        // With REX.B, F3 90 is PAUSE to some and XCHG to others.
        _ if form.code() == Code::Pause => {}
        _ => {
            if bytes.get(legacy).is_some_and(|b| b & 0xf0 != 0x40) {
                bytes.insert(legacy, 0x40 | random.below(16) as u8);
            }
        }
    }
}
