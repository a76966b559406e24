//! The oracle: executes a case on the host's own processor.
//!
//! The instruction lies in a page at the very linear address the case names, every register is loaded, the
//! instruction runs, and an exit stub ([`stub`]) stores every register again. A case of 32 or 16 bits is
//! entered by a far jump to a code segment of compatibility mode, Linux's flat one or one of the LDT, and
//! left by a far jump back.
//!
//! An exception arrives as a signal on an alternate stack, for such a case too with 64-bit state. The
//! handler notes vector, error code, CR2, CS and SS from the signal frame and sends the thread to the exit
//! stub with the registers as they were. RSP, FS and GS may hold anything at that time, so the handler uses
//! nothing of the thread: it finds the context by the address of its own frame, which is in the slot.
//!
//! Invariants: the code area holds INT3 outside of a running case; the window equals its background outside
//! of a running case; TF and AC are never set by a case.

mod ldt;
mod stub;

use std::io;
use std::ptr;

use crate::case::{
    CODE_BYTES, Case, Exception, Layout, Outcome, READ_ONLY_OFFSET, Registers, Subject,
    WINDOW_BYTES,
};
use crate::segments::{CODE64, CS, DATA, SS};
use stub::{
    CONTEXT_BEFORE_STUB, Context, ENDED_AT_TARGET, ENDED_BY_TRAP, ENDED_FALLING_THROUGH, Exit,
};

/// Offset in the slot of the context.
const CONTEXT: u64 = 0xd_0000;
/// Offset in the slot of the stub's copy.
const STUB: u64 = CONTEXT + CONTEXT_BEFORE_STUB;
/// Offset in the slot of the signal stack, which reaches to its end.
const SIGNAL_STACK: u64 = 0xf_0000;

/// Most bytes of a jump to the stub.
const JUMP_BYTES: usize = 14;

/// A stray TF would trap in the exit stub forever.
const TF: libc::greg_t = 1 << 8;

const SIGNALS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];

