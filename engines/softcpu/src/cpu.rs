//! The state of one software vCPU.
//!
//! Instruction handlers are methods and functions over [`Cpu`]. A handler that cannot complete returns a
//! [`Trap`] and leaves the architectural state as it was before the instruction (precise exceptions);
//! what it trapped with stands in [`Cpu::fault`] or [`Cpu::exit`].

use std::sync::Arc;

use guestmem::GuestRam;
use hostexec::{Bounce, ExtState, HostExec};
use vcpu::cpuid::{CpuidTable, Vendor};
use vcpu::{Attention, DescriptorTable, MpState, Platform, SegmentRegister};
use x86defs::cr::{cr0, cr4, efer};
use x86defs::rflags;

use crate::code::Op;
use crate::flags::Flags;
use crate::insn::{KnownLeaves, Monitor, VectorTable};
use crate::mem::{CodePages, LargePages, Tlb};
use crate::pmu::{self, Pmu};
use crate::vmx::{ExitRequest, Vmx};
use crate::world::World;

/// Index in [`Cpu::regs`] of the RIP of the first instruction of the running block.
pub const RIP: usize = 16;
/// Index in [`Cpu::regs`] of a register that is always zero: "no base", "no index".
pub const ZERO: usize = 17;
/// Index in [`Cpu::regs`] of the constant 2^31 (see `code::decode`).
pub const TWO_GIB: usize = 18;

/// General registers by encoding.
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
}

/// Segment registers by encoding.
pub mod sreg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Why a handler did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// An exception is to be delivered; it stands in [`Cpu::fault`].
    Exception,
    /// A VM exit is to be taken; it stands in [`Cpu::exit`].
    VmExit,
    /// The instruction has to run by itself, not as part of its block: it stores into that block, or to the
    /// APIC-access page. Nothing has happened yet.
    Alone,
    /// A repeated string instruction gives way to events; registers hold its progress.
    Restart,
}

/// What a handler returns.
pub type Flow = Result<(), Trap>;

/// An exception to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, for vectors that push one.
    pub error_code: u32,
    /// Linear address of a page fault (to CR2), or the bits to set in DR6 of a debug exception.
    pub detail: u64,
}

/// How an event reaches the IDT (SDM Vol 3 6.4; the types of Table 25-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// External interrupt.
    External = 0,
    /// NMI.
    Nmi = 2,
    /// Exception raised by the processor.
    Hardware = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftware = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
}

/// An event on its way through the IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Source.
    pub kind: EventKind,
    /// Error code to push.
    pub error_code: Option<u32>,
    /// For software events: length of the instruction in bytes.
    pub length: u8,
}

/// Interrupt blocking by the instruction before (SDM Vol 3 6.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// None.
    #[default]
    None,
    /// By STI.
    Sti,
    /// By STI, until the end of the running block: what it holds for is there.
    StiInBlock,
    /// By MOV SS or POP SS; also holds off debug traps.
    MovSs,
}

/// What the run loop must look at before the next block; bits of [`Cpu::pending`].
pub mod pending {
    /// An interrupt may be deliverable: IF, the shadow, or the TPR changed, or the controller said so.
    pub const INTERRUPT: u32 = 1;
    /// NMI, INIT or SIPI may be waiting.
    pub const SIGNAL: u32 = 2;
    /// The interrupt shadow is on: run one instruction, then clear it.
    pub const SHADOW: u32 = 4;
    /// RFLAGS.TF or an enabled breakpoint: run one instruction at a time.
    pub const STEP: u32 = 8;
    /// The processor is not executing (HLT, wait-for-SIPI, shutdown).
    pub const INACTIVE: u32 = 16;
    /// Debug traps wait in [`super::Cpu::pending_debug`].
    pub const DEBUG: u32 = 32;
    /// Something of VMX non-root operation: windows, preemption timer, TPR threshold, pending MTF.
    pub const VMX: u32 = 64;
    /// Stores reached pages with code: invalidate before the next block.
    pub const CODE: u32 = 128;
    /// Instructions are counted one by one: run them so.
    pub const COUNT: u32 = 256;
}

