//! Memory ordering (9.2.3): what must never be seen, tried many times.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::memory::{pages, read, write};
use runtime::{check, check_eq, section, smp};

const ROUNDS: u64 = 20_000;
const MEETINGS: u64 = 1000;

static MEMORY: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);

fn memory() -> u64 {
    MEMORY.load(Ordering::Relaxed)
}

/// Two processors start a round together.
fn meet(round: u64) {
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    while ARRIVED.load(Ordering::SeqCst) < 2 * (round + 1) {
        core::hint::spin_loop();
    }
}

/// How often two processors saw what must not be.
fn pair(job: smp::Job) -> u64 {
    SEEN.store(0, Ordering::SeqCst);
    ARRIVED.store(0, Ordering::SeqCst);
    check!(smp::everywhere(2, job), "comes to its end");
    SEEN.load(Ordering::SeqCst)
}

pub fn run() {
    MEMORY.store(pages(3, 4096), Ordering::SeqCst);
    section("9.2.3.2 neither loads nor stores are reordered with like operations");
    check_eq!(pair(message), 0, "a flag that comes before its data");
    section("9.2.3.9 locked instructions, 9.2.5 MFENCE");
    check_eq!(pair(store_buffer::<0>), 0, "MFENCE");
    check_eq!(pair(store_buffer::<1>), 0, "XCHG");
    check_eq!(pair(store_buffer::<2>), 0, "LOCK ADD to the stack");
    section("9.1.1 aligned accesses are atomic");
    check_eq!(pair(torn::<0>), 0, "a quadword");
    check_eq!(pair(torn::<4>), 0, "a doubleword");
    check_eq!(pair(torn::<0x3c>), 0, "the last doubleword of a line");
}

/// Data, then a flag, on different pages; the other reads the flag, then the data.
fn message(me: usize) {
    let (data, flag) = (memory(), memory() + 4096);
    if me == 0 {
        for i in 1..=ROUNDS {
            write(data, i);
            write(flag, i);
        }
        return;
    }
    loop {
        let (f, d) = (read(flag), read(data));
        if d < f {
            SEEN.fetch_add(1, Ordering::SeqCst);
        }
        if f == ROUNDS {
            return;
        }
    }
}

/// Each stores to its own place and reads the other's; not both may miss.
fn store_buffer<const BARRIER: u8>(me: usize) {
    static RESULTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    let mine = memory() + 64 * me as u64;
    let other = memory() + 64 * (1 - me as u64);
    for round in 0..MEETINGS {
        write(mine, 0);
        meet(2 * round);
        let seen: u64;
        // SAFETY: stores and loads in pages of the guest's own.
        unsafe {
            match BARRIER {
                0 => asm!("mov qword ptr [{m}], 1", "mfence", "mov {s}, [{o}]",
                    m = in(reg) mine, o = in(reg) other, s = out(reg) seen),
                1 => asm!("mov {t}, 1", "xchg [{m}], {t}", "mov {s}, [{o}]",
                    m = in(reg) mine, o = in(reg) other, s = out(reg) seen, t = out(reg) _),
                _ => {
                    asm!("mov qword ptr [{m}], 1", "push 0", "lock add dword ptr [rsp], 0", "mov {s}, [{o}]",
                    "pop {t}", m = in(reg) mine, o = in(reg) other, s = out(reg) seen, t = out(reg) _)
                }
            }
        }
        RESULTS[me].store(seen, Ordering::SeqCst);
        meet(2 * round + 1);
        if me == 0 && RESULTS.iter().all(|r| r.load(Ordering::SeqCst) == 0) {
            SEEN.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// One stores all zeros and all ones in turn, the other must see nothing else.
fn torn<const OFFSET: u64>(me: usize) {
    let at = memory() + 0x800 + OFFSET;
    let done = memory() + 2 * 4096;
    let wide = OFFSET.is_multiple_of(8);
    if me == 0 {
        for i in 0..ROUNDS {
            let value = if i % 2 == 0 { u64::MAX } else { 0 };
            // SAFETY: in a page of the guest's own.
            unsafe {
                if wide {
                    (at as *mut u64).write_volatile(value);
                } else {
                    (at as *mut u32).write_volatile(value as u32);
                }
            }
        }
        write(done, 1);
        return;
    }
    while read(done) == 0 {
        // SAFETY: as above.
        let whole = unsafe {
            if wide {
                matches!((at as *const u64).read_volatile(), 0 | u64::MAX)
            } else {
                matches!((at as *const u32).read_volatile(), 0 | u32::MAX)
            }
        };
        if !whole {
            SEEN.fetch_add(1, Ordering::SeqCst);
        }
    }
    write(done, 0);
}
