//! Blocks of code that changes often: instead of having every store there noticed, they compare their bytes with RAM when
//! they are entered.
//!
//! Many changes are only of a value that is part of an instruction. Such values are left out of the comparison and read
//! where they are used.
//!
//! A block that stores could change itself after it was entered, so only blocks that store nothing are checked. What
//! else of them could change meanwhile is what somebody else does, and that is seen when they are entered again, as it
//! is for other blocks.

use guestmem::{GuestRam, RamOffset};
use iced_x86::{
    Code, ConstantOffsets, Decoder, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
    OpKind,
};

use super::decode::Mode;
use super::op::Op;
use crate::insn::table::{self, Privilege, Strategy};

/// Most bytes of a checked block: longer ones would compare for longer than they run.
pub const MOST_CHECKED: usize = 96;

/// A value in an instruction that may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Varying {
    /// Its operation, by its place in the block. The value is that one's `imm`.
    pub op: u16,
    /// Its bytes in the block.
    pub at: u16,
    /// How many they are: 4 or 8.
    pub size: u8,
    /// They are sign-extended.
    pub signed: bool,
}

impl Varying {
    /// The value in these bytes of the block.
    pub fn value(&self, bytes: &[u8]) -> u64 {
        let at = usize::from(self.at);
        let mut word = [0; 8];
        let size = usize::from(self.size);
        word[..size].copy_from_slice(&bytes[at..at + size]);
        let value = u64::from_le_bytes(word);
        if self.signed {
            i64::from(value as u32 as i32) as u64
        } else {
            value
        }
    }
}

/// What is compared of an aligned word of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Where it is.
    pub at: RamOffset,
    /// The bits that are compared.
    pub mask: u64,
    /// What they are; the others are zero.
    pub bits: u64,
}

/// What of a block is compared when it is entered.
#[derive(Debug)]
pub struct Checked {
    bytes: Box<[u8]>,
    varying: Box<[Varying]>,
}

impl Checked {
    /// For a block that lies in one page, if it can be one.
    pub fn of(bytes: &[u8], ops: &[Op], mode: Mode, options: u32) -> Option<Self> {
        if bytes.len() > MOST_CHECKED {
            return None;
        }
        let mut info = InstructionInfoFactory::new();
        let mut decoder = Decoder::with_ip(u32::from(mode.bits), bytes, 0, options);
        let mut varying = Vec::new();
        for (number, op) in ops.iter().enumerate().filter(|(_, op)| op.length > 0) {
            let insn = decoder.decode();
            if insn.is_invalid() || insn.len() != usize::from(op.length) {
                return None;
            }
            let used = info.info(&insn).used_memory();
            let reads = |access| matches!(access, OpAccess::Read | OpAccess::CondRead);
            if !is_plain(&insn) || !used.iter().all(|m| reads(m.access())) {
                return None;
            }
            let value = value_of(&insn, &decoder.get_constant_offsets(&insn), number, op);
            varying.extend(value.filter(|v| v.value(bytes) == op.imm));
        }
        Some(Self {
            bytes: bytes.into(),
            varying: varying.into(),
        })
    }

    /// The bytes it was decoded from.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The values that may change.
    pub fn varying(&self) -> &[Varying] {
        &self.varying
    }

    /// The value that may change in an operation.
    pub fn varying_of(&self, op: usize) -> Option<&Varying> {
        self.varying.iter().find(|v| usize::from(v.op) == op)
    }

    /// What RAM holds of a block at `start`.
    pub fn now(&self, ram: &GuestRam, start: RamOffset) -> [u8; MOST_CHECKED] {
        let mut now = [0; MOST_CHECKED];
        ram.read_at(start, &mut now[..self.bytes.len()]);
        now
    }

    /// Whether the block is the same with these bytes, but for its values.
    pub fn holds(&self, now: &[u8]) -> bool {
        let mut at = 0;
        for v in &self.varying {
            let to = usize::from(v.at);
            if self.bytes[at..to] != now[at..to] {
                return false;
            }
            at = to + usize::from(v.size);
        }
        self.bytes[at..] == now[at..self.bytes.len()]
    }

    /// What is compared, word by word.
    pub fn compared(&self, start: RamOffset) -> Vec<Compared> {
        let mut all: Vec<Compared> = Vec::new();
        for (n, byte) in self.bytes.iter().enumerate() {
            let varies = |v: &Varying| n.wrapping_sub(v.at.into()) < v.size.into();
            if self.varying.iter().any(varies) {
                continue;
            }
            let at = start.0 + n as u64;
            let (word, shift) = (RamOffset(at & !7), 8 * (at & 7));
            if all.last().is_none_or(|last| last.at != word) {
                let (mask, bits) = (0, 0);
                all.push(Compared {
                    at: word,
                    mask,
                    bits,
                });
            }
            if let Some(last) = all.last_mut() {
                last.mask |= 0xff << shift;
                last.bits |= u64::from(*byte) << shift;
            }
        }
        all
    }
}