/// MSRs that are plain storage or nearly so.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub debugctl: u64,
    pub spec_ctrl: u64,
    pub feature_control: u64,
    pub mtrr_def_type: u64,
    pub mtrr_variable: [u64; 16],
    pub mtrr_fixed: [u64; 11],
    pub mcg_status: u64,
    pub xss: u64,
    pub amd: AmdMsrs,
}

/// MSRs of AMD processors (APM Vol 2 appendix A).
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct AmdMsrs {
    pub syscfg: u64,
    pub hwcr: u64,
    pub iorr: [u64; 4],
    pub top_mem: u64,
    pub top_mem2: u64,
    /// The name CPUID tells, as its leaves have it.
    pub name: [u64; 6],
    /// Source and target of the last branch.
    pub last_branch: [u64; 2],
    /// What those were before the last exception or interrupt.
    pub last_interrupt: [u64; 2],
}

/// Facts about the modelled processor that do not change while it runs.
#[derive(Debug)]
pub struct Model {
    /// CPUID's answers.
    pub cpuid: CpuidTable,
    /// Whose manual it follows where the vendors differ.
    pub vendor: Vendor,
    /// MAXPHYADDR.
    pub maxphyaddr: u32,
    /// CR4 bits that may be set.
    pub cr4_allowed: u64,
    /// XCR0 bits that may be set.
    pub xcr0_allowed: u64,
    /// IA32_XSS bits that may be set; `None` without XSAVES.
    pub xss_allowed: Option<u64>,
    /// IA32_EFER bits that may be set.
    pub efer_allowed: u64,
    /// IA32_SPEC_CTRL bits that may be set; 0 without that MSR.
    pub spec_ctrl_allowed: u64,
    /// IA32_TSC_ADJUST is there.
    pub tsc_adjust: bool,
    /// IA32_PRED_CMD is there.
    pub pred_cmd: bool,
    /// FXSAVE, XSAVE and their counterparts move the x87 pointers only with an unmasked exception pending.
    pub x87_pointers_on_error: bool,
    /// MONITOR and MWAIT are there.
    pub monitor: bool,
    /// VT-x is there.
    pub vmx: bool,
    /// IA32_ARCH_CAPABILITIES.
    pub arch_capabilities: u64,
    /// Performance monitoring.
    pub pmu: Option<pmu::Features>,
}

/// What a [`crate::code::BlockExecutor`] keeps where its code finds it; the interpreter looks at none of it.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Native {
    /// Linear address of the page of the running block.
    pub page: u64,
    /// Address of the word of [`Attention::poll_address`].
    pub poll: u64,
    /// Address of the TLB's view in force.
    pub view: u64,
    /// The arithmetic flags as LAHF and SETO AL leave them.
    pub flags: u64,
    /// Address of the executor's table of blocks.
    pub table: u64,
    /// Address of the code to enter.
    pub entry: u64,
    /// Address of the processor.
    pub this: u64,
    /// Address of the executor's own state.
    pub executor: u64,
    /// What the code left with.
    pub left: u64,
    /// Words for values on their way.
    pub scratch: [u64; 4],
    /// Addresses on the host of bytes of guest pages.
    pub windows: [u64; 6],
    /// Bytes read from two pages, which lie beside each other here.
    pub crossing: [u64; 8],
    /// Zero while the host's XMM registers and MXCSR are the guest's.
    pub no_sse: u64,
    /// Zero while also the upper halves of the host's YMM registers are.
    pub no_avx: u64,
    /// Zero while the host's x87 is the guest's.
    pub no_x87: u64,
    /// FIP, FDP and FOP while it is; of the last only 16 bits count.
    pub x87_last: [u64; 3],
    /// [`Cpu::vector_barriers`] of now: zero if they may become the guest's.
    pub barriers: [u64; 3],
    /// Where the words of [`guestmem::CodeMap`] would begin if RAM were at address 0 of the host: to be indexed by the
    /// number of a page there.
    pub code_map: u64,
    /// Constants: the bits MXCSR has not, and those that mask an exception.
    pub mxcsr_masks: [u64; 2],
}

