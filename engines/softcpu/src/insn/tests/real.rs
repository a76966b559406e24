//! Real-address mode (SDM Vol 3 21.1), and limits of code segments (5.3).

use x86defs::exception::{DF, GP, SS, UD};

use crate::cpu::gpr::*;
use crate::cpu::{RIP, sreg};
use crate::testing::*;

/// Vectors lead to 1000h + 16 * vector, where a jump to itself stands.
const HANDLER: u64 = 0x1000;

fn real() -> Bench {
    let mut b = Bench::real();
    b.cpu().idtr.base = 0;
    b.cpu().idtr.limit = 0x3ff;
    for v in 0..256u64 {
        b.put(4 * v, (HANDLER + 16 * v) as u32);
        b.put::<u16>(HANDLER + 16 * v, 0xfeeb);
    }
    b
}

fn vector(b: &mut Bench, code: &[u8]) -> Option<u8> {
    match b.run(code) {
        Outcome::Next(rip) => rip
            .checked_sub(HANDLER)
            .filter(|n| *n < 0x1000)
            .map(|n| (n / 16) as u8),
        Outcome::Vector(_) | Outcome::Shutdown => None,
    }
}

/// 21.1.4: INT pushes FLAGS, CS and IP, takes CS:IP from the table, and clears IF, TF and AC. IRET goes back.
#[test]
fn interrupt_table() {
    let mut b = real();
    b.put::<u32>(4 * 0x21, 0x1234_0100);
    b.cpu().set_rflags(0x4_0a02);
    assert_eq!(b.run(&[0xcd, 0x21]), Outcome::Next(0x100));
    assert_eq!(b.get(RSP), 0xf000 - 6);
    let frame: Vec<u16> = (0..3).map(|i| b.at(0xeffa + 2 * i)).collect();
    assert_eq!(frame, [2, (CODE >> 4) as u16, 0x0a02]);
    assert_eq!(b.cpu().seg[sreg::CS].base, 0x1_2340);
    assert_eq!(b.cpu().rflags(), 0x802);
    assert_eq!(b.run(&[0xcf]), Outcome::Next(2));
    assert_eq!(b.cpu().seg[sreg::CS].base, CODE);
    assert_eq!(b.cpu().rflags(), 0xa02);
    // A fault's IP is the instruction's, and no error code is pushed.
    let mut b = real();
    b.set(RBX, 0xffff);
    assert_eq!(vector(&mut b, &[0x8b, 0x07]), Some(GP));
    assert_eq!(b.get(RSP), 0xf000 - 6);
    assert_eq!(b.at::<u16>(0xeffa), 0);
}

/// 21.1.4, Vol 2 INT: a vector beyond the table's limit is #GP; when that is beyond it too, shutdown.
#[test]
fn table_limit() {
    let mut b = real();
    b.cpu().idtr.limit = 4 * 0x21 + 2;
    assert_eq!(vector(&mut b, &[0xcd, 0x21]), Some(GP));
    let mut b = real();
    b.cpu().idtr.limit = 4 * 8 + 3;
    assert_eq!(vector(&mut b, &[0xcd, 0x21]), Some(DF));
    let mut b = real();
    b.cpu().idtr.limit = 3;
    assert_eq!(b.run(&[0xcd, 0x21]), Outcome::Shutdown);
}

/// Vol 2 INT: six bytes of stack are needed; the stack wraps at 64 KByte, but not inside a word.
#[test]
fn stack_of_an_interrupt() {
    let mut b = real();
    b.set(RSP, 4);
    b.put::<u16>(0xfffe, 0);
    assert_eq!(vector(&mut b, &[0xcd, 0x21]), Some(0x21));
    assert_eq!(b.get(RSP), 0xfffe);
    let mut b = real();
    b.set(RSP, 3);
    // Nor can #SS be pushed.
    assert_eq!(b.run(&[0xcd, 0x21]), Outcome::Shutdown);
}

