//! The cache of decoded blocks, by guest-physical address and mode.
//!
//! Blocks lie in one arena that is emptied when it is full, so a hostile guest cannot make it grow. Its addresses are
//! there from the start, the host's memory comes as it is used: nothing moves when it grows, and nothing is left behind.
//! A store to a page finds those of its blocks it overlaps ([`pages`]).

mod pages;

use guestmem::{GuestRam, RamOffset};

use self::pages::{Changes, OFTEN, Page};
use super::checked::Checked;
use super::executor::Entry;
use super::op::Op;
use crate::hashing::{NumberMap, Secret};
use crate::mem::CodePages;

/// What identifies a block: RAM offset of its first byte and the mode it was decoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey(u64);

impl BlockKey {
    /// A key; `mode` is 8 bits.
    #[inline(always)]
    pub fn new(at: RamOffset, mode: u8) -> Self {
        Self(at.0 << 8 | u64::from(mode))
    }

    #[inline(always)]
    fn slot(self) -> usize {
        ((self.0 >> 8) ^ (self.0 >> 21) ^ (self.0 << 3)) as usize & (SLOTS - 1)
    }
}

/// A sum of bytes that differs, but for accidents, where they do.
pub fn sum_of(bytes: &[u8]) -> u64 {
    let mut sum = bytes.len() as u64;
    for part in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        // The fractional part of the golden ratio.
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 32;
    }
    sum
}

/// Where a block was seen to continue.
#[derive(Clone, Copy)]
struct Link {
    /// Linear address.
    va: u64,
    /// What the address means: translations, view and mode ([`crate::cpu::Cpu::code_tag`]).
    tag: u64,
    /// The block there.
    to: u32,
}

const UNLINKED: Link = Link {
    va: 0,
    tag: u64::MAX,
    to: NONE,
};

/// A decoded block, as the run loop uses it: it lies in two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Block {
    /// RAM offset of the first byte.
    pub start: u64,
    /// First operation in the arena.
    pub ops: u32,
    /// Operations, with the one that only continues.
    pub count: u16,
    /// Instructions.
    pub instructions: u16,
    /// Bytes in the first page.
    pub bytes: u16,
    /// How often it was interpreted, until it is translated.
    pub heat: u16,
    /// [`Mode::code`](super::Mode::code) of its mode.
    mode: u8,
    alive: bool,
    /// The one instruction crosses into a second page.
    pub crosses: bool,
    /// Nobody says if its bytes change: they are compared each time it is entered.
    pub checked: bool,
    /// One of the two: it is not enough to have found it.
    pub asks: bool,
    replace: u8,
    /// How often translated code was left before it because time was up.
    pub samples: u8,
    /// Regions it is part of.
    pub regions: u8,
    /// [`sum_of`] of the bytes it was decoded from, where others may change them.
    pub sum: u64,
    /// What a translator made of it.
    pub entry: Option<Entry>,
    links: [Link; 2],
}

const _: () = assert!(size_of::<Block>() == 96);

impl Block {
    fn key(&self) -> BlockKey {
        BlockKey::new(RamOffset(self.start), self.mode)
    }
}

/// The rest of a block.
#[derive(Clone, Copy)]
struct Bookkeeping {
    /// The second page, by its number in RAM; [`NONE`] for none.
    second: u32,
    next_in_page: u32,
    next_in_second: u32,
    /// The next of those that are found by the same place in [`BlockCache::chains`].
    next_in_chain: u32,
}

const SLOTS: usize = 1 << 16;
const CHAINS: usize = 1 << 17;
/// Operations in the arenas of all vCPUs of a VM, 32 bytes each.
const ALL_OPS: usize = 3 << 20;
/// Operations a vCPU has room for, however many there are.
const FEWEST_OPS: usize = 1 << 17;
/// There is room for one block to so many operations. Of real code's there are more in a block.
const OPS_TO_A_BLOCK: usize = 3;
/// Operations of a block at most, and some.
const MOST_OF_A_BLOCK: usize = 256;
const NONE: u32 = u32::MAX;

/// A vector that does not move until it has more than `most` elements. Where the host gives no addresses it may.
pub fn room_for<T>(most: usize) -> Vec<T> {
    let mut vec = Vec::new();
    // Without them it grows as it is filled.
    let _ = vec.try_reserve_exact(most);
    vec
}

