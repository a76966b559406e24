//! Cases of a form: an encoding, registers and memory that suit it, addresses solved so that its operands
//! lie in the window (mostly), across its pages, in the read-only or an unmapped page, or are non-canonical.

mod addresses;
mod branches;
mod encode;
mod images;

use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::case::{Case, Layout, Patch, READ_ONLY_OFFSET, Registers, WINDOW_BYTES};
use crate::random::{Lane, Random};
use crate::segments::{SS, Setting, World};
pub(crate) use addresses::operand_address;
use addresses::{Reference, Solving, access_bytes, bit_string, linear, segment_number};
pub(crate) use encode::Encodings;

/// RFLAGS bits a case starts with at random: CF, PF, AF, ZF, SF, OF.
const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// Bit 1 and IF, as a program runs.
const FIXED_FLAGS: u64 = 0x202;
const DF: u64 = 0x400;
/// What POPF and IRET may take from memory: neither TF nor AC, and NT, IOPL, RF, VM, VIF and VIP stay clear.
const POPPED_FLAGS: u64 = 0x20_0cd5;

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
    world: World,
    encodings: Encodings,
    factory: InstructionInfoFactory,
}

impl Generator {
    /// A generator of `seed`'s cases.
    #[must_use]
    pub fn new(seed: u64, layout: Layout) -> Self {
        Self::of_world(seed, layout, World::User)
    }

    /// A generator for another `world`.
    #[must_use]
    pub fn of_world(seed: u64, layout: Layout, world: World) -> Self {
        Self {
            seed,
            layout,
            world,
            encodings: Encodings::new(layout),
            factory: InstructionInfoFactory::new(),
        }
    }

    /// Case `number` of `code` in code of `bits` bits; nothing when no draw of a bounded number of them was
    /// usable.
    pub fn case(&mut self, code: Code, bits: u32, number: u64) -> Option<Case> {
        // 64-bit mode has the streams 0 and up.
        let stream = code as u64 | u64::from(64 - bits) << 32;
        let mut random = Random::new(self.seed, stream, number);
        (0..64).find_map(|_| self.attempt(code, bits, &mut random))
    }

    fn attempt(&mut self, code: Code, bits: u32, random: &mut Random) -> Option<Case> {
        let setting = match self.world {
            World::User => Setting::draw(self.layout, bits, random),
            World::Kernel => Setting::draw_kernel(self.layout, bits, random),
            World::Real => Setting::draw_real(self.layout, random),
        };
        let encoding = self.encodings.draw(code, &setting, random)?;
        let instruction = encoding.instruction;
        let last = encoding.rip + encoding.bytes.len() as u64 - 1;
        if bits != 64 && last > setting.code().limit.into() && has_no_operands(&instruction) {
            return None;
        }
        if self.world != World::User && last <= setting.code().limit.into() {
            // The jump that ends the case must not fault: the stack may be anywhere by then.
            setting.code().linear(last + 1, 8)?;
        }
        let lane = lane_of(&instruction);
        let mut solving = Solving {
            registers: draw_registers(&instruction, lane, random),
            pinned: 0,
        };
        solving.registers.rip = encoding.rip;
        self.suit(&instruction, &setting, &mut solving, random);

        let mut patches = Vec::new();
        let used: Vec<Reference> = self
            .factory
            .info(&instruction)
            .used_memory()
            .iter()
            .filter(|m| !matches!(m.access(), OpAccess::None | OpAccess::NoMemAccess))
            .map(|m| Reference::new(&instruction, m, &setting))
            .collect();
        if instruction.is_vsib() {
            self.solve_vsib(&instruction, &setting, &mut solving, random)?;
        } else {
            let mut plain = true;
            for memory in &used {
                let target = self.draw_target(&instruction, memory, &setting, plain, random);
                memory.solve(target, &setting, &mut solving);
                // Of two operands that fault, which is first is the processor's choice.
                plain &= self.is_plain(&instruction, memory, &setting, &solving);
            }
            if moves_partly(&instruction) && !plain {
                return None;
            }
            let odd = |m: &&Reference| !self.is_plain(&instruction, m, &setting, &solving);
            let mut faulting = used.iter().filter(odd);
            if let Some(first) = faulting.next()
                && !faulting.all(|other| other.goes_with(first))
            {
                return None;
            }
            for memory in &used {
                let Some(at) = self.check(&instruction, memory, &setting, &solving)? else {
                    continue;
                };
                let bytes =
                    images::operand(&instruction, memory.size, lane, &solving.registers, random);
                self.patch(&mut patches, at, bytes);
            }
        }
        self.check_bit_string(&instruction, &setting, &solving)?;
        let branch_target = self.solve_branch(
            &encoding,
            &setting,
            &used,
            &mut solving,
            &mut patches,
            random,
        )?;
        if self.world != World::User {
            self.solve_stack(&setting, &mut solving, random)?;
        }
        Some(Case {
            instruction,
            bytes: encoding.bytes,
            layout: self.layout,
            setting,
            before: solving.registers,
            patches,
            branch_target,
        })
    }

