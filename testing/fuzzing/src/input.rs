//! Bytes as choices.

use arbitrary::{Arbitrary, Unstructured};

/// What is left of a case's bytes. Where they end, everything is zero.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// A case's bytes.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    /// Whether there are bytes left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number of any value.
    pub fn any<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A number below `count`, which is not zero.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.any::<u16>()) % count
    }

    /// True once in `of` times.
    pub fn once_in(&mut self, of: u8) -> bool {
        self.any::<u8>() % of == of - 1
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// The next bytes, at most `most`.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let count = most.min(self.0.len());
        self.0.bytes(count).unwrap_or_default()
    }

    /// A number that is special more often than chance would have it: small, near a border, a single bit.
    pub fn number(&mut self) -> u64 {
        let offset = u64::from(self.any::<u8>()).wrapping_sub(16);
        match self.below(8) {
            0 => self.any::<u64>(),
            1 => u64::from(self.any::<u8>()),
            2 => 1 << self.below(64),
            3 => u64::MAX << self.below(64),
            4 => (1u64 << 47).wrapping_add(offset),
            5 => 0xffff_8000_0000_0000_u64.wrapping_add(offset),
            6 => (1u64 << 32).wrapping_add(offset),
            _ => offset,
        }
    }
}
