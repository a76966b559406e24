//! Debug exceptions (SDM Vol 3 18.2, 18.3) and their place among events (6.8.3, 6.9).

use std::sync::atomic::Ordering::Relaxed;

use x86defs::exception::{BP, DB, GP};
use x86defs::rflags;

use crate::cpu::gpr::*;
use crate::cpu::{RIP, pending};
use crate::testing::*;

const BS: u64 = 1 << 14;
/// Enables breakpoint 0 locally.
const L0: u64 = 1;

/// 32-bit protected mode, CPL 0.
fn bench() -> Bench {
    let mut b = Bench::protected();
    b.cpu().dr6 = 0xffff_0ff0;
    b
}

fn breakpoint(b: &mut Bench, address: u64, kind: u64, length: u64) {
    b.cpu().dr[0] = address;
    b.cpu().dr7 = 0x400 | L0 | kind << 16 | (length - 1) << 18;
    b.cpu().debug_changed();
}

fn set_flags(b: &mut Bench, flags: u64) {
    b.cpu().set_rflags(flags | 2);
}

/// What the debug handler found: EIP and EFLAGS; and DR6's changed bits.
fn trap(b: &mut Bench) -> (u64, u32, u64) {
    let rsp = b.get(RSP);
    let dr6 = b.cpu().dr6 ^ 0xffff_0ff0;
    (u64::from(b.at::<u32>(rsp)), b.at::<u32>(rsp + 8), dr6)
}

/// Executes `code`, then steps: the trap follows the instruction.
fn traps_after(b: &mut Bench, code: &[u8]) -> (u64, u32, u64) {
    let next = b.get(RIP) + code.len() as u64;
    b.ok(code);
    assert_eq!(b.step(), Outcome::Vector(DB), "{code:02x?}");
    let found = trap(b);
    assert_eq!(found.0, next);
    found
}

/// 18.3.1.4: a trap after each instruction with TF set at its start. POPF that sets TF is followed by one instruction
/// before the trap, POPF that clears it by the trap.
#[test]
fn single_step() {
    let mut b = bench();
    set_flags(&mut b, rflags::TF);
    let (_, flags, dr6) = traps_after(&mut b, &[0x90]);
    assert_eq!(dr6, BS);
    assert_eq!(flags, 0x102);
    assert_eq!(b.cpu().rflags() & rflags::TF, 0);
    let mut b = bench();
    b.put::<u32>(STACK, 0x102);
    b.ok(&[0x9d]);
    traps_after(&mut b, &[0x90]);
    let mut b = bench();
    set_flags(&mut b, rflags::TF);
    b.put::<u32>(STACK, 2);
    traps_after(&mut b, &[0x9d]);
}

/// 18.3.1.4, 18.3.1.1: each iteration of a repeated string instruction traps; RF is set in the image of all but the
/// last.
#[test]
fn single_step_of_a_repeat() {
    let first = |at| {
        let mut b = bench();
        b.set(RAX, 0xf3);
        b.set(RCX, 2);
        b.set(RDI, at);
        set_flags(&mut b, rflags::TF);
        assert_eq!(b.run(&[0xf3, 0xaa]), Outcome::Next(CODE));
        assert_eq!(b.step(), Outcome::Vector(DB));
        assert_eq!(trap(&mut b), (CODE, 0x1_0102, BS), "{at:#x}");
        assert_eq!(b.get(RCX), 1);
        b
    };
    // It stores its first byte over itself, and runs by itself for that.
    first(CODE);
    let mut b = first(DATA);
    b.set(RIP, CODE);
    b.cpu().dr6 = 0xffff_0ff0;
    set_flags(&mut b, rflags::TF | rflags::RF);
    traps_after(&mut b, &[0xf3, 0xaa]);
    assert_eq!(trap(&mut b).1, 0x102);
}

/// 18.3.1.1: an interrupt between two iterations finds RF set.
#[test]
fn interrupt_of_a_repeat() {
    let mut b = bench();
    b.set(RCX, 10_000);
    b.set(RDI, DATA);
    assert_eq!(b.run(&[0xf3, 0xaa]), Outcome::Next(CODE));
    set_flags(&mut b, rflags::IF);
    b.signals.interrupt.store(0x40, Relaxed);
    b.cpu().pending |= pending::INTERRUPT;
    assert_eq!(b.step(), Outcome::Vector(0x40));
    assert_eq!(trap(&mut b).0, CODE);
    assert_eq!(trap(&mut b).1, 0x1_0202);
    // Between other instructions it does not.
    let mut b = bench();
    b.ok(&[0x90]);
    set_flags(&mut b, rflags::IF);
    b.signals.interrupt.store(0x40, Relaxed);
    b.cpu().pending |= pending::INTERRUPT;
    assert_eq!(b.step(), Outcome::Vector(0x40));
    assert_eq!(trap(&mut b).1, 0x202);
}

