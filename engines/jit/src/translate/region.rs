//! Several blocks of one page in one piece, which lead to one another without asking whether anything else is to be
//! done.
//!
//! Of each block there is an *exact* copy, translated as by itself, which asks before it begins. Behind those come the
//! *joined* ones: several rounds of all blocks, in an order in which most ways lead forward; a way back leads to the
//! next round. A joined block takes its instructions off the budget and no more. So who comes in asks before, in a
//! *gate*: that nothing else is to be done and that the budget lasts for the longest way through, up to where it
//! would next be asked. If not, the exact copy has its turn. That is how both stop in front of the same block as the
//! interpreter would.
//!
//! Nor has a joined block cold code: whatever happens out of line happens in that of its exact copy, where the same
//! instruction is under way with the same registers, and goes on there until the next gate. So what a handler leaves
//! behind (a store into code, an interrupt, less time) is seen where it would be.

use std::collections::BTreeMap;

use iced_x86::{Decoder, InstructionInfoFactory};
use softcpu::code::{Source, successors};
use softcpu::cpu::Cpu;

use super::plan::{Label, Node, Plan};
use super::renaming::{Aim, Detour, Exchange, choose};
use super::vector::Lent;
use super::window::{AHEAD, NO_WINDOWS, Path, Step, Windows};
use super::{Away, Exit, Numbers, Translator};
use crate::asm::{Held, Mem, Reg};
use crate::layout::{BUDGET, RCX, SLOT, register};
use crate::record::Record;
use crate::sites::Check;
use crate::stubs::Stubs;

/// A region, translated.
pub struct Region {
    /// The code.
    pub code: Vec<u8>,
    /// What its handlers are called with.
    pub records: Vec<Record>,
    /// Its ways out.
    pub exits: Vec<Exit>,
    /// Checks before memory that can be by sites.
    pub checks: Vec<Check>,
    /// Of each block that has a gate: its offset, and that of the code that leaves before the block.
    pub gates: Vec<Option<(usize, usize)>>,
}

/// How a region is to use windows.
#[derive(Clone, Copy, Debug)]
pub struct Windowing {
    /// It has some.
    pub any: bool,
    /// The address of a number of 64 bits that is one more each time the check of one fails.
    pub failed: u64,
}

/// What is known of the exact copy of a block: by operation, where in its cold code that is.
#[derive(Debug, Default)]
pub(super) struct Exact {
    pub start: usize,
    pub leave: usize,
    pub misses: BTreeMap<usize, usize>,
    /// The same for reads that may be of two pages.
    pub crossings: BTreeMap<usize, usize>,
    pub told: BTreeMap<usize, Vec<usize>>,
    pub requests: BTreeMap<usize, usize>,
    pub records: BTreeMap<usize, u32>,
    /// Where each operation begins, what registers hold there.
    pub begins: Vec<(usize, Held)>,
    /// Behind it is to be asked in any case.
    pub asks: bool,
}

/// How many labels, instructions to begin again, and detours there were.
pub(super) type Marks = (usize, usize, usize);

/// What is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    Exact,
    Joined(usize),
}

/// What is known between two instructions.
#[derive(Clone, Copy, Debug)]
struct State {
    held: Held,
    given: Lent,
    windows: Windows,
}

/// A region on its way.
pub(super) struct Joining<'a> {
    sources: &'a [Source<'a>],
    exact: Vec<Exact>,
    /// Offset of the distance of a jump, where it leads.
    labels: Vec<(usize, Label)>,
    /// The instructions of each block.
    paths: Vec<Path>,
    /// Offset of the distance of a jump, and the operation of a block that the exact copy is to begin with.
    again: Vec<(usize, usize, usize)>,
    block: usize,
    copy: Copy,
    plan: Plan,
    windowing: Windowing,
    /// What registers are exchanged in joined copies.
    pub(super) exchanges: Vec<Exchange>,
    /// Jumps that leave those while registers are exchanged.
    pub(super) detours: Vec<Detour>,
    /// What is known where a block begins that is reached by one way only.
    states: BTreeMap<Node, State>,
    failed: bool,
}

