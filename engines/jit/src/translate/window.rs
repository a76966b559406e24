//! One check for several accesses beside each other.
//!
//! In a joined copy the address on the host of bytes that were checked may stay known: a *window* into one page, seen
//! from the guest's registers that an address is made of. Further accesses by the same registers that lie in it need no
//! check. It is made where the instructions that follow say that it will serve for more than one, and ends with an
//! instruction that changes those registers by more than a constant, or with the call of a handler.
//!
//! Where a window leads is in [`ADDRESS`] or [`SLOT`]. If what follows has accesses to other places in between, it is
//! also in a word of its own, from where the next access that wants it takes it into a register again.
//!
//! If the check of a window fails, the exact copy executes the instruction from its beginning: that may well have the
//! access that the first one is.

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register,
};
use softcpu::cpu::Cpu;
use softcpu::insn::table::{self, Bind, Strategy};

use super::{Done, Translator};
use crate::asm::{Mem, Reg};
use crate::layout::{
    ADDRESS, PLACE, RCX, READ, RSP, SLOT, WINDOWS, WRITE, alignment, mask, window_word,
};

/// Most bytes of a window.
const WIDEST: i64 = 640;

/// What an address is made of beside the displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    base: Register,
    index: Register,
    scale: u32,
    segment: Register,
}

impl Key {
    const STACK: Self = Self {
        base: Register::RSP,
        index: Register::None,
        scale: 1,
        segment: Register::None,
    };

    /// That of an operand in memory.
    fn of(insn: &Instruction) -> Self {
        let segment = match insn.memory_segment() {
            s @ (Register::FS | Register::GS) => s,
            _ => Register::None,
        };
        let index = insn.memory_index();
        Self {
            base: insn.memory_base(),
            index,
            scale: if index == Register::None {
                1
            } else {
                insn.memory_index_scale()
            },
            segment,
        }
    }

    fn has(&self, r: Register) -> bool {
        r != Register::None && (self.base == r || self.index == r)
    }
}

/// An access: bytes from its displacement on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub at: i64,
    pub size: u8,
    pub write: bool,
    /// Its address has to be a multiple of its size.
    pub aligned: bool,
}

/// What windows there are, by the words they may be in.
pub(super) type Windows = [Option<Open>; WINDOWS];

/// None.
pub(super) const NO_WINDOWS: Windows = [None; WINDOWS];

/// A window, and where what leads to it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    window: Window,
    /// In this register, while that does not change.
    reg: Option<Reg>,
    /// In its word.
    saved: bool,
}

/// Bytes that were checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    key: Key,
    /// The displacement that the register is the place of.
    origin: i64,
    low: i64,
    high: i64,
    write: bool,
    /// The address of `low` is a multiple of this.
    aligned: i64,
}

impl Window {
    fn covers(&self, key: Key, range: Range) -> bool {
        let inside = range.at >= self.low && range.at + i64::from(range.size) <= self.high;
        let size = i64::from(range.size);
        let aligned =
            !range.aligned || self.aligned >= size && (range.at - self.low).rem_euclid(size) == 0;
        key == self.key && inside && aligned && (self.write || !range.write)
    }

    /// The same bytes when the base is more by `n`.
    fn moved(self, n: i64) -> Self {
        Self {
            origin: self.origin - n,
            low: self.low - n,
            high: self.high - n,
            ..self
        }
    }

    /// The smallest that serves for this one too, if that is not too wide.
    fn with(&self, range: Range) -> Option<Self> {
        let mut w = Self {
            low: self.low.min(range.at),
            high: self.high.max(range.at + i64::from(range.size)),
            write: self.write || range.write,
            ..*self
        };
        if range.aligned {
            let size = i64::from(range.size);
            if self.aligned > 1 && (range.at - self.low).rem_euclid(size.min(self.aligned)) != 0 {
                return None;
            }
            // Aligned for the widest: by a place where that one is known to be.
            let known = if size >= self.aligned {
                range.at
            } else {
                self.low
            };
            w.aligned = size.max(self.aligned);
            w.low = known + (w.low - known).div_euclid(w.aligned) * w.aligned;
        } else if w.aligned > 1 {
            w.low = self.low + (w.low - self.low).div_euclid(w.aligned) * w.aligned;
        }
        let span = w.high - w.low;
        w.high = w.low + (span + w.aligned - 1).div_euclid(w.aligned) * w.aligned;
        (w.high - w.low <= WIDEST).then_some(w)
    }
}

