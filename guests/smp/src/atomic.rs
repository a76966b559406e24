//! Locked operations (9.1.2): on every kind of instruction, at every alignment, over lines and pages.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::memory::{pages, read, write};
use runtime::paging::{P, TEST_BASE, W, map, root};
use runtime::{check, check_eq, cpu, section, smp};

use crate::CPUS;

const ROUNDS: u64 = 1000;

/// Where the place that is fought over lies.
static PLACE: AtomicU64 = AtomicU64::new(0);

macro_rules! locked {
    ($name:ident: $($line:literal),+) => {
        fn $name(_: usize) {
            let p = PLACE.load(Ordering::Relaxed);
            for _ in 0..ROUNDS {
                // SAFETY: changes the place only.
                unsafe { asm!($($line),+, p = in(reg) p, out("rax") _, out("rcx") _, out("rdx") _) };
            }
        }
    };
}

locked!(inc8: "lock inc byte ptr [{p}]");
locked!(inc16: "lock inc word ptr [{p}]");
locked!(inc32: "lock inc dword ptr [{p}]");
locked!(inc64: "lock inc qword ptr [{p}]");
locked!(add32: "lock add dword ptr [{p}], 1");
locked!(add64: "mov eax, 1", "lock add qword ptr [{p}], rax");
locked!(sub64: "lock sub qword ptr [{p}], -1");
locked!(sub_add64: "lock sub qword ptr [{p}], 1", "lock add qword ptr [{p}], 2");
locked!(neg64: "lock neg qword ptr [{p}]", "lock neg qword ptr [{p}]");
// The carry of each round is 1, whatever others do between.
locked!(adc64: "stc", "lock adc qword ptr [{p}], 0");
locked!(sbb64: "stc", "lock sbb qword ptr [{p}], -2");
locked!(xadd64: "mov eax, 1", "lock xadd qword ptr [{p}], rax");
locked!(cmpxchg64: "mov rax, [{p}]", "2: lea rcx, [rax + 1]", "lock cmpxchg [{p}], rcx", "jne 2b");
locked!(cmpxchg8b: "push rbx", "mov eax, [{p}]", "mov edx, [{p} + 4]", "2: mov ebx, eax", "mov ecx, edx",
    "add ebx, 1", "adc ecx, 0", "lock cmpxchg8b [{p}]", "jne 2b", "pop rbx");
// The bit is a lock; what it guards is the word behind it.
locked!(bts: "2: lock bts dword ptr [{p}], 0", "jnc 3f", "pause", "jmp 2b", "3: inc dword ptr [{p} + 4]",
    "lock btr dword ptr [{p}], 0");
locked!(xchg: "2: mov eax, 1", "xchg [{p}], eax", "test eax, eax", "je 3f", "pause", "jmp 2b",
    "3: inc dword ptr [{p} + 4]", "mov dword ptr [{p}], 0");

pub fn run() {
    section("9.1.2 locked operations at every alignment");
    let memory = pages(4, 4096);
    // Two pages that follow each other in linear memory only.
    map(root(), TEST_BASE, memory, 1, P | W);
    map(root(), TEST_BASE + 4096, memory + 2 * 4096, 1, P | W);
    cpu::invlpg(TEST_BASE);
    cpu::invlpg(TEST_BASE + 4096);
    counters();
    section("9.1.2 locks made of them");
    let total = ROUNDS * CPUS as u64;
    for (name, job) in [("BTS", bts as smp::Job), ("XCHG", xchg)] {
        for offset in [0x200, 0x23e, 4093] {
            PLACE.store(TEST_BASE + offset, Ordering::SeqCst);
            write(TEST_BASE + offset, 0);
            let done = smp::everywhere(CPUS, job);
            check!(done, "{name} at {offset:#x} comes to its end");
            let found = read(TEST_BASE + offset);
            check_eq!(found, total << 32, "{name} at {offset:#x}");
        }
    }
    mixed();
    tickets();
    if cpu::has(1, 2, 13) {
        pairs();
    }
}

