//! The run loop: events at block boundaries, then a block.
//!
//! [`boundary`] looks at everything that may happen between instructions, [`event`] takes what is due of it, [`idle`]
//! waits while the processor executes nothing, [`lookup`] finds or decodes the block at RIP, [`step`] executes single
//! instructions, [`translated`] has hot blocks run by a translator and [`region`] has it join them. The loop itself and
//! what follows an instruction that did not complete are here.

mod boundary;
mod event;
mod idle;
mod lookup;
mod region;
mod step;
#[cfg(test)]
mod tests;
mod translated;

use vcpu::{MpState, RunExit};
use x86defs::exception;

use self::boundary::Boundary;
pub use self::lookup::code_tag;
use self::lookup::{fetch_address, fetch_page, mode_of};
use crate::code::{BlockCache, BlockExecutor, Decoded, Op, decode_block};
use crate::cpu::{Cpu, Fault, RIP, Shadow, Trap, pending, sreg};
use crate::insn::HostSide;

/// A store of another vCPU's.
#[cfg(test)]
type Store = Box<dyn FnOnce(&guestmem::GuestRam) + Send>;

/// Runs blocks on a [`Cpu`].
pub struct Runner {
    /// The processor.
    pub cpu: Cpu,
    /// Decoded code.
    pub cache: BlockCache,
    /// Runs hot blocks.
    executor: Option<Box<dyn BlockExecutor>>,
    buffer: Vec<Op>,
    alone_ops: Vec<Op>,
    /// Where translated code was left because time was up.
    sample: Option<u64>,
    /// It is inside its [`crate::world::World`].
    inside: bool,
    /// A repeated string instruction gave way after an iteration.
    gave_way: bool,
    /// What another vCPU stores after the next block was decoded and before it is looked whether it still holds.
    #[cfg(test)]
    pub decoded: Option<Store>,
}

impl Runner {
    /// A runner of one of `vcpus` vCPUs, with an empty cache.
    pub fn new(cpu: Cpu, vcpus: u32) -> Self {
        let cpu = Cpu {
            shared: vcpus > 1,
            ..cpu
        };
        Self {
            inside: false,
            sample: None,
            executor: None,
            cpu,
            cache: BlockCache::new(vcpus),
            buffer: Vec::with_capacity(64),
            alone_ops: Vec::new(),
            gave_way: false,
            #[cfg(test)]
            decoded: None,
        }
    }

    /// Runs until something the monitor must decide.
    pub fn run(&mut self) -> RunExit {
        self.enter();
        let exit = self.run_inside();
        self.leave();
        exit
    }

    fn enter(&mut self) {
        if let Some(executor) = &mut self.executor {
            executor.attach(&mut self.cpu);
        }
        self.cpu.world.enter();
        self.inside = true;
    }

    fn leave(&mut self) {
        self.inside = false;
        self.cpu.world.leave();
    }

    fn run_inside(&mut self) -> RunExit {
        loop {
            let cpu = &self.cpu;
            let quiet = cpu.pending == 0 && cpu.budget > 0 && cpu.attention.get() == 0;
            if quiet {
                self.blocks();
                continue;
            }
            if let Some(exit) = self.turn_inside() {
                return exit;
            }
        }
    }

    /// What the boundary here asks for.
    fn turn_inside(&mut self) -> Option<RunExit> {
        match self.boundary() {
            Boundary::Go => {
                let cpu = &self.cpu;
                if cpu.pending == 0 && cpu.budget > 0 && cpu.attention.get() == 0 {
                    self.blocks();
                } else if let Ok(index) = self.find(false) {
                    self.execute(index);
                }
            }
            Boundary::Step => self.step(),
            Boundary::Again => {}
            Boundary::Leave(exit) => return Some(exit),
        }
        None
    }

    /// Runs block after block while nothing else wants attention.
    #[inline(always)]
    fn blocks(&mut self) {
        self.gave_way = false;
        let Ok(mut index) = self.find(false) else {
            return;
        };
        loop {
            if self.executor.is_some()
                && let Some(entry) = self.translated(index)
            {
                match self.run_translated(entry) {
                    Some(next) => {
                        index = next;
                        continue;
                    }
                    None => return,
                }
            }
            if !self.execute(index) {
                return;
            }
            let cpu = &self.cpu;
            if cpu.pending != 0 || cpu.budget <= 0 || cpu.attention.get() != 0 {
                return;
            }
            let va = fetch_address(cpu);
            let tag = code_tag(cpu);
            index = match self.cache.follow(index, va, tag) {
                Some(next) => next,
                None => match self.find(false) {
                    Ok(next) => {
                        self.cache.link(index, va, tag, next);
                        next
                    }
                    Err(_) => return,
                },
            };
        }
    }

    /// Runs a block; false if it trapped.
    #[inline(always)]
    fn execute(&mut self, index: u32) -> bool {
        let block = self.cache.block(index);
        let cpu = &mut self.cpu;
        cpu.code_pages.running_start = block.start;
        cpu.code_pages.running_len = u64::from(block.bytes);
        if block.crosses {
            cpu.code_pages.running_second = self.cache.second_page(index);
        }
        let last = cpu.regs[RIP].wrapping_add(u64::from(block.bytes) - 1);
        if last > cpu.fetch_limit || block.crosses && self.crosses_limit(index) {
            return self.at_limit(index);
        }
        let block = self.cache.block(index);
        let cpu = &mut self.cpu;
        cpu.budget -= i64::from(block.instructions);
        for op in self.cache.ops(block) {
            if let Err(trap) = (op.run)(cpu, op) {
                let op = *op;
                self.trapped(trap, &op, index);
                return false;
            }
        }
        cpu.regs[RIP] = cpu.next_rip;
        if block.crosses {
            cpu.code_pages.running_second = u64::MAX;
        }
        true
    }

