//! The software TLB.
//!
//! One direct-mapped table per *view* of a *bank*. A bank belongs to an address space ([`Space`]: VPID, EPT
//! pointer, PCID), so CR3 writes with PCID, VM entries and VM exits only switch banks. A view is what
//! permissions depend on beside the page: user, supervisor with SMAP closed, supervisor with SMAP open.
//!
//! For each kind of access a slot holds the negated address of the page that may be accessed at once. Added to an
//! address it gives the offset in the page, or at least 4096: then the slot does not answer. So a check is one load,
//! one addition and one comparison, which need not touch the arithmetic flags, and an access that crosses the page's
//! end fails it like one to another page. A slot without a right holds a page that never comes to this slot.
//!
//! Invariant: a right to write exists only for RAM pages whose guest dirty bit is set and that hold no decoded
//! code, so a hit needs no further check.

use guestmem::{PAGE_MASK, RamOffset};
use zerocopy::FromZeros;

use super::sites::Sites;

/// Slots in a view: what 64 MByte take. With 4,096 three of four loads all over so much missed (233 ns each, 152 now).
pub const SLOTS: usize = 16384;
/// Slots for jumps in a view. A kernel jumps to a thousand places for a system call or two: of 2,048 slots a fourth of
/// them would share one with another.
pub const JUMPS: usize = 8192;
/// Slots for jumps side by side of which it is known if they have been used.
const GROUP: usize = 64;
/// The lowest bit of a linear address that chooses a slot for jumps: functions begin at multiples of 16, and what is
/// jumped to between them is rarely closer.
const JUMP_SHIFT: u32 = 4;
/// Views in a bank.
const VIEWS: usize = 3;
/// Banks.
const BANKS: usize = 16;
/// The view that answers nothing; what has no view of its own yet has this one.
const NOTHING: usize = 0;

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

/// Where the code of a block is that a translator's code has jumped to.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(16))]
pub struct Jump {
    /// Its negated linear address.
    pub from: u64,
    /// Where the code is.
    pub to: u64,
}

impl Jump {
    /// The page of the linear address.
    fn page(self) -> u64 {
        self.from.wrapping_neg() & !PAGE_MASK
    }
}

/// What a translator finds at the address of [`Tlb::view_address`].
#[derive(FromZeros)]
#[repr(C)]
pub struct View {
    /// Masks for the extraction of bits: those that choose the slot, those above the offset in a page, the
    /// sign.
    pub masks: [u64; 3],
    /// Masks of the bits that are clear in offsets in a page that are a multiple of 2, 4, 8, 16, 32 and 64.
    pub alignments: [u64; 6],
    /// Mask of the bits of a linear address that choose a slot for jumps.
    pub jump_mask: u64,
    /// Mask of those that choose a group of them.
    pub jump_group_mask: u64,
    /// Not zero for groups with something in them.
    pub jump_groups: [u8; JUMPS / GROUP],
    /// Where blocks are that a translator's code has jumped to.
    pub jumps: [Jump; JUMPS],
    /// Reads: negated linear address of the page.
    pub read: [u64; SLOTS],
    /// Writes without further bookkeeping.
    pub write: [u64; SLOTS],
    /// Instruction fetches.
    pub fetch: [u64; SLOTS],
    /// What is added to the linear address to find the byte: at the RAM's address on the host.
    pub place: [u64; SLOTS],
    /// Copies of slots.
    pub sites: Sites,
    /// RAM page of each slot that has been writable ([`writable_page`]): where a page's slots are found when it turns into
    /// code.
    writable: [u32; SLOTS],
    /// Which slots may hold something.
    filled: [u64; SLOTS / 64],
    /// Which of them hold translations that all address spaces share.
    global: [u64; SLOTS / 64],
    /// Where another translation was put in the place of one that jumps may rest on. Elsewhere the page of a jump is in
    /// its slot.
    displaced: [u64; SLOTS / 64],
}

/// The negated address of a page that never comes to slot `i`, nor do its neighbours. Nearly always that is page 0, so
/// that what is never used of a view takes no memory of the host.
const fn no_page(i: usize) -> u64 {
    const LAST: usize = SLOTS - 1;
    match i {
        0 | 1 | LAST => (((i as u64 + 2) % SLOTS as u64) << 12).wrapping_neg(),
        _ => 0,
    }
}

/// What [`View::writable`] has for a RAM page.
const fn writable_page(page: u32) -> u32 {
    page + 1
}