/// The context of the slot `address` is in, if a case is running there.
fn running_context(address: u64) -> Option<*mut Context> {
    let layout = Layout::of(address)?;
    if address < layout.slot + SIGNAL_STACK {
        return None;
    }
    let context = (layout.slot + CONTEXT) as *mut Context;
    // SAFETY: the signal stack is mapped, so the context of the same slot is; nothing writes this byte while
    // a handler of its thread runs.
    (unsafe { (*context).running } != 0).then_some(context)
}

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, frame: *mut libc::c_void) {
    let Some(context) = running_context(frame as u64) else {
        // Not ours: the default action, when the instruction is tried again.
        // SAFETY: signal() with SIG_DFL is async-signal-safe and needs no memory of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    // SAFETY: the kernel passes a ucontext_t with SA_SIGINFO, and nothing else refers to it; the context
    // belongs to this thread, which is inside the stub and holds no reference to it.
    unsafe {
        let registers = &mut (*frame.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let context = &mut *context;
        context.trap_vector = registers[libc::REG_TRAPNO as usize] as u8;
        context.trap_error = registers[libc::REG_ERR as usize] as u64;
        context.trap_cr2 = registers[libc::REG_CR2 as usize] as u64;
        context.trap_rip = registers[libc::REG_RIP as usize] as u64;
        // CS, GS, FS, SS, 16 bits each (sigcontext of Linux on x86-64).
        let selectors = registers[libc::REG_CSGSFS as usize] as u64;
        context.trap_cs = selectors as u16;
        context.trap_ss = (selectors >> 48) as u16;
        registers[libc::REG_CSGSFS as usize] =
            (selectors & 0xffff_ffff_0000 | u64::from(CODE64) | u64::from(DATA) << 48) as i64;
        registers[libc::REG_EFL as usize] &= !TF;
        let stub = ptr::from_mut(context) as u64 + CONTEXT_BEFORE_STUB;
        registers[libc::REG_RIP as usize] = (stub + Exit::Trap.offset()) as i64;
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

/// The host's processor. Bound to the thread that made it (the signal stack is the thread's).
pub struct Host {
    layout: Layout,
    window: Window,
    context: SlotContext,
    background: Box<[u8; WINDOW_BYTES]>,
    /// Not `Send`.
    _thread: std::marker::PhantomData<*mut ()>,
}

/// The context in a mapped slot.
struct SlotContext(*mut Context);

impl std::ops::Deref for SlotContext {
    type Target = Context;

    fn deref(&self) -> &Context {
        // SAFETY: map_slot mapped it, zeros are a valid value, and only this refers to it outside of a case.
        unsafe { &*self.0 }
    }
}

impl std::ops::DerefMut for SlotContext {
    fn deref_mut(&mut self) -> &mut Context {
        // SAFETY: as in deref.
        unsafe { &mut *self.0 }
    }
}

/// Whether programs may read and write the bases of FS and GS (AT_HWCAP2 bit 1, HWCAP2_FSGSBASE).
#[must_use]
pub fn has_fsgsbase() -> bool {
    // SAFETY: getauxval only reads.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

impl Host {
    /// Maps the slot of `layout` with `background` in its window.
    ///
    /// # Errors
    /// When the host refuses the mapping (the addresses are in use), the LDT or a signal stack.
    pub fn new(layout: Layout, background: &[u8; WINDOW_BYTES]) -> io::Result<Self> {
        install_handlers()?;
        map_slot(layout, background)?;
        ldt::install(layout)?;
        let stack = libc::stack_t {
            ss_sp: (layout.slot + SIGNAL_STACK) as *mut libc::c_void,
            ss_flags: 0,
            ss_size: (Layout::SLOT_BYTES - SIGNAL_STACK) as usize,
        };
        let mut context = SlotContext((layout.slot + CONTEXT) as *mut Context);
        const ARCH_GET_FS: libc::c_long = 0x1003;
        // SAFETY: the stack's memory is in the slot, which lives as long as this value, which stays on this
        // thread; Drop takes the stack back. ARCH_GET_FS writes the u64 it is given.
        unsafe {
            if libc::sigaltstack(&stack, ptr::null_mut()) != 0
                || libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &mut context.host_fs) != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        context.fsgsbase = has_fsgsbase().into();
        Ok(Self {
            layout,
            window: Window(layout),
            context,
            background: Box::new(*background),
            _thread: std::marker::PhantomData,
        })
    }

    /// Code bytes at the linear address `at`.
    fn code(&mut self, at: u64, bytes: usize) -> &mut [u8] {
        assert!(
            at >= self.layout.code() && at + bytes as u64 <= self.layout.code() + CODE_BYTES as u64,
            "code at {at:#x} is outside of the code area"
        );
        // SAFETY: in the code area, which map_slot mapped; only this value refers to it.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes) }
    }

    /// Writes a jump of `bits` bits to an exit of the stub at `at`.
    fn put_exit(&mut self, at: u64, bits: u32, exit: Exit) {
        let stub = self.layout.slot + STUB + exit.offset();
        // jmp [rip]; the address
        let mut jump = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        if bits == 64 {
            jump[6..].copy_from_slice(&stub.to_le_bytes());
        } else {
            // jmp 33h:stub, in 16-bit code with an operand-size prefix
            let at = usize::from(bits == 16);
            jump[0] = 0x66;
            jump[at] = 0xea;
            jump[at + 1..at + 5].copy_from_slice(&(stub as u32).to_le_bytes());
            jump[at + 5..at + 7].copy_from_slice(&CODE64.to_le_bytes());
        }
        self.code(at, jump.len()).copy_from_slice(&jump);
    }

    fn load(&mut self, case: &Case) {
        for patch in &case.patches {
            self.window.bytes()[patch.offset..patch.offset + patch.bytes.len()]
                .copy_from_slice(&patch.bytes);
        }
        let bits = case.setting.bits;
        self.code(case.code(), case.bytes.len())
            .copy_from_slice(&case.bytes);
        if fits_limit(case, case.next_rip()) {
            self.put_exit(case.code() + case.bytes.len() as u64, bits, Exit::Through);
        }
        if let Some(target) = case.branch_target
            && target != case.next_rip()
            && let Some(at) = self.holds_exit(case, target)
        {
            self.put_exit(at, bits, Exit::Target);
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
        context.rip = case.before.rip as u32;
        context.selectors = case.selectors();
        context.cs = context.selectors[CS];
        context.bases = [4, 5].map(|register: usize| case.setting.segments[register].base);
        context.rflags = case.before.rflags;
        context.ended = ENDED_BY_TRAP;
    }

    /// Linear address of `target`, when an exit fits there.
    fn holds_exit(&self, case: &Case, target: u64) -> Option<u64> {
        let at = case.setting.code().base + target;
        (fits_limit(case, target)
            && at >= self.layout.code()
            && at + JUMP_BYTES as u64 <= self.layout.code() + CODE_BYTES as u64)
            .then_some(at)
    }

    fn unload(&mut self, case: &Case) {
        self.code(case.code(), case.bytes.len() + JUMP_BYTES)
            .fill(0xcc);
        if let Some(target) = case.branch_target
            && let Some(at) = self.holds_exit(case, target)
        {
            self.code(at, JUMP_BYTES).fill(0xcc);
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
        let mut selectors = self.context.selectors;
        after.rip = match self.context.ended {
            ENDED_FALLING_THROUGH => case.next_rip(),
            ENDED_AT_TARGET => case.branch_target.expect("the target's stub was run"),
            _ => {
                let context = &self.context;
                selectors[CS] = context.trap_cs;
                selectors[SS] = context.trap_ss;
                if context.trap_vector == 3 && case.is_elsewhere(context.trap_rip, context.trap_cs)
                {
                    context.trap_rip.wrapping_sub(1)
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
        let mut outcome = Outcome {
            selectors,
            bases: self.context.bases,
            exception,
            after,
            memory: window_changes(self.window.bytes(), &self.background, &case.patches),
        };
        outcome.clear_undefined(case);
        outcome
    }
}

/// Whether a jump at `offset` is inside the limit of the code segment; where it is not, the INT3 of the code
/// area ends the case.
fn fits_limit(case: &Case, offset: u64) -> bool {
    let segment = case.setting.code();
    case.setting.bits == 64 || segment.linear(offset, JUMP_BYTES as u64).is_some()
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
        let own = (layout.slot + CONTEXT) as *mut libc::c_void;
        if libc::mprotect(own, (Layout::SLOT_BYTES - CONTEXT) as usize, read_write) != 0 {
            return Err(io::Error::last_os_error());
        }
        let stub = stub::code();
        let copy = (layout.slot + STUB) as *mut libc::c_void;
        ptr::copy_nonoverlapping(stub.as_ptr(), copy.cast(), stub.len());
        if libc::mprotect(copy, 4096, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
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
        self.context.running = 1;
        // SAFETY: the stub's copy keeps to the C calling convention. The case's accesses stay inside the
        // slot's lower part, are refused by a segment's limit, or are non-canonical (generate checks them
        // against Layout::allows); every way out of the instruction ends in an exit stub, which restores
        // what the calling convention wants preserved.
        unsafe {
            let enter: extern "C" fn() =
                std::mem::transmute((self.layout.slot + STUB) as *const ());
            enter();
        }
        self.context.running = 0;
        self.unload(case);
        self.store(case)
    }
}
