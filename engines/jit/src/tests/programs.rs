//! Programs that are interpreted and translated: states, memory, counts, and what other vCPUs are told of have to be
//! the same.

use std::ops::Range;

use guestmem::Gpa;

use super::random::Random;
use super::{CODE, Machine, RAM_BYTES, STOP, Slices};

/// Programs by seed.
pub(super) struct Programs<'a> {
    /// vCPUs of the VM.
    pub vcpus: u32,
    /// Slices of time are drawn below so many instructions; 0 if a program is to end within one.
    pub slices: usize,
    /// Their seeds.
    pub seeds: Range<u64>,
    /// More than one in so many has to come to its end.
    pub whole: u64,
    /// Writes what is in RAM before each.
    pub memory: &'a dyn Fn(&mut [u8]),
    /// Makes the program of a seed; nothing if it is to be left out.
    pub program: &'a dyn Fn(u64) -> Option<Vec<u8>>,
    /// Sets registers before each.
    pub prepare: &'a dyn Fn(&mut Machine, &mut Random),
    /// MSRs that have to be the same; others show the time of day, or go on from program to program.
    pub msrs: &'a [u32],
}

/// The program with what stops it behind it, and INT3 for who jumps over that.
pub(super) fn with_end(program: &[u8]) -> Vec<u8> {
    [program, &STOP, &[0xcc; 32]].concat()
}

impl Programs<'_> {
    pub fn do_the_same(&self) {
        let least = (self.seeds.end - self.seeds.start) / self.whole;
        let mut translated = Machine::one_translated_of(self.vcpus);
        let mut interpreted = Machine::one_interpreted_of(self.vcpus);
        let mut memory = vec![0; RAM_BYTES as usize];
        translated.ram.read(Gpa(0), &mut memory).unwrap();
        (self.memory)(&mut memory);
        let start = translated.state.clone();
        let mut whole = 0;
        for seed in self.seeds.clone() {
            let Some(program) = (self.program)(seed) else {
                continue;
            };
            let end = CODE + (program.len() + STOP.len()) as u64;
            let program = with_end(&program);
            let [(left, ram), (other, other_ram)] = [&mut translated, &mut interpreted].map(|m| {
                m.put(0, &memory);
                m.put(CODE, &program);
                m.state = start.clone();
                (self.prepare)(m, &mut Random(seed));
                m.state.rip = CODE;
                let drawn = (self.slices > 0).then_some((Random(!seed), self.slices));
                *m.slices.lock().unwrap() = Slices {
                    drawn,
                    ends: Vec::new(),
                };
                let before = m.vcpu.retired().unwrap();
                let exit = m.go();
                let mut ram = vec![0; RAM_BYTES as usize];
                m.ram.read(Gpa(0), &mut ram).unwrap();
                let mut state = m.state.clone();
                let msrs = &mut state.system.msrs;
                msrs.retain(|(number, _)| self.msrs.contains(number));
                let retired = m.vcpu.retired().unwrap() - before;
                let ends = &m.slices.lock().unwrap().ends;
                let ends: Vec<u64> = ends.iter().map(|at| at - before).collect();
                ((exit, retired, state, ends), ram)
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
}

/// As many instructions as are drawn below `most`, and one.
pub(super) fn instructions(
    seed: u64,
    most: usize,
    instruction: impl Fn(&mut Random, &mut Vec<u8>),
) -> Vec<u8> {
    let mut program = Vec::new();
    let random = &mut Random(seed);
    for _ in 0..1 + random.below(most) {
        instruction(random, &mut program);
    }
    program
}
