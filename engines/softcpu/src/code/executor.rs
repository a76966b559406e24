//! The seam for whatever runs blocks faster than operation by operation.
//!
//! A [`BlockExecutor`] turns blocks into something of its own. It counts, traps and stops as the interpreter does: it
//! looks at [`Cpu::budget`], the attention word and [`Cpu::pending`] before every block, or once for several where the
//! budget and what they do let it come to the same; takes a block's instructions off the budget when it begins; and leaves the processor between two blocks or before an operation that trapped.

use std::num::NonZeroU64;

use guestmem::RamOffset;
use vcpu::Profile;

use super::cache::BlockCache;
use super::checked::Checked;
use super::decode::Mode;
use super::op::Op;
use crate::cpu::{Cpu, Trap};

/// A translated block, as its executor knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry(pub NonZeroU64);

/// A block to be translated.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Its number in the cache.
    pub index: u32,
    /// The mode it was decoded for.
    pub mode: Mode,
    /// Where its first byte is. It lies in one page, but for one instruction that reaches into [`Source::second`].
    pub start: RamOffset,
    /// The page its last bytes are in, if that is another: it is entered only where that follows.
    pub second: Option<RamOffset>,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Its operations.
    pub ops: &'a [Op],
    /// What it is entered by so far.
    pub entry: Option<Entry>,
    /// It is to be entered by that also if it is translated once more.
    pub keeps: bool,
    /// It is entered only while this holds of RAM, and takes the values in it from there.
    pub checked: Option<&'a Checked>,
}

/// A way out of a translated block that can be joined to the block it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way(pub u32);

/// How an executor left off.
#[derive(Clone, Copy)]
pub enum Left {
    /// Between two blocks, with RIP at the next.
    Boundary {
        /// The way it came, if that is in the page of the block before.
        way: Option<Way>,
    },
    /// Before an operation that trapped, with RIP at the start of its block.
    Trapped {
        /// What it trapped with.
        trap: Trap,
        /// The operation.
        op: Op,
        /// The number of its block.
        block: u32,
    },
}

/// Runs blocks.
pub trait BlockExecutor: Send {
    /// How many times a block is interpreted before it is translated.
    fn threshold(&self) -> u16;

    /// How often time has to be up before a block until it is joined with those it leads to.
    fn samples(&self) -> u8;

    /// The processor is about to run on this thread, at this address until it has stopped.
    fn attach(&mut self, cpu: &mut Cpu);

    /// Translates a block, if it can. Nothing also if there is no room: then [`BlockExecutor::full`] says so.
    fn translate(&mut self, cpu: &Cpu, source: &Source) -> Option<Entry>;

    /// Translates blocks of one page once more, so that they lead to one another without asking in between whether
    /// anything else is to be done. The first is where most time is spent. Gives what they are entered by from now
    /// on, for each that has a new way in.
    fn join_blocks(&mut self, cpu: &Cpu, sources: &[Source]) -> Option<Vec<Option<Entry>>>;

    /// Time was up before a block that was joined with others. Gives blocks that serve better if they are joined anew, if
    /// it is one of them: they have lost what they were entered by if it is that.
    fn part_blocks(&mut self, cpu: &Cpu, index: u32) -> Vec<(u32, Option<Entry>)>;

    /// There was no room for a block: all code has to be dropped.
    fn full(&self) -> bool;

    /// Runs the block at RIP and those after it, all of which are in `code`.
    fn run(&mut self, cpu: &mut Cpu, code: &BlockCache, entry: Entry) -> Left;

    /// Has a way lead to a block in the same page without leaving.
    fn join(&mut self, way: Way, to: Entry);

    /// A block, which was entered by `entry`, is no more what is in memory. Adds the blocks it was joined with: they
    /// have lost what they were entered by if it is that.
    fn drop_block(
        &mut self,
        index: u32,
        entry: Option<Entry>,
        others: &mut Vec<(u32, Option<Entry>)>,
    );

    /// All blocks are gone.
    fn clear(&mut self);

    /// Adds what it has done so far.
    fn profile(&self, profile: &mut Profile);
}
