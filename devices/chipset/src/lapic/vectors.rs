//! A set of 256 vectors, laid out as IRR, ISR and TMR are.

/// One bit for each vector; word `n` is the register at offset `n * 10h` of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorSet([u32; 8]);

impl VectorSet {
    /// The 32 bits of word `n` (taken modulo 8).
    #[must_use]
    pub fn word(&self, n: u32) -> u32 {
        self.0[n as usize & 7]
    }

    /// Adds a vector; false when it was there.
    pub fn insert(&mut self, vector: u8) -> bool {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes a vector out.
    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    /// Whether the vector is in the set.
    #[must_use]
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & (1 << (vector & 31)) != 0
    }

    /// The highest vector in the set.
    #[must_use]
    pub fn highest(&self) -> Option<u8> {
        let n = self.0.iter().rposition(|&w| w != 0)?;
        Some((n as u8) << 5 | (31 - self.0[n].leading_zeros() as u8))
    }
}
