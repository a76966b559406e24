//! What the fields of a guest instruction's encoding name, so that it can be written again with other registers.

use iced_x86::{Code, ConstantOffsets, Instruction, OpAccess, OpCodeOperandKind as K, OpKind};

/// A general register of the guest in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct General {
    /// Its encoding: 0 to 15, for AH, CH, DH, BH 0 to 3 with `high`.
    pub number: u8,
    /// AH, CH, DH or BH.
    pub high: bool,
    /// Bytes of it that are named.
    pub size: u8,
    /// Its value of before counts, in whole or for what is not written.
    pub read: bool,
    /// It is written.
    pub written: bool,
}

/// What a field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// A vector register, or nothing: the field holds part of the opcode, or is not there.
    Fixed(u8),
    /// A general register.
    General(General),
    /// The memory operand: bytes accessed, and whether they are written.
    Memory {
        /// Bytes.
        size: u8,
        /// Written, with or without being read.
        written: bool,
    },
}

/// How an instruction is encoded.
#[derive(Clone, Copy, Debug)]
pub struct Encoding {
    /// 66h, F2h, F3h, F0h in front of it.
    pub prefixes: [u8; 4],
    /// How many of them.
    pub prefix_count: u8,
    /// REX.W or VEX.W.
    pub wide: bool,
    /// VEX: map, pp, L; `None` for legacy encodings.
    pub vex: Option<(u8, u8, bool)>,
    /// Escape bytes and opcode.
    pub opcode: [u8; 3],
    /// How many.
    pub opcode_bytes: u8,
    /// It is followed by a ModRM byte.
    pub modrm: bool,
    /// ModRM.reg.
    pub reg: Field,
    /// ModRM.rm.
    pub rm: Field,
    /// VEX.vvvv.
    pub vvvv: Field,
    /// The register in the opcode.
    pub in_opcode: Option<General>,
    /// The register of the r/m field could be memory.
    pub or_memory: bool,
    /// It reads CL.
    pub reads_cl: bool,
    /// Offset and length of the immediate in the instruction's bytes.
    pub immediate: (u8, u8),
}

/// Reads the encoding of an instruction of 64-bit code; nothing for what has operands of other kinds than general
/// and vector registers, memory by ModRM, and immediates. Vector registers keep their numbers.
pub fn read(
    insn: &Instruction,
    bytes: &[u8],
    offsets: &ConstantOffsets,
    access: impl Fn(u32) -> OpAccess,
) -> Option<Encoding> {
    let info = insn.op_code();
    let mut e = Encoding {
        prefixes: [0; 4],
        prefix_count: 0,
        wide: false,
        vex: None,
        opcode: [0; 3],
        opcode_bytes: 0,
        modrm: info.group_index() >= 0,
        reg: Field::Fixed(info.group_index().max(0) as u8),
        rm: Field::Fixed(0),
        vvvv: Field::Fixed(0),
        in_opcode: None,
        or_memory: false,
        reads_cl: false,
        immediate: (
            offsets.immediate_offset() as u8,
            offsets.immediate_size() as u8,
        ),
    };
    if offsets.has_immediate2() || insn.code() == Code::INVALID {
        return None;
    }
    e.read_opcode(bytes)?;
    let has = |p| e.prefixes().contains(&p);
    // Of both the last counts; beside LOCK they are hints of hardware lock elision.
    if (has(0xf2) && has(0xf3)) || (has(0xf0) && (has(0xf2) || has(0xf3))) {
        return None;
    }
    let kinds = info.op_kinds();
    for (i, kind) in kinds.iter().enumerate() {
        let i = i as u32;
        let register = |size: u8| register(insn, i, size, access(i));
        let (place, size) = match kind {
            K::r8_or_mem => (Place::Rm, 1),
            K::r16_or_mem => (Place::Rm, 2),
            K::r32_or_mem => (Place::Rm, 4),
            K::r64_or_mem => (Place::Rm, 8),
            K::mem => (Place::Rm, 0),
            K::r8_reg => (Place::Reg, 1),
            K::r16_reg => (Place::Reg, 2),
            K::r32_reg => (Place::Reg, 4),
            K::r64_reg => (Place::Reg, 8),
            K::r16_rm => (Place::Rm, 2),
            K::r32_rm => (Place::Rm, 4),
            K::r64_rm => (Place::Rm, 8),
            K::r32_vvvv => (Place::Vvvv, 4),
            K::r64_vvvv => (Place::Vvvv, 8),
            K::xmm_or_mem | K::ymm_or_mem => (Place::Rm, 16),
            K::xmm_rm | K::ymm_rm => (Place::Rm, 16),
            K::xmm_reg | K::ymm_reg => (Place::Reg, 16),
            K::xmm_vvvv | K::ymm_vvvv => (Place::Vvvv, 16),
            K::xmm_is4 | K::ymm_is4 => {
                // The register's number is where an immediate would be.
                e.immediate = (bytes.len() as u8 - 1, 1);
                continue;
            }
            K::r8_opcode => (Place::Opcode, 1),
            K::r16_opcode => (Place::Opcode, 2),
            K::r32_opcode => (Place::Opcode, 4),
            K::r64_opcode => (Place::Opcode, 8),
            K::cl => {
                e.reads_cl = true;
                continue;
            }
            // RAX is where it was. Its other names too.
            K::al | K::ax | K::eax | K::rax => continue,
            K::imm8
            | K::imm8_const_1
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm16
            | K::imm32
            | K::imm32sex64
            | K::imm64 => continue,
            _ => return None,
        };
        match place {
            Place::Rm if insn.op_kind(i) == OpKind::Memory => {
                e.modrm = true;
                let written = !matches!(
                    access(i),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
                );
                let size = u8::try_from(insn.memory_size().size()).ok()?;
                e.rm = Field::Memory { size, written };
            }
            Place::Rm => {
                e.modrm = true;
                e.or_memory = matches!(
                    kind,
                    K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem
                );
                e.rm = register(size)?;
            }
            Place::Reg => {
                e.modrm = true;
                e.reg = register(size)?;
            }
            Place::Vvvv => e.vvvv = register(size)?,
            Place::Opcode => e.in_opcode = Some(general(insn, i, size, access(i))?),
        }
    }
    Some(e)
}

