//! MONITOR and MWAIT between two processors: a store ends the wait, whatever it stores; so does an interrupt, masked or
//! not. A wait may end early (9.10.4), so each looks at what it waits for, as programs do.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::apic::{self, reg};
use runtime::memory::page;
use runtime::paging::user_address;
use runtime::trap::{self, raised_at};
use runtime::{address, check, check_eq, cpu, section, skip, smp, snippet};

const VECTOR: u8 = 0x63;

snippet! {
    m_monitor: "mov rax, rdi", "xor ecx, ecx", "xor edx, edx", "monitor", "ret";
    m_monitor_ecx: "mov rax, rdi", "mov ecx, 1", "xor edx, edx", "monitor", "ret";
    m_mwait_ecx: "xor eax, eax", "mov ecx, 2", "mwait", "ret";
    m_user: "mov rax, rdi", "xor ecx, ecx", "xor edx, edx", "monitor", "int 0x80";
}

#[repr(align(64))]
struct Line(AtomicU64);

static FLAG: Line = Line(AtomicU64::new(0));
static WAITS: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

fn monitor(address: u64) {
    m_monitor(address);
}

fn mwait(extensions: u32) {
    // SAFETY: waits.
    unsafe { asm!("mwait", in("eax") 0, in("ecx") extensions, options(nostack)) };
}

fn flag() -> u64 {
    &raw const FLAG as u64
}

fn note(_: &mut trap::Frame) {
    TAKEN.fetch_add(1, Ordering::SeqCst);
    apic::end_of_interrupt();
}

/// Sees every value up to the last one, waiting in between.
fn follow(_: usize) {
    let mut seen = 0;
    while seen != u64::MAX {
        monitor(flag());
        let now = FLAG.0.load(Ordering::SeqCst);
        if now == seen {
            WAITS.fetch_add(1, Ordering::SeqCst);
            mwait(0);
        }
        seen = now;
    }
}

/// Waits until an interrupt has come, with interrupts masked or not.
fn until_interrupted(_: usize) {
    while FLAG.0.load(Ordering::SeqCst) == 0 {
        monitor(flag() + 64);
        if FLAG.0.load(Ordering::SeqCst) == 0 {
            // Masked: the wait ends, the interrupt is taken by the STI below.
            mwait(1);
        }
        cpu::enable_interrupts();
        cpu::disable_interrupts();
    }
}

pub fn run() {
    section("9.10.4 MONITOR, MWAIT");
    if !cpu::has(1, 2, 3) {
        skip("MONITOR");
        return;
    }
    let line = cpu::cpuid(5, 0);
    check!(line[0] > 0 && line[0] <= line[1], "line sizes of leaf 5");
    check_eq!(
        raised_at(address!(m_monitor_ecx), flag()).what(),
        (13, 0),
        "MONITOR, ECX = 1"
    );
    check_eq!(
        raised_at(address!(m_mwait_ecx), 0).what(),
        (13, 0),
        "MWAIT, ECX = 2"
    );
    check_eq!(
        raised_at(address!(m_monitor), 1 << 47).what(),
        (13, 0),
        "not canonical"
    );
    let stack = user_address(page() + 4096);
    let got = trap::user(
        user_address(address!(m_user)),
        user_address(page()),
        stack,
        0,
    );
    check_eq!(got.what(), (6, 0), "MONITOR at CPL 3");
    // Without a MONITOR before it MWAIT does not wait.
    mwait(0);

    section("a store ends the wait");
    smp::give(1, follow);
    for value in 1..=200u64 {
        // Now and then the other one gets to its MWAIT first.
        if value % 4 == 0 {
            smp::pause(200);
        }
        FLAG.0.store(value, Ordering::SeqCst);
    }
    smp::pause(2_000);
    FLAG.0.store(u64::MAX, Ordering::SeqCst);
    check!(smp::wait(1), "every store is seen");
    check!(WAITS.load(Ordering::SeqCst) > 0, "and waited for");

    section("a masked interrupt ends the wait");
    trap::handle(VECTOR, Some(note));
    FLAG.0.store(0, Ordering::SeqCst);
    smp::give(1, until_interrupted);
    for n in 1..=20u64 {
        smp::pause(300);
        apic::write(reg::ICR_HIGH, smp::id(1) << 24);
        apic::write(reg::ICR, 0x4000 | u32::from(VECTOR));
        check!(
            smp::until(|| TAKEN.load(Ordering::SeqCst) == n),
            "interrupt {n} is taken"
        );
    }
    FLAG.0.store(1, Ordering::SeqCst);
    apic::write(reg::ICR_HIGH, smp::id(1) << 24);
    apic::write(reg::ICR, 0x4000 | u32::from(VECTOR));
    check!(smp::wait(1), "it comes to its end");
    trap::handle(VECTOR, None);
}