/// The cache.
pub struct BlockCache {
    slots: Box<[(BlockKey, u32)]>,
    /// Living blocks by the hash of their key: the first of each chain.
    chains: Box<[u32]>,
    secret: Secret,
    blocks: Vec<Block>,
    book: Vec<Bookkeeping>,
    ops: Vec<Op>,
    pages: NumberMap<u32, Box<Page>>,
    changes: Changes,
    /// What of the living blocks is compared when they are entered.
    checked: NumberMap<u32, Checked>,
    /// Blocks that a store hits.
    hit: Vec<u32>,
    room: usize,
    /// Blocks that were dropped and had been translated, for the translator to hear of.
    pub orphans: Vec<u32>,
    /// Changes of code somewhere from which on it is changed often there. With 0 all code that can be is checked.
    pub often: u8,
    /// Blocks decoded; a statistic.
    pub decoded: u64,
    /// Of them checked ones; a statistic.
    pub decoded_checked: u64,
    /// Blocks dropped because their bytes changed; a statistic.
    pub invalidated: u64,
}

impl BlockCache {
    /// An empty cache for one of `vcpus` vCPUs.
    pub fn new(vcpus: u32) -> Self {
        Self::of_room((ALL_OPS / vcpus.max(1) as usize).max(FEWEST_OPS))
    }

    /// An empty cache with room for so many operations, or for one block if that is more.
    pub fn of_room(ops: usize) -> Self {
        let room = ops.max(MOST_OF_A_BLOCK);
        Self {
            room,
            slots: vec![(BlockKey(u64::MAX), NONE); SLOTS].into_boxed_slice(),
            chains: vec![NONE; CHAINS].into_boxed_slice(),
            secret: Secret::default(),
            blocks: room_for(room / OPS_TO_A_BLOCK),
            book: room_for(room / OPS_TO_A_BLOCK),
            ops: room_for(room),
            pages: NumberMap::default(),
            changes: Changes::default(),
            checked: NumberMap::default(),
            hit: Vec::new(),
            orphans: Vec::new(),
            often: OFTEN,
            decoded: 0,
            decoded_checked: 0,
            invalidated: 0,
        }
    }

