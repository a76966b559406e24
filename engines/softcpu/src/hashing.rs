//! Hashes of numbers, for maps by pages and blocks.
//!
//! A guest has a say in these numbers, so what they hash to must not be known to it, or it could have all of them meet
//! in one place: a secret is drawn for each map. Behind that a fast mixture of bits is enough (that of SplitMix64:
//! Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map by numbers.
pub type NumberMap<K, V> = HashMap<K, V, Secret>;

/// What numbers are hashed with.
#[derive(Clone, Copy, Debug)]
pub struct Secret(u64);

impl Default for Secret {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl Secret {
    /// The hash of a number.
    #[inline]
    pub fn hash(self, number: u64) -> u64 {
        let mut x = number ^ self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }
}

impl BuildHasher for Secret {
    type Hasher = NumberHasher;

    #[inline]
    fn build_hasher(&self) -> NumberHasher {
        NumberHasher {
            secret: *self,
            hash: 0,
        }
    }
}

/// Hashes one number, or a few one after the other.
#[derive(Clone, Copy, Debug)]
pub struct NumberHasher {
    secret: Secret,
    hash: u64,
}

impl Hasher for NumberHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.hash = self.secret.hash(self.hash ^ number);
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages and places in pages: of numbers at any distance no bucket gets many more than its share.
    #[test]
    fn numbers_at_any_distance_are_spread() {
        const BUCKETS: usize = 1 << 10;
        for _ in 0..8 {
            let secret = Secret::default();
            for distance in 0..48 {
                for shift in [0, 64 - 10] {
                    let mut buckets = vec![0u32; BUCKETS];
                    for n in 0..8 * BUCKETS as u64 {
                        let hash = secret.hash(n << distance);
                        buckets[(hash >> shift) as usize % BUCKETS] += 1;
                    }
                    let most = buckets.into_iter().max().unwrap_or_default();
                    assert!(most < 48, "{most} at {distance}, {secret:?}");
                }
            }
        }
    }

    #[test]
    fn secrets_differ() {
        assert_ne!(Secret::default().0, Secret::default().0);
    }
}
