//! Random programs of vector instructions, interpreted and translated: states, memory, and counts have to be the
//! same.

use super::{DATA, End, Machine};

/// SplitMix64.
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// Legacy instructions on vector registers: mandatory prefix (0 for none), bytes from 0F on, bytes of immediate.
const LEGACY: [(u8, &[u8], usize); 40] = [
    (0, &[0x0f, 0x58], 0),
    (0x66, &[0x0f, 0x58], 0),
    (0xf2, &[0x0f, 0x58], 0),
    (0xf3, &[0x0f, 0x58], 0),
    (0, &[0x0f, 0x59], 0),
    (0xf2, &[0x0f, 0x59], 0),
    (0x66, &[0x0f, 0x5e], 0),
    (0xf3, &[0x0f, 0x5e], 0),
    (0, &[0x0f, 0x51], 0),
    (0xf2, &[0x0f, 0x5d], 0),
    (0, &[0x0f, 0x28], 0),
    (0, &[0x0f, 0x29], 0),
    (0x66, &[0x0f, 0x10], 0),
    (0x66, &[0x0f, 0x11], 0),
    (0xf2, &[0x0f, 0x10], 0),
    (0xf3, &[0x0f, 0x11], 0),
    (0, &[0x0f, 0x54], 0),
    (0, &[0x0f, 0x57], 0),
    (0, &[0x0f, 0x2e], 0),
    (0x66, &[0x0f, 0x2f], 0),
    (0xf2, &[0x0f, 0x5a], 0),
    (0, &[0x0f, 0x5b], 0),
    (0x66, &[0x0f, 0xfe], 0),
    (0x66, &[0x0f, 0xef], 0),
    (0x66, &[0x0f, 0xd4], 0),
    (0x66, &[0x0f, 0x6f], 0),
    (0x66, &[0x0f, 0x7f], 0),
    (0xf3, &[0x0f, 0x6f], 0),
    (0xf3, &[0x0f, 0x7f], 0),
    (0x66, &[0x0f, 0x61], 0),
    (0x66, &[0x0f, 0x70], 1),
    (0, &[0x0f, 0xc6], 1),
    (0, &[0x0f, 0xc2], 1),
    (0x66, &[0x0f, 0x38, 0x00], 0),
    (0x66, &[0x0f, 0x38, 0x17], 0),
    (0x66, &[0x0f, 0x38, 0x14], 0),
    (0x66, &[0x0f, 0x38, 0xdc], 0),
    (0x66, &[0x0f, 0x3a, 0x0f], 1),
    (0x66, &[0x0f, 0x3a, 0x63], 1),
    (0x66, &[0x0f, 0x3a, 0x62], 1),
];

/// VEX instructions: map, pp, opcode, L that it wants, whether it has a second source, bytes of immediate.
const VEX: [(u8, u8, u8, Option<u8>, bool, usize); 21] = [
    (1, 0, 0x58, None, true, 0),
    (1, 1, 0x59, None, true, 0),
    (1, 3, 0x5c, Some(0), true, 0),
    (1, 2, 0x5e, Some(0), true, 0),
    (1, 1, 0xfe, None, true, 0),
    (1, 1, 0xef, None, true, 0),
    (1, 1, 0x6f, None, false, 0),
    (1, 1, 0x7f, None, false, 0),
    (1, 2, 0x6f, None, false, 0),
    (1, 2, 0x7f, None, false, 0),
    (1, 1, 0xe7, None, false, 0),
    (1, 0, 0x5a, None, false, 0),
    (2, 1, 0xb8, None, true, 0),
    (2, 1, 0x18, None, false, 0),
    (2, 1, 0x17, None, false, 0),
    (2, 1, 0x00, None, true, 0),
    (2, 1, 0xdc, Some(0), true, 0),
    (3, 1, 0x18, Some(1), true, 1),
    (3, 1, 0x19, Some(1), false, 1),
    (3, 1, 0x4b, None, true, 1),
    (3, 1, 0x63, Some(0), false, 1),
];

