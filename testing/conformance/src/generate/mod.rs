//! Cases of a form: an encoding, registers and memory that suit it, addresses solved so that its operands
//! lie in the window (mostly), across its pages, in the read-only or an unmapped page, or are non-canonical.

mod encode;
mod images;

use iced_x86::{
    Code, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, MemorySize, Mnemonic,
    OpAccess, OpKind, Register, UsedMemory,
};

use crate::case::{Case, Layout, Patch, READ_ONLY_OFFSET, Registers, WINDOW_BYTES};
use crate::random::{Lane, Random};
use encode::Encoding;
pub(crate) use encode::Encodings;

/// RFLAGS bits a case starts with at random: CF, PF, AF, ZF, SF, OF.
const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// Bit 1 and IF, as a program runs.
const FIXED_FLAGS: u64 = 0x202;
const DF: u64 = 0x400;

/// The window's contents when no case has patched it.
#[must_use]
pub fn background(seed: u64) -> Box<[u8; WINDOW_BYTES]> {
    let mut random = Random::new(seed, u64::MAX, 0);
    let mut bytes = Box::new([0; WINDOW_BYTES]);
    for (i, chunk) in bytes.chunks_mut(64).enumerate() {
        let kind = [Lane::Any, Lane::Int32, Lane::Float32, Lane::Float64][i % 4];
        random.fill(kind, chunk);
    }
    bytes
}

/// Makes cases for one slot.
pub struct Generator {
    seed: u64,
    layout: Layout,
    encodings: Encodings,
    factory: InstructionInfoFactory,
}

/// The registers being solved: a pinned one has its final value.
struct Solving {
    registers: Registers,
    pinned: u32,
}

impl Solving {
    fn read(&self, register: Register) -> u64 {
        let Some(number) = gpr_number(register) else {
            return 0;
        };
        let value = self.registers.gpr[number];
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

    fn is_pinned(&self, register: Register) -> bool {
        gpr_number(register).is_none_or(|n| self.pinned & 1 << n != 0)
    }

    /// Gives an address register a value; 32-bit ones keep what their upper half held.
    fn pin(&mut self, register: Register, value: u64) {
        let Some(number) = gpr_number(register) else {
            return;
        };
        let slot = &mut self.registers.gpr[number];
        *slot = if register.size() == 4 {
            *slot & !0xffff_ffff | value & 0xffff_ffff
        } else {
            value
        };
        self.pinned |= 1 << number;
    }
}

/// Number of the general register that `register` is or is part of.
fn gpr_number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}

impl Generator {
    /// A generator of `seed`'s cases.
    #[must_use]
    pub fn new(seed: u64, layout: Layout) -> Self {
        Self {
            seed,
            layout,
            encodings: Encodings::new(layout),
            factory: InstructionInfoFactory::new(),
        }
    }

    /// Case `number` of `code`; nothing when no draw of a bounded number of them was usable.
    pub fn case(&mut self, code: Code, number: u64) -> Option<Case> {
        let mut random = Random::new(self.seed, code as u64, number);
        (0..64).find_map(|_| self.attempt(code, &mut random))
    }

    fn attempt(&mut self, code: Code, random: &mut Random) -> Option<Case> {
        let encoding = self.encodings.draw(code, random)?;
        let instruction = encoding.instruction;
        let lane = lane_of(&instruction);
        let mut solving = Solving {
            registers: draw_registers(&instruction, lane, random),
            pinned: 0,
        };
        solving.registers.rip = encoding.rip;
        self.suit(&instruction, &mut solving, random);

        let mut patches = Vec::new();
        let used: Vec<UsedMemory> = self
            .factory
            .info(&instruction)
            .used_memory()
            .iter()
            .filter(|m| {
                !matches!(m.access(), OpAccess::None | OpAccess::NoMemAccess)
                    && !matches!(m.segment(), Register::FS | Register::GS)
            })
            .copied()
            .collect();
        if instruction.is_vsib() {
            self.solve_vsib(&instruction, &mut solving, random)?;
        } else {
            let mut plain = true;
            for memory in &used {
                let target = self.draw_target(&instruction, memory, plain, random);
                // Of two operands that fault, which is first is the processor's choice.
                plain &= self.is_plain(target, access_bytes(&instruction, memory));
                solve(memory, target, &mut solving);
            }
            for memory in &used {
                let at = self.check(&instruction, memory, &solving)?;
                let bytes = images::operand(&instruction, memory, lane, &solving.registers, random);
                self.patch(&mut patches, at, bytes);
            }
        }
        self.check_bit_string(&instruction, &solving)?;
        let branch_target =
            self.solve_branch(&encoding, &used, &mut solving, &mut patches, random)?;
        Some(Case {
            instruction,
            bytes: encoding.bytes,
            layout: self.layout,
            before: solving.registers,
            patches,
            branch_target,
        })
    }

