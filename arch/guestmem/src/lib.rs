//! Guest-physical memory: address types and the one shared RAM mapping of a VM.
//!
//! A VM's RAM is one host mapping, split into regions of guest-physical address space (below and
//! above the 32-bit hole). Code that runs hot (the software TLB) remembers a [`RamOffset`] and
//! accesses through [`GuestRam::load`]/[`GuestRam::store`], which check bounds, so that no crate
//! above this one needs `unsafe` to touch guest memory.
//!
//! ROM lies in the same mapping, so that code in it is found and decoded like any other; the guest's writes to
//! it are not found ([`GuestRam::find_write`]). What answers in the legacy area below 1 MByte can be switched.
//!
//! Invariants: the mapping lives as long as the [`GuestRam`]; its pages are never unmapped or
//! reprotected; guest RAM may change at any moment (other vCPUs), so nothing here hands out
//! references into it.

mod addr;
mod code_map;
mod legacy;
mod ram;

pub use addr::{Gpa, Gva, L2Gpa, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
pub use code_map::{CodeMap, CodeWatcher, WatcherId};
pub use legacy::LegacySwitches;
pub use ram::{GuestRam, MemoryLayout, RamError, RamOffset, RamRegion, Word};