impl Open {
    /// The same when the base is more by `n`.
    fn moved(self, n: i64) -> Self {
        Self {
            window: self.window.moved(n),
            ..self
        }
    }
}

/// What an instruction does with the registers of a key.
enum Change {
    Nothing,
    /// It adds this to the base.
    Adds(i64),
    Other,
}

/// The general registers that an instruction writes, a bit each.
fn written_by(info: &mut InstructionInfoFactory, insn: &Instruction) -> u16 {
    let used = info.info(insn).used_registers().iter();
    let written = used.filter(|u| {
        !matches!(
            u.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None
        )
    });
    written.fold(0, |all, u| all | bit_of(u.register()))
}

/// The bit of a general register.
fn bit_of(r: Register) -> u16 {
    if r.is_gpr() {
        1 << r.full_register().number()
    } else {
        0
    }
}

/// What an instruction that writes these registers does to the base of addresses.
fn change_of(insn: &Instruction, written: u16, key: Key) -> Change {
    if written & (bit_of(key.base) | bit_of(key.index)) == 0 {
        return Change::Nothing;
    }
    let changed = insn.op0_register();
    let register = insn.op0_kind() == OpKind::Register;
    let times = match register {
        _ if key.index == key.base => return Change::Other,
        true if changed == key.base => 1,
        true if changed == key.index => i64::from(key.scale),
        _ => 0,
    };
    let immediate = || match insn.op1_kind() {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(insn.immediate(1) as i64),
        _ => None,
    };
    let added = match insn.mnemonic() {
        M::Push | M::Call if key.base == Register::RSP => Some(-8),
        M::Pop if key.base == Register::RSP && !key.has(changed) => Some(8),
        _ if times == 0 => None,
        M::Add => immediate().map(|n| n.wrapping_mul(times)),
        M::Sub => immediate().map(|n| n.wrapping_mul(-times)),
        M::Inc => Some(times),
        M::Dec => Some(-times),
        M::Lea => {
            let same = insn.memory_base() == changed && insn.memory_index() == Register::None;
            let at = insn.memory_displacement64() as i64;
            same.then(|| at.wrapping_mul(times))
        }
        _ => None,
    };
    match added.filter(|n| n.unsigned_abs() < 1 << 16) {
        Some(n) => Change::Adds(n),
        None => Change::Other,
    }
}

/// Registers that windows can be in.
const REGISTERS: [Reg; 2] = [ADDRESS, SLOT];
/// How many instructions are looked at ahead.
pub(super) const AHEAD: usize = 80;

/// An instruction of a block, and what it means for windows.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub insn: Instruction,
    access: Access,
    /// The general registers that it writes, a bit each.
    written: u16,
}

/// Instructions one after the other.
pub(super) type Path = Vec<Step>;

impl Step {
    /// `page` is the offset in the page of what RIP counts from.
    pub fn new(cpu: &Cpu, info: &mut InstructionInfoFactory, insn: Instruction, page: i64) -> Self {
        Self {
            insn,
            access: access_of(cpu, info, &insn, page),
            written: written_by(info, &insn),
        }
    }
}

/// What follows says of a window.
struct Ahead {
    window: Window,
    /// Further accesses in it, before the first one that may take its register, and all.
    near: u32,
    uses: u32,
    /// The last one comes behind one that does.
    apart: bool,
}

