//! Random programs of what kernels use, interpreted and translated: states, memory, and counts have to be the same.

use super::programs::{Programs, instructions};
use super::random::Random;
use super::{DATA, End, INTERRUPT, INTERRUPT_VECTOR, Machine};

fn instruction(random: &mut Random, out: &mut Vec<u8>) {
    match random.below(12) {
        // CLI, STI, an interrupt that comes, SWAPGS, PAUSE.
        0 if random.below(5) == 0 => out.extend(INTERRUPT),
        0 => out.push(random.pick(&[0xfa, 0xfb, 0xfb])),
        1 if random.below(2) == 0 => identify(random, out),
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

/// CPUID, twice, as an answer may be kept for the second time.
fn identify(random: &mut Random, out: &mut Vec<u8>) {
    let leaf = random.pick(&[
        0,
        1,
        2,
        4,
        7,
        0xb,
        0xd,
        0x16,
        0x4000_0000,
        0x8000_0000,
        0x8000_0001,
        0x8000_0008,
        u32::MAX,
    ]);
    let subleaf = random.pick(&[0_u32, 1, 2, 3, u32::MAX]);
    for _ in 0..2 {
        out.push(0xb8);
        out.extend(leaf.to_le_bytes());
        out.push(0xb9);
        out.extend(subleaf.to_le_bytes());
        out.extend([0x0f, 0xa2]);
    }
}

/// SDM Vol 2, Table 3-10: OSXSAVE is CR4's bit of that name, whatever it was when CPUID was asked last. Table 3-8: EBX of
/// leaf 0DH is the size for what XCR0 enables, 576 bytes and 256 more with AVX.
#[test]
fn cpuid_follows_what_it_shows() {
    const OSXSAVE: u32 = 1 << 27;
    let ask = |leaf: u8| [0xb8, leaf, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2];
    // mov rax, cr4; xor rax, 4_0000h; mov cr4, rax
    let switch = [0x0f, 0x20, 0xe0, 0x48, 0x35, 0, 0, 4, 0, 0x0f, 0x22, 0xe0];
    // mov [rdi], ecx; add rdi, 4
    let keep_ecx = [0x89, 0x0f, 0x48, 0x83, 0xc7, 4];
    let keep_ebx = [0x89, 0x1f, 0x48, 0x83, 0xc7, 4];
    // xor ecx, ecx; xor edx, edx; mov eax, imm; xsetbv
    let enable = |xcr0: u8| {
        [
            0x31, 0xc9, 0x31, 0xd2, 0xb8, xcr0, 0, 0, 0, 0x0f, 0x01, 0xd1,
        ]
    };
    let mut program = Vec::new();
    for _ in 0..2 {
        for _ in 0..2 {
            program.extend(ask(1));
            program.extend(keep_ecx);
        }
        program.extend(switch);
    }
    for xcr0 in [7, 3, 7] {
        program.extend(enable(xcr0));
        for _ in 0..2 {
            program.extend(ask(0xd));
            program.extend(keep_ebx);
        }
    }
    let mut m = Machine::translated();
    assert_eq!(m.run(&program), End::Whole);
    let word = |at: u64| u32::from_le_bytes(m.get(DATA[1] + 4 * at));
    let shown: Vec<_> = (0..4).map(|at| word(at) & OSXSAVE != 0).collect();
    assert_eq!(shown, [true, true, false, false]);
    let sizes: Vec<_> = (4..10).map(word).collect();
    assert_eq!(sizes, [832, 832, 576, 576, 832, 832]);
}

#[test]
fn system_programs_do_the_same() {
    do_the_same(1, 0..8_000);
}

#[test]
fn system_programs_of_one_of_two_do_the_same() {
    do_the_same(2, 8_000..11_000);
}

/// An interrupt that came while IF was clear is taken behind the instruction after STI (SDM Vol 2, STI), one that comes
/// later where it comes; nothing is taken that did not come.
#[test]
fn interrupts_behind_sti() {
    const STI: u8 = 0xfb;
    const NOP: u8 = 0x90;
    let out = INTERRUPT;
    for (program, taken) in [
        (vec![STI, NOP, NOP, NOP], None),
        (vec![out[0], out[1], NOP, STI, NOP, NOP], Some(5)),
        // mov eax, eax in the place of the NOP.
        (vec![out[0], out[1], STI, 0x89, 0xc0, NOP], Some(5)),
        (vec![STI, NOP, NOP, out[0], out[1], NOP], Some(5)),
        (vec![STI, out[0], out[1], NOP], Some(3)),
        // An STI with IF set holds off nothing.
        (vec![STI, NOP, out[0], out[1], STI, NOP], Some(4)),
        (vec![out[0], out[1], STI, 0xfa, NOP, NOP], None),
    ] {
        for mut m in [Machine::translated(), Machine::one_interpreted_of(1)] {
            let expected = taken.map_or(End::Whole, |at| End::Fault {
                vector: u64::from(INTERRUPT_VECTOR),
                at,
            });
            assert_eq!(m.run(&program), expected, "{program:x?}");
            assert_eq!(m.state.gpr[4] != super::STACK, taken.is_some());
            m.state.gpr[4] = super::STACK;
            m.state.rflags = 2;
            // Now that it is translated.
            assert_eq!(m.run(&program), expected, "{program:x?}");
        }
    }
}

fn do_the_same(vcpus: u32, seeds: std::ops::Range<u64>) {
    let memory = |memory: &mut [u8]| {
        memory[DATA[0] as usize..DATA[2] as usize + 0x1000].fill(0x5a);
    };
    let prepare = |m: &mut Machine, random: &mut Random| {
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
    };
    let programs = Programs {
        vcpus,
        slices: 0,
        seeds,
        whole: 4,
        memory: &memory,
        program: &|seed| Some(instructions(seed << 32 | 17, 10, instruction)),
        prepare: &prepare,
        // SWAPGS leaves it.
        msrs: &[x86defs::msr::IA32_KERNEL_GS_BASE],
    };
    programs.do_the_same();
}
