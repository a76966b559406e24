//! Random programs of divisions and of what may see the flags they leave, interpreted and translated: states, memory and
//! counts have to be the same. The flags are undefined (SDM Vol 2 "DIV"); ours are those of before.

use super::programs::{Programs, instructions};
use super::random::Random;
use super::{DATA, Machine, NOWHERE};

const REGISTERS: [u8; 8] = [0, 1, 2, 3, 7, 8, 9, 11];

fn registers(out: &mut Vec<u8>, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
    out.push(0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | rm >> 3);
    out.extend(opcode);
    out.push(0xc0 | (reg & 7) << 3 | rm & 7);
}

fn instruction(random: &mut Random, out: &mut Vec<u8>) {
    let wide = random.below(2) == 0;
    let reg = random.pick(&REGISTERS);
    let other = random.pick(&REGISTERS);
    let signed = random.below(2) == 0;
    match (signed, wide) {
        // XOR EDX, EDX.
        (false, _) => out.extend([0x31, 0xd2]),
        // CDQ, CQO.
        (true, false) => out.push(0x99),
        (true, true) => out.extend([0x48, 0x99]),
    }
    let extension = if signed { 7 } else { 6 };
    if random.below(4) == 0 {
        // By what is at RSI.
        let rex = 0x40 | u8::from(wide) << 3;
        out.extend([rex, 0xf7, extension << 3 | 6]);
    } else {
        registers(out, wide, &[0xf7], extension, reg);
    }
    for _ in 0..random.below(4) {
        let wide = random.below(2) == 0;
        match random.below(16) {
            0..=3 => registers(out, wide, &[0x89], reg, other),
            4..=7 => {
                let opcode = random.pick(&[0x01, 0x29, 0x21, 0x09, 0x31, 0x39, 0x85]);
                registers(out, wide, &[opcode], reg, other);
            }
            // ADC, SBB: they read CF.
            8 => registers(out, wide, &[random.pick(&[0x11, 0x19])], reg, other),
            // INC leaves CF.
            9 => registers(out, wide, &[0xff], 0, reg),
            10 => registers(out, false, &[0x0f, 0x90 | random.below(16) as u8], 0, reg),
            11 => registers(
                out,
                wide,
                &[0x0f, 0x40 | random.below(16) as u8],
                reg,
                other,
            ),
            // MOV from RSI; then from nowhere, rarely.
            12 | 13 => out.extend([0x48, 0x8b, (reg & 7) << 3 | 6]),
            14 if random.below(8) == 0 => {
                out.extend([0x8b, 0x04, 0x25]);
                out.extend((NOWHERE as u32).to_le_bytes());
            }
            // LAHF.
            15 => out.push(0x9f),
            // CMC.
            _ => out.push(0xf5),
        }
    }
}

fn prepare(m: &mut Machine, random: &mut Random) {
    let numbers = [
        0,
        1,
        2,
        7,
        u64::MAX,
        1 << 31,
        1 << 63,
        0xffff_ffff,
        random.next(),
    ];
    for register in &mut m.state.gpr {
        *register = random.pick(&numbers);
        if *register == 0 && random.below(4) > 0 {
            *register = random.next();
        }
    }
    m.state.gpr[4] = super::STACK;
    m.state.gpr[6] = DATA[0];
    m.put(
        DATA[0],
        &random
            .pick(&numbers)
            .max(random.below(2) as u64)
            .to_le_bytes(),
    );
    m.state.rflags = 2 | random.next() & 0x8d5;
}

#[test]
fn divisions_do_the_same() {
    Programs {
        vcpus: 1,
        slices: 0,
        seeds: 0..20_000,
        whole: 8,
        memory: &|_| (),
        program: &|seed| Some(instructions(seed << 32 | 17, 3, instruction)),
        prepare: &prepare,
        msrs: &[],
    }
    .do_the_same();
}
