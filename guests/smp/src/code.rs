//! Cross-modifying code (9.1.3): one processor changes code, tells another, which serializes and executes it.

use core::sync::atomic::{AtomicU64, Ordering};

use runtime::memory::{pages, write_bytes};
use runtime::paging::{P, TEST_BASE, W, map, root};
use runtime::{check, check_eq, cpu, section, smp};

const ROUNDS: u64 = 2000;
/// Pages for code that is executed for the first time.
const FRESH: u64 = 256;

static MEMORY: AtomicU64 = AtomicU64::new(0);
/// Round the code is ready for.
static READY: AtomicU64 = AtomicU64::new(0);
/// Round that was executed.
static DONE: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// MOV EAX, n; RET.
fn code(n: u64) -> [u8; 6] {
    let n = (n as u32).to_le_bytes();
    [0xb8, n[0], n[1], n[2], n[3], 0xc3]
}

fn call(at: u64) -> u64 {
    // SAFETY: what the guest wrote there is a function without arguments.
    let f: extern "C" fn() -> u32 = unsafe { core::mem::transmute(at as usize) };
    u64::from(f())
}

/// The place of a round.
type Place = fn(u64) -> u64;

/// One for all. The number lies in an aligned doubleword, so that it changes as one.
fn same(_: u64) -> u64 {
    MEMORY.load(Ordering::Relaxed) + 0x43
}

/// Every round in a page nobody has executed from.
fn fresh(round: u64) -> u64 {
    MEMORY.load(Ordering::Relaxed) + round % FRESH * 4096 + 16 * (round / FRESH)
}

/// The first place by another linear address.
fn alias(_: u64) -> u64 {
    TEST_BASE + (8 << 21) + 0x43
}

fn writer(place: Place) {
    for round in 1..=ROUNDS {
        let [first, number @ .., last] = code(round);
        let at = place(round);
        write_bytes(at, &[first]);
        // SAFETY: in a page of the guest's own.
        unsafe { ((at + 1) as *mut u32).write_unaligned(u32::from_le_bytes(number)) };
        write_bytes(at + 5, &[last]);
        READY.store(round, Ordering::SeqCst);
        while DONE.load(Ordering::SeqCst) < round {
            core::hint::spin_loop();
        }
    }
}

fn executor(place: Place, also_before: bool) {
    for round in 1..=ROUNDS {
        if also_before && round > 1 {
            // Old or new are both right as long as nobody has said so.
            let early = call(place(round));
            if early != round && early != round - 1 {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
        }
        while READY.load(Ordering::SeqCst) < round {
            core::hint::spin_loop();
        }
        // A serializing instruction.
        cpu::cpuid(0, 0);
        if call(place(round)) != round {
            WRONG.fetch_add(1, Ordering::SeqCst);
        }
        DONE.store(round, Ordering::SeqCst);
    }
}

fn pair(what: &str, job: smp::Job) {
    READY.store(0, Ordering::SeqCst);
    DONE.store(0, Ordering::SeqCst);
    WRONG.store(0, Ordering::SeqCst);
    check!(smp::everywhere(2, job), "{what} comes to its end");
    check_eq!(WRONG.load(Ordering::SeqCst), 0, "{what}");
}

pub fn run() {
    section("9.1.3 cross-modifying code");
    let memory = pages(FRESH, 4096);
    MEMORY.store(memory, Ordering::SeqCst);
    map(root(), TEST_BASE + (8 << 21), memory, 1, P | W);
    cpu::invlpg(TEST_BASE + (8 << 21));
    pair("one place", |me| match me {
        0 => writer(same),
        _ => executor(same, true),
    });
    pair("one place, the boot processor executes", |me| match me {
        0 => executor(same, true),
        _ => writer(same),
    });
    pair("pages that turn into code", |me| match me {
        0 => writer(fresh),
        _ => executor(fresh, false),
    });
    pair("written by another address", |me| match me {
        0 => writer(alias),
        _ => executor(same, true),
    });
}
