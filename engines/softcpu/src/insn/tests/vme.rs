//! Virtual-8086 mode extensions and protected-mode virtual interrupts (SDM Vol 3 21.3.3, 21.4).

use x86defs::cr::cr4;
use x86defs::exception::GP;
use x86defs::rflags::{DF, FIXED_1, IF, IOPL, TF, VIF, VIP, VM};
use x86defs::segment::{Access, Selector};

use crate::cpu::gpr::RSP;
use crate::cpu::{RIP, sreg};
use crate::testing::*;

/// Where the I/O map begins in the TSS, behind the redirection bitmap.
const IO_MAP: u64 = 0x88;
const STACK_BASE: u64 = 0x3_0000;
const INT_21: [u8; 2] = [0xcd, 0x21];
const CLI: [u8; 1] = [0xfa];
const STI: [u8; 1] = [0xfb];
const PUSHF: [u8; 1] = [0x9c];
const PUSHFD: [u8; 2] = [0x66, 0x9c];
const POPF: [u8; 1] = [0x9d];
const IRET: [u8; 1] = [0xcf];

/// A program in virtual-8086 mode with these RFLAGS, and CR4.VME; no interrupt is the monitor's.
fn program(flags: u64) -> Bench {
    let mut b = Bench::protected();
    b.put::<u16>(TSS + 0x66, IO_MAP as u16);
    b.put::<u32>(0x21 * 4, 0x0500_0123);
    let cpu = b.cpu();
    cpu.tr.limit = 0xfff;
    cpu.cr4 |= cr4::VME;
    for s in &mut cpu.seg {
        (s.selector, s.base) = (Selector(0x3000), STACK_BASE);
        (s.limit, s.access) = (0xffff, Access(0xf3));
    }
    cpu.seg[sreg::CS].selector = Selector((CODE >> 4) as u16);
    cpu.seg[sreg::CS].base = CODE;
    cpu.cpl = 3;
    cpu.set_rflags(flags | VM | FIXED_1);
    cpu.mode_changed();
    b.set(RIP, 0x10);
    b.set(RSP, 0x8000);
    b
}

/// Gives `vector` to the monitor.
fn to_the_monitor(b: &Bench, vector: u64) {
    b.put::<u8>(TSS + IO_MAP - 32 + vector / 8, 1 << (vector % 8));
}

fn flags(b: &mut Bench) -> u64 {
    b.cpu().rflags()
}

fn pushed(b: &Bench, word: u64) -> u64 {
    u64::from(b.at::<u16>(STACK_BASE + b.get(RSP) + 2 * word))
}

/// Method 5 of Table 21-2: IOPL 3, bit clear.
#[test]
fn a_redirected_interrupt_with_iopl_3() {
    let mut b = program(IOPL | IF | DF);
    assert_eq!(b.run(&INT_21), Outcome::Next(0x123));
    assert_eq!(b.cpu().seg[sreg::CS].selector.0, 0x500);
    assert_eq!(b.cpu().seg[sreg::CS].base, 0x5000);
    assert_eq!(b.get(RSP), 0x8000 - 6);
    assert_eq!(pushed(&b, 0), 0x12, "IP behind the instruction");
    assert_eq!(pushed(&b, 1), CODE >> 4);
    assert_eq!(pushed(&b, 2), IOPL | IF | DF | FIXED_1);
    assert_eq!(flags(&mut b), IOPL | DF | VM | FIXED_1, "IF is cleared");
}

/// Method 6: IOPL below 3, bit clear. The program sees VIF as its IF and IOPL 3.
#[test]
fn a_redirected_interrupt_with_a_virtual_flag() {
    let mut b = program(IF | VIF);
    assert_eq!(b.run(&INT_21), Outcome::Next(0x123));
    assert_eq!(pushed(&b, 2), IOPL | IF | FIXED_1);
    assert_eq!(flags(&mut b), IF | VM | FIXED_1, "VIF is cleared, not IF");
    let mut b = program(IF);
    assert_eq!(b.run(&INT_21), Outcome::Next(0x123));
    assert_eq!(pushed(&b, 2), IOPL | FIXED_1);
}

/// Methods 1 and 4: the bit is set, so IOPL decides. So it does without VME (methods 1 and 2).
#[test]
fn interrupts_of_the_monitor() {
    for vme in [true, false] {
        for (iopl, vector) in [(0, GP), (IOPL, 0x21)] {
            let mut b = program(iopl);
            to_the_monitor(&b, 0x21);
            if !vme {
                b.cpu().cr4 &= !cr4::VME;
            }
            assert_eq!(b.run(&INT_21), Outcome::Vector(vector), "{vme} {iopl}");
        }
    }
}

/// The bitmap is read 32 bytes below the I/O map, inside the TSS's limit; INT3 does not look at it.
#[test]
fn the_redirection_bitmap() {
    let mut b = program(IOPL);
    b.cpu().tr.limit = (IO_MAP - 32 + 0x21 / 8 - 1) as u32;
    assert_eq!(b.run(&INT_21), Outcome::Vector(GP));
    let mut b = program(IOPL);
    b.cpu().tr.limit = (IO_MAP - 32 + 0x21 / 8) as u32;
    assert_eq!(b.run(&INT_21), Outcome::Next(0x123));
    let mut b = program(IOPL);
    assert_eq!(b.run(&[0xcc]), Outcome::Vector(3));
}

