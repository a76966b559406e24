//! Control flow: indirect calls, returns, and a small interpreter, whose jumps go through a table.

use std::hint::black_box;

use crate::measure::{Batch, Group, Part, Places, Wrong, numbers};

/// Indirect calls of a batch.
const CALLS: u32 = 200_000;
/// The argument of the doubly recursive function.
const FIBONACCI: u64 = 22;
/// How deep the singly recursive one goes, which is deeper than processors remember.
const DEPTH: u64 = 1_000;
/// How often it does.
const DESCENTS: u64 = 300;
/// Calls and returns of a batch: 2 F(n + 1) - 1 of the first function, the others of the second.
const RETURNS: u32 = 57_313 + (DESCENTS * (DEPTH + 1)) as u32;
/// The largest number whose Collatz sequence is walked.
const COLLATZ_LIMIT: u64 = 1_000;
/// The steps of all these sequences.
const COLLATZ_STEPS: u64 = 59_542;
/// What the interpreter executes for that.
const INTERPRETED: u32 = 322_364;

/// The parts in the order they run.
pub const PARTS: [Part; 3] = [
    Part {
        name: "indirect-call",
        group: Group::Compute,
        operation: "call by pointer",
        needs: &[],
        operations: CALLS,
        batches: 140,
        expected: Some(9_277_663_241_410_538_116),
        prepare: indirect_calls,
    },
    Part {
        name: "return",
        group: Group::Compute,
        operation: "call and return",
        needs: &[],
        operations: RETURNS,
        batches: 140,
        expected: Some(17_711 + DESCENTS * (DEPTH * (DEPTH + 1) / 2)),
        prepare: |_| {
            Ok(Box::new(|| {
                let descents = (0..DESCENTS).map(|_| sum_below(black_box(DEPTH)));
                Ok(fibonacci(black_box(FIBONACCI)) + descents.sum::<u64>())
            }))
        },
    },
    Part {
        name: "interpreter",
        group: Group::Compute,
        operation: "interpreted instruction",
        needs: &[],
        operations: INTERPRETED,
        batches: 140,
        expected: Some(COLLATZ_STEPS),
        prepare: |_| Ok(Box::new(|| Ok(interpret(black_box(&COLLATZ)).0))),
    },
];

type Function = fn(u64) -> u64;

/// Sixteen small functions, each with code of its own.
const FUNCTIONS: [Function; 16] = [
    |x| x.wrapping_add(1),
    |x| x.wrapping_mul(3),
    |x| x ^ 0x5555,
    |x| x.rotate_left(5),
    |x| x.wrapping_sub(77),
    |x| x | 0x10,
    |x| x & !0x20,
    |x| x.swap_bytes(),
    |x| x.wrapping_mul(x),
    |x| x ^ (x >> 7),
    |x| !x,
    |x| x.wrapping_neg(),
    |x| x.rotate_right(11),
    |x| x.wrapping_add(x << 3),
    |x| x ^ (x << 13),
    |x| x.wrapping_sub(x >> 2),
];

/// Calls through a table by numbers in no order.
fn indirect_calls(_: &Places) -> Result<Batch, Wrong> {
    let which: Vec<u8> = order();
    Ok(Box::new(move || {
        let table = black_box(FUNCTIONS);
        Ok(which.iter().fold(1, |x, &which| {
            table[usize::from(which) % FUNCTIONS.len()](x)
        }))
    }))
}

fn order() -> Vec<u8> {
    let numbers = numbers().take(CALLS as usize);
    numbers.map(|n| (n >> 20) as u8 % 16).collect()
}

/// Fibonacci's numbers by their definition.
#[inline(never)]
fn fibonacci(n: u64) -> u64 {
    match n {
        0 | 1 => n,
        _ => black_box(fibonacci as Function)(n - 1) + black_box(fibonacci as Function)(n - 2),
    }
}

/// The sum of the numbers up to `n`, each by a call of its own.
#[inline(never)]
fn sum_below(n: u64) -> u64 {
    match n {
        0 => 0,
        _ => black_box(sum_below(n - 1)) + n,
    }
}

/// An instruction of the interpreted machine, which has eight registers.
#[derive(Clone, Copy, Debug)]
enum Instruction {
    /// Register, value.
    Set(u8, u64),
    /// Target, source.
    Copy(u8, u8),
    /// Register, value.
    Add(u8, u64),
    /// Target, factor.
    Multiply(u8, u64),
    /// Register.
    Halve(u8),
    /// Register, where to go if it is odd.
    IfOdd(u8, u8),
    /// Register, value, where to go if it is that.
    IfEqual(u8, u64, u8),
    /// Where to go.
    Go(u8),
    /// Ends with that register.
    End(u8),
}

