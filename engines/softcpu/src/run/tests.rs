use std::sync::atomic::Ordering;

use guestmem::RamOffset;
use x86defs::exception::DB;
use x86defs::rflags;

use crate::cpu::gpr::{RAX, RSP};
use crate::cpu::{Shadow, pending};
use crate::testing::*;

/// MOV AL, 1.
const MOV: u16 = 0x01b0;

/// A bench with other vCPUs, in front of [`MOV`], whose operand another one makes 2 once it was decoded.
fn changing(mut b: Bench) -> (Bench, u64) {
    let at = b.get(crate::cpu::RIP);
    b.put(at, MOV);
    b.cpu().shared = true;
    b.runner.decoded = Some(Box::new(move |ram| ram.store(RamOffset(at + 1), 2_u8)));
    (b, at)
}

/// A step that finds its code changed does nothing; the next one executes what is there now.
fn nothing_then_mov(b: &mut Bench, at: u64) {
    assert_eq!(b.step(), Outcome::Next(at), "nothing was executed");
    assert!(b.runner.decoded.is_none(), "the code changed");
    assert_eq!(b.get(RAX), 0);
    assert_eq!(b.step(), Outcome::Next(at + 2));
    assert_eq!(b.get(RAX), 2);
}

/// SDM Vol 3 6.8.1, 6.8.3: STI and MOV SS hold off interrupts until after the next instruction.
#[test]
fn changed_code_keeps_the_interrupt_shadow() {
    let (sti, mov_ss): (&[u8], &[u8]) = (&[0xfb], &[0x8e, 0xd0]);
    for (code, shadow) in [(sti, Shadow::Sti), (mov_ss, Shadow::MovSs)] {
        let mut b = Bench::long();
        if shadow == Shadow::MovSs {
            b.cpu().set_rflags(0x202);
            b.set(RAX, u64::from(sel::DATA));
        }
        b.ok(code);
        b.set(RAX, 0);
        b.signals.interrupt.store(0x40, Ordering::Relaxed);
        b.cpu().pending |= pending::INTERRUPT;
        let (mut b, at) = changing(b);
        assert_eq!(b.cpu().shadow, shadow);
        nothing_then_mov(&mut b, at);
        assert_eq!(b.step(), Outcome::Vector(0x40));
        assert_eq!(b.at::<u64>(b.get(RSP)), at + 2, "after the instruction");
    }
}

/// 18.3.1.1: RF holds off a code breakpoint until the instruction is executed. 18.3.1.4: the single-step trap comes
/// after it.
#[test]
fn changed_code_keeps_rf_and_tf() {
    let (mut b, at) = changing(Bench::long());
    b.cpu().dr[0] = at;
    b.cpu().dr7 = 1;
    b.cpu().set_rflags(2 | rflags::RF | rflags::TF);
    b.cpu().debug_changed();
    nothing_then_mov(&mut b, at);
    assert_eq!(b.cpu().rflags() & rflags::RF, 0);
    assert_eq!(b.step(), Outcome::Vector(DB));
    assert_eq!(b.cpu().dr6 & 0x400f, 0x4000, "a single step");
    assert_eq!(b.at::<u64>(b.get(RSP)), at + 2);
}
