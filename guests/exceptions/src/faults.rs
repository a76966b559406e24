//! One exception each: vector, error code, the RIP pushed (6.15).

use runtime::cpu::{self, cr0, cr4};
use runtime::paging::user_address;
use runtime::trap::{self, Trap, raised_at as at};
use runtime::{address, check, check_eq, labels, section, snippet};

use crate::user_stack;

const NONE: (u64, u64) = (256, 0);
const NON_CANONICAL: u64 = 0x8000_0000_0000;

snippet! {
    f_ud2: "ud2", "ret";
    f_int3: "int3", "ret";
    f_int1: ".byte 0xf1", "ret";
    f_into: ".byte 0xce", "ret";
    f_divide: "xor edx, edx", "mov eax, 1", "xor ecx, ecx", "f_divide_at: div ecx", "ret";
    f_divide_overflow: "mov edx, 1", "mov eax, 1", "mov ecx, 1", "f_divide_overflow_at: div ecx", "ret";
    f_idiv_overflow: "mov rdx, -1", "mov rax, 1", "shl rax, 63", "mov rcx, -1",
        "f_idiv_overflow_at: idiv rcx", "ret";
    f_load: "mov rax, [rdi]", "ret";
    f_load_stack: "push rbp", "mov rbp, rdi", "mov rax, [rbp]", "pop rbp", "ret";
    f_push: "mov rsp, rdi", "f_push_at: push rax", "ret";
    f_call: "mov rsp, rdi", "f_call_at: call f_ud2", "ret";
    f_jump: "jmp rdi";
    f_return: "push rdi", "f_return_at: ret";
    f_lock: ".byte 0xf0, 0x90", "ret";
    f_lock_register: ".byte 0xf0, 0x01, 0xc0", "ret";
    f_long: ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90", "ret";
    f_longest: ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90", "ret";
    // With CR0 of RDI; compiled code may use SSE, so it is put back before anything else.
    f_wait: "mov rdx, cr0", "mov cr0, rdi", "wait", "mov cr0, rdx", "ret";
    f_fld1: "mov rdx, cr0", "mov cr0, rdi", "fld1", "mov cr0, rdx", "ret";
    f_movaps: "mov rdx, cr0", "mov cr0, rdi", "and rsp, -16", "movaps xmm0, [rsp]", "mov cr0, rdx", "ret";
    f_emms: "mov rdx, cr0", "mov cr0, rdi", "emms", "mov cr0, rdx", "ret";
    f_unaligned_sse: "movaps xmm0, [rdi]", "ret";
    // Without the CR4 bits of RDI.
    f_cr4_movaps: "mov rax, cr4", "not rdi", "and rax, rdi", "mov cr4, rax", "xorps xmm0, xmm0", "ret";
    f_cr4_sse_error: "sub rsp, 8", "mov dword ptr [rsp], 0x1d80", "ldmxcsr [rsp]", "add rsp, 8",
        "xorps xmm1, xmm1", "mov eax, 0x3f800000", "movd xmm0, eax",
        "mov rax, cr4", "not rdi", "and rax, rdi", "mov cr4, rax", "divss xmm0, xmm1", "ret";
    f_mov_cs: ".byte 0x8e, 0xc8", "ret";
    f_mov_cr1: ".byte 0x0f, 0x20, 0xc8", "ret";
    f_x87_error: "fninit", "push 0x37b", "fldcw [rsp]", "pop rax", "fld1", "fldz", "fdivp st(1), st",
        "f_x87_error_at: fldz", "ret";
    f_sse_error: "sub rsp, 8", "mov dword ptr [rsp], 0x1d80", "ldmxcsr [rsp]", "add rsp, 8",
        "xorps xmm1, xmm1", "mov eax, 0x3f800000", "movd xmm0, eax", "f_sse_error_at: divss xmm0, xmm1", "ret";
    f_unaligned: "mov eax, [rdi + 1]", "int 0x80";
    f_aligned: "mov eax, [rdi + 4]", "int 0x80";
}

labels! { f_divide_at, f_divide_overflow_at, f_idiv_overflow_at, f_push_at, f_call_at, f_return_at, f_x87_error_at, f_sse_error_at }

fn expect(trap: Trap, what: (u64, u64), rip: u64, name: &str) {
    check_eq!(trap.what(), what, "{name}: vector and error code");
    check_eq!(trap.frame.rip, rip, "{name}: RIP");
}

pub fn run() {
    section("6.15 exception reference");
    expect(at(address!(f_ud2), 0), (6, 0), address!(f_ud2), "UD2");
    // Traps: the next instruction's address.
    expect(
        at(address!(f_int3), 0),
        (3, 0),
        address!(f_int3) + 1,
        "INT3",
    );
    expect(
        at(address!(f_int1), 0),
        (1, 0),
        address!(f_int1) + 1,
        "INT1",
    );
    expect(
        at(address!(f_into), 0),
        (6, 0),
        address!(f_into),
        "INTO in 64-bit mode",
    );
    expect(
        at(address!(f_divide), 0),
        (0, 0),
        address!(f_divide_at),
        "DIV by zero",
    );
    expect(
        at(address!(f_divide_overflow), 0),
        (0, 0),
        address!(f_divide_overflow_at),
        "DIV, quotient too large",
    );
    expect(
        at(address!(f_idiv_overflow), 0),
        (0, 0),
        address!(f_idiv_overflow_at),
        "IDIV, quotient too large",
    );
    canonical();
    decoding();
    floating_point();
    alignment();
}

