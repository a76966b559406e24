//! The same guest interpreted and translated, turn by turn.
//!
//! A case is a guest in 64-bit mode whose code is real code ([`corpus`]), changed and mixed with what programs do
//! seldom ([`pieces`]), and whose handlers grant pages, pass over what cannot be executed, and do what they are asked for
//! ([`handlers`]): go on elsewhere, change translations, CR0, CR3, CR4, breakpoints, and code. Interrupts, NMIs, and
//! stores of devices come between any two turns, and a turn lasts one block or some.
//!
//! What must hold: two machines, of which one interprets and one translates, are in the same state after every turn, at
//! the same time of the guest, and have done the same accesses to the board; at the end all RAM is the same. The
//! contract of a [`BlockExecutor`](softcpu::code::BlockExecutor) is as strict as that.
//!
//! Flags that the manual leaves undefined are the only difference there may be: [`undefined`] has how.

pub mod campaign;
mod case;
pub mod corpus;
mod guest;
mod handlers;
mod pieces;
mod system;
mod undefined;

use std::cmp::Ordering;

use vcpu::{MpState, RunExit, VcpuState};

use self::case::{Action, CHOICES, Case, REAL, SNIPPETS};
use self::system::{
    At, Kind, Processor, System, flags_that_differ, frames_that_differ, level, same_but_flags,
};
use self::undefined::{Undefined, again};
use crate::Target;

/// Instructions that a processor executes in a case, but for the last turn.
const MOST: u64 = 6000;
/// More often than this many turns after another a case has to do something new.
const WAITS: u32 = 6;
/// Turns until both are at the same place.
const MOST_TO_MEET: u32 = 4096;
/// CR4.VMXE: what VMXON makes is no part of the state that is set.
const VMXE: u64 = 1 << 13;

/// The machines that translate: how many processors, from the which run on, in how much room.
const KINDS: [Kind; 6] = [
    kind(1, 0, 1 << 20, 1 << 17),
    checking(kind(1, 2, 1 << 20, 1 << 17), 0),
    // Room for one of the longest regions, and little more.
    checking(kind(1, 0, 0x1_2000, 1 << 17), 0),
    kind(1, 1, 0x1_2000, 700),
    kind(2, 0, 1 << 20, 1 << 17),
    checking(kind(2, 3, 0x1_3000, 2000), 1),
];

const fn kind(vcpus: u32, threshold: u16, area: usize, ops: usize) -> Kind {
    Kind {
        vcpus,
        threshold: Some(threshold),
        area,
        ops,
        often: None,
    }
}

/// The same where code that was changed so often is compared each time it is entered.
const fn checking(kind: Kind, often: u8) -> Kind {
    Kind {
        often: Some(often),
        ..kind
    }
}

/// Two machines that are to agree.
struct Pair {
    interprets: System,
    translates: System,
    /// Does turns again, once there was one to be done again.
    again: Option<System>,
    kind: Kind,
}

impl Pair {
    fn new(kind: Kind, image: &[u8]) -> Self {
        let interprets = Kind {
            threshold: None,
            ops: 1 << 17,
            often: None,
            ..kind
        };
        Self {
            interprets: System::new(interprets, image),
            translates: System::new(kind, image),
            again: None,
            kind: interprets,
        }
    }

    /// Has the one that is behind go on. A store ends a turn where there was code, and a repeated string instruction
    /// gives way there, and one of both may have dropped all of its code meanwhile.
    fn meet(&mut self, vcpu: usize, exits: &mut [Option<RunExit>; 2]) {
        for _ in 0..MOST_TO_MEET {
            let [one, other] =
                [&mut self.interprets, &mut self.translates].map(|s| &mut s.processors[vcpu]);
            let (behind, exit) = match one.place().cmp(&other.place()) {
                Ordering::Less => (one, &mut exits[0]),
                Ordering::Equal => return,
                Ordering::Greater => (other, &mut exits[1]),
            };
            if exit.is_some() {
                return;
            }
            *exit = behind.turn();
        }
    }

