//! Delivery of events (SDM Vol 3 chapter 6).

use x86defs::exception::{AC, DF, GP, NP, PF, SS, UD};

use crate::cpu::gpr::*;
use crate::cpu::sreg;
use crate::testing::*;

const IST1: u64 = 0x6_0000;

/// SDM Vol 3 6.15, "Page-Fault Exception": the address of a second page fault overwrites CR2 also when the two
/// become a double fault.
#[test]
fn cr2_of_a_double_fault_is_the_second_address() {
    let mut b = Bench::long();
    // The double fault's handler has a stack of its own.
    b.put::<u64>(TSS + 0x24, IST1);
    let gate: u64 = b.at(IDT + 16 * 8);
    b.put(IDT + 16 * 8, gate | 1 << 32);
    let stack_page = SMALL + 0x1_0000;
    b.put::<u64>(PT + 8 * 0x10, 0);
    b.put::<u64>(PT + 8 * 0x20, 0);
    b.set(RSP, stack_page + 0x800);
    b.set(RBX, SMALL + 0x2_0000);
    let error = b.fault(&[0x48, 0x8b, 0x03], DF);
    assert_eq!(error, 0);
    // What is pushed first is SS.
    assert_eq!(b.cpu().cr2, stack_page + 0x7f8);
}

/// Without a stack for the double fault there is shutdown.
#[test]
fn triple_fault() {
    let mut b = Bench::long();
    b.put::<u64>(PT + 8 * 0x10, 0);
    b.set(RSP, SMALL + 0x1_0800);
    assert_eq!(b.run(&[0x0f, 0x0b]), Outcome::Shutdown);
}

/// SDM Vol 3 6.13: EXT tells an exception's gate from a program's own.
#[test]
fn external_bit() {
    let not_present = |b: &Bench, v: u64| {
        let gate: u64 = b.at(IDT + 16 * v);
        b.put(IDT + 16 * v, gate & !(1 << 47));
    };
    let mut b = Bench::long();
    not_present(&b, 6);
    assert_eq!(b.fault(&[0x0f, 0x0b], NP), 6 << 3 | 2 | 1);
    let mut b = Bench::long();
    not_present(&b, 0x50);
    assert_eq!(b.fault(&[0xcd, 0x50], NP), 0x50 << 3 | 2);
    // INT n from CPL 3 through a gate of privilege 0.
    let mut b = Bench::user();
    let gate: u64 = b.at(IDT + 16 * 0x50);
    b.put(IDT + 16 * 0x50, gate & !(3 << 45));
    assert_eq!(b.fault(&[0xcd, 0x50], GP), 0x50 << 3 | 2);
    assert_eq!(b.at::<u64>(b.get(RSP) + 8), CODE, "a fault points at INT");
}

/// SDM Vol 3 6.14.2: the frame is aligned to 16 bytes, holds the old RSP, and the error code is below RIP.
#[test]
fn long_mode_frame() {
    let mut b = Bench::user();
    b.set(RSP, STACK - 3);
    b.cpu().set_rflags(0x246);
    b.fault(&[0x0f, 0x0b], UD);
    assert_eq!(b.get(RSP), RSP0 - 40);
    let frame: Vec<u64> = (0..5).map(|i| b.at(RSP0 - 40 + 8 * i)).collect();
    let user = [u64::from(sel::USER_CODE64), u64::from(sel::USER_DATA)];
    // A fault's image of RFLAGS has RF set (18.3.1.1).
    assert_eq!(frame, [CODE, user[0], 0x1_0246, STACK - 3, user[1]]);
    let cpu = b.cpu();
    assert_eq!(cpu.seg[sreg::SS].selector.0, 0);
    assert_eq!(
        cpu.rflags() & 0x1_0300,
        0,
        "an interrupt gate clears IF, TF, RF"
    );
    // In CPL 0 the old stack goes on, aligned.
    let mut b = Bench::long();
    b.set(RSP, STACK - 3);
    b.fault(&[0x0f, 0x0b], UD);
    assert_eq!(b.get(RSP), STACK - 16 - 40);
}

