//! The oracle: executes a case on the host's own processor.
//!
//! The instruction lies in a page at the very linear address the case names, every register is loaded, the
//! instruction runs, and an exit stub stores every register again. GS holds the address of the
//! [`Context`], so that no general register is needed; that is why instructions that use FS or GS, or write
//! their bases, are not given to it ([`crate::forms`]).
//!
//! An exception arrives as a signal on an alternate stack. The handler notes vector, error code and CR2 from
//! the signal frame and sends the thread to the exit stub with the registers as they were; RSP may hold
//! anything at that time.
//!
//! Invariants: the code area holds INT3 outside of a running case; the window equals its background outside
//! of a running case; TF and AC are never set by a case.

use std::arch::global_asm;
use std::cell::Cell;
use std::io;
use std::mem::offset_of;
use std::ptr;

use crate::case::{
    CODE_BYTES, Case, Exception, Layout, Outcome, READ_ONLY_OFFSET, Registers, Subject,
    WINDOW_BYTES,
};

/// Bytes of the standard-format XSAVE area of x87, SSE and AVX state (SDM Vol 1 13.4).
const XSAVE_BYTES: usize = 832;

/// Where the run ended, as the exit stub notes it.
const ENDED_BY_TRAP: u8 = 0;
const ENDED_FALLING_THROUGH: u8 = 1;
const ENDED_AT_TARGET: u8 = 2;

#[repr(C, align(64))]
struct Context {
    xsave: [u8; XSAVE_BYTES],
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    host_rsp: u64,
    host_mxcsr: u32,
    host_fcw: u16,
    ended: u8,
    trap_vector: u8,
    trap_error: u64,
    trap_cr2: u64,
    trap_rip: u64,
}

global_asm!(
    ".text",
    ".balign 16",
    ".globl nestling_conformance_enter",
    "nestling_conformance_enter:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "stmxcsr dword ptr gs:[{mxcsr}]",
    "fnstcw word ptr gs:[{fcw}]",
    "mov qword ptr gs:[{host_rsp}], rsp",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 gs:[0]",
    "push qword ptr gs:[{rflags}]",
    "popfq",
    "mov rax, qword ptr gs:[{gpr}]",
    "mov rcx, qword ptr gs:[{gpr} + 8]",
    "mov rdx, qword ptr gs:[{gpr} + 16]",
    "mov rbx, qword ptr gs:[{gpr} + 24]",
    "mov rsp, qword ptr gs:[{gpr} + 32]",
    "mov rbp, qword ptr gs:[{gpr} + 40]",
    "mov rsi, qword ptr gs:[{gpr} + 48]",
    "mov rdi, qword ptr gs:[{gpr} + 56]",
    "mov r8, qword ptr gs:[{gpr} + 64]",
    "mov r9, qword ptr gs:[{gpr} + 72]",
    "mov r10, qword ptr gs:[{gpr} + 80]",
    "mov r11, qword ptr gs:[{gpr} + 88]",
    "mov r12, qword ptr gs:[{gpr} + 96]",
    "mov r13, qword ptr gs:[{gpr} + 104]",
    "mov r14, qword ptr gs:[{gpr} + 112]",
    "mov r15, qword ptr gs:[{gpr} + 120]",
    "jmp qword ptr gs:[{rip}]",
    ".globl nestling_conformance_exit_target",
    "nestling_conformance_exit_target:",
    "mov byte ptr gs:[{ended}], {at_target}",
    "jmp nestling_conformance_exit_trap",
    ".globl nestling_conformance_exit_through",
    "nestling_conformance_exit_through:",
    "mov byte ptr gs:[{ended}], {through}",
    ".globl nestling_conformance_exit_trap",
    "nestling_conformance_exit_trap:",
    "mov qword ptr gs:[{gpr}], rax",
    "mov qword ptr gs:[{gpr} + 8], rcx",
    "mov qword ptr gs:[{gpr} + 16], rdx",
    "mov qword ptr gs:[{gpr} + 24], rbx",
    "mov qword ptr gs:[{gpr} + 32], rsp",
    "mov qword ptr gs:[{gpr} + 40], rbp",
    "mov qword ptr gs:[{gpr} + 48], rsi",
    "mov qword ptr gs:[{gpr} + 56], rdi",
    "mov qword ptr gs:[{gpr} + 64], r8",
    "mov qword ptr gs:[{gpr} + 72], r9",
    "mov qword ptr gs:[{gpr} + 80], r10",
    "mov qword ptr gs:[{gpr} + 88], r11",
    "mov qword ptr gs:[{gpr} + 96], r12",
    "mov qword ptr gs:[{gpr} + 104], r13",
    "mov qword ptr gs:[{gpr} + 112], r14",
    "mov qword ptr gs:[{gpr} + 120], r15",
    "mov rsp, qword ptr gs:[{host_rsp}]",
    "pushfq",
    "pop qword ptr gs:[{rflags}]",
    "cld",
    "mov eax, 7",
    "xor edx, edx",
    "xsave64 gs:[0]",
    "fninit",
    "fldcw word ptr gs:[{fcw}]",
    "ldmxcsr dword ptr gs:[{mxcsr}]",
    "vzeroupper",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    gpr = const offset_of!(Context, gpr),
    rip = const offset_of!(Context, rip),
    rflags = const offset_of!(Context, rflags),
    host_rsp = const offset_of!(Context, host_rsp),
    mxcsr = const offset_of!(Context, host_mxcsr),
    fcw = const offset_of!(Context, host_fcw),
    ended = const offset_of!(Context, ended),
    through = const ENDED_FALLING_THROUGH,
    at_target = const ENDED_AT_TARGET,
);

