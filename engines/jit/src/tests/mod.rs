//! Small guests, interpreted and translated.

mod across;
mod bytes;
mod checked;
mod crossing;
mod divisions;
mod encodings;
mod jumps;
mod near;
mod programs;
mod random;
mod regions;
mod shared;
mod sites;
mod strings;
mod system;
mod vectors;
mod windows;
mod x87;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use guestmem::{CodeWatcher, Gpa, GuestRam, RamOffset};
use softcpu::SoftEngine;
use vcpu::cpuid::{CpuModel, HostVector, ModelConfig, model};
use vcpu::{
    Attention, DescriptorTable, Engine, NestedVirt, Platform, RunExit, SegmentRegister, Vcpu,
    VcpuState, VmConfig,
};
use x86defs::segment::{Access, Selector};

use self::random::Random;
use crate::Translator;

const RAM_BYTES: u64 = 256 << 10;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x8000;
const STACK: u64 = 0xc000;
const CODE: u64 = 0x1_0000;
/// Pages for data, with pages of something else between them.
const DATA: [u64; 3] = [0x2_0000, 0x2_2000, 0x2_4000];
/// Not mapped.
const NOWHERE: u64 = 0x8_0000;

/// OUT to the port at which a guest stops.
const STOP: [u8; 2] = [0xe6, 0xf4];

/// Polls after which a program has gone astray.
const MOST_POLLS: u32 = 3;

/// The same where they are drawn.
const MOST_SLICES: usize = 4000;

/// How long slices of time are, and what was seen at their ends.
#[derive(Default)]
struct Slices {
    /// Draws their lengths, below so many instructions.
    drawn: Option<(Random, usize)>,
    /// Instructions executed by the end of each.
    ends: Vec<u64>,
}

/// OUT to the port that has an interrupt come.
const INTERRUPT: [u8; 2] = [0xe6, 0xf5];
/// Its vector.
const INTERRUPT_VECTOR: u8 = 0x40;

struct Board {
    attention: Attention,
    polls: Arc<AtomicU32>,
    slices: Arc<Mutex<Slices>>,
    interrupt: bool,
}

impl Platform for Board {
    fn pio_write(&mut self, port: u16, _: u8, _: u32, _: u64) {
        if port == u16::from(INTERRUPT[1]) {
            self.interrupt = true;
            self.attention.raise(Attention::INTERRUPT);
        } else {
            self.attention.raise(Attention::STOP);
        }
    }

    fn interrupt_pending(&mut self) -> bool {
        self.interrupt
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        std::mem::take(&mut self.interrupt).then_some(INTERRUPT_VECTOR)
    }

    /// An interrupt that was not taken is not the next program's.
    fn set_cr8(&mut self, _: u8) {
        self.interrupt = false;
    }

    fn pio_read(&mut self, _: u16, _: u8, _: u64) -> u32 {
        self.attention.raise(Attention::LOOK);
        0
    }

    fn poll(&mut self, retired: u64) -> u64 {
        let slices = &mut *self.slices.lock().unwrap();
        if let Some((random, most)) = &mut slices.drawn {
            slices.ends.push(retired);
            if slices.ends.len() > MOST_SLICES {
                self.attention.raise(Attention::STOP);
            }
            return 1 + random.below(*most) as u64;
        }
        if self.polls.fetch_add(1, Ordering::Relaxed) >= MOST_POLLS {
            self.attention.raise(Attention::STOP);
        }
        10_000
    }
}

/// A processor at CPL 0 in 64-bit mode; memory is mapped one to one.
struct Machine {
    vcpu: Box<dyn Vcpu>,
    ram: Arc<GuestRam>,
    state: VcpuState,
    polls: Arc<AtomicU32>,
    slices: Arc<Mutex<Slices>>,
    others: Arc<Others>,
}

/// Other vCPUs, which have code of all pages, and what they are told of: where, how many bytes.
#[derive(Default)]
struct Others(Mutex<Vec<(u64, u64)>>);

impl CodeWatcher for Others {
    fn changed(&self, start: RamOffset, len: u64) {
        self.0.lock().unwrap().push((start.0, len));
    }
}

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// At the OUT behind its last instruction.
    Whole,
    /// With this exception at this offset in the program.
    Fault { vector: u64, at: u64 },
}

fn translating(threshold: u16) -> SoftEngine {
    let executors: softcpu::Executors = Arc::new(move |vcpus| {
        let translator = Translator::new(threshold, vcpus).map_err(std::io::Error::other)?;
        Ok(Box::new(translator))
    });
    SoftEngine::with_executors(executors)
}

impl Machine {
    fn translated() -> Self {
        Self::one_translated_of(1)
    }

    /// It translates what has been interpreted so often.
    fn translated_from(threshold: u16) -> Self {
        let executors: softcpu::Executors = Arc::new(move |vcpus| {
            let translator = Translator::new(threshold, vcpus).map_err(std::io::Error::other)?;
            Ok(Box::new(translator))
        });
        Self::new(&SoftEngine::with_executors(executors), 1)
    }

    /// One of several vCPUs; the others have code of all pages.
    fn one_translated_of(vcpus: u32) -> Self {
        Self::new(&translating(0), vcpus)
    }

    /// Blocks are translated when they have been interpreted so often.
    fn translated_after(threshold: u16) -> Self {
        Self::new(&translating(threshold), 1)
    }