/// 21.1: an operand that reaches beyond FFFFh is #GP, or #SS with the stack segment.
#[test]
fn segment_limits() {
    let mut b = real();
    b.set(RBX, 0xfffe);
    b.ok(&[0x8b, 0x07]);
    b.set(RBX, 0xfffd);
    assert_eq!(vector(&mut b, &[0x66, 0x8b, 0x07]), Some(GP));
    let mut b = real();
    b.set(RBP, 0xffff);
    assert_eq!(vector(&mut b, &[0x8b, 0x46, 0x00]), Some(SS));
    // A 32-bit address does not wrap.
    let mut b = real();
    b.set(RBX, 0x1_0000);
    assert_eq!(vector(&mut b, &[0x67, 0x8a, 0x03]), Some(GP));
}

/// Limits and rights that protected mode has loaded stay in force in real-address mode ("big real mode"); a load
/// changes selector and base only.
#[test]
fn big_real_mode() {
    let mut b = real();
    b.cpu().seg[sreg::DS].limit = u32::MAX;
    b.put::<u16>(0x12_3456, 0xabcd);
    b.set(RBX, 0x12_3456);
    b.ok(&[0x67, 0x8b, 0x03]);
    assert_eq!(b.get(RAX) & 0xffff, 0xabcd);
    b.put::<u16>(0x12_3466, 0xbcde);
    b.set(RCX, 1);
    b.ok(&[0x8e, 0xd9]);
    b.ok(&[0x67, 0x8b, 0x03]);
    assert_eq!(b.get(RAX) & 0xffff, 0xbcde);
    assert_eq!(b.cpu().seg[sreg::DS].limit, u32::MAX);
}

/// The way there: CR0.PE set and cleared with a large data segment loaded in between.
#[test]
fn through_protected_mode_and_back() {
    let mut b = real();
    b.cpu().gdtr.base = GDT;
    b.cpu().gdtr.limit = 0xff;
    b.set(RAX, 0x11);
    b.ok(&[0x0f, 0x22, 0xc0]);
    b.set(RCX, u64::from(sel::DATA));
    b.ok(&[0x8e, 0xd9]);
    assert_eq!(b.cpu().seg[sreg::DS].limit, u32::MAX);
    b.set(RAX, 0x10);
    b.ok(&[0x0f, 0x22, 0xc0]);
    b.set(RCX, 0);
    b.ok(&[0x8e, 0xd9]);
    b.put::<u32>(0x20_0000, 0x1234_5678);
    b.set(RBX, 0x20_0000);
    b.ok(&[0x66, 0x67, 0x8b, 0x03]);
    assert_eq!(b.get(RAX), 0x1234_5678);
}

/// Vol 2: instructions that real-address mode does not recognize, before any operand is looked at.
#[test]
fn undefined_instructions() {
    for code in [
        &[0x0f, 0x02, 0x07][..],         // LAR
        &[0x0f, 0x03, 0x07],             // LSL
        &[0x0f, 0x00, 0x27],             // VERR
        &[0x0f, 0x00, 0x2f],             // VERW
        &[0x0f, 0x00, 0x17],             // LLDT
        &[0x0f, 0x00, 0x1f],             // LTR
        &[0x0f, 0x00, 0x07],             // SLDT
        &[0x0f, 0x00, 0x0f],             // STR
        &[0x63, 0x07],                   // ARPL
        &[0x0f, 0x05],                   // SYSCALL
        &[0x0f, 0x07],                   // SYSRET
        &[0xc4, 0xe2, 0x60, 0xf2, 0xc1], // ANDN
        &[0xc4, 0xe2, 0x7b, 0xf6, 0xc1], // MULX
        &[0xc5, 0xf8, 0x58, 0xc1],       // VADDPS
    ] {
        let mut b = real();
        b.set(RBX, 0xffff);
        b.cpu().cr4 |= 0x4_0600;
        assert_eq!(vector(&mut b, code), Some(UD), "{code:02x?}");
    }
    // SYSENTER and SYSEXIT are #GP instead.
    for code in [[0x0f, 0x34], [0x0f, 0x35]] {
        let mut b = real();
        assert_eq!(vector(&mut b, &code), Some(GP));
    }
    // What initializes protected mode is there.
    let mut b = real();
    b.set(RBX, 0x500);
    b.put::<u64>(0x500, 0x12_3456_0fff);
    b.ok(&[0x0f, 0x01, 0x17]);
    assert_eq!((b.cpu().gdtr.base, b.cpu().gdtr.limit), (0x12_3456, 0xfff));
    b.ok(&[0x0f, 0x01, 0xe0]);
    b.ok(&[0x0f, 0x06]);
}