    /// Whether an instruction on two pages reaches beyond CS's limit.
    #[cold]
    fn crosses_limit(&self, index: u32) -> bool {
        let ops = self.cache.ops(self.cache.block(index));
        let length = match ops.first() {
            Some(op) if op.length > 0 => u64::from(op.length),
            // Too long to be one instruction.
            _ => u64::from(self.cache.block(index).bytes),
        };
        self.cpu.regs[RIP].wrapping_add(length - 1) > self.cpu.fetch_limit
    }

    /// CS's limit lies inside the block: goes on one instruction at a time, up to the one that the limit cuts, which
    /// is #GP(0) (SDM Vol 3 5.3). What [`Runner::execute`] returns.
    #[cold]
    #[inline(never)]
    fn at_limit(&mut self, index: u32) -> bool {
        if self.crosses_limit(index) {
            self.cpu.fault = Fault {
                vector: exception::GP,
                error_code: 0,
                detail: 0,
            };
            self.take(Trap::Exception, &Op::default());
            return false;
        }
        self.find(true).is_ok_and(|single| self.execute(single))
    }

    /// A handler did not complete.
    #[cold]
    #[inline(never)]
    fn trapped(&mut self, trap: Trap, op: &Op, index: u32) {
        let block = self.cache.block(index);
        let ops = self.cache.ops(block);
        let done = ops.iter().position(|o| o.offset == op.offset).unwrap_or(0);
        self.cpu.budget += i64::from(block.instructions) - done as i64;
        self.cpu.code_pages.running_second = u64::MAX;
        let rip = self.cpu.regs[RIP].wrapping_add(u64::from(op.offset));
        self.cpu.regs[RIP] = if self.cpu.long64 {
            rip
        } else {
            rip & 0xffff_ffff
        };
        if trap == Trap::Alone {
            return self.alone();
        }
        self.note_restart(trap);
        self.take(trap, op);
    }

    /// Notes that a repeated string instruction gave way. A stop in front of a waiting x87 instruction is none.
    fn note_restart(&mut self, trap: Trap) {
        self.gave_way = trap == Trap::Restart && self.cpu.activity == MpState::Running;
    }

    /// Follows a trap with RIP at the instruction that caused it.
    fn take(&mut self, trap: Trap, op: &Op) {
        let cpu = &mut self.cpu;
        cpu.trapped = *op;
        let done = match trap {
            Trap::Exception => {
                stack_fault(cpu, op);
                cpu.deliver_fault()
            }
            other => Err(other),
        };
        match done {
            Ok(()) | Err(Trap::Restart | Trap::Alone) => {}
            Err(Trap::VmExit) => cpu.take_vm_exit(),
            Err(Trap::Exception) => unreachable!("delivery resolves exceptions"),
        }
        if cpu.shadow == Shadow::None {
            cpu.pending &= !pending::SHADOW;
        }
    }

    /// Runs the instruction at RIP by itself, decoded afresh: it may change its own bytes.
    #[cold]
    fn alone(&mut self) {
        self.drop_stale();
        let cpu = &mut self.cpu;
        if cpu.vectors.full {
            self.clear_code();
        }
        let cpu = &mut self.cpu;
        let va = fetch_address(cpu);
        let Ok(at) = fetch_page(cpu, va) else {
            return;
        };
        let mode = mode_of(cpu, true);
        let mut bytes = [0u8; 15];
        let Ok((n, _)) = self.gather(va, at, &mut bytes) else {
            return;
        };
        let cpu = &mut self.cpu;
        let mut ops = std::mem::take(&mut self.alone_ops);
        let mut side = HostSide {
            host: &mut cpu.host,
            table: &mut cpu.vectors,
        };
        if let Decoded::NeedsMore = decode_block(&bytes[..n], mode, &mut side, &mut ops) {
            ops.push(Op {
                run: crate::insn::too_long,
                ..Op::default()
            });
        }
        cpu.alone = true;
        cpu.budget -= 1;
        let mut trap = None;
        for op in &ops {
            if let Err(t) = (op.run)(cpu, op) {
                trap = Some((t, *op));
                break;
            }
        }
        cpu.alone = false;
        match trap {
            None => cpu.regs[RIP] = cpu.next_rip,
            Some((t, op)) => {
                cpu.budget += 1;
                self.note_restart(t);
                self.take(t, &op);
            }
        }
        self.alone_ops = ops;
    }
}

impl Drop for Runner {
    /// A vCPU that panicked inside must not be waited for.
    fn drop(&mut self) {
        if self.inside {
            self.leave();
        }
    }
}

/// A non-canonical stack address is #SS(0), not #GP(0) (SDM Vol 3 6.15).
fn stack_fault(cpu: &mut Cpu, op: &Op) {
    if cpu.fault.detail == crate::mem::NON_CANONICAL && cpu.fault.vector == exception::GP {
        cpu.fault.detail = 0;
        if usize::from(op.seg) == sreg::SS {
            cpu.fault.vector = exception::SS;
        }
    }
}
