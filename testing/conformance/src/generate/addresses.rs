//! Memory operands: where they are, and registers that put them where they shall be.

use iced_x86::{
    CodeSize, Instruction, MemorySize, Mnemonic, OpAccess, OpKind, Register, UsedMemory,
};

use crate::case::{Case, Registers};
use crate::segments::{DS, ES, FS, GS, SS, Segment, Setting};

use super::is_xsave;

/// The registers being solved: a pinned one has its final value.
pub struct Solving {
    pub registers: Registers,
    pub pinned: u32,
}

/// Number of the general register that `register` is or is part of.
pub fn gpr_number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}

/// What `register` is of `gpr`.
fn read(gpr: &[u64; 16], register: Register) -> u64 {
    let Some(number) = gpr_number(register) else {
        return 0;
    };
    let value = gpr[number];
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => value >> 8 & 0xff,
        _ => match register.size() {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        },
    }
}

impl Solving {
    pub fn read(&self, register: Register) -> u64 {
        read(&self.registers.gpr, register)
    }

    pub fn is_pinned(&self, register: Register) -> bool {
        gpr_number(register).is_none_or(|n| self.pinned & 1 << n != 0)
    }

    /// Gives a register a value; narrow ones keep what is above them.
    pub fn pin(&mut self, register: Register, value: u64) {
        let Some(number) = gpr_number(register) else {
            return;
        };
        let slot = &mut self.registers.gpr[number];
        *slot = match register.size() {
            2 => *slot & !0xffff | value & 0xffff,
            4 => *slot & !0xffff_ffff | value & 0xffff_ffff,
            _ => value,
        };
        self.pinned |= 1 << number;
    }
}

/// Number of a segment register; DS for none.
pub fn segment_number(register: Register) -> usize {
    match register {
        Register::ES => ES,
        Register::CS => crate::segments::CS,
        Register::SS => SS,
        Register::FS => FS,
        Register::GS => GS,
        _ => DS,
    }
}

/// A register of the number of `register` and of `bits` bits.
fn of_width(register: Register, bits: u32) -> Register {
    match bits {
        16 => {
            let number = register.full_register().number();
            Register::try_from(Register::AX as usize + number)
                .expect("registers of a class are numbered in sequence")
        }
        32 => register.full_register32(),
        _ => register.full_register(),
    }
}

/// A memory operand, explicit or not.
#[derive(Clone, Copy)]
pub struct Reference {
    pub segment: usize,
    base: Register,
    index: Register,
    scale: u64,
    displacement: u64,
    /// Width of the address.
    bits: u32,
    pub size: MemorySize,
    pub access: OpAccess,
}

impl Reference {
    pub fn new(instruction: &Instruction, memory: &UsedMemory, setting: &Setting) -> Self {
        let mut bits = match memory.address_size() {
            CodeSize::Code16 => 16,
            CodeSize::Code32 => 32,
            _ => setting.bits,
        };
        let mut base = memory.base();
        let explicit = instruction.memory_base() == base
            && instruction.memory_index() == memory.index()
            && (instruction.memory_displacement64() ^ memory.displacement()) & 0xffff_ffff == 0;
        let stack = matches!(base.full_register(), Register::RSP | Register::RBP);
        let mut displacement = memory.displacement();
        if setting.bits != 64 && stack && !explicit {
            // iced takes the width of the code for the width of the stack.
            let unused = 64 - bits;
            displacement = ((displacement << unused) as i64 >> unused) as u64;
            bits = setting.stack_bits();
            base = of_width(base, bits);
        }
        Self {
            segment: segment_number(memory.segment()),
            base,
            index: memory.index(),
            scale: memory.scale() as u64,
            displacement,
            bits,
            size: memory.memory_size(),
            access: memory.access(),
        }
    }

    /// The explicit memory operand of `instruction`.
    fn explicit(instruction: &Instruction, setting: &Setting) -> Self {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let bits = [base, index]
            .into_iter()
            .find(|r| r.is_gpr())
            .map_or(instruction.memory_displ_size() * 8, |r| r.size() as u32 * 8);
        Self {
            segment: segment_number(instruction.memory_segment()),
            base: if base.is_gpr() { base } else { Register::None },
            index,
            scale: u64::from(instruction.memory_index_scale()),
            displacement: instruction.memory_displacement64(),
            bits: if bits < 16 { setting.bits } else { bits },
            size: instruction.memory_size(),
            access: OpAccess::None,
        }
    }

