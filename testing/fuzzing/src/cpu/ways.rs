//! Two ways to run the same code, and what they must agree on.
//!
//! A processor may execute instruction by instruction, in blocks of any length, or as translated code: nothing a guest
//! does may tell one from the other. [`compare`] has two machines run the same code, each in its [`Way`], and looks at
//! both wherever both have executed as much.

use std::sync::atomic::Ordering;

use guestmem::{Gpa, RamOffset};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use softcpu::cpu::sreg;
use vcpu::{RunExit, VcpuState};
use x86defs::cr::cr0;

use super::modes::TABLES;
use super::{Events, FAR, FAR_BYTES, Machine, RAM_BYTES};
use crate::board::bytes;

/// The most turns of either side until both are at the same place again.
const FOLLOW: usize = 1 << 16;
/// Instructions between two polls of a side that executes one after the other: where it lets long repeats give way.
const SINGLY: u64 = 64;
/// Rounds without an instruction after which there will be none: the processor waits.
const IDLE: u32 = 4;

/// How a machine executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Blocks, until so many instructions are executed; hot ones by the machine's executor, if it has one.
    Blocks(u64),
    /// Instruction by instruction.
    Singly,
}

/// A machine that runs in one way.
pub struct Side {
    /// The machine.
    pub machine: Machine,
    /// How it runs.
    pub way: Way,
    before: u64,
    exit: Option<RunExit>,
    /// A repeated string instruction has stored over itself before it gave way: what goes on there is another
    /// instruction.
    rewritten: bool,
    /// Whether it looks for instructions that leave flags undefined, and whether there was one.
    looks: bool,
    undefined: bool,
}

/// The most bytes of an instruction.
const LONGEST: u64 = 15;

/// Where a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    executed: u64,
    /// In a repeated string instruction: its address and what is left of it.
    repeats: Option<(u64, u64)>,
}

/// An instruction and what it is fetched by.
struct Looking {
    executed: u64,
    uncounted: u64,
    first: u64,
    bits: u32,
    by: (u64, u64, u64, u8),
}

impl Side {
    /// That machine, in this way.
    #[must_use]
    pub fn new(machine: Machine, way: Way) -> Self {
        Self {
            machine,
            way,
            before: 0,
            exit: None,
            rewritten: false,
            looks: false,
            undefined: false,
        }
    }

    fn begin(&mut self, start: &VcpuState) {
        let slice = match self.way {
            Way::Blocks(slice) => slice.max(1),
            Way::Singly => SINGLY,
        };
        self.machine.lines.still.store(slice, Ordering::Relaxed);
        self.before = self.machine.begin(start, Events::default());
        self.exit = None;
        self.rewritten = false;
        self.undefined = false;
    }

    fn turn(&mut self) {
        if self.exit.is_none() {
            let before = self.looking();
            let runner = &mut self.machine.runner;
            // Then all code is dropped meanwhile, and nobody knows any more what of it was stored to.
            let dropped = runner.cpu.vectors.full;
            self.exit = match self.way {
                Way::Blocks(_) => runner.turn(),
                Way::Singly => runner.single_step(),
            };
            if self.looks && !self.undefined {
                self.undefined = self.left_undefined(before);
            }
            self.rewritten |=
                self.machine.runner.gave_way() && (dropped || self.stored_to_itself());
        }
    }

    /// The linear address of the next instruction.
    fn first(&self) -> u64 {
        let cpu = &self.machine.runner.cpu;
        match cpu.long64 {
            true => cpu.rip(),
            false => cpu.seg[sreg::CS].base.wrapping_add(cpu.rip()) & 0xffff_ffff,
        }
    }

    fn bits(&self) -> u32 {
        let cpu = &self.machine.runner.cpu;
        match cpu.seg[sreg::CS].access.default_big() {
            _ if cpu.long64 => 64,
            true => 32,
            false => 16,
        }
    }

    /// Where the next instruction is, and what it is fetched by.
    fn looking(&self) -> Looking {
        let cpu = &self.machine.runner.cpu;
        Looking {
            executed: cpu.retired_now(),
            uncounted: cpu.uncounted,
            first: self.first(),
            bits: self.bits(),
            by: (cpu.cr0, cpu.cr3, cpu.cr4, cpu.cpl),
        }
    }

