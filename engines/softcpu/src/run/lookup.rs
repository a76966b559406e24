//! Finding the block at RIP: in the cache, or decoded from RAM.

use guestmem::{GuestRam, RamOffset};
use vcpu::Attention;
use x86defs::exception;

use super::Runner;
use crate::code::{BlockKey, Checked, Decoded, MOST_BYTES, Mode, Op, decode_block, sum_of};
use crate::cpu::{Cpu, Fault, RIP, Trap, canonical, pending, sreg};
use crate::insn::HostSide;
use crate::mem::STALE_LIMIT;

/// Why there is no block to execute.
pub(super) enum NoBlock {
    /// The fetch faulted, and what that led to was delivered.
    Delivered,
    /// The code changed while it was decoded: nothing has happened, and it is to be read again.
    Changed,
}

impl Runner {
    /// Finds or decodes the block at RIP; a fault of the fetch is delivered here.
    #[inline]
    pub(super) fn find(&mut self, single: bool) -> Result<u32, NoBlock> {
        let cpu = &mut self.cpu;
        let va = fetch_address(cpu);
        let mode = mode_of(cpu, single);
        let at = match cpu.tlb.fetch_hit(va) {
            Some(at) => at,
            None => fetch_page(cpu, va)?,
        };
        match self.cache.find(BlockKey::new(at, mode.code())) {
            Some(i) if !self.cache.block(i).asks => Ok(i),
            found => self.find_slow(va, at, mode, found),
        }
    }

    /// The slow half of finding a block: what is asked of those that were found, then decoding.
    #[cold]
    #[inline(never)]
    fn find_slow(
        &mut self,
        va: u64,
        at: RamOffset,
        mode: Mode,
        found: Option<u32>,
    ) -> Result<u32, NoBlock> {
        if let Some(i) = found.filter(|i| self.cache.block(*i).checked) {
            let Cpu {
                ram, code_pages, ..
            } = &mut self.cpu;
            if self.cache.check(i, ram, code_pages) {
                return Ok(i);
            }
            self.drop_orphans();
        } else if let Some(i) = found {
            // The second page may be mapped elsewhere than when the block was decoded.
            let second = fetch_page_quiet(&mut self.cpu, (va & !0xfff).wrapping_add(4096));
            match second {
                Some(s) if s.0 == self.cache.second_page(i) => return Ok(i),
                Some(_) => {
                    let start = RamOffset(self.cache.block(i).start);
                    self.cache.invalidate(start, 1, &mut self.cpu.code_pages);
                    self.drop_orphans();
                }
                None => {}
            }
        }
        if self.cpu.vectors.full {
            self.clear_code();
        }
        if self.cache.full() {
            self.drop_blocks();
        }
        let in_page = 4096 - (at.0 & 0xfff) as usize;
        let mut longest = [0u8; MOST_BYTES];
        let bytes = &mut longest[..in_page.min(MOST_BYTES)];
        self.cpu.ram.read_at(at, bytes);
        let mut ops = std::mem::take(&mut self.buffer);
        let cpu = &mut self.cpu;
        let mut side = HostSide {
            host: &mut cpu.host,
            table: &mut cpu.vectors,
        };
        let index = match decode_block(bytes, mode, &mut side, &mut ops) {
            Decoded::Block(length) => {
                let decoded = &bytes[..length as usize];
                self.insert(at, mode, decoded, None, &ops)
            }
            Decoded::NeedsMore => {
                let mut few = [0u8; 15];
                self.gather(va, at, &mut few).and_then(|(n, second)| {
                    let cpu = &mut self.cpu;
                    let mut side = HostSide {
                        host: &mut cpu.host,
                        table: &mut cpu.vectors,
                    };
                    let single = Mode {
                        single: true,
                        ..mode
                    };
                    let length = match decode_block(&few[..n], single, &mut side, &mut ops) {
                        Decoded::Block(length) => length,
                        Decoded::NeedsMore => {
                            ops.push(Op {
                                run: crate::insn::too_long,
                                ..Op::default()
                            });
                            n as u32
                        }
                    };
                    self.insert(at, mode, &few[..length as usize], second, &ops)
                })
            }
        };
        self.buffer = ops;
        index
    }

