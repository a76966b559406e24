//! Memory ordering: the examples of 9.2.3, each a hundred thousand times.
//!
//! A round has two places of its own, in different lines, zero at first. The processors go through a batch of rounds
//! side by side, each waiting a little for the others, and meet behind it; then the boot processor looks at what
//! everybody has read.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::memory::{pages, read, write};
use runtime::{check, check_eq, println, section, smp};

/// Rounds in a batch.
const BATCH: u64 = 4096;
const BATCHES: u64 = 25;
/// How often a processor looks in a test whether the others are in its round.
const PATIENCE: u32 = 2_000_000;
const LINE: u64 = 64;
/// The second places begin behind the first ones, what is read behind those.
const SECOND: u64 = BATCH * LINE;
const READ: u64 = 2 * SECOND;
const MOST: usize = 4;
/// Bytes of memory that is in no cache, for each processor.
const COLD: u64 = 4 << 20;
const COLD_STORES: u64 = 4;

/// What one processor does with the two places; gives what it has read.
type Part = fn(u64, u64) -> [u64; 2];
/// What was read in a round, by processor, and what the places hold in the end.
struct Seen {
    read: [[u64; 2]; MOST],
    last: [u64; 2],
}

struct Litmus {
    name: &'static str,
    parts: &'static [Part],
    /// It must not be, or is one of the things that may.
    forbidden: bool,
    when: fn(&Seen) -> bool,
}

macro_rules! part {
    ($($name:ident: $($line:literal),+;)+) => {
        $(fn $name(x: u64, y: u64) -> [u64; 2] {
            let (a, b);
            // SAFETY: loads and stores in pages of the guest's own, and on the stack.
            unsafe {
                asm!($($line),+, x = in(reg) x, y = in(reg) y, a = inout(reg) 0u64 => a, b = inout(reg) 0u64 => b,
                    t = inout(reg) 1u64 => _)
            };
            [a, b]
        })+
    };
}

part! {
    store_x: "mov qword ptr [{x}], {t}", "/* {a} {b} {y} */";
    store_y: "mov qword ptr [{y}], {t}", "/* {a} {b} {x} */";
    store_x_store_y: "mov [{x}], {t}", "mov [{y}], {t}", "/* {a} {b} */";
    load_x_load_y: "mov {a}, [{x}]", "mov {b}, [{y}]", "/* {t} */";
    load_y_load_x: "mov {a}, [{y}]", "mov {b}, [{x}]", "/* {t} */";
    load_x_store_y: "mov {a}, [{x}]", "mov [{y}], {t}", "/* {b} */";
    load_y_store_x: "mov {a}, [{y}]", "mov [{x}], {t}", "/* {b} */";
    store_x_load_y: "mov [{x}], {t}", "mov {a}, [{y}]", "/* {b} */";
    store_y_load_x: "mov [{y}], {t}", "mov {a}, [{x}]", "/* {b} */";
    store_x_mfence_load_y: "mov [{x}], {t}", "mfence", "mov {a}, [{y}]", "/* {b} */";
    store_y_mfence_load_x: "mov [{y}], {t}", "mfence", "mov {a}, [{x}]", "/* {b} */";
    store_x_lock_load_y: "mov [{x}], {t}", "push 0", "lock add dword ptr [rsp], 0", "mov {a}, [{y}]", "pop {b}";
    store_y_lock_load_x: "mov [{y}], {t}", "push 0", "lock add dword ptr [rsp], 0", "mov {a}, [{x}]", "pop {b}";
    xchg_x_load_y: "xchg [{x}], {t}", "mov {a}, [{y}]", "/* {b} */";
    xchg_y_load_x: "xchg [{y}], {t}", "mov {a}, [{x}]", "/* {b} */";
    xchg_x: "xchg [{x}], {t}", "/* {a} {b} {y} */";
    xchg_y: "xchg [{y}], {t}", "/* {a} {b} {x} */";
    xchg_x_store_y: "xchg [{x}], {t}", "mov qword ptr [{y}], 1", "/* {a} {b} */";
    forward_x: "mov [{x}], {t}", "mov {a}, [{x}]", "mov {b}, [{y}]";
    forward_y: "mov [{y}], {t}", "mov {a}, [{y}]", "mov {b}, [{x}]";
    store_2_load_x: "mov qword ptr [{x}], 2", "mov {a}, [{x}]", "/* {b} {y} {t} */";
    load_store_1: "mov {a}, [{x}]", "mov [{x}], {t}", "/* {b} {y} */";
    load_store_2: "mov {a}, [{x}]", "mov qword ptr [{x}], 2", "/* {b} {y} {t} */";
    store_y_2_store_x_2: "mov qword ptr [{y}], 2", "mov qword ptr [{x}], 2", "/* {a} {b} {t} */";
}

