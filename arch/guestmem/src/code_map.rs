//! Which bytes of RAM somebody has decoded, so that whoever stores there can tell.
//!
//! Each vCPU that decodes code says so here; each store of another vCPU, and each write of a device through
//! [`crate::GuestRam::write`], looks here afterwards and tells the [`CodeWatcher`]s. The map is exact only in
//! one direction: bytes it does not name are decoded by nobody.
//!
//! # Order
//!
//! A vCPU that decodes a page first says so, then reads its bytes ([`CodeMap::add`]). A vCPU that stores
//! first stores, then looks ([`CodeMap::holds`]). If each side's second access cannot pass its first, either
//! the reader gets the new bytes or the writer sees the page. The reader is slow anyway and pays for both:
//! the first time it names a page it has the host's kernel run a barrier on every processor that executes a
//! thread of this program (`membarrier`), so that the store and the look behind it need no fence. Where the
//! kernel cannot do that, [`CodeMap::writers_fence`] says that writers have to.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock};

use crate::{PAGE_MASK, PAGE_SIZE, RamOffset};

/// Bytes in a grain: the unit in which a page's decoded bytes are remembered.
const GRAIN: u64 = 128;
/// An entry's lower half: one bit a grain.
const GRAINS: u64 = 0xffff_ffff;
/// An entry's upper half: how many vCPUs have code of the page.
const ONE_USER: u64 = 1 << 32;

/// Is told of stores to code.
pub trait CodeWatcher: Send + Sync {
    /// `len` bytes from `start` on, all in one page, have changed.
    fn changed(&self, start: RamOffset, len: u64);
}

/// Names a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatcherId(usize);

/// The map: one word for each page of RAM.
pub struct CodeMap {
    pages: Box<[AtomicU64]>,
    watchers: RwLock<Vec<Arc<dyn CodeWatcher>>>,
    barrier: bool,
}

impl CodeMap {
    /// Nothing is decoded in any of `pages` pages.
    pub(crate) fn new(pages: u64) -> Self {
        let pages = Box::<[AtomicU64]>::new_zeroed_slice(pages as usize);
        Self {
            // SAFETY: all bytes zero is a valid `AtomicU64`.
            pages: unsafe { pages.assume_init() },
            watchers: RwLock::default(),
            barrier: register_barrier(),
        }
    }

    /// Adds somebody to be told.
    pub fn watch(&self, watcher: Arc<dyn CodeWatcher>) -> WatcherId {
        let mut all = self
            .watchers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        all.push(watcher);
        WatcherId(all.len() - 1)
    }

    /// Whether a store has to be followed by a sequentially consistent fence before [`CodeMap::holds`] is
    /// asked.
    #[inline]
    #[must_use]
    pub fn writers_fence(&self) -> bool {
        !self.barrier
    }

    /// Whether anybody has code of the page of `at`.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, at: RamOffset) -> bool {
        self.word(at)
            .is_some_and(|w| w.load(Ordering::Relaxed) != 0)
    }

    /// For generated code: the address of the words, one of 64 bits for each page of RAM. A page of whose bytes nobody
    /// has code has a zero. They live as long as the map.
    #[must_use]
    pub fn words_address(&self) -> u64 {
        self.pages.as_ptr() as u64
    }

    #[inline(always)]
    fn word(&self, at: RamOffset) -> Option<&AtomicU64> {
        self.pages.get((at.0 / PAGE_SIZE) as usize)
    }

    /// Says that `len` bytes from `start` on, all in one page, are being decoded; `new_user` if the caller has
    /// had no code of this page. What the caller reads of the page afterwards is what it was, or will be told
    /// to be, at or after this moment.
    pub fn add(&self, start: RamOffset, len: u64, new_user: bool) {
        let Some(word) = self.word(start) else { return };
        let grains = grains(start, len);
        let user = if new_user { ONE_USER } else { 0 };
        let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |w| {
            Some((w | grains) + user)
        });
        // Each user runs its own: another's may not be over yet.
        if new_user && self.barrier {
            run_barrier();
        }
        fence(Ordering::SeqCst);
    }

    /// Says that the caller has no code of the page of `at` any more.
    pub fn remove(&self, at: RamOffset) {
        let Some(word) = self.word(at) else { return };
        let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |w| {
            let left = w.saturating_sub(ONE_USER);
            // Nobody's: the grains go too.
            Some(if left & !GRAINS == 0 { 0 } else { left })
        });
    }

    /// Follows a store of `len` bytes from `start` on: tells every watcher but the one who stored, if these
    /// bytes may be decoded.
    pub fn stored(&self, start: RamOffset, len: u64, by: Option<WatcherId>) {
        fence(Ordering::SeqCst);
        let mut at = start;
        let mut left = len;
        while left > 0 {
            let part = left.min(PAGE_SIZE - (at.0 & PAGE_MASK));
            let touched = self
                .word(at)
                .is_some_and(|w| w.load(Ordering::SeqCst) & grains(at, part) != 0);
            if touched {
                self.tell(at, part, by);
            }
            at = RamOffset(at.0 + part);
            left -= part;
        }
    }

    #[cold]
    fn tell(&self, start: RamOffset, len: u64, by: Option<WatcherId>) {
        let all = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
        for (i, watcher) in all.iter().enumerate() {
            if by != Some(WatcherId(i)) {
                watcher.changed(start, len);
            }
        }
    }
}

