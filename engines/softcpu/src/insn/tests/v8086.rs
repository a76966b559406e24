//! Virtual-8086 mode (SDM Vol 3 21.2, 21.3).

use x86defs::exception::{BP, GP, OF, UD};
use x86defs::rflags;

use crate::cpu::gpr::*;
use crate::cpu::sreg;
use crate::testing::*;

/// With IOPL 0.
fn sensitive() -> Bench {
    let mut b = Bench::v8086();
    b.cpu().set_rflags(0x2_0202);
    b
}

/// 21.2.7: CLI, STI, PUSHF, POPF, INT n and IRET are sensitive to IOPL; INT3, INTO and INT1 are not.
#[test]
fn sensitive_instructions() {
    for code in [
        &[0xfa][..],
        &[0xfb],
        &[0x9c],
        &[0x9d],
        &[0x66, 0x9c],
        &[0x66, 0x9d],
        &[0xcd, 0x21],
        &[0xcf],
        &[0x66, 0xcf],
    ] {
        let mut b = sensitive();
        assert_eq!(b.run(code), Outcome::Vector(GP), "{code:02x?}");
        assert_eq!(b.at::<u32>(b.get(RSP)), 0);
    }
    assert_eq!(sensitive().run(&[0xcc]), Outcome::Vector(BP));
    let mut b = sensitive();
    b.cpu().set_rflags(0x2_0a02);
    assert_eq!(b.run(&[0xce]), Outcome::Vector(OF));
    assert_eq!(sensitive().run(&[0xf1]), Outcome::Vector(1));
    let mut b = Bench::v8086();
    b.ok(&[0xfb]);
    assert_ne!(b.cpu().rflags() & rflags::IF, 0);
    b.ok(&[0x9c]);
    assert_eq!(b.at::<u16>(0xeffe), 0x3202);
    // POPF changes IF, and neither IOPL nor VM.
    b.put::<u16>(0xeffe, 0x0002);
    b.ok(&[0x9d]);
    assert_eq!(b.cpu().rflags(), 0x2_3002);
}

/// 21.2.7, 21.2.8.1: I/O is by the bitmap alone, whatever IOPL is.
#[test]
fn ports() {
    let mut b = Bench::v8086();
    b.put::<u16>(TSS + 0x66, 0x68);
    assert_eq!(b.run(&[0xe4, 0x80]), Outcome::Vector(GP));
    let mut b = Bench::v8086();
    b.cpu().tr.limit = 0x200;
    b.put::<u16>(TSS + 0x66, 0x68);
    b.put::<u16>(TSS + 0x68 + 0x10, 0xfffe);
    b.ok(&[0xe4, 0x80]);
    assert_eq!(b.run(&[0xe4, 0x81]), Outcome::Vector(GP));
}

/// 21.3.1: the frame of an event: nine words, the data segments null afterwards, VM clear.
#[test]
fn events_leave_to_level_zero() {
    let mut b = Bench::v8086();
    for (i, s) in [sreg::ES, sreg::DS, sreg::FS, sreg::GS]
        .into_iter()
        .enumerate()
    {
        b.cpu().seg[s].selector.0 = 0x100 + i as u16;
    }
    assert_eq!(b.run(&[0xcd, 0x21]), Outcome::Vector(0x21));
    let frame: Vec<u32> = (0..9).map(|i| b.at(b.get(RSP) + 4 * i)).collect();
    assert_eq!(
        frame,
        [
            2,
            (CODE >> 4) as u32,
            0x2_3002,
            0xf000,
            0,
            0x100,
            0x101,
            0x102,
            0x103
        ]
    );
    assert_eq!(b.get(RSP), RSP0 - 36);
    let cpu = b.cpu();
    assert_eq!(cpu.cpl, 0);
    assert_eq!(cpu.rflags() & (rflags::VM | rflags::IF), 0);
    for s in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
        assert_eq!(cpu.seg[s].selector.0, 0);
        assert!(cpu.seg[s].access.unusable());
    }
    // IRETD with VM in its image goes back.
    b.run(&[0xcf]);
    let cpu = b.cpu();
    assert!(cpu.v8086());
    assert_eq!(cpu.cpl, 3);
    assert_eq!(cpu.seg[sreg::DS].base, 0x1010);
    assert_eq!(cpu.seg[sreg::CS].base, CODE);
    assert_eq!(b.get(RSP), 0xf000);
}

