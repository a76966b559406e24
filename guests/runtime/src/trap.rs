//! Exceptions and interrupts as values.
//!
//! [`probe`] runs a function and returns the exception that ended it, if one did; [`user`] does the same at
//! CPL 3, from where an exception is the only way back. [`handle`] gives a vector to a function that returns
//! to what was interrupted.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::descriptors::{KERNEL_CS, KERNEL_SS, USER_CS, USER_SS};
use crate::{cpu, exit, println};

/// What the entry stub leaves on the stack: the general registers, then what the processor pushed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// R15 down to R8, RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    pub gpr: [u64; 15],
    /// Vector.
    pub vector: u64,
    /// Error code, zero for vectors without.
    pub error_code: u64,
    /// RIP.
    pub rip: u64,
    /// CS.
    pub cs: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    /// SS.
    pub ss: u64,
}

impl Frame {
    /// RAX.
    pub fn rax(&self) -> u64 {
        self.gpr[14]
    }

    /// RCX.
    pub fn rcx(&self) -> u64 {
        self.gpr[13]
    }

    /// RDX.
    pub fn rdx(&self) -> u64 {
        self.gpr[12]
    }

    /// RBX.
    pub fn rbx(&self) -> u64 {
        self.gpr[11]
    }

    /// R11.
    pub fn r11(&self) -> u64 {
        self.gpr[4]
    }
}

/// An exception that was taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trap {
    /// Registers and what the processor pushed.
    pub frame: Frame,
    /// CR2 when the handler ran.
    pub cr2: u64,
    /// DR6 when the handler ran.
    pub dr6: u64,
    /// Where the processor left the stack pointer: below error code and frame.
    pub pushed_at: u64,
}

impl Trap {
    /// Vector and error code.
    pub fn what(&self) -> (u64, u64) {
        (self.frame.vector, self.frame.error_code)
    }
}

/// A handler that returns to what was interrupted.
pub type Handler = fn(&mut Frame);

static mut HANDLERS: [Option<Handler>; 256] = [None; 256];
static mut LAST: Trap = Trap {
    frame: Frame {
        gpr: [0; 15],
        vector: 0,
        error_code: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
    },
    cr2: 0,
    dr6: 0,
    pushed_at: 0,
};

// SAFETY: the one symbol of this name, for the assembly below.
#[unsafe(no_mangle)]
static TRAP_RECOVER_RIP: AtomicU64 = AtomicU64::new(0);
// SAFETY: the one symbol of this name, for the assembly below.
#[unsafe(no_mangle)]
static TRAP_RECOVER_RSP: AtomicU64 = AtomicU64::new(0);

global_asm!(
    ".text",
    ".balign 16",
    ".globl trap_stubs",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    // Vectors for which the processor pushes an error code (SDM Vol 3 Table 6-1).
    ".if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp trap_entry",
    ".set vector, vector + 1",
    ".endr",
    "trap_entry:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    // TS, EM and OSFXSR may be what the test is about.
    "mov r12, cr0",
    "mov rax, r12",
    "and al, 0xf3",
    "mov cr0, rax",
    "mov r13, cr4",
    "mov rax, r13",
    "or eax, 0x600",
    "mov cr4, rax",
    "and rsp, -16",
    "sub rsp, 512",
    "fxsave64 [rsp]",
    "call trap_dispatch",
    "fxrstor64 [rsp]",
    "mov cr4, r13",
    "mov cr0, r12",
    "mov rsp, rbx",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    // trap_probe(function, argument) -> whether an exception ended it
    ".globl trap_probe",
    "trap_probe:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov [TRAP_RECOVER_RSP], rsp",
    "lea rax, [rip + trap_recover]",
    "mov [TRAP_RECOVER_RIP], rax",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "mov qword ptr [TRAP_RECOVER_RIP], 0",
    "xor eax, eax",
    "jmp 3f",
    "trap_recover:",
    "mov rax, cr0",
    "and al, 0xf3",
    "mov cr0, rax",
    "mov rax, cr4",
    "or eax, 0x600",
    "mov cr4, rax",
    "mov eax, 1",
    "3:",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // trap_leave(&[rip, cs, rflags, rsp, ss, rdi]): IRETQ; does not return
    ".globl trap_leave",
    "trap_leave:",
    "push qword ptr [rdi + 32]",
    "push qword ptr [rdi + 24]",
    "push qword ptr [rdi + 16]",
    "push qword ptr [rdi + 8]",
    "push qword ptr [rdi]",
    "mov rdi, [rdi + 40]",
    "iretq",
);