    /// Whether the instruction that was executed there left flags undefined. None did if there was an event instead, and
    /// one that changes what it was fetched by does not.
    fn left_undefined(&mut self, at: Looking) -> bool {
        let now = self.looking();
        let executed = now.executed != at.executed && now.uncounted == at.uncounted;
        if !executed || now.by != at.by {
            return false;
        }
        let (first, bits) = (at.first, at.bits);
        let cpu = &mut self.machine.runner.cpu;
        let Ok(Some(at)) = cpu.fetch_target(first) else {
            return false;
        };
        let mut bytes = [0; LONGEST as usize];
        let count = (cpu.ram.size_bytes() - at.0).min(LONGEST) as usize;
        cpu.ram.read_at(at, &mut bytes[..count]);
        let instruction = Decoder::new(bits, &bytes[..count], DecoderOptions::NONE).decode();
        use Mnemonic as M;
        // OF after a rotation by several bits: also where they are as many as nine or seventeen and change nothing.
        let rotates = matches!(instruction.mnemonic(), M::Rcl | M::Rcr | M::Rol | M::Ror);
        instruction.rflags_undefined() != 0 || rotates
    }

    /// Whether the instruction at RIP was stored to since the last look at the boundary.
    fn stored_to_itself(&mut self) -> bool {
        let first = self.first();
        let cpu = &mut self.machine.runner.cpu;
        if cpu.code_pages.stale.is_empty() {
            return false;
        }
        // Its first page is mapped, or it would not have been executed; a walk for the second might change an entry.
        let ends = [
            cpu.fetch_target(first).ok().flatten(),
            cpu.tlb.fetch_hit(first.wrapping_add(LONGEST - 1)),
        ];
        ends.into_iter().flatten().any(|at| {
            let near =
                |start: u64, len: u64| start < at.0 + LONGEST && at.0 < start + len + LONGEST;
            let mut stale = cpu.code_pages.stale.iter();
            stale.any(|stored| near(stored.start.0, stored.len))
        })
    }

    /// Whether what a guest sees depends on when the tables of translations are walked (SDM Vol 3 4.10.2.3, 4.8): they
    /// were changed, they are code too, or they are where a case put them.
    fn loose_tables(&self) -> bool {
        let machine = &self.machine;
        let cpu = &machine.runner.cpu;
        if cpu.cr0 & cr0::PG == 0 {
            return false;
        }
        let code = |at| cpu.code_pages.holds_code(RamOffset(at));
        let len = (TABLES.end - TABLES.start) as usize;
        let now = bytes(&machine.ram, TABLES.start, len);
        let before = &machine.image[TABLES.start as usize..][..len];
        // Accessed and dirty bits are bits 5 and 6 of entries of 4 and of 8 bytes.
        let kept = |at: usize| if at.is_multiple_of(4) { !0x60 } else { 0xff };
        let changed = (0..len).any(|at| (now[at] ^ before[at]) & kept(at) != 0);
        changed || !TABLES.contains(&(cpu.cr3 & !0xfff)) || TABLES.step_by(4096).any(code)
    }

    fn place(&self) -> Place {
        let runner = &self.machine.runner;
        let count = || (runner.cpu.rip(), runner.cpu.regs[softcpu::cpu::gpr::RCX]);
        Place {
            executed: self.machine.retired_since(self.before),
            repeats: runner.gave_way().then(count),
        }
    }

    fn accesses(&self) -> u64 {
        self.machine.lines.accesses.load(Ordering::Relaxed)
    }
}

/// What two sides agreed on.
pub struct Agreed {
    /// How both ended, if they did.
    pub exit: Option<RunExit>,
    /// The state of both.
    pub state: VcpuState,
    /// Instructions of each.
    pub executed: u64,
    /// How often they were compared.
    pub compared: u64,
    /// How often a repeated string instruction of the first gave way and both met in it or behind it.
    pub repeats: u64,
    /// They parted in a repeated string instruction: the end came inside one where only one side gave way, or it stored
    /// over itself before it gave way, and what it went on as depends on when that was. Or they differed where tables of
    /// translations were changed or executed, or where one side translates and flags were undefined. The state is that
    /// of the last place where both were.
    pub apart: bool,
}

