//! Which blocks begin where in a page, so that a store finds those it overlaps without looking at the others; and where
//! code is changed often.

use guestmem::RamOffset;

use super::{Block, BlockCache, NONE};
use crate::hashing::NumberMap;
use crate::mem::CodePages;

/// Bytes of the parts of a page that blocks are found by.
const PART: u64 = 128;
const PARTS: usize = 4096 / PART as usize;
/// Changes of the code of a part from which on it is changed often.
pub(super) const OFTEN: u8 = 32;
/// Blocks decoded until all changes are forgotten: what is changed often is so within fewer.
const MEMORY: u64 = 1 << 16;
/// Pages whose changes are remembered.
const MOST_PAGES: usize = 1 << 12;
/// Checked blocks there may be.
const MOST_CHECKED_BLOCKS: usize = 1 << 14;

/// The blocks of a page that have to hear of stores there.
pub(super) struct Page {
    /// The first of those that begin in each part.
    starts: [u32; PARTS],
    /// The first of those whose second page it is. Some may be dead.
    crossing: u32,
    /// How many live, of both.
    living: u32,
    /// Bytes of the longest there has been.
    longest: u16,
}

impl Page {
    const EMPTY: Self = Self {
        starts: [NONE; PARTS],
        crossing: NONE,
        living: 0,
        longest: 1,
    };
}

/// Where code was changed.
#[derive(Default)]
pub(super) struct Changes {
    /// How often, by page, in each part.
    of: NumberMap<u32, [u8; PARTS]>,
    /// Blocks that had been decoded when they began to be counted.
    since: u64,
}

fn page_of(at: u64) -> u32 {
    (at >> 12) as u32
}

fn part_of(at: u64) -> usize {
    ((at & 0xfff) / PART) as usize
}

impl BlockCache {
    /// Puts a new block where stores to its pages find it.
    pub(super) fn enter(&mut self, index: u32) {
        let block = &self.blocks[index as usize];
        let page = self.pages.entry(page_of(block.start));
        let page = page.or_insert_with(|| Box::new(Page::EMPTY));
        page.longest = page.longest.max(block.bytes);
        page.living += 1;
        let first = &mut page.starts[part_of(block.start)];
        let book = &mut self.book[index as usize];
        book.next_in_page = std::mem::replace(first, index);
        if book.second != NONE {
            let page = self.pages.entry(book.second);
            let page = page.or_insert_with(|| Box::new(Page::EMPTY));
            page.living += 1;
            book.next_in_second = std::mem::replace(&mut page.crossing, index);
        }
    }

    /// Takes out one that is dead.
    pub(super) fn leave(&mut self, index: u32, pages: &mut CodePages) {
        let (start, book) = (self.blocks[index as usize].start, self.book[index as usize]);
        if let Some(page) = self.pages.get_mut(&page_of(start)) {
            let first = &mut page.starts[part_of(start)];
            if *first == index {
                *first = book.next_in_page;
            } else {
                let mut at = *first;
                while at != NONE {
                    let book_there = &mut self.book[at as usize];
                    if book_there.next_in_page == index {
                        book_there.next_in_page = book.next_in_page;
                        break;
                    }
                    at = book_there.next_in_page;
                }
            }
        }
        self.one_less(page_of(start), pages);
        if book.second != NONE {
            self.one_less(book.second, pages);
        }
    }

    /// One block of a page less.
    fn one_less(&mut self, number: u32, pages: &mut CodePages) {
        if let Some(page) = self.pages.get_mut(&number) {
            page.living -= 1;
            if page.living == 0 {
                self.pages.remove(&number);
                pages.remove_page(number);
            }
        }
    }

