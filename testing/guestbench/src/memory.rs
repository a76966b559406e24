//! Memory: string instructions, copies, and loads that wait for each other.

use std::arch::asm;
use std::hint::black_box;

use crate::measure::{Batch, Group, Part, Places, Wrong, numbers, sum_of};

/// Bytes of each of the two buffers of strings and copies.
const BUFFER_BYTES: usize = 64 << 10;
/// Bytes that all string instructions of a batch touch, rounded by what [`strings`] does.
const STRING_ROUNDS: u32 = 50;
/// The lengths strings have, of short ones and long ones.
const STRING_LENGTHS: [usize; 6] = [3, 17, 64, 250, 1_500, 16_384];
/// String instructions for each length of a round.
const STRING_INSTRUCTIONS: u32 = 6;
/// Copies of a batch.
const COPIES: u32 = 30_000;
/// Bytes of a chase: more than caches hold.
const CHASE_BYTES: usize = 64 << 20;
/// Every step is in another line.
const LINE_BYTES: usize = 64;
/// Steps of a chase batch.
const CHASE_STEPS: u32 = 20_000;

/// The parts in the order they run.
pub const PARTS: [Part; 3] = [
    Part {
        name: "string",
        group: Group::Compute,
        operation: "string instruction",
        needs: &[],
        operations: STRING_ROUNDS * STRING_LENGTHS.len() as u32 * STRING_INSTRUCTIONS,
        batches: 200,
        expected: Some(261_326_818_833_013_505),
        prepare: strings,
    },
    Part {
        name: "memcpy",
        group: Group::Compute,
        operation: "copy of up to 4 KiB",
        needs: &[],
        operations: COPIES,
        batches: 200,
        expected: Some(16_559_910_125_565_589_805),
        prepare: copies,
    },
    Part {
        name: "chase",
        group: Group::Compute,
        operation: "load in 64 MiB",
        needs: &[],
        operations: CHASE_STEPS,
        batches: 70,
        expected: Some(CHASE_STEPS as u64),
        prepare: chase,
    },
];

fn buffer() -> Vec<u8> {
    let numbers = numbers().take(BUFFER_BYTES);
    // Never zero, which is what is scanned for.
    numbers.map(|n| n.to_le_bytes()[3] | 1).collect()
}

/// STOS, MOVS by bytes and by eight, CMPS, SCAS and a backward MOVS with their prefixes, at lengths of short and of
/// long strings and at all alignments.
fn strings(_: &Places) -> Result<Batch, Wrong> {
    let from = buffer();
    let mut to = vec![0; BUFFER_BYTES];
    Ok(Box::new(move || {
        to.fill(0);
        let mut found = 0_usize;
        for round in 0..STRING_ROUNDS as usize {
            for length in black_box(STRING_LENGTHS) {
                let at = (round * 1_021 + length) % (BUFFER_BYTES / 2);
                found += string_instructions(&from[at..], &mut to[at..], length);
            }
        }
        Ok(sum_of(&to[..4096]).wrapping_add(found as u64))
    }))
}

/// Gives how far the compare and the scan came.
fn string_instructions(from: &[u8], to: &mut [u8], length: usize) -> usize {
    assert!(
        from.len() > length && to.len() > length,
        "strings are inside the buffers"
    );
    let (source, target) = (from.as_ptr(), to.as_mut_ptr());
    let (left_of_compare, left_of_scan): (usize, usize);
    // SAFETY: every instruction reads and writes at most `length` bytes (the backward one ends where the strings
    // begin), which both buffers have, and the direction flag is clear again at the end.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") target => _, in("al") 0x5a_u8, options(nostack));
        asm!("rep movsb", inout("rcx") length => _, inout("rsi") source => _, inout("rdi") target => _, options(nostack));
        asm!("rep movsq", inout("rcx") length / 8 => _, inout("rsi") source => _, inout("rdi") target => _, options(nostack));
        target.add(length - 1).write(0);
        asm!("repe cmpsb", inout("rcx") length => left_of_compare, inout("rsi") source => _, inout("rdi") target => _, options(nostack));
        asm!("repne scasb", inout("rcx") length => left_of_scan, inout("rdi") target => _, in("al") 0_u8, options(nostack));
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") length => _,
            inout("rsi") source.add(length - 1) => _,
            inout("rdi") target.add(length - 1) => _,
            options(nostack),
        );
    }
    2 * length - left_of_compare - left_of_scan
}