impl Translator<'_> {
    /// The windows that are left.
    pub(super) fn windows(&self) -> Windows {
        self.windows.map(|open| {
            let open = open?;
            let reg = open.reg.filter(|r| self.a.keeps(*r));
            (open.saved || reg.is_some()).then_some(Open { reg, ..open })
        })
    }

    /// Takes up windows known from elsewhere.
    pub(super) fn take_up(&mut self, windows: Windows) {
        self.windows = windows;
        for reg in windows.into_iter().flatten().filter_map(|w| w.reg) {
            self.a.keep_in(reg);
        }
    }

    /// Where the host finds the eight bytes at a distance from the stack pointer; checked. [`RCX`] is free.
    pub(super) fn on_stack(&mut self, at: i8, write: bool) -> Mem {
        if let Some(there) = self.windowed(Key::STACK, stack_range(at, write)) {
            return there;
        }
        match at {
            0 => self.a.mov(ADDRESS, RSP),
            at => self.a.lea(ADDRESS, Mem::at(RSP, i32::from(at))),
        }
        self.check(8, write, false);
        Mem::indexed(SLOT, ADDRESS, 0, 0)
    }

    /// Where the host finds the operand in memory, if a window says so.
    pub(super) fn by_window(&mut self, insn: &Instruction, range: Range) -> Option<Mem> {
        let at = displacement(insn, self.in_page(0));
        self.windowed(Key::of(insn), Range { at, ..range })
    }

    fn windowed(&mut self, key: Key, range: Range) -> Option<Mem> {
        if !self.has_windows() {
            return None;
        }
        self.windows = self.windows();
        for place in 0..WINDOWS {
            if let Some(open) = self.windows[place]
                && open.window.covers(key, range)
            {
                let at = i32::try_from(range.at - open.window.origin).ok()?;
                let reg = open.reg.unwrap_or_else(|| {
                    let to = self.register_for_window();
                    self.a.load(to, window_word(place));
                    self.leads(place, to);
                    to
                });
                return Some(Mem::at(reg, at));
            }
        }
        let wide = |r: Register| matches!(r, Register::None | Register::RIP) || r.is_gpr64();
        if !wide(key.base) || !wide(key.index) {
            return None;
        }
        let ahead = self.look_ahead(key, range);
        if ahead.near == 0 && ahead.uses < 2 {
            // A check by a site is better than one that hardly anything else uses.
            return None;
        }
        let window = ahead.window;
        let at = i32::try_from(range.at - window.origin).ok()?;
        let to = self.register_for_window();
        let place = self.place_for_window();
        self.windows[place] = None;
        self.open(window, to).ok()?;
        if ahead.apart {
            self.a.store(window_word(place), to);
        }
        self.windows[place] = Some(Open {
            window,
            reg: None,
            saved: ahead.apart,
        });
        self.leads(place, to);
        Some(Mem::at(to, at))
    }

    /// A register leads to a window from now on, and to no other.
    fn leads(&mut self, place: usize, to: Reg) {
        for (n, open) in self.windows.iter_mut().enumerate() {
            if let Some(w) = open {
                if n == place {
                    w.reg = Some(to);
                } else if w.reg == Some(to) {
                    w.reg = None;
                }
            }
        }
        self.a.keep_in(to);
        self.windows = self.windows();
    }

    /// The register that no window is in, or the one that will be wanted latest.
    fn register_for_window(&self) -> Reg {
        let wanted = REGISTERS.map(|reg| {
            let open = self.windows.iter().flatten();
            let mut there = open.filter(|w| w.reg == Some(reg));
            there.next().map_or(usize::MAX, |w| self.next_use(w.window))
        });
        REGISTERS[usize::from(wanted[1] > wanted[0])]
    }

    /// The place of no window, or of the one that will be wanted latest.
    fn place_for_window(&self) -> usize {
        let wanted = |open: &Option<Open>| match open {
            Some(open) => self.next_use(open.window),
            None => usize::MAX,
        };
        let places = self.windows.iter().enumerate();
        let latest = places.max_by_key(|(_, open)| (wanted(open), open.is_none()));
        latest.map_or(0, |(place, _)| place)
    }

    /// How many instructions further on a window is used.
    fn next_use(&self, mut window: Window) -> usize {
        let path = self.path.get(self.op + 1..).unwrap_or_default();
        for (number, step) in path.iter().enumerate() {
            match step.access {
                Access::Some(key, range) if window.covers(key, range) => return number,
                _ => {}
            }
            match change_of(&step.insn, step.written, window.key) {
                Change::Nothing => {}
                Change::Adds(n) => window = window.moved(n),
                Change::Other => break,
            }
        }
        usize::MAX
    }

    /// What window serves for an access and those that follow it.
    fn look_ahead(&self, key: Key, range: Range) -> Ahead {
        let size = i64::from(range.size);
        let window = Window {
            key,
            origin: range.at,
            low: range.at,
            high: range.at + size,
            write: range.write,
            aligned: if range.aligned { size } else { 1 },
        };
        let mut ahead = Ahead {
            window,
            near: 0,
            uses: 0,
            apart: false,
        };
        // With other vCPUs a store takes the registers.
        let takes = |range: Range| range.write && self.cpu.shared;
        let path = self.path.get(self.op..).unwrap_or_default();
        let (mut moved, mut others) = (0, takes(range));
        for (number, step) in path.iter().take(AHEAD).enumerate() {
            if number > 0 {
                match step.access {
                    Access::None => {}
                    Access::Some(other, next) if other == key => {
                        let next = Range {
                            at: next.at + moved,
                            ..next
                        };
                        let Some(wider) = ahead.window.with(next) else {
                            break;
                        };
                        ahead.window = wider;
                        ahead.uses += 1;
                        ahead.near += u32::from(!others);
                        ahead.apart = others;
                        others |= takes(next);
                    }
                    Access::Some(..) => others = true,
                    Access::Other => break,
                }
            }
            match change_of(&step.insn, step.written, key) {
                Change::Nothing => {}
                Change::Adds(n) => moved += n,
                Change::Other => break,
            }
        }
        ahead.window.origin = ahead.window.low;
        ahead
    }

    /// Checks a window and has a register lead to it. Changes no other but [`RCX`].
    fn open(&mut self, w: Window, to: Reg) -> Done {
        let low = i32::try_from(w.low).map_err(|_| super::ByHandler)?;
        let key = (w.key.base, w.key.index, w.key.scale, w.key.segment);
        self.linear((to, RCX), key, low)?;
        let a = &mut self.a;
        a.extract(RCX, to, mask(0));
        a.load(RCX, by_rcx(if w.write { WRITE } else { READ }));
        // The last byte; or where the last aligned item is, which tells as much of it.
        let last = (w.high - w.low - w.aligned) as i32;
        a.lea(RCX, Mem::indexed(RCX, to, 0, last));
        let bits = match w.aligned {
            1 => mask(1),
            n => alignment(n.trailing_zeros() as u8),
        };
        a.extract(RCX, RCX, bits);
        let miss = a.jump_unless_zero(0);
        a.extract(RCX, to, mask(0));
        a.load(RCX, by_rcx(PLACE));
        a.lea(to, Mem::indexed(to, RCX, 0, 0));
        a.keep_in(to);
        self.again(miss);
        Ok(())
    }

    /// An instruction was written: what it does to windows.
    pub(super) fn follow_windows(&mut self, insn: &Instruction) {
        let written = written_by(&mut self.info, insn);
        self.windows = self.windows().map(|open| {
            let open = open?;
            let w = open.window;
            if insn.mnemonic() == M::Swapgs && w.key.segment != Register::None {
                return None;
            }
            match change_of(insn, written, w.key) {
                Change::Nothing => Some(open),
                Change::Adds(n) => Some(open.moved(n)),
                Change::Other => None,
            }
        });
    }

    /// A return address was pushed, and the block goes on elsewhere.
    pub(super) fn stack_grows(&mut self) {
        self.windows = self.windows().map(|open| match open {
            Some(open) if open.window.key == Key::STACK => Some(open.moved(-8)),
            other => other,
        });
    }
}

