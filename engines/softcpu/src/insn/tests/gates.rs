//! Call gates and 16-bit gates outside IA-32e mode (SDM Vol 3 5.8, 6.12; Vol 2, CALL, JMP, INT n).

use x86defs::exception::{GP, NP, SS, TS};

use crate::cpu::gpr::*;
use crate::cpu::sreg;
use crate::testing::*;

const GATE: u16 = 0x100;
/// 16-bit code of privilege 0, conforming code of privilege 0.
const CODE16: u16 = 0x108;
const CONFORMING: u16 = 0x110;
const INNER: u64 = 0x2_4000;
const STACK0: u64 = 0x4_8000;

fn gate(b: &Bench, kind: u64, selector: u16, offset: u64, parameters: u64) {
    let low = (offset & 0xffff) | u64::from(selector) << 16;
    b.put(
        GDT + u64::from(GATE),
        low | parameters << 32 | kind << 40 | (offset >> 16) << 48,
    );
}

/// 32-bit protected mode at CPL 3.
fn user() -> Bench {
    let mut b = Bench::protected_user();
    b.cpu().gdtr.limit = 0xfff;
    b.put::<u64>(GDT + u64::from(CODE16), 0x0000_9b00_0000_ffff);
    b.put::<u64>(GDT + u64::from(CONFORMING), 0x00cf_9f00_0000_ffff);
    b.put(TSS + 4, STACK0 as u32);
    b.put(TSS + 8, u32::from(sel::DATA));
    b
}

fn call(b: &mut Bench) -> Outcome {
    b.run(&[0x9a, 0, 0, 0, 0, GATE as u8 | 3, 1])
}

/// What the handler of a fault found: error code, EIP, CS.
fn frame(b: &Bench) -> [u32; 3] {
    std::array::from_fn(|i| b.at(b.get(RSP) + 4 * i as u64))
}

/// 5.8.5: SS, ESP, the parameters in their order, CS and EIP on the inner stack.
#[test]
fn parameters_are_copied() {
    let mut b = user();
    gate(&b, 0xec, sel::CODE32, INNER, 3);
    for i in 0..4 {
        b.put(STACK + 4 * i, 0x1000 + i as u32);
    }
    assert_eq!(call(&mut b), Outcome::Next(INNER));
    assert_eq!(b.get(RSP), STACK0 - 28);
    let words: Vec<u32> = (0..7).map(|i| b.at(STACK0 - 28 + 4 * i)).collect();
    let user = [u32::from(sel::USER_CODE32), u32::from(sel::USER_DATA)];
    assert_eq!(
        words,
        [
            CODE as u32 + 7,
            user[0],
            0x1000,
            0x1001,
            0x1002,
            STACK as u32,
            user[1]
        ]
    );
    assert_eq!(b.cpu().cpl, 0);
    assert_eq!(b.cpu().seg[sreg::CS].selector.0, sel::CODE32);
    assert_eq!(b.cpu().seg[sreg::SS].selector.0, sel::DATA);
    // RETF 12 releases them on both sides.
    assert_eq!(b.run(&[0xca, 12, 0]), Outcome::Next(CODE + 7));
    assert_eq!(b.get(RSP), STACK + 12);
    assert_eq!(b.cpu().cpl, 3);
}

/// The same with a 16-bit gate: words of 16 bits, an offset of 16 bits.
#[test]
fn sixteen_bit_call_gate() {
    let mut b = user();
    gate(&b, 0xe4, CODE16, 0xffff_4000, 2);
    for i in 0..4 {
        b.put(STACK + 2 * i, 0x1000 + i as u16);
    }
    assert_eq!(call(&mut b), Outcome::Next(0x4000));
    assert_eq!(b.get(RSP), STACK0 - 12);
    let words: Vec<u16> = (0..6).map(|i| b.at(STACK0 - 12 + 2 * i)).collect();
    assert_eq!(
        words,
        [7, sel::USER_CODE32, 0x1000, 0x1001, 0, sel::USER_DATA]
    );
    assert_eq!(b.cpu().seg[sreg::CS].selector.0, CODE16);
}

/// 5.8.4: JMP reaches conforming code, and nonconforming code only of the same privilege; neither switches stacks.
#[test]
fn jump_through_a_gate() {
    let mut b = user();
    gate(&b, 0xec, CONFORMING, INNER, 3);
    let jmp = [0xea, 0, 0, 0, 0, GATE as u8 | 3, 1];
    assert_eq!(b.run(&jmp), Outcome::Next(INNER));
    assert_eq!(b.cpu().cpl, 3);
    assert_eq!(b.get(RSP), STACK);
    let mut b = user();
    gate(&b, 0xec, sel::CODE32, INNER, 0);
    assert_eq!(b.run(&jmp), Outcome::Vector(GP));
    assert_eq!(frame(&b)[..2], [u32::from(sel::CODE32), CODE as u32]);
    // CALL to conforming code stays on its stack.
    let mut b = user();
    gate(&b, 0xec, CONFORMING, INNER, 3);
    assert_eq!(call(&mut b), Outcome::Next(INNER));
    assert_eq!(b.get(RSP), STACK - 8);
    assert_eq!(b.at::<u32>(STACK - 8), CODE as u32 + 7);
}

