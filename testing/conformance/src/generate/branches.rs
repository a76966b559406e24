//! Where branches go, and selectors for what loads one.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpAccess, OpKind};

use crate::case::{CODE_BYTES, Patch, READ_ONLY_OFFSET, WINDOW_BYTES};
use crate::random::Random;
use crate::segments::{CODE64, DATA, SS, Segment, Setting, World, draw_selector};

use super::addresses::{Reference, Solving, linear};
use super::encode::Encoding;
use super::{Generator, POPPED_FLAGS};

/// Whether a form takes its selector, or where it goes, from memory.
pub fn takes_pointer(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Retf | M::Iret | M::Iretd | M::Iretq | M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => {
            true
        }
        M::Pop => instruction.op0_register().is_segment_register(),
        M::Mov => {
            instruction.op0_kind() == OpKind::Register
                && instruction.op0_register().is_segment_register()
        }
        M::Lar | M::Lsl | M::Verr | M::Verw => true,
        M::Jmp | M::Call => {
            instruction.code().is_jmp_far_indirect() || instruction.code().is_call_far_indirect()
        }
        _ => false,
    }
}

impl Generator {
    /// Chooses where an indirect branch goes and puts that where the branch takes it from; the same with
    /// selectors. Says where a near branch goes.
    pub(super) fn solve_branch(
        &self,
        encoding: &Encoding,
        setting: &Setting,
        used: &[Reference],
        solving: &mut Solving,
        patches: &mut Vec<Patch>,
        random: &mut Random,
    ) -> Option<Option<u64>> {
        let instruction = &encoding.instruction;
        match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                let target = instruction.near_branch_target();
                self.faults_once(instruction, setting, used, solving, target)?;
                return self
                    .may_run(encoding, setting, target)
                    .then_some(Some(target));
            }
            OpKind::FarBranch16 => {
                let offset = instruction.far_branch16().into();
                let selector = instruction.far_branch_selector();
                self.pushes_plainly(instruction, setting, used, solving, selector)?;
                return self
                    .may_land(encoding, selector, offset, setting)
                    .then_some(None);
            }
            OpKind::FarBranch32 => {
                let offset = instruction.far_branch32().into();
                let selector = instruction.far_branch_selector();
                self.pushes_plainly(instruction, setting, used, solving, selector)?;
                return self
                    .may_land(encoding, selector, offset, setting)
                    .then_some(None);
            }
            _ => {}
        }
        if takes_pointer(instruction) {
            return self
                .solve_pointer(encoding, setting, used, solving, patches, random)
                .map(|()| None);
        }
        let source = match instruction.flow_control() {
            // SYSRET and its like have no source.
            FlowControl::Return if used.is_empty() => return Some(None),
            FlowControl::Return => used.first(),
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                if instruction.op0_kind() == OpKind::Register {
                    let register = instruction.op0_register();
                    if solving.is_pinned(register) {
                        return None;
                    }
                    let target = self.draw_near_target(
                        encoding,
                        setting,
                        register.size() as u32 * 8,
                        random,
                    )?;
                    solving.pin(register, target);
                    self.faults_once(instruction, setting, used, solving, target)?;
                    return Some(Some(target));
                }
                used.iter().find(|m| m.access == OpAccess::Read)
            }
            _ => return Some(None),
        }?;
        let bytes = source.size.size();
        let target = self.draw_near_target(encoding, setting, bytes as u32 * 8, random)?;
        self.faults_once(instruction, setting, used, solving, target)?;
        let taken = self.put_source(
            instruction,
            setting,
            source,
            solving,
            patches,
            target.to_le_bytes()[..bytes].to_vec(),
        )?;
        Some(taken.then_some(target))
    }

    /// Puts what a branch or a load takes where it takes it from; false when that faults.
    fn put_source(
        &self,
        instruction: &Instruction,
        setting: &Setting,
        source: &Reference,
        solving: &Solving,
        patches: &mut Vec<Patch>,
        bytes: Vec<u8>,
    ) -> Option<bool> {
        let Some(at) = self.check(instruction, source, setting, solving)? else {
            return Some(false);
        };
        let offset = at.wrapping_sub(self.layout.window());
        if offset > (READ_ONLY_OFFSET - bytes.len()) as u64 {
            // Not in the writable part: only a source that faults will do.
            let whole = self.layout.window() - bytes.len() as u64
                ..self.layout.window() + WINDOW_BYTES as u64;
            return (!whole.contains(&at)).then_some(false);
        }
        patches.clear();
        self.patch(patches, at, bytes);
        Some(true)
    }

    fn draw_near_target(
        &self,
        encoding: &Encoding,
        setting: &Setting,
        bits: u32,
        random: &mut Random,
    ) -> Option<u64> {
        let target = self
            .encodings
            .draw_far_target(encoding.rip, setting, random)
            & u64::MAX >> (64 - bits);
        self.may_run(encoding, setting, target).then_some(target)
    }

    /// Whether a near branch may go to `target`: into the slot, clear of what has been put there.
    fn may_run(&self, encoding: &Encoding, setting: &Setting, target: u64) -> bool {
        self.is_clear(encoding, setting, setting.code().base.wrapping_add(target))
    }

    fn is_clear(&self, encoding: &Encoding, setting: &Setting, at: u64) -> bool {
        let start = setting.code().base + encoding.rip;
        let code = self.layout.code();
        let inside = if self.layout.is_low() {
            // Everything can be executed: only INT3 must be.
            at >= code && at < code + CODE_BYTES as u64 - 16
        } else {
            at >= self.layout.slot && at < code + 0x4000
        };
        let next = at == start + encoding.bytes.len() as u64;
        let clear = at + 16 <= start || at >= start + 15 + 14;
        inside && (clear || next)
    }

    fn segment(&self, selector: u16) -> Option<Segment> {
        match self.world {
            World::Real => Some(Segment::real(selector)),
            World::User | World::Kernel => Segment::of(self.layout, selector),
        }
    }

    /// Whether a far branch may go there.
    fn may_land(&self, encoding: &Encoding, selector: u16, offset: u64, setting: &Setting) -> bool {
        match self.segment(selector) {
            Some(segment) => self.is_clear(encoding, setting, segment.base.wrapping_add(offset)),
            None => true,
        }
    }

    /// A selector and where in its segment the code area is, for an offset of `bits` bits.
    fn draw_pointer(
        &self,
        encoding: &Encoding,
        setting: &Setting,
        bits: u32,
        random: &mut Random,
    ) -> Option<(u16, u64)> {
        let selector = match self.world {
            World::Real => ((self.layout.code() - 0x7000) >> 4) as u16 - random.below(256) as u16,
            World::User | World::Kernel => draw_selector(self.layout, random),
        };
        let base = self.segment(selector).map_or(0, |segment| segment.base);
        let here = setting.code().base;
        let target = self
            .encodings
            .draw_far_target(encoding.rip, setting, random);
        let offset =
            target.wrapping_add(here).wrapping_sub(base) & 0xffff_ffff & u64::MAX >> (64 - bits);
        self.may_land(encoding, selector, offset, setting)
            .then_some((selector, offset))
    }

    /// A near CALL whose stack and whose target both fault: which is first is the processor's choice.
    fn faults_once(
        &self,
        instruction: &Instruction,
        setting: &Setting,
        used: &[Reference],
        solving: &Solving,
        target: u64,
    ) -> Option<()> {
        let inside = setting.bits == 64 || setting.code().linear(target, 1).is_some();
        (inside
            || used
                .iter()
                .filter(|m| m.access == OpAccess::Write)
                .all(|m| self.is_plain(instruction, m, setting, solving)))
        .then_some(())
    }

    /// A far CALL pushes before it checks the target on AMD's processors, and to 64-bit code by that mode's
    /// rules: only with a stack where that makes no difference.
    fn pushes_plainly(
        &self,
        instruction: &Instruction,
        setting: &Setting,
        used: &[Reference],
        solving: &Solving,
        selector: u16,
    ) -> Option<()> {
        let flat = setting.bits == 64 || setting.segments[SS].base == 0 || selector | 3 != CODE64;
        used.iter()
            .filter(|m| m.access == OpAccess::Write)
            .all(|m| flat && self.is_plain(instruction, m, setting, solving))
            .then_some(())
    }

    fn solve_pointer(
        &self,
        encoding: &Encoding,
        setting: &Setting,
        used: &[Reference],
        solving: &mut Solving,
        patches: &mut Vec<Patch>,
        random: &mut Random,
    ) -> Option<()> {
        use Mnemonic as M;
        let instruction = &encoding.instruction;
        let Some(source) = used.iter().find(|m| m.access != OpAccess::Write) else {
            // From a register.
            let register = instruction.op_register(instruction.op_count() - 1);
            if solving.is_pinned(register) || !register.is_gpr() {
                return None;
            }
            solving.pin(register, draw_selector(self.layout, random).into());
            return Some(());
        };
        let size = source.size.size();
        let mut bytes = Vec::new();
        match instruction.mnemonic() {
            M::Retf | M::Iret | M::Iretd | M::Iretq => {
                let width = match instruction.code() {
                    Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
                    Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
                    _ => 8,
                };
                let (selector, offset) =
                    self.draw_pointer(encoding, setting, width as u32 * 8, random)?;
                if self.world == World::User && selector == CODE64 && setting.stack_bits() == 16 {
                    // Which width the stack pointer is moved in when the mode changes is the processor's
                    // choice.
                    return None;
                }
                if selector & 3 != 3 && self.world == World::User {
                    // To an inner level: whether the outer stack is read before that is refused is the
                    // processor's choice.
                    let released = match instruction.op_count() {
                        0 => 0,
                        _ => u64::from(instruction.immediate16()),
                    };
                    let at = linear(
                        setting,
                        &setting.segments[SS],
                        source.offset(solving),
                        4 * width as u64 + released,
                    )?;
                    let end = at.wrapping_sub(self.layout.window()) + 4 * width as u64 + released;
                    if end > READ_ONLY_OFFSET as u64 {
                        return None;
                    }
                }
                let mut stack = draw_selector(self.layout, random);
                let code = Segment::of(self.layout, selector);
                if code.is_some_and(|segment| segment.linear(offset, 1).is_none()) {
                    // Whether the stack or the instruction pointer is looked at first is the processor's
                    // choice.
                    stack = DATA;
                }
                let flags = random.bits64() & POPPED_FLAGS | 0x202;
                let mut words = vec![offset, selector.into()];
                if instruction.mnemonic() != M::Retf {
                    words.push(flags);
                }
                words.extend([random.bits64(), stack.into()]);
                for word in words {
                    bytes.extend(&word.to_le_bytes()[..width]);
                }
            }
            M::Jmp | M::Call => {
                let (selector, offset) =
                    self.draw_pointer(encoding, setting, (size as u32 - 2) * 8, random)?;
                self.pushes_plainly(instruction, setting, used, solving, selector)?;
                bytes.extend(&offset.to_le_bytes()[..size - 2]);
                bytes.extend(selector.to_le_bytes());
            }
            M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => {
                bytes.extend(&random.bits64().to_le_bytes()[..size - 2]);
                bytes.extend(draw_selector(self.layout, random).to_le_bytes());
            }
            _ => {
                bytes.extend(draw_selector(self.layout, random).to_le_bytes());
                bytes.resize(size.max(2), 0x5a);
            }
        }
        self.put_source(instruction, setting, source, solving, patches, bytes)
            .map(|_| ())
    }
}
