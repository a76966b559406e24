//! Stacks and returns.

use x86defs::exception::{GP, PF};

use crate::cpu::gpr::*;
use crate::cpu::{RIP, sreg};
use crate::testing::*;

fn frame32(b: &Bench, words: &[u32]) {
    for (i, w) in words.iter().enumerate() {
        b.put(STACK + 4 * i as u64, *w);
    }
}

/// A return to a 16-bit stack loads SP and leaves the upper half of ESP (SDM Vol 2, IRET: "StackAddrSize").
#[test]
fn iret_to_a_sixteen_bit_stack() {
    let mut b = Bench::protected();
    let user = [u32::from(sel::USER_CODE32), u32::from(sel::USER_STACK16)];
    frame32(&b, &[0x1234, user[0], 2, 0x7654_5678, user[1]]);
    assert_eq!(b.run(&[0xcf]), Outcome::Next(0x1234));
    assert_eq!(b.get(RSP), (STACK & !0xffff) | 0x5678);
    assert_eq!(b.cpu().cpl, 3);
}

/// RETF n to an outer level releases n bytes on both stacks.
#[test]
fn far_return_to_an_outer_level() {
    let mut b = Bench::protected();
    let user = [u32::from(sel::USER_CODE32), u32::from(sel::USER_DATA)];
    frame32(&b, &[0x1234, user[0], 0, 0, 0x7000, user[1]]);
    assert_eq!(b.run(&[0xca, 8, 0]), Outcome::Next(0x1234));
    assert_eq!(b.get(RSP), 0x7008);
    assert_eq!(b.cpu().seg[sreg::SS].selector.0, sel::USER_DATA);
}

/// SDM Vol 2, RET: the offset must be inside the 64 KByte of real-address mode.
#[test]
fn far_return_beyond_real_mode() {
    let mut b = Bench::real();
    b.put::<u32>(0xf000, 0x1_0000);
    b.put::<u32>(0xf004, 0);
    b.put::<u32>(IDT + 13 * 4, 0x0000_7000);
    b.put::<u16>(0x7000, 0xfeeb);
    assert_eq!(b.run(&[0x66, 0xcb]), Outcome::Next(0x7000));
    assert_eq!(b.get(RSP), 0xf000 - 6);
}

/// POP SS takes the stack pointer's width of the stack it pops from.
#[test]
fn pop_ss_with_another_width() {
    let mut b = Bench::protected();
    b.put::<u32>(0x2_fffc, u32::from(sel::STACK16));
    b.set(RSP, 0x2_fffc);
    b.ok(&[0x17]);
    assert_eq!(b.get(RSP), 0x3_0000);
    assert_eq!(b.cpu().seg[sreg::SS].selector.0, sel::STACK16);
}

/// POP to a segment register that faults leaves the stack pointer.
#[test]
fn pop_segment_is_precise() {
    let mut b = Bench::protected();
    b.put::<u32>(STACK, 0x1000);
    b.set(RSP, STACK);
    assert_eq!(b.run(&[0x1f]), Outcome::Vector(GP));
    assert_eq!(b.at::<u32>(b.get(RSP)), 0x1000);
    assert_eq!(b.get(RSP), STACK - 16);
}

/// ENTER touches the new top of stack before anything changes (SDM Vol 2, ENTER).
#[test]
fn enter_checks_the_new_top() {
    let mut b = Bench::long();
    b.put::<u64>(PT, 0);
    b.set(RSP, SMALL + 0x1010);
    b.set(RBP, 0x77);
    // The frame goes down into the page that is not there; so would the fault's frame, but for an IST stack.
    b.put::<u64>(TSS + 0x24, 0x6_0000);
    let gate: u64 = b.at(IDT + 16 * 14);
    b.put(IDT + 16 * 14, gate | 1 << 32);
    assert_eq!(b.fault(&[0xc8, 0x20, 0, 0], PF), 2);
    assert_eq!(b.get(RBP), 0x77);
    assert_eq!(
        b.at::<u64>(b.get(RSP) + 32),
        SMALL + 0x1010,
        "RSP in the frame"
    );
    b.put::<u64>(PT, SMALL | 7);
    let mut b = Bench::long();
    b.set(RBP, 0x77);
    b.ok(&[0xc8, 0x20, 0, 1]);
    assert_eq!(b.get(RBP), STACK - 8);
    assert_eq!(b.get(RSP), STACK - 16 - 0x20);
    assert_eq!(b.at::<u64>(STACK - 8), 0x77);
    assert_eq!(b.at::<u64>(STACK - 16), STACK - 8);
}

/// SYSCALL and SYSRET (SDM Vol 2).
#[test]
fn fast_system_calls() {
    let mut b = Bench::user();
    let cpu = b.cpu();
    cpu.msr.star = 0x0023 << 48 | 0x0008 << 32;
    cpu.msr.lstar = 0x7_0000;
    cpu.msr.fmask = 0x4_0700;
    cpu.set_rflags(0x4_0202);
    b.set(RSP, 0x1234);
    assert_eq!(b.run(&[0x0f, 0x05]), Outcome::Next(0x7_0000));
    assert_eq!((b.get(RCX), b.get(R11)), (CODE + 2, 0x4_0202));
    assert_eq!(b.get(RSP), 0x1234);
    let cpu = b.cpu();
    assert_eq!((cpu.cpl, cpu.rflags()), (0, 2));
    assert_eq!(cpu.seg[sreg::CS].selector.0, 8);
    assert_eq!(cpu.seg[sreg::CS].access.0, 0xa09b);
    assert_eq!(cpu.seg[sreg::SS].selector.0, 0x10);
    // SYSRETQ: RF and VM are cleared, bit 1 is set.
    b.set(R11, 0x3_0206);
    b.set(RCX, 0x2_4000);
    assert_eq!(b.run(&[0x48, 0x0f, 0x07]), Outcome::Next(0x2_4000));
    let cpu = b.cpu();
    assert_eq!((cpu.cpl, cpu.rflags()), (3, 0x206));
    assert_eq!(cpu.seg[sreg::CS].selector.0, 0x33);
    assert_eq!(cpu.seg[sreg::SS].selector.0, 0x2b);
    assert_eq!(cpu.seg[sreg::SS].access.0, 0xc0f3);
    // A non-canonical RCX is #GP(0) in CPL 0, on the kernel's stack pointer.
    let mut b = Bench::long();
    b.set(RCX, 1 << 47);
    assert_eq!(b.fault(&[0x48, 0x0f, 0x07], GP), 0);
    assert_eq!(b.cpu().cpl, 0);
    // SYSRET to compatibility mode takes ECX.
    let mut b = Bench::long();
    b.cpu().msr.star = 0x0023 << 48;
    b.set(RCX, 0xffff_0000_0002_4000);
    b.set(R11, 2);
    assert_eq!(b.run(&[0x0f, 0x07]), Outcome::Next(0x2_4000));
    assert!(!b.cpu().long64);
    assert_eq!(b.cpu().seg[sreg::CS].selector.0, 0x23);
    assert_eq!(b.get(RIP), 0x2_4000);
}
