//! Any [`vcpu::Engine`] as a [`Subject`].
//!
//! A machine of its own for each worker: a page of ring-0 code that puts the instruction where the case
//! wants it and goes to CPL 3 by IRETQ, to 64-bit mode or to compatibility mode; an IDT whose every gate leads to an OUT, at which the engine stops;
//! the slot, mapped as on the host. Only architecture is used, so the way into the instruction and out of it
//! is tested as well. The instruction is stored by the guest itself: that the engine notices code that
//! changes is part of the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use guestmem::{Gpa, GuestRam};
use vcpu::cpuid::{CpuModel, CpuidTable, HostVector, ModelConfig, model};
use vcpu::{
    Attention, DescriptorTable, Engine, EngineError, NestedVirt, Platform, RunExit,
    SegmentRegister, Vcpu, VcpuState, VmConfig,
};
use x86defs::segment::{Access, Selector};

use crate::case::{
    CODE_BYTES, Case, Exception, Layout, Outcome, READ_ONLY_OFFSET, Registers, Subject,
    WINDOW_BYTES,
};
use crate::host::{has_fsgsbase, window_changes};
use crate::segments::{CODE64, CS, DATA, Kind, SS, Segment, first_entry, ldt};

const LOW_BYTES: u64 = 2 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const IDT: u64 = 0x5000;
const GDT: u64 = 0x6000;
const TSS: u64 = 0x6100;
/// The LDT: a table for all workers' entries.
const LDT: u64 = 0x10_0000;
const LDT_LIMIT: u32 = 0xffff;
const LOADER: u64 = 0x7000;
const GATES: u64 = 0x8000;
const GATE_BYTES: u64 = 16;
const TRAP_STACK_TOP: u64 = 0xa000;
const STAGING: u64 = 0xb000;
const LOADER_STACK: u64 = 0xc000;

/// The GDT's selectors are Linux's, so that loading one of the kernel's ends as on the host.
const KERNEL_CS: u16 = 0x10;
const KERNEL_SS: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x40;

/// Fills the last case's code with INT3, copies this case's, loads registers, IRETQ.
const LOADER_CODE: [u8; 20] = [
    0xf3, 0xaa, // rep stosb
    0x48, 0x89, 0xdf, // mov rdi, rbx
    0x48, 0x89, 0xd1, // mov rcx, rdx
    0xf3, 0xa4, // rep movsb
    0x58, 0x59, 0x5a, 0x5b, 0x5e, 0x5f, // pop rax, rcx, rdx, rbx, rsi, rdi
    0x48, 0xcf, // iretq
    0x0f, 0x0b, // ud2
];

/// Offset in the slot of the code a case of compatibility mode goes through. IRETQ would leave the upper part
/// of ESP as it was when it loads a 16-bit stack (SDM Vol 2, IRET).
const PASSAGE: u64 = 0xe_0000;
/// Offset in the slot of what that code loads: ESP, SS, and the far pointer to the case.
const PASSAGE_DATA: u64 = PASSAGE + 0x1000;

/// In 64-bit mode at CPL 3: loads SS and ESP, jumps into the case.
const PASSAGE_CODE: [u8; 19] = [
    0x8e, 0x15, 0xfa, 0x0f, 0, 0, // mov ss, [rip + 0xffa]
    0x48, 0x8b, 0x25, 0xfb, 0x0f, 0, 0, // mov rsp, [rip + 0xffb]
    0xff, 0x2d, 0xfd, 0x0f, 0, 0, // jmp far [rip + 0xffd]
];

/// Offset in the slot of the code a case of 64-bit mode goes through on its way into a warm machine.
const WARM: u64 = PASSAGE + 0x100;

/// In 64-bit mode at CPL 3: accesses the window's pages as far as they may be, with flags, registers, and memory as
/// they were in the end; jumps into the case.
fn warming_code(layout: Layout) -> Vec<u8> {
    let mut code = Vec::new();
    let mut with = |opcode: &[u8], target: u64| {
        code.extend_from_slice(opcode);
        let next = layout.slot + WARM + code.len() as u64 + 4;
        code.extend_from_slice(&(target.wrapping_sub(next) as u32).to_le_bytes());
    };
    let (window, data) = (layout.window(), layout.slot + PASSAGE_DATA);
    for page in [window, window + 4096] {
        // not byte [rip + disp], twice
        with(&[0xf6, 0x15], page);
        with(&[0xf6, 0x15], page);
    }
    // mov rsp, [rip + disp]
    with(&[0x48, 0x8b, 0x25], window + READ_ONLY_OFFSET as u64);
    with(&[0x48, 0x8b, 0x25], data);
    // jmp [rip + disp]
    with(&[0xff, 0x25], data + 8);
    code
}