/// A field of the view by the slot in [`RCX`] instead of [`SLOT`].
fn by_rcx(field: Mem) -> Mem {
    Mem {
        index: field.index.map(|(_, scale)| (RCX, scale)),
        ..field
    }
}

/// The displacement of an operand in memory; seen from the start of the page if it is relative to RIP, which counts
/// from `page`.
fn displacement(insn: &Instruction, page: i64) -> i64 {
    let at = insn.memory_displacement64() as i64;
    if insn.memory_base() == Register::RIP {
        page + at
    } else {
        at
    }
}

fn stack_range(at: i8, write: bool) -> Range {
    Range {
        at: i64::from(at),
        size: 8,
        write,
        aligned: false,
    }
}

/// What an instruction further on accesses.
fn access_of(
    cpu: &Cpu,
    info: &mut InstructionInfoFactory,
    insn: &Instruction,
    page: i64,
) -> Access {
    let native = table::row(insn.mnemonic()).is_some_and(|r| {
        let other = matches!(r.bind, Bind::StringOrHost(_)) && !insn.is_string_instruction();
        r.strategy == Strategy::Native && !other
    });
    let facts = (!native).then(|| cpu.vectors.facts(insn, info)).flatten();
    if !native && facts.is_none() || insn.is_string_instruction() {
        return Access::Other;
    }
    let stack = |at, write| Access::Some(Key::STACK, stack_range(at, write));
    let register = insn.op0_kind() == OpKind::Register && insn.op0_register().is_gpr64();
    let memory = insn.op_kinds().any(|k| k == OpKind::Memory);
    match insn.mnemonic() {
        M::Push if memory || insn.stack_pointer_increment() != -8 => return Access::Other,
        M::Push => return stack(-8, true),
        M::Pop if register => return stack(0, false),
        M::Ret if insn.code() == Code::Retnq => return stack(0, false),
        M::Call if insn.op0_kind() == OpKind::NearBranch64 => return stack(-8, true),
        M::Pop | M::Ret | M::Call | M::Leave | M::Pushfq => return Access::Other,
        M::Lea | M::Nop | M::Reservednop => return Access::None,
        M::Div | M::Idiv | M::Cmpxchg16b | M::Swapgs | M::Cli | M::Cld | M::Std => {
            return Access::Other;
        }
        _ if !memory => return Access::None,
        _ => {}
    }
    let used = info.info(insn).used_memory();
    let [used] = used else {
        return Access::Other;
    };
    let size = used.memory_size().size();
    let write = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
    let bits = matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc);
    if !(1..=32).contains(&size) || bits && insn.op1_kind() == OpKind::Register {
        return Access::Other;
    }
    let locked = insn.has_lock_prefix() || insn.mnemonic() == M::Xchg;
    let range = Range {
        at: displacement(insn, page),
        size: size as u8,
        write,
        aligned: size > 1 && (locked || facts.is_some_and(|f| f.alignment > 1)),
    };
    Access::Some(Key::of(insn), range)
}

