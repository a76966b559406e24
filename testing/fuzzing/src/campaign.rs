//! Many cases from one seed.

use crate::Target;

/// A small generator (SplitMix64: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators",
/// 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }
}

/// Cases `first` to `first + count - 1` of a seed. A case follows from seed and number alone.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// The seed.
    pub seed: u64,
    /// The number of the first case.
    pub first: u64,
    /// How many cases.
    pub count: u64,
}

impl Campaign {
    /// The bytes of case `number`, at most `longest`.
    #[must_use]
    pub fn case(&self, number: u64, longest: usize) -> Vec<u8> {
        let mut random = Random::new(self.seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let length = match random.number() % 4 {
            0 => random.number() as usize % (longest + 1),
            _ => longest,
        };
        let mut bytes = vec![0; length];
        random.fill(&mut bytes);
        bytes
    }

    /// Runs them. A finding is told with seed and number before the panic goes on.
    pub fn run(&self, target: &mut dyn Target) {
        let longest = target.longest();
        for number in self.first..self.first.saturating_add(self.count) {
            let told = Told {
                seed: self.seed,
                number,
            };
            target.run(&self.case(number, longest));
            std::mem::forget(told);
        }
    }
}

/// Says which case it was when a panic drops it.
struct Told {
    seed: u64,
    number: u64,
}

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("finding: seed {:#x}, case {}", self.seed, self.number);
    }
}
