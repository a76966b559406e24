//! 4-level page tables (SDM Vol 3 4.5).

use crate::cpu;
use crate::memory::{page, read, write};

/// Present.
pub const P: u64 = 1;
/// Writable.
pub const W: u64 = 1 << 1;
/// User.
pub const U: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Maps a page (2 MiB or 1 GiB).
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execution.
pub const NX: u64 = 1 << 63;
/// Physical address of an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where guests map what they test: PML4 entry 1. Nothing is there at first.
pub const TEST_BASE: u64 = 1 << 39;

/// The image and its memory again, accessible at CPL 3: physical address plus this.
pub const USER_BASE: u64 = 2 << 39;

/// Address of the user mapping of something of the image.
pub fn user_address(address: u64) -> u64 {
    USER_BASE + address
}

fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * (level - 1)) & 511
}

/// Physical (and linear) address of the entry of `level` (4 down to 1) for `address` under `root`; tables
/// on the way are made with `P | W | U`.
pub fn entry(root: u64, address: u64, level: u32) -> u64 {
    let mut table = root & ADDRESS;
    for l in (level + 1..=4).rev() {
        let slot = table + 8 * index(address, l);
        if read(slot) & P == 0 {
            write(slot, page() | P | W | U);
        }
        table = read(slot) & ADDRESS;
    }
    table + 8 * index(address, level)
}

/// Maps `address` at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) under `root` to `physical` with `flags`.
pub fn map(root: u64, address: u64, physical: u64, level: u32, flags: u64) {
    let ps = if level > 1 { PS } else { 0 };
    write(entry(root, address, level), physical | flags | ps);
}

/// The root in use.
pub fn root() -> u64 {
    cpu::read_cr3() & ADDRESS
}

/// Makes a root that maps what the runtime needs: the first 4 GiB to themselves (supervisor), the first
/// 32 MiB at [`USER_BASE`] (user).
pub fn new_root() -> u64 {
    let root = page();
    for i in 0..2048 {
        let at = i << 21;
        // The board's registers are above 3 GiB: not cached.
        let cache = if at >= 3 << 30 { 1 << 4 } else { 0 };
        map(root, at, at, 2, P | W | cache);
    }
    for i in 0..16 {
        let at = i << 21;
        map(root, USER_BASE + at, at, 2, P | W | U);
    }
    root
}

/// Loads a root of the guest's own.
pub fn install() {
    cpu::write_cr3(new_root());
}
