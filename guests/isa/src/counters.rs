//! Architectural performance monitoring (chapter 20): what leaf 0AH tells is there, counts what it says, at the levels
//! it is told to, and interrupts when it overflows.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::apic::{self, reg};
use runtime::memory::page;
use runtime::paging::user_address;
use runtime::trap::{self, raised, raised_at};
use runtime::{address, check, check_eq, cpu, section, skip, snippet};

const PMC0: u32 = 0xc1;
const SELECT0: u32 = 0x186;
const FIXED0: u32 = 0x309;
const FIXED_CONTROL: u32 = 0x38d;
const STATUS: u32 = 0x38e;
const GLOBAL: u32 = 0x38f;
const CLEAR: u32 = 0x390;

const USR: u64 = 1 << 16;
const OS: u64 = 1 << 17;
const INT: u64 = 1 << 20;
const ENABLE: u64 = 1 << 22;
const INSTRUCTIONS: u64 = 0xc0;
const CYCLES: u64 = 0x3c;
const BRANCHES: u64 = 0xc4;

const VECTOR: u8 = 0x65;
const TIMER: u8 = 0x66;
const MASKED: u32 = 1 << 16;

/// Global enable of general-purpose counter 0 and counter 0 of fixed function.
const BOTH: u64 = 1 | 1 << 32;

snippet! {
    p_rdpmc: "mov ecx, edi", "rdpmc", "shl rdx, 32", "or rax, rdx", "ret";
    // RDPMC twice around 10 and around 110 instructions more than that.
    p_ten: "mov ecx, edi", "rdpmc", "mov esi, eax", ".fill 10, 1, 0x90", "rdpmc", "sub eax, esi", "ret";
    p_more: "mov ecx, edi", "rdpmc", "mov esi, eax", ".fill 120, 1, 0x90", "rdpmc", "sub eax, esi", "ret";
    // DEC and JNZ, as often as asked for.
    p_loop: "2:", "dec rdi", "jnz 2b", "ret";
    p_user: "mov ecx, 1000", "2:", "dec ecx", "jnz 2b", "int 0x80";
    p_user_rdpmc: "mov ecx, edi", "rdpmc", "int 0x80";
}

static TAKEN: AtomicU64 = AtomicU64::new(0);
static AT: AtomicU64 = AtomicU64::new(0);

fn note(frame: &mut trap::Frame) {
    // Stop counting first, or the handler is counted too.
    cpu::write_msr(GLOBAL, 0);
    TAKEN.fetch_add(1, Ordering::SeqCst);
    AT.store(frame.rip, Ordering::SeqCst);
    if frame.vector != 2 {
        apic::end_of_interrupt();
    }
}

fn wake(_: &mut trap::Frame) {
    apic::end_of_interrupt();
}

fn refused(msr: u32, value: u64, what: &str) {
    let got = raised(|| cpu::write_msr(msr, value)).what();
    check_eq!(got, (13, 0), "{what}: {value:x} in MSR {msr:x}");
}

/// Runs `body` with general counter 0 counting `select`; what it and counter 0 of fixed function counted.
fn counted(select: u64, body: impl FnOnce()) -> (u64, u64) {
    cpu::write_msr(GLOBAL, 0);
    cpu::write_msr(SELECT0, select);
    let levels = select >> 16 & 3;
    cpu::write_msr(FIXED_CONTROL, levels << 1 & 2 | levels >> 1);
    cpu::write_msr(PMC0, 0);
    cpu::write_msr(FIXED0, 0);
    cpu::write_msr(GLOBAL, BOTH);
    body();
    cpu::write_msr(GLOBAL, 0);
    (cpu::read_msr(PMC0), cpu::read_msr(FIXED0))
}

pub fn run() {
    section("20.2 architectural performance monitoring");
    let leaf = if cpu::cpuid(0, 0)[0] >= 10 {
        cpu::cpuid(10, 0)
    } else {
        [0; 4]
    };
    if leaf[0] & 0xff < 2 {
        skip("performance monitoring");
        return;
    }
    let old = cpu::read_msr(GLOBAL);
    registers(&leaf);
    if leaf[1] & 2 == 0 {
        instructions(&leaf);
        levels();
        overflow(&leaf);
    } else {
        skip("instructions retired");
    }
    if leaf[1] & 1 == 0 {
        halted();
    } else {
        skip("unhalted core cycles");
    }
    rdpmc(&leaf);
    cpu::write_msr(SELECT0, 0);
    cpu::write_msr(FIXED_CONTROL, 0);
    cpu::write_msr(GLOBAL, old);
}