impl Joining<'_> {
    /// What registers should be where.
    fn exchanges_for(&self) -> Vec<Exchange> {
        let in_loop = |block| self.plan.leads_to(block, block);
        let paths = self.paths.iter().enumerate();
        let blocks: Vec<_> = paths.map(|(n, path)| (path, in_loop(n))).collect();
        choose(&blocks)
    }

    /// What is likely to be executed from the beginning of a joined block on: a loop goes round again, and other jumps
    /// are not taken.
    fn path_from(&self, mut node: Node) -> Path {
        let mut path = Path::new();
        loop {
            let (_, block) = node;
            path.extend_from_slice(&self.paths[block]);
            let next = self.plan.next[block].iter();
            let next = next.filter_map(|to| match self.plan.follow(node, *to) {
                Label::Node(to) if self.plan.one_way(to) => Some(to),
                _ => None,
            });
            // The next round before this one.
            let next = next.max_by_key(|(round, _)| *round);
            match next {
                Some(next) if path.len() < AHEAD => node = next,
                _ => return path,
            }
        }
    }
}

/// Instructions of a block.
fn instructions_of(source: &Source) -> i32 {
    let pseudo = source.ops.last().is_some_and(|o| o.length == 0);
    source.ops.len() as i32 - i32::from(pseudo && source.ops.len() > 1)
}

/// The instructions of a block, as [`Path`] has them.
fn instructions_in(cpu: &Cpu, source: &Source) -> Path {
    let options = cpu.vectors.decoder_options();
    let decoder = Decoder::with_ip(64, source.bytes, 0, options);
    let start = (source.start.0 & 0xfff) as i64;
    let mut info = InstructionInfoFactory::new();
    let steps = decoder.into_iter();
    steps
        .map(|insn| Step::new(cpu, &mut info, insn, start))
        .collect()
}

/// Translates blocks of one page to run at `origin`; the first is where most time is spent.
pub fn translate_region(
    cpu: &Cpu,
    sources: &[Source],
    stubs: &Stubs,
    origin: u64,
    numbers: Numbers,
    windowing: Windowing,
) -> Option<Region> {
    joined_to(cpu, sources, stubs, origin, numbers, windowing, true)
}

fn joined_to(
    cpu: &Cpu,
    sources: &[Source],
    stubs: &Stubs,
    origin: u64,
    numbers: Numbers,
    windowing: Windowing,
    near: bool,
) -> Option<Region> {
    let first = sources.first()?;
    let mut t = Translator::new(cpu, first, stubs, origin, numbers);
    t.a.near = near;
    t.joining = Some(Joining {
        sources,
        exact: Vec::new(),
        labels: Vec::new(),
        paths: sources.iter().map(|s| instructions_in(cpu, s)).collect(),
        again: Vec::new(),
        block: 0,
        copy: Copy::Exact,
        plan: Plan::default(),
        windowing,
        exchanges: Vec::new(),
        detours: Vec::new(),
        states: BTreeMap::new(),
        failed: false,
    });
    for (block, source) in sources.iter().enumerate() {
        t.exact_copy(block, source)?;
    }
    let next = t.ways_between(sources);
    let asks = t.joining.as_ref()?.exact.iter().map(|e| e.asks).collect();
    let instructions: Vec<i32> = sources.iter().map(instructions_of).collect();
    let joining = t.joining.as_mut()?;
    joining.plan = Plan::new(next, asks, &instructions);
    joining.exchanges = joining.exchanges_for();
    t.rename(true);
    // What is hot is little: the host foresees all its jumps, and instructions count (sort 140 ns against 155).
    t.a.near = false;
    let gates = t.joined_copies(sources, &instructions)?;
    t.begin_again()?;
    t.take_detours();
    t.rename(false);
    t.ways_out();
    let joining = t.joining.take()?;
    if joining.failed {
        return None;
    }
    if t.a.out_of_reach {
        return joined_to(cpu, sources, stubs, origin, numbers, windowing, false);
    }
    Some(Region {
        code: t.a.code,
        records: t.records,
        exits: t.exits,
        checks: t.checks,
        gates: gates
            .into_iter()
            .zip(&joining.exact)
            .map(|(gate, exact)| gate.map(|gate| (gate, exact.leave)))
            .collect(),
    })
}

