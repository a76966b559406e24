//! AES, SHA, carry-less multiplication, against the standards' own examples (FIPS 197, FIPS 180-4, SP 800-38A); volume 1,
//! 12.13 and 5.12, volume 2.

use core::arch::asm;
use core::arch::x86_64::*;

use runtime::cpu::{self, cr4};
use runtime::{check_eq, section, skip};

/// FIPS 197, appendix B.
const KEY: u128 = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c;
const PLAIN: u128 = 0x3243_f6a8_885a_308d_3131_98a2_e037_0734;
const CIPHER: u128 = 0x3925_841d_02dc_09fb_dc11_8597_196a_0b32;
/// SP 800-38A, F.1.1, block 1: the same key.
const PLAIN_2: u128 = 0x6bc1_bee2_2e40_9f96_e93d_7e11_7393_172a;
const CIPHER_2: u128 = 0x3ad7_7bb4_0d7a_3660_a89e_caf3_2466_ef97;

/// FIPS 180-4, 4.2.2.
const K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];
/// "abc", padded to a block.
const ABC: [u32; 16] = [0x6162_6380, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24];

pub fn run() {
    section("vol 2, AES (FIPS 197)");
    if cpu::has(1, 2, 25) {
        // SAFETY: the processor has AES.
        unsafe { aes() };
    } else {
        skip("AES");
    }
    section("vol 2, SHA (FIPS 180-4)");
    if cpu::has(7, 1, 29) && cpu::has(1, 2, 19) {
        // SAFETY: the processor has SHA and SSE4.1.
        unsafe {
            check_eq!(
                sha256(),
                [
                    0xba78_16bf,
                    0x8f01_cfea,
                    0x4141_40de,
                    0x5dae_2223,
                    0xb003_61a3,
                    0x9617_7a9c,
                    0xb410_ff61,
                    0xf200_15ad
                ],
                "SHA-256 of abc"
            );
            check_eq!(
                sha1(),
                [
                    0xa999_3e36,
                    0x4706_816a,
                    0xba3e_2571,
                    0x7850_c26c,
                    0x9cd0_d89d
                ],
                "SHA-1 of abc"
            );
        }
    } else {
        skip("SHA");
    }
    section("vol 2, PCLMULQDQ");
    if cpu::has(1, 2, 1) {
        // SAFETY: the processor has PCLMULQDQ.
        unsafe { carry_less() };
    } else {
        skip("PCLMULQDQ");
    }
}

fn vector(block: u128) -> __m128i {
    // SAFETY: 16 bytes of the same meaning, the first byte of the block first.
    unsafe { core::mem::transmute(block.to_be_bytes()) }
}

fn block(vector: __m128i) -> u128 {
    // SAFETY: as above.
    u128::from_be_bytes(unsafe { core::mem::transmute::<__m128i, [u8; 16]>(vector) })
}

/// FIPS 197, 5.2, by AESKEYGENASSIST.
#[target_feature(enable = "aes")]
fn expand() -> [__m128i; 11] {
    let mut keys = [vector(KEY); 11];
    macro_rules! step {
        ($($i:literal $constant:literal),+) => {
            $({
                let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(keys[$i - 1]));
                let mut key = keys[$i - 1];
                for _ in 0..3 {
                    key = _mm_xor_si128(keys[$i - 1], _mm_slli_si128::<4>(key));
                }
                keys[$i] = _mm_xor_si128(key, word);
            })+
        };
    }
    step!(1 0x01, 2 0x02, 3 0x04, 4 0x08, 5 0x10, 6 0x20, 7 0x40, 8 0x80, 9 0x1b, 10 0x36);
    keys
}

#[target_feature(enable = "aes")]
fn aes() {
    let keys = expand();
    let mut state = _mm_xor_si128(vector(PLAIN), keys[0]);
    for key in &keys[1..10] {
        state = _mm_aesenc_si128(state, *key);
    }
    let state = _mm_aesenclast_si128(state, keys[10]);
    check_eq!(block(state), CIPHER, "AESENC, AESENCLAST, AESKEYGENASSIST");
    let mut state = _mm_xor_si128(state, keys[10]);
    for key in keys[1..10].iter().rev() {
        state = _mm_aesdec_si128(state, _mm_aesimc_si128(*key));
    }
    let state = _mm_aesdeclast_si128(state, keys[0]);
    check_eq!(block(state), PLAIN, "AESDEC, AESDECLAST, AESIMC");
    if !cpu::has(7, 2, 9) || !cpu::has(1, 2, 28) || !cpu::has(1, 2, 26) {
        skip("VAES");
        return;
    }
    let old = cpu::read_cr4();
    cpu::write_cr4(old | cr4::OSXSAVE);
    let mut blocks = [vector(PLAIN), vector(PLAIN_2)];
    // SAFETY: the processor has XSAVE, AVX and VAES; reads eleven keys, changes two blocks.
    unsafe {
        asm!(
            "xor ecx, ecx", "xor edx, edx", "mov eax, 7", "xsetbv",
            "vbroadcasti128 ymm0, [{k}]",
            "vpxor ymm1, ymm0, [{b}]",
            "mov ecx, 9",
            "2:",
            "add {k}, 16",
            "vbroadcasti128 ymm0, [{k}]",
            "vaesenc ymm1, ymm1, ymm0",
            "dec ecx",
            "jnz 2b",
            "vbroadcasti128 ymm0, [{k} + 16]",
            "vaesenclast ymm1, ymm1, ymm0",
            "vmovdqu [{b}], ymm1",
            "vzeroupper",
            k = inout(reg) keys.as_ptr() => _, b = in(reg) blocks.as_mut_ptr(),
            out("eax") _, out("ecx") _, out("edx") _, out("xmm0") _, out("xmm1") _,
        );
    }
    check_eq!(
        blocks.map(block),
        [CIPHER, CIPHER_2],
        "VAES: two blocks at once"
    );
    cpu::write_cr4(old);
}