const ALL: [Litmus; 15] = [
    Litmus {
        name: "9.2.3.2 stores, and loads, in order (example 9-1)",
        parts: &[store_x_store_y, load_y_load_x],
        forbidden: true,
        when: |s| s.read[1] == [1, 0],
    },
    Litmus {
        name: "9.2.3.3 stores behind earlier loads (example 9-2)",
        parts: &[load_x_store_y, load_y_store_x],
        forbidden: true,
        when: |s| s.read[0][0] == 1 && s.read[1][0] == 1,
    },
    Litmus {
        name: "9.2.3.4 loads before earlier stores (example 9-3)",
        parts: &[store_x_load_y, store_y_load_x],
        forbidden: false,
        when: |s| s.read[0][0] == 0 && s.read[1][0] == 0,
    },
    Litmus {
        name: "9.2.3.5 own stores are seen early (example 9-5)",
        parts: &[forward_x, forward_y],
        forbidden: false,
        when: |s| s.read[0] == [1, 0] && s.read[1] == [1, 0],
    },
    Litmus {
        name: "9.2.3.5 own stores are seen at least by oneself (example 9-4)",
        parts: &[forward_x, forward_y],
        forbidden: true,
        when: |s| s.read[0][0] == 0 || s.read[1][0] == 0,
    },
    Litmus {
        name: "9.2.3.6 what follows from a store is behind it (example 9-6)",
        parts: &[store_x, load_x_store_y, load_y_load_x],
        forbidden: true,
        when: |s| s.read[1][0] == 1 && s.read[2] == [1, 0],
    },
    Litmus {
        name: "9.2.3.7 two see stores of two others in one order (example 9-7)",
        parts: &[store_x, store_y, load_x_load_y, load_y_load_x],
        forbidden: true,
        when: |s| s.read[2] == [1, 0] && s.read[3] == [1, 0],
    },
    Litmus {
        name: "9.2.3.8 locked instructions have one order (example 9-8)",
        parts: &[xchg_x, xchg_y, load_x_load_y, load_y_load_x],
        forbidden: true,
        when: |s| s.read[2] == [1, 0] && s.read[3] == [1, 0],
    },
    Litmus {
        name: "9.2.3.9 loads behind XCHG (example 9-9)",
        parts: &[xchg_x_load_y, xchg_y_load_x],
        forbidden: true,
        when: |s| s.read[0][0] == 0 && s.read[1][0] == 0,
    },
    Litmus {
        name: "9.2.3.9 stores behind XCHG (example 9-10)",
        parts: &[xchg_x_store_y, load_y_load_x],
        forbidden: true,
        when: |s| s.read[1] == [1, 0],
    },
    Litmus {
        name: "9.2.5 loads behind MFENCE",
        parts: &[store_x_mfence_load_y, store_y_mfence_load_x],
        forbidden: true,
        when: |s| s.read[0][0] == 0 && s.read[1][0] == 0,
    },
    Litmus {
        name: "9.2.3.9 loads behind LOCK ADD to the stack",
        parts: &[store_x_lock_load_y, store_y_lock_load_x],
        forbidden: true,
        when: |s| s.read[0][0] == 0 && s.read[1][0] == 0,
    },
    Litmus {
        name: "9.2.2 both see the other's store to a place behind their own",
        parts: &[forward_x, store_2_load_x],
        forbidden: true,
        when: |s| s.read[0][0] == 2 && s.read[1][0] == 1,
    },
    Litmus {
        name: "9.2.3.3 both load what the other stores later to the same place",
        parts: &[load_store_1, load_store_2],
        forbidden: true,
        when: |s| s.read[0][0] == 2 && s.read[1][0] == 1,
    },
    Litmus {
        // The n6 of Owens, Sarkar and Sewell, "A better x86 memory model: x86-TSO", 2009.
        name: "9.2.3.5 own store seen before those that are before it",
        parts: &[forward_x, store_y_2_store_x_2],
        forbidden: false,
        when: |s| s.read[0] == [1, 0] && s.last == [1, 2],
    },
];

