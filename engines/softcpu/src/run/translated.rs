//! Hot blocks, run by a [`BlockExecutor`].

use guestmem::RamOffset;
use vcpu::Profile;

use super::Runner;
use super::lookup::mode_of;
use crate::code::{BlockExecutor, Entry, Left, MOST_BYTES, Source, sum_of};
use crate::cpu::RIP;

impl Runner {
    /// Has hot blocks run by `executor`.
    pub fn set_executor(&mut self, executor: Box<dyn BlockExecutor>) {
        self.executor = Some(executor);
    }

    /// The translation of a block that is hot enough.
    #[inline]
    pub(super) fn translated(&mut self, index: u32) -> Option<Entry> {
        let entry = self.translation(index);
        if self.cache.block(index).crosses && !self.second_page_is_at_hand(index) {
            // The code would only say so.
            return None;
        }
        if self.sample.is_some() && self.sample.take() == Some(self.cpu.regs[RIP]) {
            self.count_sample(index);
            return self.cache.block(index).entry;
        }
        entry
    }

    /// Whether the TLB leads from the page of RIP on to the second page of a block that is at RIP.
    #[cold]
    fn second_page_is_at_hand(&self, index: u32) -> bool {
        let next = (self.cpu.regs[RIP] & !0xfff).wrapping_add(4096);
        let found = self.cpu.tlb.fetch_hit(next);
        found.is_some_and(|at| at.0 == self.cache.second_page(index))
    }

    fn translation(&mut self, index: u32) -> Option<Entry> {
        const NEVER: u16 = u16::MAX;
        let block = self.cache.block_mut(index);
        if block.entry.is_some() || block.heat == NEVER {
            return block.entry;
        }
        let executor = self.executor.as_mut()?;
        block.heat += 1;
        if block.heat <= executor.threshold() {
            return None;
        }
        block.heat = NEVER;
        let block = *block;
        let cpu = &self.cpu;
        let mode = mode_of(cpu, false);
        if mode.bits != 64 {
            return None;
        }
        let start = RamOffset(block.start);
        let second = block.crosses.then(|| self.cache.second_page(index));
        let second = second.map(RamOffset);
        let checked = self.cache.checked(index);
        let mut bytes = [0; MOST_BYTES];
        let bytes = match checked {
            Some(checked) => checked.bytes(),
            None => {
                let first = usize::from(block.bytes);
                let whole = match self.cache.ops(&block).first() {
                    Some(op) if block.crosses => usize::from(op.length).max(first),
                    _ => first,
                };
                let bytes = bytes.get_mut(..whole)?;
                cpu.ram.read_at(start, &mut bytes[..first]);
                if let Some(second) = second {
                    cpu.ram.read_at(second, &mut bytes[first..]);
                }
                if cpu.shared && sum_of(bytes) != block.sum {
                    // Another vCPU has changed them since they were decoded, and its word of that is on its way.
                    return None;
                }
                bytes
            }
        };
        let source = Source {
            index,
            mode,
            start,
            second,
            bytes,
            ops: self.cache.ops(&block),
            entry: None,
            keeps: false,
            checked,
        };
        let entry = executor.translate(cpu, &source);
        self.cache.block_mut(index).entry = entry;
        entry
    }

    /// Runs translated code and gives the block to go on with, unless something else is to be done first.
    pub(super) fn run_translated(&mut self, entry: Entry) -> Option<u32> {
        let executor = self.executor.as_mut()?;
        let way = match executor.run(&mut self.cpu, &self.cache, entry) {
            Left::Boundary { way } => way,
            Left::Trapped { trap, op, block } => {
                self.trapped(trap, &op, block);
                return None;
            }
        };
        let always = executor.threshold() == 0;
        if executor.full() {
            self.clear_code();
        }
        let cpu = &self.cpu;
        if cpu.budget <= 0 || always {
            self.sample = Some(cpu.regs[RIP]);
        }
        if cpu.pending != 0 || cpu.budget <= 0 || cpu.attention.get() != 0 {
            return None;
        }
        let next = self.find(false).ok()?;
        if let (Some(way), Some(to)) = (way, self.cache.block(next).entry)
            && let Some(executor) = &mut self.executor
        {
            executor.join(way, to);
        }
        Some(next)
    }

    /// What this vCPU's work was made of.
    pub fn profile(&self) -> Profile {
        let mut profile = Profile::default();
        profile.count("instructions", self.cpu.retired_now());
        profile.count("blocks_decoded", self.cache.decoded);
        profile.count("blocks_checked", self.cache.decoded_checked);
        profile.count("blocks_dropped", self.cache.invalidated);
        profile.count("tlb_fills", self.cpu.tlb.fills);
        profile.count("tlb_walks", self.cpu.tlb.walks);
        profile.count("tlb_flushes", self.cpu.tlb.flushes[0]);
        profile.count("tlb_page_flushes", self.cpu.tlb.flushes[1]);
        if let Some(executor) = &self.executor {
            executor.profile(&mut profile);
        }
        profile
    }
}
