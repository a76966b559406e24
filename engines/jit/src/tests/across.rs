//! Instructions that lie in two pages, whose frames are apart.

use super::{DATA, End, Machine, STACK, TABLE};

/// The first page, its frame; two frames for the second.
const PAGE: u64 = 0x2_6000;
const FRAME: u64 = 0x2_a000;
const SECOND: [u64; 2] = [0x2_8000, 0x2_c000];
/// Of a page-table entry: present, writable.
const RW: u64 = 3;
const ROUNDS: u8 = 60;

const RET: u8 = 0xc3;

/// MOV EAX, 11223344h.
const MOVE: [u8; 5] = [0xb8, 0x44, 0x33, 0x22, 0x11];

fn entry(page: u64) -> u64 {
    TABLE + 8 * (page >> 12)
}

/// Puts a function that begins with `instruction`, `before` bytes of it in the first page. Gives where it is.
fn prepare(m: &mut Machine, instruction: &[u8], before: usize) -> u64 {
    m.put(entry(PAGE), &(FRAME | RW).to_le_bytes());
    m.put(entry(PAGE) + 8, &(SECOND[0] | RW).to_le_bytes());
    let (first, second) = instruction.split_at(before);
    m.put(FRAME + 4096 - before as u64, first);
    m.put(SECOND[0], second);
    m.put(SECOND[0] + second.len() as u64, &[RET; 64]);
    m.state.gpr = [0; 16];
    m.state.gpr[3] = PAGE + 4096;
    m.state.gpr[4] = STACK;
    m.state.gpr[6] = DATA[0];
    m.state.gpr[7] = DATA[0] + 0x100;
    m.state.gpr[8] = entry(PAGE) + 8;
    PAGE + 4096 - before as u64
}

/// Calls a function some times and adds what it gives in EAX to RDX; after `between` once more.
fn program(function: u64, between: &[u8]) -> Vec<u8> {
    let mut p = Vec::new();
    let calls = |p: &mut Vec<u8>| {
        p.extend([0xb9, ROUNDS, 0, 0, 0]);
        let again = p.len();
        p.push(0xe8);
        let next = super::CODE + p.len() as u64 + 4;
        p.extend((function.wrapping_sub(next) as u32).to_le_bytes());
        // add rdx, rax; dec ecx; jnz
        p.extend([0x48, 0x01, 0xc2, 0xff, 0xc9, 0x75]);
        p.push((again as i64 - p.len() as i64 - 1) as u8);
    };
    calls(&mut p);
    p.extend(between);
    calls(&mut p);
    p
}

/// What executes it.
type Make = fn() -> Machine;
const BOTH: [Make; 2] = [Machine::translated, || Machine::one_interpreted_of(1)];
/// With other vCPUs, whose stores may change code.
const SHARED: [Make; 2] = [
    || Machine::one_translated_of(2),
    || Machine::one_interpreted_of(2),
];

#[test]
fn they_do_what_they_do_in_one_page() {
    let instructions: [&[u8]; 9] = [
        &MOVE,
        // add rax, [rsi+8]; mov [rdi+8], rdx; inc dword [rsi+300h]
        &[0x48, 0x03, 0x46, 8],
        &[0x48, 0x89, 0x57, 8],
        &[0xff, 0x86, 0, 3, 0, 0],
        // lea rax, [rip+10h]; jmp 3 bytes further; jz there
        &[0x48, 0x8d, 0x05, 0x10, 0, 0, 0],
        &[0xe9, 3, 0, 0, 0],
        &[0x0f, 0x84, 3, 0, 0, 0],
        // STR EAX, which has no code; paddd xmm0, xmm0
        &[0x0f, 0x00, 0xc8],
        &[0x66, 0x0f, 0xfe, 0xc0],
    ];
    for instruction in instructions {
        for before in 1..instruction.len() {
            let found = BOTH.map(|make| {
                let mut m = make();
                let function = prepare(&mut m, instruction, before);
                m.put(DATA[0], &[3; 0x400]);
                let end = m.run(&program(function, &[]));
                let left = m.vcpu.profile().counts.get("left_for_block").copied();
                let memory: [u8; 0x400] = m.get(DATA[0]);
                (end, m.state.gpr, m.state.rflags, memory, left)
            });
            let [a, b] = found;
            assert_eq!(a.0, End::Whole, "{instruction:02x?}");
            assert_eq!(
                (a.0, a.1, a.2),
                (b.0, b.1, b.2),
                "{instruction:02x?} {before}"
            );
            assert_eq!(a.3, b.3, "{instruction:02x?} {before}");
            assert!(a.4 < Some(30), "left in each round: {:?}", a.4);
        }
    }
}

/// What the function gives after something was done to it.
fn second_value(before: usize, between: &[u8]) -> [u64; 2] {
    let alone = second_value_in(BOTH, before, between);
    assert_eq!(alone, second_value_in(SHARED, before, between));
    alone
}

