//! The code that takes the processor into a case and out of it.
//!
//! It is copied into each slot, [`CONTEXT_BEFORE_STUB`] bytes behind the slot's [`Context`], and finds that
//! relative to its own address: no register, segment or stack of the case has to hold anything. It lies below
//! 4 GiB, so that 16- and 32-bit code reaches it by a far jump to Linux's 64-bit code segment.

use std::arch::global_asm;
use std::mem::offset_of;

/// Bytes of the standard-format XSAVE area of x87, SSE and AVX state (SDM Vol 1 13.4).
pub const XSAVE_BYTES: usize = 832;

/// The case ended by a signal.
pub const ENDED_BY_TRAP: u8 = 0;
/// The case came to the next instruction.
pub const ENDED_FALLING_THROUGH: u8 = 1;
/// The case came to its branch target.
pub const ENDED_AT_TARGET: u8 = 2;

/// Distance of the stub from the context it uses.
pub const CONTEXT_BEFORE_STUB: u64 = 0x1_0000;

/// What goes in and what comes out. The selectors are ES, CS, SS, DS, FS, GS.
#[repr(C, align(64))]
pub struct Context {
    /// Standard-format XSAVE area.
    pub xsave: [u8; XSAVE_BYTES],
    /// General registers.
    pub gpr: [u64; 16],
    /// m16:32 of the far jump into the case: offset, then the code segment.
    pub rip: u32,
    /// See `rip`.
    pub cs: u16,
    /// How it ended.
    pub ended: u8,
    /// Whether RDFSBASE and its like may be used.
    pub fsgsbase: u8,
    /// RFLAGS.
    pub rflags: u64,
    /// Segment registers.
    pub selectors: [u16; 6],
    /// Vector of the signal.
    pub trap_vector: u8,
    /// Whether a case is running.
    pub running: u8,
    /// CS in the signal's frame.
    pub trap_cs: u16,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// The thread's own.
    pub host_rsp: u64,
    /// The thread's own.
    pub host_fs: u64,
    /// The thread's own.
    pub host_mxcsr: u32,
    /// The thread's own.
    pub host_fcw: u16,
    /// SS in the signal's frame.
    pub trap_ss: u16,
    /// Error code of the signal.
    pub trap_error: u64,
    /// CR2 of the signal.
    pub trap_cr2: u64,
    /// RIP in the signal's frame.
    pub trap_rip: u64,
}