    /// What was undefined up to a turn: in it, or in `each`.
    fn undefined(&mut self, case: &Case, ends: &[At], each: bool) -> Undefined {
        let kind = self.kind;
        let system = self
            .again
            .get_or_insert_with(|| System::new(kind, &case.image));
        again(system, case, ends, each)
    }
}

/// What a target has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures(pub [u64; NAMES.len()]);

/// What is counted.
pub const NAMES: [&str; 32] = [
    "cases",
    "blocks translated",
    "regions",
    "turns",
    "instructions",
    "instructions translated",
    "entries",
    "joined",
    "misses",
    "dropped blocks",
    "checked blocks",
    "all dropped",
    "stores told",
    "interrupts",
    "NMIs",
    "page faults",
    "other faults",
    "debug exceptions",
    "double faults",
    "to CPL 0",
    "to CPL 3",
    "to 32-bit code",
    "system calls",
    "flushes",
    "page flushes",
    "stepped turns",
    "on two pages",
    "strings",
    "by an alias",
    "shutdowns",
    "undefined flags",
    "excused",
];

impl Figures {
    fn add(&mut self, name: &str, count: u64) {
        let at = NAMES.iter().position(|n| *n == name);
        self.0[at.expect("it is counted")] += count;
    }

    fn add_profile(&mut self, system: &System) {
        for p in &system.processors {
            let profile = p.runner.profile();
            for (name, ours) in COUNTED {
                self.add(ours, profile.counts.get(name).copied().unwrap_or(0));
            }
        }
    }

