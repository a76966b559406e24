//! The state of one software vCPU.

/// Segment registers by encoding.
pub mod sreg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Whether `address` is canonical with 48-bit linear addresses (SDM Vol 1 3.3.7.1).
#[inline(always)]
pub fn canonical(address: u64) -> bool {
    (((address << 16) as i64) >> 16) as u64 == address
}
