//! A bench for instruction tests: bytes in RAM, a state, one step, a look at the result.
//!
//! Memory is mapped one to one (where paging is on) and every vector has a handler of its own that jumps to
//! itself, so that RIP tells what happened ([`Bench::step`]).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use guestmem::{Gpa, GuestRam, RamOffset};
use hostexec::HostExec;
use vcpu::cpuid::{CpuModel, HostVector, ModelConfig};
use vcpu::{
    Attention, DescriptorTable, NestedVirt, Platform, SegmentRegister, StartSignals, VcpuState,
    VmConfig, Wake,
};
use x86defs::segment::{Access, Selector};

use crate::cpu::{Cpu, Model, RIP, gpr, sreg};
use crate::run::Runner;

pub const RAM_BYTES: u64 = 8 << 20;
/// Page tables: PML4, PDPT, one PD of 2 MByte pages, and a page table for the 2 MByte from [`SMALL`] on.
pub const PML4: u64 = 0x1000;
pub const PD: u64 = 0x3000;
pub const PT: u64 = 0x4000;
pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x6000;
pub const TSS: u64 = 0x7000;
/// A 32-bit page directory, and PDPTEs with a PAE page directory of 2 MByte pages.
pub const PD32: u64 = 0x8000;
pub const PDPTES: u64 = 0x9000;
pub const PAE_PD: u64 = 0xa000;
pub const HANDLERS: u64 = 0x1_0000;
pub const CODE: u64 = 0x2_0000;
pub const STACK: u64 = 0x3_0000;
pub const RSP0: u64 = 0x4_0000;
pub const DATA: u64 = 0x5_0000;
/// From here on, 2 MByte are mapped by 4 KByte pages.
pub const SMALL: u64 = 0x20_0000;

/// Selectors of the bench's GDT.
pub mod sel {
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const TSS: u16 = 0x18;
    pub const USER_CODE32: u16 = 0x2b;
    pub const USER_DATA: u16 = 0x33;
    pub const USER_CODE64: u16 = 0x3b;
    pub const CODE32: u16 = 0x40;
    /// A 16-bit stack (SS.B clear) of privilege 3.
    pub const USER_STACK16: u16 = 0x4b;
    pub const STACK16: u16 = 0x50;
}

const DESCRIPTORS: [u64; 11] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8900_7000_0067,
    0,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x0000_f300_0000_ffff,
    0x0000_9300_0000_ffff,
];

/// What of the board a test sees and sets.
#[derive(Default)]
pub struct Signals {
    /// FERR#, driven by the processor.
    pub ferr: AtomicBool,
    /// IGNNE#.
    pub ignne: AtomicBool,
    /// The vector of an interrupt that waits to be taken; 0 for none.
    pub interrupt: AtomicU8,
    /// Interrupts of performance counters, which come as NMIs: how many, and whether the last one was to mask the local
    /// APIC's entry.
    pub performance: Mutex<(u32, bool)>,
    /// An NMI waits to be taken.
    pub nmi: AtomicBool,
    /// What the clock has moved by while the processor was idle: 1000 each time.
    pub slept: AtomicU64,
    /// INIT and start-up IPI that wait to be taken.
    pub start: Mutex<StartSignals>,
}

struct Board(Arc<Signals>);

impl Platform for Board {
    fn pio_read(&mut self, _: u16, _: u8, _: u64) -> u32 {
        0x5a
    }
    fn interrupt_pending(&mut self) -> bool {
        self.0.interrupt.load(Ordering::Relaxed) != 0
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let vector = self.0.interrupt.swap(0, Ordering::Relaxed);
        (vector != 0).then_some(vector)
    }
    fn set_ferr(&mut self, asserted: bool) {
        self.0.ferr.store(asserted, Ordering::Relaxed);
    }
    fn ignne(&mut self) -> bool {
        self.0.ignne.load(Ordering::Relaxed)
    }
    fn take_start(&mut self) -> StartSignals {
        std::mem::take(&mut self.0.start.lock().unwrap())
    }
    fn performance_interrupt(&mut self, masks_entry: bool) {
        let mut seen = self.0.performance.lock().unwrap();
        *seen = (seen.0 + 1, masks_entry);
        self.0.nmi.store(true, Ordering::Relaxed);
    }
    fn take_nmi(&mut self) -> bool {
        self.0.nmi.swap(false, Ordering::Relaxed)
    }
    fn tsc(&mut self, retired: u64) -> u64 {
        retired + self.0.slept.load(Ordering::Relaxed)
    }
    fn idle(&mut self, _: u64, _: Option<u64>) -> Wake {
        self.0.slept.fetch_add(1000, Ordering::Relaxed);
        Wake::Stop
    }
    fn poll(&mut self, _: u64) -> u64 {
        10_000
    }
}

/// What an instruction led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It completed; RIP goes on here.
    Next(u64),
    /// This vector was delivered.
    Vector(u8),
    /// Triple fault.
    Shutdown,
}

pub struct Bench {
    pub runner: Runner,
    pub ram: Arc<GuestRam>,
    pub signals: Arc<Signals>,
}