/// 18.3.1.1: an instruction breakpoint is a fault without RF in its image; RF in the image of IRET holds it off for
/// one instruction. A repeated instruction meets it once.
#[test]
fn instruction_breakpoint() {
    let mut b = bench();
    breakpoint(&mut b, CODE, 0, 1);
    assert_eq!(b.run(&[0x90]), Outcome::Vector(DB));
    assert_eq!(trap(&mut b), (CODE, 2, 1));
    // IRETD at another place, back with RF.
    b.put::<u32>(b.get(RSP) + 8, 0x1_0002);
    b.set(RIP, CODE + 0x100);
    assert_eq!(b.run(&[0xcf]), Outcome::Next(CODE));
    assert_ne!(b.cpu().rflags() & rflags::RF, 0);
    b.ok(&[0x90]);
    assert_eq!(b.cpu().rflags() & rflags::RF, 0);
    b.set(RIP, CODE);
    assert_eq!(b.step(), Outcome::Vector(DB));
    // A repeat.
    let mut b = bench();
    breakpoint(&mut b, CODE, 0, 1);
    b.set(RCX, 2);
    b.set(RDI, DATA);
    set_flags(&mut b, rflags::RF);
    assert_eq!(b.run(&[0xf3, 0xaa]), Outcome::Next(CODE));
    assert_eq!(b.step(), Outcome::Next(CODE + 2));
}

/// 18.3.1.2: data breakpoints trap after the access, for any byte of their range.
#[test]
fn data_breakpoints() {
    const READ: [u8; 2] = [0x8b, 0x03];
    const WRITE: [u8; 2] = [0x89, 0x03];
    for (kind, code, offset, hit) in [
        (1, WRITE, 0, true),
        (1, READ, 0, false),
        (3, READ, 0, true),
        (3, WRITE, 3, true),
        (3, READ, 4, false),
        (3, READ, 0u64.wrapping_sub(3), true),
        (3, READ, 0u64.wrapping_sub(4), false),
    ] {
        let mut b = bench();
        breakpoint(&mut b, DATA + 0x10, kind, 4);
        b.set(RBX, (DATA + 0x10).wrapping_add(offset));
        if hit {
            assert_eq!(traps_after(&mut b, &code).2, 1, "{kind} {offset:#x}");
        } else {
            b.ok(&code);
            b.ok(&[0x90]);
        }
    }
    // With TF both conditions are reported together.
    let mut b = bench();
    breakpoint(&mut b, DATA, 1, 4);
    b.set(RBX, DATA);
    set_flags(&mut b, rflags::TF);
    assert_eq!(traps_after(&mut b, &WRITE).2, 1 | BS);
    // An instruction that faults reports none.
    let mut b = bench();
    breakpoint(&mut b, STACK - 4, 1, 4);
    b.cpu().seg[3].limit = 0;
    b.set(RBX, DATA);
    assert_eq!(b.run(&[0xff, 0x33]), Outcome::Vector(GP));
}

/// 18.3.1.3: I/O breakpoints trap after the instruction, with CR4.DE.
#[test]
fn port_breakpoints() {
    const IN_AL_80: [u8; 2] = [0xe4, 0x80];
    let mut b = bench();
    breakpoint(&mut b, 0x80, 2, 1);
    b.ok(&IN_AL_80);
    b.ok(&[0x90]);
    b.cpu().cr4 |= 8;
    assert_eq!(traps_after(&mut b, &IN_AL_80).2, 1);
    let mut b = bench();
    b.cpu().cr4 |= 8;
    breakpoint(&mut b, 0x81, 2, 1);
    b.ok(&IN_AL_80);
    // IN AX reaches the port.
    assert_eq!(traps_after(&mut b, &[0x66, 0xe5, 0x80]).2, 1);
    // OUTSB.
    let mut b = bench();
    b.cpu().cr4 |= 8;
    breakpoint(&mut b, 0x80, 2, 1);
    b.set(RDX, 0x80);
    b.set(RSI, DATA);
    assert_eq!(traps_after(&mut b, &[0x6e]).2, 1);
}

