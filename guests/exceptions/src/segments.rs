//! Loading segment registers (3.4.3, 5.6 to 5.7; Vol 2 MOV, LTR, LLDT, LAR, LSL, VERR, VERW).

use core::arch::asm;

use runtime::descriptors::{KERNEL_SS, SPARE, TSS, USER_CS, USER_SS, descriptor, set_descriptor};
use runtime::paging::user_address;
use runtime::trap;
use runtime::{address, check_eq, section, skip, snippet};

use crate::user_stack;

snippet! {
    s_ds: "mov ds, edi", "ret";
    s_ss: "mov ss, edi", "mov edi, 0x10", "mov ss, edi", "ret";
    s_ltr: "ltr di", "ret";
    s_lldt: "lldt di", "ret";
    s_fs_base: "mov fs, edi", "mov rax, fs:[0]", "xor edi, edi", "mov fs, edi", "ret";
    s_user_ds: "mov ds, edi", "mov eax, ds", "int 0x80";
    s_user_ss: "mov ss, edi", "mov eax, ss", "int 0x80";
    s_lss: "lss rax, [rdi]", "ret";
}

const DATA: u64 = 0x00cf_9300_0000_ffff;
const SELECTOR: u64 = SPARE as u64;

fn at(function: u64, argument: u64) -> (u64, u64) {
    trap::raised_at(function, argument).what()
}

fn with(descriptor: u64, function: u64, argument: u64) -> (u64, u64) {
    set_descriptor(SPARE, descriptor);
    let what = at(function, argument);
    // SAFETY: null selectors are fine in 64-bit mode.
    unsafe { asm!("mov ds, {0:e}", in(reg) u64::from(KERNEL_SS)) };
    what
}

const NONE: (u64, u64) = (256, 0);

pub fn run() {
    section("3.4.3, 5.6, 5.7 segment registers");
    let ds = address!(s_ds);
    check_eq!(at(ds, 0), NONE, "DS null");
    check_eq!(at(ds, 3), NONE, "DS null with RPL 3");
    check_eq!(with(DATA, ds, SELECTOR), NONE, "DS");
    check_eq!(
        with(DATA & !(1 << 47), ds, SELECTOR),
        (11, SELECTOR),
        "DS not present"
    );
    check_eq!(
        with(DATA, ds, SELECTOR | 4),
        (13, SELECTOR | 4),
        "DS by an LDT that is not there"
    );
    check_eq!(
        with(DATA, ds, SELECTOR | 3),
        (13, SELECTOR),
        "DS, RPL above DPL"
    );
    check_eq!(
        with(0x00cf_9900_0000_ffff, ds, SELECTOR),
        (13, SELECTOR),
        "DS, execute-only code"
    );
    check_eq!(
        with(0x00cf_9b00_0000_ffff, ds, SELECTOR),
        NONE,
        "DS, readable code"
    );
    check_eq!(
        with(0x00cf_9f00_0000_ffff, ds, SELECTOR | 3),
        NONE,
        "DS, conforming code, any RPL"
    );
    check_eq!(
        with(0x0000_8900_0000_0067, ds, SELECTOR),
        (13, SELECTOR),
        "DS, a TSS"
    );
    set_descriptor(SPARE, DATA & !(1 << 40));
    at(ds, SELECTOR);
    check_eq!(
        descriptor(SPARE) >> 40 & 1,
        1,
        "3.4.5.1: accessed bit set by the load"
    );
    at(ds, u64::from(KERNEL_SS));

    let ss = address!(s_ss);
    check_eq!(at(ss, 0), NONE, "SS null at CPL 0 of 64-bit mode");
    check_eq!(at(ss, 3), (13, 0), "SS null with RPL 3 at CPL 0");
    check_eq!(with(DATA, ss, SELECTOR), NONE, "SS");
    check_eq!(
        with(DATA & !(1 << 47), ss, SELECTOR),
        (12, SELECTOR),
        "SS not present"
    );
    check_eq!(
        with(DATA, ss, SELECTOR | 3),
        (13, SELECTOR),
        "SS, RPL not CPL"
    );
    check_eq!(
        with(DATA & !(1 << 41), ss, SELECTOR),
        (13, SELECTOR),
        "SS, read-only"
    );
    check_eq!(
        with(DATA | 3 << 45, ss, SELECTOR),
        (13, SELECTOR),
        "SS, DPL not CPL"
    );
    check_eq!(at(ss, 0xfff8), (13, 0xfff8), "SS beyond the GDT");
    set_descriptor(SPARE, DATA);
    let memory = runtime::memory::page();
    runtime::memory::write(memory + 8, 0xfff8);
    check_eq!(
        at(address!(s_lss), memory),
        (13, 0xfff8),
        "LSS beyond the GDT"
    );

    from_user();
    system_segments();
    bases();
    queries();
}

