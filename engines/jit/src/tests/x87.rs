//! Random programs of x87 instructions, with others between them, interpreted and translated: states, memory, and
//! counts have to be the same.

use super::programs::{Programs, instructions};
use super::random::Random;
use super::{DATA, Machine};

fn instruction(random: &mut Random, out: &mut Vec<u8>) {
    match random.below(16) {
        // mulps xmm0, xmm1; vaddps ymm2, ymm2, ymm1
        0 => out.extend([0x0f, 0x59, 0xc1]),
        1 => out.extend([0xc5, 0xec, 0x58, 0xd1]),
        // By its handler: XLATB.
        2 => out.push(0xd7),
        // fnstsw ax; inc edx
        3 => out.extend([0xdf, 0xe0]),
        4 => out.extend([0xff, 0xc2]),
        // fldcw and fnstcw [rsi + displacement]: words that mask everything, and others
        5 => {
            let at = random.pick(&[0x700, 0x702, 0x704, 0x706]);
            out.extend([0xd9, random.pick(&[0xae, 0xbe])]);
            out.extend(i32::to_le_bytes(at));
        }
        // fninit
        6 if random.below(6) == 0 => out.extend([0xdb, 0xe3]),
        7..=11 => {
            let opcode = 0xd8 + random.below(8) as u8;
            let modrm = 0xc0 + random.below(64) as u8;
            out.extend([opcode, modrm]);
        }
        _ => {
            if random.below(12) == 0 {
                out.push(random.pick(&[0x64, 0x48, 0x66]));
            }
            // No environments.
            let opcode = random.pick(&[0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf]);
            let reg = match opcode {
                0xd9 | 0xdd => random.pick(&[0, 2, 3, 3]),
                _ => random.below(8) as u8,
            };
            let base = random.pick(&[3, 6, 7]);
            out.extend([opcode, 0x80 | reg << 3 | base]);
            let across = if random.below(20) == 0 { 0xff9 } else { 0 };
            let at = random.below(40) as i32 * 8 + across;
            out.extend(at.to_le_bytes());
        }
    }
}

/// What programs have in memory: floating-point numbers of the three widths, integers, and anything.
fn fill(random: &mut Random, memory: &mut [u8]) {
    for word in memory.chunks_exact_mut(8) {
        let any = random.next();
        let value = match random.below(5) {
            0 => f64::to_bits(random.below(1000) as f64 / 8.0),
            1 => u64::from(f32::to_bits(random.below(100) as f32 - 50.0)),
            2 => random.below(100) as u64,
            3 => 1 << 63 | any >> 1,
            _ => any,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

#[test]
fn x87_programs_do_the_same() {
    do_the_same(1, 0..8_000);
}

#[test]
fn x87_programs_of_one_of_two_do_the_same() {
    do_the_same(2, 8_000..11_000);
}

fn do_the_same(vcpus: u32, seeds: std::ops::Range<u64>) {
    let memory = |memory: &mut [u8]| {
        for page in DATA {
            fill(&mut Random(page), &mut memory[page as usize..][..0x1000]);
        }
        for (place, control) in [0x37f_u16, 0x27f, 0xf7f, 0x372].into_iter().enumerate() {
            let at = DATA[0] as usize + 0x700 + 2 * place;
            memory[at..at + 2].copy_from_slice(&control.to_le_bytes());
        }
    };
    let program = |seed: u64| {
        const FNINIT: [u8; 2] = [0xdb, 0xe3];
        let rest = instructions(seed << 32 | 13, 12, instruction);
        Some([&FNINIT[..], &rest].concat())
    };
    let prepare = |m: &mut Machine, random: &mut Random| {
        m.state.gpr[0] = random.next() & 0xff;
        m.set_xmm(0, u128::from(random.next()));
        m.set_xmm(1, 0x3f80_0000_4080_0000);
        m.state.segments[4].base = random.below(2) as u64 * 8;
        m.state.rflags = 2 | random.next() & 0x8d5;
    };
    let programs = Programs {
        vcpus,
        slices: 0,
        seeds,
        whole: 2,
        memory: &memory,
        program: &program,
        prepare: &prepare,
        msrs: &[],
    };
    programs.do_the_same();
}