fn registers(leaf: &[u32; 4]) {
    section("20.2.1, 20.2.2 MSRs");
    let (general, bits) = (leaf[0] >> 8 & 0xff, leaf[0] >> 16 & 0xff);
    let (fixed, fixed_bits) = (leaf[3] & 0x1f, leaf[3] >> 5 & 0xff);
    check!(
        general > 0 && bits >= 32,
        "{general} counters of {bits} bits"
    );
    check!(
        fixed > 0 && fixed_bits >= 32,
        "{fixed} of {fixed_bits} bits"
    );
    for n in 0..general {
        cpu::write_msr(SELECT0 + n, INSTRUCTIONS | USR);
        check_eq!(
            cpu::read_msr(SELECT0 + n),
            INSTRUCTIONS | USR,
            "selector {n}"
        );
        cpu::write_msr(SELECT0 + n, 0);
        // Bit 31 goes on upwards.
        cpu::write_msr(PMC0 + n, 0x8765_4321);
        let extended = 0xffff_ffff_8765_4321 & ((1 << bits) - 1);
        check_eq!(cpu::read_msr(PMC0 + n), extended, "counter {n}");
    }
    refused(SELECT0, 1 << 63, "reserved bits of a selector");
    refused(STATUS, 0, "read-only");
    refused(FIXED_CONTROL, 1 << 63, "reserved bits");
    if fixed_bits < 64 {
        refused(FIXED0, 1 << fixed_bits, "beyond its width");
    }
    let all = ((1 << general) - 1) | ((1u64 << fixed) - 1) << 32;
    cpu::write_msr(GLOBAL, all);
    check_eq!(cpu::read_msr(GLOBAL), all, "all enabled");
    cpu::write_msr(GLOBAL, 0);
    refused(GLOBAL, 1 << general, "no such counter");
    refused(
        GLOBAL,
        1 << (32 + fixed),
        "no such counter of fixed function",
    );
    cpu::write_msr(CLEAR, all | 3 << 62);
    check_eq!(cpu::read_msr(STATUS), 0, "cleared");
}

fn instructions(leaf: &[u32; 4]) {
    section("Table 20-1 instructions, branches");
    // The loop, CALL, RET and the MSRs around it.
    let (general, fixed) = counted(INSTRUCTIONS | USR | OS | ENABLE, || {
        p_loop(5000);
    });
    check!(
        (10_000..10_100).contains(&general),
        "a loop of 10000: {general}"
    );
    check!(general.abs_diff(fixed) <= 1, "fixed: {fixed} of {general}");
    cpu::write_msr(GLOBAL, BOTH);
    let (ten, more) = (p_ten(0), p_more(0));
    check_eq!(more - ten, 110, "110 instructions more");
    cpu::write_msr(GLOBAL, 0);
    if leaf[1] & 1 << 5 == 0 {
        let (branches, _) = counted(BRANCHES | USR | OS | ENABLE, || {
            p_loop(5000);
        });
        check!(
            (5000..5050).contains(&branches),
            "5000 branches: {branches}"
        );
    }
    let off = counted(INSTRUCTIONS | USR | OS, || {
        p_loop(5000);
    });
    check_eq!(off.0, 0, "not enabled by its selector");
    let never = counted(INSTRUCTIONS | ENABLE, || {
        p_loop(5000);
    });
    check_eq!(never, (0, 0), "at no level");
    let many = counted(INSTRUCTIONS | USR | OS | ENABLE | 255 << 24, || {
        p_loop(5000);
    });
    check_eq!(many.0, 0, "20.2.1.1: 255 and more in a cycle");
}

fn levels() {
    section("20.2.1.1 USR, OS");
    let go = || {
        let stack = user_address(page() + 4096);
        let got = trap::user(user_address(address!(p_user)), 0, stack, 0);
        check_eq!(got.frame.vector, 0x80, "back from CPL 3");
    };
    let (user, fixed) = counted(INSTRUCTIONS | USR | ENABLE, go);
    check!((2001..=2003).contains(&user), "at CPL 3: {user}");
    check!((2001..=2003).contains(&fixed), "at CPL 3, fixed: {fixed}");
    let (os, _) = counted(INSTRUCTIONS | OS | ENABLE, go);
    let (both, _) = counted(INSTRUCTIONS | USR | OS | ENABLE, go);
    check_eq!(os + user, both, "CPL 0 and CPL 3");
}