#[target_feature(enable = "sha,sse4.1")]
fn sha256() -> [u32; 8] {
    let mut m: [__m128i; 4] = core::array::from_fn(|i| words([0, 1, 2, 3].map(|j| ABC[4 * i + j])));
    // ABEF and CDGH, the first letter highest.
    let start = [
        words([0x9b05_688c, 0x510e_527f, 0xbb67_ae85, 0x6a09_e667]),
        words([0x5be0_cd19, 0x1f83_d9ab, 0xa54f_f53a, 0x3c6e_f372]),
    ];
    let [mut s0, mut s1] = start;
    for i in 0..16 {
        if i >= 4 {
            let shifted = _mm_alignr_epi8::<4>(m[(i + 3) % 4], m[(i + 2) % 4]);
            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(m[i % 4], m[(i + 1) % 4]), shifted);
            m[i % 4] = _mm_sha256msg2_epu32(sum, m[(i + 3) % 4]);
        }
        let wk = _mm_add_epi32(m[i % 4], words([0, 1, 2, 3].map(|j| K[4 * i + j])));
        s1 = _mm_sha256rnds2_epu32(s1, s0, wk);
        s0 = _mm_sha256rnds2_epu32(s0, s1, _mm_shuffle_epi32::<0x0e>(wk));
    }
    let [f, e, b, a] = lanes(_mm_add_epi32(s0, start[0]));
    let [h, g, d, c] = lanes(_mm_add_epi32(s1, start[1]));
    [a, b, c, d, e, f, g, h]
}

#[target_feature(enable = "sha,sse4.1")]
fn sha1() -> [u32; 5] {
    let mut m: [__m128i; 4] = core::array::from_fn(|i| words([3, 2, 1, 0].map(|j| ABC[4 * i + j])));
    let start = words([0x1032_5476, 0x98ba_dcfe, 0xefcd_ab89, 0x6745_2301]);
    let fifth = words([0, 0, 0, 0xc3d2_e1f0]);
    let (mut abcd, mut before) = (start, start);
    for i in 0..20 {
        if i >= 4 {
            let first = _mm_sha1msg1_epu32(m[i % 4], m[(i + 1) % 4]);
            m[i % 4] = _mm_sha1msg2_epu32(_mm_xor_si128(first, m[(i + 2) % 4]), m[(i + 3) % 4]);
        }
        let e = if i == 0 {
            _mm_add_epi32(fifth, m[0])
        } else {
            _mm_sha1nexte_epu32(before, m[i % 4])
        };
        before = abcd;
        abcd = match i / 5 {
            0 => _mm_sha1rnds4_epu32::<0>(abcd, e),
            1 => _mm_sha1rnds4_epu32::<1>(abcd, e),
            2 => _mm_sha1rnds4_epu32::<2>(abcd, e),
            _ => _mm_sha1rnds4_epu32::<3>(abcd, e),
        };
    }
    let [_, _, _, e] = lanes(_mm_sha1nexte_epu32(before, fifth));
    let [d, c, b, a] = lanes(_mm_add_epi32(abcd, start));
    [a, b, c, d, e]
}

/// A vector of these words, the lowest first.
fn words(words: [u32; 4]) -> __m128i {
    // SAFETY: 16 bytes of the same meaning.
    unsafe { core::mem::transmute(words) }
}

fn lanes(vector: __m128i) -> [u32; 4] {
    // SAFETY: as above.
    unsafe { core::mem::transmute(vector) }
}

/// The product over GF(2), bit by bit.
fn product(a: u64, b: u64) -> u128 {
    (0..64)
        .filter(|i| b >> i & 1 != 0)
        .fold(0, |sum, i| sum ^ u128::from(a) << i)
}

#[target_feature(enable = "pclmulqdq")]
fn carry_less() {
    let a = [0x6374_6f72_5d53_475d_u64, 0x7b5b_5465_7374_5665];
    let b = [0x5b47_7565_726f_6e5d_u64, 0x4869_2853_6861_7929];
    let v = |x: [u64; 2]| _mm_set_epi64x(x[1] as i64, x[0] as i64);
    let value = |x: __m128i| block(x).swap_bytes();
    let (x, y) = (v(a), v(b));
    check_eq!(
        value(_mm_clmulepi64_si128::<0x00>(x, y)),
        product(a[0], b[0]),
        "low by low"
    );
    check_eq!(
        value(_mm_clmulepi64_si128::<0x01>(x, y)),
        product(a[1], b[0]),
        "high by low"
    );
    check_eq!(
        value(_mm_clmulepi64_si128::<0x10>(x, y)),
        product(a[0], b[1]),
        "low by high"
    );
    check_eq!(
        value(_mm_clmulepi64_si128::<0x11>(x, y)),
        product(a[1], b[1]),
        "high by high"
    );
}
