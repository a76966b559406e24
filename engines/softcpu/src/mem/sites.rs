//! Copies of TLB slots for single accesses of a translator's code.
//!
//! An access that finds its page by its address waits for the slot. One that has a *site* finds the page it had the
//! last time at a fixed place, and only compares. Generated code copies a slot to a site and says so for the slot;
//! whatever changes a slot empties its sites.
//!
//! Invariant: a site holds what the slot of its page holds, of reads if it is one of the first [`READ_SITES`], of
//! writes if not. So a site answers only what the TLB would answer, and no memory is accessed without a page walk that
//! would not be without sites.

use zerocopy::FromZeros;

use super::tlb::SLOTS;

/// Sites in a view.
pub const SITES: usize = 512;
/// The first so many are for reads, the others for writes.
pub const READ_SITES: usize = 352;

/// Bits of a page's number.
const PAGE_BITS: u32 = 52;

/// What an empty site has for the negated number of its page: pages have no more than 52 bits.
const NO_PAGE: u64 = 1;

/// The sites of a view.
#[derive(FromZeros)]
#[repr(C)]
pub struct Sites {
    /// Something may be in them.
    pub any: u64,
    /// How often the view was emptied, above the bits of a page's number.
    pub flushes: u64,
    /// The number of the linear page, negated.
    pub page: [u64; SITES],
    /// What the slot has for its place.
    pub place: [u64; SITES],
    /// For each slot: not zero if there may be sites that hold what it holds.
    pub copied: [u8; SLOTS],
}

impl Sites {
    /// Empties the sites of a slot.
    #[inline(always)]
    pub(super) fn drop_slot(&mut self, slot: usize) {
        if self.copied[slot] != 0 {
            self.drop_copies(slot);
        }
    }

    #[cold]
    #[inline(never)]
    fn drop_copies(&mut self, slot: usize) {
        self.copied[slot] = 0;
        for page in &mut self.page {
            let other = page.wrapping_add(slot as u64) & (SLOTS as u64 - 1);
            *page = if other == 0 { NO_PAGE } else { *page };
        }
    }

    /// Empties one.
    pub(super) fn drop_site(&mut self, site: usize) {
        self.page[site] = NO_PAGE;
    }

    /// Empties all.
    pub(super) fn drop_all(&mut self) {
        self.flushes = self.flushes.wrapping_add(1 << PAGE_BITS);
        if std::mem::take(&mut self.any) != 0 {
            self.begin();
            self.copied.fill(0);
        }
    }

    /// Makes sites of zeros.
    pub(super) fn begin(&mut self) {
        self.page.fill(NO_PAGE);
    }
}
