//! What a part is, and how its time is taken.

use std::fmt;
use std::time::{Duration, Instant};

/// How often a batch is run at least, whatever its share of time.
const FEWEST_BATCHES: u32 = 3;

/// A batch that gave a wrong result: what, as half a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One part of the benchmark.
pub struct Part {
    /// Its name: lower-case letters and dashes.
    pub name: &'static str,
    /// How many operations a batch has.
    pub operations: u32,
    /// Does a batch and checks its result.
    pub batch: Box<dyn FnMut() -> Result<(), Wrong>>,
}

impl Part {
    /// A part whose batch of `operations` is done by `batch`.
    pub fn new(
        name: &'static str,
        operations: u32,
        batch: impl FnMut() -> Result<(), Wrong> + 'static,
    ) -> Self {
        assert!(operations > 0, "a batch does something");
        Self {
            name,
            operations,
            batch: Box::new(batch),
        }
    }
}

/// Runs the part for its `share` of time and gives the nanoseconds an operation took in the fastest batch.
///
/// # Errors
/// The first wrong result.
pub fn fastest(part: &mut Part, share: Duration) -> Result<f64, Wrong> {
    let started = Instant::now();
    let mut best = Duration::MAX;
    let mut batches = 0;
    while batches < FEWEST_BATCHES || started.elapsed() < share {
        let from = Instant::now();
        (part.batch)()?;
        best = best.min(from.elapsed());
        batches = batches.saturating_add(1);
    }
    Ok(best.as_secs_f64() * 1e9 / f64::from(part.operations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_runs_a_few_times_even_without_time() {
        let mut part = Part::new("p", 1, {
            let mut left = FEWEST_BATCHES;
            move || {
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| Wrong("too often".into()))?;
                Ok(())
            }
        });
        assert!(fastest(&mut part, Duration::ZERO).is_ok());
        assert!(fastest(&mut part, Duration::ZERO).is_err());
    }
}