/// Runs both sides from `start`, until they end or have executed `most` instructions or a block more. They are compared
/// wherever the first is after a turn: all of the state, and the board's accesses; at the end RAM.
///
/// Inside a repeated string instruction either side gives way where it likes; they meet behind it.
///
/// # Errors
/// What they disagree on.
pub fn compare(
    one: &mut Side,
    other: &mut Side,
    start: &VcpuState,
    most: u64,
) -> Result<Agreed, String> {
    one.begin(start);
    other.begin(start);
    // Translated code leaves flags as the host's processor does.
    let translates = one.machine.translates || other.machine.translates;
    for side in [&mut *one, &mut *other] {
        side.looks = translates && side.way == Way::Singly;
    }
    let mut agreed = Agreed {
        exit: None,
        state: start.clone(),
        executed: 0,
        compared: 0,
        repeats: 0,
        apart: false,
    };
    let done = agree(one, other, most, &mut agreed);
    let loose = || one.loose_tables() || other.loose_tables();
    let undefined = one.undefined || other.undefined;
    if one.rewritten || other.rewritten || done.is_err() && (undefined || loose()) {
        agreed.apart = true;
        return Ok(agreed);
    }
    done.map(|()| agreed)
}

fn agree(one: &mut Side, other: &mut Side, most: u64, agreed: &mut Agreed) -> Result<(), String> {
    let (mut idle, mut last) = (0, one.place());
    while agreed.exit.is_none() && agreed.executed < most && idle < IDLE {
        one.turn();
        let repeats = one.place().repeats.is_some();
        let met = meet(one, other);
        if one.rewritten || other.rewritten {
            return Ok(());
        }
        let (place, there) = (one.place(), other.place());
        if !met {
            agreed.apart = place.repeats.is_some() || there.repeats.is_some();
            if agreed.apart {
                return Ok(());
            }
            let states = differences(&one.machine.state(), &other.machine.state());
            let (here, there) = (place.executed, there.executed);
            return Err(format!("{here} and {there} instructions:\n{states}"));
        }
        if one.exit.is_some() {
            other.turn();
        }
        agreed.repeats += u64::from(repeats);
        idle = if place == last { idle + 1 } else { 0 };
        last = place;
        let executed = place.executed;
        if place.repeats.is_some() && executed < most {
            // Most of the iterations of a long one need no look.
            continue;
        }
        let (state, expected) = (one.machine.state(), other.machine.state());
        if state != expected || one.exit != other.exit {
            let (exit, other) = (one.exit, other.exit);
            let states = differences(&state, &expected);
            return Err(format!(
                "after {executed} instructions: {exit:?} and {other:?}\n{states}"
            ));
        }
        if one.accesses() != other.accesses() {
            return Err(format!("accesses before instruction {executed}"));
        }
        agreed.exit = one.exit;
        agreed.state = state;
        agreed.executed = executed;
        agreed.compared += 1;
    }
    memory(&mut one.machine, &mut other.machine)
}

/// Has the one that is behind go on until both are at the same place.
fn meet(one: &mut Side, other: &mut Side) -> bool {
    for _ in 0..FOLLOW {
        let (here, there) = (one.place(), other.place());
        if here == there {
            return true;
        }
        let behind = here.executed < there.executed
            || here.executed == there.executed
                && match (here.repeats, there.repeats) {
                    (Some((_, here)), Some((_, there))) => here > there,
                    (here, _) => here.is_some(),
                };
        let side = if behind { &mut *one } else { &mut *other };
        if side.exit.is_some() {
            return false;
        }
        side.turn();
    }
    false
}

fn memory(one: &mut Machine, other: &mut Machine) -> Result<(), String> {
    for (from, len) in [(0, RAM_BYTES), (FAR.0, FAR_BYTES)] {
        let [here, there] = [&mut *one, &mut *other].map(|side| {
            let bytes = &mut side.buffer[..len as usize];
            side.ram.read(Gpa(from), bytes).expect("it is RAM");
            &*bytes
        });
        if here == there {
            continue;
        }
        let mut pairs = here.iter().zip(there);
        let at = pairs.position(|(here, there)| here != there).unwrap_or(0);
        let (address, here, there) = (from + at as u64, here[at], there[at]);
        return Err(format!("memory at {address:#x}: {here:#x} and {there:#x}"));
    }
    Ok(())
}

/// The lines in which two states differ.
fn differences(one: &VcpuState, other: &VcpuState) -> String {
    let (one, other) = (format!("{one:#x?}"), format!("{other:#x?}"));
    let pairs = one.lines().zip(other.lines());
    let different = pairs.filter(|(a, b)| a != b);
    different
        .map(|(a, b)| format!("{} {}\n", a.trim(), b.trim()))
        .collect()
}
