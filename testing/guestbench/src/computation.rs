//! Integer and floating-point work of ordinary programs, without vectors.

use std::arch::asm;
use std::hint::black_box;

use crate::measure::{Batch, Group, Part, Places, Wrong, numbers, sum_of_words};

/// Bytes of a CRC batch.
const CRC_BYTES: u32 = 512 << 10;
/// The largest number the sieve looks at.
const SIEVE_LIMIT: u32 = 300_000;
/// Elements of a sort batch.
const SORT_ELEMENTS: u32 = 16 << 10;
/// Steps of an orbit batch: one turn around.
const ORBIT_STEPS: u32 = 60_000;
/// Square roots of an x87 batch.
const X87_ROOTS: u32 = 300_000;
/// Modular powers of a batch.
const POWERS: u32 = 5_000;
/// Greatest common divisors of a batch.
const DIVISORS: u32 = 5_000;

/// The parts in the order they run.
pub const PARTS: [Part; 7] = [
    part("crc", "byte", CRC_BYTES, 140, 1_229_902_927, crc),
    // pi(3 * 10^5), by the prime-counting function.
    part("sieve", "number", SIEVE_LIMIT, 140, 25_997, sieve),
    part(
        "sort",
        "element",
        SORT_ELEMENTS,
        140,
        0x3193_5096_04dd_d0b5,
        sort,
    ),
    // Of these two the host's processor gave the sums; the tests hold them against what mathematics says.
    part(
        "float",
        "step of an orbit",
        ORBIT_STEPS,
        140,
        0x5221_9237_f4da_cb54,
        orbit,
    ),
    part(
        "x87",
        "square root and sum",
        X87_ROOTS,
        140,
        0x419a_1e15_449e_35ba,
        x87,
    ),
    // Fermat's little theorem.
    part("multiply", "modular power", POWERS, 140, 1, powers),
    // Neighbours among Fibonacci's numbers have no common divisor.
    part(
        "divide",
        "greatest common divisor",
        DIVISORS,
        140,
        1,
        divisors,
    ),
];

const fn part(
    name: &'static str,
    operation: &'static str,
    operations: u32,
    batches: u32,
    expected: u64,
    prepare: fn(&Places) -> Result<Batch, Wrong>,
) -> Part {
    Part {
        name,
        group: Group::Compute,
        operation,
        needs: &[],
        operations,
        batches,
        expected: Some(expected),
        prepare,
    }
}

/// CRC-32 (ISO 3309, reflected polynomial 0xedb88320) by table: loads, shifts and exclusive ors in one chain of
/// dependences.
fn crc(_: &Places) -> Result<Batch, Wrong> {
    let table = crc_table();
    let data = crc_data();
    Ok(Box::new(move || {
        Ok(u64::from(crc32(&table, black_box(&data))))
    }))
}

