//! VT-x from the hypervisor's side: the instructions as functions, a VMCS that works, entry and exit
//! (volume 3 chapters 24 to 31).

use core::arch::{asm, global_asm};

use crate::cpu::{self, cr4, read_msr};
use crate::descriptors::{self, KERNEL_CS, KERNEL_SS, TSS};
use crate::memory::{page, pages, write};

/// VMX capability MSRs (Appendix A).
pub mod msr {
    /// IA32_FEATURE_CONTROL.
    pub const FEATURE_CONTROL: u32 = 0x3a;
    /// IA32_VMX_BASIC.
    pub const BASIC: u32 = 0x480;
    /// IA32_VMX_PINBASED_CTLS.
    pub const PIN: u32 = 0x481;
    /// IA32_VMX_PROCBASED_CTLS.
    pub const PROCESSOR: u32 = 0x482;
    /// IA32_VMX_EXIT_CTLS.
    pub const EXIT: u32 = 0x483;
    /// IA32_VMX_ENTRY_CTLS.
    pub const ENTRY: u32 = 0x484;
    /// IA32_VMX_MISC.
    pub const MISC: u32 = 0x485;
    /// IA32_VMX_CR0_FIXED0.
    pub const CR0_FIXED0: u32 = 0x486;
    /// IA32_VMX_CR0_FIXED1.
    pub const CR0_FIXED1: u32 = 0x487;
    /// IA32_VMX_CR4_FIXED0.
    pub const CR4_FIXED0: u32 = 0x488;
    /// IA32_VMX_CR4_FIXED1.
    pub const CR4_FIXED1: u32 = 0x489;
    /// IA32_VMX_VMCS_ENUM.
    pub const VMCS_ENUM: u32 = 0x48a;
    /// IA32_VMX_PROCBASED_CTLS2.
    pub const SECONDARY: u32 = 0x48b;
    /// IA32_VMX_EPT_VPID_CAP.
    pub const EPT_VPID: u32 = 0x48c;
    /// IA32_VMX_TRUE_PINBASED_CTLS; processor, exit, entry follow.
    pub const TRUE_PIN: u32 = 0x48d;
}

