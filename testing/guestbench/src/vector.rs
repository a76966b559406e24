//! Loops over vectors: doubles and bytes, in the registers every x86-64 processor has and in wider ones.

use std::arch::x86_64::{
    __m128d, __m128i, __m256i, _mm_add_epi8, _mm_add_epi64, _mm_add_pd, _mm_and_si128,
    _mm_cvtsi128_si64, _mm_loadu_pd, _mm_loadu_si128, _mm_mul_pd, _mm_sad_epu8, _mm_set1_epi8,
    _mm_set1_pd, _mm_setzero_pd, _mm_setzero_si128, _mm_shuffle_epi8, _mm_srli_epi16,
    _mm_storeu_pd, _mm_unpackhi_epi64, _mm256_add_epi8, _mm256_add_epi64, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_fmadd_pd,
    _mm256_loadu_pd, _mm256_loadu_si256, _mm256_sad_epu8, _mm256_set1_epi8, _mm256_set1_pd,
    _mm256_setzero_pd, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi16,
    _mm256_storeu_pd,
};
use std::hint::black_box;

use crate::feature::Feature;
use crate::measure::{Batch, Group, Part, Places, Wrong, numbers, sum_of_words};

/// Rows and columns of the matrices.
const SIDE: usize = 64;
/// Products of a batch.
const PRODUCTS: u32 = 8;
/// Bytes whose bits are counted.
const BYTES: usize = 64 << 10;
/// How often in a batch.
const COUNTS: u32 = 200;

const MATRIX: &str = "product of 64 x 64 doubles";
const BITS: &str = "count of 64 KiB of bits";

/// The parts in the order they run.
pub const PARTS: [Part; 4] = [
    part("sse2-double", MATRIX, &[], PRODUCTS, |_| {
        matrices(product_sse2)
    }),
    part(
        "avx-double",
        MATRIX,
        &[Feature::Avx2, Feature::Fma],
        PRODUCTS,
        |_| {
            matrices(|a, b, to| {
                // SAFETY: the part runs only where the processor has the instructions.
                unsafe { product_avx(a, b, to) }
            })
        },
    ),
    part("ssse3-bytes", BITS, &[Feature::Ssse3], COUNTS, |_| {
        counts(|bytes| {
            // SAFETY: the part runs only where the processor has the instructions.
            unsafe { bits_ssse3(bytes) }
        })
    }),
    part("avx2-bytes", BITS, &[Feature::Avx2], COUNTS, |_| {
        counts(|bytes| {
            // SAFETY: the part runs only where the processor has the instructions.
            unsafe { bits_avx2(bytes) }
        })
    }),
];

/// The sum of the matrices' product.
const PRODUCT_SUM: u64 = 204_475_944_993_076_155;
/// The bits of a batch.
const BIT_SUM: u64 = 52_424_400;

const fn part(
    name: &'static str,
    operation: &'static str,
    needs: &'static [Feature],
    operations: u32,
    prepare: fn(&Places) -> Result<Batch, Wrong>,
) -> Part {
    let expected = match operations {
        PRODUCTS => PRODUCT_SUM,
        _ => BIT_SUM,
    };
    Part {
        name,
        group: Group::Compute,
        operation,
        needs,
        operations,
        batches: 200,
        expected: Some(expected),
        prepare,
    }
}

type Matrix = [[f64; SIDE]; SIDE];

/// Small whole numbers, so that every order of the additions gives the same product.
fn matrix(skip: usize) -> Box<Matrix> {
    let mut numbers = numbers().skip(skip);
    let mut matrix = Box::new([[0.0; SIDE]; SIDE]);
    for element in matrix.as_flattened_mut() {
        *element = f64::from(numbers.next().unwrap_or_default() >> 20) - 2_048.0;
    }
    matrix
}

fn matrices(product: fn(&Matrix, &Matrix, &mut Matrix)) -> Result<Batch, Wrong> {
    let (a, b, mut to) = (matrix(0), matrix(1_000), matrix(0));
    Ok(Box::new(move || {
        for _ in 0..PRODUCTS {
            product(black_box(&a), black_box(&b), &mut to);
        }
        Ok(sum_of_matrix(&to))
    }))
}

/// Looks at every hundredth element, so that the time is that of the product.
fn sum_of_matrix(matrix: &Matrix) -> u64 {
    sum_of_words(
        matrix
            .as_flattened()
            .iter()
            .step_by(101)
            .map(|x| x.to_bits()),
    )
}

/// By pairs of doubles: MULPD and ADDPD.
fn product_sse2(a: &Matrix, b: &Matrix, to: &mut Matrix) {
    for (row, to) in a.iter().zip(to) {
        for at in (0..SIDE).step_by(2) {
            // SAFETY: SSE2 is in every x86-64 processor; every load and store is of two elements of a row, from an
            // even one.
            unsafe {
                let mut sum: __m128d = _mm_setzero_pd();
                for (&factor, other) in row.iter().zip(b) {
                    let pair = _mm_loadu_pd(other.as_ptr().add(at));
                    sum = _mm_add_pd(sum, _mm_mul_pd(_mm_set1_pd(factor), pair));
                }
                _mm_storeu_pd(to.as_mut_ptr().add(at), sum);
            }
        }
    }
}