    /// Values some forms need in order to do something interesting most of the time.
    fn suit(&self, instruction: &Instruction, solving: &mut Solving, random: &mut Random) {
        use Mnemonic as M;
        let gpr = &mut solving.registers.gpr;
        match instruction.mnemonic() {
            // A quotient that fits, mostly.
            M::Div | M::Idiv if random.chance(930) => {
                let bits = match instruction.op0_kind() {
                    OpKind::Register => instruction.op0_register().size() * 8,
                    _ => instruction.memory_size().size() * 8,
                };
                let signed = instruction.mnemonic() == M::Idiv;
                let fill = |value: u64, bits: u32| {
                    if signed && value >> (bits - 1) & 1 != 0 {
                        u64::MAX
                    } else {
                        0
                    }
                };
                if bits == 8 {
                    gpr[0] = gpr[0] & !0xff00 | fill(gpr[0], 8) & 0xff00;
                } else {
                    gpr[2] = fill(gpr[0], bits as u32);
                    solving.pinned |= 1 << 2;
                }
                solving.pinned |= 1;
            }
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz => {
                gpr[1] = random.pick(&[0, 1, 2, 3, 1 << 32, (1 << 32) + 1, u64::MAX, gpr[1]]);
            }
            M::Enter => {
                let at = self.layout.window() + 2048 + random.below(512) * 8;
                solving.pin(Register::RBP, at);
            }
            // State components: only those every host has (x87, SSE, AVX), so that XCR0 does not matter.
            M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64 => {
                gpr[0] = random.below(8) | random.bits64() << 32;
                gpr[2] = random.bits64() << 32;
                solving.pinned |= 1 | 1 << 2;
            }
            _ => {}
        }
        if instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
        {
            let address32 = (0..instruction.op_count()).any(|i| {
                matches!(
                    instruction.op_kind(i),
                    OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI
                )
            });
            let count = if random.chance(20) {
                random.below(300)
            } else {
                random.below(24)
            };
            solving.pin(
                if address32 {
                    Register::ECX
                } else {
                    Register::RCX
                },
                count,
            );
        }
    }

    /// Where an operand shall lie.
    fn draw_target(
        &self,
        instruction: &Instruction,
        memory: &UsedMemory,
        may_fault: bool,
        random: &mut Random,
    ) -> u64 {
        let size = access_bytes(instruction, memory);
        let window = self.layout.window();
        let code = instruction.code();
        // A fault in the middle of a state image leaves part of it written; which part is not defined
        // (SDM Vol 1 13.7, 10.5.1).
        let image = size > 64;
        let strict = instruction.is_string_instruction() && instruction.has_rep_prefix()
            || writable_only(code)
            || !may_fault;
        let aligned_only = size >= 16 && wants_alignment(code) || image;
        let alignment = match size {
            0 | 1 => 1,
            _ if image => 64,
            _ => (size.next_power_of_two()).min(64),
        };
        let align = random.chance(if aligned_only { 970 } else { 500 });
        let place = |offset: u64| {
            window
                + if align {
                    offset & !(alignment - 1)
                } else {
                    offset
                }
        };
        let writable = READ_ONLY_OFFSET as u64;
        match random.below(1000) {
            // Across the two writable pages.
            0..=29 if !image => window + 4096 - random.below(size.max(1)),
            // Read-only.
            30..=37 if !image && !strict => place(writable + random.below(4096 - size.min(4096))),
            // Into the read-only page, out of the window at its end, at its start.
            38..=41 if !image && !strict => window + writable - random.below(size.max(1)),
            42..=45 if !image && !strict => {
                window + WINDOW_BYTES as u64 - random.below(size.max(1))
            }
            46..=47 if !strict => window - alignment.max(1),
            // Unmapped.
            48..=50 if !strict => self.layout.slot + random.below(64) * alignment.max(1),
            // Non-canonical.
            51..=53 if !strict => {
                random.pick(&[
                    0x0000_8000_0000_0000,
                    0x4000_0000_0000_0000,
                    0x0123_4567_89ab_cdc0,
                    0xffff_7fff_ffff_ffc0,
                ]) + random.below(2) * alignment.max(1)
            }
            // REP: room on both sides.
            _ if instruction.has_rep_prefix() || instruction.has_repne_prefix() => {
                window + 2048 + random.below(4096)
            }
            _ => {
                let offset = random.below(writable - size.min(writable) + 1);
                let at = place(offset);
                at.min(window + writable - size.min(writable))
            }
        }
    }

