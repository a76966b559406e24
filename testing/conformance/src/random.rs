//! Reproducible random numbers and the corner values of operands.

/// xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2018), seeded by
/// splitmix64.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The sequence of `seed`, `stream`, `number`.
    #[must_use]
    pub fn new(seed: u64, stream: u64, number: u64) -> Self {
        let mut s = seed;
        s = splitmix64(&mut s) ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        s = splitmix64(&mut s) ^ number.wrapping_mul(0xaf25_1af3_b0f0_25b5);
        Self {
            state: std::array::from_fn(|_| splitmix64(&mut s)),
        }
    }

    /// The next 64 bits.
    pub fn bits64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound` (not zero).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits64()) * u128::from(bound)) >> 64) as u64
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of `choices` (not empty).
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An integer of `bits` (1 to 64) bits: corner values half of the time. Upper bits are zero.
    pub fn integer(&mut self, bits: u32) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        let value = match self.below(16) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => 1 << (bits - 1),
            4 => (1 << (bits - 1)) - 1,
            5 => 1 << self.below(u64::from(bits)),
            6 => (1u64 << self.below(u64::from(bits))).wrapping_neg(),
            7 => self.below(256),
            8 => (self.bits64() as i64 >> self.below(64)) as u64,
            9 => self.bits64() >> self.below(64),
            10 => self.bits64() & self.bits64() & self.bits64(),
            _ => self.bits64(),
        };
        value & mask
    }

    /// A floating-point number of `exponent` exponent and `fraction` fraction bits: zeros, denormals,
    /// infinities, quiet and signaling NaNs, small integers, near one, any.
    fn float(&mut self, exponent: u32, fraction: u32) -> u64 {
        let sign = (self.bits64() & 1) << (exponent + fraction);
        let top = (1u64 << exponent) - 1;
        let bias = top >> 1;
        let fraction_mask = (1u64 << fraction) - 1;
        let random_fraction = if self.chance(500) {
            self.bits64() & fraction_mask
        } else {
            self.bits64() & self.bits64() & self.bits64() & fraction_mask
                | (self.bits64() & 1) << (fraction - 1)
        };
        sign | match self.below(16) {
            0 => 0,
            1 => random_fraction,
            2 => top << fraction,
            3 => top << fraction | 1 << (fraction - 1) | random_fraction,
            4 => top << fraction | (random_fraction & (fraction_mask >> 1)) | 1,
            5 => bias << fraction,
            6 => (bias + self.below(12)) << fraction | random_fraction & !(fraction_mask >> 12),
            7 => (bias + self.below(u64::from(fraction) + 8)) << fraction | random_fraction,
            8 => (top - 1) << fraction | fraction_mask,
            9 => 1 << fraction | random_fraction,
            10..=13 => {
                (bias.wrapping_sub(8).wrapping_add(self.below(16)) & top) << fraction
                    | random_fraction
            }
            _ => self.bits64() & (top << fraction) | random_fraction,
        }
    }

    /// Half precision.
    pub fn float16(&mut self) -> u16 {
        self.float(5, 10) as u16
    }

    /// Single precision.
    pub fn float32(&mut self) -> u32 {
        self.float(8, 23) as u32
    }

    /// Double precision.
    pub fn float64(&mut self) -> u64 {
        self.float(11, 52)
    }

    /// Double extended precision, sometimes an unsupported encoding (SDM Vol 1 8.2.2).
    pub fn float80(&mut self) -> [u8; 10] {
        let (exponent, significand) = match self.below(20) {
            0 => (0, 0),
            1 => (0, self.bits64() >> 1),
            2 => (0x7fff, 1 << 63),
            3 => (0x7fff, 3 << 62 | self.bits64() >> 2),
            4 => (0x7fff, 1 << 63 | self.bits64() >> 2 | 1),
            5 => (0x3fff, 1 << 63),
            6 => (
                0x3fff + self.below(16),
                1 << 63 | (self.bits64() >> 1) & !0 << 50,
            ),
            7 => (0x3fff + self.below(72), 1 << 63 | self.bits64()),
            8 => (0x7ffe, u64::MAX),
            9 => (self.bits64() & 0x7fff, self.bits64() >> 1),
            10 => (0, 1 << 63 | self.bits64()),
            11 => (0x3f00 + self.below(0x200), 1 << 63 | self.bits64()),
            12 => (
                0x3c00 + self.below(0x800),
                1 << 63 | self.bits64() & !0 << 11,
            ),
            13..=16 => (0x3ff8 + self.below(16), 1 << 63 | self.bits64()),
            _ => (self.bits64() & 0x7fff, 1 << 63 | self.bits64()),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        let sign = (self.bits64() as u16) << 15;
        bytes[8..].copy_from_slice(&(exponent as u16 | sign).to_le_bytes());
        bytes
    }

    /// Fills `bytes` with lanes of `kind`.
    pub fn fill(&mut self, kind: Lane, bytes: &mut [u8]) {
        let width = kind.bytes();
        for chunk in bytes.chunks_mut(width) {
            let lane = match kind {
                Lane::Int8 => self.integer(8),
                Lane::Int16 => self.integer(16),
                Lane::Int32 => self.integer(32),
                Lane::Int64 => self.integer(64),
                Lane::Float16 => u64::from(self.float16()),
                Lane::Float32 => u64::from(self.float32()),
                Lane::Float64 => self.float64(),
                Lane::Text => 0x20 + self.below(6),
                Lane::Any => self.bits64(),
            };
            chunk.copy_from_slice(&lane.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// What the lanes of an operand are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// 8-bit integers.
    Int8,
    /// 16-bit integers.
    Int16,
    /// 32-bit integers.
    Int32,
    /// 64-bit integers.
    Int64,
    /// Half precision.
    Float16,
    /// Single precision.
    Float32,
    /// Double precision.
    Float64,
    /// Bytes of a small alphabet, so that string comparisons meet equal ones.
    Text,
    /// Uniform.
    Any,
}

impl Lane {
    fn bytes(self) -> usize {
        match self {
            Self::Int8 | Self::Text => 1,
            Self::Int16 | Self::Float16 => 2,
            Self::Int32 | Self::Float32 => 4,
            Self::Int64 | Self::Float64 | Self::Any => 8,
        }
    }
}