/// What an instruction accesses in memory.
#[derive(Clone, Copy)]
enum Access {
    None,
    Some(Key, Range),
    /// More than one place, or it wants the registers for something else.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(at: i64, size: u8) -> Range {
        Range {
            at,
            size,
            write: false,
            aligned: false,
        }
    }

    fn window(at: i64, size: u8) -> Window {
        Window {
            key: Key::STACK,
            origin: at,
            low: at,
            high: at + i64::from(size),
            write: false,
            aligned: 1,
        }
    }

    #[test]
    fn covers_what_was_checked_and_no_more() {
        let w = window(8, 16);
        assert!(w.covers(Key::STACK, range(8, 16)));
        assert!(!w.covers(Key::STACK, range(7, 8)));
        assert!(!w.covers(Key::STACK, range(17, 8)));
        let other = Key {
            index: Register::RAX,
            ..Key::STACK
        };
        assert!(!w.covers(other, range(8, 8)));
        let write = Range {
            write: true,
            ..range(8, 8)
        };
        assert!(!w.covers(Key::STACK, write), "the right to write");
        let w = w.with(write).unwrap();
        assert!(w.covers(Key::STACK, write));
        assert!(w.moved(8).covers(Key::STACK, range(0, 16)));
        assert!(!w.moved(8).covers(Key::STACK, range(8, 16)));
    }

    #[test]
    fn aligned_accesses_need_an_aligned_window() {
        let aligned = |at| Range {
            aligned: true,
            ..range(at, 16)
        };
        let w = window(4, 8);
        assert!(!w.covers(Key::STACK, aligned(4)));
        let w = w.with(aligned(0x20)).unwrap();
        // Whole items, with what was there before among them.
        assert_eq!((w.low, w.high, w.aligned), (0, 0x30, 16));
        assert!(w.covers(Key::STACK, aligned(0x10)));
        assert!(!w.covers(Key::STACK, aligned(8)));
        assert!(w.with(aligned(8)).is_none(), "both cannot be");
        let wide = Range {
            aligned: true,
            ..range(0x40, 32)
        };
        let w = w.with(wide).unwrap();
        assert_eq!((w.low, w.high, w.aligned), (0, 0x60, 32));
        assert!(w.covers(Key::STACK, aligned(0x10)));
        assert!(w.with(range(WIDEST, 8)).is_none(), "too wide");
    }
}
