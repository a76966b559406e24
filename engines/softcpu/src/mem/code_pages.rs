//! Which bytes of RAM this vCPU has decoded, so that stores to them are noticed.
//!
//! Two kinds of stores. Those of this vCPU itself have to be known before they are done if they hit the running
//! block; for them there is a map of our own. Those of other vCPUs and of devices come in through the map all
//! share ([`guestmem::CodeMap`]) and lie in the [`Mailbox`] until this vCPU looks between two blocks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use guestmem::{CodeWatcher, GuestRam, RamOffset, WatcherId};
use vcpu::Attention;

use crate::hashing::NumberMap;

/// A store that reached decoded code; blocks overlapping it are dropped before the next block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// First byte stored.
    pub start: RamOffset,
    /// Bytes stored.
    pub len: u64,
}

impl Stale {
    /// Adds a store inside one page to those that are remembered. One beside the last, as of a page that is cleared,
    /// makes that longer.
    pub fn remember(stores: &mut Vec<Self>, start: RamOffset, len: u64) {
        if let Some(last) = stores.last_mut()
            && last.start.0 >> 12 == start.0 >> 12
        {
            let end = (last.start.0 + last.len).max(start.0 + len);
            last.start = RamOffset(last.start.0.min(start.0));
            last.len = end - last.start.0;
        } else if stores.len() <= STALE_LIMIT {
            stores.push(Self { start, len });
        }
    }
}

/// Stores of others to code of this vCPU.
pub struct Mailbox {
    stores: Mutex<Vec<Stale>>,
    attention: Attention,
    /// The first byte of the line this vCPU monitors; [`NOT_MONITORED`] for none.
    monitored: AtomicU64,
}

const NOT_MONITORED: u64 = u64::MAX;

impl Mailbox {
    /// Monitors a line of 64 bytes, or nothing. The line has to be in the map all share.
    pub fn monitor(&self, line: Option<RamOffset>) {
        let line = line.map_or(NOT_MONITORED, |at| at.0);
        self.monitored.store(line, Ordering::SeqCst);
    }

    fn is_monitored(&self, start: RamOffset, len: u64) -> bool {
        let line = self.monitored.load(Ordering::SeqCst);
        line != NOT_MONITORED && start.0 < line + 64 && line < start.0 + len
    }

    /// Takes what has come.
    pub fn take(&self) -> Vec<Stale> {
        std::mem::take(&mut self.stores.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CodeWatcher for Mailbox {
    fn changed(&self, start: RamOffset, len: u64) {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        Stale::remember(&mut stores, start, len);
        let monitored = self.is_monitored(start, len);
        self.attention.raise(if monitored {
            Attention::CODE | Attention::MONITOR
        } else {
            Attention::CODE
        });
    }
}

/// Pages with code, at a grain of 64 bytes.
pub struct CodePages {
    /// One bit a page of RAM.
    has_code: Vec<u64>,
    /// One bit for each 64 bytes of a page with code.
    chunks: NumberMap<u32, u64>,
    ram: Arc<GuestRam>,
    /// This vCPU in the map all share.
    pub watcher: WatcherId,
    /// Stores of others.
    pub mailbox: Arc<Mailbox>,
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
    /// For the code of one vCPU, which others reach through `attention`.
    pub fn new(ram: &Arc<GuestRam>, attention: &Attention) -> Self {
        let mailbox = Arc::new(Mailbox {
            stores: Mutex::default(),
            attention: attention.clone(),
            monitored: AtomicU64::new(NOT_MONITORED),
        });
        Self {
            has_code: vec![0; (ram.page_count() as usize).div_ceil(64)],
            chunks: NumberMap::default(),
            watcher: ram.code().watch(mailbox.clone()),
            ram: Arc::clone(ram),
            mailbox,
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

    /// Notes that `len` bytes of one page are decoded; true if the page held no code before. What others store
    /// there from now on comes to the mailbox.
    pub fn add(&mut self, start: RamOffset, len: u64) -> bool {
        let page = (start.0 >> 12) as u32;
        let first = !self.holds_code(start);
        if let Some(w) = self.has_code.get_mut(page as usize / 64) {
            *w |= 1 << (page % 64);
        }
        let mask = chunk_mask(start, len);
        let chunks = self.chunks.entry(page).or_insert(0);
        if first || *chunks & mask != mask {
            *chunks |= mask;
            self.ram.code().add(start, len, first);
        }
        first
    }

    /// Forgets a page: it holds no blocks any more.
    pub fn remove_page(&mut self, page: u32) {
        if let Some(w) = self.has_code.get_mut(page as usize / 64) {
            *w &= !(1 << (page % 64));
        }
        if self.chunks.remove(&page).is_some() {
            self.ram.code().remove(RamOffset(u64::from(page) << 12));
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.has_code.fill(0);
        for (page, _) in self.chunks.drain() {
            self.ram.code().remove(RamOffset(u64::from(page) << 12));
        }
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
    use guestmem::Gpa;

    use super::*;

    /// A page that is cleared word by word counts as one store; stores to other pages up to a limit.
    #[test]
    fn stores_to_one_page_are_remembered_as_one() {
        let at = |start, len| Stale {
            start: RamOffset(start),
            len,
        };
        let mut stores = Vec::new();
        for word in (0..0x1000).step_by(8) {
            Stale::remember(&mut stores, RamOffset(0x5000 + word), 8);
        }
        assert_eq!(stores, [at(0x5000, 0x1000)]);
        Stale::remember(&mut stores, RamOffset(0x6ff0), 16);
        Stale::remember(&mut stores, RamOffset(0x6000), 1);
        assert_eq!(stores, [at(0x5000, 0x1000), at(0x6000, 0x1000)]);
        Stale::remember(&mut stores, RamOffset(0x5000), 4);
        assert_eq!(stores[2], at(0x5000, 4));
        for page in 0..2 * STALE_LIMIT as u64 {
            Stale::remember(&mut stores, RamOffset(page << 12), 1);
        }
        assert_eq!(stores.len(), STALE_LIMIT + 1, "all is dropped then");
    }

    #[test]
    fn grains() {
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), 0x4000)]).expect("four pages"));
        let mut c = CodePages::new(&ram, &Attention::new());
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
        assert!(!ram.code().holds(RamOffset(0x1030)));
    }

    #[test]
    fn what_others_store_to_code_comes_to_the_mailbox() {
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), 0x4000)]).expect("four pages"));
        let attention = Attention::new();
        let mut c = CodePages::new(&ram, &attention);
        ram.write(Gpa(0x1000), &[0; 64]).expect("RAM");
        assert_eq!(attention.get(), 0);
        c.add(RamOffset(0x1030), 0x20);
        ram.write(Gpa(0x1031), &[1, 2]).expect("RAM");
        assert_eq!(attention.get(), Attention::CODE);
        let heard = Stale {
            start: RamOffset(0x1031),
            len: 2,
        };
        assert_eq!(c.mailbox.take(), [heard]);
        c.clear();
        ram.write(Gpa(0x1031), &[1, 2]).expect("RAM");
        assert!(c.mailbox.take().is_empty());
    }
}
