//! Programs of several blocks that lead to one another, with slices of time so short that they end anywhere: regions
//! stop where the interpreter would, and forget what was changed.

use std::ops::Range;

use super::programs::Programs;
use super::random::{self, Random};
use super::{CODE, DATA, Machine, NOWHERE};

/// The registers programs compute with: not the stack's, not those that hold addresses or count.
const REGISTERS: [u8; 10] = [0, 1, 2, 5, 8, 9, 10, 11, 14, 15];
/// Counts down to the end.
const FUEL: u8 = 13;
/// RBX, RSI, RDI: what programs address memory by.
const BASES: [u8; 3] = [3, 6, 7];

/// A jump in a program: where its distance is, the block it leads to.
type Jump = (usize, usize);

#[derive(Default)]
struct Program {
    bytes: Vec<u8>,
    jumps: Vec<Jump>,
    /// Where immediates are that other blocks change.
    changed: Vec<usize>,
    /// Distances to them, to which, and how many bytes follow.
    changes: Vec<(usize, usize, usize)>,
}

impl Program {
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// REX, opcode, and ModRM of two registers.
    fn registers(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | rm >> 3;
        self.raw(&[rex]);
        self.raw(opcode);
        self.raw(&[0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    fn jump(&mut self, opcode: &[u8], to: usize) {
        self.raw(opcode);
        self.jumps.push((self.bytes.len(), to));
        self.raw(&[0; 4]);
    }

    /// Something that goes on behind itself.
    fn instruction(&mut self, random: &mut Random) {
        let reg = random.pick(&REGISTERS);
        let other = random.pick(&REGISTERS);
        let wide = random.below(2) == 0;
        match random.below(24) {
            0..=5 => {
                let opcode = random.pick(&[0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39, 0x85]);
                self.registers(wide, &[opcode], reg, other);
            }
            6 | 7 => {
                // An immediate of 32 bits, which others may change.
                self.registers(wide, &[0x81], random.below(8) as u8, reg);
                self.changed.push(self.bytes.len());
                self.raw(&(random.next() as u32).to_le_bytes());
            }
            12 | 13 => {
                // Bytes beside each other, on the stack too.
                let base = random.pick(&[3, 6, 7, 4, 4]);
                for _ in 0..1 + random.below(4) {
                    let reg = random.pick(&REGISTERS);
                    let rex = 0x40 | u8::from(random.below(2) == 0) << 3 | reg >> 3 << 2;
                    let opcode = random.pick(&[0x01, 0x03, 0x89, 0x8b, 0x33, 0x88, 0x8a]);
                    let at = random.pick(&[0, 4, 8, 16, 24, 0x78]);
                    if random.below(4) == 0 {
                        // MOVAPS, MOVUPS.
                        let opcode = random.pick(&[0x28, 0x29, 0x10, 0x11]);
                        self.raw(&[rex, 0x0f, opcode, 0x40 | (reg & 7) << 3 | base]);
                    } else {
                        self.raw(&[rex, opcode, 0x40 | (reg & 7) << 3 | base]);
                    }
                    if base == 4 {
                        self.raw(&[0x24]);
                    }
                    self.raw(&[at]);
                }
            }
            10 => {
                // AND index, 78h; then by base and index, which may move.
                let index = random.pick(&[0, 1, 2, 5, 8, 9, 10, 15]);
                let base = random.pick(&BASES);
                self.registers(true, &[0x83], 4, index);
                self.raw(&[0x78]);
                for _ in 0..1 + random.below(4) {
                    let scale = 3 << 6;
                    let rex = 0x48 | reg >> 3 << 2 | index >> 3 << 1;
                    let opcode = random.pick(&[0x01, 0x03, 0x89, 0x8b, 0x33, 0x88, 0x8a]);
                    let at = random.pick(&[0, 8, 16, 0x40]);
                    if reg == index {
                        // MOV to memory, so that it stays an index.
                        self.raw(&[rex, 0x89]);
                    } else {
                        self.raw(&[rex, opcode]);
                    }
                    self.raw(&[0x44 | (reg & 7) << 3, scale | (index & 7) << 3 | base, at]);
                    match random.below(4) {
                        0 => self.raw(&[0x48 | index >> 3, 0x83, 0xc0 | index & 7, 2]),
                        1 => self.raw(&[0x48, 0x83, 0xe8 | base, 8]),
                        2 => self.raw(&[0x48 | index >> 3, 0xff, 0xc0 | index & 7]),
                        _ => {}
                    }
                }
            }
            11 => {
                // LEA base, [base + n].
                let base = random.pick(&BASES);
                let n = random.pick(&[8, 16, 0x70, 0xf8, 0xf0, 0x90]);
                self.raw(&[0x48, 0x8d, 0x40 | base << 3 | base, n]);
            }
            8 | 9 => {
                let base = random.pick(&BASES);
                let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2;
                let opcode = random.pick(&[0x01, 0x03, 0x89, 0x8b, 0x8b, 0x33, 0x88, 0x8a, 0x38]);
                if random.below(6) == 0 {
                    self.raw(&[0x66]);
                }
                self.raw(&[rex, opcode, 0x80 | (reg & 7) << 3 | base]);
                let at = random.pick(&[0, 8, 8, 16, 64, 0x7f8, 0xff8, 0xffd]);
                self.raw(&u32::to_le_bytes(at));
            }
            14 => self.registers(wide, &[0x0f, 0x40 | random.below(16) as u8], reg, other),
            15 => self.registers(false, &[0x0f, 0x90 | random.below(16) as u8], 0, reg),
            // MOVSX.
            16 => self.registers(wide, &[0x0f, 0xbe], reg, other),
            17 => self.raw(&[0x50 | random.below(4) as u8, 0x5d]),
            18 => {
                // MOV ECX, n; REP STOSB.
                self.raw(&[0xb9, random.below(40) as u8, 0, 0, 0, 0xf3, 0xaa]);
            }
            // STR EAX: nothing for the translator.
            19 => self.raw(&[0x0f, 0x00, 0xc8]),
            20 => {
                // MOV byte of an immediate elsewhere, imm8.
                self.raw(&[0xc6, 0x05]);
                self.changes.push((self.bytes.len(), random.below(64), 1));
                self.raw(&[0; 4]);
                self.raw(&[random.next() as u8]);
            }
            // STR: two bytes of one, by a handler.
            22 if random.below(2) == 0 && !self.changed.is_empty() => {
                self.raw(&[0x0f, 0x00, 0x0d]);
                self.changes.push((self.bytes.len(), random.below(64), 0));
                self.raw(&[0; 4]);
            }
            21 if random.below(30) == 0 => {
                self.raw(&[0x8b, 0x04, 0x25]);
                self.raw(&(NOWHERE as u32).to_le_bytes());
            }
            // IN AL: the slice ends.
            23 if random.below(4) == 0 => self.raw(&[0xe4, 0xf5]),
            _ => random::instruction(random, &mut self.bytes),
        }
    }

    fn new(seed: u64) -> Self {
        let random = &mut Random(seed);
        let mut p = Self::default();
        let blocks = 2 + random.below(8);
        // The last block is the end, the one before a subroutine.
        let (sub, end) = (blocks, blocks + 1);
        let mut begin = Vec::new();
        for _ in 0..blocks {
            begin.push(p.bytes.len());
            for _ in 0..random.below(6) {
                p.instruction(random);
            }
            // SUB R13, 1; JB end.
            p.raw(&[0x49, 0x83, 0xe8 | FUEL & 7, 1]);
            p.jump(&[0x0f, 0x82], end);
            for _ in 0..random.below(4) {
                p.instruction(random);
            }
            let to = random.below(blocks);
            match random.below(9) {
                0 => p.jump(&[0xe9], to),
                1 => p.jump(&[0xe8], sub),
                2 => {}
                3 => {
                    // JRCXZ over a JMP, with RCX zero half of the time.
                    if random.below(2) == 0 {
                        p.raw(&[0x31, 0xc9]);
                    }
                    p.raw(&[0xe3, 5]);
                    p.jump(&[0xe9], to);
                }
                _ => p.jump(&[0x0f, 0x80 | random.below(16) as u8], to),
            }
        }
        p.jump(&[0xe9], 0);
        begin.push(p.bytes.len());
        for _ in 0..random.below(4) {
            p.instruction(random);
        }
        p.raw(&[0xc3]);
        begin.push(p.bytes.len());
        for (at, to) in std::mem::take(&mut p.jumps) {
            let distance = begin[to] as i32 - (at as i32 + 4);
            p.bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        for (at, which, behind) in std::mem::take(&mut p.changes) {
            // Itself, if there is none: the last byte of the instruction.
            let to = p.changed.get(which % p.changed.len().max(1));
            let to = to.copied().unwrap_or(at + 4);
            let distance = to as i32 - (at + 4 + behind) as i32;
            p.bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        p
    }
}

fn prepare(m: &mut Machine, random: &mut Random) {
    for register in &mut m.state.gpr {
        *register = random.next();
    }
    [m.state.gpr[6], m.state.gpr[7], m.state.gpr[3]] = DATA;
    m.state.gpr[4] = super::STACK;
    m.state.gpr[usize::from(FUEL)] = 1 + random.below(150) as u64;
}

fn do_the_same(vcpus: u32, seeds: Range<u64>) {
    Programs {
        vcpus,
        slices: 300,
        seeds,
        whole: 2,
        memory: &|_| (),
        program: &|seed| {
            let program = Program::new(seed).bytes;
            // In one page.
            (program.len() < 4000).then_some(program)
        },
        prepare: &prepare,
        msrs: &[],
    }
    .do_the_same();
}

#[test]
fn blocks_of_a_page_do_the_same() {
    do_the_same(1, 0..6000);
}

#[test]
fn blocks_of_a_page_of_one_of_two_do_the_same() {
    do_the_same(2, 6000..9000);
}

/// Programs stay in the page they begin in.
const _: () = assert!(CODE.is_multiple_of(4096));
