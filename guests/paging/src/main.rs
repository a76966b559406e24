//! 4-level paging against chapter 4 of volume 3: permissions, protection keys, error codes, reserved bits, accessed and
//! dirty flags, page sizes, what the TLB may and must not keep, PCIDs.

#![no_std]
#![no_main]

mod caching;
mod entries;
mod faults;
mod keys;
mod pcid;
mod permissions;

use runtime::cpu;
use runtime::memory::{page, pages};
use runtime::paging::{self, P, TEST_BASE, U, W};

runtime::guest!("paging", run);

fn run() {
    permissions::run();
    keys::run();
    entries::run();
    faults::run();
    caching::run();
    pcid::run();
}

/// Pages of the sizes 4 KiB (1), 2 MiB (2), 1 GiB (3) that the processor has.
fn sizes() -> &'static [u32] {
    // CPUID.80000001H:EDX.Page1GB
    if cpu::has(0x8000_0001, 3, 26) {
        &[1, 2, 3]
    } else {
        &[1, 2]
    }
}

/// Maps the memory at physical address `target` (4 KiB aligned) with a page of `level`; the linear address
/// it can be reached at. Every entry on the way is `P | W | U`.
fn map_one(level: u32, target: u64) -> u64 {
    let size = 1u64 << (12 + 9 * (level - 1));
    let root = paging::root();
    let base = TEST_BASE + (u64::from(level) << 32);
    paging::map(root, base, target & !(size - 1), level, P | W | U);
    let address = base + (target & (size - 1));
    cpu::invlpg(address);
    address
}

/// A page of memory.
fn memory() -> u64 {
    page()
}

/// Two consecutive pages of memory.
fn two_pages() -> u64 {
    pages(2, 8192)
}