// SAFETY: the assembly above; the first keeps to the C calling convention, of the others only the addresses
// are used.
unsafe extern "C" {
    fn nestling_conformance_enter();
    fn nestling_conformance_exit_target();
    fn nestling_conformance_exit_through();
    fn nestling_conformance_exit_trap();
}

thread_local! {
    /// The context of the case this thread is executing; null at any other time.
    static RUNNING: Cell<*mut Context> = const { Cell::new(ptr::null_mut()) };
}

/// A stray TF would trap in the exit stub forever.
const TF: libc::greg_t = 1 << 8;

const SIGNALS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, frame: *mut libc::c_void) {
    let context = RUNNING.get();
    if context.is_null() {
        // Not ours: the default action, when the instruction is tried again.
        // SAFETY: signal() with SIG_DFL is async-signal-safe and needs no memory of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel passes a ucontext_t with SA_SIGINFO, and nothing else refers to it; the context
    // belongs to this thread, which is inside nestling_conformance_enter and holds no reference to it.
    unsafe {
        let registers = &mut (*frame.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let context = &mut *context;
        context.trap_vector = registers[libc::REG_TRAPNO as usize] as u8;
        context.trap_error = registers[libc::REG_ERR as usize] as u64;
        context.trap_cr2 = registers[libc::REG_CR2 as usize] as u64;
        context.trap_rip = registers[libc::REG_RIP as usize] as u64;
        registers[libc::REG_EFL as usize] &= !TF;
        registers[libc::REG_RIP as usize] = nestling_conformance_exit_trap as *const () as i64;
    }
}

fn install_handlers() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is valid, and on_signal has the signature SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in SIGNALS {
            if libc::sigaction(signal, &action, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// The writable part of the window of a mapped slot.
struct Window(Layout);

impl Window {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: map_slot mapped these pages readable and writable, and only the slot's one Window refers
        // to them.
        unsafe { std::slice::from_raw_parts_mut(self.0.window() as *mut u8, READ_ONLY_OFFSET) }
    }
}

/// The host's processor. Bound to the thread that made it (GS base and signal stack are the thread's).
pub struct Host {
    layout: Layout,
    window: Window,
    context: Box<Context>,
    background: Box<[u8; WINDOW_BYTES]>,
    _signal_stack: Vec<u8>,
    /// Not `Send`.
    _thread: std::marker::PhantomData<*mut ()>,
}

impl Host {
    /// Maps the slot of `layout` with `background` in its window.
    ///
    /// # Errors
    /// When the host refuses the mapping (the addresses are in use) or a signal stack.
    pub fn new(layout: Layout, background: &[u8; WINDOW_BYTES]) -> io::Result<Self> {
        install_handlers()?;
        map_slot(layout, background)?;
        let mut signal_stack = vec![0; 128 << 10];
        let stack = libc::stack_t {
            ss_sp: signal_stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: signal_stack.len(),
        };
        // SAFETY: the stack's memory lives as long as this value, which stays on this thread; Drop takes it
        // back.
        if unsafe { libc::sigaltstack(&stack, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut context = Box::new(Context {
            xsave: [0; XSAVE_BYTES],
            gpr: [0; 16],
            rip: 0,
            rflags: 2,
            host_rsp: 0,
            host_mxcsr: 0x1f80,
            host_fcw: 0x37f,
            ended: 0,
            trap_vector: 0,
            trap_error: 0,
            trap_cr2: 0,
            trap_rip: 0,
        });
        const ARCH_SET_GS: libc::c_long = 0x1001;
        // SAFETY: nothing on x86-64 Linux uses GS in user mode; the context outlives its use.
        let set = unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_SET_GS,
                ptr::from_mut(&mut *context),
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            layout,
            window: Window(layout),
            context,
            background: Box::new(*background),
            _signal_stack: signal_stack,
            _thread: std::marker::PhantomData,
        })
    }

    fn code(&mut self, at: u64, bytes: usize) -> &mut [u8] {
        assert!(
            at >= self.layout.code() && at + bytes as u64 <= self.layout.code() + CODE_BYTES as u64,
            "code at {at:#x} is outside of the code area"
        );
        // SAFETY: in the code area, which map_slot mapped; only this value refers to it.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes) }
    }

    /// Writes JMP to `stub` at `at`, as far as the code area reaches.
    fn put_exit(&mut self, at: u64, stub: unsafe extern "C" fn()) {
        let mut jump = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        jump[6..].copy_from_slice(&(stub as *const () as u64).to_le_bytes());
        self.code(at, jump.len()).copy_from_slice(&jump);
    }

    fn load(&mut self, case: &Case) {
        for patch in &case.patches {
            self.window.bytes()[patch.offset..patch.offset + patch.bytes.len()]
                .copy_from_slice(&patch.bytes);
        }
        self.code(case.before.rip, case.bytes.len())
            .copy_from_slice(&case.bytes);
        self.put_exit(case.next_rip(), nestling_conformance_exit_through);
        if let Some(target) = case.branch_target
            && self.holds_exit(target)
            && target != case.next_rip()
        {
            self.put_exit(target, nestling_conformance_exit_target);
        }
        let context = &mut *self.context;
        context.xsave[..512].copy_from_slice(&case.before.extended.legacy);
        context.xsave[512..576].fill(0);
        context.xsave[512] = 7;
        for (bytes, half) in context.xsave[576..]
            .chunks_exact_mut(16)
            .zip(&case.before.extended.ymm_high)
        {
            bytes.copy_from_slice(&half.to_le_bytes());
        }
        context.gpr = case.before.gpr;
        context.rip = case.before.rip;
        context.rflags = case.before.rflags;
        context.ended = ENDED_BY_TRAP;
    }

    fn holds_exit(&self, at: u64) -> bool {
        at >= self.layout.code() && at + 14 <= self.layout.code() + CODE_BYTES as u64
    }

    fn unload(&mut self, case: &Case) {
        self.code(case.before.rip, case.bytes.len() + 14).fill(0xcc);
        if let Some(target) = case.branch_target
            && self.holds_exit(target)
        {
            self.code(target, 14).fill(0xcc);
        }
    }

    fn store(&mut self, case: &Case) -> Outcome {
        let mut after = Registers {
            gpr: self.context.gpr,
            rip: 0,
            rflags: self.context.rflags,
            ..Registers::default()
        };
        after
            .extended
            .legacy
            .copy_from_slice(&self.context.xsave[..512]);
        for (half, bytes) in after
            .extended
            .ymm_high
            .iter_mut()
            .zip(self.context.xsave[576..].chunks_exact(16))
        {
            let mut value = [0; 16];
            value.copy_from_slice(bytes);
            *half = u128::from_le_bytes(value);
        }
        let mut exception = None;
        after.rip = match self.context.ended {
            ENDED_FALLING_THROUGH => case.next_rip(),
            ENDED_AT_TARGET => case.branch_target.expect("the target's stub was run"),
            _ => {
                let context = &self.context;
                let landed = context.trap_rip.wrapping_sub(1);
                let elsewhere = landed < case.before.rip || landed >= case.next_rip();
                if context.trap_vector == 3 && elsewhere {
                    // INT3 of the code area: a branch went where no exit stub is.
                    landed
                } else {
                    let page_fault = context.trap_vector == 14;
                    exception = Some(Exception {
                        vector: context.trap_vector,
                        error_code: context.trap_error as u32,
                        cr2: if page_fault { context.trap_cr2 } else { 0 },
                    });
                    context.trap_rip
                }
            }
        };
        Outcome {
            exception,
            after,
            memory: window_changes(self.window.bytes(), &self.background, &case.patches),
        }
    }
}

/// What in `window` differs from `background` with `patches` on it; puts the background back.
///
/// Every subject reports its memory through this, so that all report the same way.
pub fn window_changes(
    window: &mut [u8],
    background: &[u8; WINDOW_BYTES],
    patches: &[crate::Patch],
) -> Vec<(usize, u8)> {
    let mut changes = Vec::new();
    const LINE: usize = 256;
    let patched = |line: usize| {
        patches
            .iter()
            .any(|p| p.offset < line + LINE && p.offset + p.bytes.len() > line)
    };
    for (number, now) in window.chunks_exact_mut(LINE).enumerate() {
        let at = number * LINE;
        let mut expected = [0; LINE];
        expected.copy_from_slice(&background[at..at + LINE]);
        if *now == expected && !patched(at) {
            continue;
        }
        for patch in patches {
            for (i, &byte) in patch.bytes.iter().enumerate() {
                if (at..at + LINE).contains(&(patch.offset + i)) {
                    expected[patch.offset + i - at] = byte;
                }
            }
        }
        for i in 0..LINE {
            if now[i] != expected[i] {
                changes.push((at + i, now[i]));
            }
        }
        now.copy_from_slice(&background[at..at + LINE]);
    }
    changes
}

fn map_slot(layout: Layout, background: &[u8; WINDOW_BYTES]) -> io::Result<()> {
    let slot = layout.slot as *mut libc::c_void;
    // SAFETY: MAP_FIXED_NOREPLACE takes only addresses nothing else uses; the slices and copies below stay
    // in pages this function has just made accessible.
    unsafe {
        let mapped = libc::mmap(
            slot,
            Layout::SLOT_BYTES as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        );
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        let window = layout.window() as *mut libc::c_void;
        let code = layout.code() as *mut libc::c_void;
        if libc::mprotect(window, WINDOW_BYTES, read_write) != 0
            || libc::mprotect(code, CODE_BYTES, read_write | libc::PROT_EXEC) != 0
        {
            return Err(io::Error::last_os_error());
        }
        ptr::copy_nonoverlapping(background.as_ptr(), window.cast(), WINDOW_BYTES);
        ptr::write_bytes(code.cast::<u8>(), 0xcc, CODE_BYTES);
        if libc::mprotect(window.add(READ_ONLY_OFFSET), 4096, libc::PROT_READ) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

impl Drop for Host {
    fn drop(&mut self) {
        let none = libc::stack_t {
            ss_sp: ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        // SAFETY: the slot was mapped by new and nothing refers to it any more; the signal stack is given
        // up before its memory is.
        unsafe {
            libc::munmap(
                self.layout.slot as *mut libc::c_void,
                Layout::SLOT_BYTES as usize,
            );
            libc::sigaltstack(&none, ptr::null_mut());
        }
    }
}

impl Subject for Host {
    fn execute(&mut self, case: &Case) -> Outcome {
        assert_eq!(case.layout, self.layout, "a case of another worker");
        self.load(case);
        RUNNING.set(ptr::from_mut(&mut *self.context));
        // SAFETY: the case's accesses stay inside the slot or are non-canonical (generate checks them
        // against Layout::allows); every way out of the instruction ends in an exit stub, which restores
        // what the calling convention wants preserved.
        unsafe { nestling_conformance_enter() };
        RUNNING.set(ptr::null_mut());
        self.unload(case);
        self.store(case)
    }
}