fn from_user() {
    let stack = user_stack();
    let go = |function: u64, selector: u64| {
        let trap = trap::user(user_address(function), selector, stack, 0);
        at(address!(s_ds), u64::from(KERNEL_SS));
        trap
    };
    let ds = address!(s_user_ds);
    check_eq!(go(ds, u64::from(USER_SS)).what(), (0x80, 0), "DS at CPL 3");
    check_eq!(
        go(ds, u64::from(KERNEL_SS)).what(),
        (13, 0x10),
        "DS of DPL 0 at CPL 3"
    );
    check_eq!(
        go(ds, u64::from(KERNEL_SS) | 3).what(),
        (13, 0x10),
        "DS of DPL 0 at CPL 3, RPL 3"
    );
    let ss = address!(s_user_ss);
    check_eq!(go(ss, u64::from(USER_SS)).what(), (0x80, 0), "SS at CPL 3");
    check_eq!(go(ss, 0).what(), (13, 0), "SS null at CPL 3");
    check_eq!(
        go(ss, u64::from(USER_SS) & !3).what(),
        (13, 0x20),
        "SS with RPL 0 at CPL 3"
    );
}

/// LTR and LLDT (Vol 2).
fn system_segments() {
    let ltr = address!(s_ltr);
    let available = descriptor(TSS) & !(2 << 40);
    check_eq!(
        descriptor(TSS) >> 40 & 0xf,
        11,
        "8.2.2: LTR made the TSS busy"
    );
    check_eq!(
        at(ltr, u64::from(TSS)),
        (13, u64::from(TSS)),
        "LTR of a busy TSS"
    );
    check_eq!(at(ltr, 0), (13, 0), "LTR of null");
    check_eq!(at(ltr, 0xfff8), (13, 0xfff8), "LTR beyond the GDT");
    set_descriptor(TSS, available & !(1 << 47));
    check_eq!(
        at(ltr, u64::from(TSS)),
        (11, u64::from(TSS)),
        "LTR, not present"
    );
    set_descriptor(TSS, available);
    check_eq!(at(ltr, u64::from(TSS)), NONE, "LTR");
    check_eq!(descriptor(TSS) >> 40 & 0xf, 11, "LTR: busy");
    set_descriptor(SPARE, DATA);
    check_eq!(at(ltr, SELECTOR), (13, SELECTOR), "LTR of data");
    let lldt = address!(s_lldt);
    check_eq!(at(lldt, SELECTOR), (13, SELECTOR), "LLDT of data");
    check_eq!(at(lldt, 0), NONE, "LLDT of null");
    // An LDT of one slot.
    let table = runtime::memory::page();
    runtime::memory::write(table, DATA);
    set_descriptor(
        SPARE,
        7 | (table & 0xff_ffff) << 16 | 0x82 << 40 | (table >> 24 & 0xff) << 56,
    );
    set_descriptor(SPARE + 8, 0);
    check_eq!(at(lldt, SELECTOR), NONE, "LLDT");
    check_eq!(at(address!(s_ds), 4), NONE, "DS by the LDT");
    check_eq!(at(address!(s_ds), 12), (13, 12), "DS beyond the LDT");
    at(lldt, 0);
    check_eq!(
        at(address!(s_ds), 4),
        (13, 4),
        "DS by the LDT that was taken away"
    );
    at(address!(s_ds), u64::from(KERNEL_SS));
}

