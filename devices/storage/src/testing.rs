//! A disc in memory, for tests.

use bus::{BlockBackend, BlockError, check_range};

/// A disc whose sector n is filled with n.
pub struct Disc {
    pub sectors: u64,
    pub fails: bool,
}

impl BlockBackend for Disc {
    fn size_bytes(&self) -> u64 {
        2048 * self.sectors
    }
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, data.len() as u64)?;
        if self.fails {
            return Err(std::io::Error::other("broken").into());
        }
        for (n, byte) in (offset..).zip(data) {
            *byte = (n / 2048) as u8;
        }
        Ok(())
    }
    fn flush(&mut self) -> Result<(), BlockError> {
        Ok(())
    }
}

/// Marsaglia's xorshift64.
pub fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
