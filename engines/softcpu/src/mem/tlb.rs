//! The software TLB.
//!
//! One direct-mapped table per *view* of a *bank*. A bank belongs to an address space ([`Space`]: VPID, EPT
//! pointer, PCID), so CR3 writes with PCID, VM entries and VM exits only switch banks. A view is what
//! permissions depend on beside the page: user, supervisor with SMAP closed, supervisor with SMAP open.
//! An entry has a tag for each kind of access, equal to `page address | generation` exactly when that access
//! is allowed at once; flushing a bank is choosing a new generation.
//!
//! Invariant: a write tag exists only for RAM pages whose guest dirty bit is set and that hold no decoded
//! code, so a hit needs no further check.

use guestmem::{PAGE_MASK, RamOffset};

/// Entries in a view.
const ENTRIES: usize = 1024;
/// Views in a bank.
const VIEWS: usize = 3;
/// Banks.
const BANKS: usize = 16;
/// Generations of a bank, from 1, before its entries must be wiped; they fit in the page-offset bits.
const GENERATIONS: u64 = 0xffe;
/// The generation no entry has: with it nothing hits. (Zero would meet "no right" on linear page 0.)
const NEVER: u64 = 0xfff;

/// An address space: what distinguishes cached translations (SDM Vol 3 4.10.1, 29.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Virtual-processor id; 0 outside VMX non-root operation.
    pub vpid: u16,
    /// EPT pointer, 0 without EPT.
    pub eptp: u64,
    /// Process-context id, 0 without CR4.PCIDE.
    pub pcid: u16,
    /// Bits of CR0, CR4, IA32_EFER and PKRU that permissions were derived under.
    pub rules: u16,
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Entry {
    read: u64,
    write: u64,
    fetch: u64,
    /// RAM offset of the page.
    page: u64,
}

#[derive(Clone, Copy, Default)]
struct Bank {
    space: Space,
    in_use: bool,
    generation: u64,
    last_used: u64,
    /// Changes whenever a translation of the bank may have gone.
    stamp: u64,
}

/// What a page may be accessed for, in one view.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// Data reads.
    pub read: bool,
    /// Data writes without further bookkeeping.
    pub write: bool,
    /// Instruction fetches.
    pub fetch: bool,
}

/// The software TLB of a vCPU.
pub struct Tlb {
    entries: Box<[Entry]>,
    /// Page of each entry that has had a write tag: where a page's entries are found when it turns into code.
    writable: Box<[u32]>,
    base: usize,
    tag: u64,
    bank: usize,
    view: usize,
    always_miss: bool,
    banks: [Bank; BANKS],
    uses: u64,
    stamps: u64,
    /// Identifies the translations in force: changes with bank, view, and every flush.
    pub stamp: u64,
    /// Misses that walked page tables; a statistic.
    pub walks: u64,
}

impl Default for Tlb {
    fn default() -> Self {
        let mut tlb = Self {
            entries: vec![Entry::default(); ENTRIES * VIEWS * BANKS].into_boxed_slice(),
            writable: vec![u32::MAX; ENTRIES * VIEWS * BANKS].into_boxed_slice(),
            base: 0,
            tag: 1,
            bank: 0,
            view: 1,
            always_miss: false,
            banks: [Bank::default(); BANKS],
            uses: 0,
            stamps: 0,
            stamp: 0,
            walks: 0,
        };
        tlb.select_space(Space::default());
        tlb
    }
}

impl Tlb {
    #[inline(always)]
    fn index(&self, va: u64) -> usize {
        self.base + ((va >> 12) as usize & (ENTRIES - 1))
    }

    #[inline(always)]
    fn tag_of(&self, va: u64) -> u64 {
        (va & !PAGE_MASK) | self.tag
    }

    /// Where a read of `size` bytes at `va` finds its RAM, on a hit inside one page.
    #[inline(always)]
    pub fn read_hit(&self, va: u64, size: u64) -> Option<RamOffset> {
        let e = &self.entries[self.index(va)];
        let within = va & PAGE_MASK;
        (e.read == self.tag_of(va) && within <= 4096 - size).then_some(RamOffset(e.page + within))
    }