/// What [`View::writable`] has for none.
const NOT_WRITABLE: u32 = 0;

/// The negated address of what never comes to slot `i`.
const fn no_jump(i: usize) -> u64 {
    if i == 0 {
        (1_u64 << JUMP_SHIFT).wrapping_neg()
    } else {
        0
    }
}

impl View {
    /// Makes one of zeros.
    fn begin(&mut self) {
        self.masks = [(SLOTS as u64 - 1) << 12, !PAGE_MASK, 1 << 63];
        self.alignments = std::array::from_fn(|n| !PAGE_MASK | ((2 << n) - 1));
        self.jump_mask = (JUMPS as u64 - 1) << JUMP_SHIFT;
        self.jump_group_mask = ((JUMPS / GROUP) as u64 - 1) << (JUMP_SHIFT + GROUP.ilog2());
        self.jumps[0].from = no_jump(0);
        for i in [0, 1, SLOTS - 1] {
            self.drop_slot(i);
        }
        self.sites.begin();
    }

    fn drop_slot(&mut self, i: usize) {
        self.read[i] = no_page(i);
        self.write[i] = no_page(i);
        self.fetch[i] = no_page(i);
        self.writable[i] = NOT_WRITABLE;
        self.sites.drop_slot(i);
    }

    fn drop_jumps(&mut self) {
        self.drop_jumps_to(|_, _| true);
        self.jump_groups = [0; JUMPS / GROUP];
        self.displaced = [0; SLOTS / 64];
    }

    /// Forgets jumps by their pages.
    fn drop_jumps_to(&mut self, which: impl Fn(&Self, u64) -> bool) {
        for group in 0..JUMPS / GROUP {
            if self.jump_groups[group] == 0 {
                continue;
            }
            for n in group * GROUP..(group + 1) * GROUP {
                if which(self, self.jumps[n].page()) {
                    self.jumps[n].from = no_jump(n);
                }
            }
        }
    }

    fn drop_page(&mut self, va: u64) {
        let i = slot(va);
        let bit = 1 << (i % 64);
        let led_there = self.fetch[i] != no_page(i) || self.displaced[i / 64] & bit != 0;
        self.drop_slot(i);
        if led_there {
            self.drop_jumps_to(|_, page| slot(page) == i);
        }
        self.displaced[i / 64] &= !bit;
    }

    /// Forgets the 2 MByte around `va`, and what else shares their slots.
    fn drop_2m(&mut self, va: u64) {
        const COUNT: usize = (2 << 20) / 4096;
        let first = slot(va) / COUNT * COUNT;
        let words = first / 64..(first + COUNT) / 64;
        if self.filled[words.clone()].iter().all(|w| *w == 0) {
            return;
        }
        for i in first..first + COUNT {
            self.drop_slot(i);
        }
        self.filled[words.clone()].fill(0);
        self.displaced[words].fill(0);
        self.drop_jumps_to(|_, page| slot(page) / COUNT * COUNT == first);
    }