/// Faults on the way leave the caller as it was.
#[test]
fn call_gate_faults() {
    type Prepare = fn(&mut Bench);
    let cases: [(&str, Prepare, u8, u32); 9] = [
        (
            "privilege of the gate",
            |b| gate(b, 0x8c, sel::CODE32, INNER, 0),
            GP,
            0x100,
        ),
        (
            "not present",
            |b| gate(b, 0x6c, sel::CODE32, INNER, 0),
            NP,
            0x100,
        ),
        ("null target", |b| gate(b, 0xec, 0, INNER, 0), GP, 0),
        (
            "data as target",
            |b| gate(b, 0xec, sel::DATA, INNER, 0),
            GP,
            0x10,
        ),
        (
            "an offset beyond the limit",
            |b| {
                gate(b, 0xec, CODE16, INNER, 0);
            },
            GP,
            0,
        ),
        (
            "TSS too short",
            |b| {
                gate(b, 0xec, sel::CODE32, INNER, 0);
                b.cpu().tr.limit = 8;
            },
            TS,
            0x18,
        ),
        (
            "a stack of another level",
            |b| {
                gate(b, 0xec, sel::CODE32, INNER, 0);
                b.put(TSS + 8, u32::from(sel::USER_DATA));
            },
            TS,
            0x30,
        ),
        (
            "null stack",
            |b| {
                gate(b, 0xec, sel::CODE32, INNER, 0);
                b.put(TSS + 8, 0u32);
            },
            TS,
            0,
        ),
        (
            "no room on the new stack",
            |b| {
                gate(b, 0xec, sel::CODE32, INNER, 0);
                b.put(TSS + 4, 12u32);
                b.put(TSS + 8, 0x118u32);
                b.put::<u64>(GDT + 0x118, 0x0040_9300_0000_0fff);
            },
            SS,
            0x118,
        ),
    ];
    for (what, prepare, vector, error) in cases {
        let mut b = user();
        prepare(&mut b);
        // The exception's own handler runs at CPL 3, so that it needs no stack of the TSS.
        let v = u64::from(vector);
        let entry: u64 = b.at(IDT + 8 * v);
        let selector = u64::from(sel::USER_CODE32);
        b.put(IDT + 8 * v, entry & !0xffff_0000 | selector << 16);
        assert_eq!(call(&mut b), Outcome::Vector(vector), "{what}");
        assert_eq!(frame(&b)[..2], [error, CODE as u32], "{what}");
        assert_eq!(b.get(RSP), STACK - 16, "{what}");
    }
}

/// 6.12.1: a 16-bit interrupt gate pushes words of 16 bits; a trap gate leaves IF.
#[test]
fn sixteen_bit_interrupt_gates() {
    for (kind, interrupts) in [(0xe6u64, 0), (0xe7, 0x200)] {
        let mut b = user();
        b.cpu().set_rflags(0x3246);
        b.put(
            IDT + 8 * 0x50,
            0x4000 | u64::from(CODE16) << 16 | kind << 40 | 0xffff << 48,
        );
        assert_eq!(b.run(&[0xcd, 0x50]), Outcome::Next(0x4000));
        assert_eq!(b.get(RSP), STACK0 - 10);
        let words: Vec<u16> = (0..5).map(|i| b.at(STACK0 - 10 + 2 * i)).collect();
        assert_eq!(words, [2, sel::USER_CODE32, 0x3246, 0, sel::USER_DATA]);
        assert_eq!(b.cpu().rflags() & 0x200, interrupts);
    }
}

/// Vol 2, INT n: room for the whole frame is checked before the offset, and both before anything is pushed.
#[test]
fn no_room_for_the_frame() {
    let mut b = user();
    b.put(TSS + 4, 8u32);
    b.put(TSS + 8, 0x118u32);
    b.put::<u64>(GDT + 0x118, 0x0040_9300_0000_0fff);
    let entry: u64 = b.at(IDT + 8 * 12);
    let selector = u64::from(sel::USER_CODE32);
    b.put(IDT + 8 * 12, entry & !0xffff_0000 | selector << 16);
    assert_eq!(b.run(&[0xcd, 0x50]), Outcome::Vector(SS));
    assert_eq!(frame(&b)[..2], [0x118, CODE as u32]);
    assert_eq!(b.at::<u32>(0), 0);
}

/// Vol 2, CALL: a far call without room for both words pushes none.
#[test]
fn no_room_for_a_far_call() {
    let mut b = user();
    b.cpu().seg[sreg::SS].limit = 0xfff;
    b.set(RSP, 4);
    let selector = sel::USER_CODE32 as u8;
    assert_eq!(b.run(&[0x9a, 0, 0, 2, 0, selector, 0]), Outcome::Vector(SS));
    assert_eq!(frame(&b)[..2], [0, CODE as u32]);
    assert_eq!(b.at::<u32>(b.get(RSP) + 16), 4, "ESP of the caller");
    assert_eq!(b.at::<u32>(0), 0);
}