/// Far transfers: selector times 16, offsets up to CS's limit.
#[test]
fn far_transfers() {
    let mut b = real();
    assert_eq!(b.run(&[0x9a, 0x00, 0x01, 0x34, 0x12]), Outcome::Next(0x100));
    assert_eq!(b.cpu().seg[sreg::CS].base, 0x1_2340);
    assert_eq!(b.at::<u16>(0xeffc), 5);
    assert_eq!(b.at::<u16>(0xeffe), (CODE >> 4) as u16);
    assert_eq!(b.run(&[0xcb]), Outcome::Next(5));
    // An offset of 32 bits beyond the limit.
    let mut b = real();
    let jump = [0x66, 0xea, 0, 0, 1, 0, 0x34, 0x12];
    assert_eq!(vector(&mut b, &jump), Some(GP));
    // CS's limit may be larger, too.
    let mut b = real();
    b.cpu().seg[sreg::CS].limit = u32::MAX;
    b.cpu().mode_changed();
    b.run(&jump);
    assert_eq!(b.get(RIP), 0x1_0000);
}

/// 5.3: an instruction must lie within CS's limit whole; IP does not wrap.
#[test]
fn code_limit() {
    // NOPs up to the limit, then one that starts behind it.
    let mut b = real();
    b.put::<u16>(CODE + 0xfffe, 0x9090);
    b.set(RIP, 0xfffe);
    assert_eq!(b.step(), Outcome::Next(0xffff));
    b.step();
    assert_eq!(b.get(RIP), 0x1_0000);
    assert_eq!(b.step(), Outcome::Next(HANDLER + 16 * u64::from(GP)));
    // An instruction that the limit cuts: MOV AX, imm16 at FFFEh.
    let mut b = real();
    b.set(RIP, 0xfffe);
    assert_eq!(vector(&mut b, &[0xb8, 0x34, 0x12]), Some(GP));
    assert_eq!(b.at::<u16>(0xeffa), 0xfffe, "IP of the instruction");
    // A block that runs into the limit executes what lies inside.
    let mut b = Bench::protected();
    b.put::<u64>(GDT + 0x100, 0x0040_9b00_0000_0000 | 0xffff | 2 << 48);
    b.put::<u32>(CODE + 0xfffc, 0x4040_4040);
    b.put::<u16>(CODE + 0x1_0000, 0x4040);
    b.cpu().seg[sreg::CS].limit = 0x2_ffff;
    b.cpu().mode_changed();
    b.set(RIP, CODE + 0xfffc);
    b.set(RAX, 0);
    b.runner.cpu.budget = 1;
    // Until the handler loops on itself: the board's polls end nothing, so a few steps do.
    for _ in 0..5 {
        b.step();
    }
    assert_eq!(b.get(RAX), 4);
}

/// The fault for the limit comes before the one for the page behind it.
#[test]
fn code_limit_before_page_fault() {
    let mut b = Bench::protected();
    b.cpu().cr3 = PD32;
    b.cpu().cr4 |= 0x10;
    b.cpu().cr0 |= 1 << 31;
    b.put::<u32>(PD32 + 4, 0);
    b.cpu().mode_changed();
    b.cpu().flush_tlb();
    let at = (4 << 20) - 2;
    b.put::<u16>(at, 0x34b8);
    b.set(RIP, at);
    assert_eq!(b.step(), Outcome::Vector(14));
    b.cpu().seg[sreg::CS].limit = (4 << 20) - 1;
    b.set(RIP, at);
    b.cpu().mode_changed();
    assert_eq!(b.step(), Outcome::Vector(GP));
}