fn segment(selector: u16, access: u32, base: u64, limit: u32) -> SegmentRegister {
    SegmentRegister {
        selector: Selector(selector),
        base,
        limit,
        access: Access(access),
    }
}

/// The software CPU's own model with everything it can have.
pub fn model() -> Model {
    model_of(CpuModel::Max)
}

/// A model by name.
pub fn model_of(cpu: CpuModel) -> Model {
    let config = ModelConfig {
        vcpus: 1,
        nested: NestedVirt::Intel,
        tsc_hz: 1_000_000_000,
        crystal_hz: 25_000_000,
        host: HostVector::detect(),
    };
    crate::engine::model(&VmConfig {
        vcpus: 1,
        cpuid: vcpu::cpuid::model(cpu, &config),
        nested: NestedVirt::Intel,
        tsc_hz: 1_000_000_000,
    })
}

fn write_tables(ram: &GuestRam, wide_gates: bool) {
    let put = |at: u64, v: u64| ram.store::<u64>(RamOffset(at), v);
    put(PML4, 0x2007);
    put(0x2000, PD | 7);
    put(PDPTES, PAE_PD | 1);
    for i in 0..RAM_BYTES >> 21 {
        put(PD + 8 * i, i << 21 | 0x87);
        put(PAE_PD + 8 * i, i << 21 | 0x87);
    }
    for i in 0..RAM_BYTES >> 22 {
        ram.store::<u32>(RamOffset(PD32 + 4 * i), (i << 22) as u32 | 0x87);
    }
    put(PD + 8 * (SMALL >> 21), PT | 7);
    for i in 0..512 {
        put(PT + 8 * i, (SMALL + (i << 12)) | 7);
    }
    for (i, d) in DESCRIPTORS.iter().enumerate() {
        put(GDT + 8 * i as u64, *d);
    }
    for v in 0..256u64 {
        let at = HANDLERS + 16 * v;
        let code = if wide_gates { sel::CODE64 } else { sel::CODE32 };
        let gate = (at & 0xffff) | u64::from(code) << 16 | 0xee00 << 32 | (at & 0xffff_0000) << 32;
        put(IDT + if wide_gates { 16 } else { 8 } * v, gate);
        // JMP to itself.
        ram.store::<u16>(RamOffset(at), 0xfeeb);
    }
    if wide_gates {
        put(TSS + 4, RSP0);
    } else {
        ram.store::<u32>(RamOffset(TSS + 4), RSP0 as u32);
        ram.store::<u16>(RamOffset(TSS + 8), sel::DATA);
    }
}

impl Bench {
    fn new(wide_gates: bool, prepare: impl FnOnce(&mut VcpuState)) -> Self {
        Self::with_model(model(), wide_gates, prepare)
    }