    fn one_interpreted_of(vcpus: u32) -> Self {
        Self::new(&SoftEngine::new(), vcpus)
    }

    fn new(engine: &dyn Engine, vcpus: u32) -> Self {
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), RAM_BYTES)]).unwrap());
        let put = |at: u64, word: u64| ram.write(Gpa(at), &word.to_le_bytes()).unwrap();
        put(PML4, PDPT | 3);
        put(PDPT, DIRECTORY | 3);
        put(DIRECTORY, TABLE | 3);
        for page in (0..RAM_BYTES).step_by(4096).filter(|p| *p != NOWHERE) {
            let code = matches!(page, HANDLERS | CODE);
            put(TABLE + 8 * (page >> 12), page | 3 | u64::from(!code) << 63);
        }
        put(GDT + 8, 0x00af_9b00_0000_ffff);
        put(GDT + 16, 0x00cf_9300_0000_ffff);
        for vector in 0..256 {
            let at = HANDLERS + 16 * vector;
            put(IDT + 16 * vector, at & 0xffff | 8 << 16 | 0x8e00 << 32);
            ram.write(Gpa(at), &STOP).unwrap();
        }
        let host = HostVector::detect();
        let config = ModelConfig {
            vcpus,
            nested: NestedVirt::Off,
            tsc_hz: 1_000_000_000,
            crystal_hz: 25_000_000,
            host,
        };
        let config = VmConfig {
            vcpus,
            cpuid: model(CpuModel::Max, &config),
            nested: NestedVirt::Off,
            tsc_hz: 1_000_000_000,
        };
        let attention = Attention::new();
        let polls = Arc::new(AtomicU32::new(0));
        let slices = Arc::new(Mutex::new(Slices::default()));
        let board = Box::new(Board {
            attention: attention.clone(),
            polls: polls.clone(),
            slices: slices.clone(),
            interrupt: false,
        });
        let vm = engine.create_vm(&config, ram.clone()).unwrap();
        let mut vcpu = vm.create_vcpu(0, board, attention).unwrap();
        let mut state = vcpu.state().unwrap();
        set_long_mode(&mut state);
        let others = Arc::new(Others::default());
        if vcpus > 1 {
            ram.code().watch(others.clone());
            for page in (0..RAM_BYTES).step_by(4096) {
                ram.code().add(RamOffset(page), 4096, true);
            }
        }
        Self {
            others,
            vcpu,
            ram,
            state,
            polls,
            slices,
        }
    }

    fn set_xmm(&mut self, number: usize, value: u128) {
        let at = 160 + 16 * number;
        self.state.extended.legacy[at..at + 16].copy_from_slice(&value.to_le_bytes());
        // XSTATE_BV: what the image has.
        self.state.extended.legacy[512] = 7;
    }

    fn xmm(&self, number: usize) -> u128 {
        let at = 160 + 16 * number;
        u128::from_le_bytes(self.state.extended.legacy[at..at + 16].try_into().unwrap())
    }

    fn set_mxcsr(&mut self, value: u32) {
        self.state.extended.legacy[24..28].copy_from_slice(&value.to_le_bytes());
        self.state.extended.legacy[512] = 7;
    }

    fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.state.extended.legacy[24..28].try_into().unwrap())
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa(at), bytes).unwrap();
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }

    /// What the others were told of since they were asked last.
    fn told(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.others.0.lock().unwrap())
    }

    /// Runs from [`Self::state`], and replaces that.
    fn go(&mut self) -> RunExit {
        self.polls.store(0, Ordering::Relaxed);
        self.vcpu.set_state(&self.state).unwrap();
        self.told();
        let exit = self.vcpu.run().unwrap();
        self.state = self.vcpu.state().unwrap();
        exit
    }

    /// Runs a program from [`Self::state`], and replaces that.
    fn run(&mut self, program: &[u8]) -> End {
        self.put(CODE, program);
        self.put(CODE + program.len() as u64, &STOP);
        self.state.rip = CODE;
        assert_eq!(self.go(), RunExit::Stopped);
        let at = self.state.rip;
        if at >= CODE {
            assert_eq!(at, CODE + (program.len() + STOP.len()) as u64);
            return End::Whole;
        }
        let vector = (at - HANDLERS) / 16;
        let with_code = matches!(vector, 8 | 10..=14 | 17 | 21);
        let rip = u64::from_le_bytes(self.get(self.state.gpr[4] + 8 * u64::from(with_code)));
        let at = rip - CODE;
        End::Fault { vector, at }
    }
}

fn set_long_mode(state: &mut VcpuState) {
    let segment = |selector: u16, access: u32| SegmentRegister {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access: Access(access),
    };
    state.segments = [segment(16, 0xc093); 6];
    state.segments[1] = segment(8, 0xa09b);
    state.gdtr = DescriptorTable {
        base: GDT,
        limit: 23,
    };
    state.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    [state.gpr[6], state.gpr[7], state.gpr[3]] = DATA;
    state.rflags = 2;
    // PG, WP, NE, ET, MP, PE; OSXSAVE, OSXMMEXCPT, OSFXSR, PAE; NXE, LMA, LME.
    state.system.cr0 = 0x8001_0033;
    state.system.cr3 = PML4;
    state.system.cr4 = 0x4_0620;
    state.system.efer = 0xd00;
    state.system.xcr0 = 7;
}