fn grains(start: RamOffset, len: u64) -> u64 {
    let from = (start.0 & PAGE_MASK) / GRAIN;
    let to = ((start.0 & PAGE_MASK) + len.max(1) - 1).min(PAGE_MASK) / GRAIN;
    (GRAINS >> (31 - (to - from))) << from
}

/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED` and its registration (membarrier(2)).
const BARRIER: libc::c_int = 1 << 3;
const REGISTER_BARRIER: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes two integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

fn register_barrier() -> bool {
    membarrier(REGISTER_BARRIER)
}

fn run_barrier() {
    let done = membarrier(BARRIER);
    debug_assert!(done, "registered for it");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<(u64, u64)>>);

    impl CodeWatcher for Heard {
        fn changed(&self, start: RamOffset, len: u64) {
            self.0.lock().expect("no panic").push((start.0, len));
        }
    }

    impl Heard {
        fn take(&self) -> Vec<(u64, u64)> {
            std::mem::take(&mut self.0.lock().expect("no panic"))
        }
    }

    #[test]
    fn stores_to_code_are_told_to_all_others() {
        let map = CodeMap::new(4);
        let (a, b) = (Arc::new(Heard::default()), Arc::new(Heard::default()));
        let first = map.watch(a.clone());
        map.watch(b.clone());
        map.add(RamOffset(0x1080), 0x80, true);
        assert!(map.holds(RamOffset(0x1fff)) && !map.holds(RamOffset(0x2000)));
        map.stored(RamOffset(0x107f), 1, None);
        map.stored(RamOffset(0x1100), 8, None);
        assert!(a.take().is_empty(), "the grain ends there");
        map.stored(RamOffset(0x10ff), 1, Some(first));
        assert!(a.take().is_empty(), "it stored itself");
        assert_eq!(b.take(), [(0x10ff, 1)]);
        map.stored(RamOffset(0xf00), 0x1200, None);
        assert_eq!(a.take(), [(0x1000, 0x1000)], "split at page borders");
    }

    #[test]
    fn a_page_is_code_until_its_last_user_leaves() {
        let map = CodeMap::new(2);
        map.add(RamOffset(0), 1, true);
        map.add(RamOffset(0x200), 1, true);
        map.add(RamOffset(0x400), 1, false);
        map.remove(RamOffset(0xfff));
        assert!(map.holds(RamOffset(0)));
        map.remove(RamOffset(0));
        assert!(!map.holds(RamOffset(0)));
        map.remove(RamOffset(0));
        assert!(!map.holds(RamOffset(0)), "once too often does no harm");
        map.add(RamOffset(0x1fff), 1, true);
        assert!(!map.holds(RamOffset(0)) && map.holds(RamOffset(0x1000)));
        map.add(RamOffset(1 << 40), 1, true);
        assert!(!map.holds(RamOffset(1 << 40)), "outside RAM");
    }
}
