//! IRET (Vol 2, IRET/IRETD/IRETQ; 6.14.3).

use core::arch::asm;

use runtime::descriptors::{
    KERNEL_CS, KERNEL_SS, SPARE, USER_CS, USER_CS32, USER_SS, set_descriptor,
};
use runtime::paging::user_address;
use runtime::trap::{self, Trap};
use runtime::{address, check, check_eq, section, snippet};

use crate::user_stack;

snippet! {
    r_int80: "int 0x80", "ret";
    // 32-bit code: DEC EAX in the place of REX, then what 64-bit mode would decode differently.
    r_compat: ".byte 0xb8, 0x05, 0, 0, 0", ".byte 0x48", ".byte 0x89, 0xe1", "int 0x80";
    r_iret_nt: "pushfq", "or qword ptr [rsp], 0x4000", "popfq", "iretq";
}

const SELECTOR: u64 = SPARE as u64;

fn to(rip: u64, cs: u64, rsp: u64, ss: u64, rflags: u64) -> Trap {
    trap::enter([rip, cs, rflags | 2, rsp, ss, 0])
}

pub fn run() {
    section("IRET");
    let user_rip = user_address(address!(r_int80));
    let rip = address!(r_int80);
    let stack = user_stack();
    let own = stack - user_address(0);
    let (ucs, uss) = (u64::from(USER_CS), u64::from(USER_SS));
    let (kcs, kss) = (u64::from(KERNEL_CS), u64::from(KERNEL_SS));

    check_eq!(
        to(user_rip, ucs, stack, uss, 0).what(),
        (0x80, 0),
        "to CPL 3"
    );
    check_eq!(
        to(rip, kcs, own, kss, 0).what(),
        (0x80, 0),
        "to the same level"
    );
    let trap = to(rip, kcs, own - 3, 0, 0);
    check_eq!(trap.what(), (0x80, 0), "to the same level with SS null");
    check_eq!(trap.frame.ss, 0, "SS null");
    check_eq!(
        trap.frame.rsp,
        own - 3,
        "RSP taken without a change of level too"
    );
    check_eq!(to(rip, 0, own, kss, 0).what(), (13, 0), "CS null");
    check_eq!(
        to(rip, 0xfff8, own, kss, 0).what(),
        (13, 0xfff8),
        "CS beyond the GDT"
    );
    check_eq!(to(rip, kss, own, kss, 0).what(), (13, kss), "CS of data");
    check_eq!(
        to(rip, ucs & !3, own, kss, 0).what(),
        (13, ucs & !3),
        "CS, DPL not RPL"
    );
    check_eq!(
        to(1 << 47, kcs, own, kss, 0).what(),
        (13, 0),
        "RIP not canonical, same level"
    );
    check_eq!(
        to(1 << 47, ucs, stack, uss, 0).what(),
        (13, 0),
        "RIP not canonical, to CPL 3"
    );
    check_eq!(
        to(user_rip, ucs, stack, 0, 0).what(),
        (13, 0),
        "SS null to CPL 3"
    );
    check_eq!(
        to(user_rip, ucs, stack, uss & !3, 0).what(),
        (13, uss & !3),
        "SS, RPL not that of CS"
    );
    check_eq!(
        to(user_rip, ucs, stack, kss | 3, 0).what(),
        (13, kss),
        "SS, DPL not that of CS"
    );
    set_descriptor(SPARE, 0x00af_7b00_0000_ffff);
    check_eq!(
        to(user_rip, SELECTOR | 3, stack, uss, 0).what(),
        (11, SELECTOR),
        "CS not present"
    );
    set_descriptor(SPARE, 0x00cf_7300_0000_ffff);
    check_eq!(
        to(user_rip, ucs, stack, SELECTOR | 3, 0).what(),
        (12, SELECTOR),
        "SS not present"
    );
    set_descriptor(SPARE, 0x00ef_fb00_0000_ffff);
    check_eq!(
        to(user_rip, SELECTOR | 3, stack, uss, 0).what(),
        (13, SELECTOR),
        "CS with L and D"
    );
    let trap = trap::raised_at(address!(r_iret_nt), 0);
    check_eq!(trap.what(), (13, 0), "NT set in IA-32e mode");

    // The fault belongs to IRET: its own CS and RIP, so nothing of the return was done.
    let trap = to(user_rip, ucs, stack, 0, 0);
    check_eq!(trap.frame.cs, kcs, "CS at the fault");

    flags(user_rip, stack);
    data_segments(user_rip, stack);
    compatibility(stack);
}

/// What IRETQ takes of RFLAGS at CPL 0.
fn flags(user_rip: u64, stack: u64) {
    let all = 0x20_4cd5 | 3 << 12 | 1 << 9 | 1 << 18;
    let trap = to(user_rip, u64::from(USER_CS), stack, u64::from(USER_SS), all);
    check_eq!(
        trap.frame.rflags & 0x3f_7fff,
        all | 2,
        "RFLAGS, IOPL and IF too"
    );
}

/// Vol 2, IRET: data segments the outer level may not use are made null.
fn data_segments(user_rip: u64, stack: u64) {
    // SAFETY: data selectors of the runtime's GDT.
    unsafe {
        asm!("mov ds, {k:e}", "mov es, {u:e}", k = in(reg) u64::from(KERNEL_SS),
            u = in(reg) u64::from(USER_SS));
    }
    to(user_rip, u64::from(USER_CS), stack, u64::from(USER_SS), 0);
    let (ds, es): (u64, u64);
    // SAFETY: reads selectors, puts the runtime's back.
    unsafe {
        asm!("mov {d:e}, ds", "mov {e:e}, es", "mov ds, {k:e}", "mov es, {k:e}",
            d = out(reg) ds, e = out(reg) es, k = in(reg) u64::from(KERNEL_SS));
    }
    check_eq!(ds, 0, "DS of DPL 0 is null at CPL 3");
    check_eq!(es, u64::from(USER_SS), "ES of DPL 3 is kept");
}

/// 3.1.1 of volume 1: compatibility mode. The image is mapped at its own address for CPL 3 meanwhile.
fn compatibility(stack: u64) {
    let root = runtime::paging::root();
    let low = runtime::paging::entry(root, address!(r_compat), 2);
    let old = runtime::memory::read(low);
    let above = runtime::paging::entry(root, 0, 4);
    let above_old = runtime::memory::read(above);
    runtime::memory::write(above, above_old | runtime::paging::U);
    let third = runtime::paging::entry(root, 0, 3);
    let third_old = runtime::memory::read(third);
    runtime::memory::write(third, third_old | runtime::paging::U);
    runtime::memory::write(low, old | runtime::paging::U);
    runtime::cpu::write_cr3(root);
    let own_stack = stack - user_address(0);
    let trap = to(
        address!(r_compat),
        u64::from(USER_CS32),
        own_stack,
        u64::from(USER_SS),
        0,
    );
    check_eq!(trap.what(), (0x80, 0), "32-bit code");
    check_eq!(trap.frame.cs, u64::from(USER_CS32), "CS of 32-bit code");
    check_eq!(trap.frame.rax() & 0xffff_ffff, 4, "48h is DEC EAX");
    check_eq!(trap.frame.rcx() & 0xffff_ffff, own_stack, "ESP");
    check!(
        trap.frame.rsp == own_stack,
        "RSP pushed, {:x}",
        trap.frame.rsp
    );
    runtime::memory::write(low, old);
    runtime::memory::write(third, third_old);
    runtime::memory::write(above, above_old);
    runtime::cpu::write_cr3(root);
}