/// 3.4.4: bases in 64-bit mode.
fn bases() {
    let target = runtime::memory::page();
    runtime::memory::write(target, 0x1122_3344_5566_7788);
    set_descriptor(
        SPARE,
        DATA & 0x00ff_ff00_0000_ffff | (target & 0xff_ffff) << 16 | (target >> 24 & 0xff) << 56,
    );
    check_eq!(
        s_fs_base(SELECTOR),
        0x1122_3344_5566_7788,
        "FS base of the descriptor"
    );
    runtime::cpu::write_msr(0xc000_0100, target + 8);
    runtime::memory::write(target + 8, 99);
    let value: u64;
    // SAFETY: FS base is the page just filled.
    unsafe { asm!("mov {}, fs:[0]", out(reg) value) };
    check_eq!(value, 99, "IA32_FS_BASE");
    // DS has no base, whatever its descriptor says.
    let value: u64;
    // SAFETY: reads the page.
    unsafe {
        asm!("mov ds, {s:e}", "mov {v}, ds:[{p}]", "mov ds, {k:e}",
            s = in(reg) SELECTOR, v = out(reg) value, p = in(reg) target,
            k = in(reg) u64::from(KERNEL_SS));
    }
    check_eq!(value, 0x1122_3344_5566_7788, "DS has base 0");
    if runtime::cpu::has(7, 1, 0) {
        let old = runtime::cpu::read_cr4();
        runtime::cpu::write_cr4(old & !runtime::cpu::cr4::FSGSBASE);
        check_eq!(
            at(address!(g_rdgsbase), 0),
            (6, 0),
            "RDGSBASE without CR4.FSGSBASE"
        );
        runtime::cpu::write_cr4(old | runtime::cpu::cr4::FSGSBASE);
        check_eq!(at(address!(g_wrgsbase), 0x1234_5678), NONE, "WRGSBASE");
        check_eq!(g_rdgsbase(0), 0x1234_5678, "RDGSBASE");
        check_eq!(
            runtime::cpu::read_msr(0xc000_0101),
            0x1234_5678,
            "IA32_GS_BASE"
        );
        check_eq!(
            at(address!(g_wrgsbase), 1 << 47),
            (13, 0),
            "WRGSBASE, not canonical"
        );
        runtime::cpu::write_cr4(old);
    } else {
        skip("FSGSBASE");
    }
    runtime::cpu::write_msr(0xc000_0101, 1);
    runtime::cpu::write_msr(0xc000_0102, 2);
    // SAFETY: swaps two bases nothing else uses.
    unsafe { asm!("swapgs") };
    check_eq!(runtime::cpu::read_msr(0xc000_0101), 2, "SWAPGS: base");
    check_eq!(
        runtime::cpu::read_msr(0xc000_0102),
        1,
        "SWAPGS: kernel base"
    );
}

snippet! {
    g_rdgsbase: "rdgsbase rax", "ret";
    g_wrgsbase: "wrgsbase rdi", "ret";
}

/// LAR, LSL, VERR, VERW: ZF, no exception.
fn queries() {
    let lar = |selector: u64| -> Option<u64> {
        let (value, ok): (u64, u8);
        // SAFETY: reads a descriptor.
        unsafe {
            asm!("lar {v}, {s:e}", "setz {ok}", v = out(reg) value, s = in(reg) selector,
                ok = out(reg_byte) ok);
        }
        (ok != 0).then_some(value)
    };
    let lsl = |selector: u64| -> Option<u64> {
        let (value, ok): (u64, u8);
        // SAFETY: reads a descriptor.
        unsafe {
            asm!("lsl {v}, {s:e}", "setz {ok}", v = out(reg) value, s = in(reg) selector,
                ok = out(reg_byte) ok);
        }
        (ok != 0).then_some(value)
    };
    let ver = |selector: u64| -> (u8, u8) {
        let (read, write): (u8, u8);
        // SAFETY: reads a descriptor.
        unsafe {
            asm!("verr {s:x}", "setz {r}", "verw {s:x}", "setz {w}", s = in(reg) selector,
                r = out(reg_byte) read, w = out(reg_byte) write);
        }
        (read, write)
    };
    check_eq!(lar(u64::from(KERNEL_SS)), Some(0xcf_9300), "LAR of data");
    check_eq!(lar(0), None, "LAR of null");
    check_eq!(lar(0xfff8), None, "LAR beyond the GDT");
    check_eq!(
        lsl(u64::from(KERNEL_SS)),
        Some(0xffff_ffff),
        "LSL, granularity applied"
    );
    check_eq!(lsl(u64::from(TSS)), Some(0x67), "LSL of a TSS");
    check_eq!(ver(u64::from(KERNEL_SS)), (1, 1), "VERR and VERW of data");
    check_eq!(ver(u64::from(USER_CS)), (1, 0), "VERR and VERW of code");
    check_eq!(ver(u64::from(TSS)), (0, 0), "VERR and VERW of a TSS");
    check_eq!(ver(0), (0, 0), "VERR and VERW of null");
    // An interrupt gate type has no access rights for LAR.
    set_descriptor(SPARE, 0x0000_8e00_0000_0000);
    set_descriptor(SPARE + 8, 0);
    check_eq!(lar(SELECTOR), None, "LAR of an interrupt gate");
    check_eq!(lsl(SELECTOR), None, "LSL of an interrupt gate");
}