/// VMCS field encodings (Appendix B).
#[allow(missing_docs)]
pub mod field {
    pub const VPID: u32 = 0x0000;
    pub const GUEST_ES: u32 = 0x0800;
    pub const GUEST_CS: u32 = 0x0802;
    pub const GUEST_SS: u32 = 0x0804;
    pub const GUEST_DS: u32 = 0x0806;
    pub const GUEST_FS: u32 = 0x0808;
    pub const GUEST_GS: u32 = 0x080a;
    pub const GUEST_LDTR: u32 = 0x080c;
    pub const GUEST_TR: u32 = 0x080e;
    pub const HOST_ES: u32 = 0x0c00;
    pub const HOST_CS: u32 = 0x0c02;
    pub const HOST_SS: u32 = 0x0c04;
    pub const HOST_DS: u32 = 0x0c06;
    pub const HOST_FS: u32 = 0x0c08;
    pub const HOST_GS: u32 = 0x0c0a;
    pub const HOST_TR: u32 = 0x0c0c;
    pub const IO_BITMAP_A: u32 = 0x2000;
    pub const IO_BITMAP_B: u32 = 0x2002;
    pub const MSR_BITMAP: u32 = 0x2004;
    pub const EXIT_MSR_STORE: u32 = 0x2006;
    pub const EXIT_MSR_LOAD: u32 = 0x2008;
    pub const ENTRY_MSR_LOAD: u32 = 0x200a;
    pub const TSC_OFFSET: u32 = 0x2010;
    pub const VIRTUAL_APIC: u32 = 0x2012;
    pub const APIC_ACCESS: u32 = 0x2014;
    pub const EPTP: u32 = 0x201a;
    pub const GUEST_PHYSICAL: u32 = 0x2400;
    pub const LINK_POINTER: u32 = 0x2800;
    pub const GUEST_DEBUGCTL: u32 = 0x2802;
    pub const GUEST_PAT: u32 = 0x2804;
    pub const GUEST_EFER: u32 = 0x2806;
    pub const GUEST_PERF_GLOBAL: u32 = 0x2808;
    pub const HOST_PAT: u32 = 0x2c00;
    pub const HOST_EFER: u32 = 0x2c02;
    pub const HOST_PERF_GLOBAL: u32 = 0x2c04;
    pub const PIN_CONTROLS: u32 = 0x4000;
    pub const PROCESSOR_CONTROLS: u32 = 0x4002;
    pub const EXCEPTION_BITMAP: u32 = 0x4004;
    pub const PF_MASK: u32 = 0x4006;
    pub const PF_MATCH: u32 = 0x4008;
    pub const CR3_TARGET_COUNT: u32 = 0x400a;
    pub const EXIT_CONTROLS: u32 = 0x400c;
    pub const EXIT_MSR_STORE_COUNT: u32 = 0x400e;
    pub const EXIT_MSR_LOAD_COUNT: u32 = 0x4010;
    pub const ENTRY_CONTROLS: u32 = 0x4012;
    pub const ENTRY_MSR_LOAD_COUNT: u32 = 0x4014;
    pub const ENTRY_INFO: u32 = 0x4016;
    pub const ENTRY_ERROR: u32 = 0x4018;
    pub const ENTRY_LENGTH: u32 = 0x401a;
    pub const TPR_THRESHOLD: u32 = 0x401c;
    pub const SECONDARY_CONTROLS: u32 = 0x401e;
    pub const INSTRUCTION_ERROR: u32 = 0x4400;
    pub const EXIT_REASON: u32 = 0x4402;
    pub const EXIT_INFO: u32 = 0x4404;
    pub const EXIT_ERROR: u32 = 0x4406;
    pub const IDT_INFO: u32 = 0x4408;
    pub const IDT_ERROR: u32 = 0x440a;
    pub const INSTRUCTION_LENGTH: u32 = 0x440c;
    pub const INSTRUCTION_INFO: u32 = 0x440e;
    pub const GUEST_ES_LIMIT: u32 = 0x4800;
    pub const GUEST_CS_LIMIT: u32 = 0x4802;
    pub const GUEST_LDTR_LIMIT: u32 = 0x480c;
    pub const GUEST_TR_LIMIT: u32 = 0x480e;
    pub const GUEST_GDTR_LIMIT: u32 = 0x4810;
    pub const GUEST_IDTR_LIMIT: u32 = 0x4812;
    pub const GUEST_ES_ACCESS: u32 = 0x4814;
    pub const GUEST_CS_ACCESS: u32 = 0x4816;
    pub const GUEST_SS_ACCESS: u32 = 0x4818;
    pub const GUEST_DS_ACCESS: u32 = 0x481a;
    pub const GUEST_LDTR_ACCESS: u32 = 0x4820;
    pub const GUEST_TR_ACCESS: u32 = 0x4822;
    pub const INTERRUPTIBILITY: u32 = 0x4824;
    pub const ACTIVITY: u32 = 0x4826;
    pub const GUEST_SYSENTER_CS: u32 = 0x482a;
    pub const PREEMPTION_TIMER: u32 = 0x482e;
    pub const HOST_SYSENTER_CS: u32 = 0x4c00;
    pub const CR0_MASK: u32 = 0x6000;
    pub const CR4_MASK: u32 = 0x6002;
    pub const CR0_SHADOW: u32 = 0x6004;
    pub const CR4_SHADOW: u32 = 0x6006;
    pub const CR3_TARGET_0: u32 = 0x6008;
    pub const QUALIFICATION: u32 = 0x6400;
    pub const GUEST_LINEAR: u32 = 0x640a;
    pub const GUEST_CR0: u32 = 0x6800;
    pub const GUEST_CR3: u32 = 0x6802;
    pub const GUEST_CR4: u32 = 0x6804;
    pub const GUEST_ES_BASE: u32 = 0x6806;
    pub const GUEST_FS_BASE: u32 = 0x680e;
    pub const GUEST_GS_BASE: u32 = 0x6810;
    pub const GUEST_LDTR_BASE: u32 = 0x6812;
    pub const GUEST_TR_BASE: u32 = 0x6814;
    pub const GUEST_GDTR_BASE: u32 = 0x6816;
    pub const GUEST_IDTR_BASE: u32 = 0x6818;
    pub const GUEST_DR7: u32 = 0x681a;
    pub const GUEST_RSP: u32 = 0x681c;
    pub const GUEST_RIP: u32 = 0x681e;
    pub const GUEST_RFLAGS: u32 = 0x6820;
    pub const PENDING_DEBUG: u32 = 0x6822;
    pub const GUEST_SYSENTER_ESP: u32 = 0x6824;
    pub const GUEST_SYSENTER_EIP: u32 = 0x6826;
    pub const HOST_CR0: u32 = 0x6c00;
    pub const HOST_CR3: u32 = 0x6c02;
    pub const HOST_CR4: u32 = 0x6c04;
    pub const HOST_FS_BASE: u32 = 0x6c06;
    pub const HOST_GS_BASE: u32 = 0x6c08;
    pub const HOST_TR_BASE: u32 = 0x6c0a;
    pub const HOST_GDTR_BASE: u32 = 0x6c0c;
    pub const HOST_IDTR_BASE: u32 = 0x6c0e;
    pub const HOST_SYSENTER_ESP: u32 = 0x6c10;
    pub const HOST_SYSENTER_EIP: u32 = 0x6c12;
    pub const HOST_RSP: u32 = 0x6c14;
    pub const HOST_RIP: u32 = 0x6c16;
}

