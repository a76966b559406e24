//! SYSCALL, SYSRET (5.8.8), SYSENTER, SYSEXIT (5.8.7).

use runtime::cpu::{self, efer};
use runtime::descriptors::{KERNEL_CS, USER_CS, USER_CS32, USER_SS};
use runtime::paging::user_address;
use runtime::trap;
use runtime::{address, check_eq, section, skip, snippet};

use crate::user_stack;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

snippet! {
    y_syscall: "syscall", "int 0x80";
    y_entry: "mov rax, ss", "pushfq", "pop rbx", "int3";
    y_sysret: "mov rcx, rdi", "mov r11d, 0x202", "sysretq";
    y_sysret_user: "sysretq";
    y_after: "mov eax, ss", "int 0x80";
    y_sysenter: "sysenter", "int 0x80";
    y_sysenter_entry: "mov rax, ss", "mov rdx, rsp", "int3";
    y_sysexit: "mov rdx, [rdi]", "mov rcx, [rdi + 8]", ".byte 0x48, 0x0f, 0x35";
}

pub fn run() {
    section("5.8.8 SYSCALL and SYSRET");
    let stack = user_stack();
    let syscall = user_address(address!(y_syscall));
    cpu::write_msr(
        STAR,
        u64::from(KERNEL_CS) << 32 | u64::from(USER_CS32) << 48,
    );
    cpu::write_msr(LSTAR, address!(y_entry));
    cpu::write_msr(FMASK, 0x4700);
    check_eq!(
        trap::user(syscall, 0, stack, 0).what(),
        (6, 0),
        "SYSCALL without SCE"
    );
    cpu::write_msr(efer::MSR, cpu::read_msr(efer::MSR) | efer::SCE);
    let flags = 0x203 | 1 << 18 | 1 << 10;
    let trap = trap::user(syscall, 0, stack, flags);
    check_eq!(trap.frame.vector, 3, "SYSCALL reached LSTAR");
    check_eq!(trap.frame.rip, address!(y_entry) + 6, "entry's INT3");
    check_eq!(trap.frame.rcx(), syscall + 2, "RCX holds the next RIP");
    check_eq!(
        trap.frame.r11() & 0x7fff | trap.frame.r11() & 1 << 18,
        flags,
        "R11 holds RFLAGS"
    );
    check_eq!(trap.frame.rbx(), flags & !0x4700, "FMASK bits cleared");
    check_eq!(trap.frame.rsp, stack, "RSP unchanged");
    check_eq!(trap.frame.cs, u64::from(KERNEL_CS), "CS of STAR");
    check_eq!(
        trap.frame.rax() & 0xffff,
        u64::from(KERNEL_CS) + 8,
        "SS of STAR"
    );

    let trap = trap::raised_at(address!(y_sysret), user_address(address!(y_after)));
    check_eq!(trap.frame.vector, 0x80, "SYSRET to CPL 3");
    check_eq!(trap.frame.cs, u64::from(USER_CS), "CS of STAR + 16, RPL 3");
    check_eq!(
        trap.frame.rax(),
        u64::from(USER_SS),
        "SS of STAR + 8, RPL 3"
    );
    check_eq!(trap.frame.rflags & 0xffff, 0x202, "RFLAGS of R11");
    if vendor_is_intel() {
        let trap = trap::raised_at(address!(y_sysret), 1 << 47);
        check_eq!(trap.what(), (13, 0), "SYSRET, RCX not canonical");
        check_eq!(trap.frame.cs, u64::from(KERNEL_CS), "the fault is at CPL 0");
    } else {
        skip("SYSRET, RCX not canonical: #GP at CPL 0 is Intel's");
    }
    let trap = trap::user(user_address(address!(y_sysret_user)), 0, stack, 0);
    check_eq!(trap.what(), (13, 0), "SYSRET at CPL 3");
    for msr in [LSTAR, 0xc000_0083] {
        let trap = trap::raised(|| cpu::write_msr(msr, 1 << 47));
        check_eq!(trap.what(), (13, 0), "WRMSR {msr:x}, not canonical");
    }
    sysenter(stack);
}

fn vendor_is_intel() -> bool {
    cpu::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu")
}

fn sysenter(stack: u64) {
    section("5.8.7 SYSENTER and SYSEXIT");
    if !cpu::has(1, 3, 11) || !vendor_is_intel() {
        skip("SYSENTER in IA-32e mode is Intel's");
        return;
    }
    let call = user_address(address!(y_sysenter));
    cpu::write_msr(SYSENTER_CS, 0);
    check_eq!(
        trap::user(call, 0, stack, 0).what(),
        (13, 0),
        "SYSENTER, CS null"
    );
    cpu::write_msr(SYSENTER_CS, u64::from(KERNEL_CS));
    let own = runtime::memory::page() + 4096;
    cpu::write_msr(SYSENTER_ESP, own);
    cpu::write_msr(SYSENTER_EIP, address!(y_sysenter_entry));
    let trap = trap::user(call, 0, stack, 0x202);
    check_eq!(trap.frame.vector, 3, "SYSENTER reached its entry");
    check_eq!(trap.frame.rdx(), own, "RSP of IA32_SYSENTER_ESP");
    check_eq!(trap.frame.cs, u64::from(KERNEL_CS), "CS");
    check_eq!(trap.frame.rax() & 0xffff, u64::from(KERNEL_CS) + 8, "SS");
    check_eq!(trap.frame.rflags & 0x200, 0, "IF cleared");
    for msr in [SYSENTER_ESP, SYSENTER_EIP] {
        let trap = trap::raised(|| cpu::write_msr(msr, 1 << 47));
        check_eq!(trap.what(), (13, 0), "WRMSR {msr:x}, not canonical");
    }
    // SYSEXITQ: CS + 32, SS + 40.
    check_eq!(KERNEL_CS + 32, USER_CS & !3, "the GDT's order");
    let state = runtime::memory::page();
    runtime::memory::write(state, user_address(address!(y_after)));
    runtime::memory::write(state + 8, stack);
    let trap = trap::raised_at(address!(y_sysexit), state);
    check_eq!(trap.frame.vector, 0x80, "SYSEXIT to CPL 3");
    check_eq!(trap.frame.cs, u64::from(USER_CS), "CS + 32, RPL 3");
    check_eq!(
        trap.frame.rax(),
        u64::from(KERNEL_CS + 40) | 3,
        "SS + 40, RPL 3"
    );
    check_eq!(trap.frame.rsp, stack, "RSP of RCX");
    runtime::memory::write(state, 1 << 47);
    let trap = trap::raised_at(address!(y_sysexit), state);
    check_eq!(trap.what(), (13, 0), "SYSEXIT, RDX not canonical");
}
