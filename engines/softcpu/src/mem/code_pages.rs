//! Which bytes of RAM have been decoded, so that stores to them are noticed.

use std::collections::HashMap;

use guestmem::RamOffset;

/// A store that reached decoded code; blocks overlapping it are dropped before the next block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// First byte stored.
    pub start: RamOffset,
    /// Bytes stored.
    pub len: u64,
}

/// Pages with code, at a grain of 64 bytes.
pub struct CodePages {
    /// One bit a page of RAM.
    has_code: Vec<u64>,
    /// One bit for each 64 bytes of a page with code.
    chunks: HashMap<u32, u64>,
    /// Stores to be acted on.
    pub stale: Vec<Stale>,
    /// First byte of the running block.
    pub running_start: u64,
    /// Bytes of the running block in its first page.
    pub running_len: u64,
    /// RAM offset of the second page of a running block that crosses a page; all ones for none.
    pub running_second: u64,
}

/// Stores remembered before everything is dropped instead.
pub const STALE_LIMIT: usize = 256;

impl CodePages {
    /// For a RAM of `pages` pages.
    pub fn new(pages: u64) -> Self {
        Self {
            has_code: vec![0; (pages as usize).div_ceil(64)],
            chunks: HashMap::new(),
            stale: Vec::new(),
            running_start: u64::MAX,
            running_len: 0,
            running_second: u64::MAX,
        }
    }

    /// Whether the page at `at` holds decoded code.
    #[inline]
    pub fn holds_code(&self, at: RamOffset) -> bool {
        let page = (at.0 >> 12) as usize;
        self.has_code
            .get(page / 64)
            .is_some_and(|w| w >> (page % 64) & 1 != 0)
    }

    /// Notes that `len` bytes of one page are decoded; true if the page held no code before.
    pub fn add(&mut self, start: RamOffset, len: u64) -> bool {
        let page = (start.0 >> 12) as u32;
        let first = !self.holds_code(start);
        if let Some(w) = self.has_code.get_mut(page as usize / 64) {
            *w |= 1 << (page % 64);
        }
        *self.chunks.entry(page).or_insert(0) |= chunk_mask(start, len);
        first
    }

    /// Forgets a page: it holds no blocks any more.
    pub fn remove_page(&mut self, page: u32) {
        if let Some(w) = self.has_code.get_mut(page as usize / 64) {
            *w &= !(1 << (page % 64));
        }
        self.chunks.remove(&page);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.has_code.fill(0);
        self.chunks.clear();
        self.stale.clear();
    }

    /// Whether a store inside one page touches decoded bytes.
    pub fn touches(&self, start: RamOffset, len: u64) -> bool {
        let page = (start.0 >> 12) as u32;
        self.chunks
            .get(&page)
            .is_some_and(|c| c & chunk_mask(start, len) != 0)
    }

    /// Whether a store inside one page touches the running block.
    pub fn touches_running(&self, start: RamOffset, len: u64) -> bool {
        let end = start.0 + len;
        (start.0 < self.running_start.wrapping_add(self.running_len) && self.running_start < end)
            || start.0 & !0xfff == self.running_second
    }
}

fn chunk_mask(start: RamOffset, len: u64) -> u64 {
    let from = (start.0 & 0xfff) >> 6;
    let to = ((start.0 & 0xfff) + len.max(1) - 1).min(0xfff) >> 6;
    (u64::MAX >> (63 - (to - from))) << from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grains() {
        let mut c = CodePages::new(4);
        assert!(c.add(RamOffset(0x1030), 0x20));
        assert!(!c.add(RamOffset(0x1ff0), 0x10));
        assert!(c.holds_code(RamOffset(0x1000)) && !c.holds_code(RamOffset(0x2000)));
        assert!(
            c.touches(RamOffset(0x1040), 1),
            "second grain of the first range"
        );
        assert!(!c.touches(RamOffset(0x1080), 8));
        assert!(c.touches(RamOffset(0x1f00), 0x100));
        c.remove_page(1);
        assert!(!c.touches(RamOffset(0x1030), 1));
    }
}