    /// Caches a block decoded from `bytes`. [`NoBlock::Changed`] if they are no longer what RAM holds: another vCPU has stored
    /// there before it could know that they were decoded. Then they are to be read again.
    fn insert(
        &mut self,
        at: RamOffset,
        mode: Mode,
        bytes: &[u8],
        second: Option<RamOffset>,
        ops: &[Op],
    ) -> Result<u32, NoBlock> {
        if second.is_none() && self.cache.prefers_checks(at) {
            let options = self.cpu.vectors.decoder_options();
            if let Some(checked) = Checked::of(bytes, ops, mode, options) {
                let key = BlockKey::new(at, mode.code());
                return Ok(self.cache.insert_checked(key, at, checked, ops));
            }
        }
        let in_page = (4096 - (at.0 & 0xfff)) as usize;
        let (first_bytes, rest) = bytes.split_at(bytes.len().min(in_page));
        self.now_code(at, first_bytes);
        if let Some(s) = second {
            self.now_code(s, rest);
        }
        let index = self.cache.insert(
            BlockKey::new(at, mode.code()),
            at,
            first_bytes.len() as u32,
            second,
            ops,
        );
        if self.cpu.shared && self.executor.is_some() {
            self.cache.block_mut(index).sum = sum_of(bytes);
        }
        #[cfg(test)]
        if let Some(store) = self.decoded.take() {
            store(&self.cpu.ram);
        }
        let still = |at, bytes| !self.cpu.shared || holds(&self.cpu.ram, at, bytes);
        if still(at, first_bytes) && second.is_none_or(|s| still(s, rest)) {
            return Ok(index);
        }
        self.cache.invalidate(at, 1, &mut self.cpu.code_pages);
        self.drop_orphans();
        Err(NoBlock::Changed)
    }

    /// Says that bytes of one page are decoded.
    fn now_code(&mut self, at: RamOffset, bytes: &[u8]) {
        let cpu = &mut self.cpu;
        if cpu.code_pages.add(at, bytes.len() as u64) {
            cpu.tlb.protect_page((at.0 >> 12) as u32);
        }
    }

    /// Up to 15 instruction bytes from `va` on, across the page border; faults are delivered here.
    pub(super) fn gather(
        &mut self,
        va: u64,
        at: RamOffset,
        out: &mut [u8; 15],
    ) -> Result<(usize, Option<RamOffset>), NoBlock> {
        let in_page = (4096 - (at.0 & 0xfff) as usize).min(15);
        self.cpu.ram.read_at(at, &mut out[..in_page]);
        if in_page == 15 {
            return Ok((15, None));
        }
        // Only an instruction that really reaches the next page may fault there, and CS's limit comes before it.
        let mode = mode_of(&self.cpu, true);
        let mut ops = Vec::new();
        let cpu = &mut self.cpu;
        let mut side = HostSide {
            host: &mut cpu.host,
            table: &mut cpu.vectors,
        };
        if let Decoded::Block(_) = decode_block(&out[..in_page], mode, &mut side, &mut ops) {
            return Ok((in_page, None));
        }
        if self.cpu.regs[RIP].wrapping_add(in_page as u64) > self.cpu.fetch_limit {
            fault_outside(&mut self.cpu);
            return Err(NoBlock::Delivered);
        }
        let next = (va & !0xfff).wrapping_add(4096);
        let next = if self.cpu.long64 {
            next
        } else {
            next & 0xffff_ffff
        };
        let second = fetch_page(&mut self.cpu, next)?;
        self.cpu.ram.read_at(second, &mut out[in_page..]);
        Ok((15, Some(second)))
    }