/// The C library's copy, by its baseline code (see `main`), of lengths and alignments in no order.
fn copies(_: &Places) -> Result<Batch, Wrong> {
    let from = buffer();
    let mut to = vec![0; BUFFER_BYTES];
    let pieces: Vec<(usize, usize, usize)> = pieces();
    Ok(Box::new(move || {
        to.fill(0);
        for &(source, target, length) in black_box(&pieces) {
            to[target..][..length].copy_from_slice(&from[source..][..length]);
        }
        Ok(sum_of(&to[..4096]))
    }))
}

/// Source, target and length of every copy: many short ones, some long ones.
fn pieces() -> Vec<(usize, usize, usize)> {
    let mut numbers = numbers().map(|n| n as usize >> 8);
    let mut next = |limit: usize| numbers.next().unwrap_or(0) % limit;
    (0..COPIES)
        .map(|_| {
            let longest = [16, 64, 256, 4_096][next(4)];
            let length = 1 + next(longest);
            let places = BUFFER_BYTES - length;
            (next(places), next(places), length)
        })
        .collect()
}

/// Goes around a cycle through all lines of a large array in no order: a load whose address is the last one's
/// result, most of them missing caches and the TLB.
fn chase(_: &Places) -> Result<Batch, Wrong> {
    const WORDS: usize = LINE_BYTES / size_of::<u64>();
    let order = cycle(CHASE_BYTES / LINE_BYTES);
    let mut array = vec![0_u64; CHASE_BYTES / size_of::<u64>()];
    for (place, &line) in order.iter().enumerate() {
        let next = order[(place + 1) % order.len()];
        array[line as usize * WORDS] = u64::from(next) * WORDS as u64;
    }
    let mut steps = 0_usize;
    let mut at = u64::from(order[0]) * WORDS as u64;
    Ok(Box::new(move || {
        for _ in 0..CHASE_STEPS {
            at = array[at as usize];
        }
        steps += CHASE_STEPS as usize;
        let there = u64::from(order[steps % order.len()]) * WORDS as u64;
        match at == there {
            true => Ok(u64::from(CHASE_STEPS)),
            false => Err(Wrong(format!(
                "after {steps} steps it is at {at}, not {there}"
            ))),
        }
    }))
}

/// The numbers below `length`, mixed (Fisher and Yates).
fn cycle(length: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..length as u32).collect();
    for (place, number) in (1..length).rev().zip(numbers()) {
        order.swap(place, number as usize % (place + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(name: &str) -> Option<u64> {
        PARTS.iter().find(|part| part.name == name)?.expected
    }

    #[test]
    fn a_cycle_has_every_line_once() {
        let mut order = cycle(1_000);
        assert_ne!(order, (0..1_000).collect::<Vec<u32>>());
        order.sort_unstable();
        assert_eq!(order, (0..1_000).collect::<Vec<u32>>());
    }

    #[test]
    fn copies_give_what_a_loop_over_bytes_gives() {
        let (from, mut to) = (buffer(), vec![0; BUFFER_BYTES]);
        for (source, target, length) in pieces() {
            for i in 0..length {
                to[target + i] = black_box(from[source + i]);
            }
        }
        assert_eq!(expected("memcpy"), Some(sum_of(&to[..4096])));
    }

    #[test]
    fn string_instructions_give_what_loops_give() {
        let (from, mut to) = (buffer(), vec![0; BUFFER_BYTES]);
        let mut found = 0_u64;
        for round in 0..STRING_ROUNDS as usize {
            for length in STRING_LENGTHS {
                let at = (round * 1_021 + length) % (BUFFER_BYTES / 2);
                for i in at..at + length {
                    to[i] = black_box(from[i]);
                }
                // Compare and scan stop behind the last byte, the only one that differs and that is zero.
                found += 2 * length as u64;
            }
        }
        assert_eq!(
            expected("string"),
            Some(sum_of(&to[..4096]).wrapping_add(found))
        );
    }
}
