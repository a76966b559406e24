//! Programs of random bytes, interpreted and translated. What a guest writes becomes code of the host: whatever the
//! bytes mean, it has to be that and nothing else.

use super::programs::{Programs, instructions, with_end};
use super::random::Random;
use super::{CODE, DATA, Machine, STACK};

const PREFIXES: [u8; 28] = [
    0x66, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x40, 0x41, 0x42, 0x43,
    0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f,
];

/// Something that may be an instruction.
fn instruction(random: &mut Random, out: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        out.push(random.pick(&PREFIXES));
    }
    match random.below(8) {
        0..=2 => {}
        3 | 4 => out.push(0x0f),
        5 => out.extend([0x0f, random.pick(&[0x38, 0x3a])]),
        6 => out.extend([0xc5, random.next() as u8]),
        _ => {
            let map = 1 + random.below(3) as u8;
            out.extend([0xc4, random.next() as u8 & 0xe0 | map, random.next() as u8]);
        }
    }
    out.push(random.next() as u8);
    // A small displacement, if it is one, and an immediate.
    out.push(random.next() as u8);
    let tail = random.next().to_le_bytes();
    match random.below(4) {
        0 => {}
        1 => out.push(tail[0]),
        2 => out.extend([tail[0], 0, 0, 0]),
        _ => out.extend(&tail[..5]),
    }
}

/// Whether it leaves flags undefined that the two may set otherwise.
fn undefined(program: &[u8]) -> bool {
    use iced_x86::Mnemonic as M;
    let decoder = iced_x86::Decoder::with_ip(64, program, CODE, 0);
    decoder.into_iter().any(|i| {
        let logic = matches!(i.mnemonic(), M::And | M::Or | M::Xor | M::Test);
        // The decoder takes a rotation by a multiple of nine for none.
        let carry = matches!(i.mnemonic(), M::Rcl | M::Rcr);
        i.rflags_undefined() != 0 && !logic || carry
    })
}

fn prepare(m: &mut Machine, random: &mut Random) {
    for register in 0..16 {
        m.state.gpr[register] = match random.below(4) {
            0 => random.next(),
            1 => random.next() & 0x3f,
            _ => random.pick(&DATA) + 64 * random.below(60) as u64,
        };
        let value = u128::from(random.next()) << 64 | u128::from(random.next());
        m.set_xmm(register, value);
        m.state.extended.ymm_high[register] = value.rotate_left(32);
    }
    m.state.gpr[4] = STACK;
    m.set_mxcsr(0x1f80);
    m.state.rflags = 2 | random.next() & 0x8d5;
}

#[test]
fn random_bytes_do_the_same() {
    do_the_same(1, 0..20_000);
}

/// What the others are told of has to be the same too.
#[test]
fn random_bytes_of_one_of_two_do_the_same() {
    do_the_same(2, 20_000..30_000);
}

fn do_the_same(vcpus: u32, seeds: std::ops::Range<u64>) {
    let memory = |memory: &mut [u8]| {
        let random = &mut Random(1);
        for page in DATA {
            memory[page as usize..][..4096].fill_with(|| random.next() as u8);
        }
    };
    let program = |seed: u64| {
        let program = instructions(seed << 32 | 7, 4, instruction);
        (!undefined(&with_end(&program))).then_some(program)
    };
    let programs = Programs {
        vcpus,
        slices: 0,
        seeds,
        whole: 20,
        memory: &memory,
        program: &program,
        prepare: &prepare,
        msrs: &[],
    };
    programs.do_the_same();
}