impl<'a> Translator<'a> {
    fn exact_copy(&mut self, block: usize, source: &'a Source<'a>) -> Option<()> {
        self.source = source;
        self.op = 0;
        self.given = Lent::default();
        self.a.forget();
        self.start = self.a.here();
        let start = self.start;
        let joining = self.joining.as_mut()?;
        joining.block = block;
        joining.exact.push(Exact {
            start,
            ..Exact::default()
        });
        self.block()?;
        let leave = self.out_of_line();
        self.rests.clear();
        self.joining.as_mut()?.exact[block].leave = leave;
        Some(())
    }

    fn ways_between(&self, sources: &[Source]) -> Vec<Vec<usize>> {
        let options = self.cpu.vectors.decoder_options();
        let of = |source: &Source| {
            let next = successors(source.bytes, source.ops, options);
            let next = next.into_iter().flatten();
            let next = next.map(|distance| source.start.0.wrapping_add_signed(distance));
            let known = next.filter_map(|at| sources.iter().position(|s| s.start.0 == at));
            known.collect()
        };
        sources.iter().map(of).collect()
    }

    /// Writes all joined blocks and gates. Gives the offset of each block's gate.
    fn joined_copies(
        &mut self,
        sources: &'a [Source<'a>],
        instructions: &[i32],
    ) -> Option<Vec<Option<usize>>> {
        let mut gates = vec![None; sources.len()];
        let mut begin = BTreeMap::new();
        let mut apart = Vec::new();
        let (mut inner, mut outer) = (BTreeMap::new(), Vec::new());
        for node in self.joining.as_ref()?.plan.nodes() {
            let (round, block) = node;
            let falls = self.falls_into(Label::Node(node));
            if round == 0 && self.joining.as_ref()?.plan.gates.contains(&block) {
                if self.is_renamed_region() {
                    if falls {
                        apart.push(block);
                    } else {
                        self.falls_into(Label::Inner(block));
                        inner.insert(block, self.a.here());
                        self.inner_gate(block)?;
                    }
                    outer.push(block);
                } else if falls {
                    apart.push(block);
                } else {
                    self.falls_into(Label::Gate(block));
                    gates[block] = Some(self.a.here());
                    self.gate(block)?;
                }
            }
            begin.insert(node, self.a.here());
            self.joined(node, &sources[block], instructions[block])?;
        }
        let renamed = self.is_renamed_region();
        for block in apart {
            if renamed {
                inner.insert(block, self.a.here());
                self.inner_gate(block)?;
            } else {
                gates[block] = Some(self.a.here());
                self.gate(block)?;
            }
            let jump = self.a.jump(0);
            self.a.aim(jump, *begin.get(&(0, block))?);
        }
        for block in outer {
            gates[block] = Some(self.a.here());
            self.gate(block)?;
            self.exchange();
            let jump = self.a.jump(0);
            self.a.aim(jump, *begin.get(&(0, block))?);
        }
        let joining = self.joining.as_mut()?;
        for (jump, label) in std::mem::take(&mut joining.labels) {
            let to = match label {
                Label::Node(node) => *begin.get(&node)?,
                Label::Gate(block) => gates[block].unwrap_or(joining.exact[block].start),
                Label::Inner(block) => *inner.get(&block)?,
            };
            self.a.aim(jump, to);
        }
        Some(gates)
    }

    /// Asks before joined blocks; what is behind it is executed if nothing else is to be done.
    fn gate(&mut self, block: usize) -> Option<()> {
        let joining = self.joining.as_ref()?;
        let longest = joining.plan.longest.get(&(0, block)).copied().unwrap_or(0);
        let exact = joining.exact[block].start;
        self.a.forget();
        // As in the prologue of a block, for the budget that is left before the last block.
        let other = self.unless_quiet(longest);
        self.a.aim(other, exact);
        Some(())
    }

    /// The same for those who come from a joined block, with registers exchanged.
    fn inner_gate(&mut self, block: usize) -> Option<()> {
        let joining = self.joining.as_ref()?;
        let longest = joining.plan.longest.get(&(0, block)).copied().unwrap_or(0);
        let to = Aim::Code(joining.exact[block].start);
        self.a.forget();
        let from = self.unless_quiet(longest);
        self.joining.as_mut()?.detours.push(Detour { from, to });
        Some(())
    }

    /// Whether registers are exchanged in joined copies.
    fn is_renamed_region(&self) -> bool {
        self.joining
            .as_ref()
            .is_some_and(|j| !j.exchanges.is_empty())
    }

    fn joined(&mut self, node: Node, source: &'a Source<'a>, instructions: i32) -> Option<()> {
        self.source = source;
        self.start = self.a.here();
        let joining = self.joining.as_mut()?;
        joining.block = node.1;
        joining.copy = Copy::Joined(node.0);
        self.a.forget();
        self.given = Lent::default();
        let state = joining.states.remove(&node);
        self.path = joining.path_from(node);
        self.windows = NO_WINDOWS;
        if let Some(state) = state {
            self.a.recall(state.held);
            self.given = state.given;
            self.take_up(state.windows);
        }
        self.a.lea(BUDGET, Mem::at(BUDGET, -instructions));
        self.body()
    }

    /// Takes away a jump at the very end that would lead to what comes next.
    fn falls_into(&mut self, next: Label) -> bool {
        let end = self.a.here();
        let Some(joining) = &mut self.joining else {
            return false;
        };
        let labels = &mut joining.labels;
        // JMP with its distance.
        let at_end = |at: usize| at + 4 == end;
        if let Some(&(jump, label)) = labels.last()
            && at_end(jump)
            && label == next
            && self.a.code[jump - 1] == 0xe9
        {
            labels.pop();
            self.a.code.truncate(jump - 1);
            return true;
        }
        // Jcc to what comes next, JMP elsewhere: the other condition, elsewhere. Behind JRCXZ both are JMPs.
        let code = &self.a.code;
        let before = |jcc: usize| jcc + 4 + 1 + 4 == end && code[jcc - 1] & 0xf0 == 0x80;
        let turn = |code: &mut Vec<u8>, jcc: usize| {
            code[jcc - 1] ^= 1;
            code.truncate(jcc + 4);
        };
        if let [.., (jcc, taken), (jump, other)] = labels[..]
            && at_end(jump)
            && before(jcc)
            && taken == next
            && self.a.code[jump - 1] == 0xe9
        {
            labels.truncate(labels.len() - 2);
            labels.push((jcc, other));
            turn(&mut self.a.code, jcc);
            return true;
        }
        if let Some(&(jcc, taken)) = labels.last()
            && before(jcc)
            && taken == next
            && let Some(detour) = joining.detours.last_mut()
            && at_end(detour.from)
        {
            labels.pop();
            detour.from = jcc;
            turn(&mut self.a.code, jcc);
            return true;
        }
        if let Some(&(jcc, taken)) = labels.last()
            && before(jcc)
            && taken == next
            && let Some(way) = self.ways.last_mut()
            && at_end(way.0)
            && let Some(exit) = self.exits.last_mut()
            && exit.jump == way.0
        {
            labels.pop();
            way.0 = jcc;
            exit.jump = jcc;
            turn(&mut self.a.code, jcc);
            return true;
        }
        false
    }

    /// Has a jump lead to the block at an offset in the page, if that is one of the region's.
    pub(super) fn inside(&mut self, jump: usize, offset: i64) -> bool {
        let state = State {
            held: self.a.held(),
            given: self.given,
            windows: self.windows(),
        };
        let page = (self.source.start.0 & !0xfff) as i64;
        let Some(j) = &mut self.joining else {
            return false;
        };
        let to = |s: &Source| s.start.0 as i64 == page + offset;
        let Some(to) = j.sources.iter().position(to) else {
            return false;
        };
        let label = match j.copy {
            Copy::Exact => Label::Gate(to),
            Copy::Joined(round) => match j.plan.follow((round, j.block), to) {
                Label::Gate(to) if !j.exchanges.is_empty() => Label::Inner(to),
                label => label,
            },
        };
        if let Label::Node(node) = label
            && j.plan.one_way(node)
        {
            j.states.insert(node, state);
        }
        j.labels.push((jump, label));
        true
    }

    /// Whether windows may be made where code is being written.
    pub(super) fn has_windows(&self) -> bool {
        self.is_joined() && self.joining.as_ref().is_some_and(|j| j.windowing.any)
    }

    /// Whether a joined copy is being written.
    pub(super) fn is_joined(&self) -> bool {
        self.joined_block().is_some()
    }

    /// The number of the block in the region while a joined copy of it is being written.
    pub(super) fn joined_block(&self) -> Option<usize> {
        let joining = self.joining.as_ref()?;
        matches!(joining.copy, Copy::Joined(_)).then_some(joining.block)
    }

    /// The exact copy of the block.
    pub(super) fn exact(&mut self) -> Option<&mut Exact> {
        let joining = self.joining.as_mut()?;
        joining.exact.get_mut(joining.block)
    }

    /// How many jumps there are that are still to be aimed.
    pub(super) fn marks(&self) -> Marks {
        let joining = self.joining.as_ref();
        joining.map_or((0, 0, 0), |j| {
            (j.labels.len(), j.again.len(), j.detours.len())
        })
    }

    /// Takes back later ones.
    pub(super) fn back_to(&mut self, (labels, again, detours): Marks) {
        if let Some(j) = &mut self.joining {
            j.labels.truncate(labels);
            j.detours.truncate(detours);
            j.again.truncate(again);
        }
    }

    /// Notes where an operation of an exact copy begins.
    pub(super) fn note_beginning(&mut self) {
        let here = (self.a.here(), self.a.held());
        if !self.is_joined()
            && let Some(exact) = self.exact()
        {
            exact.begins.push(here);
        }
    }

    /// Has a jump lead to the instruction in the exact copy, which begins it anew.
    pub(super) fn again(&mut self, jump: usize) {
        let op = self.op;
        if let Some(j) = &mut self.joining {
            j.again.push((jump, j.block, op));
        }
    }

    /// The code by which exact copies begin instructions anew.
    fn begin_again(&mut self) -> Option<()> {
        let again = std::mem::take(&mut self.joining.as_mut()?.again);
        let mut there = BTreeMap::new();
        for (jump, block, op) in again {
            let (to, held) = *self.joining.as_ref()?.exact[block].begins.get(op)?;
            let here = self.a.here();
            let known = *there.entry((block, op)).or_insert(here);
            self.a.aim(jump, known);
            if known != here {
                continue;
            }
            self.exchange_back();
            let failed = self.joining.as_ref()?.windowing.failed;
            self.a.set_wide(SLOT, failed);
            self.a.load(RCX, Mem::at(SLOT, 0));
            self.a.lea(RCX, Mem::at(RCX, 1));
            self.a.store(Mem::at(SLOT, 0), RCX);
            for (reg, guest) in held.into_iter().enumerate() {
                if let Some(guest) = guest {
                    let from = register(usize::from(guest));
                    self.a.raw_load(Reg(reg as u8), from);
                }
            }
            let jump = self.a.jump(0);
            self.a.aim(jump, to);
        }
        Some(())
    }

    /// Has what goes out of line in the joined copy of an instruction go where it would in the exact one.
    pub(super) fn by_exact(&mut self, misses: &[Away], requests: usize, told: usize) {
        let op = self.op;
        let mut aims: Vec<(usize, Option<usize>)> = Vec::new();
        if let Some(joining) = &self.joining
            && let Some(exact) = joining.exact.get(joining.block)
        {
            aims.extend(misses.iter().map(|away| {
                let places = match away.crossing {
                    Some(_) => &exact.crossings,
                    None => &exact.misses,
                };
                (away.from, places.get(&op).copied())
            }));
            let asked = self.requests.drain(requests..);
            aims.extend(asked.map(|r| (r.from, exact.requests.get(&op).copied())));
            let places = exact.told.get(&op);
            let place = |n: usize| places.and_then(|p| p.get(n)).copied();
            let told = self.told.drain(told..).enumerate();
            aims.extend(told.map(|(n, t)| (t.from(), place(n))));
        }
        let renamed = self.is_renamed();
        for (from, to) in aims {
            match (to, &mut self.joining) {
                (Some(to), Some(joining)) if renamed => {
                    let to = Aim::Code(to);
                    joining.detours.push(Detour { from, to });
                }
                (Some(to), _) => self.a.aim(from, to),
                (None, Some(joining)) => joining.failed = true,
                (None, None) => {}
            }
        }
    }

    /// The number of the instruction's record in the exact copy.
    pub(super) fn record_of_exact(&mut self) -> u32 {
        let op = self.op;
        let known = self.exact().and_then(|e| e.records.get(&op).copied());
        if known.is_none()
            && let Some(joining) = &mut self.joining
        {
            joining.failed = true;
        }
        known.unwrap_or(0)
    }
}
