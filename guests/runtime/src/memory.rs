//! Physical pages of the guest's own.

use core::sync::atomic::{AtomicU64, Ordering};

// SAFETY: set by the linker script; only its address is used.
unsafe extern "C" {
    static _end: u8;
}

/// First byte after what guests may take (the board has at least 32 MiB).
const LIMIT: u64 = 32 << 20;
/// Below it is the image, and what a multiboot loader put behind it.
const FIRST: u64 = 0x14_0000;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Takes `count` zeroed, consecutive 4-KiB pages aligned to `alignment` bytes: the physical address, which
/// is also the linear address.
///
/// # Panics
/// When the memory is used up.
pub fn pages(count: u64, alignment: u64) -> u64 {
    let mut next = NEXT.load(Ordering::Relaxed);
    if next == 0 {
        next = (&raw const _end as u64).max(FIRST);
    }
    let at = next.next_multiple_of(alignment.max(4096));
    let end = at + count * 4096;
    assert!(end <= LIMIT, "out of guest memory");
    NEXT.store(end, Ordering::Relaxed);
    // SAFETY: above the image, below the limit, given out once.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, (count * 4096) as usize) };
    at
}

/// Takes a zeroed page.
pub fn page() -> u64 {
    pages(1, 4096)
}

/// Reads 8 bytes.
pub fn read(address: u64) -> u64 {
    // SAFETY: an address that may not be read faults, and the guest's handler takes that.
    unsafe { core::ptr::read_volatile(address as *const u64) }
}

/// Writes 8 bytes.
pub fn write(address: u64, value: u64) {
    // SAFETY: as for read; the guest writes only pages it took.
    unsafe { core::ptr::write_volatile(address as *mut u64, value) };
}

/// Writes bytes.
pub fn write_bytes(address: u64, bytes: &[u8]) {
    for (i, &byte) in bytes.iter().enumerate() {
        // SAFETY: as for write.
        unsafe { core::ptr::write_volatile((address + i as u64) as *mut u8, byte) };
    }
}