/// One software vCPU.
pub struct Cpu {
    /// RAX to R15, then [`RIP`], [`ZERO`], [`TWO_GIB`]; padded so that an index of 5 bits is always in range.
    pub regs: [u64; 32],
    /// OSZAPC.
    pub flags: Flags,
    /// RFLAGS without OSZAPC; bit 1 set.
    pub rflags_rest: u64,
    /// RIP after the running block; a branch sets it.
    pub next_rip: u64,
    /// Events to look at before the next block ([`pending`]).
    pub pending: u32,
    /// Instructions left before the platform must be polled.
    pub budget: i64,
    /// Software TLB.
    pub tlb: Tlb,
    /// Where its entries are fragments of larger pages.
    pub large_pages: LargePages,
    /// RAM.
    pub ram: Arc<GuestRam>,
    /// Bases of ES, CS, SS, DS, FS, GS as effective-address computation uses them: zero in 64-bit mode but
    /// for FS and GS.
    pub ea_base: [u64; 8],
    /// The last offset code may be fetched from: CS's limit, or everything in 64-bit mode.
    pub fetch_limit: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// 64-bit mode (EFER.LMA and CS.L).
    pub long64: bool,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [SegmentRegister; 6],
    /// LDTR.
    pub ldtr: SegmentRegister,
    /// TR.
    pub tr: SegmentRegister,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// PKRU.
    pub pkru: u32,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// PAE page-directory-pointer-table entries.
    pub pdpte: [u64; 4],
    /// MSRs.
    pub msr: Msrs,
    /// Vector and floating-point registers.
    pub ext: ExtState,
    /// Runs vector instructions on the host.
    pub host: HostExec,
    /// Prepared vector instructions.
    pub vectors: VectorTable,
    /// Memory operand of a vector instruction on its way to or from the guest.
    pub bounce: Bounce,
    /// Pages of RAM that hold decoded code.
    pub code_pages: CodePages,
    /// There are other vCPUs: stores have to look for code of theirs.
    pub shared: bool,
    /// Before they look they have to be visible ([`guestmem::CodeMap::writers_fence`]).
    pub stores_fence: bool,
    /// What the vCPUs do together.
    pub world: Arc<World>,
    /// The board.
    pub platform: Box<dyn Platform>,
    /// How others reach this vCPU.
    pub attention: Attention,
    /// Model facts.
    pub model: Arc<Model>,
    /// vCPU index and APIC id.
    pub index: u32,
    /// The exception of a [`Trap::Exception`].
    pub fault: Fault,
    /// The VM exit of a [`Trap::VmExit`].
    pub exit: ExitRequest,
    /// The event being delivered (for IDT-vectoring information and double faults).
    pub delivering: Option<Event>,
    /// The instruction that trapped, for exit information.
    pub trapped: Op,
    /// CPUID's answers for a translator's code.
    pub known_leaves: KnownLeaves,
    /// What MONITOR and MWAIT work with.
    pub monitor: Monitor,
    /// Interrupt blocking by the instruction before.
    pub shadow: Shadow,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// DR6 bits of debug traps that wait for the instruction boundary.
    pub pending_debug: u64,
    /// What the processor is doing.
    pub activity: MpState,
    /// The instruction being stepped loaded RF itself (IRET, POPF of a debugger's frame).
    pub trapped_kind_sets_rf: bool,
    /// The instruction being stepped went to a handler with TF clear (INT n, SYSCALL): no single-step trap.
    pub step_cancelled: bool,
    /// The controller had an interrupt for us that IF held back. Without it none can be taken when IF is set: whatever
    /// has come since has raised [`Attention::INTERRUPT`].
    pub interrupt_waiting: bool,
    /// FERR# is driven.
    pub ferr: bool,
    /// NMI received and not yet taken.
    pub nmi_pending: bool,
    /// INIT received and not yet taken: it is blocked in VMX root operation.
    pub init_pending: bool,
    /// Start-up IPI received and not yet looked at.
    pub sipi_pending: Option<u8>,
    /// PAUSEs executed; every so often one lets others have the host's processor.
    pub pauses: u32,
    /// Stores may hit the running block: it is a single instruction that is not cached.
    pub alone: bool,
    /// Guest TSC minus platform TSC (IA32_TSC writes, IA32_TSC_ADJUST).
    pub tsc_offset: u64,
    /// Instructions executed when [`Cpu::budget`] was last set.
    pub retired_base: u64,
    /// What [`Cpu::budget`] was set to.
    pub budget_given: i64,
    /// What of [`Cpu::retired_now`] was no instruction: faults that were delivered and iterations of repeated string
    /// instructions take the time of some.
    pub uncounted: u64,
    /// Performance monitoring.
    pub pmu: Pmu,
    /// State of the random-number generator behind RDRAND.
    pub random_state: u64,
    /// VT-x.
    pub vmx: Vmx,
    /// For a [`crate::code::BlockExecutor`].
    pub native: Native,
}

