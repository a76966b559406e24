//! Unmasked x87 exceptions (SDM Vol 1 8.7, D.2.1).

use std::sync::atomic::Ordering::Relaxed;

use vcpu::MpState;
use x86defs::exception::MF;

use crate::cpu::gpr::*;
use crate::cpu::pending;
use crate::testing::*;

const FLDCW: [u8; 2] = [0xd9, 0x2b];
const FLDZ: [u8; 2] = [0xd9, 0xee];
const FLD1: [u8; 2] = [0xd9, 0xe8];
/// FDIV ST, ST(1).
const FDIV: [u8; 2] = [0xd8, 0xf1];
const WAIT: [u8; 1] = [0x9b];
const FNCLEX: [u8; 2] = [0xdb, 0xe2];
const FNSTSW_AX: [u8; 2] = [0xdf, 0xe0];

/// One divided by zero with the exception unmasked: it is pending, and nothing has happened yet.
fn divided(numeric_error: bool) -> Bench {
    let mut b = Bench::protected();
    if !numeric_error {
        b.cpu().cr0 &= !0x20;
    }
    b.set(RBX, DATA);
    b.put::<u16>(DATA, 0x033b);
    b.ok(&FLDCW);
    b.ok(&FLDZ);
    b.ok(&FLD1);
    b.ok(&FDIV);
    assert!(b.cpu().ext.x87_pending());
    assert!(!b.signals.ferr.load(Relaxed));
    b
}

/// 8.7.1: #MF comes with the next waiting instruction; no-wait instructions go on.
#[test]
fn native_mode() {
    let mut b = divided(true);
    b.ok(&FNSTSW_AX);
    assert_eq!(b.get(RAX) & 0x84, 0x84);
    assert_eq!(b.run(&WAIT), Outcome::Vector(MF));
    assert_eq!(divided(true).run(&FLD1), Outcome::Vector(MF));
    // MMX instructions wait, too.
    assert_eq!(divided(true).run(&[0x0f, 0xef, 0xc0]), Outcome::Vector(MF));
    let mut b = divided(true);
    b.ok(&FNCLEX);
    b.ok(&WAIT);
}

/// 8.7.2, D.2.1.1: the processor drives FERR# and stops in front of the waiting instruction until an interrupt.
#[test]
fn compatibility_mode() {
    for code in [&WAIT[..], &FLD1] {
        let mut b = divided(false);
        let at = b.get(crate::cpu::RIP);
        assert_eq!(b.run(code), Outcome::Next(at));
        assert!(b.signals.ferr.load(Relaxed));
        assert_eq!(b.cpu().activity, MpState::Halted);
        // The interrupt of the board.
        b.cpu().set_rflags(0x202);
        b.signals.interrupt.store(0x75, Relaxed);
        b.cpu().pending |= pending::INTERRUPT;
        assert_eq!(b.step(), Outcome::Vector(0x75));
        assert_eq!(b.cpu().activity, MpState::Running);
        assert_eq!(u64::from(b.at::<u32>(b.get(RSP))), at);
        assert_eq!(b.at::<u32>(b.get(RSP) + 8) & 0x1_0000, 0, "RF");
        // FERR# ends when the handler clears the exception.
        b.set(crate::cpu::RIP, CODE);
        b.ok(&FNCLEX);
        assert!(!b.signals.ferr.load(Relaxed));
    }
}

/// D.2.1.2: with IGNNE# instructions execute as if there were no error; the flags stay.
#[test]
fn ignored_errors() {
    let mut b = divided(false);
    b.signals.ignne.store(true, Relaxed);
    b.ok(&WAIT);
    b.ok(&FLD1);
    assert!(b.signals.ferr.load(Relaxed));
    b.ok(&FNSTSW_AX);
    assert_eq!(b.get(RAX) & 0x84, 0x84);
    b.ok(&FNCLEX);
    assert!(!b.signals.ferr.load(Relaxed));
}

/// FXRSTOR of a clean state ends FERR#.
#[test]
fn restored_state() {
    let mut b = divided(false);
    b.signals.ignne.store(true, Relaxed);
    b.ok(&WAIT);
    assert!(b.signals.ferr.load(Relaxed));
    b.put::<u16>(DATA, 0x037f);
    b.put::<u32>(DATA + 24, 0x1f80);
    b.ok(&[0x0f, 0xae, 0x0b]);
    assert!(!b.signals.ferr.load(Relaxed));
}