/// Vectors with an error code (SDM Vol 3 Table 6-1).
const fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// A vector no exception has: the engine ended in a triple fault, did not come back, or came back elsewhere.
pub const LOST: u8 = 255;

/// Most instructions a case may take (REP counts each iteration on some engines).
const MOST_POLLS: u32 = 1000;

/// The model the tests show: everything the host lets it have.
#[must_use]
pub fn guest_cpuid() -> CpuidTable {
    model(
        CpuModel::Max,
        &ModelConfig {
            vcpus: 1,
            nested: NestedVirt::Off,
            tsc_hz: 1_000_000_000,
            crystal_hz: 25_000_000,
            host: HostVector::detect(),
        },
    )
}

struct Board {
    attention: Attention,
    polls: Arc<AtomicU32>,
}

impl Platform for Board {
    fn pio_write(&mut self, _: u16, _: u8, _: u32, _: u64) {
        self.attention.raise(Attention::STOP);
    }

    fn poll(&mut self, _: u64) -> u64 {
        if self.polls.fetch_add(1, Ordering::Relaxed) >= MOST_POLLS {
            self.attention.raise(Attention::STOP);
        }
        10_000
    }
}

/// One vCPU of an engine.
pub struct EngineSubject {
    vcpu: Box<dyn Vcpu>,
    ram: Arc<GuestRam>,
    layout: Layout,
    background: Box<[u8; WINDOW_BYTES]>,
    start: VcpuState,
    /// Where the last case's code was and how long.
    last_code: (u64, u64),
    polls: Arc<AtomicU32>,
    /// Cases find their window's pages in the TLB.
    warm: bool,
}

impl EngineSubject {
    /// Makes the machine.
    ///
    /// # Errors
    /// When the engine or the host refuses.
    ///
    /// # Panics
    /// When the host has no memory for the guest's RAM.
    pub fn new(
        engine: &dyn Engine,
        layout: Layout,
        background: &[u8; WINDOW_BYTES],
    ) -> Result<Self, EngineError> {
        let regions = [(Gpa(0), LOW_BYTES), (Gpa(layout.slot), Layout::SLOT_BYTES)];
        let ram = Arc::new(GuestRam::new(&regions).expect("memory for a small guest"));
        let config = VmConfig {
            vcpus: 1,
            cpuid: guest_cpuid(),
            nested: NestedVirt::Off,
            tsc_hz: 1_000_000_000,
        };
        let vm = engine.create_vm(&config, ram.clone())?;
        let attention = Attention::new();
        let polls = Arc::new(AtomicU32::new(0));
        let board = Board {
            attention: attention.clone(),
            polls: polls.clone(),
        };
        let mut vcpu = vm.create_vcpu(0, Box::new(board), attention)?;
        let start = start_state(&vcpu.state()?);
        let mut subject = Self {
            vcpu,
            ram,
            layout,
            background: Box::new(*background),
            start,
            last_code: (layout.code(), CODE_BYTES as u64),
            polls,
            warm: false,
        };
        subject.fill_memory();
        Ok(subject)
    }

    /// Has cases of 64-bit mode find what they may access in the TLB: a state that is set leaves an engine nothing
    /// there, so that the first access of each case would always be a miss.
    #[must_use]
    pub fn warm(mut self) -> Self {
        self.warm = true;
        self
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.ram
            .write(Gpa(gpa), bytes)
            .expect("the subject's own addresses are RAM");
    }