    /// Where a write of `size` bytes at `va` finds its RAM, on a hit inside one page.
    #[inline(always)]
    pub fn write_hit(&self, va: u64, size: u64) -> Option<RamOffset> {
        let e = &self.entries[self.index(va)];
        let within = va & PAGE_MASK;
        (e.write == self.tag_of(va) && within <= 4096 - size).then_some(RamOffset(e.page + within))
    }

    /// Where the instruction byte at `va` lies, on a hit.
    #[inline(always)]
    pub fn fetch_hit(&self, va: u64) -> Option<RamOffset> {
        let e = &self.entries[self.index(va)];
        (e.fetch == self.tag_of(va)).then_some(RamOffset(e.page + (va & PAGE_MASK)))
    }

    /// Remembers a translation for the current space and view.
    pub fn fill(&mut self, va: u64, page: RamOffset, allowed: Allowed) {
        if self.always_miss {
            return;
        }
        let tag = self.tag_of(va);
        let i = self.index(va);
        let e = &mut self.entries[i];
        let on = |yes: bool| if yes { tag } else { 0 };
        *e = Entry {
            read: on(allowed.read),
            write: on(allowed.write),
            fetch: on(allowed.fetch),
            page: page.0 & !PAGE_MASK,
        };
        if allowed.write {
            self.writable[i] = (page.0 >> 12) as u32;
        }
    }

    /// Takes every write tag to `page` (a RAM page number) away: it now holds code.
    pub fn protect_page(&mut self, page: u32) {
        // Few parts have any: each is looked through as a whole first, which the compiler makes vector compares of.
        const PART: usize = 64;
        for (part, pages) in self.writable.chunks_mut(PART).enumerate() {
            if !pages.iter().fold(false, |any, p| any | (*p == page)) {
                continue;
            }
            for (i, p) in pages.iter_mut().enumerate().filter(|(_, p)| **p == page) {
                *p = u32::MAX;
                let entry = &mut self.entries[part * PART + i];
                if (entry.page >> 12) as u32 == page {
                    entry.write = 0;
                }
            }
        }
    }

    /// Selects the view of the current privilege. `always_miss` sends every data access to the slow path
    /// (alignment checking); instruction fetches miss too.
    pub fn select_view(&mut self, user: bool, smap_open: bool, always_miss: bool) {
        self.view = if user {
            0
        } else if smap_open {
            2
        } else {
            1
        };
        self.always_miss = always_miss;
        self.refresh();
    }

    /// Selects (and if need be evicts) a bank for `space`.
    pub fn select_space(&mut self, space: Space) {
        self.uses += 1;
        if !(self.banks[self.bank].in_use && self.banks[self.bank].space == space) {
            let found = self.banks.iter().position(|b| b.in_use && b.space == space);
            self.bank = found.unwrap_or_else(|| self.evict(space));
        }
        self.banks[self.bank].last_used = self.uses;
        self.refresh();
    }

    fn evict(&mut self, space: Space) -> usize {
        let oldest = (0..BANKS)
            .min_by_key(|&i| (self.banks[i].in_use, self.banks[i].last_used))
            .unwrap_or(0);
        self.banks[oldest].space = space;
        self.banks[oldest].in_use = true;
        self.flush_bank(oldest);
        oldest
    }

    fn refresh(&mut self) {
        self.base = (self.bank * VIEWS + self.view) * ENTRIES;
        self.stamp = self.banks[self.bank].stamp * VIEWS as u64 + self.view as u64;
        self.tag = if self.always_miss {
            NEVER
        } else {
            self.banks[self.bank].generation
        };
    }

    fn flush_bank(&mut self, bank: usize) {
        self.stamps += 1;
        let b = &mut self.banks[bank];
        b.stamp = self.stamps;
        b.generation += 1;
        if b.generation > GENERATIONS {
            b.generation = 1;
            let all = bank * VIEWS * ENTRIES..(bank + 1) * VIEWS * ENTRIES;
            self.entries[all].fill(Entry::default());
        }
    }