/// 6.8.3: a load of SS has no single-step trap, holds a data breakpoint for one instruction, and hides an instruction
/// breakpoint on the next one.
#[test]
fn loads_of_ss() {
    let mut b = bench();
    b.set(RAX, u64::from(sel::DATA));
    set_flags(&mut b, rflags::TF);
    b.ok(&[0x8e, 0xd0]);
    assert_eq!(traps_after(&mut b, &[0x90]).2, BS);
    // A data breakpoint on the operand.
    let mut b = bench();
    b.put(DATA, sel::DATA);
    b.set(RBX, DATA);
    breakpoint(&mut b, DATA, 3, 2);
    b.ok(&[0x8e, 0x13]);
    assert_eq!(traps_after(&mut b, &[0x90]).2, 1);
    // An instruction breakpoint.
    let mut b = bench();
    b.set(RAX, u64::from(sel::DATA));
    breakpoint(&mut b, CODE + 2, 0, 1);
    b.ok(&[0x8e, 0xd0]);
    b.ok(&[0x90]);
    // Interrupts wait, too.
    let mut b = bench();
    b.set(RAX, u64::from(sel::DATA));
    b.ok(&[0x8e, 0xd0]);
    set_flags(&mut b, rflags::IF);
    b.signals.interrupt.store(0x40, Relaxed);
    b.cpu().pending |= pending::INTERRUPT;
    b.ok(&[0x90]);
    assert_eq!(b.step(), Outcome::Vector(0x40));
    // An INT n in the shadow is delivered; the data breakpoint follows at its handler.
    let mut b = bench();
    b.put(DATA, sel::DATA);
    b.set(RBX, DATA);
    breakpoint(&mut b, DATA, 3, 2);
    b.ok(&[0x8e, 0x13]);
    assert_eq!(b.run(&[0xcc]), Outcome::Vector(BP));
    let handler = b.get(RIP);
    assert_eq!(b.step(), Outcome::Vector(DB));
    assert_eq!(trap(&mut b).0, handler);
}

/// 6.9: debug traps come before interrupts, which are taken at the handler's first instruction if IF allows.
#[test]
fn traps_before_interrupts() {
    let mut b = bench();
    let gate: u64 = b.at(IDT + 8);
    // A trap gate leaves IF.
    b.put(IDT + 8, gate | 1 << 40);
    set_flags(&mut b, rflags::TF);
    b.ok(&[0x90]);
    b.cpu().rflags_rest |= rflags::IF;
    b.signals.interrupt.store(0x40, Relaxed);
    b.cpu().pending |= pending::INTERRUPT;
    assert_eq!(b.step(), Outcome::Vector(DB));
    let handler = b.get(RIP);
    assert_eq!(b.step(), Outcome::Vector(0x40));
    assert_eq!(trap(&mut b).0, handler);
}

/// 6.3.1, Vol 2 INT1: no check of the gate's privilege, no change of DR6.
#[test]
fn int1() {
    let mut b = Bench::protected_user();
    b.cpu().dr6 = 0xffff_0ff0;
    let gate: u64 = b.at(IDT + 8);
    b.put(IDT + 8, gate & !(3 << 45));
    assert_eq!(b.run(&[0xf1]), Outcome::Vector(DB));
    assert_eq!(b.cpu().dr6, 0xffff_0ff0);
    assert_eq!(u64::from(b.at::<u32>(b.get(RSP))), CODE + 1);
    // Where the gate is not present, it is a fault of this exception: EXT set (6.13).
    let mut b = Bench::protected();
    b.put::<u64>(IDT + 8, 0);
    assert_eq!(b.run(&[0xf1]), Outcome::Vector(GP));
    assert_eq!(b.at::<u32>(b.get(RSP)), 8 | 2 | 1);
}

/// 18.2.4: general detect comes before the access, sets BD, and ends with the delivery.
#[test]
fn general_detect() {
    let mut b = bench();
    b.cpu().dr7 |= 1 << 13;
    assert_eq!(b.run(&[0x0f, 0x21, 0xf0]), Outcome::Vector(DB));
    assert_eq!(trap(&mut b), (CODE, 0x1_0002, 1 << 13));
    assert_eq!(b.cpu().dr7 & 1 << 13, 0);
}

/// 6.15: a fault in the shadow of MOV SS ends it.
#[test]
fn fault_in_the_shadow() {
    let mut b = bench();
    b.set(RAX, u64::from(sel::DATA));
    b.ok(&[0x8e, 0xd0]);
    b.set(RSP, STACK);
    b.cpu().seg[3].limit = 0;
    b.set(RBX, DATA);
    assert_eq!(b.run(&[0x8b, 0x03]), Outcome::Vector(GP));
    set_flags(&mut b, rflags::IF);
    b.signals.interrupt.store(0x40, Relaxed);
    b.cpu().pending |= pending::INTERRUPT;
    assert_eq!(b.step(), Outcome::Vector(0x40));
}

/// 18.3.1.4: TF that SYSRET loads traps after the instruction behind it, as with POPF.
#[test]
fn single_step_behind_sysret() {
    let mut b = Bench::long();
    let target = CODE + 0x100;
    b.cpu().efer |= 1;
    b.cpu().msr.star = u64::from(sel::USER_CODE32) << 48;
    b.put::<u8>(target, 0x90);
    b.set(RCX, target);
    b.set(R11, 0x102);
    assert_eq!(b.run(&[0x48, 0x0f, 0x07]), Outcome::Next(target));
    assert_eq!(b.cpu().cpl, 3);
    assert_eq!(b.step(), Outcome::Next(target + 1));
    assert_eq!(b.step(), Outcome::Vector(DB));
    assert_eq!(b.at::<u64>(b.get(RSP)), target + 1);
}
