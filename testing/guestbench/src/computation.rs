//! The parts that only compute: no system calls, no exits. They are what a native run is compared in.

use std::hint::black_box;

use crate::measure::{Part, Wrong};

/// Bytes of a CRC batch.
const CRC_BYTES: u32 = 128 << 10;
/// The largest number the sieve looks at.
const SIEVE_LIMIT: u32 = 100_000;
/// The number of primes up to that: pi(10^5), OEIS A006880.
const PRIMES: usize = 9_592;
/// Elements of a sort batch.
const SORT_ELEMENTS: u32 = 16 << 10;
/// Steps of an orbit batch: one turn around.
const ORBIT_STEPS: u32 = 10_000;

/// The parts in the order they run.
pub fn parts() -> Vec<Part> {
    vec![crc(), sieve(), sort(), orbit()]
}

/// CRC-32 (ISO 3309, reflected polynomial 0xedb88320) by table: loads, shifts and exclusive ors in one chain of
/// dependences. An operation is a byte.
fn crc() -> Part {
    let table = crc_table();
    let data: Vec<u8> = numbers(CRC_BYTES).map(|n| n.to_le_bytes()[3]).collect();
    let twin = crc_bitwise(&data);
    Part::new("crc", CRC_BYTES, move || {
        let found = crc32(&table, black_box(&data));
        check(found == twin, || {
            format!("crc gives {found:#x}, not {twin:#x}")
        })
    })
}

fn crc_table() -> [u32; 256] {
    std::array::from_fn(|byte| crc_of_byte(u32::try_from(byte).expect("a byte")))
}

fn crc_of_byte(byte: u32) -> u32 {
    (0..8).fold(byte, |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
}

fn crc32(table: &[u32; 256], data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ table[usize::from(low ^ byte)]
    })
}

/// The same without the table, which the fast one is checked against.
fn crc_bitwise(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        let low = (crc ^ u32::from(byte)) & 0xff;
        (crc >> 8) ^ crc_of_byte(low)
    })
}

/// The sieve of Eratosthenes over bytes: stores with growing strides. An operation is a number looked at.
fn sieve() -> Part {
    let mut composite = Vec::new();
    Part::new("sieve", SIEVE_LIMIT, move || {
        let found = count_primes(&mut composite, black_box(SIEVE_LIMIT as usize));
        check(found == PRIMES, || {
            format!("the sieve finds {found} primes, not {PRIMES}")
        })
    })
}

fn count_primes(composite: &mut Vec<bool>, limit: usize) -> usize {
    composite.clear();
    composite.resize(limit + 1, false);
    let mut primes = 0;
    for number in 2..=limit {
        if composite[number] {
            continue;
        }
        primes += 1;
        for multiple in (number * number..=limit).step_by(number) {
            composite[multiple] = true;
        }
    }
    primes
}

/// A heap sort of numbers in no order: compares and branches nobody can predict. An operation is an element.
fn sort() -> Part {
    let unsorted: Vec<u32> = numbers(SORT_ELEMENTS).collect();
    let sum = |numbers: &[u32]| numbers.iter().fold(0_u32, |sum, &n| sum.wrapping_add(n));
    let expected = sum(&unsorted);
    let mut numbers = Vec::new();
    Part::new("sort", SORT_ELEMENTS, move || {
        numbers.clone_from(black_box(&unsorted));
        heap_sort(&mut numbers);
        check(numbers.is_sorted() && sum(&numbers) == expected, || {
            "the sort does not sort".into()
        })
    })
}

fn heap_sort(numbers: &mut [u32]) {
    for root in (0..numbers.len() / 2).rev() {
        sift_down(numbers, root);
    }
    for end in (1..numbers.len()).rev() {
        numbers.swap(0, end);
        sift_down(&mut numbers[..end], 0);
    }
}

fn sift_down(heap: &mut [u32], mut root: usize) {
    loop {
        let mut child = 2 * root + 1;
        if child >= heap.len() {
            return;
        }
        if child + 1 < heap.len() && heap[child] < heap[child + 1] {
            child += 1;
        }
        if heap[root] >= heap[child] {
            return;
        }
        heap.swap(root, child);
        root = child;
    }
}

/// A body on a circle around another, by the leapfrog method: scalar double-precision additions, multiplications,
/// a division and a square root. An operation is a step.
fn orbit() -> Part {
    Part::new("float", ORBIT_STEPS, || {
        let [x, y] = turn(black_box(ORBIT_STEPS));
        // The method is of second order: with 10,000 steps the error of a turn is far below this.
        let off = (x - 1.0).hypot(y);
        check(off < 1e-3, || {
            format!("the orbit ends {off} from where it began")
        })
    })
}

/// Where a body is after one turn of period 2 pi on the unit circle.
fn turn(steps: u32) -> [f64; 2] {
    let step = 2.0 * std::f64::consts::PI / f64::from(steps);
    let pull = |[x, y]: [f64; 2]| {
        let square = x * x + y * y;
        let factor = -1.0 / (square * square.sqrt());
        [x * factor, y * factor]
    };
    let mut place = [1.0, 0.0];
    let mut speed = [0.0, 1.0];
    let mut force = pull(place);
    for _ in 0..steps {
        for axis in 0..2 {
            speed[axis] += force[axis] * step * 0.5;
            place[axis] += speed[axis] * step;
        }
        force = pull(place);
        for axis in 0..2 {
            speed[axis] += force[axis] * step * 0.5;
        }
    }
    place
}

/// `count` numbers in no order, the same every time (xorshift32, Marsaglia 2003).
fn numbers(count: u32) -> impl Iterator<Item = u32> {
    let mut state = 0x2545_f491_u32;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

fn check(right: bool, what: impl FnOnce() -> String) -> Result<(), Wrong> {
    if right { Ok(()) } else { Err(Wrong(what())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_the_standards() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(&crc_table(), b"123456789"), 0xcbf4_3926);
        assert_eq!(crc_bitwise(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn primes_are_counted() {
        // OEIS A006880.
        for (limit, primes) in [(10, 4), (100, 25), (1_000, 168), (10_000, 1_229)] {
            assert_eq!(count_primes(&mut Vec::new(), limit), primes);
        }
    }

    #[test]
    fn numbers_are_sorted() {
        for length in 0..40 {
            let mut sorted: Vec<u32> = numbers(length).map(|n| n % 8).collect();
            let mut expected = sorted.clone();
            expected.sort_unstable();
            heap_sort(&mut sorted);
            assert_eq!(sorted, expected);
        }
    }

    #[test]
    fn a_finer_orbit_ends_nearer() {
        let off = |steps| {
            let [x, y] = turn(steps);
            (x - 1.0).hypot(y)
        };
        assert!(off(1_000) < 1e-3);
        assert!(off(10_000) < off(1_000) / 50.0);
    }
}