enum Place {
    Rm,
    Reg,
    Vvvv,
    Opcode,
}

fn register(insn: &Instruction, operand: u32, size: u8, access: OpAccess) -> Option<Field> {
    let register = insn.op_register(operand);
    if register.is_xmm() || register.is_ymm() {
        return u8::try_from(register.number())
            .ok()
            .filter(|n| *n < 16)
            .map(Field::Fixed);
    }
    general(insn, operand, size, access).map(Field::General)
}

fn general(insn: &Instruction, operand: u32, size: u8, access: OpAccess) -> Option<General> {
    use iced_x86::Register;
    let register = insn.op_register(operand);
    if !register.is_gpr() {
        return None;
    }
    let high = (Register::AH..=Register::BH).contains(&register);
    let number = if high {
        register as u8 - Register::AH as u8
    } else {
        register.full_register().number() as u8
    };
    let (read, written) = match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        // What is narrower than 32 bits leaves the rest as it was.
        OpAccess::Write => (size < 4, true),
        OpAccess::NoMemAccess | OpAccess::None => (false, false),
        _ => (true, true),
    };
    Some(General {
        number,
        high,
        size,
        read,
        written,
    })
}

impl Encoding {
    /// An operand is AH to BH.
    pub fn any_high(&self) -> bool {
        let high = |f: Field| matches!(f, Field::General(General { high: true, .. }));
        high(self.reg) || high(self.rm) || self.in_opcode.is_some_and(|g| g.high)
    }

    /// Reads prefixes and opcode.
    fn read_opcode(&mut self, bytes: &[u8]) -> Option<()> {
        let mut at = 0;
        loop {
            match *bytes.get(at)? {
                prefix @ (0x66 | 0xf0 | 0xf2 | 0xf3) => {
                    if !self.prefixes.contains(&prefix) {
                        *self.prefixes.get_mut(usize::from(self.prefix_count))? = prefix;
                        self.prefix_count += 1;
                    }
                }
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                // The size of addresses: rare in 64-bit code.
                0x67 => return None,
                _ => break,
            }
            at += 1;
        }
        let first = *bytes.get(at)?;
        if matches!(first, 0xc4 | 0xc5) {
            let (map, last) = if first == 0xc5 {
                (1, *bytes.get(at + 1)?)
            } else {
                (*bytes.get(at + 1)? & 0x1f, *bytes.get(at + 2)?)
            };
            self.wide = first == 0xc4 && last & 0x80 != 0;
            self.vex = Some((map, last & 3, last & 4 != 0));
            self.opcode[0] = *bytes.get(at + if first == 0xc5 { 2 } else { 3 })?;
            self.opcode_bytes = 1;
            self.modrm = true;
            return Some(());
        }
        if first & 0xf0 == 0x40 {
            self.wide = first & 8 != 0;
            at += 1;
            // It means nothing unless the opcode follows at once (SDM Vol 2 2.2.1); nobody writes it so.
            let next = *bytes.get(at)?;
            let prefix = matches!(
                next,
                0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65
            );
            if prefix || next & 0xf0 == 0x40 {
                return None;
            }
        }
        loop {
            let byte = *bytes.get(at)?;
            *self.opcode.get_mut(usize::from(self.opcode_bytes))? = byte;
            self.opcode_bytes += 1;
            at += 1;
            let goes_on = match self.opcode_bytes {
                1 => byte == 0x0f,
                2 => matches!(byte, 0x38 | 0x3a),
                _ => false,
            };
            if !goes_on {
                return Some(());
            }
        }
    }

    /// Its prefixes.
    pub fn prefixes(&self) -> &[u8] {
        &self.prefixes[..usize::from(self.prefix_count)]
    }

    /// It has a LOCK prefix.
    pub fn locked(&self) -> bool {
        self.prefixes().contains(&0xf0)
    }

    /// Escape bytes and opcode.
    pub fn opcode(&self) -> &[u8] {
        &self.opcode[..usize::from(self.opcode_bytes)]
    }
}
