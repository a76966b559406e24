//! Where pages larger than 4 KByte have been translated.
//!
//! The software TLB holds 4 KByte fragments. INVLPG on any address of a larger page has to take all its
//! fragments away (SDM Vol 3 4.10.4.1), so this remembers the regions of linear addresses that such a page was used in.
//! It is exact, whatever address: an INVLPG of a small page must not cost what one of a large page does because of where
//! the two happen to lie.

/// Places of the table: a power of two.
const PLACES: usize = 4096;
/// With more regions than this an INVLPG of a large page starts anew.
const CROWDED: usize = 1024;
/// With more than this there is no room for others.
const FULL: usize = PLACES / 2;

/// What may have been used around an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// Pages of 4 KByte only.
    Small,
    /// Also one of 2 MByte, or one half of one of 4 MByte.
    By2M,
    /// Also one of 1 GByte; or it is not known.
    By1G,
}

/// The regions: a hash table without removal.
pub struct LargePages {
    /// Keys ([`key`]), zero where there is none.
    table: Box<[u64; PLACES]>,
    /// How many.
    count: usize,
    /// There was no room for one.
    full: bool,
}

impl Default for LargePages {
    fn default() -> Self {
        Self {
            table: Box::new([0; PLACES]),
            count: 0,
            full: false,
        }
    }
}

/// The key of a region of 2 MByte, or of 1 GByte.
const fn key(va: u64, giant: bool) -> u64 {
    let region = va >> if giant { 30 } else { 21 };
    region << 2 | (giant as u64) << 1 | 1
}

impl LargePages {
    /// The place of a key, or where it would come; there always is an empty one.
    fn place(&self, key: u64) -> usize {
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % PLACES;
        while self.table[at] != key && self.table[at] != 0 {
            at = (at + 1) % PLACES;
        }
        at
    }

    /// A page of 2^`size_log2` bytes around `va` was translated.
    pub fn note(&mut self, va: u64, size_log2: u32) {
        match size_log2 {
            0..=12 => {}
            13..=21 => self.add(key(va, false)),
            // A 4 MByte page is two regions.
            22 => {
                self.add(key(va, false));
                self.add(key(va ^ 1 << 21, false));
            }
            _ => self.add(key(va, true)),
        }
    }

    fn add(&mut self, key: u64) {
        let at = self.place(key);
        if self.table[at] == key {
            return;
        }
        if self.count >= FULL {
            self.full = true;
            return;
        }
        self.table[at] = key;
        self.count += 1;
    }

    /// What was used around `va`.
    pub fn around(&self, va: u64) -> Covered {
        let has = |key| self.table[self.place(key)] == key;
        if self.full || has(key(va, true)) {
            Covered::By1G
        } else if has(key(va, false)) {
            Covered::By2M
        } else {
            Covered::Small
        }
    }

    /// Whether so much is noted that it should be dropped together with every translation.
    pub fn crowded(&self) -> bool {
        self.count > CROWDED
    }

    /// Forgets everything; no translation may be left.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions() {
        let mut l = LargePages::default();
        assert_eq!(l.around(0x7f00_1234_5000), Covered::Small);
        l.note(0x7f00_1234_5000, 12);
        assert_eq!(l.around(0x7f00_1234_5000), Covered::Small);
        l.note(0x7f00_1234_5000, 21);
        for inside in [0x7f00_1220_0000, 0x7f00_123f_ffff] {
            assert_eq!(l.around(inside), Covered::By2M);
        }
        for beside in [0x7f00_121f_ffff, 0x7f00_1240_0000] {
            assert_eq!(l.around(beside), Covered::Small);
        }
        l.note(0x40_0000, 22);
        l.note(0xa0_0000, 22);
        for half in [0x40_0000, 0x60_0000, 0x80_0000, 0xa0_0000] {
            assert_eq!(l.around(half), Covered::By2M);
        }
        l.note(0xffff_8880_4000_0000, 30);
        assert_eq!(l.around(0xffff_8880_7fff_f000), Covered::By1G);
        l.clear();
        assert_eq!(l.around(0x7f00_1234_5000), Covered::Small);
    }

    /// As many as a guest likes: none of those noted is ever denied.
    #[test]
    fn more_than_there_is_room_for() {
        let mut l = LargePages::default();
        for i in 0..1024 {
            l.note(i << 21, 21);
        }
        assert!(!l.crowded());
        assert_eq!(l.around(1024 << 21), Covered::Small);
        for i in 0..100_000u64 {
            l.note(i << 21, 21);
            assert_ne!(l.around(i << 21), Covered::Small);
        }
        assert!(l.crowded());
    }
}