/// 21.3.1: the handler must be nonconforming code of privilege 0.
#[test]
fn handlers_of_other_levels_are_refused() {
    for access in [0x9f, 0xfb] {
        let mut b = Bench::v8086();
        b.cpu().gdtr.limit = 0xfff;
        b.put::<u64>(GDT + 0x100, 0x00cf_0000_0000_ffff | access << 40);
        let entry: u64 = b.at(IDT + 8 * 0x21);
        b.put(IDT + 8 * 0x21, entry & !0xffff_0000 | 0x100 << 16);
        assert_eq!(b.run(&[0xcd, 0x21]), Outcome::Vector(GP), "{access:#x}");
        assert_eq!(b.at::<u32>(b.get(RSP)), 0x100);
    }
    // INT n needs a gate of privilege 3.
    let mut b = Bench::v8086();
    let entry: u64 = b.at(IDT + 8 * 0x21);
    b.put(IDT + 8 * 0x21, entry & !(3 << 45));
    assert_eq!(b.run(&[0xcd, 0x21]), Outcome::Vector(GP));
    assert_eq!(b.at::<u32>(b.get(RSP)), 0x21 << 3 | 2);
}

/// Vol 2: protected-mode instructions are #UD, privileged ones #GP(0).
#[test]
fn undefined_and_privileged() {
    for code in [
        &[0x0f, 0x02, 0xc0][..],
        &[0x0f, 0x00, 0xc0],
        &[0x63, 0xc0],
        &[0xc4, 0xe2, 0x60, 0xf2, 0xc1],
    ] {
        assert_eq!(Bench::v8086().run(code), Outcome::Vector(UD), "{code:02x?}");
    }
    for code in [
        &[0xf4][..],
        &[0x0f, 0x22, 0xc0],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x21, 0xc0],
        &[0x0f, 0x06],
        &[0x0f, 0x01, 0x17],
        &[0x0f, 0x32],
        &[0x0f, 0x01, 0xf0],
    ] {
        assert_eq!(Bench::v8086().run(code), Outcome::Vector(GP), "{code:02x?}");
    }
    // SMSW and SGDT are for everybody without CR4.UMIP (2.5).
    let mut b = Bench::v8086();
    b.ok(&[0x0f, 0x01, 0xe0]);
    b.cpu().cr4 |= 1 << 11;
    assert_eq!(b.run(&[0x0f, 0x01, 0xe0]), Outcome::Vector(GP));
}

/// Segment loads shift by four, whatever the descriptor tables hold; far transfers stay in the mode.
#[test]
fn segments() {
    let mut b = Bench::v8086();
    b.set(RAX, 0x1234);
    b.ok(&[0x8e, 0xd8]);
    assert_eq!(b.cpu().seg[sreg::DS].base, 0x1_2340);
    assert_eq!(b.run(&[0xea, 0, 1, 0x34, 0x12]), Outcome::Next(0x100));
    assert_eq!(b.cpu().seg[sreg::CS].base, 0x1_2340);
    assert_eq!(b.cpu().seg[sreg::CS].access.0, 0xf3);
    // Vol 2, IRET: an EIP beyond FFFFh on the way in is #GP(0) of level 0.
    let mut b = Bench::protected();
    for (i, w) in [0x1_0000u32, 0x2000, 0x2_0002, 0xf000, 0, 0, 0, 0, 0]
        .into_iter()
        .enumerate()
    {
        b.put(STACK + 4 * i as u64, w);
    }
    assert_eq!(b.run(&[0xcf]), Outcome::Vector(GP));
}
