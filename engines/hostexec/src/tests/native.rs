//! The oracle: runs the guest's own bytes, unchanged, with the whole register state loaded.
//!
//! It shares nothing with the stubs: the state goes in by XRSTOR and out by XSAVE, all sixteen general registers
//! and the flags are the guest's, the memory operand is where the instruction says, and exceptions are unmasked
//! as the guest has them, so SIGFPE tells of #XM.

use crate::state::ExtState;
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use std::cell::Cell;
use std::ptr;

const PAGE: usize = 4096;
/// Offsets in the data page.
const XSAVE: usize = 0;
const GPR_IN: usize = 1024;
const GPR_OUT: usize = 1152;
const RFLAGS: usize = 1280;
const HOST_RSP: usize = 1288;
const DEFAULT_MXCSR: usize = 1296;
const MEMORY: usize = 2048;
/// Bytes of the memory the instruction may address.
pub(super) const MEMORY_LEN: usize = 512;

/// The general-purpose and memory side of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) ext: ExtState,
    pub(super) gpr: [u64; 16],
    pub(super) mem: [u8; MEMORY_LEN],
    pub(super) rflags: u64,
}

/// One data page and one code page, next to each other.
pub(super) struct Native {
    base: *mut u8,
}

thread_local! {
    /// Where a SIGFPE inside the code page goes on: (start, end, address).
    static RESUME: Cell<(u64, u64, u64)> = const { Cell::new((0, 0, 0)) };
    static TRAPPED: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn on_sigfpe(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `ucontext_t` to SA_SIGINFO handlers.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let (start, end, resume) = RESUME.get();
    if (*rip as u64) < start || (*rip as u64) >= end {
        // SAFETY: ends the process; a floating-point fault anywhere else is a failed test.
        unsafe { libc::abort() };
    }
    *rip = resume as i64;
    TRAPPED.set(true);
}

impl Native {
    pub(super) fn new() -> Native {
        // SAFETY: a new anonymous mapping.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: installs a handler and a leaked stack for it; both stay valid for the process.
        unsafe {
            let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
            let stack = libc::stack_t {
                ss_sp: stack.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: stack.len(),
            };
            assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigfpe as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGFPE, &action, ptr::null_mut()), 0);
        }
        Native { base: base.cast() }
    }

    /// The address of the memory operand's buffer; valid as a guest address for `run`.
    pub(super) fn memory_address(&self) -> u64 {
        self.base as u64 + MEMORY as u64
    }

    fn data(&mut self) -> &mut [u8] {
        // SAFETY: the data page is mapped, writable, and borrowed through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base, PAGE) }
    }

    fn at(&self, offset: usize) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RIP, (self.base as u64 + offset as u64) as i64)
    }

    fn code(&self, bytes: &[u8]) -> (Vec<u8>, u64) {
        let start = self.base as u64 + PAGE as u64;
        let mut code = Vec::new();
        let saved = [
            Register::RBX,
            Register::RBP,
            Register::R12,
            Register::R13,
            Register::R14,
            Register::R15,
        ];
        let put = |code: &mut Vec<u8>, insn: Instruction| {
            let mut encoder = Encoder::new(64);
            encoder.encode(&insn, start + code.len() as u64).unwrap();
            code.extend(encoder.take_buffer());
        };
        let with1 = |c, r: Register| Instruction::with1(c, r).unwrap();
        let mask = |code: &mut Vec<u8>| {
            put(
                code,
                Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 7).unwrap(),
            );
            put(
                code,
                Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0).unwrap(),
            );
        };
        for register in saved {
            put(&mut code, with1(Code::Push_r64, register));
        }
        put(
            &mut code,
            Instruction::with2(Code::Mov_rm64_r64, self.at(HOST_RSP), Register::RSP).unwrap(),
        );
        mask(&mut code);
        put(
            &mut code,
            Instruction::with1(Code::Xrstor64_mem, self.at(XSAVE)).unwrap(),
        );
        put(
            &mut code,
            Instruction::with1(Code::Push_rm64, self.at(RFLAGS)).unwrap(),
        );
        put(&mut code, Instruction::with(Code::Popfq));
        for number in 0..16u32 {
            let register = Register::RAX + number;
            let from = self.at(GPR_IN + number as usize * 8);
            put(
                &mut code,
                Instruction::with2(Code::Mov_r64_rm64, register, from).unwrap(),
            );
        }
        code.extend(bytes);
        let resume = start + code.len() as u64;
        for number in 0..16u32 {
            let register = Register::RAX + number;
            let to = self.at(GPR_OUT + number as usize * 8);
            put(
                &mut code,
                Instruction::with2(Code::Mov_rm64_r64, to, register).unwrap(),
            );
        }
        put(
            &mut code,
            Instruction::with2(Code::Mov_r64_rm64, Register::RSP, self.at(HOST_RSP)).unwrap(),
        );
        put(&mut code, Instruction::with(Code::Pushfq));
        put(
            &mut code,
            Instruction::with1(Code::Pop_rm64, self.at(RFLAGS)).unwrap(),
        );
        mask(&mut code);
        put(
            &mut code,
            Instruction::with1(Code::Xsave64_mem, self.at(XSAVE)).unwrap(),
        );
        put(&mut code, Instruction::with(Code::Fninit));
        put(
            &mut code,
            Instruction::with1(Code::Ldmxcsr_m32, self.at(DEFAULT_MXCSR)).unwrap(),
        );
        put(&mut code, Instruction::with(Code::VEX_Vzeroupper));
        for register in saved.into_iter().rev() {
            put(&mut code, with1(Code::Pop_r64, register));
        }
        put(&mut code, Instruction::with(Code::Retnq));
        (code, resume)
    }

    fn protect(&self, protection: libc::c_int) {
        // SAFETY: the code page is ours and no code of it is running.
        let result = unsafe { libc::mprotect(self.base.add(PAGE).cast(), PAGE, protection) };
        assert_eq!(result, 0);
    }

    /// Runs `bytes` on `machine`; returns whether it took SIGFPE.
    pub(super) fn run(&mut self, bytes: &[u8], machine: &mut Machine) -> bool {
        let (code, resume) = self.code(bytes);
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the code page is writable now and larger than the code.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.base.add(PAGE), code.len()) };
        self.protect(libc::PROT_READ | libc::PROT_EXEC);
        self.put_state(machine);
        let start = self.base as u64 + PAGE as u64;
        RESUME.set((start, start + code.len() as u64, resume));
        TRAPPED.set(false);
        // SAFETY: the page holds the function built above, which keeps the ABI: callee-saved registers are
        // restored, MXCSR and x87 are back to their defaults.
        unsafe {
            let function: extern "sysv64" fn() = std::mem::transmute(self.base.add(PAGE));
            function();
        }
        self.get_state(machine);
        TRAPPED.get()
    }

    fn put_state(&mut self, machine: &Machine) {
        let data = self.data();
        data[XSAVE..XSAVE + 1024].fill(0);
        data[XSAVE..XSAVE + 160].copy_from_slice(&machine.ext.fx[..160]);
        data[XSAVE + 24..XSAVE + 28].copy_from_slice(&machine.ext.mxcsr.to_le_bytes());
        data[XSAVE + 512] = 7;
        for (number, ymm) in machine.ext.ymm.iter().enumerate() {
            for (i, word) in ymm.iter().enumerate() {
                let half = if i < 2 { 160 } else { 576 };
                let at = XSAVE + half + number * 16 + i % 2 * 8;
                data[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        for (number, value) in machine.gpr.iter().enumerate() {
            let at = GPR_IN + number * 8;
            data[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        data[RFLAGS..RFLAGS + 8].copy_from_slice(&machine.rflags.to_le_bytes());
        data[DEFAULT_MXCSR..DEFAULT_MXCSR + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
        data[MEMORY..MEMORY + MEMORY_LEN].copy_from_slice(&machine.mem);
    }

    fn get_state(&mut self, machine: &mut Machine) {
        let data = self.data();
        let u64_at = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
        machine.ext.fx[..160].copy_from_slice(&data[XSAVE..XSAVE + 160]);
        machine.ext.mxcsr = u64_at(XSAVE + 24) as u32;
        for (number, ymm) in machine.ext.ymm.iter_mut().enumerate() {
            for (i, word) in ymm.iter_mut().enumerate() {
                // A component in its initial state is not written by XSAVE (XSTATE_BV bit clear).
                let (component, half) = if i < 2 { (2, 160) } else { (4, 576) };
                *word = if data[XSAVE + 512] & component != 0 {
                    u64_at(XSAVE + half + number * 16 + i % 2 * 8)
                } else {
                    0
                };
            }
        }
        for (number, value) in machine.gpr.iter_mut().enumerate() {
            *value = u64_at(GPR_OUT + number * 8);
        }
        machine.rflags = u64_at(RFLAGS);
        machine
            .mem
            .copy_from_slice(&data[MEMORY..MEMORY + MEMORY_LEN]);
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and unused from here on.
        unsafe { libc::munmap(self.base.cast(), 2 * PAGE) };
    }
}
