//! Changes to paging structures by another processor (4.10.5), accessed and dirty flags (4.8).

use core::sync::atomic::{AtomicU64, Ordering};

use runtime::apic::{self, reg};
use runtime::memory::{pages, read, write};
use runtime::paging::{A, D, P, TEST_BASE, W, entry, map, root};
use runtime::trap;
use runtime::{check, check_eq, cpu, section, smp};

use crate::CPUS;

const ROUNDS: u64 = 300;
const VECTOR: u8 = 0x61;
const SHARED: u64 = TEST_BASE + (16 << 21);

static ACKNOWLEDGED: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// What the page is known to hold, at least.
static KNOWN: AtomicU64 = AtomicU64::new(0);

fn shoot_down(_: &mut trap::Frame) {
    cpu::invlpg(SHARED);
    ACKNOWLEDGED.fetch_add(1, Ordering::SeqCst);
    apic::end_of_interrupt();
}

/// Reads the page over and over, with interrupts on.
fn reader(_: usize) {
    cpu::enable_interrupts();
    while STOP.load(Ordering::SeqCst) == 0 {
        let known = KNOWN.load(Ordering::SeqCst);
        if read(SHARED) < known {
            WRONG.fetch_add(1, Ordering::SeqCst);
        }
    }
    cpu::disable_interrupts();
}

pub fn run() {
    section("4.10.5 a mapping that changes under others");
    let frames = pages(ROUNDS, 4096);
    for i in 0..ROUNDS {
        write(frames + 4096 * i, i);
    }
    map(root(), SHARED, frames, 1, P | W);
    trap::handle(VECTOR, Some(shoot_down));
    (1..CPUS).for_each(|i| smp::give(i, reader));
    let others = CPUS as u64 - 1;
    let mut answered = true;
    for i in 1..ROUNDS {
        map(root(), SHARED, frames + 4096 * i, 1, P | W);
        let want = ACKNOWLEDGED.load(Ordering::SeqCst) + others;
        // Fixed, all excluding self.
        apic::write(reg::ICR, 0xc_4000 | u32::from(VECTOR));
        answered = smp::until(|| ACKNOWLEDGED.load(Ordering::SeqCst) >= want);
        if !answered {
            break;
        }
        KNOWN.store(i, Ordering::SeqCst);
    }
    STOP.store(1, Ordering::SeqCst);
    check!((1..CPUS).all(smp::wait), "the readers come to their end");
    trap::handle(VECTOR, None);
    check!(answered, "every interrupt is answered");
    let wrong = WRONG.load(Ordering::SeqCst);
    check_eq!(wrong, 0, "nobody sees an old page after its INVLPG");
    flags();
}

/// Accessed and dirty flags are set by locked operations (9.1.2.1): software's own bits beside them survive.
fn flags() {
    section("4.8 accessed and dirty flags beside locked changes of the entry");
    static ENTRY: AtomicU64 = AtomicU64::new(0);
    static LOST: AtomicU64 = AtomicU64::new(0);
    map(root(), SHARED, pages(1, 4096), 1, P | W);
    let at = entry(root(), SHARED, 1);
    ENTRY.store(at, Ordering::SeqCst);
    write(at, read(at) | A | D);
    smp::everywhere(CPUS, |me| {
        // Bits 9 to 11 are software's.
        let mine = 1u64 << (8 + me);
        // SAFETY: an entry of the guest's own tables, changed atomically only.
        let entry = unsafe { AtomicU64::from_ptr(ENTRY.load(Ordering::SeqCst) as *mut u64) };
        let mut lost = 0;
        for round in 0..ROUNDS {
            if me == 0 {
                entry.fetch_and(!(A | D), Ordering::SeqCst);
                cpu::invlpg(SHARED);
                write(SHARED, round);
                lost += u64::from(entry.load(Ordering::SeqCst) & (A | D) != A | D);
            } else {
                let before = entry.fetch_xor(mine, Ordering::SeqCst) & mine;
                lost += u64::from(entry.load(Ordering::SeqCst) & mine == before);
            }
        }
        LOST.fetch_add(lost, Ordering::SeqCst);
    });
    check_eq!(LOST.load(Ordering::SeqCst), 0, "no bit is lost");
}
