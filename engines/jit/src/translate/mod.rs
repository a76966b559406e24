//! One block: its instructions with host registers for the guest's, checks before memory, ways out.
//!
//! Between two guest instructions the host's arithmetic flags are the guest's. So whatever is added leaves them alone:
//! LEA and JRCXZ instead of ADD and CMP.
//!
//! An instruction that cannot be written again has its handler called. So has one whose access misses the TLB, whole,
//! from the *cold* code behind the block; it goes on behind the instruction then. Nothing of an instruction is done
//! before its checks, so a handler always begins it anew. What executes vector instructions natively is in `vector`,
//! what follows a store in `written`.

mod across;
mod checked;
mod memory;
mod plain;
mod plan;
mod region;
mod renaming;
mod rewrite;
mod string;
mod system;
mod transfer;
mod vector;
mod window;
mod written;
mod x87;

use std::collections::BTreeMap;

use iced_x86::{Decoder, Instruction, InstructionInfoFactory};
use softcpu::code::{Op, Source};
use softcpu::cpu::{Cpu, RIP};
use softcpu::insn::Class;
use softcpu::insn::table::{self, Bind, Strategy};

use crate::asm::{Asm, Mem, Reg};
use crate::layout::{ADDRESS, BUDGET, POLL, RCX, SLOT, register};
use crate::record::{Record, What};
use crate::sites::Check;
use crate::stubs::Stubs;
use region::Joining;
pub use region::{Windowing, translate_region};
use vector::{Lent, Request};
use window::{NO_WINDOWS, Path, Windows};
use written::Told;

/// A way out that can be joined to a block of the same page.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Offset of the jump's distance in the code.
    pub jump: usize,
    /// Offset of where it goes while it is not joined.
    pub leave: usize,
}

/// A translated block.
pub struct Translation {
    /// The code; it is entered at its first byte.
    pub code: Vec<u8>,
    /// What its handlers are called with.
    pub records: Vec<Record>,
    /// Its ways out.
    pub exits: Vec<Exit>,
    /// Offset of the code that leaves before the block.
    pub leave: usize,
}

/// Where numbers of records and ways go on.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// First record.
    pub record: u32,
    /// First way.
    pub way: u32,
}

/// A jump out of line.
#[derive(Clone, Copy)]
struct Away {
    /// Offset of its distance.
    from: usize,
    /// It may be because what is read lies in two pages.
    crossing: Option<Crossing>,
}

impl From<usize> for Away {
    fn from(from: usize) -> Self {
        Self {
            from,
            crossing: None,
        }
    }
}

/// A read that may be of two pages.
#[derive(Clone, Copy)]
struct Crossing {
    /// [`crate::crossing::Crossings::function`]
    function: u64,
    /// Behind its check.
    back: usize,
}

/// Out of line: the handler of a record, then back.
struct Cold {
    /// What leads here.
    away: Away,
    /// Number of the record.
    record: u32,
    /// Where to go on; `None` if the handler ends the block.
    back: Option<usize>,
    /// Which registers hold which guest registers there.
    held: Vec<(Reg, u8)>,
    /// What is relied upon there.
    given: Lent,
    /// The operation there, by its place in the block.
    next: usize,
}

struct Translator<'a> {
    a: Asm,
    stubs: &'a Stubs,
    source: &'a Source<'a>,
    cpu: &'a Cpu,
    info: InstructionInfoFactory,
    numbers: Numbers,
    records: Vec<Record>,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    /// Checks before memory in joined blocks.
    checks: Vec<Check>,
    /// Jumps to code that leaves: offset of the distance, offset in the page of what is next, how.
    ways: Vec<(usize, i64, Leaving)>,
    /// Misses of the instruction being translated.
    misses: Vec<Away>,
    record: u32,
    /// Which instruction that is.
    op: usize,
    /// What of the host's registers is the guest's at this place.
    given: Lent,
    requests: Vec<Request>,
    told: Vec<Told>,
    /// Records of what is left of the block from an operation on.
    rests: BTreeMap<usize, u32>,
    /// Offset of the block's first byte.
    start: usize,
    /// The region it is part of.
    joining: Option<Joining<'a>>,
    /// Bytes that were checked, in a joined copy.
    windows: Windows,
    /// What is likely to be executed from the beginning of the block on, in a joined copy.
    path: Path,
}

