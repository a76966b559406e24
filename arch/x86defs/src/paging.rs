//! Page-table entries (SDM Vol 3 4.5, Tables 4-15 to 4-20) and EPT entries (SDM Vol 3 29.3.2).

/// Present.
pub const P: u64 = 1;
/// Writable.
pub const RW: u64 = 1 << 1;
/// User.
pub const US: u64 = 1 << 2;
/// Write-through.
pub const PWT: u64 = 1 << 3;
/// Cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Large page, in a PDE or PDPTE.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// Execute disable.
pub const XD: u64 = 1 << 63;
/// Position of the protection key, bits 62:59 of an entry that maps a page in IA-32e mode.
pub const KEY_SHIFT: u32 = 59;

/// What PKRU says of a protection key (SDM Vol 3 4.6.2).
pub mod pkru {
    /// Data accesses are not permitted.
    pub const ACCESS_DISABLE: u32 = 1;
    /// Writes are not permitted.
    pub const WRITE_DISABLE: u32 = 2;

    /// The two bits of `key`.
    #[must_use]
    pub const fn of(pkru: u32, key: u64) -> u32 {
        pkru >> ((key & 15) * 2) & 3
    }
}

/// EPT: read.
pub const EPT_R: u64 = 1;
/// EPT: write.
pub const EPT_W: u64 = 1 << 1;
/// EPT: execute.
pub const EPT_X: u64 = 1 << 2;
/// EPT: memory type of a leaf, bits 5:3.
pub const EPT_MEMORY_TYPE_SHIFT: u32 = 3;
/// EPT: accessed.
pub const EPT_A: u64 = 1 << 8;
/// EPT: dirty.
pub const EPT_D: u64 = 1 << 9;

/// Bits 51:12, where an entry's address may lie, for a processor of `maxphyaddr` bits.
#[must_use]
pub const fn address_mask(maxphyaddr: u32) -> u64 {
    ((1u64 << maxphyaddr) - 1) & !0xfff
}
