//! A small machine around one software vCPU, made anew for each case by writing back what the last one changed.

pub mod invariants;
pub mod modes;
pub mod ways;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use guestmem::{Gpa, GuestRam};
use hostexec::HostExec;
use softcpu::code::BlockExecutor;
use softcpu::cpu::Cpu;
use softcpu::run::Runner;
use vcpu::cpuid::{CpuModel, CpuidTable, HostVector, ModelConfig, model};
use vcpu::{
    Attention, InterruptFault, NestedVirt, Platform, REPRODUCIBLE_SEED, RunExit, VcpuState,
    VmConfig,
};

/// RAM from address zero on.
pub const RAM_BYTES: u64 = 128 << 10;
/// A second region, beyond the reach of 32 bits.
pub const FAR: Gpa = Gpa(1 << 32);
/// Its size.
pub const FAR_BYTES: u64 = 4096;
/// What it is filled with.
pub const FAR_FILL: u8 = 0xc5;
/// A read of this address, behind RAM, ends a run after its block, in a machine that [stops](Machine::stops).
pub const STOP: Gpa = Gpa(RAM_BYTES);
/// Instructions between two polls.
const SLICE: u64 = 48;
/// What the TSC shows where time stands still.
const STILL: u64 = 0x1234_5678;

/// The model the guest sees: all there is.
#[must_use]
pub fn guest_cpuid() -> CpuidTable {
    model(
        CpuModel::Max,
        &ModelConfig {
            vcpus: 1,
            nested: NestedVirt::Intel,
            tsc_hz: 1_000_000_000,
            crystal_hz: 25_000_000,
            host: HostVector::detect(),
        },
    )
}

/// A VM of one vCPU of that model.
#[must_use]
pub fn vm_config() -> VmConfig {
    VmConfig {
        vcpus: 1,
        cpuid: guest_cpuid(),
        nested: NestedVirt::Intel,
        tsc_hz: 1_000_000_000,
    }
}

/// What the board offers in a case.
#[derive(Debug, Default)]
struct Lines {
    polls: AtomicU32,
    nmi: AtomicBool,
    interrupt: AtomicBool,
    vector: AtomicU8,
    cr8: AtomicU8,
    stops: AtomicBool,
    /// Time stands still, and a poll gives so many instructions and asks for nothing; zero if it does not.
    still: AtomicU64,
    /// A sum over the accesses of this case, in their order.
    accesses: AtomicU64,
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

impl Platform for Board {
    fn pio_read(&mut self, port: u16, size: u8, _: u64) -> u32 {
        self.lines.note(port.into(), size.into());
        u32::from(port).wrapping_mul(0x9e37_79b1)
    }

    fn pio_write(&mut self, port: u16, size: u8, value: u32, _: u64) {
        self.lines.note(
            1 << 16 | u64::from(port),
            u64::from(size) << 32 | u64::from(value),
        );
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8], _: u64) {
        assert!(data.len() <= 8, "at most 8 bytes at a time");
        assert!(
            (gpa.0 & 0xfff) as usize + data.len() <= 0x1000,
            "inside one page"
        );
        self.lines.note(gpa.0, data.len() as u64);
        data.fill(gpa.0 as u8);
        if gpa == STOP && self.lines.stops.load(Ordering::Relaxed) {
            self.attention.raise(Attention::STOP);
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8], _: u64) {
        assert!(data.len() <= 8, "at most 8 bytes at a time");
        assert!(
            (gpa.0 & 0xfff) as usize + data.len() <= 0x1000,
            "inside one page"
        );
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        self.lines.note(!gpa.0, u64::from_le_bytes(value));
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
        assert!(priority < 16, "CR8 has four bits");
        self.lines.cr8.store(priority, Ordering::Relaxed);
    }

    fn interrupt_pending(&mut self) -> bool {
        self.lines.interrupt.load(Ordering::Relaxed)
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let pending = self.lines.interrupt.swap(false, Ordering::Relaxed);
        pending.then(|| self.lines.vector.load(Ordering::Relaxed))
    }

    fn take_nmi(&mut self) -> bool {
        self.lines.nmi.swap(false, Ordering::Relaxed)
    }

    fn tsc(&mut self, retired: u64) -> u64 {
        match self.lines.still.load(Ordering::Relaxed) {
            0 => retired,
            _ => STILL,
        }
    }

    fn poll(&mut self, _: u64) -> u64 {
        let still = self.lines.still.load(Ordering::Relaxed);
        if still != 0 {
            return still;
        }
        if self.lines.polls.fetch_add(1, Ordering::Relaxed) >= 1 {
            self.attention.raise(Attention::STOP);
        }
        SLICE
    }
}

/// What comes from outside while a case runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    /// An NMI.
    pub nmi: bool,
    /// An interrupt of this vector.
    pub interrupt: Option<u8>,
}

/// The machine.
pub struct Machine {
    runner: Runner,
    /// Its memory.
    pub ram: Arc<GuestRam>,
    lines: Arc<Lines>,
    attention: Attention,
    /// What RAM holds at the start of a case.
    image: Vec<u8>,
    buffer: Vec<u8>,
    /// The state after RESET.
    pub reset: VcpuState,
    /// RAM beyond 4 GByte is looked at after each case.
    far_checked: bool,
    /// It has an executor.
    translates: bool,
}