fn crc_data() -> Vec<u8> {
    let numbers = numbers().take(CRC_BYTES as usize);
    numbers.map(|n| n.to_le_bytes()[3]).collect()
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

/// The sieve of Eratosthenes over bytes: stores with growing strides.
fn sieve(_: &Places) -> Result<Batch, Wrong> {
    let mut composite = Vec::new();
    Ok(Box::new(move || {
        Ok(count_primes(
            &mut composite,
            black_box(SIEVE_LIMIT as usize),
        ))
    }))
}

fn count_primes(composite: &mut Vec<bool>, limit: usize) -> u64 {
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

/// A heap sort of numbers in no order: compares and branches nobody can predict.
fn sort(_: &Places) -> Result<Batch, Wrong> {
    let unsorted: Vec<u32> = numbers().take(SORT_ELEMENTS as usize).collect();
    let mut sorted = Vec::new();
    Ok(Box::new(move || {
        sorted.clone_from(black_box(&unsorted));
        heap_sort(&mut sorted);
        Ok(sum_of_order(&sorted))
    }))
}

/// Depends on the place of each number.
fn sum_of_order(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |sum: u64, &number| {
        sum.wrapping_mul(31).wrapping_add(u64::from(number))
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
/// a division and a square root. All are rounded as IEEE 754 says, so the result is the same to the last bit.
fn orbit(_: &Places) -> Result<Batch, Wrong> {
    Ok(Box::new(|| {
        let place = turn(black_box(ORBIT_STEPS));
        Ok(sum_of_words(place.map(f64::to_bits)))
    }))
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

/// The sum of the square roots of 1 to a limit in the x87's extended precision.
fn x87(_: &Places) -> Result<Batch, Wrong> {
    Ok(Box::new(
        || Ok(sum_of_roots(black_box(X87_ROOTS)).to_bits()),
    ))
}

fn sum_of_roots(limit: u32) -> f64 {
    let mut sum = 0.0_f64;
    let mut number = u64::from(limit);
    if limit == 0 {
        return sum;
    }
    // SAFETY: it loads and stores the two variables it is given, and leaves the x87's stack as empty as it was.
    unsafe {
        asm!(
            "fldz",
            "2:",
            "fild qword ptr [{number}]",
            "fsqrt",
            "faddp st(1), st",
            "dec qword ptr [{number}]",
            "jnz 2b",
            "fstp qword ptr [{sum}]",
            number = in(reg) &raw mut number,
            sum = in(reg) &raw mut sum,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack),
        );
    }
    sum
}

/// The largest Mersenne prime below 2^64.
const PRIME: u64 = (1 << 61) - 1;

/// Powers modulo a prime: products of 64 by 64 bits.
fn powers(_: &Places) -> Result<Batch, Wrong> {
    Ok(Box::new(|| {
        let mut product = 1;
        for base in 0..u64::from(POWERS) {
            product = times(product, power(black_box(base + 2), PRIME - 1));
        }
        Ok(product)
    }))
}

/// `a` times `b` modulo [`PRIME`]: 2^61 is 1, so the high part is added to the low one.
fn times(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let low = (product & u128::from(PRIME)) as u64;
    let sum = low + (product >> 61) as u64;
    if sum >= PRIME { sum - PRIME } else { sum }
}

fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times(result, base);
        }
        base = times(base, base);
        exponent >>= 1;
    }
    result
}

/// Euclid's algorithm on the two neighbours that take it the most steps: divisions.
fn divisors(_: &Places) -> Result<Batch, Wrong> {
    let (mut small, mut large) = (0_u64, 1_u64);
    while let Some(next) = small.checked_add(large) {
        (small, large) = (large, next);
    }
    Ok(Box::new(move || {
        let mut product = 1;
        for _ in 0..DIVISORS {
            product *= common_divisor(black_box(large), black_box(small));
        }
        Ok(product)
    }))
}

fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(name: &str) -> Option<u64> {
        PARTS.iter().find(|part| part.name == name)?.expected
    }

    #[test]
    fn the_crc_is_the_standards() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(&crc_table(), b"123456789"), 0xcbf4_3926);
        // By definition, a bit at a time.
        let bitwise = !crc_data().iter().fold(!0, |crc, &byte| {
            let low = (crc ^ u32::from(byte)) & 0xff;
            (crc >> 8) ^ crc_of_byte(low)
        });
        assert_eq!(expected("crc"), Some(u64::from(bitwise)));
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
            let mut sorted: Vec<u32> = numbers().take(length).map(|n| n % 8).collect();
            let mut expected = sorted.clone();
            expected.sort_unstable();
            heap_sort(&mut sorted);
            assert_eq!(sorted, expected);
        }
        let mut all: Vec<u32> = numbers().take(SORT_ELEMENTS as usize).collect();
        all.sort_unstable();
        assert_eq!(expected("sort"), Some(sum_of_order(&all)));
    }

    #[test]
    fn a_finer_orbit_ends_nearer() {
        let off = |steps| {
            let [x, y] = turn(steps);
            (x - 1.0).hypot(y)
        };
        assert!(off(1_000) < 1e-3);
        assert!(off(10_000) < off(1_000) / 50.0);
        assert!(off(ORBIT_STEPS) < 1e-7);
    }

    #[test]
    fn roots_are_summed() {
        assert_eq!(sum_of_roots(0), 0.0);
        assert_eq!(sum_of_roots(1), 1.0);
        // Euler and Maclaurin: 2/3 n^1.5 + 1/2 n^0.5 + zeta(-1/2) + 1/24 n^-0.5, the next term being below 1e-9.
        let n = f64::from(X87_ROOTS);
        let near = n.powf(1.5) * 2.0 / 3.0 + n.sqrt() / 2.0 - 0.207_886_224_977_355
            + 1.0 / (24.0 * n.sqrt());
        assert!((sum_of_roots(X87_ROOTS) - near).abs() < 1e-6);
    }

    #[test]
    fn products_are_modular() {
        let slow = |a: u64, b: u64| (u128::from(a) * u128::from(b) % u128::from(PRIME)) as u64;
        for (a, b) in [
            (0, 5),
            (PRIME - 1, PRIME - 1),
            (1 << 60, 3),
            (12_345, 67_890),
        ] {
            assert_eq!(times(a, b), slow(a, b));
        }
        assert_eq!(power(2, 61), 1);
        assert_eq!(power(3, 4), 81);
    }

    #[test]
    fn divisors_are_found() {
        for (a, b, divisor) in [(12, 18, 6), (7, 13, 1), (0, 5, 5), (1_000, 250, 250)] {
            assert_eq!(common_divisor(a, b), divisor);
        }
    }
}
