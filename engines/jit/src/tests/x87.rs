//! Random programs of x87 instructions, with others between them, interpreted and translated: states, memory, and
//! counts have to be the same.

use super::random::Random;
use super::{CODE, DATA, Machine, RAM_BYTES, STOP};

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
    let least = (seeds.end - seeds.start) / 2;
    let mut translated = Machine::one_translated_of(vcpus);
    let mut interpreted = Machine::one_interpreted_of(vcpus);
    let mut memory = vec![0; RAM_BYTES as usize];
    translated.ram.read(guestmem::Gpa(0), &mut memory).unwrap();
    for page in DATA {
        fill(&mut Random(page), &mut memory[page as usize..][..0x1000]);
    }
    for (place, control) in [0x37f_u16, 0x27f, 0xf7f, 0x372].into_iter().enumerate() {
        let at = DATA[0] as usize + 0x700 + 2 * place;
        memory[at..at + 2].copy_from_slice(&control.to_le_bytes());
    }
    let start = translated.state.clone();
    let mut whole = 0_u64;
    for seed in seeds {
        let mut program = Vec::new();
        let random = &mut Random(seed << 32 | 13);
        // fninit
        program.extend([0xdb, 0xe3]);
        for _ in 0..1 + random.below(12) {
            instruction(random, &mut program);
        }
        let end = CODE + (program.len() + STOP.len()) as u64;
        program.extend(STOP);
        let [(left, ram), (other, other_ram)] = [&mut translated, &mut interpreted].map(|m| {
            let random = &mut Random(seed);
            m.put(0, &memory);
            m.put(CODE, &program);
            m.state = start.clone();
            m.state.gpr[0] = random.next() & 0xff;
            m.set_xmm(0, u128::from(random.next()));
            m.set_xmm(1, 0x3f80_0000_4080_0000);
            m.state.segments[4].base = random.below(2) as u64 * 8;
            m.state.rflags = 2 | random.next() & 0x8d5;
            m.state.rip = CODE;
            let before = m.vcpu.retired().unwrap();
            let exit = m.go();
            let mut ram = vec![0; RAM_BYTES as usize];
            m.ram.read(guestmem::Gpa(0), &mut ram).unwrap();
            let mut state = m.state.clone();
            // They go on from program to program.
            state.system.msrs.clear();
            ((exit, m.vcpu.retired().unwrap() - before, state), ram)
        });
        if left != other {
            let (ours, theirs) = (format!("{left:?}"), format!("{other:?}"));
            let both = ours.split(' ').zip(theirs.split(' ')).enumerate();
            let differ: Vec<_> = both.filter(|(_, (a, b))| a != b).collect();
            panic!("seed {seed}: {program:02x?}: {differ:?} of {ours}");
        }
        let differs = ram.iter().zip(&other_ram).position(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}: {program:02x?}");
        let told = (translated.told(), interpreted.told());
        assert_eq!(told.0, told.1, "seed {seed}: {program:02x?}");
        whole += u64::from(left.2.rip == end);
    }
    assert!(whole > least, "{whole} programs came to their end");
}