    /// At CPL 0 an exception is pushed on the case's own stack: there has to be room.
    fn solve_stack(
        &self,
        setting: &Setting,
        solving: &mut Solving,
        random: &mut Random,
    ) -> Option<()> {
        const ROOM: u64 = 32;
        let segment = &setting.segments[SS];
        let register = match setting.stack_bits() {
            16 => Register::SP,
            _ => Register::ESP,
        };
        if !solving.is_pinned(register) {
            let top = self.layout.window() + 2048 + 2 * random.below(2048);
            solving.pin(register, top.wrapping_sub(segment.base));
        }
        let top = solving.read(register);
        let at = linear(setting, segment, top.checked_sub(ROOM)?, ROOM)?;
        self.layout.allows(at, ROOM).then_some(())
    }

    /// Values some forms need in order to do something interesting most of the time.
    fn suit(
        &self,
        instruction: &Instruction,
        setting: &Setting,
        solving: &mut Solving,
        random: &mut Random,
    ) {
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
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz | M::Jcxz => {
                let wide = [1 << 32, (1 << 32) + 1, 1 << 16, (1 << 16) + 1];
                let wide = random.pick(&wide);
                gpr[1] = random.pick(&[0, 1, 2, 3, wide, wide, u64::MAX, gpr[1]]);
            }
            // Where the adjustments begin.
            M::Daa | M::Das | M::Aaa | M::Aas if random.chance(500) => {
                let edge = random.pick(&[0x09, 0x0a, 0x0f, 0x90, 0x99, 0x9a, 0x9f, 0xf9, 0xfa]);
                gpr[0] = gpr[0] & !0xff | edge;
            }
            M::Enter => {
                let at = self.layout.window() + 2048 + random.below(512) * 8;
                let register = match setting.stack_bits() {
                    16 => Register::BP,
                    32 => Register::EBP,
                    _ => Register::RBP,
                };
                solving.pin(register, at.wrapping_sub(setting.segments[SS].base));
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
            let mut count = if random.chance(20) {
                random.below(300)
            } else {
                random.below(24)
            };
            if matches!(
                instruction.mnemonic(),
                M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
            ) {
                // Whether the permission is looked at when there is nothing to do is the processor's choice.
                count += 1;
            }
            let register = (0..instruction.op_count())
                .find_map(|i| match instruction.op_kind(i) {
                    OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => {
                        Some(Register::CX)
                    }
                    OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                        Some(Register::ECX)
                    }
                    _ => None,
                })
                .unwrap_or(Register::RCX);
            solving.pin(register, count);
        }
    }

    /// Where an operand shall lie.
    fn draw_target(
        &self,
        instruction: &Instruction,
        memory: &Reference,
        setting: &Setting,
        may_fault: bool,
        random: &mut Random,
    ) -> u64 {
        let size = access_bytes(instruction, memory.size);
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
            51..=53 if !strict && setting.bits == 64 => {
                random.pick(&[
                    0x0000_8000_0000_0000,
                    0x4000_0000_0000_0000,
                    0x0123_4567_89ab_cdc0,
                    0xffff_7fff_ffff_ffc0,
                ]) + random.below(2) * alignment.max(1)
            }
            // Beyond a limit, or out of the slot.
            51..=59 if !strict && setting.bits != 64 => {
                window.wrapping_add(random.below(0x2_0000)) - 0x1_0000
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

    /// Whether an access is allowed by its segment and stays in the writable part of the window.
    fn is_plain(
        &self,
        instruction: &Instruction,
        memory: &Reference,
        setting: &Setting,
        solving: &Solving,
    ) -> bool {
        let size = access_bytes(instruction, memory.size);
        let segment = &setting.segments[memory.segment];
        let write = memory.access != OpAccess::Read;
        let Some(at) = linear(setting, segment, memory.offset(solving), size) else {
            return false;
        };
        let offset = at.wrapping_sub(self.layout.window());
        (setting.bits == 64 || segment.allows(write))
            && offset <= READ_ONLY_OFFSET as u64 - size.min(READ_ONLY_OFFSET as u64)
    }

    /// The operand's linear address, when it may be accessed; none when its segment's limit forbids it.
    fn check(
        &self,
        instruction: &Instruction,
        memory: &Reference,
        setting: &Setting,
        solving: &Solving,
    ) -> Option<Option<u64>> {
        let size = access_bytes(instruction, memory.size).max(1);
        let segment = &setting.segments[memory.segment];
        let Some(at) = linear(setting, segment, memory.offset(solving), size) else {
            let top = if segment.big { 1 << 32 } else { 1 << 16 };
            let wraps = segment.limit == u32::MAX
                || segment.is_expand_down() && { memory.offset(solving) + size > top };
            if wraps {
                // An access across the end of 4 GiB, or of an expand-down segment, faults by the limit or not
                // (SDM Vol 3 5.3).
                return None;
            }
            // Whether a limit or alignment is looked at first is the processor's choice.
            let aligned = memory
                .offset(solving)
                .wrapping_add(segment.base)
                .is_multiple_of(size.clamp(1, 64));
            let checked = size >= 16 && wants_alignment(instruction.code()) && !aligned;
            return (!checked && !writable_only(instruction.code())).then_some(None);
        };
        let rights = setting.bits == 64 || segment.allows(memory.access != OpAccess::Read);
        if writable_only(instruction.code()) && !rights {
            return None;
        }
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
        (allowed || non_canonical(at) && non_canonical(far)).then_some(Some(at))
    }

    /// Index elements and base of a gather.
    fn solve_vsib(
        &self,
        instruction: &Instruction,
        setting: &Setting,
        solving: &mut Solving,
        random: &mut Random,
    ) -> Option<()> {
        if setting.bits != 64 && instruction.memory_displ_size() == 2 {
            return None;
        }
        let segment = segment_number(instruction.memory_segment());
        let segment_base = setting.segments[segment].base;
        let index = instruction.memory_index();
        let width = if instruction.is_vsib64() { 8 } else { 4 };
        let scale = u64::from(instruction.memory_index_scale());
        let displacement = instruction.memory_displacement64();
        let element_bytes = instruction.memory_size().element_size().max(4) as u64;
        let base = instruction.memory_base();
        let middle = self.layout.window() + 4096 + random.below(64);
        if base != Register::None {
            let offset = middle.wrapping_sub(segment_base).wrapping_sub(displacement);
            solving.pin(base, offset);
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
                displacement
                    .wrapping_add(segment_base)
                    .wrapping_add((element as u64).wrapping_mul(scale))
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

    fn check_bit_string(
        &self,
        instruction: &Instruction,
        setting: &Setting,
        solving: &Solving,
    ) -> Option<()> {
        let Some((segment, offset, size)) = bit_string(instruction, setting, solving) else {
            return Some(());
        };
        linear(setting, &setting.segments[segment], offset, size)
            .is_none_or(|at| self.layout.allows(at, size))
            .then_some(())
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
/// fault (SDM Vol 2, MASKMOVDQU), one that faults has made MMX of the x87 registers or not, and what POPF takes must not set TF or AC.
fn writable_only(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu | M::Popf | M::Popfd | M::Popfq
    )
}

/// PUSH and POP of a segment register access all of its place on the stack or only the selector (SDM Vol 2,
/// PUSH); POPA that faults on its way may have loaded some registers.
fn moves_partly(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Push | M::Pop => instruction.op0_register().is_segment_register(),
        M::Popa | M::Popad => true,
        _ => false,
    }
}

/// UD0 and UD1 have no operands on AMD's processors, so what is behind their opcode is not fetched.
fn has_no_operands(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1)
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

fn non_canonical(address: u64) -> bool {
    let top = address >> 47;
    top != 0 && top != 0x1_ffff
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
