//! A machine for tests: a 64-bit host in VMX root operation and the memory a guest needs.
//!
//! Memory is mapped one to one for host and guest. Every exception of host or guest goes to a handler of its
//! own, so that RIP tells what happened ([`Rig::outcome`], [`guest_handler`]).

use std::sync::{Arc, Mutex};

use guestmem::{Gpa, GuestRam, RamOffset};
use hostexec::HostExec;
use vcpu::cpuid::{CpuidLeaf, CpuidResult, CpuidTable};
use vcpu::{
    Attention, DescriptorTable, NestedVirt, Platform, SegmentRegister, VcpuState, VmConfig, Wake,
};
use x86defs::segment::{Access, Selector};
use x86defs::vmx::control::entry;
use x86defs::vmx::{FieldAccess, VmcsField as F};

use crate::cpu::{Cpu, Model, RIP, gpr};
use crate::run::Runner;
use crate::vmx::vmcs::region::REVISION;

pub const RAM_BYTES: u64 = 16 << 20;
pub const PML4: u64 = 0x1000;
const GDT: u64 = 0x4000;
const HOST_IDT: u64 = 0x5000;
pub const TSS: u64 = 0x6000;
/// The stack of handlers entered from CPL 1 to 3.
const RSP0: u64 = 0x10_e000;
/// Selectors of the user segments, without RPL.
pub const USER_CS: u64 = 0x28;
pub const USER_SS: u64 = 0x30;
pub const GUEST_IDT: u64 = 0x7000;
pub const HOST_CODE: u64 = 0x2_0000;
pub const EXIT_RIP: u64 = 0x2_1000;
pub const HOST_RSP: u64 = 0x2_f000;
pub const VMXON: u64 = 0x3_0000;
pub const VMCS: u64 = 0x3_1000;
pub const OTHER_VMCS: u64 = 0x3_2000;
pub const SHADOW_VMCS: u64 = 0x3_3000;
pub const IO_BITMAP_A: u64 = 0x3_4000;
pub const IO_BITMAP_B: u64 = 0x3_5000;
pub const MSR_BITMAPS: u64 = 0x3_6000;
pub const MSR_AREA: u64 = 0x3_8000;
pub const VIRTUAL_APIC: u64 = 0x3_9000;
pub const VMREAD_BITMAP: u64 = 0x3_b000;
pub const VMWRITE_BITMAP: u64 = 0x3_c000;
pub const DATA: u64 = 0x3_d000;
/// EPT: PML4, PDPT, PD, and a page table for the 2 MByte from [`EPT_SMALL`] on.
pub const EPT_PML4: u64 = 0x4_0000;
pub const EPT_PDPT: u64 = 0x4_1000;
pub const EPT_PD: u64 = 0x4_2000;
pub const EPT_PT: u64 = 0x4_3000;
pub const EPT_SMALL: u64 = 0x40_0000;
pub const EPTP: u64 = EPT_PML4 | 3 << 3 | 6;
pub const GUEST_CODE: u64 = 0x10_0000;
pub const GUEST_RSP: u64 = 0x10_f000;

/// JMP to itself: what stands where RIP is looked at, since a step goes on with the instruction after an event.
const JUMP_SELF: u16 = 0xfeeb;

const HOST_HANDLERS: u64 = 0x1_0000;
const GUEST_HANDLERS: u64 = 0x6_0000;

/// RIP of the guest's handler of a vector.
pub fn guest_handler(vector: u8) -> u64 {
    GUEST_HANDLERS + 16 * u64::from(vector)
}

/// What the board of a test has to offer.
#[derive(Default)]
pub struct Lines {
    pub interrupt: Option<u8>,
    pub nmi: bool,
    pub cr8: u8,
    pub ports: Vec<(u16, u32)>,
    /// What the processor was idle for: times of the TSC, `None` for an event only.
    pub waits: Vec<Option<u64>>,
    /// How far idle time has brought the TSC.
    pub idle_tsc: u64,
}

struct Board(Arc<Mutex<Lines>>);

impl Board {
    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.0.lock().unwrap()
    }
}