/// Walks the Collatz sequences of 1 to the limit and counts the steps: register 0 is the number the sequence begins
/// with, 1 where it is, 2 the count.
const COLLATZ: [Instruction; 15] = {
    use Instruction::{Add, Copy, End, Go, Halve, IfEqual, IfOdd, Multiply, Set};
    [
        Set(0, 1),
        Set(2, 0),
        // 2: a sequence begins.
        Copy(1, 0),
        // 3: a step.
        IfEqual(1, 1, 11),
        Add(2, 1),
        IfOdd(1, 8),
        Halve(1),
        Go(3),
        // 8: it is odd.
        Multiply(1, 3),
        Add(1, 1),
        Go(3),
        // 11: the sequence ends.
        IfEqual(0, COLLATZ_LIMIT, 14),
        Add(0, 1),
        Go(2),
        // 14: that was the last one.
        End(2),
    ]
};

/// Gives the result and how many instructions were executed.
fn interpret(program: &[Instruction]) -> (u64, u32) {
    let mut registers = [0_u64; 8];
    let mut at = 0_usize;
    let mut executed = 0;
    loop {
        let instruction = program[at];
        at += 1;
        executed += 1;
        match instruction {
            Instruction::Set(to, value) => registers[usize::from(to % 8)] = value,
            Instruction::Copy(to, from) => {
                registers[usize::from(to % 8)] = registers[usize::from(from % 8)];
            }
            Instruction::Add(to, value) => {
                let register = &mut registers[usize::from(to % 8)];
                *register = register.wrapping_add(value);
            }
            Instruction::Multiply(to, value) => {
                let register = &mut registers[usize::from(to % 8)];
                *register = register.wrapping_mul(value);
            }
            Instruction::Halve(of) => registers[usize::from(of % 8)] >>= 1,
            Instruction::IfOdd(of, place) => {
                if registers[usize::from(of % 8)] & 1 == 1 {
                    at = usize::from(place);
                }
            }
            Instruction::IfEqual(of, value, place) => {
                if registers[usize::from(of % 8)] == value {
                    at = usize::from(place);
                }
            }
            Instruction::Go(place) => at = usize::from(place),
            Instruction::End(of) => return (registers[usize::from(of % 8)], executed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_counts_what_a_loop_counts() {
        let mut steps = 0;
        // Around the sequences: two before the first, two between neighbours, one at the end.
        let mut instructions = 2 + 2 * (COLLATZ_LIMIT as u32 - 1) + 1;
        for start in 1..=COLLATZ_LIMIT {
            let mut number = start;
            // Its copy, the look that finds its end, and the look whether it was the last.
            instructions += 3;
            while number != 1 {
                (number, instructions) = match number % 2 {
                    0 => (number / 2, instructions + 5),
                    _ => (3 * number + 1, instructions + 6),
                };
                steps += 1;
            }
        }
        assert_eq!((steps, instructions), (COLLATZ_STEPS, INTERPRETED));
        assert_eq!(interpret(&COLLATZ), (COLLATZ_STEPS, INTERPRETED));
    }

    #[test]
    fn calls_are_counted() {
        // Every call of fibonacci(n) for n > 1 makes two more.
        fn calls(n: u64) -> u32 {
            match n {
                0 | 1 => 1,
                _ => 1 + calls(n - 1) + calls(n - 2),
            }
        }
        let descents = DESCENTS * (DEPTH + 1);
        assert_eq!(u64::from(RETURNS), u64::from(calls(FIBONACCI)) + descents);
        // OEIS A000045.
        assert_eq!(fibonacci(FIBONACCI), 17_711);
        assert_eq!(sum_below(4), 10);
    }

    #[test]
    fn calls_through_the_table_are_the_direct_ones() {
        let direct = order().into_iter().fold(1_u64, |x, which| match which {
            0 => x.wrapping_add(1),
            1 => x.wrapping_mul(3),
            2 => x ^ 0x5555,
            3 => x.rotate_right(59),
            4 => x.wrapping_sub(77),
            5 => x | 0x10,
            6 => x & !0x20,
            7 => u64::from_be_bytes(x.to_le_bytes()),
            8 => x.wrapping_mul(x),
            9 => x ^ (x >> 7),
            10 => u64::MAX - x,
            11 => 0_u64.wrapping_sub(x),
            12 => x.rotate_left(53),
            13 => x.wrapping_mul(9),
            14 => x ^ (x << 13),
            _ => x.wrapping_sub(x / 4),
        });
        assert_eq!(PARTS[0].expected, Some(direct));
    }
}
