//! Where pages larger than 4 KByte have been translated.
//!
//! The software TLB holds 4 KByte fragments. INVLPG on any address of a larger page has to take all its
//! fragments away (SDM Vol 3 4.10.4.1), so this remembers, for coarse regions of linear addresses, that such a
//! page was used there. Regions share places: an answer may be "maybe" for nothing, never "no" for something.

/// Regions of 2 MByte, and of 1 GByte, each one bit in a table of this many words.
const WORDS: usize = 64;
/// Above this many set bits most answers would be "maybe": start anew.
const CROWDED: u32 = 16 * WORDS as u32;

/// The regions.
pub struct LargePages {
    of_2m: [u64; WORDS],
    of_1g: [u64; WORDS],
    set: u32,
}

impl Default for LargePages {
    fn default() -> Self {
        Self {
            of_2m: [0; WORDS],
            of_1g: [0; WORDS],
            set: 0,
        }
    }
}

/// Place of a region in its table.
fn place(region: u64) -> (usize, u64) {
    let hash = region.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
    (hash as usize / 64 % WORDS, 1 << (hash % 64))
}

impl LargePages {
    /// A page of 2^`size_log2` bytes around `va` was translated.
    pub fn note(&mut self, va: u64, size_log2: u32) {
        match size_log2 {
            0..=12 => {}
            13..=21 => self.note_2m(va >> 21),
            // A 4 MByte page is two regions.
            22 => {
                self.note_2m(va >> 21);
                self.note_2m(va >> 21 ^ 1);
            }
            _ => {
                let (word, bit) = place(va >> 30);
                self.set += u32::from(self.of_1g[word] & bit == 0);
                self.of_1g[word] |= bit;
            }
        }
    }

    fn note_2m(&mut self, region: u64) {
        let (word, bit) = place(region);
        self.set += u32::from(self.of_2m[word] & bit == 0);
        self.of_2m[word] |= bit;
    }

    /// Whether a large page may have been used at `va`.
    pub fn may_cover(&self, va: u64) -> bool {
        let has = |table: &[u64; WORDS], region| {
            let (word, bit) = place(region);
            table[word] & bit != 0
        };
        has(&self.of_2m, va >> 21) || has(&self.of_1g, va >> 30)
    }

    /// Whether so much is noted that it should be dropped together with every translation.
    pub fn crowded(&self) -> bool {
        self.set > CROWDED
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
        assert!(!l.may_cover(0x7f00_1234_5000));
        l.note(0x7f00_1234_5000, 12);
        assert!(!l.may_cover(0x7f00_1234_5000));
        l.note(0x7f00_1234_5000, 21);
        assert!(l.may_cover(0x7f00_1220_0000) && l.may_cover(0x7f00_123f_ffff));
        l.note(0x40_0000, 22);
        assert!(l.may_cover(0x60_0000));
        l.note(0xffff_8880_4000_0000, 30);
        assert!(l.may_cover(0xffff_8880_7fff_f000));
        l.clear();
        assert!(!l.may_cover(0x7f00_1234_5000));
        for i in 0..4096u64 {
            l.note(i << 21, 21);
        }
        assert!(l.crowded());
    }
}