impl Platform for Board {
    fn pio_read(&mut self, _: u16, _: u8, _: u64) -> u32 {
        0x5a
    }
    fn pio_write(&mut self, port: u16, _: u8, value: u32, _: u64) {
        self.lines().ports.push((port, value));
    }
    fn cr8(&mut self) -> u8 {
        self.lines().cr8
    }
    fn set_cr8(&mut self, priority: u8) {
        self.lines().cr8 = priority;
    }
    fn interrupt_pending(&mut self) -> bool {
        self.lines().interrupt.is_some()
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.lines().interrupt.take()
    }
    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.lines().nmi)
    }
    fn tsc(&mut self, retired: u64) -> u64 {
        16 * retired + self.lines().idle_tsc
    }
    fn poll(&mut self, _: u64) -> u64 {
        10_000
    }
    fn idle(&mut self, retired: u64, until_tsc: Option<u64>) -> Wake {
        let tsc = self.tsc(retired);
        let mut lines = self.lines();
        lines.waits.push(until_tsc);
        match until_tsc {
            Some(until) => {
                lines.idle_tsc += until.saturating_sub(tsc);
                Wake::Event
            }
            None => Wake::Stop,
        }
    }
}

/// The machine.
pub struct Rig {
    pub runner: Runner,
    pub ram: Arc<GuestRam>,
    pub lines: Arc<Mutex<Lines>>,
    pub attention: Attention,
}

fn cpuid() -> CpuidTable {
    let leaf = |leaf, subleaf, ebx, ecx, edx| CpuidLeaf {
        leaf,
        subleaf,
        result: CpuidResult {
            eax: 0,
            ebx,
            ecx,
            edx,
        },
    };
    let counters = CpuidLeaf {
        leaf: 0xa,
        subleaf: None,
        // Version 2, four counters and three of fixed function, 48 bits.
        result: CpuidResult {
            eax: 0x0730_0402,
            edx: 0x603,
            ..CpuidResult::default()
        },
    };
    CpuidTable {
        leaves: vec![
            leaf(1, None, 0, 1 << 3 | 1 << 5 | 1 << 17 | 1 << 26 | 1 << 30, 0),
            leaf(7, Some(0), 1 << 10 | 1 << 18 | 1 << 7 | 1 << 20, 0, 0),
            counters,
            CpuidLeaf {
                leaf: 0xd,
                subleaf: Some(1),
                result: CpuidResult {
                    eax: 0xf,
                    ..CpuidResult::default()
                },
            },
            leaf(0x8000_0001, None, 0, 0, 1 << 20 | 1 << 27 | 1 << 29),
        ],
        exact: false,
    }
}

fn segment(selector: u16, access: u32, limit: u32) -> SegmentRegister {
    SegmentRegister {
        selector: Selector(selector),
        base: 0,
        limit,
        access: Access(access),
    }
}

/// The host's state: 64-bit mode, paging one to one, CPL 0.
fn host_state() -> VcpuState {
    let mut s = vcpu::reset(true);
    let data = segment(0x10, 0xc093, u32::MAX);
    s.segments = [data, segment(8, 0xa09b, u32::MAX), data, data, data, data];
    s.tr = SegmentRegister {
        base: TSS,
        ..segment(0x18, 0x8b, 0x67)
    };
    s.ldtr = segment(0, 0x1_0000, 0);
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x37,
    };
    s.idtr = DescriptorTable {
        base: HOST_IDT,
        limit: 0xfff,
    };
    s.gpr = [0; 16];
    s.gpr[gpr::RSP] = HOST_RSP;
    s.rip = HOST_CODE;
    s.rflags = 2;
    s.system.cr0 = 0x8000_0033;
    s.system.cr3 = PML4;
    s.system.cr4 = 0x2620;
    s.system.efer = 0xd00;
    s
}

fn write_tables(ram: &GuestRam) {
    let put = |at: u64, v: u64| ram.store::<u64>(RamOffset(at), v);
    put(PML4, 0x2000 | 7);
    put(0x2000, 0x3000 | 7);
    put(EPT_PML4, EPT_PDPT | 7);
    put(EPT_PDPT, EPT_PD | 7);
    for i in 0..RAM_BYTES >> 21 {
        put(0x3000 + 8 * i, i << 21 | 0x87);
        put(EPT_PD + 8 * i, i << 21 | 0xb7);
    }
    put(EPT_PD + 8 * (EPT_SMALL >> 21), EPT_PT | 7);
    for i in 0..512 {
        put(EPT_PT + 8 * i, (EPT_SMALL + (i << 12)) | 0x37);
    }
    for (selector, d) in [
        (8, 0x00af_9b00_0000_ffff),
        (0x10, 0x00cf_9300_0000_ffff),
        (USER_CS, 0x00af_fb00_0000_ffff),
        (USER_SS, 0x00cf_f300_0000_ffff),
    ] {
        put(GDT + selector, d);
    }
    for (idt, handlers) in [(HOST_IDT, HOST_HANDLERS), (GUEST_IDT, GUEST_HANDLERS)] {
        for v in 0..256u64 {
            let at = handlers + 16 * v;
            let low = (at & 0xffff) | 8 << 16 | 0x8e00 << 32 | (at & 0xffff_0000) << 32;
            put(idt + 16 * v, low);
            ram.store::<u16>(RamOffset(at), JUMP_SELF);
        }
    }
    ram.store::<u16>(RamOffset(EXIT_RIP), JUMP_SELF);
    // RSP0.
    put(TSS + 4, RSP0);
    for region in [VMXON, VMCS, OTHER_VMCS] {
        ram.store::<u32>(RamOffset(region), REVISION);
    }
    ram.store::<u32>(RamOffset(SHADOW_VMCS), REVISION | 1 << 31);
}