    /// The block of a key, if cached.
    #[inline(always)]
    pub fn find(&mut self, key: BlockKey) -> Option<u32> {
        let (k, b) = self.slots[key.slot()];
        if k == key {
            Some(b)
        } else {
            self.find_slow(key)
        }
    }

    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, key: BlockKey) -> Option<u32> {
        let mut at = self.chains[self.chain(key)];
        while at != NONE {
            if self.blocks[at as usize].key() == key {
                self.slots[key.slot()] = (key, at);
                return Some(at);
            }
            at = self.book[at as usize].next_in_chain;
        }
        None
    }

    fn chain(&self, key: BlockKey) -> usize {
        (self.secret.hash(key.0) >> (64 - CHAINS.ilog2())) as usize
    }

    /// Takes a block out of its chain.
    fn unchain(&mut self, index: u32) {
        let chain = self.chain(self.blocks[index as usize].key());
        let next = self.book[index as usize].next_in_chain;
        let mut at = self.chains[chain];
        if at == index {
            self.chains[chain] = next;
            return;
        }
        while at != NONE {
            let book = &mut self.book[at as usize];
            if book.next_in_chain == index {
                book.next_in_chain = next;
                return;
            }
            at = book.next_in_chain;
        }
    }

    /// A block by index.
    #[inline(always)]
    pub fn block(&self, index: u32) -> &Block {
        &self.blocks[index as usize]
    }

    /// The living block at a place in RAM, if to find it is enough.
    pub fn at(&mut self, at: RamOffset, mode: u8) -> Option<u32> {
        let index = self.find(BlockKey::new(at, mode))?;
        (!self.block(index).asks).then_some(index)
    }

    /// A block by index, to be changed.
    pub fn block_mut(&mut self, index: u32) -> &mut Block {
        &mut self.blocks[index as usize]
    }

    /// A block's operations.
    #[inline(always)]
    pub fn ops(&self, block: &Block) -> &[Op] {
        &self.ops[block.ops as usize..block.ops as usize + usize::from(block.count)]
    }

    /// The second page of a crossing block.
    pub fn second_page(&self, index: u32) -> u64 {
        match self.book[index as usize].second {
            NONE => u64::MAX,
            page => u64::from(page) << 12,
        }
    }

    /// Where block `from` is known to continue at `va`.
    #[inline(always)]
    pub fn follow(&self, from: u32, va: u64, tag: u64) -> Option<u32> {
        let links = &self.blocks[from as usize].links;
        let to = if links[0].va == va && links[0].tag == tag {
            links[0].to
        } else if links[1].va == va && links[1].tag == tag {
            links[1].to
        } else {
            return None;
        };
        self.blocks[to as usize].alive.then_some(to)
    }

    /// Remembers that block `from` continued with block `to`.
    pub fn link(&mut self, from: u32, va: u64, tag: u64, to: u32) {
        // What is asked on each entry is never linked to.
        if self.blocks[to as usize].asks {
            return;
        }
        if let Some(b) = self.blocks.get_mut(from as usize) {
            b.links[usize::from(b.replace & 1)] = Link { va, tag, to };
            b.replace ^= 1;
        }
    }

    /// Adds a decoded block. The caller has noted its bytes in `CodePages`.
    pub fn insert(
        &mut self,
        key: BlockKey,
        start: RamOffset,
        bytes: u32,
        second: Option<RamOffset>,
        ops: &[Op],
    ) -> u32 {
        let index = self.add(key, start, bytes, second, ops);
        self.enter(index);
        index
    }

    /// Adds a decoded block that lies in one page and need not hear of stores.
    pub fn insert_checked(
        &mut self,
        key: BlockKey,
        start: RamOffset,
        checked: Checked,
        ops: &[Op],
    ) -> u32 {
        let index = self.add(key, start, checked.bytes().len() as u32, None, ops);
        let block = &mut self.blocks[index as usize];
        (block.checked, block.asks) = (true, true);
        self.checked.insert(index, checked);
        self.decoded_checked += 1;
        index
    }

    /// What of a block is compared when it is entered.
    pub fn checked(&self, index: u32) -> Option<&Checked> {
        self.checked.get(&index)
    }

    /// Whether a checked block is still what RAM holds. If so, its operations have the values that are there now; else
    /// it is dropped.
    pub fn check(&mut self, index: u32, ram: &GuestRam, pages: &mut CodePages) -> bool {
        let block = &self.blocks[index as usize];
        let (start, first) = (block.start, block.ops as usize);
        if let Some(checked) = self.checked.get(&index) {
            let now = checked.now(ram, RamOffset(start));
            if checked.holds(&now) {
                let ops = &mut self.ops[first..];
                for varying in checked.varying() {
                    ops[usize::from(varying.op)].imm = varying.value(&now);
                }
                return true;
            }
        }
        self.note_change(start);
        self.kill(index, pages);
        false
    }

    fn add(
        &mut self,
        key: BlockKey,
        start: RamOffset,
        bytes: u32,
        second: Option<RamOffset>,
        ops: &[Op],
    ) -> u32 {
        self.decoded += 1;
        let index = self.blocks.len() as u32;
        let chain = self.chain(key);
        let pseudo = ops.last().is_some_and(|o| o.length == 0 && ops.len() > 1);
        self.blocks.push(Block {
            start: start.0,
            ops: self.ops.len() as u32,
            count: ops.len() as u16,
            instructions: ops.len() as u16 - u16::from(pseudo),
            bytes: bytes as u16,
            heat: 0,
            mode: key.0 as u8,
            alive: true,
            crosses: second.is_some(),
            checked: false,
            asks: second.is_some(),
            replace: 0,
            samples: 0,
            regions: 0,
            sum: 0,
            entry: None,
            links: [UNLINKED; 2],
        });
        self.book.push(Bookkeeping {
            second: second.map_or(NONE, |s| (s.0 >> 12) as u32),
            next_in_page: NONE,
            next_in_second: NONE,
            next_in_chain: std::mem::replace(&mut self.chains[chain], index),
        });
        self.ops.extend_from_slice(ops);
        self.slots[key.slot()] = (key, index);
        index
    }

    /// Whether there is no room for another block: everything has to be dropped.
    pub fn full(&self) -> bool {
        self.ops.len() + MOST_OF_A_BLOCK > self.room
            || self.blocks.len() >= self.room / OPS_TO_A_BLOCK
    }

    /// Drops everything.
    pub fn clear(&mut self, pages: &mut CodePages) {
        let empty = (BlockKey(u64::MAX), NONE);
        if self.blocks.len() < SLOTS / 16 {
            for block in &self.blocks {
                let key = block.key();
                let chain = self.chain(key);
                self.slots[key.slot()] = empty;
                self.chains[chain] = NONE;
            }
        } else {
            self.slots.fill(empty);
            self.chains.fill(NONE);
        }
        self.blocks.clear();
        self.book.clear();
        self.ops.clear();
        self.orphans.clear();
        self.checked.clear();
        self.pages.clear();
        pages.clear();
    }

    fn kill(&mut self, index: u32, pages: &mut CodePages) {
        self.invalidated += 1;
        self.unchain(index);
        let block = &mut self.blocks[index as usize];
        block.alive = false;
        if block.entry.is_some() || block.regions > 0 {
            self.orphans.push(index);
        }
        let key = block.key();
        if self.slots[key.slot()].0 == key {
            self.slots[key.slot()] = (BlockKey(u64::MAX), NONE);
        }
        if self.checked.remove(&index).is_none() {
            self.leave(index, pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use guestmem::{Gpa, GuestRam};
    use vcpu::Attention;

    use super::*;

    const RAM_BYTES: u64 = 16 << 20;

    fn cache_and_pages() -> (BlockCache, CodePages) {
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), RAM_BYTES)]).expect("16 MByte"));
        // The share of one of many vCPUs, so that it is full soon.
        (
            BlockCache::new(255),
            CodePages::new(&ram, &Attention::new()),
        )
    }

    fn insert(cache: &mut BlockCache, pages: &mut CodePages, at: u64, ops: usize) -> u32 {
        pages.add(RamOffset(at), 4);
        let key = BlockKey::new(RamOffset(at), 64);
        let op = Op {
            length: 4,
            ..Op::default()
        };
        cache.insert(key, RamOffset(at), 4, None, &vec![op; ops])
    }

    /// Until it is full, with blocks of one operation and of many; everything stays where it is meanwhile.
    #[test]
    fn an_arena_has_its_bound_and_does_not_move() {
        for ops in [1, 40] {
            let (mut cache, mut pages) = cache_and_pages();
            let first = insert(&mut cache, &mut pages, 0, ops);
            let place = |cache: &BlockCache| {
                let block = cache.block(first);
                (&raw const *block, cache.ops(block).as_ptr())
            };
            let before = place(&cache);
            let mut blocks = 1;
            while !cache.full() {
                let at = 16 * blocks % RAM_BYTES;
                insert(&mut cache, &mut pages, at, ops);
                blocks += 1;
            }
            assert_eq!(place(&cache), before);
            let most = (FEWEST_OPS / OPS_TO_A_BLOCK).min(FEWEST_OPS / ops) as u64;
            assert!((most - 8..=most).contains(&blocks), "{blocks} of {ops}");
            cache.clear(&mut pages);
            assert!(!cache.full());
            assert_eq!(cache.find(BlockKey::new(RamOffset(0), 64)), None);
        }
    }

    /// Thousands of blocks, so that many share a slot and a chain; each is found until just it is stored to.
    #[test]
    fn blocks_are_found_until_they_are_stored_to() {
        const BLOCKS: u64 = 40_000;
        let (mut cache, mut pages) = cache_and_pages();
        let at = |n: u64| n * 68 % RAM_BYTES;
        let key = |n: u64| BlockKey::new(RamOffset(at(n)), 64);
        let all: Vec<u32> = (0..BLOCKS)
            .map(|n| insert(&mut cache, &mut pages, at(n), 1))
            .collect();
        for n in (0..BLOCKS).step_by(3) {
            cache.invalidate(RamOffset(at(n) + 3), 1, &mut pages);
        }
        for n in 0..BLOCKS {
            let expected = (n % 3 != 0).then_some(all[n as usize]);
            assert_eq!(cache.find(key(n)), expected, "{n}");
        }
        let again = insert(&mut cache, &mut pages, at(3), 1);
        assert_eq!(cache.find(key(3)), Some(again));
    }
}
