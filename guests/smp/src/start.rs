//! INIT and start-up IPIs (9.4.3, 9.4.4, Table 10-1).

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::apic::{self, reg};
use runtime::memory::{read, write_bytes};
use runtime::{address, check, check_eq, cpu, section, smp};

/// Where the probe lies, and what it leaves there: page 7.
const PROBE: u64 = 0x7000;
const LEFT: u64 = PROBE + 0x800;

// Writes what it finds to CS:0800h and following, counts, and waits.
global_asm!(
    ".text",
    ".code16",
    "probe_start:",
    "mov cs:[0x818], edx",
    "mov cs:[0x814], eax",
    "mov cs:[0x81c], ebx",
    "mov cs:[0x828], esp",
    "mov eax, cr0",
    "mov cs:[0x800], eax",
    "mov eax, cr4",
    "mov cs:[0x804], eax",
    "mov eax, cr3",
    "mov cs:[0x820], eax",
    "mov ax, cs",
    "mov cs:[0x808], ax",
    "mov ax, ds",
    "mov cs:[0x80a], ax",
    "mov ax, cs",
    "mov ss, ax",
    "mov sp, 0x7f0",
    "pushfd",
    "pop eax",
    "mov cs:[0x80c], eax",
    "mov eax, dr7",
    "mov cs:[0x824], eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "mov cs:[0x82c], eax",
    "lock inc dword ptr cs:[0x810]",
    "2:",
    "hlt",
    "jmp 2b",
    "probe_end:",
    ".code64",
);

runtime::labels!(probe_start, probe_end);

fn word(at: u64) -> u64 {
    read(LEFT + at) & 0xffff_ffff
}

/// To processor 1 by its APIC ID.
fn send(low: u32) {
    apic::write(reg::ICR_HIGH, 1 << 24);
    apic::write(reg::ICR, low);
    smp::pause(500);
}

/// Before the others run what the runtime gives them.
pub fn before() {
    section("9.4.4 INIT and start-up IPI");
    let start = address!(probe_start);
    for at in start..address!(probe_end) {
        write_bytes(PROBE + at - start, &[read(at) as u8]);
    }
    write_bytes(LEFT, &[0; 64]);
    let page = (PROBE >> 12) as u32;
    send(0x4500);
    check_eq!(word(0x10), 0, "9.4.3: a processor after INIT waits");
    send(0x4600 | page);
    check!(smp::until(|| word(0x10) == 1), "9.4.4: and starts");
    state("first");
    let signature = u64::from(cpu::cpuid(1, 0)[0]);
    check_eq!(word(0x18), signature, "Table 10-1: EDX");
    send(0x4600 | page);
    smp::pause(5_000);
    check_eq!(
        word(0x10),
        1,
        "9.4.4.1: who does not wait drops a start-up IPI"
    );
    send(0x4500);
    send(0x4600 | page);
    check!(smp::until(|| word(0x10) == 2), "INIT makes it wait again");
    state("second");
}

fn state(which: &str) {
    check_eq!(
        word(0) & 0x1fff_ffff,
        0x10,
        "Table 10-1: CR0 of the {which}"
    );
    check_eq!(word(4), 0, "Table 10-1: CR4 of the {which}");
    check_eq!(word(8), PROBE >> 4, "9.4.4.1: CS and DS of the {which}");
    check_eq!(word(0xc), 2, "Table 10-1: EFLAGS of the {which}");
    check_eq!(
        (word(0x14), word(0x1c), word(0x28)),
        (0, 0, 0),
        "Table 10-1: EAX, EBX, ESP of the {which}"
    );
    check_eq!(word(0x20), 0, "Table 10-1: CR3 of the {which}");
    check_eq!(word(0x24), 0x400, "Table 10-1: DR7 of the {which}");
    check_eq!(word(0x2c), 0, "Table 10-1: IA32_EFER of the {which}");
}

/// With the others up.
pub fn run() {
    section("9.4 processors");
    for i in 1..crate::CPUS {
        let id = smp::id(i);
        check!(id != 0 && id < crate::CPUS as u32, "an APIC ID of its own");
        check!((1..i).all(|j| smp::id(j) != id), "and of nobody else");
    }
    let own = cpu::read_msr(apic::BASE_MSR);
    check_eq!(own & 1 << 8, 1 << 8, "9.4.1: the boot processor says so");
    static OTHERS: AtomicU64 = AtomicU64::new(0);
    smp::everywhere(crate::CPUS, |me| {
        if me != 0 {
            OTHERS.fetch_or(cpu::read_msr(apic::BASE_MSR), Ordering::SeqCst);
        }
    });
    let others = OTHERS.load(Ordering::SeqCst);
    check_eq!(others & 1 << 8, 0, "9.4.1: the others say they are not");
}