/// How a block is left between two.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    /// Before it.
    Before,
    /// Behind it.
    Behind,
    /// By a way out with this number.
    By(u32),
}

/// What is done about a block of another page that is not at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Miss {
    /// The code is left.
    Boundary,
    /// The instruction is left to its handler, which checks the address.
    Handler,
}

/// Cannot be translated by itself: the handler does it.
struct ByHandler;
type Done = Result<(), ByHandler>;

/// How many bytes an instruction takes behind its checks, as good as always.
const fn room(last: bool) -> usize {
    if last { 100 } else { 60 }
}

/// Translates a block to run at `origin`.
pub fn translate(
    cpu: &Cpu,
    source: &Source,
    stubs: &Stubs,
    origin: u64,
    numbers: Numbers,
) -> Option<Translation> {
    let once = |near: bool| {
        let mut t = Translator::new(cpu, source, stubs, origin, numbers);
        t.a.near = near;
        t.block()?;
        let leave = t.out_of_line();
        Some((t, leave))
    };
    let (mut t, mut leave) = once(true)?;
    if t.a.out_of_reach {
        (t, leave) = once(false)?;
    }
    Some(Translation {
        code: t.a.code,
        records: t.records,
        exits: t.exits,
        leave,
    })
}

impl<'a> Translator<'a> {
    fn new(
        cpu: &'a Cpu,
        source: &'a Source<'a>,
        stubs: &'a Stubs,
        origin: u64,
        numbers: Numbers,
    ) -> Self {
        Self {
            a: Asm::new(origin),
            stubs,
            source,
            cpu,
            info: InstructionInfoFactory::new(),
            numbers,
            records: Vec::new(),
            cold: Vec::new(),
            exits: Vec::new(),
            checks: Vec::new(),
            ways: Vec::new(),
            misses: Vec::new(),
            record: 0,
            op: 0,
            given: Lent::default(),
            requests: Vec::new(),
            told: Vec::new(),
            rests: BTreeMap::new(),
            start: 0,
            joining: None,
            windows: NO_WINDOWS,
            path: Path::new(),
        }
    }
}