    /// Forgets what is not global.
    fn wipe_local(&mut self) {
        self.sites.drop_all();
        for word in 0..self.filled.len() {
            let mut left = self.filled[word] & !self.global[word];
            self.filled[word] &= self.global[word];
            while left != 0 {
                self.drop_slot(word * 64 + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
        self.drop_jumps_to(|view, page| {
            let i = slot(page);
            let displaced = view.displaced[i / 64] >> (i % 64) & 1 != 0;
            displaced || view.fetch[i] != page.wrapping_neg()
        });
        self.displaced = [0; SLOTS / 64];
    }

    fn wipe(&mut self) {
        self.drop_jumps();
        self.global = [0; SLOTS / 64];
        self.sites.drop_all();
        for word in 0..self.filled.len() {
            let mut left = std::mem::take(&mut self.filled[word]);
            while left != 0 {
                self.drop_slot(word * 64 + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Bank {
    space: Space,
    in_use: bool,
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
    /// [`NOTHING`], those that were filled so far, and zeros for all others that there can be. They come from the host as
    /// they are used, 740 KByte each at most; what asks for all at once gets them so.
    views: Box<[View]>,
    /// How many are no zeros.
    begun: usize,
    /// Which of them a bank's view is.
    held: [usize; BANKS * VIEWS],
    /// The one in force.
    current: usize,
    /// Where RAM begins on the host.
    ram: u64,
    bank: usize,
    view: usize,
    always_miss: bool,
    banks: [Bank; BANKS],
    uses: u64,
    /// Pages filled in so far; a statistic.
    pub fills: u64,
    /// Banks emptied so far, and pages; a statistic.
    pub flushes: [u64; 2],
    stamps: u64,
    /// Identifies the translations in force: changes with bank, view, and every flush.
    pub stamp: u64,
    /// Misses that walked page tables; a statistic.
    pub walks: u64,
}

#[inline(always)]
fn slot(va: u64) -> usize {
    (va >> 12) as usize & (SLOTS - 1)
}

impl Tlb {
    /// An empty TLB; `ram` is the address of RAM on the host, for [`View::place`].
    #[must_use]
    pub fn new(ram: u64) -> Self {
        // The allocator fails only where all others of the program would.
        let views = <[View]>::new_box_zeroed_with_elems(BANKS * VIEWS + 1);
        let mut tlb = Self {
            views: views.expect("room for the TLB"),
            begun: 0,
            held: [NOTHING; BANKS * VIEWS],
            current: 0,
            ram,
            bank: 0,
            view: 1,
            always_miss: false,
            banks: [Bank::default(); BANKS],
            uses: 0,
            fills: 0,
            flushes: [0; 2],
            stamps: 0,
            stamp: 0,
            walks: 0,
        };
        tlb.begin_view();
        tlb.select_space(Space::default());
        tlb
    }

    /// The number of a view that is empty.
    fn begin_view(&mut self) -> usize {
        let number = self.begun;
        self.views[number].begin();
        self.begun += 1;
        number
    }

    /// The address of the view in force.
    #[inline]
    #[must_use]
    pub fn view_address(&self) -> u64 {
        &raw const self.views[self.current] as u64
    }

    #[inline(always)]
    fn place(&self, va: u64) -> RamOffset {
        RamOffset(
            self.views[self.current].place[slot(va)]
                .wrapping_add(va)
                .wrapping_sub(self.ram),
        )
    }

    /// Where a read of `size` bytes at `va` finds its RAM, on a hit inside one page.
    #[inline(always)]
    pub fn read_hit(&self, va: u64, size: u64) -> Option<RamOffset> {
        let within = va.wrapping_add(self.views[self.current].read[slot(va)]);
        (within <= 4096 - size).then(|| self.place(va))
    }

    /// Where a write of `size` bytes at `va` finds its RAM, on a hit inside one page.
    #[inline(always)]
    pub fn write_hit(&self, va: u64, size: u64) -> Option<RamOffset> {
        let within = va.wrapping_add(self.views[self.current].write[slot(va)]);
        (within <= 4096 - size).then(|| self.place(va))
    }

    /// Where the instruction byte at `va` lies, on a hit.
    #[inline(always)]
    pub fn fetch_hit(&self, va: u64) -> Option<RamOffset> {
        let within = va.wrapping_add(self.views[self.current].fetch[slot(va)]);
        (within < 4096).then(|| self.place(va))
    }

    /// Forgets all jumps: translated code is gone.
    pub fn drop_jumps(&mut self) {
        for view in &mut self.views[..self.begun] {
            view.drop_jumps();
        }
    }

    /// Has the view's jump to `va`, if there is one, go to `code`: where it went may be gone.
    pub fn aim_jump(&mut self, va: u64, code: u64) {
        let view = &mut self.views[self.current];
        let i = ((va & view.jump_mask) >> JUMP_SHIFT) as usize;
        if view.jumps[i].from == va.wrapping_neg() {
            view.jumps[i].to = code;
        }
    }

    /// The address on the host of the instruction byte at `va`, on a hit in the view in force.
    #[must_use]
    pub fn code_address(&self, va: u64) -> Option<u64> {
        self.fetch_hit(va).map(|at| self.ram.wrapping_add(at.0))
    }

    /// Remembers a translation for the current space and view.
    pub fn fill(&mut self, va: u64, page: RamOffset, allowed: Allowed) {
        if self.always_miss {
            return;
        }
        self.fills += 1;
        let i = slot(va);
        if self.current == NOTHING {
            self.current = self.begin_view();
            self.held[self.bank * VIEWS + self.view] = self.current;
        }
        let view = &mut self.views[self.current];
        view.sites.drop_slot(i);
        let linear = va & !PAGE_MASK;
        let on = |yes: bool| {
            if yes {
                linear.wrapping_neg()
            } else {
                no_page(i)
            }
        };
        let at = self.ram.wrapping_add(page.0 & !PAGE_MASK);
        let place = at.wrapping_sub(linear);
        let same = view.fetch[i] == on(allowed.fetch) && view.place[i] == place;
        if view.fetch[i] != no_page(i) && !same {
            view.displaced[i / 64] |= 1 << (i % 64);
        }
        view.read[i] = on(allowed.read);
        view.write[i] = on(allowed.write);
        view.fetch[i] = on(allowed.fetch);
        view.place[i] = place;
        view.filled[i / 64] |= 1 << (i % 64);
        view.global[i / 64] &= !(1 << (i % 64));
        view.writable[i] = if allowed.write {
            writable_page((page.0 >> 12) as u32)
        } else {
            NOT_WRITABLE
        };
    }

    /// What was filled for the page of `va` is global (SDM Vol 3 4.10.2.4).
    pub fn keep_global(&mut self, va: u64) {
        if self.current != NOTHING {
            let i = slot(va);
            self.views[self.current].global[i / 64] |= 1 << (i % 64);
        }
    }

    /// Takes every right to write to `page` (a RAM page number) away: it now holds code.
    pub fn protect_page(&mut self, page: u32) {
        // Few parts have any: each is looked through as a whole first, which the compiler makes vector compares of.
        const PART: usize = 64;
        let page = writable_page(page);
        for view in &mut self.views[..self.begun] {
            for (part, pages) in view.writable.chunks_mut(PART).enumerate() {
                if view.filled[part] == 0 {
                    continue;
                }
                if !pages.iter().fold(false, |any, p| any | (*p == page)) {
                    continue;
                }
                for (i, p) in pages.iter_mut().enumerate().filter(|(_, p)| **p == page) {
                    *p = NOT_WRITABLE;
                    let i = part * PART + i;
                    view.write[i] = no_page(i);
                    view.sites.drop_slot(i);
                }
            }
        }
    }

    /// Empties a site in all views.
    pub fn drop_site(&mut self, site: usize) {
        for view in &mut self.views[..self.begun] {
            view.sites.drop_site(site);
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
        self.stamp = self.banks[self.bank].stamp * VIEWS as u64 + self.view as u64;
        self.current = if self.always_miss {
            NOTHING
        } else {
            self.held[self.bank * VIEWS + self.view]
        };
    }

    fn flush_bank(&mut self, bank: usize) {
        self.flushes[0] += 1;
        self.stamps += 1;
        self.banks[bank].stamp = self.stamps;
        for &view in &self.held[bank * VIEWS..(bank + 1) * VIEWS] {
            self.views[view].wipe();
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

    /// Forgets what is not global in every space for which `which` holds.
    pub fn flush_local(&mut self, which: impl Fn(&Space) -> bool) {
        for (i, b) in self.banks.iter_mut().enumerate() {
            if b.in_use && which(&b.space) {
                self.flushes[0] += 1;
                self.stamps += 1;
                b.stamp = self.stamps;
                for &view in &self.held[i * VIEWS..(i + 1) * VIEWS] {
                    self.views[view].wipe_local();
                }
            }
        }
        self.refresh();
    }

    /// Forgets the current space.
    pub fn flush_current(&mut self) {
        self.flush_bank(self.bank);
        self.refresh();
    }

    /// Forgets the 2 MByte around `va` in every space for which `which` holds.
    pub fn flush_2m(&mut self, va: u64, which: impl Fn(&Space) -> bool) {
        for (i, b) in self.banks.iter_mut().enumerate() {
            if b.in_use && which(&b.space) {
                self.flushes[1] += 1;
                self.stamps += 1;
                b.stamp = self.stamps;
                for &view in &self.held[i * VIEWS..(i + 1) * VIEWS] {
                    self.views[view].drop_2m(va);
                }
            }
        }
        self.refresh();
    }

    /// Forgets one page in every space for which `which` holds.
    pub fn flush_page(&mut self, va: u64, which: impl Fn(&Space) -> bool) {
        for (i, b) in self.banks.iter_mut().enumerate() {
            if b.in_use && which(&b.space) {
                self.flushes[1] += 1;
                self.stamps += 1;
                b.stamp = self.stamps;
                for &view in &self.held[i * VIEWS..(i + 1) * VIEWS] {
                    self.views[view].drop_page(va);
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
mod tests;
