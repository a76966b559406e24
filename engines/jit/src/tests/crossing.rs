//! Reads of bytes that lie in two pages, whose frames are apart.

use super::{DATA, End, Machine, TABLE};

/// The first page, and the frames of both.
const PAGE: u64 = 0x2_6000;
const FRAMES: [u64; 2] = [0x2_a000, 0x2_8000];
/// A page that is not there, behind one that is.
const MISSING: u64 = 0x2_f000;
/// Rounds of a loop: enough for it to be a region.
const ROUNDS: u8 = 60;
/// Of a page-table entry: present, writable; accessed.
const RW: u64 = 3;
const A: u64 = 1 << 5;

fn entry(page: u64) -> u64 {
    TABLE + 8 * (page >> 12)
}

/// RBX is the address, RSI leads to where what was read goes.
fn prepare(m: &mut Machine, address: u64) {
    for (n, frame) in FRAMES.into_iter().enumerate() {
        m.put(entry(PAGE) + 8 * n as u64, &(frame | RW).to_le_bytes());
        let bytes: Vec<u8> = (0..4096).map(|at| (at * 7 + n * 100) as u8).collect();
        m.put(frame, &bytes);
    }
    m.state.gpr = [0; 16];
    m.state.gpr[3] = address;
    m.state.gpr[4] = super::STACK;
    m.state.gpr[6] = DATA[0];
}

/// A loop: the carry is set, something read and stored, the carry added to RDX.
fn program(read: &[u8], store: &[u8]) -> Vec<u8> {
    let mut p = vec![0xb9, ROUNDS, 0, 0, 0, 0xf9];
    p.extend(read);
    // adc rdx, 0
    p.extend([0x48, 0x83, 0xd2, 0]);
    p.extend(store);
    // dec ecx; jnz
    let distance = 5 - 4 - p.len() as i64;
    p.extend([0xff, 0xc9, 0x75, distance as u8]);
    p
}

/// Size, the load, a store to `[rsi]`.
const READS: [(usize, &[u8], &[u8]); 8] = [
    (2, &[0x66, 0x8b, 0x03], &[0x66, 0x89, 0x06]),
    (4, &[0x8b, 0x03], &[0x89, 0x06]),
    (8, &[0x48, 0x8b, 0x03], &[0x48, 0x89, 0x06]),
    // add rax, [rbx], with RAX zero before; R10 is in memory: mov r10, [rbx]
    (
        8,
        &[0xb8, 0, 0, 0, 0, 0xf9, 0x48, 0x13, 0x03, 0xf9],
        &[0x48, 0xff, 0xc8, 0x48, 0x89, 0x06],
    ),
    (8, &[0x4c, 0x8b, 0x13], &[0x4c, 0x89, 0x16]),
    // xchg rbx, rsp; pop rbp; sub rsp, 8, with the carry set; xchg rbx, rsp; mov [rsi], rbp
    (
        8,
        &[
            0x48, 0x87, 0xdc, 0x5d, 0x48, 0x8d, 0x64, 0x24, 0xf8, 0x48, 0x87, 0xdc,
        ],
        &[0x48, 0x89, 0x2e],
    ),
    (16, &[0x0f, 0x10, 0x03], &[0x0f, 0x11, 0x06]),
    (32, &[0xc5, 0xfc, 0x10, 0x03], &[0xc5, 0xfc, 0x11, 0x06]),
];

#[test]
fn both_sides_of_a_page_end_are_read() {
    for (size, read, store) in READS {
        for before in 1..size {
            let mut m = Machine::translated();
            prepare(&mut m, PAGE + 4096 - before as u64);
            let first: [u8; 4096] = m.get(FRAMES[0]);
            let second: [u8; 4096] = m.get(FRAMES[1]);
            let wanted = [&first[4096 - before..], &second[..size - before]].concat();
            assert_eq!(m.run(&program(read, store)), End::Whole);
            let found: [u8; 32] = m.get(DATA[0]);
            assert_eq!(found[..size], wanted, "{read:02x?} {before}");
            assert_eq!(m.state.gpr[2], u64::from(ROUNDS), "the carry: {read:02x?}");
            // The handler when a page is not in the TLB yet, not in each round.
            assert!(m.vcpu.profile().counts["missed"] < 8, "{read:02x?}");
        }
    }
}

/// A page that is not there is that of the fault, with its first byte's address (SDM Vol 3 4.7).
#[test]
fn a_second_page_that_is_missing_faults() {
    // mov eax, [rbx]; cmp ecx, 5; cmovb rbx, rdi
    let body = [0x8b, 0x03, 0x83, 0xf9, 5, 0x48, 0x0f, 0x42, 0xdf];
    let p = program(&body, &[]);
    let ends = [Machine::translated(), Machine::one_interpreted_of(1)].map(|mut m| {
        prepare(&mut m, PAGE + 4093);
        m.put(entry(MISSING), &[0; 8]);
        m.state.gpr[7] = MISSING - 3;
        let end = m.run(&p);
        (end, m.state.system.cr2, m.state.gpr)
    });
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[0].1, MISSING);
    assert_eq!(ends[0].0, End::Fault { vector: 14, at: 6 });
    assert_eq!(ends[0].2[1], 3, "rounds left");
}

/// What is in the TLB is not walked to; the interpreter does the same.
#[test]
fn no_more_walks_than_interpreted() {
    for which in [0, 8] {
        // mov rax, [rbx]; mov [rdi], r14: the page's entry, not accessed
        let p = program(&[0x48, 0x8b, 0x03, 0x4c, 0x89, 0x37], &[]);
        let accessed = [Machine::translated(), Machine::one_interpreted_of(1)].map(|mut m| {
            prepare(&mut m, PAGE + 4093);
            m.state.gpr[7] = entry(PAGE) + which;
            m.state.gpr[14] = FRAMES[which as usize / 8] | RW;
            assert_eq!(m.run(&p), End::Whole);
            let entries = [0, 8].map(|n| u64::from_le_bytes(m.get(entry(PAGE) + n)) & A);
            (entries, m.state.gpr)
        });
        assert_eq!(accessed[0], accessed[1]);
    }
}
