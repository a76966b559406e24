//! Repeated string instructions (SDM Vol 2 "REP/REPE/REPZ/REPNE/REPNZ" and those it repeats), by their iterations.

use crate::cpu::gpr::{RAX, RCX, RDI, RSI};
use crate::testing::*;

/// Bytes of the strings' memory: five pages.
const BYTES: usize = 5 << 12;

#[derive(Clone, Debug, PartialEq)]
struct Strings {
    memory: Vec<u8>,
    rax: u64,
    rcx: u64,
    rsi: u64,
    rdi: u64,
    zf: bool,
    cf: bool,
}

impl Strings {
    fn read(&self, at: u64, size: usize) -> u64 {
        let at = (at - DATA) as usize;
        let mut word = [0; 8];
        word[..size].copy_from_slice(&self.memory[at..at + size]);
        u64::from_le_bytes(word)
    }

    fn write(&mut self, at: u64, size: usize, value: u64) {
        let at = (at - DATA) as usize;
        self.memory[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    /// What the manual's operations do, one iteration after the other.
    fn repeat(&mut self, opcode: u8, size: usize, down: bool, while_not_equal: bool) {
        let step = if down {
            (size as u64).wrapping_neg()
        } else {
            size as u64
        };
        let accumulator = self.rax & (u64::MAX >> (64 - 8 * size));
        while self.rcx != 0 {
            self.rcx -= 1;
            let compared = match opcode {
                0xa4 => {
                    let value = self.read(self.rsi, size);
                    self.write(self.rdi, size, value);
                    None
                }
                0xaa => {
                    self.write(self.rdi, size, accumulator);
                    None
                }
                0xae => Some((accumulator, self.read(self.rdi, size))),
                _ => Some((self.read(self.rsi, size), self.read(self.rdi, size))),
            };
            if matches!(opcode, 0xa4 | 0xa6) {
                self.rsi = self.rsi.wrapping_add(step);
            }
            self.rdi = self.rdi.wrapping_add(step);
            if let Some((a, b)) = compared {
                (self.zf, self.cf) = (a == b, a < b);
                if self.zf == while_not_equal {
                    break;
                }
            }
        }
    }
}

fn run(b: &mut Bench, start: &Strings, code: &[u8], down: bool) -> Strings {
    b.ram.write_at(guestmem::RamOffset(DATA), &start.memory);
    let flags = 2 | u64::from(down) << 10 | u64::from(start.zf) << 6 | u64::from(start.cf);
    b.cpu().set_rflags(flags);
    b.set(RAX, start.rax);
    b.set(RCX, start.rcx);
    b.set(RSI, start.rsi);
    b.set(RDI, start.rdi);
    b.set(crate::cpu::RIP, CODE);
    let mut outcome = b.run(code);
    // A long one gives way, and goes on.
    while outcome == Outcome::Next(CODE) {
        outcome = b.step();
    }
    assert_eq!(outcome, Outcome::Next(CODE + code.len() as u64));
    let mut memory = vec![0; BYTES];
    b.ram.read_at(guestmem::RamOffset(DATA), &mut memory);
    let flags = b.cpu().rflags();
    Strings {
        memory,
        rax: b.get(RAX),
        rcx: b.get(RCX),
        rsi: b.get(RSI),
        rdi: b.get(RDI),
        zf: flags >> 6 & 1 != 0,
        cf: flags & 1 != 0,
    }
}

#[test]
fn repeats_are_their_iterations() {
    let mut b = Bench::long();
    let mut seed = 5_u64;
    let mut below = |bound: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % bound
    };
    let prefixes: [(&[u8], usize); 4] = [(&[], 1), (&[0x66], 2), (&[], 4), (&[0x48], 8)];
    for case in 0..20_000 {
        let (prefix, size) = prefixes[below(4) as usize];
        let opcode = [0xa4, 0xa6, 0xaa, 0xae][below(4) as usize];
        let down = below(3) == 0;
        let while_not_equal = matches!(opcode, 0xa6 | 0xae) && below(2) == 0;
        let count = [0, 1, 7, 31, 200, 300, 511][below(7) as usize].min(4_000 / size as u64);
        // In the middle page, near its middle or its ends; the strings often overlap, by some bytes or by nearly all.
        let middle = DATA + 0x2000 + [0, 0x800, 0xff0][below(3) as usize] + below(16);
        let apart = [0, 1, 2, 3, 8, 24, 100, 0x700][below(8) as usize];
        let (rsi, rdi) = if below(2) == 0 {
            (middle, middle - apart)
        } else {
            (middle - apart, middle)
        };
        let rare = 1 + below(600);
        let start = Strings {
            memory: (0..BYTES).map(|_| u8::from(below(rare) == 0)).collect(),
            rax: [0, 0, 1, 0x0101_0101_0101_0101, 0x1_0000][below(5) as usize],
            rcx: count,
            rsi,
            rdi,
            zf: below(2) == 0,
            cf: below(2) == 0,
        };
        let repeat = if while_not_equal { 0xf2 } else { 0xf3 };
        let code = [prefix, &[opcode | u8::from(size > 1)]].concat();
        let code = match code.as_slice() {
            [0x48, opcode] => vec![repeat, 0x48, *opcode],
            other => [&[repeat], other].concat(),
        };
        let mut expected = start.clone();
        expected.repeat(opcode, size, down, while_not_equal);
        let got = run(&mut b, &start, &code, down);
        let differs = expected.memory.iter().zip(&got.memory);
        let differs = differs.enumerate().find(|(_, (a, b))| a != b);
        assert_eq!(differs, None, "case {case}: {code:02x?}, down {down}");
        let but_memory = |s: &Strings| (s.rax, s.rcx, s.rsi, s.rdi, s.zf, s.cf);
        assert_eq!(
            but_memory(&got),
            but_memory(&expected),
            "case {case}: {code:02x?}, down {down}"
        );
    }
}
