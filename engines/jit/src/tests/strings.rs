//! Random programs of string instructions, interpreted and translated: states, memory, and counts have to be the
//! same.

use super::programs::{Programs, instructions};
use super::random::Random;
use super::{DATA, Machine};

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