    fn with_model(model: Model, wide_gates: bool, prepare: impl FnOnce(&mut VcpuState)) -> Self {
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), RAM_BYTES)]).unwrap());
        write_tables(&ram, wide_gates);
        let mut bench = Self::after_reset(model, ram);
        let mut s = vcpu::reset(true);
        s.tr = segment(sel::TSS, 0x8b, TSS, 0x67);
        s.ldtr = segment(0, 0x1_0000, 0, 0);
        s.gdtr = DescriptorTable {
            base: GDT,
            limit: 8 * DESCRIPTORS.len() as u16 - 1,
        };
        s.idtr = DescriptorTable {
            base: IDT,
            limit: 0xfff,
        };
        s.gpr = [0; 16];
        s.gpr[gpr::RSP] = STACK;
        s.rip = CODE;
        prepare(&mut s);
        bench.cpu().restore(&s);
        bench
    }

    /// As RESET leaves the processor.
    pub fn fresh(model: Model) -> Self {
        Self::after_reset(
            model,
            Arc::new(GuestRam::new(&[(Gpa(0), RAM_BYTES)]).unwrap()),
        )
    }

    fn after_reset(model: Model, ram: Arc<GuestRam>) -> Self {
        let signals = Arc::new(Signals::default());
        let cpu = Cpu::new(
            Arc::new(model),
            ram.clone(),
            Box::new(Board(Arc::clone(&signals))),
            Attention::new(),
            0,
            HostExec::new().unwrap(),
            Arc::default(),
        );
        Self {
            runner: Runner::new(cpu, 1),
            ram,
            signals,
        }
    }

    fn flat(s: &mut VcpuState, code: u16, access: u32, data: u16) {
        let dpl = u32::from(data & 3) << 5;
        let data = segment(data, 0xc093 | dpl, 0, u32::MAX);
        s.segments = [data; 6];
        s.segments[sreg::CS] = segment(code, access | dpl, 0, u32::MAX);
    }

    fn long_state(s: &mut VcpuState) {
        s.system.cr0 = 0x8000_0033;
        s.system.cr3 = PML4;
        // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
        s.system.cr4 = 0x4_0620;
        s.system.efer = 0xd01;
        s.system.xcr0 = 7;
    }

    /// 64-bit mode, CPL 0, paging one to one.
    pub fn long() -> Self {
        Self::new(true, |s| {
            Self::long_state(s);
            Self::flat(s, sel::CODE64, 0xa09b, sel::DATA);
        })
    }

    /// The same with another CPU model.
    pub fn long_with(model: Model) -> Self {
        Self::with_model(model, true, |s| {
            Self::long_state(s);
            Self::flat(s, sel::CODE64, 0xa09b, sel::DATA);
        })
    }

    /// Compatibility mode, CPL 0, with another CPU model.
    pub fn compatible_with(model: Model) -> Self {
        Self::with_model(model, true, |s| {
            Self::long_state(s);
            Self::flat(s, sel::CODE32, 0xc09b, sel::DATA);
        })
    }

    /// 64-bit mode, CPL 3.
    pub fn user() -> Self {
        Self::new(true, |s| {
            Self::long_state(s);
            Self::flat(s, sel::USER_CODE64, 0xa09b, sel::USER_DATA);
        })
    }

    /// 32-bit protected mode without paging, CPL 0, flat segments.
    pub fn protected() -> Self {
        Self::protected_with(model())
    }

    /// The same with another CPU model.
    pub fn protected_with(model: Model) -> Self {
        Self::with_model(model, false, |s| {
            s.system.cr0 = 0x33;
            s.system.cr4 = 0x600;
            Self::flat(s, sel::CODE32, 0xc09b, sel::DATA);
        })
    }

    /// The same at CPL 3.
    pub fn protected_user() -> Self {
        Self::new(false, |s| {
            s.system.cr0 = 0x33;
            s.system.cr4 = 0x600;
            Self::flat(s, sel::USER_CODE32, 0xc09b, sel::USER_DATA);
        })
    }

    /// Virtual-8086 mode with IOPL 3; CS base is [`CODE`].
    pub fn v8086() -> Self {
        Self::new(false, |s| {
            s.system.cr0 = 0x33;
            s.system.cr4 = 0x600;
            let data = segment(0, 0xf3, 0, 0xffff);
            s.segments = [data; 6];
            s.segments[sreg::CS] = segment((CODE >> 4) as u16, 0xf3, CODE, 0xffff);
            s.rflags = 0x2_3002;
            s.rip = 0;
            s.gpr[gpr::RSP] = 0xf000;
        })
    }

    /// Real-address mode; CS base is [`CODE`].
    pub fn real() -> Self {
        Self::new(false, |s| {
            let data = segment(0, 0x93, 0, 0xffff);
            s.segments = [data; 6];
            s.segments[sreg::CS] = segment((CODE >> 4) as u16, 0x9b, CODE, 0xffff);
            s.rip = 0;
            s.gpr[gpr::RSP] = 0xf000;
            s.system.cr0 = 0x10;
        })
    }

    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.runner.cpu
    }

    pub fn set(&mut self, register: usize, value: u64) {
        self.runner.cpu.regs[register] = value;
    }

    pub fn get(&self, register: usize) -> u64 {
        self.runner.cpu.regs[register]
    }

    pub fn put<T: guestmem::Word>(&self, at: u64, value: T) {
        self.ram.store(RamOffset(at), value);
    }

    pub fn at<T: guestmem::Word>(&self, at: u64) -> T {
        self.ram.load(RamOffset(at))
    }

    /// Puts `bytes` where RIP points and executes one instruction.
    pub fn run(&mut self, bytes: &[u8]) -> Outcome {
        let cpu = &self.runner.cpu;
        let base = if cpu.long64 {
            0
        } else {
            cpu.seg[sreg::CS].base
        };
        let at = base + cpu.regs[RIP];
        self.ram.write_at(RamOffset(at), bytes);
        // Test code is put into place behind the processor's back.
        self.runner.cache.clear(&mut self.runner.cpu.code_pages);
        self.step()
    }

    /// Executes one instruction.
    pub fn step(&mut self) -> Outcome {
        let exit = self.runner.single_step();
        assert_eq!(exit, None, "the bench's board asks for nothing");
        if self.runner.cpu.activity == vcpu::MpState::Shutdown {
            return Outcome::Shutdown;
        }
        let rip = self.get(RIP);
        match rip.checked_sub(HANDLERS) {
            Some(n) if n < 0x1000 => Outcome::Vector((n / 16) as u8),
            _ => Outcome::Next(rip),
        }
    }

    /// Executes `bytes`, which must complete.
    pub fn ok(&mut self, bytes: &[u8]) {
        let next = self.get(RIP) + bytes.len() as u64;
        assert_eq!(self.run(bytes), Outcome::Next(next), "{bytes:02x?}");
    }

    /// Executes `bytes`, which must raise `vector`; the error code from the 64-bit handler's frame.
    pub fn fault(&mut self, bytes: &[u8], vector: u8) -> u64 {
        assert_eq!(self.run(bytes), Outcome::Vector(vector), "{bytes:02x?}");
        self.at(self.get(gpr::RSP))
    }
}