global_asm!(
    ".text",
    ".balign 64",
    ".globl nestling_conformance_stub",
    "nestling_conformance_stub:",
    ".set .Lcontext, nestling_conformance_stub - {distance}",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "stmxcsr dword ptr [rip + .Lcontext + {mxcsr}]",
    "fnstcw word ptr [rip + .Lcontext + {fcw}]",
    "mov qword ptr [rip + .Lcontext + {host_rsp}], rsp",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [rip + .Lcontext]",
    "mov ds, word ptr [rip + .Lcontext + {selectors} + 6]",
    "mov es, word ptr [rip + .Lcontext + {selectors}]",
    "mov fs, word ptr [rip + .Lcontext + {selectors} + 8]",
    "mov gs, word ptr [rip + .Lcontext + {selectors} + 10]",
    // The bases of FS and GS are the descriptors' in a case of 16 or 32 bits.
    "cmp byte ptr [rip + .Lcontext + {fsgsbase}], 0",
    "je 2f",
    "cmp word ptr [rip + .Lcontext + {cs}], 0x33",
    "jne 2f",
    "mov rax, qword ptr [rip + .Lcontext + {bases}]",
    "wrfsbase rax",
    "mov rax, qword ptr [rip + .Lcontext + {bases} + 8]",
    "wrgsbase rax",
    "2:",
    "push qword ptr [rip + .Lcontext + {rflags}]",
    "popfq",
    "mov rax, qword ptr [rip + .Lcontext + {gpr}]",
    "mov rcx, qword ptr [rip + .Lcontext + {gpr} + 8]",
    "mov rdx, qword ptr [rip + .Lcontext + {gpr} + 16]",
    "mov rbx, qword ptr [rip + .Lcontext + {gpr} + 24]",
    "mov rbp, qword ptr [rip + .Lcontext + {gpr} + 40]",
    "mov rsi, qword ptr [rip + .Lcontext + {gpr} + 48]",
    "mov rdi, qword ptr [rip + .Lcontext + {gpr} + 56]",
    "mov r8, qword ptr [rip + .Lcontext + {gpr} + 64]",
    "mov r9, qword ptr [rip + .Lcontext + {gpr} + 72]",
    "mov r10, qword ptr [rip + .Lcontext + {gpr} + 80]",
    "mov r11, qword ptr [rip + .Lcontext + {gpr} + 88]",
    "mov r12, qword ptr [rip + .Lcontext + {gpr} + 96]",
    "mov r13, qword ptr [rip + .Lcontext + {gpr} + 104]",
    "mov r14, qword ptr [rip + .Lcontext + {gpr} + 112]",
    "mov r15, qword ptr [rip + .Lcontext + {gpr} + 120]",
    "mov ss, word ptr [rip + .Lcontext + {selectors} + 4]",
    "mov rsp, qword ptr [rip + .Lcontext + {gpr} + 32]",
    "jmp fword ptr [rip + .Lcontext + {rip_field}]",
    ".globl nestling_conformance_exit_target",
    "nestling_conformance_exit_target:",
    "mov byte ptr [rip + .Lcontext + {ended}], {at_target}",
    "jmp nestling_conformance_exit_trap",
    ".globl nestling_conformance_exit_through",
    "nestling_conformance_exit_through:",
    "mov byte ptr [rip + .Lcontext + {ended}], {through}",
    ".globl nestling_conformance_exit_trap",
    "nestling_conformance_exit_trap:",
    "mov qword ptr [rip + .Lcontext + {gpr}], rax",
    "mov qword ptr [rip + .Lcontext + {gpr} + 8], rcx",
    "mov qword ptr [rip + .Lcontext + {gpr} + 16], rdx",
    "mov qword ptr [rip + .Lcontext + {gpr} + 24], rbx",
    "mov qword ptr [rip + .Lcontext + {gpr} + 32], rsp",
    "mov qword ptr [rip + .Lcontext + {gpr} + 40], rbp",
    "mov qword ptr [rip + .Lcontext + {gpr} + 48], rsi",
    "mov qword ptr [rip + .Lcontext + {gpr} + 56], rdi",
    "mov qword ptr [rip + .Lcontext + {gpr} + 64], r8",
    "mov qword ptr [rip + .Lcontext + {gpr} + 72], r9",
    "mov qword ptr [rip + .Lcontext + {gpr} + 80], r10",
    "mov qword ptr [rip + .Lcontext + {gpr} + 88], r11",
    "mov qword ptr [rip + .Lcontext + {gpr} + 96], r12",
    "mov qword ptr [rip + .Lcontext + {gpr} + 104], r13",
    "mov qword ptr [rip + .Lcontext + {gpr} + 112], r14",
    "mov qword ptr [rip + .Lcontext + {gpr} + 120], r15",
    "mov word ptr [rip + .Lcontext + {selectors}], es",
    "mov word ptr [rip + .Lcontext + {selectors} + 4], ss",
    "mov word ptr [rip + .Lcontext + {selectors} + 6], ds",
    "mov word ptr [rip + .Lcontext + {selectors} + 8], fs",
    "mov word ptr [rip + .Lcontext + {selectors} + 10], gs",
    "mov eax, 0x2b",
    "mov ss, eax",
    "mov rsp, qword ptr [rip + .Lcontext + {host_rsp}]",
    "pushfq",
    "pop qword ptr [rip + .Lcontext + {rflags}]",
    "cld",
    "cmp byte ptr [rip + .Lcontext + {fsgsbase}], 0",
    "je 3f",
    "rdfsbase rcx",
    "mov qword ptr [rip + .Lcontext + {bases}], rcx",
    "rdgsbase rcx",
    "mov qword ptr [rip + .Lcontext + {bases} + 8], rcx",
    "3:",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "cmp byte ptr [rip + .Lcontext + {fsgsbase}], 0",
    "je 4f",
    "mov rcx, qword ptr [rip + .Lcontext + {host_fs}]",
    "wrfsbase rcx",
    "jmp 5f",
    "4:",
    // arch_prctl(ARCH_SET_FS, base)
    "mov eax, 158",
    "mov edi, 0x1002",
    "mov rsi, qword ptr [rip + .Lcontext + {host_fs}]",
    "syscall",
    "5:",
    "mov eax, 7",
    "xor edx, edx",
    "xsave64 [rip + .Lcontext]",
    "fninit",
    "fldcw word ptr [rip + .Lcontext + {fcw}]",
    "ldmxcsr dword ptr [rip + .Lcontext + {mxcsr}]",
    "vzeroupper",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".globl nestling_conformance_stub_end",
    "nestling_conformance_stub_end:",
    distance = const CONTEXT_BEFORE_STUB,
    gpr = const offset_of!(Context, gpr),
    rip_field = const offset_of!(Context, rip),
    cs = const offset_of!(Context, cs),
    rflags = const offset_of!(Context, rflags),
    selectors = const offset_of!(Context, selectors),
    bases = const offset_of!(Context, bases),
    fsgsbase = const offset_of!(Context, fsgsbase),
    host_rsp = const offset_of!(Context, host_rsp),
    host_fs = const offset_of!(Context, host_fs),
    mxcsr = const offset_of!(Context, host_mxcsr),
    fcw = const offset_of!(Context, host_fcw),
    ended = const offset_of!(Context, ended),
    through = const ENDED_FALLING_THROUGH,
    at_target = const ENDED_AT_TARGET,
);

// SAFETY: the labels of the assembly above. Only their addresses are used.
unsafe extern "C" {
    fn nestling_conformance_stub();
    fn nestling_conformance_exit_target();
    fn nestling_conformance_exit_through();
    fn nestling_conformance_exit_trap();
    fn nestling_conformance_stub_end();
}

/// Ways out of a case, as offsets in the stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// At the branch target.
    Target,
    /// At the next instruction.
    Through,
    /// From the signal handler.
    Trap,
}

impl Exit {
    /// Bytes from the start of the stub.
    pub fn offset(self) -> u64 {
        let label = match self {
            Self::Target => nestling_conformance_exit_target,
            Self::Through => nestling_conformance_exit_through,
            Self::Trap => nestling_conformance_exit_trap,
        };
        label as *const () as u64 - nestling_conformance_stub as *const () as u64
    }
}

/// The stub's code.
pub fn code() -> &'static [u8] {
    let start = nestling_conformance_stub as *const () as usize;
    let end = nestling_conformance_stub_end as *const () as usize;
    // SAFETY: both labels are in this program's text, which is readable and never written.
    unsafe { std::slice::from_raw_parts(start as *const u8, end - start) }
}