/// SDM Vol 2, CLI and STI: VIF with IOPL below 3; STI faults while VIP is set.
#[test]
fn cli_and_sti_of_a_program() {
    let mut b = program(IF | VIF);
    b.ok(&CLI);
    assert_eq!(flags(&mut b), IF | VM | FIXED_1);
    b.ok(&STI);
    assert_eq!(flags(&mut b), IF | VIF | VM | FIXED_1);
    let mut b = program(VIP);
    assert_eq!(b.run(&STI), Outcome::Vector(GP));
    let mut b = program(VIP | VIF);
    b.ok(&CLI);
    assert_eq!(flags(&mut b), VIP | VM | FIXED_1);
    let mut b = program(IOPL);
    b.ok(&STI);
    assert_eq!(flags(&mut b), IOPL | IF | VM | FIXED_1, "IF with IOPL 3");
    let mut b = program(0);
    b.cpu().cr4 &= !cr4::VME;
    assert_eq!(b.run(&CLI), Outcome::Vector(GP));
}

/// SDM Vol 3 21.4: at CPL 3 with IOPL below 3, without VM.
#[test]
fn protected_mode_virtual_interrupts() {
    let user = |flags: u64, on: bool| {
        let mut b = Bench::protected();
        let cpu = b.cpu();
        cpu.cpl = 3;
        for s in &mut cpu.seg {
            s.access = Access(s.access.0 | 3 << 5);
        }
        cpu.seg[sreg::CS].selector = Selector(sel::USER_CODE32);
        cpu.seg[sreg::SS].selector = Selector(sel::USER_DATA);
        cpu.cr4 |= if on { cr4::PVI } else { 0 };
        cpu.set_rflags(flags | FIXED_1);
        cpu.mode_changed();
        b
    };
    let mut b = user(IF, true);
    b.ok(&STI);
    assert_eq!(flags(&mut b), IF | VIF | FIXED_1);
    b.ok(&CLI);
    assert_eq!(flags(&mut b), IF | FIXED_1);
    assert_eq!(user(VIP, true).run(&STI), Outcome::Vector(GP));
    assert_eq!(user(0, false).run(&STI), Outcome::Vector(GP));
    let mut b = user(IOPL, true);
    b.ok(&STI);
    assert_eq!(flags(&mut b), IOPL | IF | FIXED_1);
    // PUSHF shows the flags as they are.
    let mut b = user(VIF, true);
    b.ok(&PUSHFD[1..]);
    assert_eq!(u64::from(b.at::<u32>(b.get(RSP))), VIF | FIXED_1);
}

/// SDM Vol 2, PUSHF and POPF: 16 bits work on VIF, 32 bits are the monitor's.
#[test]
fn pushf_and_popf_of_a_program() {
    for (flags, image) in [(VIF, IOPL | IF | FIXED_1), (IF, IOPL | FIXED_1)] {
        let mut b = program(flags);
        b.ok(&PUSHF);
        assert_eq!(pushed(&b, 0), image);
    }
    assert_eq!(program(VIF).run(&PUSHFD), Outcome::Vector(GP));
    assert_eq!(program(VIF).run(&[0x66, 0x9d]), Outcome::Vector(GP));
    let popf = |flags: u64, image: u64| {
        let mut b = program(flags);
        b.put::<u16>(STACK_BASE + 0x8000, image as u16);
        let outcome = b.run(&POPF);
        (outcome, b)
    };
    let (outcome, mut b) = popf(IF, IOPL | IF | DF);
    assert_eq!((outcome, b.get(RSP)), (Outcome::Next(0x11), 0x8002));
    assert_eq!(flags(&mut b), IF | VIF | DF | VM | FIXED_1);
    let (_, mut b) = popf(IF | VIF, 0);
    assert_eq!(flags(&mut b), IF | VM | FIXED_1);
    assert_eq!(popf(0, TF).0, Outcome::Vector(GP));
    assert_eq!(popf(VIP, IF).0, Outcome::Vector(GP));
    assert_eq!(popf(VIP, 0).0, Outcome::Next(0x11));
}

/// SDM Vol 2, IRET: the same for its FLAGS.
#[test]
fn iret_of_a_program() {
    let iret = |flags: u64, image: u64| {
        let mut b = program(flags);
        for (i, word) in [0x456, 0x600, image].into_iter().enumerate() {
            b.put::<u16>(STACK_BASE + 0x8000 + 2 * i as u64, word as u16);
        }
        let outcome = b.run(&IRET);
        (outcome, b)
    };
    let (outcome, mut b) = iret(IF, IOPL | IF | DF);
    assert_eq!((outcome, b.get(RSP)), (Outcome::Next(0x456), 0x8006));
    assert_eq!(b.cpu().seg[sreg::CS].base, 0x6000);
    assert_eq!(flags(&mut b), IF | VIF | DF | VM | FIXED_1);
    assert_eq!(iret(0, TF).0, Outcome::Vector(GP));
    assert_eq!(iret(VIP, IF).0, Outcome::Vector(GP));
    let mut b = program(VIF);
    assert_eq!(b.run(&[0x66, 0xcf]), Outcome::Vector(GP));
}