    /// Drops the blocks that overlap a store inside one page.
    pub fn invalidate(&mut self, start: RamOffset, len: u64, pages: &mut CodePages) {
        let number = page_of(start.0);
        let Some(page) = self.pages.get_mut(&number) else {
            return pages.remove_page(number);
        };
        let mut hit = std::mem::take(&mut self.hit);
        // Of a crossing instruction, any store to the second page counts.
        let mut at = std::mem::replace(&mut page.crossing, NONE);
        while at != NONE {
            hit.push(at);
            at = self.book[at as usize].next_in_second;
        }
        let before = (start.0 & 0xfff).saturating_sub(u64::from(page.longest) - 1);
        let last = ((start.0 & 0xfff) + len.max(1) - 1).min(0xfff);
        for first in &page.starts[part_of(before)..=part_of(last)] {
            let mut at = *first;
            while at != NONE {
                let block = &self.blocks[at as usize];
                let end = block.start + u64::from(block.bytes);
                if block.start < start.0 + len && start.0 < end {
                    hit.push(at);
                }
                at = self.book[at as usize].next_in_page;
            }
        }
        let mut noted = u64::MAX;
        for index in hit.drain(..) {
            let Block { start, alive, .. } = self.blocks[index as usize];
            if !alive {
                continue;
            }
            if start / PART != noted {
                noted = start / PART;
                self.note_change(start);
            }
            self.kill(index, pages);
        }
        self.hit = hit;
    }

    /// Notes that code in the part of `at` was changed.
    pub(super) fn note_change(&mut self, at: u64) {
        let long_ago = self.decoded - self.changes.since > MEMORY;
        if long_ago || self.changes.of.len() >= MOST_PAGES {
            self.changes.of.clear();
            self.changes.since = self.decoded;
        }
        let parts = self.changes.of.entry(page_of(at)).or_default();
        let part = &mut parts[part_of(at)];
        *part = part.saturating_add(1);
    }

    /// Whether code at `at` is better checked: code around it is changed often.
    pub fn prefers_checks(&self, at: RamOffset) -> bool {
        if self.checked.len() >= MOST_CHECKED_BLOCKS {
            return false;
        }
        let parts = self.changes.of.get(&page_of(at.0));
        parts.is_some_and(|parts| parts[part_of(at.0)] >= self.often) || self.often == 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use guestmem::{Gpa, GuestRam};
    use vcpu::Attention;

    use super::*;
    use crate::code::{BlockKey, Op};

    /// A block: where it is, how long in its first page, and its second one.
    type Known = (u32, BlockKey, u64, u64, Option<u64>);

    /// Blocks at random, some longer than a part, some on two pages, some twice on one; and stores at random. Just those
    /// that a store overlaps are dropped, and a page is one with code while there are some.
    #[test]
    fn a_store_drops_just_what_it_overlaps() {
        const PAGES: u64 = 6;
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), PAGES << 12)]).expect("some pages"));
        let mut pages = CodePages::new(&ram, &Attention::new());
        let mut cache = BlockCache::new(1);
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        let mut all: Vec<Known> = Vec::new();
        let (mut dropped, mut emptied) = (0, 0);
        for _ in 0..30_000 {
            if below(3) > 0 {
                let at = below(PAGES << 12);
                let key = BlockKey::new(RamOffset(at), below(3) as u8);
                if cache.find(key).is_some() || cache.full() {
                    continue;
                }
                let room = 4096 - (at & 0xfff);
                let second = (room < 15).then(|| below(PAGES) << 12);
                let most = if below(8) == 0 { 720 } else { 40 };
                let len = second.map_or_else(|| (1 + below(most)).min(room), |_| room);
                pages.add(RamOffset(at), len);
                if let Some(s) = second {
                    pages.add(RamOffset(s), 15 - room);
                }
                let op = [Op::default()];
                let index =
                    cache.insert(key, RamOffset(at), len as u32, second.map(RamOffset), &op);
                all.push((index, key, at, len, second));
                continue;
            }
            let (at, len) = match below(40) {
                0 => (below(PAGES) << 12, 4096),
                _ => (below(PAGES << 12), 1 + below(16)),
            };
            let len = len.min(4096 - (at & 0xfff));
            cache.invalidate(RamOffset(at), len, &mut pages);
            all.retain(|&(_, key, start, bytes, second)| {
                let first = start < at + len && at < start + bytes;
                let hit = first || second == Some(at & !0xfff);
                assert_eq!(cache.find(key).is_none(), hit, "{start:x} {at:x} {len}");
                dropped += u32::from(hit);
                !hit
            });
            for page in (0..PAGES << 12).step_by(4096) {
                let held = all
                    .iter()
                    .any(|b| b.2 & !0xfff == page || b.4 == Some(page));
                assert_eq!(pages.holds_code(RamOffset(page)), held, "{page:x}");
                emptied += u32::from(!held);
            }
        }
        assert!(all.iter().all(|b| cache.find(b.1) == Some(b.0)));
        assert!(dropped > 5000 && emptied > 100, "{dropped} {emptied}");
    }
}