    /// Whether an access stays in the writable part of the window.
    fn is_plain(&self, target: u64, size_bytes: u64) -> bool {
        let offset = target.wrapping_sub(self.layout.window());
        offset <= READ_ONLY_OFFSET as u64 - size_bytes.min(READ_ONLY_OFFSET as u64)
    }

    /// The operand's address, when it may be accessed.
    fn check(
        &self,
        instruction: &Instruction,
        memory: &UsedMemory,
        solving: &Solving,
    ) -> Option<u64> {
        let at = memory.virtual_address(0, |register, _, _| Some(solving.read(register)))?;
        let size = access_bytes(instruction, memory).max(1);
        let far = at.wrapping_add(size);
        let slack = if instruction.is_string_instruction() {
            4096
        } else {
            0
        };
        let allowed = self.layout.allows(at.wrapping_sub(slack), size + 2 * slack);
        if aligned_by_vendor(instruction.code()) && at % 16 != 0 {
            return None;
        }
        (allowed || non_canonical(at) && non_canonical(far)).then_some(at)
    }

    /// Index elements and base of a gather.
    fn solve_vsib(
        &self,
        instruction: &Instruction,
        solving: &mut Solving,
        random: &mut Random,
    ) -> Option<()> {
        let index = instruction.memory_index();
        let width = if instruction.is_vsib64() { 8 } else { 4 };
        let scale = u64::from(instruction.memory_index_scale());
        let displacement = instruction.memory_displacement64();
        let element_bytes = instruction.memory_size().element_size().max(4) as u64;
        let base = instruction.memory_base();
        let middle = self.layout.window() + 4096 + random.below(64);
        if base != Register::None {
            solving.pin(base, middle.wrapping_sub(displacement));
        }
        // One element may miss the window: with two, the order of the faults would be the processor's.
        let odd = random.below(64);
        let number = index.number();
        let mut lanes = [0u8; 32];
        lanes[..16].copy_from_slice(&solving.registers.extended.xmm(number).to_le_bytes());
        lanes[16..].copy_from_slice(&solving.registers.extended.ymm_high[number].to_le_bytes());
        for (i, lane) in lanes.chunks_exact_mut(width).enumerate() {
            let reach = if i as u64 == odd { 9000 } else { 3900 };
            let element = (random.below(2 * reach) as i64 - reach as i64) / scale as i64;
            let at = if base == Register::None {
                displacement.wrapping_add((element as u64).wrapping_mul(scale))
            } else {
                middle.wrapping_add((element as u64).wrapping_mul(scale))
            };
            if !self.layout.allows(at, element_bytes) {
                return None;
            }
            lane.copy_from_slice(&element.to_le_bytes()[..width]);
        }
        let (low, high) = lanes.split_at(16);
        let half = |bytes: &[u8]| {
            let mut value = [0; 16];
            value.copy_from_slice(bytes);
            u128::from_le_bytes(value)
        };
        solving.registers.extended.set_xmm(number, half(low));
        solving.registers.extended.ymm_high[number] = half(high);
        // The mask is the last operand; when it is the index too, the instruction is #UD anyhow.
        Some(())
    }