    /// Forgets every space for which `which` holds.
    pub fn flush(&mut self, which: impl Fn(&Space) -> bool) {
        for i in 0..BANKS {
            if self.banks[i].in_use && which(&self.banks[i].space) {
                self.flush_bank(i);
            }
        }
        self.refresh();
    }

    /// Forgets the current space.
    pub fn flush_current(&mut self) {
        self.flush_bank(self.bank);
        self.refresh();
    }

    /// Forgets one page in every space for which `which` holds.
    pub fn flush_page(&mut self, va: u64, which: impl Fn(&Space) -> bool) {
        let slot = (va >> 12) as usize & (ENTRIES - 1);
        for (i, b) in self.banks.iter_mut().enumerate() {
            if b.in_use && which(&b.space) {
                self.stamps += 1;
                b.stamp = self.stamps;
                for view in 0..VIEWS {
                    self.entries[(i * VIEWS + view) * ENTRIES + slot] = Entry::default();
                }
            }
        }
        self.refresh();
    }

    /// The current space.
    pub fn space(&self) -> Space {
        self.banks[self.bank].space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Allowed = Allowed {
        read: true,
        write: true,
        fetch: true,
    };

    #[test]
    fn banks_keep_their_entries_apart() {
        let mut t = Tlb::default();
        t.fill(0x5000, RamOffset(0x1000), ALL);
        assert_eq!(t.read_hit(0x5ff8, 8), Some(RamOffset(0x1ff8)));
        assert_eq!(t.read_hit(0x5ff9, 8), None, "crosses the page");
        let other = Space {
            vpid: 1,
            eptp: 0x1e,
            ..Space::default()
        };
        t.select_space(other);
        assert_eq!(t.read_hit(0x5000, 1), None);
        t.fill(0x5000, RamOffset(0x2000), ALL);
        t.select_space(Space::default());
        assert_eq!(t.write_hit(0x5000, 1), Some(RamOffset(0x1000)));
        t.flush(|s| s.vpid == 1);
        assert!(t.fetch_hit(0x5000).is_some());
        t.select_space(other);
        assert_eq!(t.fetch_hit(0x5000), None);
    }

    #[test]
    fn views_flushes_and_code_pages() {
        let mut t = Tlb::default();
        t.select_view(true, false, false);
        t.fill(0x7000, RamOffset(0x3000), ALL);
        t.select_view(false, false, false);
        assert_eq!(t.read_hit(0x7000, 1), None);
        t.select_view(true, false, false);
        t.protect_page(3);
        assert_eq!(t.write_hit(0x7000, 1), None);
        assert!(t.read_hit(0x7000, 1).is_some());
        t.select_view(true, false, true);
        assert_eq!(t.read_hit(0x7000, 1), None, "alignment checking");
        t.select_view(true, false, false);
        for _ in 0..5000 {
            t.flush_current();
            assert_eq!(t.read_hit(0x7000, 1), None);
        }
    }

    #[test]
    fn more_spaces_than_banks() {
        let mut t = Tlb::default();
        for pcid in 0..40 {
            t.select_space(Space {
                pcid,
                ..Space::default()
            });
            assert_eq!(t.read_hit(0x9000, 1), None);
            t.fill(0x9000, RamOffset(u64::from(pcid) << 12), ALL);
        }
        t.select_space(Space {
            pcid: 39,
            ..Space::default()
        });
        assert_eq!(t.read_hit(0x9000, 1), Some(RamOffset(39 << 12)));
    }

    #[test]
    fn page_zero_misses_too_while_everything_misses() {
        let mut t = Tlb::default();
        t.select_view(true, false, false);
        t.fill(
            0,
            RamOffset(0x4000),
            Allowed {
                read: true,
                ..Allowed::default()
            },
        );
        assert_eq!(t.write_hit(0x10, 1), None, "read only");
        t.select_view(true, false, true);
        assert_eq!(t.write_hit(0x10, 1), None);
        assert_eq!(t.read_hit(0x10, 1), None);
        assert_eq!(t.fetch_hit(0x10), None);
    }
}
