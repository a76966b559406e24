//! A machine of one or two processors that are run in turns, all by one thread.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use guestmem::{Gpa, GuestRam};
use hostexec::HostExec;
use softcpu::code::BlockCache;
use softcpu::cpu::{Cpu, gpr};
use softcpu::run::Runner;
use softcpu::world::World;
use vcpu::{Attention, InterruptFault, Platform, REPRODUCIBLE_SEED, RunExit, VcpuState, Wake};

use super::guest::{FRAMES, RAM_BYTES, may_be_flags};
use crate::cpu::vm_config;

/// What the board gives a processor, and what came of it.
#[derive(Debug, Default)]
pub struct Lines {
    /// Instructions until the next poll.
    slice: AtomicU64,
    nmi: AtomicBool,
    /// The vector of an interrupt; 0 for none.
    interrupt: AtomicU8,
    cr8: AtomicU8,
    /// A sum over all accesses in their order.
    accesses: AtomicU64,
    /// Interrupts and NMIs taken.
    taken: [AtomicU64; 2],
}

impl Lines {
    fn note(&self, at: u64, value: u64) {
        let sum = self.accesses.load(Ordering::Relaxed);
        let sum = (sum ^ at)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23);
        let sum = (sum ^ value).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.accesses.store(sum, Ordering::Relaxed);
    }
}

struct Board {
    attention: Attention,
    lines: Arc<Lines>,
}

/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
/// A write to this port raises the interrupt that is written.
pub const RAISES: u16 = 0x80;

impl Platform for Board {
    fn pio_read(&mut self, port: u16, size: u8, retired: u64) -> u32 {
        self.lines
            .note(u64::from(port) << 8 | u64::from(size), retired);
        u32::from(port).wrapping_mul(0x9e37_79b1)
    }

    fn pio_write(&mut self, port: u16, size: u8, value: u32, retired: u64) {
        let at = 1 << 32 | u64::from(port) << 8 | u64::from(size);
        self.lines.note(at, retired << 32 | u64::from(value));
        if port == RAISES && value as u8 >= 0x20 {
            self.lines.interrupt.store(value as u8, Ordering::Relaxed);
            self.attention.raise(Attention::INTERRUPT);
        }
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8], retired: u64) {
        self.lines.note(gpa.0 << 8 | data.len() as u64, retired);
        data.fill(gpa.0 as u8);
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8], retired: u64) {
        self.lines.note(!gpa.0 << 8 | data.len() as u64, retired);
        for &byte in data {
            self.lines.note(!gpa.0, u64::from(byte));
        }
    }

    fn apic_msr_read(&mut self, msr: u32, _: u64) -> Result<u64, InterruptFault> {
        if msr == x86defs::msr::IA32_APIC_BASE {
            return Ok(0xfee0_0900);
        }
        Err(InterruptFault)
    }

    fn cr8(&mut self) -> u8 {
        self.lines.cr8.load(Ordering::Relaxed)
    }

    fn set_cr8(&mut self, priority: u8) {
        self.lines.cr8.store(priority, Ordering::Relaxed);
    }

    fn interrupt_pending(&mut self) -> bool {
        self.lines.interrupt.load(Ordering::Relaxed) != 0
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let vector = self.lines.interrupt.swap(0, Ordering::Relaxed);
        self.lines.taken[0].fetch_add(u64::from(vector != 0), Ordering::Relaxed);
        (vector != 0).then_some(vector)
    }

    fn take_nmi(&mut self) -> bool {
        let nmi = self.lines.nmi.swap(false, Ordering::Relaxed);
        self.lines.taken[1].fetch_add(u64::from(nmi), Ordering::Relaxed);
        nmi
    }

    fn tsc(&mut self, retired: u64) -> u64 {
        retired
    }

    fn idle(&mut self, _: u64, _: Option<u64>) -> Wake {
        Wake::Stop
    }

    fn poll(&mut self, _: u64) -> u64 {
        self.lines.slice.load(Ordering::Relaxed)
    }
}

/// Where a processor is: its time, RIP, RSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At(pub u64, pub u64, pub u64);

/// A processor and its lines.
pub struct Processor {
    /// What runs it.
    pub runner: Runner,
    lines: Arc<Lines>,
    attention: Attention,
}