    fn put_words(&self, gpa: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.put(gpa + 8 * i as u64, &word.to_le_bytes());
        }
    }

    fn word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram
            .read(Gpa(gpa), &mut bytes)
            .expect("the subject's own addresses are RAM");
        u64::from_le_bytes(bytes)
    }

    fn fill_memory(&mut self) {
        const P: u64 = 1;
        const W: u64 = 2;
        const U: u64 = 4;
        const NX: u64 = 1 << 63;
        self.put_words(PML4, &[PDPT | P | W | U]);
        self.put_words(PDPT, &[DIRECTORY | P | W | U]);
        // Supervisor, 2 MiB.
        self.put_words(DIRECTORY, &[P | W | 1 << 7]);
        self.put_words(
            DIRECTORY + 8 * (self.layout.slot >> 21),
            &[TABLE | P | W | U],
        );
        let page = |address: u64, flags: u64| {
            self.put_words(TABLE + 8 * (address >> 12 & 511), &[address | flags]);
        };
        let window = self.layout.window();
        page(window, P | W | U | NX);
        page(window + 4096, P | W | U | NX);
        page(window + READ_ONLY_OFFSET as u64, P | U | NX);
        page(self.layout.slot + PASSAGE, P | U);
        page(self.layout.slot + PASSAGE_DATA, P | U | NX);
        self.put(self.layout.slot + PASSAGE, &PASSAGE_CODE);
        let warming = warming_code(self.layout);
        self.put(self.layout.slot + WARM, &warming);
        page(self.layout.code(), P | W | U);
        page(self.layout.code() + 4096, P | W | U);

        self.put_words(
            GDT,
            &[
                0,
                0x00cf_9b00_0000_ffff,
                0x00af_9b00_0000_ffff,
                0x00cf_9300_0000_ffff,
                0x00cf_fb00_0000_ffff,
                0x00cf_f300_0000_ffff,
                0x00af_fb00_0000_ffff,
                0,
                0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40,
                0,
            ],
        );
        let entries = ldt(self.layout).map(|segment| segment.descriptor());
        self.put_words(LDT + 8 * first_entry(self.layout) as u64, &entries);
        // RSP0 at 4, IST 1 at 36 (SDM Vol 3 Figure 8-11).
        self.put(TSS + 4, &TRAP_STACK_TOP.to_le_bytes());
        self.put(TSS + 36, &TRAP_STACK_TOP.to_le_bytes());
        // No I/O permission bitmap (SDM Vol 1 19.5.2).
        self.put(TSS + 102, &0x68u16.to_le_bytes());
        for vector in 0..256 {
            let target = GATES + GATE_BYTES * vector;
            // As Linux has them: INT3 and INTO.
            let dpl = if matches!(vector, 3 | 4) { 3u64 } else { 0 };
            let low = target & 0xffff
                | u64::from(KERNEL_CS) << 16
                | 1 << 32
                | (0x8e | dpl << 5) << 40
                | (target >> 16 & 0xffff) << 48;
            self.put_words(IDT + 16 * vector, &[low, 0]);
            // out 0xf4, al; then nothing that is ever reached
            self.put(target, &[0xe6, 0xf4, 0x0f, 0x0b]);
        }
        self.put(LOADER, &LOADER_CODE);
        let background = self.background.clone();
        self.put(window, background.as_slice());
    }

    /// The window's writable part.
    fn window(&mut self) -> &mut [u8] {
        let offset = self
            .ram
            .find(Gpa(self.layout.window()), READ_ONLY_OFFSET as u64)
            .expect("the window is RAM");
        // SAFETY: the offset and length are inside the RAM mapping, and the vCPU, the only other user,
        // is not running while this borrow lives.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.ram.host_base().add(offset.0 as usize),
                READ_ONLY_OFFSET,
            )
        }
    }

    fn load(&mut self, case: &Case) -> Result<(), EngineError> {
        for patch in &case.patches {
            self.window()[patch.offset..patch.offset + patch.bytes.len()]
                .copy_from_slice(&patch.bytes);
        }
        self.put(STAGING, &case.bytes);
        let before = &case.before;
        let g = &before.gpr;
        let segments = &case.setting.segments;
        let (mut rip, mut cs, mut ss) = (before.rip, segments[CS].selector, segments[SS].selector);
        if case.setting.bits != 64 {
            self.put_words(
                self.layout.slot + PASSAGE_DATA,
                &[u64::from(ss), g[4], before.rip | u64::from(cs) << 32],
            );
            (rip, cs, ss) = (self.layout.slot + PASSAGE, CODE64, DATA);
        } else if self.warm {
            self.put_words(self.layout.slot + PASSAGE_DATA, &[g[4], before.rip]);
            rip = self.layout.slot + WARM;
        }
        self.put_words(
            LOADER_STACK,
            &[
                g[0],
                g[1],
                g[2],
                g[3],
                g[6],
                g[7],
                rip,
                u64::from(cs),
                before.rflags,
                g[4],
                u64::from(ss),
            ],
        );
        let state = &mut self.start;
        state.gpr = *g;
        state.gpr[0] = 0xcc;
        state.gpr[1] = self.last_code.1;
        state.gpr[2] = case.bytes.len() as u64;
        state.gpr[3] = case.code();
        state.gpr[4] = LOADER_STACK;
        state.gpr[6] = STAGING;
        state.gpr[7] = self.last_code.0;
        let image = &mut state.extended;
        image.legacy[..512].copy_from_slice(&before.extended.legacy);
        image.legacy[512] = 7;
        image.ymm_high = before.extended.ymm_high;
        // The loader runs in 64-bit mode at CPL 0 and takes CS and SS from its stack.
        for (register, segment) in segments.iter().enumerate() {
            if register != CS && register != SS {
                state.segments[register] = hidden(segment);
            }
        }
        self.last_code = (case.code(), case.bytes.len() as u64);
        self.vcpu.set_state(&self.start)
    }

    fn store(&mut self, case: &Case, state: &VcpuState) -> Outcome {
        let offset = state.rip.wrapping_sub(GATES);
        let vector = offset / GATE_BYTES;
        let mut after = Registers {
            gpr: state.gpr,
            rip: state.rip,
            rflags: state.rflags,
            ..Registers::default()
        };
        after
            .extended
            .legacy
            .copy_from_slice(&state.extended.legacy[..512]);
        after.extended.ymm_high = state.extended.ymm_high;
        let mut selectors = state.segments.map(|segment| segment.selector.0);
        let mut exception = Some(Exception {
            vector: LOST,
            error_code: 0,
            cr2: 0,
        });
        if vector < 256 && offset % GATE_BYTES == 2 {
            let frame = TRAP_STACK_TOP - 40;
            after.rip = self.word(frame);
            selectors[CS] = self.word(frame + 8) as u16;
            after.rflags = self.word(frame + 16);
            after.gpr[4] = self.word(frame + 24);
            selectors[SS] = self.word(frame + 32) as u16;
            exception = if vector == 3 && case.is_elsewhere(after.rip, selectors[CS]) {
                after.rip = after.rip.wrapping_sub(1);
                None
            } else {
                Some(Exception {
                    vector: vector as u8,
                    error_code: if has_error_code(vector) {
                        self.word(frame - 8) as u32
                    } else {
                        0
                    },
                    cr2: if vector == 14 { state.system.cr2 } else { 0 },
                })
            };
        }
        let background = std::mem::replace(&mut self.background, Box::new([0; WINDOW_BYTES]));
        let memory = window_changes(self.window(), &background, &case.patches);
        self.background = background;
        let mut outcome = Outcome {
            selectors,
            bases: [0; 2],
            exception,
            after,
            memory,
        };
        if has_fsgsbase() {
            outcome.bases = [4, 5].map(|register: usize| state.segments[register].base);
        }
        outcome.clear_undefined(case);
        outcome
    }

    fn run(&mut self, case: &Case) -> Result<VcpuState, EngineError> {
        self.load(case)?;
        self.polls.store(0, Ordering::Relaxed);
        match self.vcpu.run()? {
            RunExit::Stopped | RunExit::Shutdown => self.vcpu.state(),
        }
    }
}