    /// BT, BTC, BTR and BTS with a register offset reach beyond their operand (SDM Vol 2, BT).
    fn check_bit_string(&self, instruction: &Instruction, solving: &Solving) -> Option<()> {
        let bit_string = matches!(
            instruction.mnemonic(),
            Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts
        ) && instruction.op0_kind() == OpKind::Memory
            && instruction.op1_kind() == OpKind::Register;
        if !bit_string {
            return Some(());
        }
        let size = instruction.memory_size().size() as u64;
        let offset = solving.read(instruction.op1_register());
        let shift = 64 - 8 * size;
        let offset = ((offset << shift) as i64) >> shift;
        let at = instruction
            .virtual_address(0, 0, |register, _, _| Some(solving.read(register)))?
            .wrapping_add((offset.div_euclid(8 * size as i64) as u64).wrapping_mul(size));
        let at = if address_bits(instruction) == 32 {
            at & 0xffff_ffff
        } else {
            at
        };
        self.layout.allows(at, size).then_some(())
    }

    /// Puts `bytes` at `at`, as far as that is in the writable part of the window.
    fn patch(&self, patches: &mut Vec<Patch>, at: u64, bytes: Vec<u8>) {
        let window = self.layout.window();
        let first = window.saturating_sub(at).min(bytes.len() as u64) as usize;
        let offset = at.wrapping_add(first as u64).wrapping_sub(window);
        if bytes.is_empty() || offset >= READ_ONLY_OFFSET as u64 {
            return;
        }
        let offset = offset as usize;
        let count = (bytes.len() - first).min(READ_ONLY_OFFSET - offset);
        if count > 0 {
            patches.push(Patch {
                offset,
                bytes: bytes[first..first + count].to_vec(),
            });
        }
    }

    /// Chooses where an indirect branch goes and puts that where the branch takes it from.
    fn solve_branch(
        &self,
        encoding: &Encoding,
        used: &[UsedMemory],
        solving: &mut Solving,
        patches: &mut Vec<Patch>,
        random: &mut Random,
    ) -> Option<Option<u64>> {
        let instruction = &encoding.instruction;
        if instruction.op0_kind() == OpKind::NearBranch64 {
            return Some(Some(instruction.near_branch64()));
        }
        let source = match instruction.flow_control() {
            FlowControl::Return => used.first(),
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                if instruction.op0_kind() == OpKind::Register {
                    let target = self.encodings.draw_far_target(encoding.rip, random);
                    let register = instruction.op0_register();
                    if solving.is_pinned(register) {
                        return None;
                    }
                    solving.pin(register, target);
                    return Some(Some(target));
                }
                used.iter().find(|m| m.access() == OpAccess::Read)
            }
            _ => return Some(None),
        };
        let target = self.encodings.draw_far_target(encoding.rip, random);
        let at = self.check(instruction, source?, solving)?;
        let offset = at.wrapping_sub(self.layout.window());
        if offset > READ_ONLY_OFFSET as u64 - 8 {
            // Not in the writable part: only a source that faults will do.
            let whole = self.layout.window()..self.layout.window() + WINDOW_BYTES as u64;
            return (!whole.contains(&at)).then_some(None);
        }
        patches.clear();
        self.patch(patches, at, target.to_le_bytes().to_vec());
        Some(Some(target))
    }
}

/// Bytes an operand accesses, an upper bound where iced does not know.
fn access_bytes(instruction: &Instruction, memory: &UsedMemory) -> u64 {
    match memory.memory_size() {
        MemorySize::Unknown | MemorySize::Xsave | MemorySize::Xsave64
            if is_xsave(instruction.mnemonic()) =>
        {
            832
        }
        size => size.size() as u64,
    }
}

/// XSAVE, XSAVEC and XRSTOR.
pub(crate) fn is_xsave(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64
    )
}

