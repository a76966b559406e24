//! Random programs of string instructions, interpreted and translated: states, memory, and counts have to be the
//! same.

use super::programs::{Programs, instructions};
use super::random::Random;
use super::{CODE, DATA, End, Machine, TABLE};

/// MOVSB, MOVSD, CMPSB, CMPSD, STOSB, STOSD, LODSB, LODSD, SCASB, SCASD; some take a size.
const OPCODES: [u8; 10] = [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf];

fn instruction(random: &mut Random, out: &mut Vec<u8>) {
    match random.below(12) {
        0 => out.push(0xfd),
        1..=3 => out.push(0xfc),
        // mov rcx, r12; mov rsi, r13; mov rdi, r14
        4 => out.extend([0x4c, 0x89, 0xe1]),
        5 => out.extend([0x4c, 0x89, 0xee]),
        6 => out.extend([0x4c, 0x89, 0xf7]),
        _ => {}
    }
    match random.below(8) {
        0..=2 => {}
        3..=5 => out.push(0xf3),
        6 => out.push(0xf2),
        _ => out.extend([0x64, 0xf3]),
    }
    match random.below(6) {
        0 | 1 => out.push(0x48),
        2 => out.push(0x66),
        3 => out.push(0x67),
        _ => {}
    }
    out.push(random.pick(&OPCODES));
}

fn address(random: &mut Random) -> u64 {
    // Often beside each other, or at the end of a page that has none behind it.
    let page = random.pick(&[DATA[0], DATA[0], DATA[1], DATA[0] + 0x1000]);
    page + random.pick(&[0, 1, 0x10, 0x18, 0x33, 0x800, 0xfc0, 0xff8, 0xfff])
}

/// A page that has been executed is copied to, then filled. That takes a few walks of the page tables, not one for each
/// byte, and what is executed there afterwards is what was stored (SDM Vol 3 9.1.3).
#[test]
fn a_page_with_code_is_stored_to_at_once() {
    const PAGE: u64 = 0x1_4000;
    const WRITABLE: u64 = 3;
    const DIRTY: u64 = 1 << 6;
    // call r12; add ebx, eax; call r13; add ebx, eax
    let calls = [0x41, 0xff, 0xd4, 0x01, 0xc3, 0x41, 0xff, 0xd5, 0x01, 0xc3];
    let program = [
        &calls[..],
        // rep movsb
        &[0xf3, 0xa4],
        &calls,
        // mov eax, c3h; mov ecx, 4096; sub rdi, 4096; rep stosb
        &[0xb8, 0xc3, 0, 0, 0, 0xb9, 0, 0x10, 0, 0],
        &[0x48, 0x81, 0xef, 0, 0x10, 0, 0, 0xf3, 0xaa],
        &calls,
    ];
    for mut m in [
        Machine::translated(),
        Machine::translated_from(1),
        Machine::one_interpreted_of(1),
        Machine::one_translated_of(2),
    ] {
        let entry = TABLE + 8 * (PAGE >> 12);
        m.put(entry, &(PAGE | WRITABLE).to_le_bytes());
        for (page, number) in [(PAGE, 1), (DATA[0], 2)] {
            for at in [0x100, 0x900] {
                // mov eax, number; ret
                m.put(page + at, &[0xb8, number, 0, 0, 0, 0xc3]);
            }
        }
        m.state.gpr = [0; 16];
        m.state.gpr[1] = 4096;
        m.state.gpr[4] = super::STACK;
        m.state.gpr[6] = DATA[0];
        m.state.gpr[7] = PAGE;
        m.state.gpr[12] = PAGE + 0x100;
        m.state.gpr[13] = PAGE + 0x900;
        assert_eq!(m.run(&program.concat()), End::Whole);
        assert_eq!(m.state.gpr[3], 2 * (1 + 2 + 0xc3));
        assert_eq!(m.get::<4096>(PAGE), [0xc3; 4096]);
        let entry = u64::from_le_bytes(m.get(entry));
        assert_eq!(entry & DIRTY, DIRTY);
        let walks = m.vcpu.profile().counts["tlb_walks"];
        assert!(walks < 100, "{walks}");
    }
}