impl Cpu {
    /// RIP at a block boundary.
    #[inline(always)]
    pub fn rip(&self) -> u64 {
        self.regs[RIP]
    }

    /// RIP of the instruction after `op`.
    #[inline(always)]
    pub fn rip_after(&self, op: &Op) -> u64 {
        self.regs[RIP].wrapping_add(u64::from(op.offset) + u64::from(op.length))
    }

    /// RFLAGS whole.
    #[inline]
    pub fn rflags(&self) -> u64 {
        self.rflags_rest | self.flags.bits()
    }

    /// Replaces RFLAGS without any check; re-evaluates what depends on it.
    pub fn set_rflags(&mut self, value: u64) {
        self.flags.set_bits(value);
        let rest = (value & rflags::DEFINED & !rflags::ARITHMETIC) | rflags::FIXED_1;
        let changed = rest ^ self.rflags_rest;
        self.rflags_rest = rest;
        if changed & (rflags::IF | rflags::TF | rflags::AC) != 0 {
            self.flags_changed(changed);
        }
    }

    /// Follows a change of IF, TF or AC.
    pub fn flags_changed(&mut self, changed: u64) {
        if changed & rflags::IF != 0 && self.rflags_rest & rflags::IF != 0 {
            self.interrupts_opened();
        }
        if changed & rflags::TF != 0 {
            self.debug_changed();
        }
        if changed & rflags::AC != 0 {
            self.select_view();
        }
    }

    /// IF has been set: has the next boundary take what waited for that.
    #[inline]
    pub fn interrupts_opened(&mut self) {
        if self.interrupt_waiting {
            self.pending |= pending::INTERRUPT;
        }
        if self.vmx.watches_if {
            self.pending |= pending::VMX;
        }
    }

    /// Whether single-stepping is needed: TF, or an enabled breakpoint in DR7.
    pub fn debug_changed(&mut self) {
        if self.rflags_rest & rflags::TF != 0 || self.dr7 & 0xff != 0 {
            self.pending |= pending::STEP;
        } else {
            self.pending &= !pending::STEP;
        }
        self.select_view();
    }

    /// RFLAGS.IF.
    #[inline(always)]
    pub fn interrupts_enabled(&self) -> bool {
        self.rflags_rest & rflags::IF != 0
    }

    /// Protected mode (CR0.PE).
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Virtual-8086 mode.
    #[inline(always)]
    pub fn v8086(&self) -> bool {
        self.rflags_rest & rflags::VM != 0
    }

    /// IA-32e mode (EFER.LMA).
    #[inline(always)]
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// IOPL.
    #[inline(always)]
    pub fn iopl(&self) -> u8 {
        ((self.rflags_rest & rflags::IOPL) >> rflags::IOPL_SHIFT) as u8
    }

    /// Re-derives what is cached of mode, privilege and segments: call after CS, SS, EFER, CR0 or bases
    /// changed.
    pub fn mode_changed(&mut self) {
        self.long64 = self.long_mode() && self.seg[sreg::CS].access.long();
        self.fetch_limit = if self.long64 {
            u64::MAX
        } else {
            u64::from(self.seg[sreg::CS].limit)
        };
        for i in 0..6 {
            self.ea_base[i] = if self.long64 && i < sreg::FS {
                0
            } else {
                self.seg[i].base
            };
        }
        self.pmu_privilege();
        self.select_view();
    }

    /// Picks the TLB view of the current privilege and the bank of the current address space.
    pub fn select_view(&mut self) {
        let aligned =
            self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.rflags_rest & rflags::AC != 0;
        let smap_open = self.cr4 & cr4::SMAP == 0 || self.rflags_rest & rflags::AC != 0;
        let watched = self.data_breakpoints();
        self.tlb
            .select_view(self.cpl == 3, smap_open, aligned || watched);
    }

