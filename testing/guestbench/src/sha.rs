//! SHA-256 (FIPS 180-4): by the processor's instructions, and in plain code.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi32,
};
use std::hint::black_box;

use crate::feature::Feature;
use crate::measure::{Batch, Group, Part, Places, Wrong};

/// The message of both parts is "a" so many times, as in the standard's third example.
const MESSAGE_BYTES: u32 = 1_000_000;
/// The first eight bytes of its digest there.
const DIGEST: u64 = 0xcdc7_6e5c_9914_fb92;

/// The parts in the order they run.
pub const PARTS: [Part; 2] = [
    part(
        "sha-instructions",
        &[Feature::Sha, Feature::Sse41],
        140,
        |_| {
            batch(|state, block| {
                // SAFETY: the part runs only where the processor has the instructions.
                unsafe { by_instruction(state, block) }
            })
        },
    ),
    part("sha-plain", &[], 40, |_| batch(plain)),
];

const fn part(
    name: &'static str,
    needs: &'static [Feature],
    batches: u32,
    prepare: fn(&Places) -> Result<Batch, Wrong>,
) -> Part {
    Part {
        name,
        group: Group::Compute,
        operation: "byte",
        needs,
        operations: MESSAGE_BYTES,
        batches,
        expected: Some(DIGEST),
        prepare,
    }
}

type State = [u32; 8];
type Block = [u8; 64];

fn batch(compress: fn(State, &Block) -> State) -> Result<Batch, Wrong> {
    let message = vec![b'a'; MESSAGE_BYTES as usize];
    Ok(Box::new(move || {
        let [high, low, ..] = digest(black_box(&message), compress);
        Ok(u64::from(high) << 32 | u64::from(low))
    }))
}

