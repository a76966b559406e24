//! The run loop: events at block boundaries, then a block.

use guestmem::{GuestRam, RamOffset};
use vcpu::{Attention, MpState, RunExit, Wake};
use x86defs::cr::dr;
use x86defs::exception;
use x86defs::rflags;

use crate::code::{BlockCache, BlockKey, Decoded, Mode, Op, decode_block};
use crate::cpu::{Cpu, Event, EventKind, Fault, RIP, Shadow, Trap, canonical, pending, sreg};
use crate::insn::HostSide;
use crate::mem::STALE_LIMIT;

/// Runs blocks on a [`Cpu`].
pub struct Runner {
    /// The processor.
    pub cpu: Cpu,
    /// Decoded code.
    pub cache: BlockCache,
    buffer: Vec<Op>,
    alone_ops: Vec<Op>,
    /// It is inside its [`crate::world::World`].
    inside: bool,
    /// A repeated string instruction gave way after an iteration.
    gave_way: bool,
}

/// What a boundary asks for.
enum Boundary {
    Go,
    /// One instruction only, then look again.
    Step,
    /// Nothing to execute yet: look again.
    Again,
    Leave(RunExit),
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
            cpu,
            cache: BlockCache::new(vcpus),
            buffer: Vec::with_capacity(64),
            alone_ops: Vec::new(),
            gave_way: false,
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
            match self.boundary() {
                Boundary::Go => {
                    if let Some(index) = self.find(false) {
                        self.execute(index);
                    }
                }
                Boundary::Step => self.step(),
                Boundary::Again => {}
                Boundary::Leave(exit) => return exit,
            }
        }
    }

    /// Runs block after block while nothing else wants attention.
    #[inline(always)]
    fn blocks(&mut self) {
        self.gave_way = false;
        let Some(mut index) = self.find(false) else {
            return;
        };
        loop {
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
                    Some(next) => {
                        self.cache.link(index, va, tag, next);
                        next
                    }
                    None => return,
                },
            };
        }
    }

    /// Executes one instruction and the events around it; for tests and debuggers.
    pub fn single_step(&mut self) -> Option<RunExit> {
        match self.boundary() {
            Boundary::Leave(exit) => Some(exit),
            Boundary::Again => None,
            Boundary::Go | Boundary::Step => {
                self.step();
                None
            }
        }
    }

    /// Finds or decodes the block at RIP; a fault of the fetch is delivered here.
    fn find(&mut self, single: bool) -> Option<u32> {
        let cpu = &mut self.cpu;
        let va = fetch_address(cpu);
        let mode = mode_of(cpu, single);
        let at = match cpu.tlb.fetch_hit(va) {
            Some(at) => at,
            None => fetch_page(cpu, va)?,
        };
        match self.cache.find(BlockKey::new(at, mode.code())) {
            Some(i) if !self.cache.block(i).crosses => Some(i),
            found => self.find_slow(va, at, mode, found),
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
        self.find(true).is_some_and(|single| self.execute(single))
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
        // A stop in front of a waiting x87 instruction is none.
        self.gave_way = trap == Trap::Restart && self.cpu.activity == MpState::Running;
        self.take(trap, op);
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
        let Some(at) = fetch_page(cpu, va) else {
            return;
        };
        let mode = mode_of(cpu, true);
        let mut bytes = [0u8; 15];
        let Some((n, _)) = self.gather(va, at, &mut bytes) else {
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
            Some((t, op)) => self.take(t, &op),
        }
        self.alone_ops = ops;
    }

    /// One instruction with what the boundary before it called for: the interrupt shadow, TF, breakpoints.
    fn step(&mut self) {
        let cpu = &mut self.cpu;
        let shadow = cpu.shadow;
        let tf = cpu.rflags_rest & rflags::TF != 0;
        if cpu.rflags_rest & rflags::RF == 0
            && shadow != Shadow::MovSs
            && self.instruction_breakpoint()
        {
            return;
        }
        let cpu = &mut self.cpu;
        let vm_level = cpu.vmx.in_guest;
        let before = cpu.retired_now().wrapping_sub(cpu.faults);
        let held = cpu.pending_debug;
        self.gave_way = false;
        self.cpu.step_cancelled = false;
        if let Some(index) = self.find(true) {
            self.execute(index);
        }
        let cpu = &mut self.cpu;
        // An iteration of a repeated string instruction counts as an instruction (18.3.1.4).
        let completed = cpu.retired_now().wrapping_sub(cpu.faults) != before || self.gave_way;
        if !completed {
            // What a faulting instruction hit on its way is not reported.
            cpu.pending_debug = held;
        }
        if completed && vm_level == cpu.vmx.in_guest {
            // RF lasts one instruction, unless that instruction set it (IRET).
            if cpu.trapped_kind_sets_rf {
                cpu.trapped_kind_sets_rf = false;
            } else {
                cpu.rflags_rest &= !rflags::RF;
            }
        }
        if shadow != Shadow::None && cpu.shadow == shadow && vm_level == cpu.vmx.in_guest {
            cpu.shadow = Shadow::None;
            cpu.pending = (cpu.pending & !pending::SHADOW) | pending::INTERRUPT | pending::VMX;
        }
        // A load of SS swallows its own single-step trap (SDM Vol 3 6.8.3).
        let loads_ss = cpu.shadow == Shadow::MovSs;
        if completed && tf && !loads_ss && !cpu.step_cancelled && vm_level == cpu.vmx.in_guest {
            cpu.pending_debug |= dr::DR6_BS;
        }
        if cpu.pending_debug != 0 {
            cpu.pending |= pending::DEBUG;
        }
    }

    /// Code breakpoints at RIP are faults (SDM Vol 3 18.3.1.1); true if one was delivered.
    fn instruction_breakpoint(&mut self) -> bool {
        let cpu = &mut self.cpu;
        if cpu.dr7 & 0xff == 0 {
            return false;
        }
        let va = fetch_address(cpu);
        let mut hit = 0;
        let mut enabled_hit = false;
        for i in 0..4 {
            let kind = cpu.dr7 >> (16 + 4 * i) & 15;
            if kind == 0 && cpu.dr[i as usize] == va {
                hit |= 1 << i;
                enabled_hit |= cpu.dr7 >> (2 * i) & 3 != 0;
            }
        }
        if !enabled_hit {
            return false;
        }
        cpu.fault = Fault {
            vector: exception::DB,
            error_code: 0,
            detail: hit,
        };
        self.take(Trap::Exception, &Op::default());
        true
    }

    /// The slow half of finding a block: crossing instructions, then decoding.
    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, va: u64, at: RamOffset, mode: Mode, found: Option<u32>) -> Option<u32> {
        if let Some(i) = found {
            // The second page may be mapped elsewhere than when the block was decoded.
            let second = fetch_page_quiet(&mut self.cpu, (va & !0xfff).wrapping_add(4096));
            match second {
                Some(s) if s.0 == self.cache.second_page(i) => return Some(i),
                Some(_) => {
                    let start = RamOffset(self.cache.block(i).start);
                    self.cache.invalidate(start, 1, &mut self.cpu.code_pages);
                }
                None => {}
            }
        }
        if self.cpu.vectors.full {
            self.clear_code();
        }
        self.cache.make_room(&mut self.cpu.code_pages);
        let in_page = 4096 - (at.0 & 0xfff) as usize;
        let mut page = [0u8; 4096];
        let bytes = &mut page[..in_page];
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

    /// Caches a block decoded from `bytes`. Nothing if they are no longer what RAM holds: another vCPU has stored
    /// there before it could know that they were decoded. Then they are to be read again.
    fn insert(
        &mut self,
        at: RamOffset,
        mode: Mode,
        bytes: &[u8],
        second: Option<RamOffset>,
        ops: &[Op],
    ) -> Option<u32> {
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
        let still = |at, bytes| !self.cpu.shared || holds(&self.cpu.ram, at, bytes);
        if still(at, first_bytes) && second.is_none_or(|s| still(s, rest)) {
            return Some(index);
        }
        self.cache.invalidate(at, 1, &mut self.cpu.code_pages);
        None
    }

    /// Says that bytes of one page are decoded.
    fn now_code(&mut self, at: RamOffset, bytes: &[u8]) {
        let cpu = &mut self.cpu;
        if cpu.code_pages.add(at, bytes.len() as u64) {
            cpu.tlb.protect_page((at.0 >> 12) as u32);
        }
    }

    /// Up to 15 instruction bytes from `va` on, across the page border; faults are delivered here.
    fn gather(
        &mut self,
        va: u64,
        at: RamOffset,
        out: &mut [u8; 15],
    ) -> Option<(usize, Option<RamOffset>)> {
        let in_page = (4096 - (at.0 & 0xfff) as usize).min(15);
        self.cpu.ram.read_at(at, &mut out[..in_page]);
        if in_page == 15 {
            return Some((15, None));
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
            return Some((in_page, None));
        }
        if self.cpu.regs[RIP].wrapping_add(in_page as u64) > self.cpu.fetch_limit {
            return fault_outside(&mut self.cpu);
        }
        let next = (va & !0xfff).wrapping_add(4096);
        let next = if self.cpu.long64 {
            next
        } else {
            next & 0xffff_ffff
        };
        let second = fetch_page(&mut self.cpu, next)?;
        self.cpu.ram.read_at(second, &mut out[in_page..]);
        Some((15, Some(second)))
    }

    /// Drops blocks whose bytes were stored to.
    fn drop_stale(&mut self) {
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
        }
    }

    /// Drops all decoded code.
    fn clear_code(&mut self) {
        self.cache.clear(&mut self.cpu.code_pages);
        self.cpu.vectors.clear();
        if let Err(error) = self.cpu.host.clear() {
            tracing::warn!(vcpu = self.cpu.index, %error, "the old code memory stays in use");
        }
    }

    /// Everything that may happen between instructions, in the order of SDM Vol 3 Table 6-2.
    #[cold]
    #[inline(never)]
    fn boundary(&mut self) -> Boundary {
        let attention = self.cpu.attention.get();
        if self.cpu.pending & pending::CODE != 0 || attention & Attention::CODE != 0 {
            self.drop_stale();
        }
        let cpu = &mut self.cpu;
        if attention & Attention::PAUSE != 0 {
            cpu.attention.clear(Attention::PAUSE);
            cpu.world.give_way();
        }
        if cpu.budget <= 0 {
            refill(cpu);
        }
        if attention & Attention::STOP != 0 {
            cpu.attention.clear(Attention::STOP);
            return Boundary::Leave(RunExit::Stopped);
        }
        cpu.follow_remap();
        if attention & Attention::MONITOR != 0 {
            cpu.monitored_store();
        }
        if attention & Attention::INTERRUPT != 0 {
            cpu.attention.clear(Attention::INTERRUPT);
            cpu.pending |= pending::INTERRUPT | pending::SIGNAL;
        }
        if cpu.pending & pending::INACTIVE != 0 {
            match cpu.activity {
                MpState::Shutdown if !cpu.vmx.in_guest => {
                    return Boundary::Leave(RunExit::Shutdown);
                }
                MpState::Halted | MpState::WaitForSipi | MpState::Shutdown => {
                    if !self.wake() {
                        return self.sleep();
                    }
                }
                MpState::Running => self.cpu.pending &= !pending::INACTIVE,
            }
        }
        self.events();
        let cpu = &mut self.cpu;
        if cpu.activity != MpState::Running {
            return self.boundary_again();
        }
        // What was just taken may have been sent after a store to code or a change of the memory map, and the look at
        // the top was before that.
        if cpu.pending & pending::CODE != 0 || cpu.attention.get() & Attention::CODE != 0 {
            self.drop_stale();
        }
        let cpu = &mut self.cpu;
        cpu.follow_remap();
        if cpu.pending & (pending::SHADOW | pending::STEP) != 0 {
            Boundary::Step
        } else {
            Boundary::Go
        }
    }

    fn boundary_again(&mut self) -> Boundary {
        if self.cpu.activity == MpState::Shutdown && !self.cpu.vmx.in_guest {
            return Boundary::Leave(RunExit::Shutdown);
        }
        self.sleep()
    }

    /// Whether something ends HLT, wait-for-SIPI or a nested guest's shutdown; an event that is to be
    /// delivered is then taken in `events`.
    fn wake(&mut self) -> bool {
        let cpu = &mut self.cpu;
        collect_signals(cpu);
        if self.exit_while_inactive() {
            return true;
        }
        if self.init_or_sipi() {
            return self.cpu.activity == MpState::Running;
        }
        let cpu = &mut self.cpu;
        if cpu.activity != MpState::Halted {
            return false;
        }
        let interrupt = cpu.interrupts_enabled() && cpu.platform.interrupt_pending();
        let mwait = cpu.mwait_wakes();
        let nmi = cpu.nmi_pending && !cpu.nmi_blocked;
        // A VM entry into HLT may bring pending debug exceptions (SDM Vol 3 27.7.3).
        let debug = cpu.pending & pending::DEBUG != 0;
        if interrupt || nmi || debug || mwait {
            cpu.end_mwait();
            cpu.activity = MpState::Running;
            cpu.pending = (cpu.pending & !pending::INACTIVE) | pending::INTERRUPT | pending::SIGNAL;
            cpu.shadow = Shadow::None;
            return true;
        }
        false
    }

    /// VM exits leave an inactive state only by entering the host: the guest's state is saved as inactive
    /// (SDM Vol 3 28.1).
    fn exit_while_inactive(&mut self) -> bool {
        let cpu = &mut self.cpu;
        if !cpu.vmx.in_guest {
            return false;
        }
        let window =
            cpu.pending & pending::VMX != 0 && (cpu.vmx_before_debug() || cpu.vmx_before_nmi());
        let exits = window || self.nmi_exits() || {
            let cpu = &mut self.cpu;
            (cpu.pending & pending::VMX != 0 && cpu.vmx_before_interrupt())
                || (cpu.vmx_interrupt_exits()
                    && cpu.platform.interrupt_pending()
                    && cpu.vmx_external_interrupt())
        };
        if exits {
            self.cpu.end_mwait();
            self.take(Trap::VmExit, &Op::default());
        }
        exits
    }

    /// Takes a pending NMI off if it exits.
    fn nmi_exits(&mut self) -> bool {
        let cpu = &mut self.cpu;
        let exits = cpu.nmi_pending && cpu.vmx_nmi_open() && cpu.vmx_nmi();
        if exits {
            cpu.nmi_pending = false;
        }
        exits
    }

    fn sleep(&mut self) -> Boundary {
        let cpu = &self.cpu;
        let retired = cpu.retired_now();
        let until = cpu.vmx_timer_wakes_at();
        self.leave();
        let wake = self.cpu.platform.idle(retired, until);
        self.enter();
        let cpu = &mut self.cpu;
        match wake {
            Wake::Stop => {
                cpu.attention.clear(Attention::STOP);
                Boundary::Leave(RunExit::Stopped)
            }
            Wake::Event => {
                refill(cpu);
                cpu.pending |= pending::INTERRUPT | pending::SIGNAL;
                Boundary::Again
            }
        }
    }

    fn events(&mut self) {
        // Between the iterations of a repeated string instruction events find RF set (SDM Vol 3 18.3.1.1). Where
        // there was none, a code breakpoint is not met anew by the next iteration.
        let mid_repeat = std::mem::take(&mut self.gave_way);
        if mid_repeat {
            self.cpu.rflags_rest |= rflags::RF;
        }
        let taken = self.take_event();
        if mid_repeat && !taken && self.cpu.pending & pending::STEP == 0 {
            self.cpu.rflags_rest &= !rflags::RF;
        }
    }

    /// Takes the first of the events that are due; whether there was one.
    fn take_event(&mut self) -> bool {
        let cpu = &mut self.cpu;
        collect_signals(cpu);
        if self.init_or_sipi() {
            return true;
        }
        let cpu = &mut self.cpu;
        if cpu.pending & pending::VMX != 0 && cpu.vmx_before_debug() {
            return self.take_boundary(Trap::VmExit);
        }
        if cpu.pending & pending::DEBUG != 0 && cpu.shadow != Shadow::MovSs {
            cpu.pending &= !pending::DEBUG;
            let bits = std::mem::take(&mut cpu.pending_debug);
            cpu.fault = Fault {
                vector: exception::DB,
                error_code: 0,
                detail: bits,
            };
            return self.take_boundary(Trap::Exception);
        }
        if cpu.pending & pending::VMX != 0 && cpu.vmx_before_nmi() {
            return self.take_boundary(Trap::VmExit);
        }
        if cpu.nmi_pending && cpu.shadow == Shadow::None {
            if self.nmi_exits() {
                return self.take_boundary(Trap::VmExit);
            }
            let cpu = &mut self.cpu;
            if !cpu.nmi_blocked {
                cpu.nmi_pending = false;
                cpu.nmi_blocked = true;
                self.deliver(Event {
                    vector: exception::NMI,
                    kind: EventKind::Nmi,
                    error_code: None,
                    length: 0,
                });
                return true;
            }
        }
        let cpu = &mut self.cpu;
        if cpu.pending & pending::VMX != 0 && cpu.vmx_before_interrupt() {
            return self.take_boundary(Trap::VmExit);
        }
        if cpu.pending & pending::INTERRUPT != 0 && cpu.shadow == Shadow::None {
            if !cpu.platform.interrupt_pending() {
                cpu.pending &= !pending::INTERRUPT;
            } else if cpu.vmx_external_interrupt() {
                return self.take_boundary(Trap::VmExit);
            } else if cpu.interrupts_enabled() {
                match cpu.platform.acknowledge_interrupt() {
                    Some(vector) => {
                        self.deliver(Event {
                            vector,
                            kind: EventKind::External,
                            error_code: None,
                            length: 0,
                        });
                        return true;
                    }
                    None => cpu.pending &= !pending::INTERRUPT,
                }
            } else {
                // Taken up again when IF is set.
                cpu.pending &= !pending::INTERRUPT;
            }
        }
        false
    }

    fn take_boundary(&mut self, trap: Trap) -> bool {
        self.take(trap, &Op::default());
        true
    }

    /// Follows an INIT and a start-up IPI; true if the processor's state is another now. They may have been taken
    /// together, and nothing else would wake a processor for the second.
    fn init_or_sipi(&mut self) -> bool {
        let init = self.follow_init();
        self.follow_sipi() || init
    }

    fn follow_init(&mut self) -> bool {
        let cpu = &mut self.cpu;
        if cpu.init_pending && !cpu.vmx_blocks_init() {
            cpu.init_pending = false;
            if cpu.vmx_init() {
                cpu.end_mwait();
                self.take(Trap::VmExit, &Op::default());
            } else {
                cpu.init();
            }
            return true;
        }
        false
    }

    fn follow_sipi(&mut self) -> bool {
        let cpu = &mut self.cpu;
        // A processor that does not wait for a start-up IPI drops it (SDM Vol 3 9.4.4.1).
        let Some(vector) = cpu.sipi_pending.take() else {
            return false;
        };
        if cpu.activity != MpState::WaitForSipi {
            return false;
        }
        if cpu.vmx_sipi(vector) {
            self.take(Trap::VmExit, &Op::default());
        } else {
            cpu.start_up(vector);
        }
        true
    }

    fn deliver(&mut self, event: Event) {
        match self.cpu.deliver(event) {
            Ok(()) => {}
            Err(trap) => self.take(trap, &Op::default()),
        }
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

/// Whether RAM holds `bytes` at `at`, in one page.
fn holds(ram: &GuestRam, at: RamOffset, bytes: &[u8]) -> bool {
    let mut now = [0; 4096];
    let now = &mut now[..bytes.len()];
    ram.read_at(at, now);
    now == bytes
}

/// Linear address of the next instruction.
#[inline(always)]
fn fetch_address(cpu: &Cpu) -> u64 {
    if cpu.long64 {
        cpu.regs[RIP]
    } else {
        cpu.seg[sreg::CS].base.wrapping_add(cpu.regs[RIP]) & 0xffff_ffff
    }
}

/// What makes a linear address mean a certain block: translations, view, mode.
#[inline(always)]
fn code_tag(cpu: &Cpu) -> u64 {
    cpu.tlb.stamp << 8 | u64::from(mode_of(cpu, false).code())
}

#[inline(always)]
fn mode_of(cpu: &Cpu, single: bool) -> Mode {
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

/// Translates an instruction fetch; on a fault delivers it and gives nothing.
#[cold]
#[inline(never)]
fn fetch_page(cpu: &mut Cpu, va: u64) -> Option<RamOffset> {
    if cpu.long64 && !canonical(va) || cpu.regs[RIP] > cpu.fetch_limit {
        return fault_outside(cpu);
    }
    match cpu.fetch_target(va) {
        Ok(Some(at)) => Some(at),
        Ok(None) => {
            // Nothing to execute outside RAM: unclaimed addresses read as ones, FFh FFh is #UD.
            cpu.fault = Fault {
                vector: exception::UD,
                error_code: 0,
                detail: 0,
            };
            fault_at_fetch(cpu, Trap::Exception);
            None
        }
        Err(trap) => {
            fault_at_fetch(cpu, trap);
            None
        }
    }
}

/// #GP(0) for a fetch from a non-canonical address or beyond CS's limit.
fn fault_outside<T>(cpu: &mut Cpu) -> Option<T> {
    cpu.fault = Fault {
        vector: exception::GP,
        error_code: 0,
        detail: 0,
    };
    fault_at_fetch(cpu, Trap::Exception);
    None
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

/// A non-canonical stack address is #SS(0), not #GP(0) (SDM Vol 3 6.15).
fn stack_fault(cpu: &mut Cpu, op: &Op) {
    if cpu.fault.detail == crate::mem::NON_CANONICAL && cpu.fault.vector == exception::GP {
        cpu.fault.detail = 0;
        if usize::from(op.seg) == sreg::SS {
            cpu.fault.vector = exception::SS;
        }
    }
}

fn refill(cpu: &mut Cpu) {
    let retired = cpu.retired_now();
    let slice = cpu.platform.poll(retired).clamp(1, i64::MAX as u64 / 2) as i64;
    cpu.retired_base = retired;
    cpu.budget = slice;
    cpu.budget_given = slice;
    cpu.vmx_polled();
}

/// Takes NMI, INIT and SIPI from the controller.
fn collect_signals(cpu: &mut Cpu) {
    if cpu.pending & pending::SIGNAL == 0 {
        return;
    }
    cpu.pending &= !pending::SIGNAL;
    if cpu.platform.take_nmi() {
        cpu.nmi_pending = true;
    }
    let start = cpu.platform.take_start();
    if start.init {
        cpu.init_pending = true;
        cpu.sipi_pending = None;
    }
    if start.sipi.is_some() {
        cpu.sipi_pending = start.sipi;
    }
}
