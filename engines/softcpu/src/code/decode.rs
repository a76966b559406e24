//! From bytes to operations: iced-x86 decodes, the instruction table binds.

use iced_x86::{Decoder, DecoderError, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::op::{Ea, Op};
use crate::cpu::{RIP, TWO_GIB, ZERO, gpr, sreg};
use crate::insn::{self, HostSide};

/// What of the processor's mode decoding depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// 16, 32 or 64.
    pub bits: u8,
    /// SS.B outside 64-bit mode: the stack pointer is ESP.
    pub big_stack: bool,
    /// One instruction only.
    pub single: bool,
}

impl Mode {
    /// As a number below 256, for block keys.
    #[inline(always)]
    pub fn code(self) -> u8 {
        self.bits | u8::from(self.big_stack) | u8::from(self.single) << 1
    }
}

/// What decoding gave.
pub enum Decoded {
    /// A block of this many bytes; its operations are in the buffer.
    Block(u32),
    /// The first instruction needs more bytes than there are.
    NeedsMore,
}

/// Most instructions in a block.
const MAX_INSTRUCTIONS: usize = 48;

/// Most bytes of a block: no instruction has more than 15 (SDM Vol 2 2.3.11).
pub const MOST_BYTES: usize = 15 * MAX_INSTRUCTIONS;

/// Decodes instructions from `bytes` until a block ends.
pub fn decode_block(bytes: &[u8], mode: Mode, side: &mut HostSide, out: &mut Vec<Op>) -> Decoded {
    out.clear();
    let options = side.table.decoder_options();
    let mut decoder = Decoder::with_ip(u32::from(mode.bits), bytes, 0, options);
    let mut insn = Instruction::default();
    let mut length = 0u32;
    let mut ended = false;
    let mut sti = None;
    while decoder.can_decode() {
        decoder.decode_out(&mut insn);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let invalid = decoder.last_error() != DecoderError::None;
        let mut op = Op {
            offset: length as u16,
            length: insn.len() as u8,
            ..Op::default()
        };
        length += insn.len() as u32;
        let ends = if invalid {
            // 15 bytes that are no instruction yet are too long (SDM Vol 2 2.3.11).
            op.run = if insn.len() >= 15 {
                insn::too_long
            } else {
                insn::invalid_opcode
            };
            true
        } else {
            fill_operands(&insn, &mut op);
            let start = length as usize - insn.len();
            if let Some(opcode) = x87_opcode(bytes.get(start..).unwrap_or_default(), mode) {
                op.extra = opcode;
            }
            insn::bind(&insn, mode, side, &mut op)
        };
        out.push(op);
        ended = ends;
        // Between an STI and the next instruction nothing is to be looked at, behind that everything.
        if let Some(sti) = sti.and_then(|at: usize| out.get_mut(at)) {
            sti.extra = 1;
            break;
        }
        if ends || mode.single || out.len() >= MAX_INSTRUCTIONS {
            break;
        }
        sti = (insn.mnemonic() == Mnemonic::Sti).then(|| out.len() - 1);
    }
    if !ended && !out.is_empty() {
        // Nothing sets the next RIP: an operation of no length does. It does not count as an instruction.
        out.push(Op {
            run: insn::fall_through,
            offset: length as u16,
            ..Op::default()
        });
    }
    if out.is_empty() {
        Decoded::NeedsMore
    } else {
        Decoded::Block(length)
    }
}

/// Where 64-bit code can go on behind a block, as far as the block alone says: bytes from its start.
pub fn successors(bytes: &[u8], ops: &[Op], options: u32) -> [Option<i64>; 2] {
    let end = bytes.len() as i64;
    let Some(last) = ops.last() else {
        return [None; 2];
    };
    if last.length == 0 {
        return [Some(end), None];
    }
    let Some(instruction) = bytes.get(usize::from(last.offset)..) else {
        return [None; 2];
    };
    let mut decoder = Decoder::with_ip(64, instruction, u64::from(last.offset), options);
    let insn = decoder.decode();
    let near = insn.op0_kind() == OpKind::NearBranch64;
    let target = Some(insn.near_branch_target() as i64);
    match insn.flow_control() {
        FlowControl::UnconditionalBranch | FlowControl::Call if near => [target, None],
        FlowControl::ConditionalBranch if near => [target, Some(end)],
        _ => [None; 2],
    }
}

/// What an x87 instruction records as its opcode: the low three bits of the escape byte, then the ModRM byte (SDM
/// Vol 1 8.1.9).
fn x87_opcode(bytes: &[u8], mode: Mode) -> Option<u16> {
    let prefix = |b: &u8| {
        matches!(
            b,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
        ) || (mode.bits == 64 && matches!(b, 0x40..=0x4f))
    };
    let at = bytes.iter().position(|b| !prefix(b))?;
    match bytes.get(at..at + 2)? {
        [escape @ 0xd8..=0xdf, modrm] => Some(u16::from(escape & 7) << 8 | u16::from(*modrm)),
        _ => None,
    }
}

