//! Random programs of what kernels use, interpreted and translated: states, memory, and counts have to be the same.

use super::random::Random;
use super::{CODE, DATA, Machine, RAM_BYTES, STOP};

fn instruction(random: &mut Random, out: &mut Vec<u8>) {
    match random.below(12) {
        // CLI, SWAPGS, PAUSE.
        0 => out.push(0xfa),
        1 => out.extend([0x0f, 0x01, 0xf8]),
        2 => out.extend([0xf3, 0x90]),
        // mov rax, gs:[rsi]; stc; clc
        3 => out.extend([0x65, 0x48, 0x8b, 0x06]),
        4 => out.push(random.pick(&[0xf9, 0xf8])),
        // mov from a segment register, and from a control register
        5 => {
            out.push(random.pick(&[0x40, 0x41, 0x48, 0x49]));
            let segment = random.below(6) as u8;
            out.extend([0x8c, 0xc0 | segment << 3 | random.pick(&[0, 1, 2, 5])]);
        }
        6 => {
            out.push(random.pick(&[0x40, 0x41]));
            let control = random.pick(&[0, 2, 3, 4]);
            out.extend([0x0f, 0x20, 0xc0 | control << 3 | random.pick(&[0, 1, 2, 5])]);
        }
        // cmpxchg16b
        7 => {
            if random.below(2) == 0 {
                out.push(0xf0);
            }
            out.extend([0x48, 0x0f, 0xc7, 0x8e | random.below(2) as u8]);
            let at = random.pick(&[0_i32, 16, 0x20, 0x28, 0xff0, 0xff8]);
            out.extend(at.to_le_bytes());
        }
        _ => {
            if random.below(3) == 0 {
                out.push(0xf0);
            }
            match random.below(8) {
                0 => out.push(0x66),
                1 => out.push(0x64),
                _ => {}
            }
            let bit = random.below(16) as u8;
            let wide = random.below(2) as u8;
            let rex = 0x40 | wide << 3 | bit >> 3 << 2;
            if rex != 0x40 {
                out.push(rex);
            }
            let opcode = random.pick(&[0xa3, 0xab, 0xb3, 0xbb]);
            let base = random.pick(&[3, 6, 7]);
            out.extend([0x0f, opcode, 0x80 | bit << 3 & 0x38 | base]);
            let at = random.pick(&[0_i32, 0, 8, 3, 0x7f8, 0xffc, 0xffe]);
            out.extend(at.to_le_bytes());
        }
    }
}

#[test]
fn system_programs_do_the_same() {
    do_the_same(1, 0..8_000);
}

#[test]
fn system_programs_of_one_of_two_do_the_same() {
    do_the_same(2, 8_000..11_000);
}

fn do_the_same(vcpus: u32, seeds: std::ops::Range<u64>) {
    let least = (seeds.end - seeds.start) / 4;
    let mut translated = Machine::one_translated_of(vcpus);
    let mut interpreted = Machine::one_interpreted_of(vcpus);
    let mut memory = vec![0; RAM_BYTES as usize];
    translated.ram.read(guestmem::Gpa(0), &mut memory).unwrap();
    for byte in &mut memory[DATA[0] as usize..DATA[2] as usize + 0x1000] {
        *byte = 0x5a;
    }
    let start = translated.state.clone();
    let mut whole = 0_u64;
    for seed in seeds {
        let mut program = Vec::new();
        let random = &mut Random(seed << 32 | 17);
        for _ in 0..1 + random.below(10) {
            instruction(random, &mut program);
        }
        let end = CODE + (program.len() + STOP.len()) as u64;
        program.extend(STOP);
        let [(left, ram), (other, other_ram)] = [&mut translated, &mut interpreted].map(|m| {
            let random = &mut Random(seed);
            m.put(0, &memory);
            m.put(CODE, &program);
            m.state = start.clone();
            for register in [0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15] {
                let any = random.next();
                m.state.gpr[register] = match random.below(4) {
                    0 => any & 0x3f,
                    1 => any & 0x7fff,
                    2 => (any & 0x3fff).wrapping_neg(),
                    _ => any & 0xffff_ffff_0000_01ff,
                };
            }
            if random.below(2) == 0 {
                m.state.gpr[0] = 0x5a5a_5a5a_5a5a_5a5a;
                m.state.gpr[2] = 0x5a5a_5a5a_5a5a_5a5a;
            }
            m.state.segments[4].base = random.below(2) as u64 * 8;
            m.state.segments[5].base = random.below(2) as u64 * 16;
            m.state.rflags = 2 | random.next() & 0xad5;
            m.state.rip = CODE;
            let before = m.vcpu.retired().unwrap();
            let exit = m.go();
            let mut ram = vec![0; RAM_BYTES as usize];
            m.ram.read(guestmem::Gpa(0), &mut ram).unwrap();
            let mut state = m.state.clone();
            // The time of day in them differs; not the one that SWAPGS leaves.
            state
                .system
                .msrs
                .retain(|(number, _)| *number == x86defs::msr::IA32_KERNEL_GS_BASE);
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
