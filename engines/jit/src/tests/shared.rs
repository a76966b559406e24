//! One of several vCPUs: what it stores, the others are told of.

use super::{CODE, DATA, End, Machine, STACK};

const ALL: u64 = 32;

/// Each kind of store, where it stores from RSI (the first page of data) or RSP on, and how many bytes. Behind them
/// the same again, by then with rights to write in the TLB.
const STORES: [(&str, &[u8], u64, u64); 28] = [
    ("mov [rsi+1], al", &[0x88, 0x46, 1], DATA[0] + 1, 1),
    ("mov [rsi+1], ah", &[0x88, 0x66, 1], DATA[0] + 1, 1),
    ("mov [rsi+2], ax", &[0x66, 0x89, 0x46, 2], DATA[0] + 2, 2),
    ("mov [rsi+4], eax", &[0x89, 0x46, 4], DATA[0] + 4, 4),
    ("mov [rsi+8], r15", &[0x4c, 0x89, 0x7e, 8], DATA[0] + 8, 8),
    ("mov [rsi], 5", &[0xc7, 0x06, 5, 0, 0, 0], DATA[0], 4),
    ("movnti [rsi], eax", &[0x0f, 0xc3, 0x06], DATA[0], 4),
    ("movbe [rsi], eax", &[0x0f, 0x38, 0xf1, 0x06], DATA[0], 4),
    ("add [rsi], r10", &[0x4c, 0x01, 0x16], DATA[0], 8),
    ("inc byte [rsi]", &[0xfe, 0x06], DATA[0], 1),
    ("shl dword [rsi], cl", &[0xd3, 0x26], DATA[0], 4),
    ("sete [rsi]", &[0x0f, 0x94, 0x06], DATA[0], 1),
    ("bts [rsi], 3", &[0x0f, 0xba, 0x2e, 3], DATA[0], 4),
    ("lock add [rsi], eax", &[0xf0, 0x01, 0x06], DATA[0], 4),
    ("xchg [rsi], r11", &[0x4c, 0x87, 0x1e], DATA[0], 8),
    (
        "lock xadd [rsi], r9",
        &[0xf0, 0x4c, 0x0f, 0xc1, 0x0e],
        DATA[0],
        8,
    ),
    (
        "lock cmpxchg [rsi], r10",
        &[0xf0, 0x4c, 0x0f, 0xb1, 0x16],
        DATA[0],
        8,
    ),
    ("stmxcsr [rsi]", &[0x0f, 0xae, 0x1e], DATA[0], 4),
    ("movss [rsi], xmm1", &[0xf3, 0x0f, 0x11, 0x0e], DATA[0], 4),
    ("movups [rsi], xmm1", &[0x0f, 0x11, 0x0e], DATA[0], 16),
    (
        "vmovups [rsi], ymm1",
        &[0xc5, 0xfc, 0x11, 0x0e],
        DATA[0],
        32,
    ),
    ("fnstcw [rsi]", &[0xd9, 0x3e], DATA[0], 2),
    (
        "fld1; fstp tbyte [rsi]",
        &[0xd9, 0xe8, 0xdb, 0x3e],
        DATA[0],
        10,
    ),
    (
        "fld1; fistp word [rsi]",
        &[0xd9, 0xe8, 0xdf, 0x1e],
        DATA[0],
        2,
    ),
    ("push r10; pop r10", &[0x41, 0x52, 0x41, 0x5a], STACK - 8, 8),
    ("push 5; pop r10", &[0x6a, 5, 0x41, 0x5a], STACK - 8, 8),
    ("pushfq; pop r10", &[0x9c, 0x41, 0x5a], STACK - 8, 8),
    (
        "call behind it; pop r10",
        &[0xe8, 0, 0, 0, 0, 0x41, 0x5a],
        STACK - 8,
        8,
    ),
];

/// Before and behind it vector instructions, which the telling must not lose.
#[test]
fn each_kind_of_store_is_told() {
    const ADD: [u8; 4] = [0x66, 0x0f, 0xfe, 0xe4];
    for (name, store, at, len) in STORES {
        for mut m in [
            Machine::one_translated_of(2),
            Machine::one_interpreted_of(2),
        ] {
            m.set_xmm(4, 1);
            m.state.gpr[1] = 3;
            let program = [&ADD[..], store, &ADD, store, &ADD].concat();
            assert_eq!(m.run(&program), End::Whole, "{name}");
            let told: Vec<_> = m.told().into_iter().filter(|t| t.0 < 0x3_0000).collect();
            let there = |t: &&(u64, u64)| (DATA[0]..DATA[0] + ALL).contains(&t.0) || t.0 == at;
            let there: Vec<_> = told.iter().filter(there).collect();
            assert_eq!(there, [&(at, len); 2], "{name}");
            assert_eq!(m.xmm(4), 8, "{name}");
            assert_eq!(m.state.gpr[4], STACK, "{name}");
        }
    }
}

/// A call through a register finds its target before it pushes, and has it still when that was told.
#[test]
fn a_call_that_is_told_of_arrives() {
    let mut m = Machine::one_translated_of(2);
    // mov ecx, 9; again: paddd xmm4, xmm4; lea rax, [rip+9]; call rax; dec ecx; jnz again; jmp out; nop;
    // rax: add edx, 1; lea r8, [rip]; ret
    let program: &[u8] = &[
        0xb9, 9, 0, 0, 0, 0x66, 0x0f, 0xfe, 0xe4, 0x48, 0x8d, 0x05, 9, 0, 0, 0, 0xff, 0xd0, 0xff,
        0xc9, 0x75, 0xef, 0xeb, 12, 0x90, 0x83, 0xc2, 1, 0x4c, 0x8d, 0x05, 0, 0, 0, 0, 0xc3,
    ];
    m.set_xmm(4, 1);
    assert_eq!(m.run(program), End::Whole);
    assert_eq!(m.state.gpr[2], 9);
    assert_eq!(m.state.gpr[8], CODE + 35, "it knows its page");
    assert_eq!(m.xmm(4), 1 << 9);
    let pushed = m.told().iter().filter(|t| **t == (STACK - 8, 8)).count();
    assert_eq!(pushed, 9);
}