/// A page fault's error code and CR2 (SDM Vol 3 4.7).
#[test]
fn page_fault_codes() {
    let mut b = Bench::user();
    b.set(RBX, SMALL);
    b.put::<u64>(PT, 0);
    assert_eq!(b.fault(&[0x48, 0x89, 0x03], PF), 6);
    let mut b = Bench::user();
    b.set(RBX, SMALL);
    b.put::<u64>(PT, SMALL | 5);
    assert_eq!(b.fault(&[0x48, 0x01, 0x03], PF), 7);
    let mut b = Bench::long();
    b.set(RBX, SMALL);
    b.put::<u64>(PT, SMALL | 7 | 1 << 51);
    assert_eq!(b.fault(&[0x48, 0x8b, 0x03], PF), 9);
    // CMPXCHG8B is a write also when it does not store.
    let mut b = Bench::long();
    b.set(RBX, SMALL);
    b.put::<u64>(PT, 0);
    assert_eq!(b.fault(&[0x0f, 0xc7, 0x0b], PF), 2);
}

/// SDM Vol 3 6.15: a non-canonical address is #SS(0) for the stack, else #GP(0).
#[test]
fn non_canonical_addresses() {
    let bad = 0x0000_8000_0000_0000;
    let mut b = Bench::long();
    b.set(RBX, bad);
    assert_eq!(b.fault(&[0x48, 0x8b, 0x03], GP), 0);
    let mut b = Bench::long();
    b.set(RBP, bad);
    assert_eq!(b.fault(&[0x48, 0x8b, 0x45, 0x00], SS), 0);
    // movsb with an override that 64-bit mode ignores
    let mut b = Bench::long();
    b.set(RSI, DATA);
    b.set(RDI, bad);
    assert_eq!(b.fault(&[0x36, 0xa4], GP), 0);
    // push [rbx] in user mode with a bad RSP
    let mut b = Bench::user();
    b.set(RBX, DATA);
    b.set(RSP, bad + 8);
    assert_eq!(b.fault(&[0xff, 0x33], SS), 0);
}

/// A 16-bit gate has a 16-bit offset (SDM Vol 3 6.11).
#[test]
fn sixteen_bit_gate() {
    let mut b = Bench::protected();
    let gate: u64 = 0x1234 | u64::from(sel::CODE32) << 16 | 0x8600 << 32 | 0xffff << 48;
    b.put(IDT + 8 * 0x50, gate);
    b.set(RSP, STACK);
    assert_eq!(b.run(&[0xcd, 0x50]), Outcome::Next(0x1234));
    assert_eq!(b.get(RSP), STACK - 6);
}

/// SDM Vol 3 Table 6-7: what alignment checking asks of user accesses.
#[test]
fn alignment_check() {
    let checked = |bytes: &[u8], at: u64| {
        let mut b = Bench::user();
        b.cpu().cr0 |= 1 << 18;
        b.cpu().set_rflags(0x4_0202);
        b.cpu().mode_changed();
        b.set(RBX, at);
        b.run(bytes)
    };
    // mov ax / eax / rax, [rbx]; fld qword, fld tbyte, movq xmm0, cmpxchg8b
    for (bytes, align) in [
        (&[0x66, 0x8b, 0x03][..], 2),
        (&[0x8b, 0x03], 4),
        (&[0x48, 0x8b, 0x03], 8),
        (&[0xdd, 0x03], 8),
        (&[0xdb, 0x2b], 8),
        (&[0xf3, 0x0f, 0x7e, 0x03], 8),
        (&[0x0f, 0xc7, 0x0b], 8),
    ] {
        let next = Outcome::Next(CODE + bytes.len() as u64);
        assert_eq!(checked(bytes, DATA + align), next, "{bytes:x?}");
        let wrong = checked(bytes, DATA + align / 2);
        assert_eq!(wrong, Outcome::Vector(AC), "{bytes:x?}");
    }
}

/// SDM Vol 3 18.3.1.4: INT n clears TF on its way to the handler, so it leaves no single-step trap; another
/// instruction does.
#[test]
fn single_step_of_int_n() {
    let mut b = Bench::long();
    let flags = b.cpu().rflags();
    b.cpu().set_rflags(flags | x86defs::rflags::TF);
    assert_eq!(b.run(&[0xcd, 0x50]), Outcome::Vector(0x50));
    assert_eq!(b.cpu().pending_debug, 0);
    let mut b = Bench::long();
    b.cpu().set_rflags(flags | x86defs::rflags::TF);
    b.ok(&[0x90]);
    assert_eq!(b.cpu().pending_debug, 1 << 14, "BS");
}
