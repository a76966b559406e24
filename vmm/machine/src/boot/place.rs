//! Finds room in guest RAM for what is loaded.

use guestmem::{Gpa, PAGE_SIZE};

use crate::memory::{FOUR_GIB, MemoryMap, RangeKind};

/// Free ranges of RAM below 4 GByte, `start..end` in ascending order.
///
/// The first page is never free: it holds the real-mode interrupt table, the BIOS data area and the GDT of
/// the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Room {
    free: Vec<(u64, u64)>,
}

impl Room {
    /// All usable RAM that 32 bits reach.
    pub fn new(map: &MemoryMap) -> Self {
        let usable = |e: &crate::memory::MapEntry| e.kind == RangeKind::Ram && e.base.0 < FOUR_GIB;
        let free = map
            .e820()
            .iter()
            .filter(|e| usable(e))
            .map(|e| (e.base.0.max(PAGE_SIZE), e.base.0 + e.size_bytes))
            .collect();
        Self { free }
    }

    /// Takes exactly `size_bytes` at `start`. Whether they were free.
    pub fn take(&mut self, start: u64, size_bytes: u64) -> bool {
        let Some(end) = start.checked_add(size_bytes) else {
            return false;
        };
        let Some(i) = self
            .free
            .iter()
            .position(|&(from, to)| from <= start && end <= to)
        else {
            return false;
        };
        let (from, to) = self.free[i];
        let rest = [(from, start), (end, to)];
        self.free
            .splice(i..=i, rest.into_iter().filter(|(a, b)| a < b));
        true
    }

    /// Takes the lowest room of that size at or above `lowest`; `alignment` is a power of two.
    pub fn lowest(&mut self, lowest: u64, size_bytes: u64, alignment: u64) -> Option<Gpa> {
        let start = self.free.iter().find_map(|&(from, to)| {
            let start = from.max(lowest).checked_next_multiple_of(alignment)?;
            (start.checked_add(size_bytes)? <= to).then_some(start)
        })?;
        self.take(start, size_bytes).then_some(Gpa(start))
    }

    /// Takes the highest room of that size; `alignment` is a power of two.
    pub fn highest(&mut self, size_bytes: u64, alignment: u64) -> Option<Gpa> {
        let start = self.free.iter().rev().find_map(|&(from, to)| {
            let start = to.checked_sub(size_bytes)? & !(alignment - 1);
            (start >= from).then_some(start)
        })?;
        self.take(start, size_bytes).then_some(Gpa(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn room() -> Room {
        Room::new(&MemoryMap::new(16 * MIB))
    }

    #[test]
    fn usable_ram_without_the_first_page_is_free() {
        assert_eq!(
            room().free,
            [(0x1000, 0x9_fc00), (MIB, 16 * MIB)],
            "conventional and extended memory"
        );
        let large = Room::new(&MemoryMap::new(8 << 30));
        assert_eq!(large.free.last(), Some(&(MIB, 0xb000_0000)));
    }

    #[test]
    fn a_range_is_taken_once_and_only_from_ram() {
        let mut r = room();
        assert!(r.take(MIB, MIB));
        assert!(!r.take(2 * MIB - 1, 1));
        assert!(!r.take(MIB - 1, 2));
        assert!(!r.take(0x500, 16));
        assert!(!r.take(0xb_8000, 1));
        assert!(!r.take(15 * MIB, 2 * MIB));
        assert!(!r.take(u64::MAX, 2));
        assert!(r.take(2 * MIB, 14 * MIB));
    }

    #[test]
    fn the_lowest_and_the_highest_room_are_found() {
        let mut r = room();
        assert_eq!(r.lowest(0, 16, 16), Some(Gpa(0x1000)));
        assert_eq!(r.lowest(0, 16, 0x1000), Some(Gpa(0x2000)));
        assert_eq!(r.lowest(0, MIB, 16), Some(Gpa(MIB)));
        assert_eq!(
            r.lowest(3 * MIB + 1, 1, 0x1000),
            Some(Gpa(3 * MIB + 0x1000))
        );
        assert_eq!(r.highest(1, 0x1000), Some(Gpa(16 * MIB - 0x1000)));
        assert_eq!(r.highest(12 * MIB, 0x1000), Some(Gpa(4 * MIB - 0x1000)));
        assert_eq!(r.highest(12 * MIB, 0x1000), None);
        assert_eq!(r.lowest(u64::MAX, 1, 0x1000), None);
        assert_eq!(r.lowest(0, u64::MAX, 1), None);
        assert_eq!(r.highest(u64::MAX, 1), None);
    }
}