    /// Drops blocks whose bytes were stored to.
    pub(super) fn drop_stale(&mut self) {
        let cpu = &mut self.cpu;
        cpu.pending &= !pending::CODE;
        cpu.attention.clear(Attention::CODE);
        let mut stale = std::mem::take(&mut cpu.code_pages.stale);
        stale.extend(cpu.code_pages.mailbox.take());
        if stale.len() > STALE_LIMIT {
            self.clear_code();
        } else {
            for s in stale {
                self.cache
                    .invalidate(s.start, s.len, &mut self.cpu.code_pages);
            }
            self.drop_orphans();
        }
    }

    /// Drops all blocks; what was prepared for vector instructions stays.
    pub fn drop_blocks(&mut self) {
        self.cache.clear(&mut self.cpu.code_pages);
        if let Some(executor) = &mut self.executor {
            executor.clear();
            self.cpu.tlb.drop_jumps();
        }
    }

    /// Drops all decoded code.
    pub(super) fn clear_code(&mut self) {
        self.drop_blocks();
        self.cpu.vectors.clear();
        if let Err(error) = self.cpu.host.clear() {
            tracing::warn!(vcpu = self.cpu.index, %error, "the old code memory stays in use");
        }
    }
}

/// Whether RAM holds `bytes` at `at`, in one page.
fn holds(ram: &GuestRam, at: RamOffset, bytes: &[u8]) -> bool {
    let mut now = [0; MOST_BYTES];
    let now = &mut now[..bytes.len()];
    ram.read_at(at, now);
    now == bytes
}

/// Linear address of the next instruction.
#[inline(always)]
pub(super) fn fetch_address(cpu: &Cpu) -> u64 {
    if cpu.long64 {
        cpu.regs[RIP]
    } else {
        cpu.seg[sreg::CS].base.wrapping_add(cpu.regs[RIP]) & 0xffff_ffff
    }
}

/// What makes a linear address mean a certain block: translations, view, mode.
#[inline(always)]
pub fn code_tag(cpu: &Cpu) -> u64 {
    cpu.tlb.stamp << 8 | u64::from(mode_of(cpu, false).code())
}

#[inline(always)]
pub(super) fn mode_of(cpu: &Cpu, single: bool) -> Mode {
    if cpu.long64 {
        return Mode {
            bits: 64,
            big_stack: false,
            single,
        };
    }
    let big = |s: usize| cpu.seg[s].access.default_big();
    Mode {
        bits: if big(sreg::CS) { 32 } else { 16 },
        big_stack: big(sreg::SS),
        single,
    }
}

/// Translates an instruction fetch; a fault is delivered.
#[cold]
#[inline(never)]
pub(super) fn fetch_page(cpu: &mut Cpu, va: u64) -> Result<RamOffset, NoBlock> {
    if cpu.long64 && !canonical(va) || cpu.regs[RIP] > cpu.fetch_limit {
        fault_outside(cpu);
        return Err(NoBlock::Delivered);
    }
    match cpu.fetch_target(va) {
        Ok(Some(at)) => return Ok(at),
        Ok(None) => {
            // Nothing to execute outside RAM: unclaimed addresses read as ones, FFh FFh is #UD.
            cpu.fault = Fault {
                vector: exception::UD,
                error_code: 0,
                detail: 0,
            };
            fault_at_fetch(cpu, Trap::Exception);
        }
        Err(trap) => fault_at_fetch(cpu, trap),
    }
    Err(NoBlock::Delivered)
}

/// #GP(0) for a fetch from a non-canonical address or beyond CS's limit.
fn fault_outside(cpu: &mut Cpu) {
    cpu.fault = Fault {
        vector: exception::GP,
        error_code: 0,
        detail: 0,
    };
    fault_at_fetch(cpu, Trap::Exception);
}

fn fetch_page_quiet(cpu: &mut Cpu, va: u64) -> Option<RamOffset> {
    cpu.fetch_target(va).ok().flatten()
}

fn fault_at_fetch(cpu: &mut Cpu, trap: Trap) {
    cpu.trapped = Op::default();
    let done = match trap {
        Trap::Exception => cpu.deliver_fault(),
        other => Err(other),
    };
    if done == Err(Trap::VmExit) {
        cpu.take_vm_exit();
    }
}
