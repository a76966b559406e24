//! Physical memory as the loader left it.

use core::fmt;

/// A byte.
pub fn u8(at: u64) -> u8 {
    // SAFETY: the first 4 GiB are mapped; what is no memory reads as something.
    unsafe { core::ptr::read_volatile(at as *const u8) }
}

/// A 16-bit word at any address.
pub fn u16(at: u64) -> u16 {
    u16::from(u8(at)) | u16::from(u8(at + 1)) << 8
}

/// A 32-bit word at any address.
pub fn u32(at: u64) -> u32 {
    u32::from(u16(at)) | u32::from(u16(at + 2)) << 16
}

/// A 64-bit word at any address.
pub fn u64(at: u64) -> u64 {
    u64::from(u32(at)) | u64::from(u32(at + 4)) << 32
}

/// Whether these bytes lie there.
pub fn is(at: u64, bytes: &[u8]) -> bool {
    (at..).zip(bytes).all(|(at, &byte)| u8(at) == byte)
}

/// A text that ends with a zero byte.
pub struct Text(pub u64);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: u64 = 4096;
        for at in self.0..self.0 + LONGEST {
            match u8(at) {
                0 => return Ok(()),
                byte => write!(f, "{}", char::from(byte))?,
            }
        }
        Ok(())
    }
}