    /// Raises an exception without an error code.
    #[cold]
    #[inline(never)]
    pub fn raise<T>(&mut self, vector: u8) -> Result<T, Trap> {
        self.fault = Fault {
            vector,
            error_code: 0,
            detail: 0,
        };
        Err(Trap::Exception)
    }

    /// Raises an exception with an error code.
    #[cold]
    #[inline(never)]
    pub fn raise_code<T>(&mut self, vector: u8, error_code: u32) -> Result<T, Trap> {
        self.fault = Fault {
            vector,
            error_code,
            detail: 0,
        };
        Err(Trap::Exception)
    }

    /// #GP(0).
    #[cold]
    #[inline(never)]
    pub fn gp0<T>(&mut self) -> Result<T, Trap> {
        self.raise_code(x86defs::exception::GP, 0)
    }

    /// #UD.
    #[cold]
    #[inline(never)]
    pub fn ud<T>(&mut self) -> Result<T, Trap> {
        self.raise(x86defs::exception::UD)
    }

    /// The model is an AMD processor.
    #[inline]
    pub fn amd(&self) -> bool {
        self.model.vendor == Vendor::Amd
    }

    /// Instructions executed so far, the whole running block included.
    pub fn retired_now(&self) -> u64 {
        self.retired_base
            .wrapping_add((self.budget_given - self.budget) as u64)
    }

    /// Takes the time of `instructions` that are none off the budget.
    #[inline]
    pub fn charge(&mut self, instructions: u64) {
        self.budget -= instructions as i64;
        self.uncounted = self.uncounted.wrapping_add(instructions);
    }

    /// What a fence or a serializing instruction promises other vCPUs (SDM Vol 3 9.2.5, 9.3): that this one's stores
    /// are visible before its next load. The host's store buffer knows nothing of ours.
    #[inline]
    pub fn serialize(&self) {
        if self.shared {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// A PAUSE: whoever spins most likely waits for a vCPU that the host has not scheduled. It lets that one have the
    /// host's processor every so often, and as the host may take its time, ends its slice: what is due by then comes
    /// before it goes on.
    pub fn paused(&mut self) {
        const PAUSES_A_YIELD: u32 = 16;
        self.pauses = self.pauses.wrapping_add(1);
        if self.shared && self.pauses.is_multiple_of(PAUSES_A_YIELD) {
            let retired = self.retired_now();
            self.platform.give_way(retired);
            self.end_slice();
        }
    }

    /// Has the platform polled at the next boundary: a write to a device may have changed what is due first.
    pub fn end_slice(&mut self) {
        self.shorten_slice(0);
    }

    /// Has the platform polled after so many more instructions, if not before.
    pub fn shorten_slice(&mut self, most: i64) {
        if self.budget > most {
            // What is taken off the budget must not count as executed.
            self.budget_given -= self.budget - most;
            self.budget = most;
        }
    }

    /// A random number for RDRAND and RDSEED.
    ///
    /// SplitMix64 from a seed the monitor gives: in virtual-time mode a run stays reproducible.
    pub fn random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.random_state;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// #UD for VEX encodings in real-address and virtual-8086 mode (SDM Vol 2 2.4).
    #[inline(always)]
    pub fn require_vex(&mut self) -> Flow {
        if self.long64 || (self.protected() && !self.v8086()) {
            Ok(())
        } else {
            self.ud()
        }
    }

    /// #UD outside protected mode, for what does not exist in real-address and virtual-8086 mode.
    #[inline]
    pub fn require_protected(&mut self) -> Flow {
        if self.protected() && !self.v8086() {
            Ok(())
        } else {
            self.ud()
        }
    }

    /// #GP(0) unless the current privilege level is 0.
    #[inline(always)]
    pub fn require_cpl0(&mut self) -> Flow {
        if self.cpl != 0 { self.gp0() } else { Ok(()) }
    }
}

/// Whether `address` is canonical with 48-bit linear addresses (SDM Vol 1 3.3.7.1).
#[inline(always)]
pub fn canonical(address: u64) -> bool {
    (((address << 16) as i64) >> 16) as u64 == address
}
