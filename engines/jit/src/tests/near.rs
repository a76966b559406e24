//! Short jumps that are rarely taken, and what they lead to.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use crate::asm::Asm;

const ORIGIN: u64 = 0x10_0000;

/// Where a JRCXZ at an offset leads, by way of a JMP.
fn leads_to(a: &Asm, at: usize) -> u64 {
    let decode = |at: usize| {
        let ip = ORIGIN + at as u64;
        Decoder::with_ip(64, &a.code[at..], ip, DecoderOptions::NONE).decode()
    };
    let short = decode(at);
    assert_eq!(short.mnemonic(), Mnemonic::Jrcxz);
    let jump = decode((short.near_branch_target() - ORIGIN) as usize);
    assert_eq!(jump.mnemonic(), Mnemonic::Jmp);
    jump.near_branch_target()
}

fn fill(a: &mut Asm, bytes: usize) {
    a.raw(&vec![0x90; bytes]);
}

#[test]
fn they_lead_where_they_are_aimed() {
    let mut a = Asm::new(ORIGIN);
    let early = (a.here(), a.rarely_if_zero());
    fill(&mut a, 10);
    let late = (a.here(), a.rarely_if_zero());
    a.aim(early.1, 0x1234);
    fill(&mut a, 20);
    a.island();
    a.aim(late.1, 0x4321);
    let next = (a.here(), a.rarely_if_zero());
    a.island();
    a.aim(next.1, 0x77);
    for (at, to) in [(early.0, 0x1234), (late.0, 0x4321), (next.0, 0x77)] {
        assert_eq!(leads_to(&a, at), ORIGIN + to);
    }
    assert!(!a.out_of_reach);
}

#[test]
fn code_that_goes_on_keeps_them_in_reach() {
    let mut a = Asm::new(ORIGIN);
    let mut all = Vec::new();
    for n in 0..40 {
        a.keep_in_reach(40);
        let at = a.here();
        let jump = a.rarely_if_zero();
        a.aim(jump, 0x1000 + n);
        all.push(at);
        fill(&mut a, 1 + n % 40);
    }
    a.island();
    assert!(!a.out_of_reach);
    for (n, at) in (0..).zip(all) {
        assert_eq!(leads_to(&a, at), ORIGIN + 0x1000 + n);
    }
    // Where nobody kept them, that is told.
    a.rarely_if_zero();
    fill(&mut a, 200);
    a.island();
    assert!(a.out_of_reach);
}

#[test]
fn what_is_taken_back_is_written_anew() {
    let mut a = Asm::new(ORIGIN);
    let kept = (a.here(), a.rarely_if_zero());
    fill(&mut a, 30);
    let start = a.here();
    a.keep_in_reach(100);
    assert!(a.here() > start, "an island");
    a.rarely_if_zero();
    fill(&mut a, 7);
    a.truncate(start);
    assert_eq!(a.here(), start);
    fill(&mut a, 3);
    let other = (a.here(), a.rarely_if_zero());
    a.aim(other.1, 0x50);
    a.island();
    a.aim(kept.1, 0x60);
    assert_eq!(leads_to(&a, kept.0), ORIGIN + 0x60);
    assert_eq!(leads_to(&a, other.0), ORIGIN + 0x50);
    assert!(!a.out_of_reach);
}