/// By fours: VFMADD231PD.
#[target_feature(enable = "avx2,fma")]
fn product_avx(a: &Matrix, b: &Matrix, to: &mut Matrix) {
    for (row, to) in a.iter().zip(to) {
        for at in (0..SIDE).step_by(4) {
            let mut sum = _mm256_setzero_pd();
            for (&factor, other) in row.iter().zip(b) {
                // SAFETY: the load is of four elements of a row, whose length is a multiple of four.
                let four = unsafe { _mm256_loadu_pd(other.as_ptr().add(at)) };
                sum = _mm256_fmadd_pd(_mm256_set1_pd(factor), four, sum);
            }
            // SAFETY: as the load.
            unsafe { _mm256_storeu_pd(to.as_mut_ptr().add(at), sum) };
        }
    }
}

fn counts(count: fn(&[u8]) -> u64) -> Result<Batch, Wrong> {
    let bytes = bytes();
    Ok(Box::new(move || {
        Ok((0..COUNTS).map(|_| count(black_box(&bytes))).sum())
    }))
}

fn bytes() -> Vec<u8> {
    let numbers = numbers().take(BYTES);
    numbers.map(|n| n.to_le_bytes()[2]).collect()
}

/// The bits of every number of four bits.
const BITS_OF: [u8; 16] = [0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4];

/// Counts bits by PSHUFB as a table of sixteen, and PSADBW.
#[target_feature(enable = "ssse3")]
fn bits_ssse3(bytes: &[u8]) -> u64 {
    // SAFETY: the load is of the array's sixteen bytes.
    let table = unsafe { _mm_loadu_si128(BITS_OF.as_ptr().cast()) };
    let low = _mm_set1_epi8(15);
    let zero: __m128i = _mm_setzero_si128();
    let mut sum = zero;
    for sixteen in bytes.as_chunks::<16>().0 {
        // SAFETY: the load is of the chunk's sixteen bytes.
        let value = unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) };
        let of_low = _mm_shuffle_epi8(table, _mm_and_si128(value, low));
        let of_high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16::<4>(value), low));
        sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_add_epi8(of_low, of_high), zero));
    }
    both(sum)
}

fn both(sums: __m128i) -> u64 {
    // SAFETY: SSE2, which every x86-64 processor has.
    let halves = unsafe {
        [
            _mm_cvtsi128_si64(sums),
            _mm_cvtsi128_si64(_mm_unpackhi_epi64(sums, sums)),
        ]
    };
    halves.map(i64::cast_unsigned).iter().sum()
}

/// The same by registers of 32 bytes.
#[target_feature(enable = "avx2")]
fn bits_avx2(bytes: &[u8]) -> u64 {
    // SAFETY: the load is of the array's sixteen bytes.
    let table = unsafe { _mm_loadu_si128(BITS_OF.as_ptr().cast()) };
    let table = _mm256_broadcastsi128_si256(table);
    let low = _mm256_set1_epi8(15);
    let zero: __m256i = _mm256_setzero_si256();
    let mut sum = zero;
    for thirty_two in bytes.as_chunks::<32>().0 {
        // SAFETY: the load is of the chunk's 32 bytes.
        let value = unsafe { _mm256_loadu_si256(thirty_two.as_ptr().cast()) };
        let of_low = _mm256_shuffle_epi8(table, _mm256_and_si256(value, low));
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(value), low);
        let of_high = _mm256_shuffle_epi8(table, high);
        let counted = _mm256_add_epi8(of_low, of_high);
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(counted, zero));
    }
    both(_mm256_castsi256_si128(sum)) + both(_mm256_extracti128_si256::<1>(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_whole_numbers() {
        let (a, b) = (matrix(0), matrix(1_000));
        let mut expected = matrix(0);
        for row in 0..SIDE {
            for column in 0..SIDE {
                let sum: i64 = (0..SIDE)
                    .map(|i| a[row][i] as i64 * b[i][column] as i64)
                    .sum();
                expected[row][column] = sum as f64;
            }
        }
        assert_eq!(PRODUCT_SUM, sum_of_matrix(&expected));
        let mut found = matrix(0);
        product_sse2(&a, &b, &mut found);
        assert_eq!(found, expected);
        if Feature::Avx2.is_here() && Feature::Fma.is_here() {
            let mut found = matrix(0);
            // SAFETY: the processor has the instructions.
            unsafe { product_avx(&a, &b, &mut found) };
            assert_eq!(found, expected);
        } else {
            eprintln!("skipped: this processor has no AVX2 and FMA");
        }
    }

    #[test]
    fn bits_are_counted() {
        let ones: u64 = bytes()
            .iter()
            .map(|byte| u64::from(byte.count_ones()))
            .sum();
        assert_eq!(BIT_SUM, ones * u64::from(COUNTS));
    }
}