fn second_value_in(machines: [Make; 2], before: usize, between: &[u8]) -> [u64; 2] {
    machines.map(|make| {
        let mut m = make();
        let function = prepare(&mut m, &MOVE, before);
        // The other frame has another end of it: AAh.
        let mut rest = MOVE[before..].to_vec();
        *rest.last_mut().unwrap() = 0xaa;
        m.put(SECOND[1], &rest);
        m.put(SECOND[1] + rest.len() as u64, &[RET; 64]);
        m.state.gpr[9] = SECOND[1] | RW;
        assert_eq!(m.run(&program(function, between)), End::Whole);
        m.state.gpr[2] - u64::from(ROUNDS) * 0x1122_3344
    })
}

#[test]
fn a_second_page_that_moves_is_followed() {
    for before in 1..5 {
        // mov [r8], r9; invlpg [rbx]
        let found = second_value(before, &[0x4d, 0x89, 0x08, 0x0f, 0x01, 0x3b]);
        assert_eq!(found, [0xaa22_3344 * u64::from(ROUNDS); 2]);
        // and by CR3: mov rax, cr3; mov cr3, rax
        let found = second_value(
            before,
            &[0x4d, 0x89, 0x08, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],
        );
        assert_eq!(found, [0xaa22_3344 * u64::from(ROUNDS); 2]);
    }
}

/// The TLB knows where it is now from what was executed there before.
#[test]
fn a_second_page_that_was_executed_where_it_is_now_is_followed() {
    for before in 1..5 {
        // mov [r8], r9; invlpg [rbx]; lea rax, [rbx+20h]; call rax
        let mut between = vec![0x4d, 0x89, 0x08, 0x0f, 0x01, 0x3b];
        between.extend([0x48, 0x8d, 0x43, 0x20, 0xff, 0xd0]);
        let found = second_value(before, &between);
        assert_eq!(found, [0xaa22_3344 * u64::from(ROUNDS); 2]);
    }
}

/// Where the TLB answers nothing, as while data breakpoints are looked for, the interpreter executes it.
#[test]
fn without_a_tlb_they_are_executed_all_the_same() {
    for make in BOTH {
        let mut m = make();
        let function = prepare(&mut m, &MOVE, 2);
        // Stores to a byte that nothing stores to: G0, R/W0 (SDM Vol 3 19.2.4).
        m.state.system.dr[0] = DATA[2];
        m.state.system.dr7 = 0x400 | 1 << 1 | 1 << 16;
        assert_eq!(m.run(&program(function, &[])), End::Whole);
        assert_eq!(m.state.gpr[2], 2 * u64::from(ROUNDS) * 0x1122_3344);
    }
}

#[test]
fn stores_to_either_page_change_it() {
    // mov byte [rbx-1], 77h; there is a byte of the value before the page's end
    let found = second_value(2, &[0xc6, 0x43, 0xff, 0x77]);
    assert_eq!(found, [0x1122_3377 * u64::from(ROUNDS); 2]);
    // mov byte [rbx+2], 77h
    let found = second_value(2, &[0xc6, 0x43, 2, 0x77]);
    assert_eq!(found, [0x7722_3344 * u64::from(ROUNDS); 2]);
}

/// MOV byte [RIP+d], 77h that changes bytes of its own in the second page, each time from what was there before.
#[test]
fn one_that_changes_itself() {
    for distance in [-1_i32, -2] {
        for before in 1..6 {
            let mut instruction = vec![0xc6, 0x05];
            instruction.extend(distance.to_le_bytes());
            instruction.push(0x77);
            let found = BOTH.map(|make| {
                let mut m = make();
                let function = prepare(&mut m, &instruction, before);
                let end = m.run(&program(function, &[]));
                let bytes: [u8; 16] = m.get(SECOND[0]);
                (end, m.state.gpr, bytes)
            });
            assert_eq!(found[0], found[1], "{distance} {before}");
        }
    }
}

/// The fault is one of the fetch, at the page that is missing (SDM Vol 3 4.7).
#[test]
fn a_second_page_that_goes_faults() {
    let ends = BOTH.map(|make| {
        let mut m = make();
        let function = prepare(&mut m, &MOVE, 3);
        // mov qword [r8], 0; invlpg [rbx]
        let between = [0x49, 0xc7, 0x00, 0, 0, 0, 0, 0x0f, 0x01, 0x3b];
        let end = m.run(&program(function, &between));
        (end, m.state.system.cr2, m.state.gpr)
    });
    assert_eq!(ends[0], ends[1]);
    assert!(matches!(ends[0].0, End::Fault { vector: 14, .. }));
    assert_eq!(ends[0].1, PAGE + 4096);
    assert_eq!(ends[0].2[2], u64::from(ROUNDS) * 0x1122_3344);
}