fn counters() {
    let each = ROUNDS * CPUS as u64;
    let counters: [(&str, smp::Job, u64, u64); 14] = [
        ("INC byte", inc8, 1, each),
        ("INC word", inc16, 2, each),
        ("INC dword", inc32, 4, each),
        ("INC qword", inc64, 8, each),
        ("ADD dword", add32, 4, each),
        ("ADD qword", add64, 8, each),
        ("SUB qword", sub64, 8, each),
        ("SUB and ADD qword", sub_add64, 8, each),
        ("NEG twice", neg64, 8, 0),
        ("ADC qword", adc64, 8, each),
        ("SBB qword", sbb64, 8, each),
        ("XADD qword", xadd64, 8, each),
        ("CMPXCHG qword", cmpxchg64, 8, each),
        ("CMPXCHG8B", cmpxchg8b, 8, each),
    ];
    for (name, job, size, expected) in counters {
        // Aligned; inside a line; over two lines, in two ways; over two pages, in two ways.
        for offset in [0x100, 0x105, 0x13c, 0x13f, 4095, 4093] {
            let at = TEST_BASE + offset;
            PLACE.store(at, Ordering::SeqCst);
            write(at, 0);
            write(at - 8, !0);
            write(at + 8, !0);
            let done = smp::everywhere(CPUS, job);
            check!(done, "{name} at {offset:#x} comes to its end");
            let mask = u64::MAX >> (64 - 8 * size);
            check_eq!(read(at), expected & mask, "{name} at {offset:#x}");
            let around = (read(at - 8), read(at + 8));
            check_eq!(around, (!0, !0), "{name} at {offset:#x}: its neighbours");
        }
    }
}

/// Some change the second half of a quadword that lies over a border, others that doubleword by itself.
fn mixed() {
    section("9.1.2 over a border and beside it");
    fn change(me: usize) {
        let p = PLACE.load(Ordering::Relaxed);
        for _ in 0..ROUNDS {
            // SAFETY: changes the test pages only.
            unsafe {
                if me.is_multiple_of(2) {
                    asm!("lock add qword ptr [{p}], {one}", p = in(reg) p, one = in(reg) 1u64 << 32);
                } else {
                    asm!("lock add dword ptr [{p} + 4], 1", p = in(reg) p);
                }
            }
        }
    }
    for offset in [0x13c, 4092] {
        PLACE.store(TEST_BASE + offset, Ordering::SeqCst);
        write(TEST_BASE + offset, 0);
        let done = smp::everywhere(CPUS, change);
        check!(done, "both kinds at {offset:#x} come to their end");
        let total = ROUNDS * CPUS as u64;
        check_eq!(
            read(TEST_BASE + offset),
            total << 32,
            "both kinds at {offset:#x}"
        );
    }
}

/// Each value of a counter is given out once.
fn tickets() {
    section("XADD gives each value once");
    static TAKEN: [AtomicU64; 128] = [const { AtomicU64::new(0) }; 128];
    static TWICE: AtomicU64 = AtomicU64::new(0);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    smp::everywhere(CPUS, |_| {
        for _ in 0..ROUNDS {
            let ticket = NEXT.fetch_add(1, Ordering::SeqCst);
            let bit = 1 << (ticket & 63);
            let word = &TAKEN[(ticket >> 6) as usize & 127];
            if word.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
                TWICE.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    check_eq!(TWICE.load(Ordering::SeqCst), 0, "none twice");
    let next = NEXT.load(Ordering::SeqCst);
    check_eq!(next, ROUNDS * CPUS as u64, "all of them");
}

/// The halves of a CMPXCHG16B change together.
fn pairs() {
    section("CMPXCHG16B");
    const AT: u64 = TEST_BASE + 0x300;
    write(AT, 0);
    write(AT + 8, 0);
    smp::everywhere(CPUS, |_| {
        for _ in 0..ROUNDS {
            // SAFETY: changes 16 bytes of the test page; RBX is given back.
            unsafe {
                asm!(
                    "push rbx",
                    "mov rax, [rdi]",
                    "mov rdx, [rdi + 8]",
                    "2: lea rbx, [rax + 1]",
                    "lea rcx, [rdx + 3]",
                    "lock cmpxchg16b [rdi]",
                    "jne 2b",
                    "pop rbx",
                    in("rdi") AT, out("rax") _, out("rcx") _, out("rdx") _
                );
            }
        }
    });
    let total = ROUNDS * CPUS as u64;
    check_eq!((read(AT), read(AT + 8)), (total, 3 * total), "both halves");
}
