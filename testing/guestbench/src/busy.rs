//! The same work on one processor and on two at once.

use std::hint::black_box;
use std::thread;

use crate::measure::{Group, Part, Wrong};

/// Pieces of work a thread does in a batch.
const PIECES: u32 = 20;
/// Turns of the loop that is a piece.
const TURNS: u64 = 100_000;

/// The parts in the order they run: where both processors run at full speed, an operation takes half as long in the
/// second.
pub const PARTS: [Part; 2] = [part("one-busy", 1), part("two-busy", 2)];

const fn part(name: &'static str, threads: u32) -> Part {
    Part {
        name,
        group: Group::Processors,
        operation: "piece of work",
        needs: &[],
        operations: PIECES * threads,
        batches: 100,
        expected: Some(PIECES as u64 * threads as u64),
        prepare: match threads {
            1 => |_| Ok(Box::new(|| at_once(1))),
            _ => |_| Ok(Box::new(|| at_once(2))),
        },
    }
}

/// Runs so many threads and gives how many pieces came out right.
fn at_once(threads: u32) -> Result<u64, Wrong> {
    let running: Vec<_> = (0..threads)
        .map(|_| thread::spawn(|| (0..PIECES).filter(|_| piece() == last()).count() as u64))
        .collect();
    let mut right = 0;
    for thread in running {
        right += thread
            .join()
            .map_err(|_| Wrong("a thread panicked".into()))?;
    }
    Ok(right)
}

/// The generator `x -> 5 x + 1` modulo 2^64: one number after the other.
fn piece() -> u64 {
    (0..black_box(TURNS)).fold(0, |x: u64, _| black_box(x).wrapping_mul(5).wrapping_add(1))
}

/// Where it is after all turns: (5^n - 1) / 4, the sum of the powers of five.
fn last() -> u64 {
    let (mut sum, mut power) = (0_u64, 1_u64);
    for bit in (0..u64::BITS).rev() {
        // From n to 2 n: sum (1 + 5^n), then to 2 n + 1.
        sum = sum.wrapping_mul(power.wrapping_add(1));
        power = power.wrapping_mul(power);
        if TURNS >> bit & 1 == 1 {
            sum = sum.wrapping_mul(5).wrapping_add(1);
            power = power.wrapping_mul(5);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_ends_where_the_formula_says() {
        assert_eq!(piece(), last());
    }
}
