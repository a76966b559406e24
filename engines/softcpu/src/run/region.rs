//! Regions: blocks of one page that lead to one another, translated together once they are where time is spent.
//!
//! Where that is shows when time is up: translated code is left between two blocks then, and the one that would have
//! been next is counted.

use guestmem::RamOffset;

use super::Runner;
use super::lookup::mode_of;
use crate::code::{Entry, Source, successors, sum_of};

/// Most blocks of a region.
const MOST_BLOCKS: usize = 12;
/// Most instructions of a region.
const MOST_INSTRUCTIONS: usize = 160;
/// Regions a block can be part of.
const MOST_REGIONS: u8 = 4;

impl Runner {
    /// The block was next when time was up.
    #[cold]
    #[inline(never)]
    pub(super) fn count_sample(&mut self, index: u32) {
        let Some(executor) = &mut self.executor else {
            return;
        };
        if self.cache.block(index).regions > 0 {
            let parted = executor.part_blocks(&self.cpu, index);
            return self.take_apart(parted);
        }
        let enough = executor.samples();
        let block = self.cache.block_mut(index);
        if block.entry.is_none() || block.asks {
            return;
        }
        block.samples = block.samples.saturating_add(1);
        if block.samples >= enough {
            block.samples = 0;
            self.join_from(index);
        }
    }

    /// Has a region made that begins with a block.
    fn join_from(&mut self, first: u32) {
        let mode = mode_of(&self.cpu, false);
        let page = self.cache.block(first).start & !0xfff;
        let mut bytes_of = Vec::new();
        let mut members = vec![first];
        let mut instructions = 0;
        let mut at = 0;
        while let Some(&index) = members.get(at) {
            at += 1;
            let block = *self.cache.block(index);
            instructions += usize::from(block.instructions);
            let mut bytes = vec![0; usize::from(block.bytes)];
            self.cpu.ram.read_at(RamOffset(block.start), &mut bytes);
            if self.cpu.shared && sum_of(&bytes) != block.sum {
                // Another vCPU has changed them, and its word of that is on its way.
                return;
            }
            let options = self.cpu.vectors.decoder_options();
            let next = successors(&bytes, self.cache.ops(&block), options);
            bytes_of.push(bytes);
            for distance in next.into_iter().flatten() {
                let target = block.start.wrapping_add_signed(distance);
                if target & !0xfff != page {
                    continue;
                }
                let Some(to) = self.cache.at(RamOffset(target), mode.code()) else {
                    continue;
                };
                let b = self.cache.block(to);
                let known = members.contains(&to);
                let useful = b.entry.is_some() && b.regions < MOST_REGIONS;
                let room = members.len() < MOST_BLOCKS
                    && instructions + usize::from(b.instructions) <= MOST_INSTRUCTIONS;
                if !known && useful && room {
                    members.push(to);
                }
            }
        }
        let sources: Vec<Source> = members
            .iter()
            .zip(&bytes_of)
            .map(|(&index, bytes)| {
                let block = self.cache.block(index);
                Source {
                    index,
                    mode,
                    start: RamOffset(block.start),
                    bytes,
                    ops: self.cache.ops(block),
                    entry: block.entry,
                    keeps: block.regions > 0,
                    second: None,
                    checked: None,
                }
            })
            .collect();
        let Some(executor) = &mut self.executor else {
            return;
        };
        let Some(entries) = executor.join_blocks(&self.cpu, &sources) else {
            return;
        };
        drop(sources);
        for (index, entry) in members.into_iter().zip(entries) {
            let block = self.cache.block_mut(index);
            block.regions += 1;
            block.entry = entry.or(block.entry);
        }
    }

    /// Tells the translator of blocks that were dropped.
    pub(super) fn drop_orphans(&mut self) {
        let Some(executor) = &mut self.executor else {
            return self.cache.orphans.clear();
        };
        let mut others = Vec::new();
        for index in std::mem::take(&mut self.cache.orphans) {
            let entry = self.cache.block_mut(index).entry.take();
            executor.drop_block(index, entry, &mut others);
        }
        self.take_apart(others);
    }

    /// Blocks are in one region less, and have lost what they were entered by if it is what is given.
    fn take_apart(&mut self, blocks: Vec<(u32, Option<Entry>)>) {
        for (index, entry) in blocks {
            let block = self.cache.block_mut(index);
            block.regions = block.regions.saturating_sub(1);
            block.samples = 0;
            if block.entry == entry && entry.is_some() {
                block.entry = None;
                block.heat = 0;
            }
        }
    }
}