impl Translator<'_> {
    /// Offset in its page of what is `at` bytes behind the block's start.
    fn in_page(&self, at: i64) -> i64 {
        (self.source.start.0 & 0xfff) as i64 + at
    }

    fn block(&mut self) -> Option<()> {
        let ops = self.source.ops;
        let pseudo = ops.last().is_some_and(|o| o.length == 0 && ops.len() > 1);
        self.prologue((ops.len() - usize::from(pseudo)) as i32);
        self.body()
    }

    /// The instructions.
    fn body(&mut self) -> Option<()> {
        let ops = self.source.ops;
        let pseudo = ops.last().is_some_and(|o| o.length == 0 && ops.len() > 1);
        let instructions = ops.len() - usize::from(pseudo);
        let mut decoder =
            Decoder::with_ip(64, self.source.bytes, 0, self.cpu.vectors.decoder_options());
        let mut insn = Instruction::default();
        for (number, op) in ops[..instructions].iter().enumerate() {
            self.op = number;
            if decoder.position() != usize::from(op.offset) || !decoder.can_decode() {
                // The bytes are not those the block was decoded from.
                return None;
            }
            decoder.decode_out(&mut insn);
            if insn.len() != usize::from(op.length) {
                return None;
            }
            let offsets = decoder.get_constant_offsets(&insn);
            self.note_beginning();
            let last = usize::from(op.offset) + usize::from(op.length) == self.source.bytes.len()
                && !pseudo;
            self.a.keep_in_reach(room(last));
            self.instruction(op, &insn, &offsets, last);
        }
        if pseudo {
            let end = self.source.bytes.len() as i64;
            self.go_to(end, Miss::Boundary);
        }
        Some(())
    }

    /// A jump that is taken if the budget is not more than `least`, or somebody asks.
    fn unless_quiet(&mut self, least: i32) -> usize {
        let a = &mut self.a;
        a.load(ADDRESS, POLL);
        // Negative if there is more.
        a.lea(RCX, Mem::at(BUDGET, -least - 1));
        a.not(RCX);
        a.extract(RCX, RCX, Mem::at(ADDRESS, 0));
        a.unless_set()
    }

    /// Leaves if anything but this block is to be done; else takes its instructions off the budget.
    fn prologue(&mut self, instructions: i32) {
        let leave = self.unless_quiet(0);
        self.compare();
        self.follows();
        let a = &mut self.a;
        a.lea(BUDGET, Mem::at(BUDGET, -instructions));
        let start = self.in_page(0);
        self.ways.push((leave, start, Leaving::Before));
    }

    fn instruction(
        &mut self,
        op: &Op,
        insn: &Instruction,
        offsets: &iced_x86::ConstantOffsets,
        last: bool,
    ) {
        let start = self.a.here();
        let native = table::row(insn.mnemonic()).is_some_and(|r| {
            // Vector instructions that share their mnemonic have no row.
            let other = matches!(r.bind, Bind::StringOrHost(_)) && !insn.is_string_instruction();
            r.strategy == Strategy::Native && !other
        }) && self.cpu.vectors.has(insn.code());
        self.misses.clear();
        self.record = self.numbers.record + self.records.len() as u32;
        let exits = (self.exits.len(), self.ways.len(), self.requests.len());
        let (told, labels) = (self.told.len(), self.marks());
        let checks = self.checks.len();
        let vectors = &self.cpu.vectors;
        let facts = (!native && !last)
            .then(|| vectors.facts(insn, &mut self.info))
            .flatten();
        let at = usize::from(op.offset);
        let bytes = &self.source.bytes[at..at + usize::from(op.length)];
        let varying = self.source.checked.and_then(|c| c.varying_of(self.op));
        let done = if let Some(varying) = varying {
            self.with_value(insn, varying)
        } else if let Some(facts) = facts {
            if matches!(facts.class, Class::X87 | Class::X87NoWait) {
                self.x87(op, insn, bytes, &facts)
            } else {
                self.vector(insn, bytes, offsets, &facts)
            }
        } else if vector::is_control(insn) && vectors.has(insn.code()) {
            self.vector_control(insn)
        } else if !native {
            Err(ByHandler)
        } else if last {
            self.transfer(op, insn, bytes)
        } else {
            self.plain(insn, bytes, offsets)
        };
        let mut needs_record = !self.misses.is_empty();
        if done.is_err() && self.is_joined() {
            self.record = self.record_of_exact();
        }
        if done.is_err() {
            self.a.truncate(start);
            self.exits.truncate(exits.0);
            self.ways.truncate(exits.1);
            self.requests.truncate(exits.2);
            self.told.truncate(told);
            self.back_to(labels);
            self.checks.truncate(checks);
            self.misses.clear();
            needs_record = true;
            self.exchange_back();
            self.call_handler(self.record);
            if self.is_renamed() && !last {
                self.exchange();
            }
            self.given = Lent::default();
            // It may have changed what pages are where.
            self.windows = NO_WINDOWS;
        }
        if self.is_joined() {
            let misses = std::mem::take(&mut self.misses);
            self.follow_windows(insn);
            return self.by_exact(&misses, exits.2, told);
        }
        let (number, op_number) = (self.record, self.op);
        // Its time is not known before.
        let repeats = insn.is_string_instruction() && native;
        let asks = repeats || done.is_err() && !last;
        if let Some(exact) = self.exact() {
            exact.asks |= asks;
            if needs_record {
                exact.records.insert(op_number, number);
            }
        }
        let back = (!last).then(|| self.a.here());
        let held: Vec<_> = self.a.holders().collect();
        for away in std::mem::take(&mut self.misses) {
            self.cold.push(Cold {
                away,
                record: self.record,
                back,
                held: held.clone(),
                given: self.given,
                next: self.op + 1,
            });
        }
        if needs_record {
            let flags = insn.rflags_read() != 0 || insn.rflags_modified() != 0;
            let vector = table::row(insn.mnemonic()).is_none();
            let flags = flags || !(native || vector);
            self.records.push(Record {
                block: self.source.index,
                calls: 0,
                op: self.op as u16,
                mnemonic: insn.mnemonic() as u16,
                what: What::NONE
                    .and_if(flags, What::FLAGS)
                    .and_if(last, What::LAST)
                    .and_if(done.is_ok(), What::NATIVE),
            });
        }
    }

    fn call_handler(&mut self, record: u32) {
        self.a.set(RCX, record);
        self.a.call(self.stubs.helper);
    }

    /// The record of what is left of the block from an operation on.
    fn rest(&mut self, from: usize) -> u32 {
        let number = self.numbers.record + self.records.len() as u32;
        if let Some(known) = self.rests.get(&from) {
            return *known;
        }
        self.rests.insert(from, number);
        self.records.push(Record {
            block: self.source.index,
            calls: 0,
            op: from as u16,
            mnemonic: 0,
            what: What::REST,
        });
        number
    }

    /// Gives the offset of the code that leaves before the block.
    fn out_of_line(&mut self) -> usize {
        self.a.island();
        for cold in std::mem::take(&mut self.cold) {
            let here = self.a.here();
            self.a.aim(cold.away.from, here);
            if let Some(crossing) = cold.away.crossing {
                self.a.call(crossing.function);
                let there = self.a.if_zero();
                let other = self.a.jump_short();
                self.a.land(there);
                let back = self.a.origin + crossing.back as u64;
                self.a.jump(back);
                self.a.land(other);
                if let Some(exact) = self.exact() {
                    exact.crossings.insert(cold.next - 1, here);
                }
            }
            let here = self.a.here();
            if let Some(exact) = self.exact() {
                exact.misses.entry(cold.next - 1).or_insert(here);
            }
            self.call_handler(cold.record);
            if let Some(back) = cold.back {
                self.request(cold.given, cold.next);
                for (to, guest) in cold.held {
                    self.a.load(to, register(usize::from(guest)));
                }
                let to = self.a.origin + back as u64;
                self.a.jump(to);
            }
        }
        self.tell();
        for request in std::mem::take(&mut self.requests) {
            let here = self.a.here();
            self.a.aim(request.from, here);
            if let Some(exact) = self.exact() {
                exact.requests.insert(request.op, here);
            }
            self.request(request.given, request.op);
            let to = self.a.origin + request.back as u64;
            self.a.jump(to);
        }
        let leave = self.ways_out();
        leave.expect("every block has a prologue")
    }

    /// The code behind jumps out of the block. Gives the offset of that which leaves before the block, if it is asked
    /// for.
    fn ways_out(&mut self) -> Option<usize> {
        let mut leave = None;
        for (from, offset, way) in std::mem::take(&mut self.ways) {
            let here = self.a.here();
            self.a.aim(from, here);
            self.a.set_signed(ADDRESS, offset as i32);
            match way {
                Leaving::Before => {
                    leave = Some(here);
                    self.a.jump(self.stubs.boundary);
                }
                Leaving::Behind => {
                    self.a.jump(self.stubs.boundary);
                }
                Leaving::By(way) => {
                    if let Some(exit) = self.exits.get_mut((way - self.numbers.way) as usize) {
                        exit.leave = here;
                    }
                    self.a.set(SLOT, way);
                    self.a.jump(self.stubs.way);
                }
            }
        }
        leave
    }
}

const _: () = assert!(RIP == 16);