/// Registers for addresses: RBX, RSI, RDI.
const BASES: [u8; 3] = [3, 6, 7];

/// ModRM and displacement: the field `reg`, and a register or an operand in memory. Gives the upper bit of the latter.
fn operands(random: &mut Random, reg: u8, out: &mut Vec<u8>) -> u8 {
    if random.chance(2) {
        let rm = random.below(16) as u8;
        out.push(0xc0 | reg << 3 & 0x38 | rm & 7);
        return rm >> 3;
    }
    let base = random.pick(&BASES);
    out.push(0x80 | reg << 3 & 0x38 | base);
    let whole = random.below(15) as i32 * 16;
    let across = random.chance(16);
    let odd = if random.chance(12) {
        random.below(16)
    } else {
        0
    };
    let at = if across { 0xff0 } else { whole } + odd as i32;
    out.extend(at.to_le_bytes());
    0
}

fn immediate(random: &mut Random, bytes: usize, out: &mut Vec<u8>) {
    for _ in 0..bytes {
        out.push(random.next() as u8);
    }
}

pub(super) fn instruction(random: &mut Random, out: &mut Vec<u8>) {
    let reg = random.below(16) as u8;
    let mut rest = Vec::new();
    match random.below(20) {
        0..=8 => {
            let (prefix, opcode, bytes) = random.pick(&LEGACY);
            let b = operands(random, reg, &mut rest);
            immediate(random, bytes, &mut rest);
            if prefix != 0 {
                out.push(prefix);
            }
            let rex = reg >> 3 << 2 | b;
            if rex != 0 {
                out.push(0x40 | rex);
            }
            out.extend(opcode);
        }
        9..=14 => {
            let (map, pp, opcode, long, second, bytes) = random.pick(&VEX);
            let b = operands(random, reg, &mut rest);
            immediate(random, bytes, &mut rest);
            let long = long.unwrap_or_else(|| random.below(2) as u8);
            let vvvv = if second { random.below(16) as u8 } else { 15 };
            let inverted = (1 - (reg >> 3)) << 7 | 1 << 6 | (1 - b) << 5;
            out.extend([0xc4, inverted | map, vvvv << 3 | long << 2 | pp, opcode]);
        }
        15 => {
            // CVTSI2SD, CVTTSS2SI, MOVMSKPS, MOVQ, PEXTRD: with R8 to R15, or RAX, RDX.
            let general = random.pick(&[0, 2, 8, 9, 10, 11, 13, 14, 15]);
            let (r, b) = (reg >> 3, general >> 3);
            let modrm = |reg: u8, rm: u8| 0xc0 | (reg & 7) << 3 | rm & 7;
            let code: &[u8] = match random.below(5) {
                0 => &[0xf2, 0x48 | r << 2 | b, 0x0f, 0x2a, modrm(reg, general)],
                1 => &[0xf3, 0x40 | b << 2 | r, 0x0f, 0x2c, modrm(general, reg)],
                2 => &[0x40 | b << 2 | r, 0x0f, 0x50, modrm(general, reg)],
                3 => &[0x66, 0x48 | r << 2 | b, 0x0f, 0x7e, modrm(reg, general)],
                _ => &[
                    0x66,
                    0x40 | r << 2 | b,
                    0x0f,
                    0x3a,
                    0x16,
                    modrm(reg, general),
                    1,
                ],
            };
            out.extend(code);
        }
        // Flags: ADD EAX, EDX; ADC R9D, EAX; CMC.
        16 => out.extend(random.pick::<&[u8]>(&[&[0x01, 0xd0], &[0x41, 0x11, 0xc1], &[0xf5]])),
        // By handlers: CLD, INVLPG of a page of data.
        17 => {
            out.extend(random.pick::<&[u8]>(&[&[0xfc], &[0x0f, 0x01, 0x3e], &[0x0f, 0x01, 0x3f]]))
        }
        // STMXCSR [RSI+64], LDMXCSR [RSI+64], MOV [RDI+8], EAX.
        18 => out.extend(random.pick::<&[u8]>(&[
            &[0x0f, 0xae, 0x5e, 64],
            &[0x0f, 0xae, 0x56, 64],
            &[0x89, 0x47, 8],
        ])),
        // VZEROUPPER.
        _ => out.extend([0xc5, 0xf8, 0x77]),
    }
    out.extend(rest);
}

