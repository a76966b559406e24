//! Interprocessor interrupts between processors (11.6, 11.12): every destination, waking from HLT, NMI.

use core::sync::atomic::{AtomicU64, Ordering};

use runtime::apic::{self, BASE_MSR, reg, x2};
use runtime::trap;
use runtime::{check, check_eq, cpu, section, smp};

use crate::CPUS;

const VECTOR: u8 = 0x62;

/// Interrupts taken, by APIC ID.
static TAKEN: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
static STOP: AtomicU64 = AtomicU64::new(0);

fn own() -> usize {
    (cpu::cpuid(1, 0)[1] >> 24) as usize % CPUS
}

fn note(_: &mut trap::Frame) {
    TAKEN[own()].fetch_add(1, Ordering::SeqCst);
    apic::end_of_interrupt();
}

fn note_nmi(_: &mut trap::Frame) {
    TAKEN[own()].fetch_add(1, Ordering::SeqCst);
}

/// Halts until told to stop; every interrupt wakes it.
fn halted(_: usize) {
    while STOP.load(Ordering::SeqCst) == 0 {
        cpu::enable_interrupts();
        cpu::halt();
        cpu::disable_interrupts();
    }
}

/// How many each has taken, once `total` have come, or after a while.
fn taken(total: u64, send: impl FnOnce()) -> [u64; CPUS] {
    TAKEN.iter().for_each(|t| t.store(0, Ordering::SeqCst));
    let sum = || TAKEN.iter().map(|t| t.load(Ordering::SeqCst)).sum::<u64>();
    cpu::enable_interrupts();
    send();
    smp::until(|| sum() >= total);
    // What should not come has time to.
    smp::pause(1_000);
    cpu::disable_interrupts();
    core::array::from_fn(|i| TAKEN[i].load(Ordering::SeqCst))
}

fn xapic(high: u32, low: u32) -> impl FnOnce() {
    move || {
        apic::write(reg::ICR_HIGH, high << 24);
        apic::write(reg::ICR, low | u32::from(VECTOR));
    }
}

pub fn run() {
    section("11.6 destinations");
    trap::handle(VECTOR, Some(note));
    STOP.store(0, Ordering::SeqCst);
    // Logical IDs: flat, one bit each (11.6.2.2).
    smp::everywhere(CPUS, |_| {
        apic::write(reg::DFR, 0xffff_ffff);
        apic::write(reg::LDR, 1 << (24 + own()));
    });
    (1..CPUS).for_each(|i| smp::give(i, halted));
    smp::pause(2_000);
    for id in 1..CPUS {
        let mut want = [0; CPUS];
        want[id] = 1;
        let got = taken(1, xapic(id as u32, 0));
        check_eq!(got, want, "physical {id}, which halts");
        check_eq!(taken(1, xapic(1 << id, 0x800)), want, "logical {id}");
    }
    let two = taken(2, xapic(0b1010, 0x800));
    check_eq!(two, [0, 1, 0, 1], "logical, two of them");
    let all = [1; CPUS];
    check_eq!(taken(4, xapic(0xff, 0x800)), all, "logical, all");
    check_eq!(taken(4, xapic(0xff, 0)), all, "physical broadcast");
    check_eq!(taken(4, xapic(0, 2 << 18)), all, "all including self");
    let others = taken(3, xapic(0, 3 << 18));
    check_eq!(others, [0, 1, 1, 1], "all excluding self");
    check_eq!(taken(1, xapic(0, 1 << 18)), [1, 0, 0, 0], "self");
    section("11.6.2.4 lowest priority");
    for _ in 0..8 {
        let got = taken(1, xapic(0b1110, 0x900));
        check_eq!(got.iter().sum::<u64>(), 1, "one takes it");
        check_eq!(got[0], 0, "who is not named does not");
    }
    // Whoever has a higher task priority is spared.
    apic::write(reg::TPR, 0x50);
    for _ in 0..4 {
        let got = taken(1, xapic(0b0011, 0x900));
        check_eq!(got, [0, 1, 0, 0], "to the lower priority");
    }
    apic::write(reg::TPR, 0);
    nmi();
    STOP.store(1, Ordering::SeqCst);
    apic::write(reg::ICR, 0xc_4000 | u32::from(VECTOR));
    check!((1..CPUS).all(smp::wait), "all leave HLT");
    if cpu::has(1, 2, 21) {
        x2apic();
    } else {
        runtime::skip("x2APIC");
    }
    trap::handle(VECTOR, None);
}

fn nmi() {
    section("11.6.1 NMI to another processor");
    trap::handle(2, Some(note_nmi));
    let got = taken(1, || {
        apic::write(reg::ICR_HIGH, 2 << 24);
        apic::write(reg::ICR, 0x400);
    });
    check_eq!(got, [0, 0, 1, 0], "who halts takes it");
    trap::handle(2, None);
}

fn x2apic() {
    section("11.12 x2APIC destinations");
    smp::everywhere(CPUS, |_| {
        cpu::write_msr(BASE_MSR, cpu::read_msr(BASE_MSR) | 1 << 10);
    });
    STOP.store(0, Ordering::SeqCst);
    (1..CPUS).for_each(|i| smp::give(i, halted));
    smp::pause(2_000);
    let to = |destination: u64, low: u64| {
        move || cpu::write_msr(x2(reg::ICR), destination << 32 | low | u64::from(VECTOR))
    };
    // 11.12.10.2: cluster in bits 31:16, one bit of sixteen in the cluster.
    let logical = cpu::read_msr(x2(reg::LDR));
    check_eq!(logical, 1, "the logical ID follows from the ID");
    check_eq!(taken(1, to(2, 0)), [0, 0, 1, 0], "physical");
    let members = taken(2, to(0b1010, 0x800));
    check_eq!(members, [0, 1, 0, 1], "a cluster's members");
    let nobody = taken(0, to(0x1_0002, 0x800));
    check_eq!(nobody, [0; CPUS], "another cluster");
    check_eq!(taken(4, to(0xffff_ffff, 0)), [1; CPUS], "broadcast");
    let others = taken(3, to(0, 3 << 18));
    check_eq!(others, [0, 1, 1, 1], "all excluding self");
    let got = taken(1, to(0b1110, 0x900));
    let one = (got[0], got.iter().sum::<u64>());
    check_eq!(one, (0, 1), "lowest priority in a cluster");
    let own = taken(1, || cpu::write_msr(0x83f, u64::from(VECTOR)));
    check_eq!(own, [1, 0, 0, 0], "SELF IPI");
    STOP.store(1, Ordering::SeqCst);
    cpu::write_msr(x2(reg::ICR), 0xc_0000 | u64::from(VECTOR));
    check!((1..CPUS).all(smp::wait), "all come to their end");
}