/// Pin-based controls (Table 25-5).
#[allow(missing_docs)]
pub mod pin {
    pub const EXTERNAL_INTERRUPT: u32 = 1;
    pub const NMI: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
}

/// Primary processor-based controls (Table 25-6).
#[allow(missing_docs)]
pub mod primary {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    pub const HLT: u32 = 1 << 7;
    pub const INVLPG: u32 = 1 << 9;
    pub const MWAIT: u32 = 1 << 10;
    pub const RDPMC: u32 = 1 << 11;
    pub const RDTSC: u32 = 1 << 12;
    pub const CR3_LOAD: u32 = 1 << 15;
    pub const CR3_STORE: u32 = 1 << 16;
    pub const CR8_LOAD: u32 = 1 << 19;
    pub const CR8_STORE: u32 = 1 << 20;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const MOV_DR: u32 = 1 << 23;
    pub const IO: u32 = 1 << 24;
    pub const IO_BITMAPS: u32 = 1 << 25;
    pub const MONITOR_TRAP: u32 = 1 << 27;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR: u32 = 1 << 29;
    pub const PAUSE: u32 = 1 << 30;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls (Table 25-7).
#[allow(missing_docs)]
pub mod secondary {
    pub const APIC_ACCESSES: u32 = 1;
    pub const EPT: u32 = 1 << 1;
    pub const DESCRIPTOR_TABLES: u32 = 1 << 2;
    pub const RDTSCP: u32 = 1 << 3;
    pub const X2APIC: u32 = 1 << 4;
    pub const VPID: u32 = 1 << 5;
    pub const WBINVD: u32 = 1 << 6;
    pub const UNRESTRICTED: u32 = 1 << 7;
    pub const PAUSE_LOOP: u32 = 1 << 10;
    pub const RDRAND: u32 = 1 << 11;
    pub const INVPCID: u32 = 1 << 12;
    pub const RDSEED: u32 = 1 << 16;
    pub const XSAVES: u32 = 1 << 20;
}

/// VM-exit controls (Table 25-13).
#[allow(missing_docs)]
pub mod exit {
    pub const SAVE_DEBUG: u32 = 1 << 2;
    pub const HOST_64: u32 = 1 << 9;
    pub const ACKNOWLEDGE: u32 = 1 << 15;
    pub const SAVE_PAT: u32 = 1 << 18;
    pub const LOAD_PERF_GLOBAL: u32 = 1 << 12;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
    pub const SAVE_TIMER: u32 = 1 << 22;
}

/// VM-entry controls (Table 25-15).
#[allow(missing_docs)]
pub mod entry {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const GUEST_64: u32 = 1 << 9;
    pub const LOAD_PERF_GLOBAL: u32 = 1 << 13;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// What a VMX instruction says (31.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// VMsucceed.
    Succeeded,
    /// VMfailInvalid: no current VMCS to put an error number in.
    Invalid,
    /// VMfailValid with the error number.
    Failed(u64),
}

const fn flags(cf: u8, zf: u8) -> u8 {
    cf | zf << 1
}

fn answer(flags: u8) -> Answer {
    match flags {
        0 => Answer::Succeeded,
        1 => Answer::Invalid,
        _ => Answer::Failed(vmread(field::INSTRUCTION_ERROR).1),
    }
}

macro_rules! pointer_instruction {
    ($($(#[$meta:meta])* $name:ident $mnemonic:literal;)*) => {
        $(
            $(#[$meta])*
            pub fn $name(address: u64) -> Answer {
                let (cf, zf): (u8, u8);
                // SAFETY: what the instruction does to the processor is what the guest is about.
                unsafe {
                    asm!(concat!($mnemonic, " qword ptr [{a}]"), "setc {c}", "setz {z}",
                        a = in(reg) &address, c = out(reg_byte) cf, z = out(reg_byte) zf);
                }
                answer(flags(cf, zf))
            }
        )*
    };
}

pointer_instruction! {
    /// VMXON of a region.
    vmxon "vmxon";
    /// VMCLEAR of a VMCS.
    vmclear "vmclear";
    /// VMPTRLD of a VMCS.
    vmptrld "vmptrld";
}

/// VMXOFF.
pub fn vmxoff() -> Answer {
    let (cf, zf): (u8, u8);
    // SAFETY: leaves VMX operation.
    unsafe { asm!("vmxoff", "setc {c}", "setz {z}", c = out(reg_byte) cf, z = out(reg_byte) zf) };
    answer(flags(cf, zf))
}

/// VMPTRST.
pub fn vmptrst() -> u64 {
    let mut value = 0u64;
    // SAFETY: stores eight bytes to `value`.
    unsafe { asm!("vmptrst qword ptr [{}]", in(reg) &mut value) };
    value
}

/// VMREAD, without asking for an error number.
fn vmread_flags(field: u64) -> (u8, u64) {
    let (cf, zf): (u8, u8);
    let mut value = 0u64;
    // SAFETY: reads a field.
    unsafe {
        asm!("vmread {v}, {f}", "setc {c}", "setz {z}", v = inout(reg) value, f = in(reg) field,
            c = out(reg_byte) cf, z = out(reg_byte) zf);
    }
    (flags(cf, zf), value)
}

/// VMREAD.
pub fn vmread(field: u32) -> (Answer, u64) {
    let (flags, value) = vmread_flags(u64::from(field));
    let said = match flags {
        0 => Answer::Succeeded,
        1 => Answer::Invalid,
        _ => Answer::Failed(vmread_flags(u64::from(field::INSTRUCTION_ERROR)).1),
    };
    (said, value)
}

/// VMWRITE.
pub fn vmwrite(field: u32, value: u64) -> Answer {
    let (cf, zf): (u8, u8);
    // SAFETY: writes a field.
    unsafe {
        asm!("vmwrite {f}, {v}", "setc {c}", "setz {z}", v = in(reg) value,
            f = in(reg) u64::from(field), c = out(reg_byte) cf, z = out(reg_byte) zf);
    }
    answer(flags(cf, zf))
}

/// A field of the current VMCS.
pub fn get(field: u32) -> u64 {
    let (said, value) = vmread(field);
    assert!(said == Answer::Succeeded, "VMREAD {field:x}: {said:?}");
    value
}

/// Sets a field of the current VMCS.
pub fn set(field: u32, value: u64) {
    let said = vmwrite(field, value);
    assert!(said == Answer::Succeeded, "VMWRITE {field:x}: {said:?}");
}

/// INVEPT of `kind` with the descriptor (EPTP, 0).
pub fn invept(kind: u64, eptp: u64, high: u64) -> Answer {
    let descriptor = [eptp, high];
    let (cf, zf): (u8, u8);
    // SAFETY: only drops translations.
    unsafe {
        asm!("invept {k}, [{d}]", "setc {c}", "setz {z}", k = in(reg) kind, d = in(reg) &descriptor,
            c = out(reg_byte) cf, z = out(reg_byte) zf);
    }
    answer(flags(cf, zf))
}

/// INVVPID of `kind` with the descriptor (VPID and reserved bits, linear address).
pub fn invvpid(kind: u64, vpid: u64, address: u64) -> Answer {
    let descriptor = [vpid, address];
    let (cf, zf): (u8, u8);
    // SAFETY: only drops translations.
    unsafe {
        asm!("invvpid {k}, [{d}]", "setc {c}", "setz {z}", k = in(reg) kind, d = in(reg) &descriptor,
            c = out(reg_byte) cf, z = out(reg_byte) zf);
    }
    answer(flags(cf, zf))
}

global_asm!(
    ".text",
    ".globl vmx_enter",
    // vmx_enter(registers, launch) -> flags of a failed entry (CF | ZF << 1), 0 after a VM exit
    "vmx_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "mov rdx, 0x6c14",
    "vmwrite rdx, rsp",
    "mov rdx, 0x6c16",
    "lea rax, [rip + vmx_left]",
    "vmwrite rdx, rax",
    "test rsi, rsi",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jnz 2f",
    "vmresume",
    "jmp 3f",
    "2: vmlaunch",
    "3: setc al",
    "setz cl",
    "movzx eax, al",
    "movzx ecx, cl",
    "lea eax, [rax + 2 * rcx]",
    "pop rdi",
    "jmp 4f",
    "vmx_left:",
    "xchg rdi, [rsp]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "pop rax",
    "mov [rdi + 56], rax",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "xor eax, eax",
    "4:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

// SAFETY: the assembly above keeps to the C calling convention.
unsafe extern "C" {
    safe fn vmx_enter(registers: &mut [u64; 16], launch: u64) -> u64;
    safe fn vmx_left();
}

/// What a VM exit recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Exit reason, all 32 bits.
    pub reason: u64,
    /// Exit qualification.
    pub qualification: u64,
    /// VM-exit instruction length.
    pub length: u64,
    /// VM-exit interruption information.
    pub info: u64,
    /// VM-exit interruption error code.
    pub error: u64,
    /// IDT-vectoring information.
    pub idt_info: u64,
    /// IDT-vectoring error code.
    pub idt_error: u64,
    /// VM-exit instruction information.
    pub instruction: u64,
    /// Guest RIP.
    pub rip: u64,
}

/// Why an entry did not happen.
pub type Entered = Result<Exit, Answer>;

/// Turns VMX operation on. CR0 and CR4 are made to fit.
///
/// # Panics
/// When VMXON fails.
pub fn turn_on() -> u64 {
    cpu::write_cr0(cpu::read_cr0() | read_msr(msr::CR0_FIXED0));
    cpu::write_cr4(cpu::read_cr4() | cr4::VMXE);
    let region = new_region();
    let said = vmxon(region);
    assert!(said == Answer::Succeeded, "VMXON: {said:?}");
    region
}

/// A zeroed region with the processor's revision identifier.
pub fn new_region() -> u64 {
    let at = page();
    write(at, read_msr(msr::BASIC) & 0x7fff_ffff);
    at
}

/// Whether a control may be 1: bit of the upper half of its capability MSR.
pub fn may(capability: u32, control: u32) -> bool {
    read_msr(capability) >> 32 & u64::from(control) == u64::from(control)
}

/// `wanted` with what must be 1 added, what must be 0 removed (Appendix A.3 to A.5).
pub fn adjust(capability: u32, wanted: u32) -> u64 {
    let value = read_msr(capability);
    (u64::from(wanted) | value & 0xffff_ffff) & value >> 32
}

/// The capability MSR of pin, processor, exit or entry controls (0 to 3), the true one where there is one.
pub fn capability(which: u32) -> u32 {
    if read_msr(msr::BASIC) & 1 << 55 != 0 {
        msr::TRUE_PIN + which
    } else {
        msr::PIN + which
    }
}

/// A VMCS, current, whose guest runs in 64-bit mode with the host's own tables, and whose every exception
/// is an exit.
pub struct Vm {
    /// The VMCS.
    pub vmcs: u64,
    /// General registers of the guest, in the order of their encodings; RSP is in the VMCS.
    pub gpr: [u64; 16],
    /// Top of the guest's stack.
    pub stack: u64,
    launched: bool,
}

impl Vm {
    /// Makes it and loads it.
    ///
    /// # Panics
    /// When VMCLEAR or VMPTRLD fails.
    pub fn new() -> Self {
        let vmcs = new_region();
        assert!(vmclear(vmcs) == Answer::Succeeded, "VMCLEAR");
        assert!(vmptrld(vmcs) == Answer::Succeeded, "VMPTRLD");
        let vm = Self {
            vmcs,
            gpr: [0; 16],
            stack: pages(4, 4096) + 4 * 4096,
            launched: false,
        };
        vm.fill();
        vm
    }

    /// Puts every field back to what [`Vm::new`] gave it.
    pub fn fill(&self) {
        controls();
        host_state();
        guest_state(self.stack);
    }

    /// VMCLEAR: the next entry is a VMLAUNCH.
    pub fn clear(&mut self) {
        assert!(vmclear(self.vmcs) == Answer::Succeeded, "VMCLEAR");
        assert!(vmptrld(self.vmcs) == Answer::Succeeded, "VMPTRLD");
        self.launched = false;
    }

    /// Starts the guest at `rip` with RDI `argument` and a fresh stack.
    ///
    /// # Errors
    /// What the entry instruction said.
    pub fn start(&mut self, rip: u64, argument: u64) -> Entered {
        set(field::GUEST_RIP, rip);
        set(field::GUEST_RSP, self.stack - 8);
        set(field::GUEST_RFLAGS, 2);
        self.gpr[7] = argument;
        self.go()
    }

    /// As [`Vm::start`], for an entry that must succeed.
    pub fn run(&mut self, rip: u64, argument: u64) -> Exit {
        self.start(rip, argument)
            .unwrap_or_else(|said| panic!("VM entry failed: {said:?}"))
    }

    /// Enters as the VMCS is.
    ///
    /// # Errors
    /// What the entry instruction said.
    pub fn go(&mut self) -> Entered {
        let flags = vmx_enter(&mut self.gpr, u64::from(!self.launched));
        if flags != 0 {
            return Err(answer(flags as u8));
        }
        let exit = Exit {
            reason: get(field::EXIT_REASON),
            qualification: get(field::QUALIFICATION),
            length: get(field::INSTRUCTION_LENGTH),
            info: get(field::EXIT_INFO),
            error: get(field::EXIT_ERROR),
            idt_info: get(field::IDT_INFO),
            idt_error: get(field::IDT_ERROR),
            instruction: get(field::INSTRUCTION_INFO),
            rip: get(field::GUEST_RIP),
        };
        // A failed entry leaves the launch state as it was (27.8).
        if exit.reason & 1 << 31 == 0 {
            self.launched = true;
        }
        Ok(exit)
    }

    /// Goes on after the instruction that exited.
    ///
    /// # Errors
    /// What the entry instruction said.
    pub fn skip(&mut self) -> Entered {
        set(
            field::GUEST_RIP,
            get(field::GUEST_RIP) + get(field::INSTRUCTION_LENGTH),
        );
        self.go()
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets bits of a control field.
pub fn add(field: u32, bits: u32) {
    set(field, get(field) | u64::from(bits));
}

/// Clears bits of a control field.
pub fn remove(field: u32, bits: u32) {
    set(field, get(field) & !u64::from(bits));
}

fn controls() {
    set(field::PIN_CONTROLS, adjust(capability(0), 0));
    set(
        field::PROCESSOR_CONTROLS,
        adjust(capability(1), primary::SECONDARY),
    );
    if may(capability(1), primary::SECONDARY) {
        set(field::SECONDARY_CONTROLS, 0);
    }
    let exit_controls = exit::HOST_64 | exit::SAVE_EFER | exit::LOAD_EFER;
    set(field::EXIT_CONTROLS, adjust(capability(2), exit_controls));
    set(
        field::ENTRY_CONTROLS,
        adjust(capability(3), entry::GUEST_64 | entry::LOAD_EFER),
    );
    set(field::EXCEPTION_BITMAP, 0xffff_ffff);
    for zero in [
        field::PF_MASK,
        field::PF_MATCH,
        field::CR3_TARGET_COUNT,
        field::EXIT_MSR_STORE_COUNT,
        field::EXIT_MSR_LOAD_COUNT,
        field::ENTRY_MSR_LOAD_COUNT,
        field::ENTRY_INFO,
        field::ENTRY_ERROR,
        field::ENTRY_LENGTH,
        field::CR0_MASK,
        field::CR4_MASK,
        field::CR0_SHADOW,
        field::CR4_SHADOW,
        field::TSC_OFFSET,
    ] {
        set(zero, 0);
    }
}

fn host_state() {
    for (selector, value) in [
        (field::HOST_ES, KERNEL_SS),
        (field::HOST_CS, KERNEL_CS),
        (field::HOST_SS, KERNEL_SS),
        (field::HOST_DS, KERNEL_SS),
        (field::HOST_FS, 0),
        (field::HOST_GS, 0),
        (field::HOST_TR, TSS),
    ] {
        set(selector, u64::from(value));
    }
    set(field::HOST_CR0, cpu::read_cr0());
    set(field::HOST_CR3, cpu::read_cr3());
    set(field::HOST_CR4, cpu::read_cr4());
    set(field::HOST_FS_BASE, read_msr(0xc000_0100));
    set(field::HOST_GS_BASE, read_msr(0xc000_0101));
    set(field::HOST_TR_BASE, descriptors::tss_base());
    set(field::HOST_GDTR_BASE, descriptors::gdt_base());
    set(field::HOST_IDTR_BASE, descriptors::idt_base());
    set(field::HOST_SYSENTER_CS, 0);
    set(field::HOST_SYSENTER_ESP, 0);
    set(field::HOST_SYSENTER_EIP, 0);
    set(field::HOST_RIP, vmx_left as *const () as u64);
    set(field::HOST_EFER, read_msr(cpu::efer::MSR));
    set(field::HOST_PAT, read_msr(0x277));
}

fn guest_state(stack: u64) {
    set(field::GUEST_CR0, cpu::read_cr0());
    set(field::GUEST_CR3, cpu::read_cr3());
    set(field::GUEST_CR4, cpu::read_cr4());
    set(field::GUEST_EFER, read_msr(cpu::efer::MSR));
    set(field::GUEST_PAT, read_msr(0x277));
    set(field::GUEST_DEBUGCTL, 0);
    set(field::GUEST_DR7, 0x400);
    set(field::LINK_POINTER, u64::MAX);
    set(field::ACTIVITY, 0);
    set(field::INTERRUPTIBILITY, 0);
    set(field::PENDING_DEBUG, 0);
    for i in 0..8u32 {
        let (selector, access, limit, base) = match i {
            1 => (KERNEL_CS, 0xa09b, u32::MAX, 0),
            0 | 2 | 3 => (KERNEL_SS, 0xc093, u32::MAX, 0),
            6 => (0, 0x1_0000, 0, 0),
            7 => (TSS, 0x8b, 0x67, descriptors::tss_base()),
            _ => (0, 0x1_0000, 0, 0),
        };
        set(field::GUEST_ES + 2 * i, u64::from(selector));
        set(field::GUEST_ES_ACCESS + 2 * i, access);
        set(field::GUEST_ES_LIMIT + 2 * i, u64::from(limit));
        set(field::GUEST_ES_BASE + 2 * i, base);
    }
    set(field::GUEST_FS_BASE, 0);
    set(field::GUEST_GS_BASE, 0);
    set(field::GUEST_GDTR_BASE, descriptors::gdt_base());
    set(
        field::GUEST_GDTR_LIMIT,
        (descriptors::GDT_SLOTS * 8 - 1) as u64,
    );
    set(field::GUEST_IDTR_BASE, descriptors::idt_base());
    set(field::GUEST_IDTR_LIMIT, 0xfff);
    set(field::GUEST_SYSENTER_CS, 0);
    set(field::GUEST_SYSENTER_ESP, 0);
    set(field::GUEST_SYSENTER_EIP, 0);
    set(field::GUEST_RFLAGS, 2);
    set(field::GUEST_RSP, stack - 8);
}