    /// Adds another target's.
    pub fn join(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

/// The target.
pub struct Tiers {
    image: Vec<u8>,
    reset: Vec<VcpuState>,
    pairs: Vec<Option<Pair>>,
    /// What was seen.
    pub figures: Figures,
}

impl Default for Tiers {
    fn default() -> Self {
        Self::new()
    }
}

impl Tiers {
    /// The target; its machines are made when they are wanted.
    #[must_use]
    pub fn new() -> Self {
        let image = guest::image();
        let kind = Kind {
            threshold: None,
            ..KINDS[4]
        };
        let mut machine = System::new(kind, &image);
        let states = machine.processors.iter_mut();
        Self {
            reset: states.map(|p| p.runner.cpu.save()).collect(),
            image,
            pairs: KINDS.map(|_| None).into(),
            figures: Figures::default(),
        }
    }

    fn case(&self, data: &[u8]) -> Case {
        Case::new(data, &self.image, &self.reset, &KINDS.map(|k| k.vcpus))
    }

    /// Runs a case.
    ///
    /// # Errors
    /// What interpreted and translated code differ in, and where.
    pub fn try_run(&mut self, data: &[u8]) -> Result<(), String> {
        let case = self.case(data);
        let mut pair = self.pairs[case.kind]
            .take()
            .unwrap_or_else(|| Pair::new(KINDS[case.kind], &self.image));
        let end = run(&mut pair, &case, &mut self.figures);
        self.count(&pair);
        let mut cpus = pair.interprets.processors.iter();
        let vmx = cpus.any(|p| p.runner.cpu.cr4 & VMXE != 0);
        if vmx || !matches!(end, End::Same) {
            self.figures.add_profile(&pair.translates);
        } else {
            self.pairs[case.kind] = Some(pair);
        }
        match end {
            End::Same => Ok(()),
            End::Excused => {
                self.figures.add("excused", 1);
                Ok(())
            }
            End::Different(difference) => Err(format!("{:?}, {difference}", KINDS[case.kind])),
        }
    }

    /// What was seen, with what the translators have counted.
    #[must_use]
    pub fn all_figures(&self) -> Figures {
        let mut all = self.figures;
        for pair in self.pairs.iter().flatten() {
            all.add_profile(&pair.translates);
        }
        all
    }

    fn count(&mut self, pair: &Pair) {
        let f = &mut self.figures;
        f.add("cases", 1);
        for p in &pair.interprets.processors {
            f.add("instructions", p.retired());
        }
        let word = |n: usize| {
            let at = guest::COUNTS as usize + 4 * n;
            let bytes = pair.interprets.buffer[at..at + 4].try_into();
            let count = u64::from(u32::from_le_bytes(bytes.unwrap_or_default()));
            // The guest may have stored there.
            if count > MOST { 0 } else { count }
        };
        for (n, name) in [
            (14, "page faults"),
            (1, "other faults"),
            (13, "other faults"),
            (4, "debug exceptions"),
            (8, "double faults"),
            (0x84 / 4, "to CPL 0"),
            (0x88 / 4, "to CPL 3"),
            (0x8c / 4, "to 32-bit code"),
            (0x90 / 4, "system calls"),
        ] {
            f.add(name, word(n));
        }
    }
}

/// What is counted of a profile.
const COUNTED: [(&str, &str); 12] = [
    ("blocks_translated", "blocks translated"),
    ("regions", "regions"),
    ("instructions_translated", "instructions translated"),
    ("entries", "entries"),
    ("joined", "joined"),
    ("missed", "misses"),
    ("blocks_dropped", "dropped blocks"),
    ("blocks_checked", "checked blocks"),
    ("code_clears", "all dropped"),
    ("stores_told", "stores told"),
    ("tlb_flushes", "flushes"),
    ("tlb_page_flushes", "page flushes"),
];

/// Does what comes from outside before a turn.
pub(crate) fn act(system: &mut System, vcpu: usize, action: &Action) {
    for (at, value) in &action.asked {
        system.write(*at, &value.to_le_bytes());
    }
    if let Some((at, bytes)) = &action.device {
        system.write(*at, bytes);
    }
    let processor = &system.processors[vcpu];
    if action.nmi {
        processor.raise_nmi();
    }
    if let Some(vector) = action.interrupt {
        processor.raise(vector);
    }
}

/// How a case ended.
enum End {
    /// Both were the same all the time.
    Same,
    /// Something undefined was used.
    Excused,
    /// It is a finding.
    Different(String),
}

fn run(pair: &mut Pair, case: &Case, figures: &mut Figures) -> End {
    for system in [&mut pair.interprets, &mut pair.translates] {
        system.begin(&case.image, &case.states);
    }
    let mut ends = Vec::with_capacity(case.turns.len());
    let mut waits = 0;
    for (number, turn) in case.turns.iter().enumerate() {
        let vcpu = turn.vcpu;
        let taken = pair.interprets.processors[vcpu].taken();
        look(&pair.interprets.processors[vcpu], turn.slice, figures);
        let mut exits = [&mut pair.interprets, &mut pair.translates].map(|system| {
            act(system, vcpu, &turn.action);
            let processor = &mut system.processors[vcpu];
            processor.set_slice(turn.slice);
            processor.turn()
        });
        pair.meet(vcpu, &mut exits);
        let [one, other] = [&pair.interprets, &pair.translates].map(|s| &s.processors[vcpu]);
        ends.push(one.at());
        let flags = flags_that_differ(one, other);
        let same = exits[0] == exits[1] && same_but_flags(one, other);
        let frames = frames_that_differ(&pair.interprets, &pair.translates);
        if !same || flags != 0 || frames != Some(0) {
            let undefined = pair.undefined(case, &ends, false);
            let level_flags = same && flags & !undefined.flags == 0;
            match frames {
                _ if undefined.read => return End::Excused,
                Some(frames) if level_flags && frames & !undefined.frames == 0 => {
                    level(&pair.interprets, &mut pair.translates, vcpu);
                    figures.add("undefined flags", 1);
                }
                _ if undefined.lost => return End::Excused,
                _ => {
                    let [a, b] = exits;
                    let difference = differences(pair, vcpu);
                    return End::Different(format!(
                        "turn {number}, {turn:?}: {a:?} and {b:?}, {undefined:x?}, {frames:x?}\n{difference}"
                    ));
                }
            }
        }
        let one = &pair.interprets.processors[vcpu];
        let now = one.taken();
        figures.add("turns", 1);
        figures.add("interrupts", now[0] - taken[0]);
        figures.add("NMIs", now[1] - taken[1]);
        let idle = one.runner.cpu.activity != MpState::Running;
        waits = if idle { waits + 1 } else { 0 };
        if exits[0] == Some(RunExit::Shutdown) {
            figures.add("shutdowns", 1);
            break;
        }
        if one.retired() > MOST || waits > WAITS {
            break;
        }
    }
    at_the_end(pair, case, &ends)
}

/// Compares what is compared at the end only.
fn at_the_end(pair: &mut Pair, case: &Case, ends: &[At]) -> End {
    let (one, other) = (&mut pair.interprets, &mut pair.translates);
    one.read();
    other.read();
    let states = one.processors.iter_mut().zip(&mut other.processors);
    let mut states = states.map(|(a, b)| (a.runner.cpu.save(), b.runner.cpu.save()));
    let difference = if one.buffer != other.buffer {
        let mut pairs = one.buffer.iter().zip(&other.buffer);
        let at = pairs.position(|(a, b)| a != b).unwrap_or(0);
        let (a, b) = (one.buffer[at], other.buffer[at]);
        format!("memory at {at:#x}: {a:#x} and {b:#x}")
    } else if let Some((a, b)) = states.find(|(a, b)| a != b) {
        lines(&a, &b)
    } else {
        return End::Same;
    };
    let last = ends.len() - 1;
    let undefined = pair.undefined(case, ends, true);
    if undefined.read || undefined.lost {
        return End::Excused;
    }
    End::Different(format!("at the end, behind turn {last}: {difference}"))
}

/// Counts what a processor is about to execute.
fn look(p: &Processor, slice: u64, figures: &mut Figures) {
    let cpu = &p.runner.cpu;
    if cpu.pending & softcpu::cpu::pending::STEP != 0 {
        figures.add("stepped turns", 1);
    }
    if slice != 1 || !cpu.long64 {
        return;
    }
    let rip = cpu.rip();
    if rip >= guest::ALIAS << 12 {
        figures.add("by an alias", 1);
    }
    let Some(at) = cpu.tlb.fetch_hit(rip) else {
        return;
    };
    let mut bytes = [0; 15];
    let count = (4096 - (at.0 as usize & 0xfff)).min(bytes.len());
    cpu.ram.read_at(at, &mut bytes[..count]);
    let options = iced_x86::DecoderOptions::NONE;
    let mut decoder = iced_x86::Decoder::new(64, &bytes[..count], options);
    let instruction = decoder.decode();
    if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes && count < 15 {
        figures.add("on two pages", 1);
    }
    figures.add("strings", u64::from(instruction.is_string_instruction()));
}

/// What differs between the processors numbered `vcpu`.
fn differences(pair: &mut Pair, vcpu: usize) -> String {
    let [one, other] =
        [&mut pair.interprets, &mut pair.translates].map(|s| &mut s.processors[vcpu]);
    let figures = [&*one, &*other].map(|p| {
        let c = &p.runner.cpu;
        let times = (p.retired(), c.uncounted);
        (
            times,
            c.shadow as u8,
            c.pending_debug,
            p.accesses(),
            p.taken(),
        )
    });
    let (a, b) = (one.runner.cpu.save(), other.runner.cpu.save());
    let mut text = lines(&a, &b);
    if figures[0] != figures[1] {
        text += &format!("{:x?}\n{:x?}\n", figures[0], figures[1]);
    }
    text
}

/// The lines in which two states differ.
fn lines(one: &VcpuState, other: &VcpuState) -> String {
    let (one, other) = (format!("{one:#x?}"), format!("{other:#x?}"));
    let pairs = one.lines().zip(other.lines());
    let different = pairs.filter(|(a, b)| a != b);
    different
        .map(|(a, b)| format!("{} {}\n", a.trim(), b.trim()))
        .collect()
}

impl Target for Tiers {
    fn run(&mut self, data: &[u8]) {
        if let Err(difference) = self.try_run(data) {
            panic!("interpreted, translated: {difference}");
        }
    }

    fn longest(&self) -> usize {
        CHOICES + SNIPPETS * REAL
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        NAMES.into_iter().zip(self.all_figures().0).collect()
    }
}