/// The same where the page may not be written to: a page fault at the first element, and nothing is stored.
#[test]
fn a_page_with_code_that_is_read_only_is_not_stored_to() {
    const PAGE: u64 = 0x1_4000;
    for store in [0xa4, 0xaa] {
        for mut m in [Machine::translated(), Machine::one_interpreted_of(1)] {
            m.put(TABLE + 8 * (PAGE >> 12), &(PAGE | 1).to_le_bytes());
            m.put(PAGE, &[0xb8, 1, 0, 0, 0, 0xc3]);
            m.state.gpr[1] = 4096;
            m.state.gpr[6] = DATA[0];
            m.state.gpr[7] = PAGE;
            // call rdi; mov rax, [rdi]; rep
            let program = [0xff, 0xd7, 0x48, 0x8b, 0x07, 0xf3, store];
            assert_eq!(m.run(&program), End::Fault { vector: 14, at: 5 });
            assert_eq!(m.state.gpr[1], 4096);
            assert_eq!(m.get::<6>(PAGE), [0xb8, 1, 0, 0, 0, 0xc3]);
        }
    }
}

/// An instruction that stores over itself and what is behind it goes on as it was, and then with what is there now.
#[test]
fn a_string_is_stored_over_its_own_instruction() {
    // rep movsb, from rsi; mov eax, 1
    let program = [0xf3, 0xa4, 0xb8, 1, 0, 0, 0];
    for mut m in [
        Machine::translated(),
        Machine::translated_from(1),
        Machine::one_interpreted_of(1),
    ] {
        m.put(TABLE + 8 * (CODE >> 12), &(CODE | 3).to_le_bytes());
        // nop; nop; mov eax, 2
        m.put(DATA[0], &[0x90, 0x90, 0xb8, 2, 0, 0, 0]);
        m.state.gpr[1] = 7;
        m.state.gpr[6] = DATA[0];
        m.state.gpr[7] = CODE;
        assert_eq!(m.run(&program), End::Whole);
        assert_eq!(m.state.gpr[0], 2);
    }
}

#[test]
fn strings_do_the_same() {
    do_the_same(1, 0..8_000);
}

#[test]
fn strings_of_one_of_two_do_the_same() {
    do_the_same(2, 8_000..11_000);
}

fn do_the_same(vcpus: u32, seeds: std::ops::Range<u64>) {
    let memory = |memory: &mut [u8]| {
        let random = &mut Random(3);
        for byte in &mut memory[DATA[0] as usize..DATA[2] as usize] {
            // So that compares go on for a while.
            *byte = u8::from(random.below(40) == 0);
        }
    };
    let prepare = |m: &mut Machine, random: &mut Random| {
        m.state.gpr[0] = random.pick(&[0, 0, 1, random.0]);
        let counts = [0, 1, 3, 7, 8, 40, 63, 64, 200, 512, 4096, 5000];
        m.state.gpr[1] = random.pick(&counts);
        m.state.gpr[6] = address(random);
        m.state.gpr[7] = address(random);
        m.state.gpr[12] = random.pick(&counts);
        m.state.gpr[13] = address(random);
        m.state.gpr[14] = address(random);
        m.state.segments[4].base = random.below(2) as u64 * 8;
        m.state.rflags = 2 | random.next() & 0x8d5;
    };
    let programs = Programs {
        vcpus,
        slices: 0,
        seeds,
        whole: 2,
        memory: &memory,
        program: &|seed| Some(instructions(seed << 32 | 11, 5, instruction)),
        prepare: &prepare,
        msrs: &[],
    };
    programs.do_the_same();
}