fn prepare(m: &mut Machine, seed: u64) {
    let random = &mut Random(seed);
    for number in 0..16 {
        let float = |r: &mut Random| f64::from(r.next() as i32) / 16.0;
        let value = if random.chance(2) {
            u128::from(random.next()) << 64 | u128::from(random.next())
        } else {
            u128::from(float(random).to_bits()) << 64 | u128::from(float(random).to_bits())
        };
        m.set_xmm(number, value);
        m.state.extended.ymm_high[number] = value.rotate_left(32);
    }
    m.set_mxcsr(match random.below(6) {
        0 => 0x1f80 & random.next() as u32,
        1 => 0x1f80 | random.next() as u32 & 0xe07f,
        _ => 0x1f80,
    });
    for page in DATA {
        let bytes: Vec<u8> = (0..512).flat_map(|_| random.next().to_le_bytes()).collect();
        m.put(page, &bytes);
    }
    // What LDMXCSR loads: once in a while with something that is not masked, or with a bit too many.
    let mxcsr = match random.below(6) {
        0 => random.next() as u32 & 0xffff,
        1 => 0x1f80 | 1 << random.below(32),
        _ => 0x1f80 | random.next() as u32 & 0xe07f,
    };
    m.put(DATA[0] + 64, &mxcsr.to_le_bytes());
    for register in [0, 2, 8, 9, 10, 11, 13, 14, 15] {
        m.state.gpr[register] = random.next();
    }
    [m.state.gpr[6], m.state.gpr[7], m.state.gpr[3]] = DATA;
    m.state.gpr[4] = super::STACK;
    m.state.segments[1].selector.0 = 8;
    m.state.rflags = 2;
}

#[test]
fn random_programs_do_the_same() {
    do_the_same(1, 0..4000);
}

/// What the others are told of has to be the same too.
#[test]
fn random_programs_of_one_of_two_do_the_same() {
    do_the_same(2, 4000..6000);
}

fn do_the_same(vcpus: u32, seeds: std::ops::Range<u64>) {
    let mut translated = Machine::one_translated_of(vcpus);
    let mut interpreted = Machine::one_interpreted_of(vcpus);
    let least = (seeds.end - seeds.start) / 10;
    let mut whole = 0;
    for seed in seeds {
        let mut program = Vec::new();
        let random = &mut Random(seed << 32);
        for _ in 0..1 + random.below(40) {
            instruction(random, &mut program);
        }
        let [(end, retired), (other_end, other_retired)] =
            [&mut translated, &mut interpreted].map(|m| {
                prepare(m, seed);
                let before = m.vcpu.retired().unwrap();
                let end = m.run(&program);
                (end, m.vcpu.retired().unwrap() - before)
            });
        assert_eq!(end, other_end, "seed {seed}: {program:02x?}");
        assert_eq!(retired, other_retired, "seed {seed}: {program:02x?}");
        assert_eq!(
            translated.told(),
            interpreted.told(),
            "seed {seed}: {program:02x?}"
        );
        let (t, i) = (&translated.state, &interpreted.state);
        assert_eq!(t.extended, i.extended, "seed {seed}: {program:02x?}");
        assert_eq!(
            (t.gpr, t.rflags),
            (i.gpr, i.rflags),
            "seed {seed}: {program:02x?}"
        );
        for page in DATA {
            let same = translated.get::<8192>(page) == interpreted.get::<8192>(page);
            assert!(same, "seed {seed}: {program:02x?}");
        }
        whole += u64::from(end == End::Whole);
    }
    assert!(whole > least, "{whole} programs came to their end");
}