impl Rig {
    /// In 64-bit mode with CR4.VMXE set, outside VMX operation.
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), RAM_BYTES)]).unwrap());
        write_tables(&ram);
        let model = Arc::new(Model {
            maxphyaddr: 40,
            cr4_allowed: 0x0037_27ff,
            xcr0_allowed: 7,
            ..crate::engine::model(&VmConfig {
                vcpus: 1,
                cpuid: cpuid(),
                nested: NestedVirt::Intel,
                tsc_hz: 1_000_000_000,
            })
        });
        let lines = Arc::new(Mutex::new(Lines::default()));
        let attention = Attention::new();
        let board = Box::new(Board(lines.clone()));
        let host = HostExec::new().unwrap();
        let cpu = Cpu::new(
            model,
            ram.clone(),
            board,
            attention.clone(),
            0,
            host,
            Arc::default(),
        );
        let mut rig = Self {
            runner: Runner::new(cpu, 1),
            ram,
            lines,
            attention,
        };
        rig.cpu().restore(&host_state());
        rig
    }

    /// In VMX root operation with [`VMCS`] current and a 64-bit guest set up in it, not launched.
    pub fn root() -> Self {
        let mut rig = Self::new();
        rig.memory_operand(&[0xf3, 0x0f, 0xc7, 0x30], VMXON);
        rig.memory_operand(&[0x66, 0x0f, 0xc7, 0x30], VMCS);
        rig.memory_operand(&[0x0f, 0xc7, 0x30], VMCS);
        assert_eq!(rig.outcome(), Outcome::Succeed);
        rig.set_baseline();
        rig
    }

    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.runner.cpu
    }

    pub fn rip(&mut self) -> u64 {
        self.cpu().regs[RIP]
    }

    pub fn bytes(&mut self, at: u64, bytes: &[u8]) {
        self.ram.write_at(RamOffset(at), bytes);
        // Test code is put into place behind the processor's back.
        let pages = &mut self.runner.cpu.code_pages;
        self.runner.cache.clear(pages);
    }

    pub fn qword(&self, at: u64) -> u64 {
        self.ram.load(RamOffset(at))
    }

    pub fn set_qword(&self, at: u64, value: u64) {
        self.ram.store(RamOffset(at), value);
    }

    /// Runs one host instruction from [`HOST_CODE`].
    pub fn host_instruction(&mut self, code: &[u8]) {
        assert!(!self.cpu().vmx.in_guest);
        self.bytes(HOST_CODE, code);
        self.cpu().regs[RIP] = HOST_CODE;
        self.cpu().flags.set_bits(0);
        self.step();
    }

    /// Runs a host instruction whose 64-bit operand at `[rax]` is `value`.
    pub fn memory_operand(&mut self, code: &[u8], value: u64) {
        self.set_qword(DATA, value);
        self.cpu().regs[gpr::RAX] = DATA;
        self.host_instruction(code);
    }

    pub fn step(&mut self) {
        assert_eq!(self.runner.single_step(), None, "the run ended");
    }

    /// What the last VMX instruction reported in RFLAGS.
    pub fn outcome(&mut self) -> Outcome {
        if self.rip() < HOST_CODE {
            return Outcome::Exception(((self.rip() - HOST_HANDLERS) / 16) as u8);
        }
        match self.cpu().rflags() & 0x8d5 {
            0 => Outcome::Succeed,
            1 => Outcome::FailInvalid,
            0x40 => Outcome::FailValid(self.get(F::InstructionError)),
            other => panic!("flags {other:#x}"),
        }
    }

    pub fn get(&mut self, f: F) -> u64 {
        self.cpu().vmx.current_vmcs().get(f)
    }

    /// Writes a field of the current VMCS as VMWRITE does.
    pub fn set(&mut self, f: F, value: u64) {
        self.cpu()
            .vmx
            .current_vmcs_mut()
            .write(f, FieldAccess::Full, value);
    }

    pub fn or(&mut self, f: F, bits: u32) {
        let v = self.get(f) | u64::from(bits);
        self.set(f, v);
    }

    pub fn clear(&mut self, f: F, bits: u32) {
        let v = self.get(f) & !u64::from(bits);
        self.set(f, v);
    }

    fn set_baseline(&mut self) {
        for (f, v) in [
            (F::PinControls, 0x16),
            // Secondary controls activated, CR3 exiting off.
            (F::PrimaryControls, 0x8400_6172),
            // EPT, VPID, unrestricted guest, RDTSCP, INVPCID.
            (F::SecondaryControls, 0x10aa),
            (F::ExitControls, 0x3_6fff),
            (F::EntryControls, 0x13ff),
            (F::Vpid, 1),
            (F::EptPointer, EPTP),
            (F::VmcsLinkPointer, u64::MAX),
            (F::HostCr0, 0x8000_0033),
            (F::HostCr3, PML4),
            (F::HostCr4, 0x2620),
            (F::HostCsSelector, 8),
            (F::HostSsSelector, 0x10),
            (F::HostTrSelector, 0x18),
            (F::HostTrBase, TSS),
            (F::HostGdtrBase, GDT),
            (F::HostIdtrBase, HOST_IDT),
            (F::HostRip, EXIT_RIP),
            (F::HostRsp, HOST_RSP),
            (F::GuestCr0, 0x8000_0033),
            (F::GuestCr3, PML4),
            (F::GuestCr4, 0x2620),
            (F::GuestRflags, 2),
            (F::GuestRip, GUEST_CODE),
            (F::GuestRsp, GUEST_RSP),
            (F::GuestDr7, 0x400),
            (F::GuestCsSelector, 8),
            (F::GuestCsLimit, 0xffff_ffff),
            (F::GuestCsAccess, 0xa09b),
            (F::GuestTrSelector, 0x18),
            (F::GuestTrBase, TSS),
            (F::GuestTrLimit, 0x67),
            (F::GuestTrAccess, 0x8b),
            (F::GuestLdtrAccess, 0x1_0000),
            (F::GuestGdtrBase, GDT),
            (F::GuestGdtrLimit, 0x37),
            (F::GuestIdtrBase, GUEST_IDT),
            (F::GuestIdtrLimit, 0xfff),
        ] {
            self.set(f, v);
        }
        for i in [0, 2, 3, 4, 5] {
            self.set(F::GUEST_SELECTORS[i], 0x10);
            self.set(F::GUEST_LIMITS[i], 0xffff_ffff);
            self.set(F::GUEST_ACCESS[i], 0xc093);
        }
    }

    /// VMLAUNCH, or VMRESUME once launched; does not run the guest.
    pub fn enter(&mut self) {
        let slot = self.cpu().vmx.current.unwrap().slot;
        let launched = self.cpu().vmx.cache.get(slot).launched;
        self.host_instruction(&[0x0f, 0x01, if launched { 0xc3 } else { 0xc2 }]);
    }

    /// Puts `code` at the guest's RIP, enters, and runs until an exit, at most 20 instructions.
    pub fn run_guest(&mut self, code: &[u8]) -> u32 {
        let at = self.get(F::GuestRip);
        self.bytes(at, code);
        self.enter();
        for _ in 0..20 {
            if !self.cpu().vmx.in_guest {
                break;
            }
            self.step();
        }
        assert!(
            !self.cpu().vmx.in_guest,
            "no exit; guest RIP {:#x}",
            self.rip()
        );
        assert_eq!(self.rip(), EXIT_RIP, "{:?}", self.outcome());
        self.get(F::ExitReason) as u32
    }
}

/// How a VMX instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeed,
    FailInvalid,
    FailValid(u64),
    Exception(u8),
}

/// A guest in real-address mode at 1000:4000.
pub fn real_mode() -> Rig {
    let mut r = Rig::root();
    r.clear(F::EntryControls, entry::IA32E_MODE_GUEST);
    r.set(F::GuestCr0, 0x20);
    r.set(F::GuestCr4, 0x2000);
    for i in 0..6 {
        r.set(F::GUEST_SELECTORS[i], 0x1000);
        r.set(F::GUEST_BASES[i], 0x1_0000);
        r.set(F::GUEST_LIMITS[i], 0xffff);
        r.set(F::GUEST_ACCESS[i], 0x93);
    }
    r.set(F::GuestRip, 0x4000);
    r.set(F::GuestRsp, 0x8000);
    r
}