fn overflow(leaf: &[u32; 4]) {
    section("20.2.1.1 INT, 20.2.2 overflow");
    let until = |left: u64, select: u64| {
        counted(0, || {});
        cpu::write_msr(SELECT0, select);
        cpu::write_msr(PMC0, 0u64.wrapping_sub(left) & 0xffff_ffff);
    };
    TAKEN.store(0, Ordering::SeqCst);
    trap::handle(VECTOR, Some(note));
    trap::handle(2, Some(note));
    cpu::enable_interrupts();
    until(100, INSTRUCTIONS | USR | OS | ENABLE);
    cpu::write_msr(GLOBAL, 1);
    p_loop(1000);
    cpu::write_msr(GLOBAL, 0);
    check_eq!(cpu::read_msr(STATUS), 1, "its bit");
    check_eq!(TAKEN.load(Ordering::SeqCst), 0, "no interrupt without INT");
    cpu::write_msr(CLEAR, 1);
    check_eq!(cpu::read_msr(STATUS), 0, "cleared");

    for (entry, what) in [(u32::from(VECTOR), "a vector"), (0x400, "an NMI")] {
        TAKEN.store(0, Ordering::SeqCst);
        apic::write(reg::LVT_PERFORMANCE, entry);
        until(1000, INSTRUCTIONS | USR | OS | ENABLE | INT);
        cpu::write_msr(GLOBAL, 1);
        p_loop(5000);
        check_eq!(TAKEN.load(Ordering::SeqCst), 1, "by {what}");
        // The handler has stopped it.
        let over = cpu::read_msr(PMC0);
        check!(over < 500, "close behind the overflow: {over}");
        let at = AT.load(Ordering::SeqCst).wrapping_sub(address!(p_loop));
        check!(at < 16, "in the loop");
        let masked = apic::read(reg::LVT_PERFORMANCE);
        check_eq!(masked, entry | MASKED, "11.5.1: the entry is masked then");
        cpu::write_msr(CLEAR, 1);
        until(100, INSTRUCTIONS | USR | OS | ENABLE | INT);
        cpu::write_msr(GLOBAL, 1);
        p_loop(1000);
        cpu::write_msr(GLOBAL, 0);
        check_eq!(TAKEN.load(Ordering::SeqCst), 1, "masked: none");
        cpu::write_msr(CLEAR, 1);
    }

    // A counter of fixed function.
    TAKEN.store(0, Ordering::SeqCst);
    apic::write(reg::LVT_PERFORMANCE, u32::from(VECTOR));
    counted(0, || {});
    cpu::write_msr(FIXED_CONTROL, 0xb);
    let width = leaf[3] >> 5 & 0xff;
    cpu::write_msr(FIXED0, (1 << width) - 500);
    cpu::write_msr(GLOBAL, 1 << 32);
    p_loop(5000);
    check_eq!(TAKEN.load(Ordering::SeqCst), 1, "fixed: interrupts");
    check_eq!(cpu::read_msr(STATUS), 1 << 32, "fixed: its bit");
    cpu::write_msr(CLEAR, 1 << 32);
    apic::write(reg::LVT_PERFORMANCE, MASKED);
    cpu::disable_interrupts();
    trap::handle(2, None);
    trap::handle(VECTOR, None);
}

fn halted() {
    section("20.2.1.2 unhalted core cycles");
    let (busy, _) = counted(CYCLES | USR | OS | ENABLE, || {
        p_loop(100_000);
    });
    check!(busy > 1000, "a loop takes cycles: {busy}");
    trap::handle(TIMER, Some(wake));
    apic::write(reg::DIVIDE, 0b1011);
    apic::write(reg::LVT_TIMER, u32::from(TIMER));
    let mut ticks = 0;
    let (idle, _) = counted(CYCLES | USR | OS | ENABLE, || {
        let start = cpu::tsc();
        apic::write(reg::INITIAL_COUNT, 20_000_000);
        // SAFETY: waits for the timer; the instruction behind STI is in its shadow.
        unsafe { asm!("sti", "hlt", "cli") };
        ticks = cpu::tsc() - start;
    });
    check!(idle < ticks / 4, "none in HLT: {idle} of {ticks}");
    apic::write(reg::LVT_TIMER, MASKED);
    trap::handle(TIMER, None);
}

fn rdpmc(leaf: &[u32; 4]) {
    section("volume 2, RDPMC");
    let (general, fixed) = (leaf[0] >> 8 & 0xff, leaf[3] & 0x1f);
    counted(0, || {});
    cpu::write_msr(PMC0 + general - 1, 0x1234);
    cpu::write_msr(FIXED0, 0x1_2345_6789);
    check_eq!(p_rdpmc(u64::from(general - 1)), 0x1234, "the last one");
    check_eq!(p_rdpmc(1 << 30), 0x1_2345_6789, "of fixed function");
    let what = |argument: u64| raised_at(address!(p_rdpmc), argument).what();
    check_eq!(what(u64::from(general)), (13, 0), "no such counter");
    check_eq!(
        what(1 << 30 | u64::from(fixed)),
        (13, 0),
        "no such fixed one"
    );
    let user = || {
        let stack = user_address(page() + 4096);
        trap::user(user_address(address!(p_user_rdpmc)), 0, stack, 0).what()
    };
    check_eq!(user(), (13, 0), "CPL 3");
    cpu::write_cr4(cpu::read_cr4() | 1 << 8);
    check_eq!(user(), (0x80, 0), "CPL 3 with CR4.PCE");
    cpu::write_cr4(cpu::read_cr4() & !(1 << 8));
}