impl Processor {
    /// Where it is in its time.
    pub fn retired(&self) -> u64 {
        self.runner.cpu.retired_now()
    }

    /// Where it is.
    pub fn at(&self) -> At {
        let cpu = &self.runner.cpu;
        At(self.retired(), cpu.rip(), cpu.regs[gpr::RSP])
    }

    /// Whether it is there, or beyond. Faults take no time.
    pub fn is_at(&self, there: At) -> bool {
        self.retired() > there.0 || self.at() == there
    }

    /// The same, also inside repeated string instructions, by what is left of them.
    pub fn place(&self) -> (u64, Reverse<u64>) {
        let left = match self.runner.gave_way() {
            true => self.runner.cpu.regs[gpr::RCX],
            false => 0,
        };
        (self.retired(), Reverse(left))
    }

    /// Has the next polls give so many instructions.
    pub fn set_slice(&self, instructions: u64) {
        self.lines.slice.store(instructions, Ordering::Relaxed);
    }

    /// Raises an NMI.
    pub fn raise_nmi(&self) {
        self.lines.nmi.store(true, Ordering::Relaxed);
        self.attention.raise(Attention::INTERRUPT);
    }

    /// Raises an interrupt.
    pub fn raise(&self, vector: u8) {
        self.lines.interrupt.store(vector, Ordering::Relaxed);
        self.attention.raise(Attention::INTERRUPT);
    }

    /// Interrupts and NMIs taken so far.
    pub fn taken(&self) -> [u64; 2] {
        [0, 1].map(|n| self.lines.taken[n].load(Ordering::Relaxed))
    }

    /// A sum over all accesses to the board.
    pub fn accesses(&self) -> u64 {
        self.lines.accesses.load(Ordering::Relaxed)
    }

    /// Executes until the next poll, or until something else is due.
    pub fn turn(&mut self) -> Option<RunExit> {
        self.runner.turn()
    }

    fn begin(&mut self, start: &VcpuState) {
        let lines = &self.lines;
        lines.nmi.store(false, Ordering::Relaxed);
        lines.interrupt.store(0, Ordering::Relaxed);
        lines.accesses.store(0, Ordering::Relaxed);
        self.attention.clear(!Attention::CODE);
        let cpu = &mut self.runner.cpu;
        cpu.retired_base = 0;
        (cpu.budget, cpu.budget_given, cpu.uncounted) = (0, 0, 0);
        cpu.nmi_pending = false;
        cpu.restore(start);
        cpu.random_state = REPRODUCIBLE_SEED;
        self.runner.drop_blocks();
    }
}

/// How blocks are run.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Processors.
    pub vcpus: u32,
    /// Runs before a block is translated; `None` for never.
    pub threshold: Option<u16>,
    /// Bytes for translations.
    pub area: usize,
    /// Operations that are kept of blocks.
    pub ops: usize,
    /// Changes of code after which blocks there compare their bytes, if not as many as usual.
    pub often: Option<u8>,
}

/// The machine.
pub struct System {
    /// Its memory.
    pub ram: Arc<GuestRam>,
    /// Its processors.
    pub processors: Vec<Processor>,
    /// What RAM holds.
    pub buffer: Vec<u8>,
}

