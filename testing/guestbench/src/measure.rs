//! What a part is, and how its time is taken.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::feature::Feature;

/// A quick run does one batch of so many.
const QUICK_SHARE: u32 = 20;
/// How many batches even a quick run does.
const FEWEST_BATCHES: u32 = 2;

/// A batch that gave a wrong result: what, as half a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a part is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Only computes: no system calls, no exits.
    Compute,
    /// Runs a program of a distribution.
    Program,
    /// Is about the kernel: its entry, its address spaces, its faults and its scheduler.
    Kernel,
    /// Is about the processor's exits to a hypervisor.
    Exit,
    /// Keeps one or several processors busy.
    Processors,
}

impl Group {
    /// Its name in options and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Program => "program",
            Self::Kernel => "kernel",
            Self::Exit => "exit",
            Self::Processors => "processors",
        }
    }
}

/// Where a part finds files and may write some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The folder with the programs, their libraries and the dynamic loader.
    pub files: PathBuf,
    /// A folder to write to.
    pub scratch: PathBuf,
}

/// Does a batch, checks what it can, and gives a sum of the result.
pub type Batch = Box<dyn FnMut() -> Result<u64, Wrong>>;

/// One part of the benchmark.
pub struct Part {
    /// Its name: lower-case letters, digits and dashes.
    pub name: &'static str,
    /// What it is about.
    pub group: Group,
    /// What one operation is.
    pub operation: &'static str,
    /// What the processor must have.
    pub needs: &'static [Feature],
    /// How many operations a batch has.
    pub operations: u32,
    /// How many batches a run does.
    pub batches: u32,
    /// The sum every batch gives; `None` if it depends on the version of a program, and runs are compared instead.
    pub expected: Option<u64>,
    /// Makes what all batches use. Not in the time.
    pub prepare: fn(&Places) -> Result<Batch, Wrong>,
}

impl Part {
    /// How many batches a run does.
    pub fn batches(&self, quick: bool) -> u32 {
        match quick {
            true => (self.batches / QUICK_SHARE).max(FEWEST_BATCHES),
            false => self.batches,
        }
    }
}

/// What a part gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The time of all batches.
    pub total: Duration,
    /// The time of the fastest batch.
    pub best: Duration,
    /// The sum that every batch gave.
    pub sum: u64,
}

/// Does `batches` batches, at least one.
///
/// # Errors
/// The first wrong result: not the expected sum, or not that of the batch before.
pub fn measure(
    batch: &mut dyn FnMut() -> Result<u64, Wrong>,
    batches: u32,
    expected: Option<u64>,
) -> Result<Measured, Wrong> {
    let mut total = Duration::ZERO;
    let mut best = Duration::MAX;
    let mut sum = expected;
    for _ in 0..batches.max(1) {
        let from = Instant::now();
        let found = batch()?;
        let time = from.elapsed();
        let right = *sum.get_or_insert(found);
        if found != right {
            return Err(Wrong(format!("its sum is {found:#x}, not {right:#x}")));
        }
        total += time;
        best = best.min(time);
    }
    Ok(Measured {
        total,
        best,
        sum: sum.unwrap_or_default(),
    })
}

/// A sum of bytes that depends on each one and on their order (FNV-1a of 64 bits).
pub const fn sum_of(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut sum = OFFSET;
    let mut at = 0;
    while at < bytes.len() {
        sum = (sum ^ bytes[at] as u64).wrapping_mul(PRIME);
        at += 1;
    }
    sum
}

/// The same of words.
pub fn sum_of_words(words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(0, |sum, word| {
        sum_of(&[sum.to_le_bytes(), word.to_le_bytes()].concat())
    })
}

/// Numbers in no order, the same every time (xorshift32, Marsaglia 2003).
pub fn numbers() -> impl Iterator<Item = u32> {
    let mut state = 0x2545_f491_u32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_batches_are_done_and_the_sum_is_held_against_each() {
        let mut done = 0;
        let mut batch = || {
            done += 1;
            Ok(if done < 5 { 7 } else { 8 })
        };
        let found = measure(&mut batch, 4, Some(7)).expect("all are 7");
        assert_eq!(found.sum, 7);
        assert!(found.best <= found.total);
        assert!(measure(&mut batch, 1, Some(7)).is_err());
        assert_eq!(done, 5);
    }

    #[test]
    fn without_an_expected_sum_the_batches_are_compared() {
        let mut next = 0;
        let mut batch = || {
            next += 1;
            Ok(next)
        };
        assert!(measure(&mut batch, 2, None).is_err());
        assert_eq!(measure(&mut || Ok(3), 2, None).map(|m| m.sum), Ok(3));
    }

    #[test]
    fn the_sum_is_fnv_1a() {
        // The test vectors of the hash's authors.
        assert_eq!(sum_of(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(sum_of(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(sum_of(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