/// The encoding of a register operand as [`Op`] holds it.
pub fn register_code(r: Register) -> u8 {
    if (Register::AH..=Register::BH).contains(&r) {
        return 0x20 | (r as u8 - Register::AH as u8);
    }
    if r.is_segment_register() {
        return (r as u8) - Register::ES as u8;
    }
    if r == Register::None {
        return ZERO as u8;
    }
    // The full register's number: SPL to DIL count from 8 among the byte registers.
    let r = if r.is_gpr8() { r.full_register() } else { r };
    (r.number() & 31) as u8
}

/// Puts the operands where handlers expect them.
fn fill_operands(insn: &Instruction, op: &mut Op) {
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register => {
                let code = register_code(insn.op_register(i));
                match i {
                    0 => op.dst = code,
                    1 => op.src = code,
                    2 => op.extra = u16::from(code),
                    _ => {}
                }
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = insn.near_branch_target();
            }
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                op.imm = u64::from(insn.far_branch32());
                op.extra = insn.far_branch_selector();
            }
            OpKind::Memory => fill_memory(insn, op),
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => {
                op.seg = string_segment(insn);
            }
            // MASKMOVQ and MASKMOVDQU: the only operand with an implicit rDI and a segment to override.
            kind @ (OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI) => {
                op.seg = string_segment(insn);
                op.base = gpr::RDI as u8;
                let width = match kind {
                    OpKind::MemorySegRDI => 8,
                    OpKind::MemorySegEDI => 4,
                    _ => 2,
                };
                op.ea = address_form(insn, width);
            }
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => {}
            _ => {
                let v = insn.immediate(i);
                // A second immediate (ENTER) goes where no register is.
                if matches!(insn.op_kind(i), OpKind::Immediate8_2nd) {
                    op.extra = v as u16;
                } else {
                    op.imm = v;
                }
            }
        }
    }
}

/// The segment of an implicit rSI or rDI operand: in 64-bit mode only FS and GS override (SDM Vol 1 3.7.4).
fn string_segment(insn: &Instruction) -> u8 {
    match insn.memory_segment() {
        s @ (Register::FS | Register::GS) => register_code(s),
        _ if insn.code_size() == iced_x86::CodeSize::Code64 => sreg::DS as u8,
        s => register_code(s),
    }
}

fn fill_memory(insn: &Instruction, op: &mut Op) {
    let code64 = insn.code_size() == iced_x86::CodeSize::Code64;
    let base = insn.memory_base();
    let index = insn.memory_index();
    op.seg = match insn.memory_segment() {
        s @ (Register::FS | Register::GS) => register_code(s),
        // In 64-bit mode other overrides are ignored; the base decides between #GP and #SS.
        _ if code64 => match base.full_register() {
            Register::RSP | Register::RBP => sreg::SS as u8,
            _ => sreg::DS as u8,
        },
        s => register_code(s),
    };
    op.index = if index.is_vector_register() {
        ZERO as u8
    } else {
        register_code(index)
    };
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    let displacement = insn.memory_displacement64() as i64;
    let width = address_width(insn, code64);
    op.ea = address_form(insn, width);
    if matches!(base, Register::RIP | Register::EIP) {
        // iced has added the instruction's end, relative to the block's start.
        op.base = RIP as u8;
    } else {
        op.base = register_code(base);
    }
    match i32::try_from(displacement) {
        Ok(d) => op.disp = d,
        Err(_) if width != 8 => op.disp = displacement as i32,
        // RIP-relative just out of reach of 32 bits, seen from the block's start.
        Err(_) if index == Register::None && base == Register::RIP => {
            op.index = TWO_GIB as u8;
            op.scale = 0;
            op.disp = displacement.wrapping_sub(1 << 31) as i32;
        }
        // MOV with a 64-bit absolute address: the binder uses `imm`.
        Err(_) => op.imm = displacement as u64,
    }
}

/// How an address of `width` bytes becomes a linear one.
fn address_form(insn: &Instruction, width: u8) -> Ea {
    let code64 = insn.code_size() == iced_x86::CodeSize::Code64;
    match (code64, width) {
        (true, 8) if matches!(insn.memory_segment(), Register::FS | Register::GS) => Ea::Based,
        (true, 8) => Ea::Flat,
        (true, _) => Ea::Addr32,
        (false, 2) => Ea::Legacy16,
        (false, _) => Ea::Legacy32,
    }
}

fn address_width(insn: &Instruction, code64: bool) -> u8 {
    let of = |r: Register| r.size() as u8;
    match (insn.memory_base(), insn.memory_index()) {
        (Register::None, Register::None) => match insn.memory_displ_size() {
            8 => 8,
            2 => 2,
            // No displacement, or one of 32 bits that is not extended.
            4 => 4,
            _ if code64 => 8,
            _ => 4,
        },
        (Register::None, i) if i.is_vector_register() => {
            if code64 && insn.memory_displ_size() == 8 {
                8
            } else {
                4
            }
        }
        (Register::None, i) => of(i),
        (b, _) => of(b),
    }
}