/// Whether an instruction does nothing but compute in general registers and go on, behind itself or elsewhere.
fn is_plain(insn: &Instruction) -> bool {
    let known = table::row(insn.mnemonic()).is_some_and(|row| {
        row.strategy == Strategy::Native && row.privilege == Privilege::User && !row.intercepted
    });
    let flows = matches!(
        insn.flow_control(),
        FlowControl::Next
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Return
    );
    let far = insn.is_jmp_far() || insn.is_jmp_far_indirect();
    let general = (0..insn.op_count())
        .all(|i| insn.op_kind(i) != OpKind::Register || insn.op_register(i).is_gpr());
    known && flows && general && !far && !insn.is_string_instruction()
}

/// The value in an instruction that moves one to a register or computes with a register and one.
fn value_of(
    insn: &Instruction,
    offsets: &ConstantOffsets,
    number: usize,
    op: &Op,
) -> Option<Varying> {
    use Code as C;
    let may = matches!(
        insn.code(),
        C::Mov_r32_imm32
            | C::Mov_r64_imm64
            | C::Mov_rm32_imm32
            | C::Mov_rm64_imm32
            | C::Add_rm32_imm32
            | C::Add_rm64_imm32
            | C::Add_EAX_imm32
            | C::Add_RAX_imm32
            | C::Sub_rm32_imm32
            | C::Sub_rm64_imm32
            | C::Sub_EAX_imm32
            | C::Sub_RAX_imm32
            | C::And_rm32_imm32
            | C::And_rm64_imm32
            | C::And_EAX_imm32
            | C::And_RAX_imm32
            | C::Or_rm32_imm32
            | C::Or_rm64_imm32
            | C::Or_EAX_imm32
            | C::Or_RAX_imm32
            | C::Xor_rm32_imm32
            | C::Xor_rm64_imm32
            | C::Xor_EAX_imm32
            | C::Xor_RAX_imm32
            | C::Cmp_rm32_imm32
            | C::Cmp_rm64_imm32
            | C::Cmp_EAX_imm32
            | C::Cmp_RAX_imm32
    );
    if !may || insn.op0_kind() != OpKind::Register || insn.has_lock_prefix() {
        return None;
    }
    let (size, signed) = match insn.op1_kind() {
        OpKind::Immediate32 => (4, false),
        OpKind::Immediate32to64 => (4, true),
        OpKind::Immediate64 => (8, false),
        _ => return None,
    };
    Some(Varying {
        op: number as u16,
        at: op.offset + offsets.immediate_offset() as u16,
        size,
        signed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{Decoded, decode_block};
    use crate::insn::HostSide;

    const MODE: Mode = Mode {
        bits: 64,
        big_stack: false,
        single: false,
    };

    fn decoded(bytes: &[u8]) -> (Vec<Op>, Option<Checked>) {
        let mut b = crate::testing::Bench::long();
        let mut ops = Vec::new();
        let cpu = b.cpu();
        let mut side = HostSide {
            host: &mut cpu.host,
            table: &mut cpu.vectors,
        };
        let Decoded::Block(len) = decode_block(bytes, MODE, &mut side, &mut ops) else {
            panic!("{bytes:x?} is too short");
        };
        let options = cpu.vectors.decoder_options();
        let checked = Checked::of(&bytes[..len as usize], &ops, MODE, options);
        (ops, checked)
    }

    /// MOV, ADD, OR, AND, SUB, XOR, CMP in all their forms: whatever the value is, it is what decoding gives.
    #[test]
    fn values_are_those_decoding_gives() {
        let mut forms: Vec<(Vec<u8>, usize)> = Vec::new();
        for rex in [0x40, 0x41, 0x48, 0x49] {
            for reg in [0, 2, 4, 5] {
                let wide = rex & 8 != 0;
                forms.push((vec![rex, 0xb8 | reg], if wide { 8 } else { 4 }));
                forms.push((vec![rex, 0xc7, 0xc0 | reg], 4));
                for n in [0, 1, 4, 5, 6, 7] {
                    forms.push((vec![rex, 0x81, 0xc0 | n << 3 | reg], 4));
                    forms.push((vec![rex, n << 3 | 5], 4));
                }
            }
        }
        for (opcode, size) in forms {
            for value in [0, 5, 0x8765_4321_fedc_ba98, u64::MAX, 0x7fff_ffff_7fff_ffff] {
                let bytes = |value: u64| {
                    let value = &value.to_le_bytes()[..size];
                    [&[0x90], &opcode[..], value, &[0xc3]].concat()
                };
                let (_, checked) = decoded(&bytes(0x1234_5678_9abc_def0));
                let checked = checked.expect("it only computes");
                let now = bytes(value);
                let (ops, _) = decoded(&now);
                assert!(checked.holds(&now), "{opcode:x?}");
                assert_eq!(checked.varying().len(), 1, "{opcode:x?}");
                let varying = checked.varying_of(1).expect("it has a value");
                assert_eq!(varying.value(&now), ops[1].imm, "{opcode:x?} {value:x}");
            }
        }
    }

    /// Every bit of every other byte is compared, word by word and by bytes, wherever the block is.
    #[test]
    fn all_but_values_is_compared() {
        // mov eax, imm32; lea eax, [rax+rdi*2]; xor r10, imm32; jmp to itself
        let bytes = [
            0xb8, 1, 2, 3, 4, 0x8d, 0x04, 0x78, 0x49, 0x81, 0xf2, 5, 6, 7, 8, 0xeb, 0xf0,
        ];
        let values: Vec<usize> = (1..5).chain(11..15).collect();
        let checked = decoded(&bytes).1.expect("it only computes");
        for start in 0x1000..0x1010_u64 {
            let compared = checked.compared(RamOffset(start));
            for bit in 0..8 * bytes.len() {
                let mut now = bytes;
                now[bit / 8] ^= 1 << (bit % 8);
                let differs = !values.contains(&(bit / 8));
                assert_eq!(checked.holds(&now), !differs, "{bit}");
                let seen = compared.iter().any(|c| {
                    let byte = |n: u64| match (c.at.0 + n).checked_sub(start) {
                        Some(at) if at < now.len() as u64 => now[at as usize],
                        // What is beside it is of no interest.
                        _ => 0xa5,
                    };
                    let word = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(byte));
                    word & c.mask != c.bits
                });
                assert_eq!(seen, differs, "{start:x} {bit}");
            }
        }
    }

    #[test]
    fn what_does_more_than_compute_is_not_checked() {
        let plain: [&[u8]; 9] = [
            &[0x90, 0xc3],
            &[0x48, 0x8b, 0x06, 0x48, 0x3b, 0x47, 8, 0x74, 0],
            &[0x58, 0xff, 0xe0],
            &[0x0f, 0xaf, 0xc7, 0xeb, 0],
            &[0xff, 0x26],
            &[0xc2, 8, 0],
            &[0xf3, 0x0f, 0x1e, 0xfa, 0xc9, 0xc3],
            &[0x0f, 0x44, 0xc1, 0xe2, 0],
            &[0x48, 0x87, 0xc2, 0xc3],
        ];
        for bytes in plain {
            assert!(decoded(bytes).1.is_some(), "{bytes:x?}");
        }
        let other: [(&str, &[u8]); 24] = [
            ("mov [rsi], eax", &[0x89, 0x06, 0xc3]),
            ("add [rsi], eax", &[0x01, 0x06, 0xc3]),
            ("sete [rsi]", &[0x0f, 0x94, 0x06, 0xc3]),
            ("cmpxchg [rsi], ecx", &[0x0f, 0xb1, 0x0e, 0xc3]),
            ("xchg [rsi], eax", &[0x87, 0x06, 0xc3]),
            ("bts [rsi], eax", &[0x0f, 0xab, 0x06, 0xc3]),
            ("push rax", &[0x50, 0xc3]),
            ("push [rsi]", &[0xff, 0x36, 0xc3]),
            ("pop [rsi]", &[0x8f, 0x06, 0xc3]),
            ("pushfq", &[0x9c, 0xc3]),
            ("enter", &[0xc8, 0, 0, 0, 0xc3]),
            ("call", &[0xe8, 0, 0, 0, 0]),
            ("call rax", &[0xff, 0xd0]),
            ("stosb", &[0xaa, 0xc3]),
            ("lodsb", &[0xac, 0xc3]),
            ("mov ds, eax", &[0x8e, 0xd8]),
            ("mov rax, cr0", &[0x0f, 0x20, 0xc0, 0xc3]),
            ("jmp far [rsi]", &[0xff, 0x2e]),
            ("retf", &[0xcb]),
            ("syscall", &[0x0f, 0x05]),
            ("cpuid", &[0x0f, 0xa2, 0xc3]),
            ("cli", &[0xfa, 0xc3]),
            ("movups [rsi], xmm0", &[0x0f, 0x11, 0x06, 0xc3]),
            ("ud2", &[0x0f, 0x0b]),
        ];
        for (name, bytes) in other {
            assert!(decoded(bytes).1.is_none(), "{name}");
        }
        let wide: Vec<u8> = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0].repeat(10);
        assert!(decoded(&[&wide[..90], &[0xc3]].concat()).1.is_some());
        assert!(
            decoded(&[&wide[..], &[0xc3]].concat()).1.is_none(),
            "too long"
        );
    }
}
