//! What the processor sets in descriptors, while others change them (SDM Vol 3 9.1.2.1).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use guestmem::{GuestRam, RamOffset};

use crate::cpu::RIP;
use crate::cpu::gpr::{RAX, RSP};
use crate::testing::*;

const ROUNDS: u32 = 200_000;
/// A descriptor that others change too.
const SPARE: u16 = 0x58;
/// Its byte with the type.
const TYPE: u64 = GDT + SPARE as u64 + 5;
const ACCESSED: u8 = 1;
const BUSY: u8 = 2;

/// Changes the byte with the type as one; what it was.
fn change(ram: &GuestRam, f: impl Fn(u8) -> u8) -> u8 {
    let at = RamOffset(TYPE);
    let mut old = ram.load(at);
    loop {
        match ram.compare_exchange(at, old, f(old)) {
            Ok(was) => return was,
            Err(now) => old = now,
        }
    }
}

/// Runs `other` in a thread over and over while `ours` runs [`ROUNDS`] times.
fn beside(
    b: &mut Bench,
    mut other: impl FnMut(&GuestRam) + Send,
    mut ours: impl FnMut(&mut Bench),
) {
    let ram = Arc::clone(&b.ram);
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                other(&ram);
            }
        });
        for _ in 0..ROUNDS {
            ours(b);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Another processor changes the DPL while the accessed flag is set.
#[test]
fn the_accessed_flag_is_set_by_a_locked_operation() {
    const DPL: u8 = 0x60;
    let lost = AtomicU32::new(0);
    let mut b = Bench::protected();
    b.cpu().gdtr.limit = 0xff;
    b.put(GDT + u64::from(SPARE), 0x00cf_9300_0000_ffff_u64);
    b.set(RAX, u64::from(SPARE));
    // MOV DS, AX.
    b.ok(&[0x8e, 0xd8]);
    let mut expected = 0;
    let other = |ram: &GuestRam| {
        let found = change(ram, |byte| byte ^ DPL) & DPL;
        if found != expected {
            lost.fetch_add(1, Ordering::Relaxed);
        }
        expected = !found & DPL;
    };
    beside(&mut b, other, |b| {
        change(&b.ram, |byte| byte & !ACCESSED);
        b.set(RIP, CODE);
        assert_eq!(b.step(), Outcome::Next(CODE + 2));
        assert_eq!(b.at::<u8>(TYPE) & ACCESSED, ACCESSED);
    });
    assert_eq!(lost.into_inner(), 0, "changes that were lost");
}

/// A flag that is set already is not written: the table may be in ROM or on a read-only page (Vol 3 3.4.5.1).
#[test]
fn an_accessed_descriptor_is_not_written() {
    let mut b = Bench::long();
    b.cpu().gdtr.base = SMALL;
    b.put(SMALL + u64::from(SPARE), 0x00cf_9300_0000_ffff_u64);
    b.cpu().gdtr.limit = 0xff;
    b.put(PT, SMALL | 5);
    b.cpu().cr0 |= x86defs::cr::cr0::WP;
    b.set(RAX, u64::from(SPARE));
    b.ok(&[0x8e, 0xd8]);
}

/// Whoever sets the busy flag first has the task; the others get #GP(selector).
fn one_gets_the_task(mut b: Bench, instruction: &[u8], after: u64) {
    b.ram.write_at(RamOffset(CODE), instruction);
    let (tr, segments) = (b.cpu().tr, b.cpu().seg);
    let (owners, both, got) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let own = || {
        if owners.fetch_add(1, Ordering::SeqCst) != 0 {
            both.fetch_add(1, Ordering::SeqCst);
        }
        for _ in 0..20 {
            std::hint::spin_loop();
        }
        owners.fetch_sub(1, Ordering::SeqCst);
    };
    let other = |ram: &GuestRam| {
        if change(ram, |byte| byte | BUSY) & BUSY == 0 {
            own();
            change(ram, |byte| byte & !BUSY);
            // Time for the other side.
            for _ in 0..30 {
                std::hint::spin_loop();
            }
        }
    };
    beside(&mut b, other, |b| {
        let cpu = b.cpu();
        (cpu.tr, cpu.seg) = (tr, segments);
        cpu.regs[RIP] = CODE;
        cpu.regs[RSP] = STACK;
        match b.step() {
            Outcome::Next(at) => {
                assert_eq!(at, after);
                own();
                got.fetch_add(1, Ordering::SeqCst);
                change(&b.ram, |byte| byte & !BUSY);
            }
            Outcome::Vector(vector) => {
                assert_eq!(vector, x86defs::exception::GP);
                let code: u32 = b.at(b.get(RSP));
                assert_eq!(code, u32::from(SPARE));
            }
            Outcome::Shutdown => panic!("a triple fault"),
        }
    });
    assert!(got.into_inner() > 0, "it got the task");
    assert_eq!(both.into_inner(), 0, "two had the task");
}

#[test]
fn ltr_tests_and_sets_the_busy_flag_as_one() {
    let mut b = Bench::protected();
    b.cpu().gdtr.limit = 0xff;
    b.put(GDT + u64::from(SPARE), 0x0000_8900_7000_0067_u64);
    b.set(RAX, u64::from(SPARE));
    one_gets_the_task(b, &[0x0f, 0, 0xd8], CODE + 3);
}

#[test]
fn a_task_switch_tests_and_sets_the_busy_flag_as_one() {
    const NEW: u64 = 0x5_8000;
    let mut b = Bench::protected();
    b.cpu().gdtr.limit = 0xff;
    b.put(GDT + u64::from(SPARE), NEW << 16 | 0x89 << 40 | 0x67_u64);
    // EIP, EFLAGS, ESP; ES, CS, SS, DS.
    for (at, value) in [(0x20, 0x2_8000), (0x24, 2), (0x38, STACK as u32)] {
        b.put::<u32>(NEW + at, value);
    }
    for (at, selector) in [
        (0x48, sel::DATA),
        (0x4c, sel::CODE32),
        (0x50, sel::DATA),
        (0x54, sel::DATA),
    ] {
        b.put::<u32>(NEW + at, u32::from(selector));
    }
    // JMP SPARE:0.
    let jump = [0xea, 0, 0, 0, 0, SPARE as u8, 0];
    one_gets_the_task(b, &jump, 0x2_8000);
}