static MEMORY: AtomicU64 = AtomicU64::new(0);
static COLD_MEMORY: AtomicU64 = AtomicU64::new(0);
static TEST: AtomicU64 = AtomicU64::new(0);
/// Rounds all were in at the same time.
static ABREAST: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);
/// How far each processor is, in lines of their own.
static AT: [Line; MOST] = [const { Line(AtomicU64::new(0)) }; MOST];

#[repr(align(64))]
struct Line(AtomicU64);

/// Waits until the others are in this round too, unless all patience is used up: then they seem not to run.
fn abreast(me: usize, count: usize, round: u64, patience: &mut u32) -> bool {
    AT[me].0.store(round, Ordering::Release);
    while *patience > 0 {
        let there = |at: &Line| at.0.load(Ordering::Acquire) >= round;
        if AT[..count].iter().all(there) {
            return true;
        }
        *patience -= 1;
    }
    false
}

fn meet(count: u64, meeting: u64) {
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    while ARRIVED.load(Ordering::SeqCst) < count * meeting {
        core::hint::spin_loop();
    }
}

fn job(me: usize) {
    let memory = MEMORY.load(Ordering::SeqCst);
    let test = &ALL[TEST.load(Ordering::SeqCst) as usize];
    let part = test.parts[me];
    let of = |who: usize, round: u64| memory + READ + 16 * (BATCH * who as u64 + round);
    let cold = COLD_MEMORY.load(Ordering::SeqCst) + COLD * me as u64;
    let mut patience = PATIENCE;
    for batch in 0..BATCHES {
        meet(test.parts.len() as u64, 2 * batch + 1);
        for round in 0..BATCH {
            let x = memory + LINE * round;
            // In everybody's cache, so that loads are quick and stores are not.
            let _ = (read(x), read(x + SECOND));
            let all = abreast(me, test.parts.len(), batch * BATCH + round, &mut patience);
            if all && me == 0 {
                ABREAST.fetch_add(1, Ordering::Relaxed);
            }
            // The word of being here takes its time, which is to be made up for now and then.
            for _ in 0..round.wrapping_mul(0x9e37_79b9) >> (8 * me) & 31 {
                core::hint::black_box(round);
            }
            // Stores that take long, for those of the round to wait behind.
            for k in 0..COLD_STORES {
                let number = COLD_STORES * (batch * BATCH + round) + k;
                write(cold + number * (4096 + LINE) % COLD, 0);
            }
            let [a, b] = part(x, x + SECOND);
            write(of(me, round), a);
            write(of(me, round) + 8, b);
        }
        meet(test.parts.len() as u64, 2 * batch + 2);
        if me != 0 {
            continue;
        }
        for round in 0..BATCH {
            let x = memory + LINE * round;
            let read = core::array::from_fn(|who| [read(of(who, round)), read(of(who, round) + 8)]);
            let last = [self::read(x), self::read(x + SECOND)];
            if (test.when)(&Seen { read, last }) {
                SEEN.fetch_add(1, Ordering::SeqCst);
            }
            write(x, 0);
            write(x + SECOND, 0);
        }
    }
}

pub fn run() {
    section("9.2.3 what must not be seen, and what may");
    MEMORY.store(
        pages((READ + 16 * BATCH * MOST as u64) / 4096, 4096),
        Ordering::SeqCst,
    );
    let cold = pages(COLD * MOST as u64 / 4096, 4096);
    COLD_MEMORY.store(cold, Ordering::SeqCst);
    for (number, test) in ALL.iter().enumerate() {
        TEST.store(number as u64, Ordering::SeqCst);
        SEEN.store(0, Ordering::SeqCst);
        ABREAST.store(0, Ordering::SeqCst);
        ARRIVED.store(0, Ordering::SeqCst);
        AT.iter().for_each(|at| at.0.store(0, Ordering::SeqCst));
        let ended = smp::everywhere(test.parts.len(), job);
        check!(ended, "{} comes to its end", test.name);
        let seen = SEEN.load(Ordering::SeqCst);
        if test.forbidden {
            check_eq!(seen, 0, "{}", test.name);
        } else {
            let rounds = ABREAST.load(Ordering::SeqCst);
            println!("{}: {seen} times in {rounds} rounds abreast", test.name);
        }
    }
}