// SAFETY: the assembly above; both keep to the C calling convention.
unsafe extern "C" {
    safe fn trap_probe(function: u64, argument: u64) -> u64;
    safe fn trap_leave(state: &[u64; 6]);
}

// SAFETY: the one function of this name, for the assembly above.
#[unsafe(no_mangle)]
extern "C" fn trap_dispatch(frame: &mut Frame) {
    // SAFETY: one flow of control; handlers are set before what they handle can happen.
    let handler = unsafe {
        (&raw const HANDLERS)
            .cast::<Option<Handler>>()
            .add((frame.vector & 0xff) as usize)
            .read()
    };
    if let Some(handler) = handler {
        handler(frame);
        return;
    }
    let has_code = matches!(frame.vector, 8 | 10..=14 | 17 | 21);
    let trap = Trap {
        frame: *frame,
        cr2: cpu::read_cr2(),
        dr6: cpu::read_dr6(),
        pushed_at: if has_code {
            &raw const frame.error_code as u64
        } else {
            &raw const frame.rip as u64
        },
    };
    let recover = TRAP_RECOVER_RIP.swap(0, Ordering::Relaxed);
    if recover == 0 {
        println!("FAIL unexpected {trap:x?}");
        exit(0x11);
    }
    // SAFETY: one flow of control.
    unsafe { (&raw mut LAST).write(trap) };
    frame.rip = recover;
    frame.cs = u64::from(KERNEL_CS);
    frame.rflags = 2;
    frame.rsp = TRAP_RECOVER_RSP.load(Ordering::Relaxed);
    frame.ss = u64::from(KERNEL_SS);
}

/// Gives `vector` to `handler`, or back to [`probe`].
pub fn handle(vector: u8, handler: Option<Handler>) {
    // SAFETY: one flow of control.
    unsafe {
        (&raw mut HANDLERS)
            .cast::<Option<Handler>>()
            .add(usize::from(vector))
            .write(handler);
    }
}

/// Calls `function(argument)`; the exception that ended it, if one did. RFLAGS are 2 afterwards (no
/// interrupts), data segments as the function left them; when an exception ended it, CR0.TS and EM are
/// clear, CR4.OSFXSR and OSXMMEXCPT set.
pub fn probe_at(function: u64, argument: u64) -> Option<Trap> {
    let trapped = trap_probe(function, argument) != 0;
    // SAFETY: one flow of control.
    trapped.then(|| unsafe { (&raw const LAST).read() })
}

/// Runs `body`; the exception that ended it, if one did. Not nested.
pub fn probe<F: FnMut()>(mut body: F) -> Option<Trap> {
    extern "C" fn run<F: FnMut()>(body: u64) {
        // SAFETY: the address of the body below, which lives across the call.
        unsafe { (*(body as *mut F))() }
    }
    probe_at(run::<F> as *const () as u64, &raw mut body as u64)
}

/// The exception `body` is expected to raise; vector 256 when it raised none.
pub fn raised<F: FnMut()>(body: F) -> Trap {
    probe(body).unwrap_or_else(none)
}

/// The exception `function(argument)` is expected to raise; vector 256 when it raised none.
pub fn raised_at(function: u64, argument: u64) -> Trap {
    probe_at(function, argument).unwrap_or_else(none)
}

fn none() -> Trap {
    let mut trap = Trap::default();
    trap.frame.vector = 256;
    trap
}

/// Goes to `rip` at CPL 3 with `rdi`, `rsp` and extra RFLAGS; what brought it back.
pub fn user(rip: u64, rdi: u64, rsp: u64, rflags: u64) -> Trap {
    enter([
        rip,
        u64::from(USER_CS),
        rflags | 2,
        rsp,
        u64::from(USER_SS),
        rdi,
    ])
}

/// IRETQ to [RIP, CS, RFLAGS, RSP, SS, RDI]; what brought it back.
pub fn enter(state: [u64; 6]) -> Trap {
    raised(|| trap_leave(&state))
}
