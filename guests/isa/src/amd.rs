//! What AMD processors have: performance counters (APM volume 2, 13.2), records of branches (13.1.1), and MSRs with the
//! name CPUID tells.

use runtime::apic::{self, reg};
use runtime::trap::{self, raised_at};
use runtime::{address, check, check_eq, cpu, labels, section, skip, snippet};

const SELECT0: u32 = 0xc001_0000;
const COUNTER0: u32 = 0xc001_0004;
const DEBUG_CONTROL: u32 = 0x1d9;
const BRANCH_FROM: u32 = 0x1db;
const BRANCH_TO: u32 = 0x1dc;
const EVENT_FROM: u32 = 0x1dd;
const EVENT_TO: u32 = 0x1de;
const NAME: u32 = 0xc001_0030;

/// USR, OS and EN.
const ALL: u64 = 3 << 16 | 1 << 22;
const INT: u64 = 1 << 20;
const CYCLES: u64 = 0x76;
const INSTRUCTIONS: u64 = 0xc0;
const BRANCHES: u64 = 0xc2;

const VECTOR: u8 = 0x67;

snippet! {
    a_loop: "2:", "dec rdi", "jnz 2b", "ret";
    a_rdpmc: "mov ecx, edi", "rdpmc", "shl rdx, 32", "or rax, rdx", "ret";
    // Sets DebugCtl.LBR, jumps, and clears it.
    a_jump: "mov ecx, 0x1d9", "mov eax, 1", "xor edx, edx", "wrmsr", ".globl a_from", "a_from: jmp a_to", "ud2",
        ".globl a_to", "a_to: xor eax, eax", "wrmsr", "ret";
    a_fault: "mov ecx, 0x1d9", "mov eax, 1", "xor edx, edx", "wrmsr", "jmp 2f", "2:",
        ".globl a_ud", "a_ud: ud2";
}

labels!(a_from, a_to, a_ud);

static mut TAKEN: u64 = 0;

fn note(_: &mut trap::Frame) {
    cpu::write_msr(SELECT0, 0);
    // SAFETY: one flow of control, and this handler.
    unsafe { TAKEN += 1 };
    apic::end_of_interrupt();
}

fn taken() -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const TAKEN).read_volatile() }
}

fn counted(select: u64) -> u64 {
    cpu::write_msr(COUNTER0, 0);
    cpu::write_msr(SELECT0, select);
    a_loop(5000);
    cpu::write_msr(SELECT0, 0);
    cpu::read_msr(COUNTER0)
}

pub fn run() {
    let [_, ebx, ecx, edx] = cpu::cpuid(0, 0);
    if (ebx, edx, ecx) != (0x6874_7541, 0x6974_6e65, 0x444d_4163) {
        skip("an AMD processor");
        return;
    }
    counters();
    records();
    name();
}

fn counters() {
    section("APM volume 2, 13.2 performance counters");
    let instructions = counted(INSTRUCTIONS | ALL);
    check!(
        (10_000..10_100).contains(&instructions),
        "a loop of 10000: {instructions}"
    );
    let branches = counted(BRANCHES | ALL);
    check!(
        (5000..5050).contains(&branches),
        "5000 branches: {branches}"
    );
    check!(counted(CYCLES | ALL) > 1000, "cycles");
    check_eq!(counted(INSTRUCTIONS | 3 << 16), 0, "not enabled");
    let user = counted(INSTRUCTIONS | 1 << 16 | 1 << 22);
    check_eq!(user, 0, "CPL 3 only");
    for n in 0..4 {
        cpu::write_msr(COUNTER0 + n, u64::MAX >> 16);
        check_eq!(a_rdpmc(u64::from(n)), u64::MAX >> 16, "RDPMC {n}");
        cpu::write_msr(COUNTER0 + n, 0);
    }
    let got = raised_at(address!(a_rdpmc), 1 << 30).what();
    check_eq!(got, (13, 0), "no such counter");
    apic::write(reg::LVT_PERFORMANCE, u32::from(VECTOR));
    trap::handle(VECTOR, Some(note));
    cpu::enable_interrupts();
    cpu::write_msr(COUNTER0, (1 << 48) - 1000);
    cpu::write_msr(SELECT0, INSTRUCTIONS | ALL | INT);
    a_loop(5000);
    cpu::write_msr(SELECT0, 0);
    cpu::disable_interrupts();
    trap::handle(VECTOR, None);
    check_eq!(taken(), 1, "overflow");
    let entry = apic::read(reg::LVT_PERFORMANCE);
    check_eq!(entry, u32::from(VECTOR), "the entry stays open");
    apic::write(reg::LVT_PERFORMANCE, 1 << 16);
}

fn records() {
    section("APM volume 2, 13.1.1 branch records");
    a_jump(0);
    check_eq!(cpu::read_msr(BRANCH_FROM), address!(a_from), "from");
    check_eq!(cpu::read_msr(BRANCH_TO), address!(a_to), "to");
    let got = raised_at(address!(a_fault), 0);
    cpu::write_msr(DEBUG_CONTROL, 0);
    check_eq!(got.what(), (6, 0), "UD2");
    // What came after has changed the records of branches, not those of the exception.
    check_eq!(cpu::read_msr(EVENT_TO), address!(a_ud), "the branch before");
    check_eq!(cpu::read_msr(EVENT_FROM), address!(a_ud) - 2, "from where");
}

fn name() {
    section("name strings");
    let leaf = |n: u32| {
        let r = cpu::cpuid(0x8000_0002 + n, 0);
        [
            u64::from(r[1]) << 32 | u64::from(r[0]),
            u64::from(r[3]) << 32 | u64::from(r[2]),
        ]
    };
    for n in 0..3 {
        let old = leaf(n);
        for (half, word) in (0..).zip(old) {
            let msr = NAME + 2 * n + half;
            check_eq!(cpu::read_msr(msr), word, "MSR {msr:x}");
            cpu::write_msr(msr, !word);
            check_eq!(leaf(n)[half as usize], !word, "CPUID follows {msr:x}");
            cpu::write_msr(msr, word);
        }
        check_eq!(leaf(n), old, "as it was");
    }
}