    /// Whether the same registers address both.
    pub fn goes_with(&self, other: &Self) -> bool {
        (self.segment, self.base, self.index) == (other.segment, other.base, other.index)
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    fn offset_by(&self, gpr: &[u64; 16]) -> u64 {
        let index = read(gpr, self.index).wrapping_mul(self.scale);
        self.displacement
            .wrapping_add(read(gpr, self.base))
            .wrapping_add(index)
            & self.mask()
    }

    /// Its offset in the segment.
    pub fn offset(&self, solving: &Solving) -> u64 {
        self.offset_by(&solving.registers.gpr)
    }

    /// Sets the address registers so that it lies at the linear address `target`, as far as they are free.
    pub fn solve(&self, target: u64, setting: &Setting, solving: &mut Solving) {
        let (base, index, scale) = (self.base, self.index, self.scale);
        let distance = target
            .wrapping_sub(setting.segments[self.segment].base)
            .wrapping_sub(self.displacement)
            & self.mask();
        match (base.is_gpr(), index.is_gpr()) {
            (false, false) => {}
            (true, false) => {
                if !solving.is_pinned(base) {
                    solving.pin(base, distance);
                }
            }
            (false, true) => {
                if !solving.is_pinned(index) {
                    solving.pin(index, (distance as i64).div_euclid(scale as i64) as u64);
                }
            }
            (true, true) if base == index => {
                if !solving.is_pinned(base) {
                    let times = 1 + scale as i64;
                    solving.pin(base, (distance as i64).div_euclid(times) as u64);
                }
            }
            (true, true) => {
                let indexed = solving.read(index).wrapping_mul(scale);
                if !solving.is_pinned(base) {
                    if gpr_number(index) != gpr_number(base) {
                        solving.pin(base, distance.wrapping_sub(indexed));
                    }
                } else if !solving.is_pinned(index) && index.size() >= 2 {
                    let rest = distance.wrapping_sub(solving.read(base)) as i64;
                    solving.pin(index, rest.div_euclid(scale as i64) as u64);
                }
            }
        }
        // What an index holds must not change any more.
        if let Some(number) = gpr_number(index) {
            solving.pinned |= 1 << number;
        }
    }
}

/// Linear address of `size_bytes` bytes at `offset` in `segment`; nothing when its limit forbids them.
pub fn linear(setting: &Setting, segment: &Segment, offset: u64, size_bytes: u64) -> Option<u64> {
    if setting.bits == 64 {
        Some(segment.base.wrapping_add(offset))
    } else {
        segment.linear(offset, size_bytes)
    }
}

/// Linear address of the explicit memory operand of `case`, whatever the segment's limit.
pub fn operand_address(case: &Case) -> u64 {
    let reference = Reference::explicit(&case.instruction, &case.setting);
    case.setting.segments[reference.segment]
        .base
        .wrapping_add(reference.offset_by(&case.before.gpr))
        & case.setting.rip_mask()
}

/// BT, BTC, BTR and BTS with a register offset reach beyond their operand (SDM Vol 2, BT): segment, offset
/// and bytes of what they access.
pub fn bit_string(
    instruction: &Instruction,
    setting: &Setting,
    solving: &Solving,
) -> Option<(usize, u64, u64)> {
    let bit_string = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts
    ) && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register;
    if !bit_string {
        return None;
    }
    let reference = Reference::explicit(instruction, setting);
    let size = instruction.memory_size().size() as u64;
    let offset = solving.read(instruction.op1_register());
    let shift = 64 - 8 * size;
    let offset = ((offset << shift) as i64) >> shift;
    let at = reference
        .offset(solving)
        .wrapping_add((offset.div_euclid(8 * size as i64) as u64).wrapping_mul(size))
        & reference.mask();
    Some((reference.segment, at, size))
}

/// Bytes an operand accesses, an upper bound where iced does not know.
pub fn access_bytes(instruction: &Instruction, size: MemorySize) -> u64 {
    match size {
        MemorySize::Unknown | MemorySize::Xsave | MemorySize::Xsave64
            if is_xsave(instruction.mnemonic()) =>
        {
            832
        }
        size => size.size() as u64,
    }
}