/// The first 32 bits of the fractional parts of `roots` of the first primes (sections 4.2.2 and 5.3.3): the floor of
/// the root of a prime times a power of two, by bisection.
const fn fractions<const N: usize>(power: u32) -> [u32; N] {
    let mut table = [0; N];
    let mut prime = 2_u128;
    let mut found = 0;
    while found < N {
        let mut divisor = 2;
        while divisor * divisor <= prime && !prime.is_multiple_of(divisor) {
            divisor += 1;
        }
        if divisor * divisor > prime {
            // root = floor(prime^(1/power) * 2^32)
            let scaled = prime << (32 * power);
            let (mut low, mut high) = (0_u128, 1_u128 << 42);
            while high - low > 1 {
                let middle = (low + high) / 2;
                let product = match power {
                    2 => middle * middle,
                    _ => middle * middle * middle,
                };
                if product <= scaled {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            table[found] = low as u32;
            found += 1;
        }
        prime += 1;
    }
    table
}

const INITIAL: State = fractions(2);
const CONSTANTS: [u32; 64] = fractions(3);

fn digest(message: &[u8], compress: fn(State, &Block) -> State) -> State {
    let (blocks, rest) = message.as_chunks::<64>();
    let mut state = blocks.iter().fold(INITIAL, compress);
    // Padding (section 5.1.1): a bit, zeros, the length in bits.
    let mut last = [[0; 64]; 2];
    let used = if rest.len() < 56 { 1 } else { 2 };
    let bytes = last.as_flattened_mut();
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    let bits = (message.len() as u64 * 8).to_be_bytes();
    bytes[used * 64 - 8..used * 64].copy_from_slice(&bits);
    for block in &last[..used] {
        state = compress(state, block);
    }
    state
}

fn words(block: &Block) -> [u32; 16] {
    let (words, _) = block.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_be_bytes(words[i]))
}

/// Section 6.2.2 as it is written.
fn plain(state: State, block: &Block) -> State {
    let mut schedule = [0; 64];
    schedule[..16].copy_from_slice(&words(block));
    for t in 16..64 {
        let (w2, w15) = (schedule[t - 2], schedule[t - 15]);
        let sigma0 = w15.rotate_right(7) ^ w15.rotate_right(18) ^ (w15 >> 3);
        let sigma1 = w2.rotate_right(17) ^ w2.rotate_right(19) ^ (w2 >> 10);
        schedule[t] = sigma1
            .wrapping_add(schedule[t - 7])
            .wrapping_add(sigma0)
            .wrapping_add(schedule[t - 16]);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
    for (constant, word) in CONSTANTS.into_iter().zip(schedule) {
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let t1 = h
            .wrapping_add(sum1)
            .wrapping_add(choice)
            .wrapping_add(constant)
            .wrapping_add(word);
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let t2 = sum0.wrapping_add(majority);
        (h, g, f, e) = (g, f, e, d.wrapping_add(t1));
        (d, c, b, a) = (c, b, a, t1.wrapping_add(t2));
    }
    let end = [a, b, c, d, e, f, g, h];
    std::array::from_fn(|i| state[i].wrapping_add(end[i]))
}

fn four([w0, w1, w2, w3]: [u32; 4]) -> __m128i {
    let [w0, w1, w2, w3] = [w0, w1, w2, w3].map(u32::cast_signed);
    // SAFETY: SSE2, which every x86-64 processor has.
    unsafe { _mm_set_epi32(w3, w2, w1, w0) }
}

/// The same by SHA256RNDS2, SHA256MSG1 and SHA256MSG2 (Intel SDM volume 2, their pages): the state is in two
/// registers, as a, b, e, f and c, d, g, h from the highest to the lowest word.
#[target_feature(enable = "sha,sse4.1,ssse3")]
fn by_instruction(state: State, block: &Block) -> State {
    let [a, b, c, d, e, f, g, h] = state;
    let (mut abef, mut cdgh) = (four([f, e, b, a]), four([h, g, d, c]));
    let words = words(block);
    let mut last: [__m128i; 4] =
        std::array::from_fn(|i| four(std::array::from_fn(|word| words[4 * i + word])));
    for group in 0..16 {
        let constants = four(std::array::from_fn(|i| CONSTANTS[4 * group + i]));
        if group >= 4 {
            let [w16, w12, w8, w4] = last;
            let partial =
                _mm_add_epi32(_mm_sha256msg1_epu32(w16, w12), _mm_alignr_epi8::<4>(w4, w8));
            last = [w12, w8, w4, _mm_sha256msg2_epu32(partial, w4)];
        }
        let current = if group < 4 { last[group] } else { last[3] };
        let sum = _mm_add_epi32(current, constants);
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32::<0x0e>(sum));
    }
    let end = [
        _mm_extract_epi32::<3>(abef),
        _mm_extract_epi32::<2>(abef),
        _mm_extract_epi32::<3>(cdgh),
        _mm_extract_epi32::<2>(cdgh),
        _mm_extract_epi32::<1>(abef),
        _mm_extract_epi32::<0>(abef),
        _mm_extract_epi32::<1>(cdgh),
        _mm_extract_epi32::<0>(cdgh),
    ];
    std::array::from_fn(|i| state[i].wrapping_add(end[i].cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the standard's first editions: "abc", and 448 bits, whose padding takes a block more.
    const EXAMPLES: [(&[u8], State); 2] = [
        (
            b"abc",
            [
                0xba78_16bf,
                0x8f01_cfea,
                0x4141_40de,
                0x5dae_2223,
                0xb003_61a3,
                0x9617_7a9c,
                0xb410_ff61,
                0xf200_15ad,
            ],
        ),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            [
                0x248d_6a61,
                0xd206_38b8,
                0xe5c0_2693,
                0x0c3e_6039,
                0xa33c_e459,
                0x64ff_2167,
                0xf6ec_edd4,
                0x19db_06c1,
            ],
        ),
    ];

    #[test]
    fn the_digest_is_the_standards() {
        for (message, expected) in EXAMPLES {
            assert_eq!(digest(message, plain), expected);
        }
        assert_eq!((INITIAL[0], CONSTANTS[63]), (0x6a09_e667, 0xc671_78f2));
    }

    #[test]
    fn the_instructions_give_the_same() {
        if !Feature::Sha.is_here() || !Feature::Sse41.is_here() {
            eprintln!("skipped: this processor has no SHA instructions");
            return;
        }
        for (message, expected) in EXAMPLES {
            let found = digest(message, |state, block| {
                // SAFETY: the processor has the instructions.
                unsafe { by_instruction(state, block) }
            });
            assert_eq!(found, expected);
        }
    }
}
