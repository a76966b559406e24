//! Translated blocks by linear address: where indirect branches, and branches to other pages, find them.

use std::mem::offset_of;

/// Slots; the low bits of the address choose.
pub const SLOTS: usize = 4096;

/// The table. Generated code looks into it (`stubs::lookup`).
#[repr(C)]
pub struct Table {
    /// The bits of an address that choose the slot.
    mask: u64,
    /// Linear addresses, negated.
    address: [u64; SLOTS],
    /// What the address meant ([`softcpu::run::code_tag`]), negated.
    tag: [u64; SLOTS],
    /// The page of the linear address.
    page: [u64; SLOTS],
    /// Where the code is.
    code: [u64; SLOTS],
}

/// Offset of [`Table::mask`].
pub const MASK: i32 = offset_of!(Table, mask) as i32;
/// Offset of [`Table::address`].
pub const ADDRESS: i32 = offset_of!(Table, address) as i32;
/// Offset of [`Table::tag`].
pub const TAG: i32 = offset_of!(Table, tag) as i32;
/// Offset of [`Table::page`].
pub const PAGE: i32 = offset_of!(Table, page) as i32;
/// Offset of [`Table::code`].
pub const CODE: i32 = offset_of!(Table, code) as i32;

impl Table {
    /// An empty table.
    pub fn new() -> Box<Self> {
        let mut table = Box::new(Self {
            mask: SLOTS as u64 - 1,
            address: [0; SLOTS],
            tag: [0; SLOTS],
            page: [0; SLOTS],
            code: [0; SLOTS],
        });
        table.clear();
        table
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        for (slot, address) in self.address.iter_mut().enumerate() {
            // An address that belongs elsewhere.
            *address = ((slot as u64 + 1) % SLOTS as u64).wrapping_neg();
        }
    }

    /// Remembers a block.
    pub fn insert(&mut self, address: u64, tag: u64, code: u64) {
        let slot = (address & self.mask) as usize;
        self.address[slot] = address.wrapping_neg();
        self.tag[slot] = tag.wrapping_neg();
        self.page[slot] = address & !0xfff;
        self.code[slot] = code;
    }
}