/// A segment register that was loaded with `segment`.
fn hidden(segment: &Segment) -> SegmentRegister {
    if segment.kind == Kind::Null {
        return SegmentRegister {
            base: segment.base,
            access: Access::UNUSABLE,
            ..SegmentRegister::default()
        };
    }
    let flags = (segment.descriptor() >> 52 & 0xc) as u32;
    SegmentRegister {
        selector: Selector(segment.selector),
        base: segment.base,
        limit: segment.limit,
        access: Access(u32::from(segment.access_byte()) | flags << 12),
    }
}

/// CPL 0 at the loader, paging on, every feature a program may use enabled.
fn start_state(reset: &VcpuState) -> VcpuState {
    let mut state = reset.clone();
    state.rip = LOADER;
    state.rflags = 2;
    let segment = |selector: u16, access: u32| SegmentRegister {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access: Access(access),
    };
    let null = SegmentRegister {
        access: Access::UNUSABLE,
        ..SegmentRegister::default()
    };
    state.segments = [
        null,
        segment(KERNEL_CS, 0xa09b),
        segment(KERNEL_SS, 0xc093),
        null,
        null,
        null,
    ];
    state.ldtr = SegmentRegister {
        selector: Selector(0x50),
        base: LDT,
        limit: LDT_LIMIT,
        access: Access(0x82),
    };
    state.tr = SegmentRegister {
        selector: Selector(TSS_SELECTOR),
        base: TSS,
        limit: 0x67,
        access: Access(0x8b),
    };
    state.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x7f,
    };
    state.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    // PG, AM, WP, NE, ET, MP, PE: as Linux has it.
    state.system.cr0 = 0x8005_0033;
    state.system.cr3 = PML4;
    // OSXSAVE, FSGSBASE, OSXMMEXCPT, OSFXSR, PGE, PAE.
    state.system.cr4 = 0x4_06a0 | u64::from(has_fsgsbase()) << 16;
    // NXE, LMA, LME, SCE.
    state.system.efer = 0xd01;
    state.system.xcr0 = 7;
    state
}

impl Subject for EngineSubject {
    fn execute(&mut self, case: &Case) -> Outcome {
        let state = self.run(case).expect("the engine goes on");
        self.store(case, &state)
    }
}