impl Machine {
    /// A machine whose RAM holds `image` at the start of each case.
    ///
    /// # Panics
    /// The host has no memory for it, or the image does not fit.
    #[must_use]
    pub fn new(mut image: Vec<u8>) -> Self {
        assert!(image.len() as u64 <= RAM_BYTES, "the image fits");
        image.resize(RAM_BYTES as usize, 0);
        let regions = [(Gpa(0), RAM_BYTES), (FAR, FAR_BYTES)];
        let ram = Arc::new(GuestRam::new(&regions).expect("memory for a small guest"));
        ram.write(Gpa(0), &image).expect("it is RAM");
        ram.write(FAR, &[FAR_FILL; FAR_BYTES as usize])
            .expect("it is RAM");
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
            0,
            HostExec::new().expect("memory for vector instructions"),
            Arc::default(),
        );
        let mut runner = Runner::new(cpu, 1);
        let reset = runner.cpu.save();
        Self {
            runner,
            ram,
            lines,
            attention,
            buffer: vec![0; image.len()],
            image,
            reset,
            far_checked: true,
            translates: false,
        }
    }

    /// Writes bytes to RAM, for this case.
    ///
    /// # Panics
    /// The range is not RAM.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa(at), bytes).expect("it is RAM");
    }

    /// A quadword of RAM.
    ///
    /// # Panics
    /// The address is not RAM.
    #[must_use]
    pub fn qword(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(Gpa(at), &mut bytes).expect("it is RAM");
        u64::from_le_bytes(bytes)
    }

    /// Runs from `start` for about a hundred instructions at most, or until HLT. Gives how the run ended, the state
    /// then, and the instructions executed.
    pub fn execute(&mut self, start: &VcpuState, events: Events) -> (RunExit, VcpuState, u64) {
        self.lines.still.store(0, Ordering::Relaxed);
        let before = self.begin(start, events);
        let exit = self.runner.run();
        let state = self.runner.cpu.save();
        (exit, state, self.retired_since(before))
    }

    /// Runs from `start` one instruction after the other, until so many are executed or the run ends. Gives how it ended,
    /// the state then, and the instructions executed.
    pub fn execute_singly(
        &mut self,
        start: &VcpuState,
        most: u64,
    ) -> (Option<RunExit>, VcpuState, u64) {
        let before = self.begin(start, Events::default());
        let mut exit = None;
        let mut looks = 0;
        while exit.is_none() && self.retired_since(before) < most && looks < 4 * most + 64 {
            exit = self.runner.single_step();
            looks += 1;
        }
        let state = self.runner.cpu.save();
        (exit, state, self.retired_since(before))
    }

    /// The state of the processor.
    pub fn state(&mut self) -> VcpuState {
        self.runner.cpu.save()
    }

    fn retired_since(&self, before: u64) -> u64 {
        self.runner.cpu.retired_now().wrapping_sub(before)
    }

    fn begin(&mut self, start: &VcpuState, events: Events) -> u64 {
        let lines = &self.lines;
        lines.polls.store(0, Ordering::Relaxed);
        lines.nmi.store(events.nmi, Ordering::Relaxed);
        let interrupt = events.interrupt;
        lines
            .interrupt
            .store(interrupt.is_some(), Ordering::Relaxed);
        lines
            .vector
            .store(interrupt.unwrap_or(0), Ordering::Relaxed);
        lines.accesses.store(0, Ordering::Relaxed);
        // But that decoded code is stale stays noted: a case writes its code before it runs.
        self.attention.clear(!Attention::CODE);
        if events.nmi || interrupt.is_some() {
            self.attention.raise(Attention::INTERRUPT);
        }
        self.runner.cpu.restore(start);
        let cpu = &mut self.runner.cpu;
        cpu.random_state = REPRODUCIBLE_SEED;
        // A case begins with a poll.
        cpu.retired_base = cpu.retired_now();
        (cpu.budget, cpu.budget_given) = (0, 0);
        cpu.retired_now()
    }

    /// Has `executor` run hot blocks.
    pub fn set_executor(&mut self, executor: Box<dyn BlockExecutor>) {
        self.runner.set_executor(executor);
        self.translates = true;
    }

    /// Has reads of [`STOP`] end runs.
    pub fn stops(&mut self) {
        self.lines.stops.store(true, Ordering::Relaxed);
    }

    /// Goes on where the last run ended, under the same bounds.
    pub fn go_on(&mut self) -> (RunExit, VcpuState) {
        self.lines.polls.store(0, Ordering::Relaxed);
        self.attention.clear(Attention::STOP);
        let exit = self.runner.run();
        (exit, self.runner.cpu.save())
    }

    /// Whether nobody wrote to RAM beyond 4 GByte since the last case.
    #[must_use]
    pub fn far_is_untouched(&self) -> bool {
        let mut bytes = [0; FAR_BYTES as usize];
        self.ram.read(FAR, &mut bytes).expect("it is RAM");
        bytes.iter().all(|&byte| byte == FAR_FILL)
    }

    /// Puts RAM back.
    ///
    /// # Panics
    /// RAM is not there any more.
    pub fn restore(&mut self) {
        const PAGE: usize = 4096;
        self.ram.read(Gpa(0), &mut self.buffer).expect("it is RAM");
        let pages = self.image.chunks(PAGE).zip(self.buffer.chunks(PAGE));
        for (at, (wanted, found)) in (0..).step_by(PAGE).zip(pages) {
            if wanted != found {
                self.ram.write(Gpa(at), wanted).expect("it is RAM");
            }
        }
        if self.far_checked && !self.far_is_untouched() {
            self.ram
                .write(FAR, &[FAR_FILL; FAR_BYTES as usize])
                .expect("it is RAM");
        }
    }
}