impl System {
    /// A machine whose RAM is `image`.
    ///
    /// # Panics
    /// The host has no memory for it.
    pub fn new(kind: Kind, image: &[u8]) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM_BYTES)]).expect("memory for a small guest");
        let ram = Arc::new(ram);
        ram.write(Gpa(0), image).expect("it is RAM");
        let world: Arc<World> = Arc::default();
        let processor = |index| {
            let (attention, lines) = (Attention::new(), Arc::new(Lines::default()));
            let board = Board {
                attention: attention.clone(),
                lines: Arc::clone(&lines),
            };
            let cpu = Cpu::new(
                Arc::new(softcpu::model(&vm_config())),
                Arc::clone(&ram),
                Box::new(board),
                attention.clone(),
                index,
                HostExec::new().expect("memory for vector instructions"),
                Arc::clone(&world),
            );
            let mut runner = Runner::new(cpu, kind.vcpus);
            runner.cache = BlockCache::of_room(kind.ops);
            if let Some(often) = kind.often {
                runner.cache.often = often;
            }
            if let Some(threshold) = kind.threshold {
                let translator = jit::Translator::with_room(threshold, 64, kind.area);
                runner.set_executor(Box::new(translator.expect("memory for code")));
            }
            Processor {
                runner,
                lines,
                attention,
            }
        };
        Self {
            processors: (0..kind.vcpus).map(processor).collect(),
            buffer: vec![0; image.len()],
            ram,
        }
    }

    /// Writes to RAM like a device.
    ///
    /// # Panics
    /// The range is not RAM.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa(at), bytes).expect("it is RAM");
    }

    /// Makes RAM hold `image` and starts the processors anew.
    pub fn begin(&mut self, image: &[u8], states: &[VcpuState]) {
        const PAGE: usize = 4096;
        self.read();
        let pages = image.chunks(PAGE).zip(self.buffer.chunks(PAGE));
        for (at, (wanted, found)) in (0..).step_by(PAGE).zip(pages) {
            if wanted != found {
                self.write(at, wanted);
            }
        }
        for (processor, state) in self.processors.iter_mut().zip(states) {
            processor.begin(state);
        }
    }

    /// Reads all RAM into [`System::buffer`].
    ///
    /// # Panics
    /// It is not there any more.
    pub fn read(&mut self) {
        self.ram.read(Gpa(0), &mut self.buffer).expect("it is RAM");
    }
}

/// Whether two processors are the same but for flags that arithmetic changes.
pub fn same_but_flags(one: &Processor, other: &Processor) -> bool {
    let (a, b) = (&one.runner.cpu, &other.runner.cpu);
    let system = |c: &Cpu| {
        [
            c.rflags() & !ARITHMETIC,
            c.cr0,
            c.cr2,
            c.cr3,
            c.cr4,
            c.efer,
            c.xcr0,
            c.dr6,
            c.dr7,
            c.pending_debug,
            u64::from(c.cpl),
            u64::from(c.long64),
            u64::from(c.nmi_blocked),
            u64::from(c.pkru),
            c.msr.kernel_gs_base,
            c.retired_now(),
            c.uncounted,
        ]
    };
    a.regs[..17] == b.regs[..17]
        && system(a) == system(b)
        && a.seg == b.seg
        && a.dr == b.dr
        && a.shadow == b.shadow
        && a.activity == b.activity
        && a.ext.ymm == b.ext.ymm
        && a.ext.mxcsr == b.ext.mxcsr
        && a.ext.fx[..24] == b.ext.fx[..24]
        && a.ext.fx[32..160] == b.ext.fx[32..160]
        && one.accesses() == other.accesses()
        && one.taken() == other.taken()
}

/// The flags in which they differ.
pub fn flags_that_differ(one: &Processor, other: &Processor) -> u64 {
    one.runner.cpu.rflags() ^ other.runner.cpu.rflags()
}

/// The flags in which frames on the handlers' stacks differ; nothing if anything else there does.
pub fn frames_that_differ(one: &System, other: &System) -> Option<u64> {
    const LEN: usize = (FRAMES.end - FRAMES.start) as usize;
    let [a, b] = [one, other].map(|s| {
        let mut page = [0u8; LEN];
        s.ram.read(Gpa(FRAMES.start), &mut page).expect("it is RAM");
        page
    });
    if a == b {
        return Some(0);
    }
    let mut flags = 0;
    for (at, (a, b)) in (0..).step_by(8).zip(a.chunks(8).zip(b.chunks(8))) {
        let differ = (0..8).fold(0, |d, n| d | u64::from(a[n] ^ b[n]) << (8 * n));
        if differ != 0 && !may_be_flags(at) || differ & !ARITHMETIC != 0 {
            return None;
        }
        flags |= differ;
    }
    Some(flags)
}

/// Makes flags and frames of a processor of `to` those of `from`.
pub fn level(from: &System, to: &mut System, vcpu: usize) {
    let flags = from.processors[vcpu].runner.cpu.rflags();
    let cpu = &mut to.processors[vcpu].runner.cpu;
    cpu.flags.set_bits(flags & ARITHMETIC);
    let mut frames = [0; (FRAMES.end - FRAMES.start) as usize];
    from.ram
        .read(Gpa(FRAMES.start), &mut frames)
        .expect("it is RAM");
    to.write(FRAMES.start, &frames);
}
