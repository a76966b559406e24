//! AES-128 (FIPS 197): by the processor's instructions, and byte by byte as the standard is written.

use std::arch::x86_64::{
    __m128i, _mm_aesenc_si128, _mm_aesenclast_si128, _mm_loadu_si128, _mm_storeu_si128,
    _mm_xor_si128,
};
use std::hint::black_box;

use crate::feature::Feature;
use crate::measure::{Group, Part};

/// Blocks of a batch by instruction.
const BLOCKS_BY_INSTRUCTION: u32 = 50_000;
/// Blocks of a batch in plain code.
const PLAIN_BLOCKS: u32 = 3_000;
/// The key and the first block: those of FIPS 197, appendix B.
const KEY: Block = [
    0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c,
];
const FIRST: Block = [
    0x32, 0x43, 0xf6, 0xa8, 0x88, 0x5a, 0x30, 0x8d, 0x31, 0x31, 0x98, 0xa2, 0xe0, 0x37, 0x07, 0x34,
];

/// The parts in the order they run. Both encrypt a block, then the result, and so on.
pub const PARTS: [Part; 2] = [
    Part {
        name: "aes-instructions",
        group: Group::Compute,
        operation: "block of 16 bytes",
        needs: &[Feature::Aes],
        operations: BLOCKS_BY_INSTRUCTION,
        batches: 140,
        expected: Some(2_554_172_567_836_807_525),
        prepare: |_| {
            let keys = round_keys(KEY);
            Ok(Box::new(move || {
                // SAFETY: the part runs only where the processor has AES instructions.
                let last =
                    unsafe { by_instruction(black_box(&keys), FIRST, BLOCKS_BY_INSTRUCTION) };
                Ok(sum(last))
            }))
        },
    },
    Part {
        name: "aes-plain",
        group: Group::Compute,
        operation: "block of 16 bytes",
        needs: &[],
        operations: PLAIN_BLOCKS,
        batches: 140,
        expected: Some(3_473_748_062_230_173_210),
        prepare: |_| {
            let keys = round_keys(KEY);
            Ok(Box::new(move || {
                Ok(sum(plain(black_box(&keys), FIRST, PLAIN_BLOCKS)))
            }))
        },
    },
];

type Block = [u8; 16];
type RoundKeys = [Block; 11];

fn sum([b0, b1, b2, b3, b4, b5, b6, b7, ..]: Block) -> u64 {
    u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
}

/// A product in the field of FIPS 197, section 4.2.
const fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

const fn double(a: u8) -> u8 {
    (a << 1) ^ (0x1b * (a >> 7))
}

/// SubBytes: the inverse in the field (its 254th power), then the affine map (section 5.1.1).
const SUBSTITUTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let base = byte as u8;
        let mut inverse = 1;
        let mut exponent = 0;
        while exponent < 254 {
            inverse = times(inverse, base);
            exponent += 1;
        }
        table[byte] = inverse
            ^ inverse.rotate_left(1)
            ^ inverse.rotate_left(2)
            ^ inverse.rotate_left(3)
            ^ inverse.rotate_left(4)
            ^ 0x63;
        byte += 1;
    }
    table
};

fn substitute(byte: u8) -> u8 {
    SUBSTITUTES[usize::from(byte)]
}

/// KeyExpansion (section 5.2).
fn round_keys(key: Block) -> RoundKeys {
    let mut keys = [key; 11];
    let mut constant = 1;
    for round in 1..keys.len() {
        let last = keys[round - 1];
        let mut word = [last[13], last[14], last[15], last[12]].map(substitute);
        word[0] ^= constant;
        constant = double(constant);
        for at in 0..16 {
            let before = if at < 4 {
                word[at]
            } else {
                keys[round][at - 4]
            };
            keys[round][at] = last[at] ^ before;
        }
    }
    keys
}

/// Encrypts `count` times over, a transformation at a time (section 5.1).
fn plain(keys: &RoundKeys, mut block: Block, count: u32) -> Block {
    for _ in 0..count {
        block = xor(block, keys[0]);
        for key in &keys[1..10] {
            block = xor(mix_columns(shift_rows(block.map(substitute))), *key);
        }
        block = xor(shift_rows(block.map(substitute)), keys[10]);
    }
    block
}

fn xor(a: Block, b: Block) -> Block {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// Byte `i` is in row `i % 4`, and row `r` moves by `r` columns.
fn shift_rows(block: Block) -> Block {
    std::array::from_fn(|i| block[(i + 4 * (i % 4)) % 16])
}

fn mix_columns(block: Block) -> Block {
    std::array::from_fn(|i| {
        let in_column = |row: usize| block[i / 4 * 4 + (i + row) % 4];
        let next = in_column(1);
        double(in_column(0)) ^ double(next) ^ next ^ in_column(2) ^ in_column(3)
    })
}

/// Encrypts `count` times over by AESENC and AESENCLAST.
#[target_feature(enable = "aes")]
fn by_instruction(keys: &RoundKeys, block: Block, count: u32) -> Block {
    let load = |bytes: &Block| -> __m128i {
        // SAFETY: the load is of the array's sixteen bytes, at any alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    let keys: [__m128i; 11] = std::array::from_fn(|round| load(&keys[round]));
    let mut state = load(&block);
    for _ in 0..count {
        state = _mm_xor_si128(state, keys[0]);
        for &key in &keys[1..10] {
            state = _mm_aesenc_si128(state, key);
        }
        state = _mm_aesenclast_si128(state, keys[10]);
    }
    let mut result = [0; 16];
    // SAFETY: the store is to the array's sixteen bytes, at any alignment.
    unsafe { _mm_storeu_si128(result.as_mut_ptr().cast(), state) };
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cipher's output in FIPS 197, appendix B.
    const ENCRYPTED: Block = [
        0x39, 0x25, 0x84, 0x1d, 0x02, 0xdc, 0x09, 0xfb, 0xdc, 0x11, 0x85, 0x97, 0x19, 0x6a, 0x0b,
        0x32,
    ];

    #[test]
    fn the_cipher_is_the_standards() {
        let keys = round_keys(KEY);
        assert_eq!(plain(&keys, FIRST, 1), ENCRYPTED);
        // Both parts are checked against the code that is.
        for (part, blocks) in PARTS.iter().zip([BLOCKS_BY_INSTRUCTION, PLAIN_BLOCKS]) {
            assert_eq!(
                part.expected,
                Some(sum(plain(&keys, FIRST, blocks))),
                "{}",
                part.name
            );
        }
        if Feature::Aes.is_here() {
            // SAFETY: the processor has the instructions.
            assert_eq!(unsafe { by_instruction(&keys, FIRST, 1) }, ENCRYPTED);
        } else {
            eprintln!("skipped: this processor has no AES instructions");
        }
    }
}