/// Non-canonical addresses: #GP(0), by the stack #SS(0) (Vol 1 3.3.7.1).
fn canonical() {
    expect(
        at(address!(f_load), NON_CANONICAL),
        (13, 0),
        address!(f_load),
        "load",
    );
    expect(
        at(address!(f_load), u64::MAX >> 1),
        (13, 0),
        address!(f_load),
        "load at the top of the hole",
    );
    let trap = at(address!(f_load_stack), NON_CANONICAL);
    check_eq!(trap.what(), (12, 0), "load by RBP");
    expect(
        at(address!(f_push), NON_CANONICAL + 8),
        (12, 0),
        address!(f_push_at),
        "PUSH",
    );
    expect(
        at(address!(f_call), NON_CANONICAL + 8),
        (12, 0),
        address!(f_call_at),
        "CALL",
    );
    // Vol 2, JMP, RET: a target that is not canonical is #GP(0) of the branch itself.
    expect(
        at(address!(f_jump), NON_CANONICAL),
        (13, 0),
        address!(f_jump),
        "JMP",
    );
    expect(
        at(address!(f_return), NON_CANONICAL),
        (13, 0),
        address!(f_return_at),
        "RET",
    );
}

/// Encodings (Vol 2 2.3.11, LOCK, MOV).
fn decoding() {
    expect(
        at(address!(f_lock), 0),
        (6, 0),
        address!(f_lock),
        "LOCK NOP",
    );
    expect(
        at(address!(f_lock_register), 0),
        (6, 0),
        address!(f_lock_register),
        "LOCK ADD to a register",
    );
    expect(
        at(address!(f_long), 0),
        (13, 0),
        address!(f_long),
        "16 bytes",
    );
    check!(
        trap::probe_at(address!(f_longest), 0).is_none(),
        "15 bytes are an instruction"
    );
    expect(
        at(address!(f_mov_cs), 0),
        (6, 0),
        address!(f_mov_cs),
        "MOV to CS",
    );
    expect(
        at(address!(f_mov_cr1), 0),
        (6, 0),
        address!(f_mov_cr1),
        "MOV from CR1",
    );
}

/// #NM, #MF, #XM (Tables 2-2 of 2.5; 6.15; Vol 1 8.7, 11.5).
fn floating_point() {
    let old = cpu::read_cr0() & !(cr0::TS | cr0::EM | cr0::MP);
    let with = |bits: u64, function: u64| at(function, old | bits).what();
    let (wait, fld1, movaps, emms) = (
        address!(f_wait),
        address!(f_fld1),
        address!(f_movaps),
        address!(f_emms),
    );
    check_eq!(with(cr0::TS, fld1), (7, 0), "TS: x87");
    check_eq!(with(cr0::TS, wait), NONE, "TS without MP: WAIT");
    check_eq!(with(cr0::TS | cr0::MP, wait), (7, 0), "TS and MP: WAIT");
    check_eq!(with(cr0::MP, wait), NONE, "MP without TS: WAIT");
    check_eq!(with(cr0::EM, fld1), (7, 0), "EM: x87");
    check_eq!(with(cr0::EM, emms), (6, 0), "EM: MMX");
    check_eq!(with(cr0::EM | cr0::TS, emms), (6, 0), "EM and TS: MMX");
    check_eq!(with(cr0::TS, emms), (7, 0), "TS: MMX");
    check_eq!(with(cr0::EM, movaps), (6, 0), "EM: SSE");
    check_eq!(with(cr0::TS, movaps), (7, 0), "TS: SSE");
    cpu::write_cr0(old | cr0::MP);
    let data = runtime::memory::page();
    check_eq!(at(address!(f_unaligned_sse), data).what(), NONE, "MOVAPS");
    check_eq!(
        at(address!(f_unaligned_sse), data + 8).what(),
        (13, 0),
        "MOVAPS, not aligned"
    );
    check_eq!(
        at(address!(f_cr4_movaps), cr4::OSFXSR).what(),
        (6, 0),
        "SSE without OSFXSR"
    );

    expect(
        at(address!(f_x87_error), 0),
        (16, 0),
        address!(f_x87_error_at),
        "x87 error, at the next waiting instruction",
    );
    reset_floating_point();
    expect(
        at(address!(f_sse_error), 0),
        (19, 0),
        address!(f_sse_error_at),
        "unmasked SSE exception",
    );
    reset_floating_point();
    let trap = at(address!(f_cr4_sse_error), cr4::OSXMMEXCPT);
    reset_floating_point();
    check_eq!(
        trap.what(),
        (6, 0),
        "unmasked SSE exception without OSXMMEXCPT"
    );
}

fn reset_floating_point() {
    let mxcsr = 0x1f80u32;
    // SAFETY: puts the state after reset back.
    unsafe {
        core::arch::asm!("fninit", "ldmxcsr [{}]", in(reg) &mxcsr, options(nostack));
    }
}

/// #AC needs CR0.AM, RFLAGS.AC and CPL 3; its error code is zero (6.15, interrupt 17).
fn alignment() {
    const AC: u64 = 1 << 18;
    let data = user_address(runtime::memory::page());
    let stack = user_stack();
    let unaligned = user_address(address!(f_unaligned));
    let old = cpu::read_cr0();
    check_eq!(
        trap::user(unaligned, data, stack, AC).what(),
        (0x80, 0),
        "AC without AM"
    );
    cpu::write_cr0(old | cr0::AM);
    check_eq!(
        trap::user(unaligned, data, stack, 0).what(),
        (0x80, 0),
        "AM without AC"
    );
    let trap = trap::user(unaligned, data, stack, AC);
    expect(trap, (17, 0), unaligned, "AM and AC at CPL 3");
    let aligned = user_address(address!(f_aligned));
    check_eq!(
        trap::user(aligned, data, stack, AC).what(),
        (0x80, 0),
        "aligned"
    );
    cpu::write_cr0(old);
}