/// Forms whose operands always lie in the writable part: a MASKMOV with nothing to store may or may not
/// fault (SDM Vol 2, MASKMOVDQU), and what POPF takes must not set TF or AC.
fn writable_only(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu | M::Popf | M::Popfd | M::Popfq
    )
}

/// Whether an operand that is not aligned is #GP (SDM Vol 1 14.9, exceptions types 1 and 4).
fn wants_alignment(code: Code) -> bool {
    use Mnemonic as M;
    code.encoding() == EncodingKind::Legacy
        || matches!(
            code.mnemonic(),
            M::Vmovaps
                | M::Vmovapd
                | M::Vmovdqa
                | M::Vmovntps
                | M::Vmovntpd
                | M::Vmovntdq
                | M::Vmovntdqa
        )
}

/// SHA instructions check the alignment of their operand on Intel's processors (SDM Vol 2, exceptions type
/// 4) and not on AMD's: always aligned here.
fn aligned_by_vendor(code: Code) -> bool {
    code.encoding() == EncodingKind::Legacy
        && code.cpuid_features().contains(&iced_x86::CpuidFeature::SHA)
}

fn address_bits(instruction: &Instruction) -> u32 {
    let part = [instruction.memory_base(), instruction.memory_index()]
        .into_iter()
        .find(|&r| r != Register::None);
    match part {
        Some(Register::EIP) => 32,
        Some(r) if r.is_gpr32() => 32,
        None if instruction.memory_displ_size() == 4 => 32,
        _ => 64,
    }
}

fn non_canonical(address: u64) -> bool {
    let top = address >> 47;
    top != 0 && top != 0x1_ffff
}

/// Sets the address registers of an operand so that it lies at `target`.
fn solve(memory: &UsedMemory, target: u64, solving: &mut Solving) {
    let (base, index) = (memory.base(), memory.index());
    let scale = memory.scale() as u64;
    let distance = target.wrapping_sub(memory.displacement());
    let narrow = base.is_gpr32() || index.is_gpr32();
    let distance = if narrow {
        distance & 0xffff_ffff
    } else {
        distance
    };
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
            } else if !solving.is_pinned(index) && index.size() >= 4 {
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

/// What an instruction's vector operands hold, judged by its mnemonic.
fn lane_of(instruction: &Instruction) -> Lane {
    let name = format!("{:?}", instruction.mnemonic());
    let name = name.trim_start_matches('V');
    if name.contains("strm") || name.contains("stri") {
        Lane::Text
    } else if name.contains("ph2") {
        Lane::Float16
    } else if name.ends_with("ps") || name.ends_with("ss") || name.contains("ps2") {
        Lane::Float32
    } else if name.ends_with("pd") || name.ends_with("sd") || name.contains("pd2") {
        Lane::Float64
    } else if name.starts_with("Cvtss") || name.starts_with("Cvttss") {
        Lane::Float32
    } else if name.starts_with("Cvtsd") || name.starts_with("Cvttsd") {
        Lane::Float64
    } else if name.starts_with('P') || name.starts_with('p') {
        match name.as_bytes()[name.len() - 1] {
            b'b' => Lane::Int8,
            b'w' => Lane::Int16,
            b'd' => Lane::Int32,
            b'q' => Lane::Int64,
            _ => Lane::Any,
        }
    } else {
        Lane::Any
    }
}

fn draw_registers(instruction: &Instruction, lane: Lane, random: &mut Random) -> Registers {
    let mut registers = Registers {
        gpr: std::array::from_fn(|_| random.integer(64)),
        rip: 0,
        rflags: FIXED_FLAGS | random.bits64() & ARITHMETIC_FLAGS,
        ..Registers::default()
    };
    if lane == Lane::Text {
        // Explicit lengths of PCMPESTRI and PCMPESTRM.
        registers.gpr[0] = random.below(20).wrapping_sub(2);
        registers.gpr[2] = random.below(20).wrapping_sub(2);
    }
    let direction = if instruction.is_string_instruction() {
        300
    } else {
        60
    };
    if random.chance(direction) {
        registers.rflags |= DF;
    }
    images::draw_extended(&mut registers.extended, lane, random);
    registers
}
