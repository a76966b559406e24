//! Accesses of hot blocks that find their page at a site of the view ([`softcpu::mem::Sites`]) instead of by its
//! address, so that what is loaded need not wait for the TLB's slot.
//!
//! A check before an access can be written anew in two forms of the same length: by the TLB, or by a site. Those in the
//! joined blocks of a region get sites. Each is watched first: it goes out of line, where its pages are compared. If it
//! goes on with the same page as a rule, its misses fill the site from then on, else it is by the TLB again. One that
//! misses often is watched again; and as it is known from then how often it is accessed, one that misses more than rarely
//! is by the TLB again, too: there are more places than sites, and another one takes its site away. What code counts is
//! looked at when time was up.
//!
//! A site answers aligned accesses only: they lie in one page.

use std::collections::{BTreeMap, HashMap};
use std::mem::offset_of;

use softcpu::mem::{READ_SITES, SITES, Tlb};

use hostexec::CodeArea;

use crate::asm::{Asm, Legacy, Mem, Reg, Rm};
use crate::layout::{
    ADDRESS, ANY_SITES, COPIED, FLUSHES, PLACE, RCX, READ, SLOT, WRITE, alignment, mask, scratch,
    site_page, site_place,
};

/// A check in translated code.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Where it begins, as an offset in its block.
    pub at: u32,
    /// Its bytes: [`emit_right`], a jump that leads to where misses go, and what loads the place.
    pub length: u8,
    /// The jump is a short one to a jump.
    pub near: bool,
    /// What is accessed.
    pub access: Access,
    /// What it belongs to: checks of one number are copies of one, or of one instruction.
    pub number: u32,
}

impl Check {
    /// It can be by a site: its size has a mask, and it is in one piece.
    fn can_have_site(&self) -> bool {
        matches!(self.access.size, 1 | 2 | 4 | 8 | 16) && usize::from(self.length) <= LONGEST_CHECK
    }

    /// Where misses go of the check whose bytes these are, at an address.
    fn misses_to(&self, address: u64, bytes: &[u8]) -> u64 {
        // What loads the place comes behind it.
        let end = bytes.len() - PLACE_BYTES;
        let behind = address + end as u64;
        if self.near {
            return behind.wrapping_add_signed(i64::from(bytes[end - 1] as i8));
        }
        let mut distance = [0; 4];
        distance.copy_from_slice(&bytes[end - 4..end]);
        behind.wrapping_add_signed(i64::from(i32::from_le_bytes(distance)))
    }
}

/// An access to memory.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Bytes of it.
    pub size: u8,
    /// It needs the right to write.
    pub write: bool,
    /// Its address has to be a multiple of its size, which is a power of two.
    pub aligned: bool,
}

impl Access {
    fn log2(self) -> u8 {
        self.size.trailing_zeros() as u8
    }
}

/// Bytes of [`emit_right`], at most.
pub const LONGEST_RIGHT: usize = 24;
/// Bytes of what loads the place from the TLB, and from a site.
const PLACE_BYTES: usize = 8;
const SITE_PLACE_BYTES: usize = 7;

/// RCX is zero then if the TLB allows the access at [`ADDRESS`], else less than 2^63; [`SLOT`] is its slot.
pub fn emit_right(a: &mut Asm, access: Access) {
    a.extract(SLOT, ADDRESS, mask(0));
    a.load(RCX, if access.write { WRITE } else { READ });
    if access.aligned {
        // Then it does not cross the page's end either.
        a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
        a.extract(RCX, RCX, alignment(access.log2()));
    } else {
        let last = i32::from(access.size) - 1;
        a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, last));
        a.extract(RCX, RCX, mask(1));
    }
}

/// The same as a check by a site.
fn emit_site_check(a: &mut Asm, check: &Check, site: usize, miss: u64) {
    let log2 = check.access.log2();
    a.load(SLOT, site_page(site));
    // Page and what should be zero of the offset: together the page times the size, if it is aligned.
    a.extract(
        RCX,
        ADDRESS,
        if log2 == 0 { mask(1) } else { alignment(log2) },
    );
    if log2 == 4 {
        a.lea(SLOT, Mem::indexed(SLOT, SLOT, 0, 0));
    }
    a.lea(RCX, Mem::indexed(RCX, SLOT, log2.min(3), 0));
    let there = a.if_zero();
    a.jump(miss);
    let length = usize::from(check.length);
    let spare = (length - SITE_PLACE_BYTES).checked_sub(a.here());
    // INT3, which nothing comes to.
    a.raw(&[0xcc; 24][..spare.expect("one check has room for the other")]);
    a.land(there);
    a.load(SLOT, site_place(site));
    assert_eq!(a.here(), length, "one is as long as the other");
}

/// What code writes about one place.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Counter {
    /// Not zero while it is watched.
    watched: u64,
    /// The number of the place.
    place: u64,
    /// The bits that are zero in aligned addresses.
    low: u64,
    /// The number of the page that was accessed last, with [`softcpu::mem::Sites::flushes`], negated.
    last: u64,
    /// Accesses out of line.
    seen: u64,
    /// Those to the page of the one before out of line, aligned.
    same: u64,
    /// So many more accesses out of line until it is told of, and from then on.
    left: u64,
    again: u64,
}

/// The places that have been told of.
#[repr(C)]
pub struct Noted {
    /// A byte: where the last one is, less one.
    last: u64,
    places: [u64; 257],
}

impl Noted {
    /// None.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            last: 0,
            places: [0; 257],
        })
    }
}

const fn counter(base: Reg, offset: usize) -> Mem {
    Mem::at(base, offset as i32)
}

fn count(a: &mut Asm, base: Reg, offset: usize) {
    a.load(RCX, counter(base, offset));
    a.lea(RCX, Mem::at(RCX, 1));
    a.store(counter(base, offset), RCX);
}

/// Functions that the code out of line calls.
#[derive(Clone, Copy, Debug)]
pub struct Counting {
    /// Counts for the [`Counter`] at [`SLOT`] an access at [`ADDRESS`].
    access: u64,
}

/// Writes them. `told` is the address of a [`Noted`].
pub fn emit_counting(a: &mut Asm, told: u64) -> Counting {
    const RET: u8 = 0xc3;
    const RDI: Reg = Reg(7);
    let at = |a: &Asm| a.origin + a.here() as u64;
    let tail = at(a);
    a.load(RCX, counter(RDI, offset_of!(Counter, left)));
    a.lea(RCX, Mem::at(RCX, -1));
    let tell = a.if_zero();
    a.store(counter(RDI, offset_of!(Counter, left)), RCX);
    a.load(RDI, scratch(3));
    a.raw(&[RET]);
    a.land(tell);
    a.set_wide(SLOT, told);
    // MOVZX ECX, byte; MOV byte, CL.
    let byte = |opcode| Legacy {
        opcode,
        ..Legacy::default()
    };
    a.changes(RCX);
    a.legacy(&byte(&[0x0f, 0xb6]), RCX.0, Rm::Mem(Mem::at(SLOT, 0)));
    a.lea(RCX, Mem::at(RCX, 1));
    a.legacy(&byte(&[0x88]), RCX.0, Rm::Mem(Mem::at(SLOT, 0)));
    let places = offset_of!(Noted, places) as i32;
    a.lea(SLOT, Mem::indexed(SLOT, RCX, 3, places));
    a.load(RCX, counter(RDI, offset_of!(Counter, place)));
    a.store(Mem::at(SLOT, 0), RCX);
    a.load(RCX, counter(RDI, offset_of!(Counter, again)));
    a.store(counter(RDI, offset_of!(Counter, left)), RCX);
    a.load(RDI, scratch(3));
    a.raw(&[RET]);

    let access = at(a);
    a.store(scratch(3), RDI);
    a.mov(RDI, SLOT);
    count(a, RDI, offset_of!(Counter, seen));
    a.extract(RCX, ADDRESS, mask(1));
    a.load(SLOT, FLUSHES);
    a.lea(RCX, Mem::indexed(RCX, SLOT, 0, 0));
    a.load(SLOT, counter(RDI, offset_of!(Counter, last)));
    a.lea(SLOT, Mem::indexed(SLOT, RCX, 0, 0));
    a.not(RCX);
    a.lea(RCX, Mem::at(RCX, 1));
    a.store(counter(RDI, offset_of!(Counter, last)), RCX);
    a.mov(RCX, SLOT);
    let same = a.if_zero();
    a.jump(tail);
    a.land(same);
    a.extract(RCX, ADDRESS, counter(RDI, offset_of!(Counter, low)));
    let whole = a.if_zero();
    a.jump(tail);
    a.land(whole);
    count(a, RDI, offset_of!(Counter, same));
    a.jump(tail);
    Counting { access }
}

/// Checks that have a site.
#[derive(Debug)]
struct Place {
    checks: Vec<Placed>,
    site: u16,
    /// How often it was watched.
    watched: u32,
    /// Instructions executed when it was last looked at.
    since: u64,
    /// Accesses when it was last watched, and how many instructions were executed meanwhile.
    rate: (u64, u64),
}

/// Bytes of a check, at most.
const LONGEST_CHECK: usize = LONGEST_RIGHT + 12 + PLACE_BYTES;

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Placed {
    check: Check,
    /// Where it begins.
    address: u64,
    /// Its bytes by the TLB.
    bytes: [u8; LONGEST_CHECK],
}

/// Most places that have sites at a time.
const MOST: usize = 1 << 14;
/// For how many counters memory is allocated at once.
const PART: usize = 256;
/// Accesses to be watched.
const SEEN: u64 = 64;
/// One access of so many may be to another page than the one before, or not find its page at the site.
const RARELY: u64 = 32;
/// Misses after which a place is watched for the second time, and how often that doubles.
const MISSES: u64 = 256;
const DOUBLED: u32 = 4;
/// Most bytes of code of a place out of line.
const OUT_OF_LINE: usize = 256;

/// The places that have sites.
pub struct Sites {
    counting: Counting,
    told: Box<Noted>,
    /// How far that has been looked at.
    heard: u8,
    places: Vec<Option<Place>>,
    /// By the number of the place. Code has their addresses.
    counters: Vec<Box<[Counter; PART]>>,
    free: Vec<u32>,
    /// The next sites, for reads and for writes.
    next: [usize; 2],
    /// The places of a region.
    regions: HashMap<u32, Vec<u32>>,
    /// Places that got a site; a statistic.
    pub given: u64,
    /// Places that are by the TLB again; a statistic.
    pub taken: u64,
    /// Bytes of code out of line; a statistic.
    pub bytes: u64,
}

impl Sites {
    /// No place has one. The functions tell `told`.
    pub fn new(counting: Counting, told: Box<Noted>) -> Self {
        Self {
            counting,
            told,
            heard: 0,
            places: Vec::new(),
            counters: Vec::new(),
            free: Vec::new(),
            next: [0, READ_SITES],
            regions: HashMap::new(),
            given: 0,
            taken: 0,
            bytes: 0,
        }
    }

    /// All code is gone.
    pub fn clear(&mut self) {
        self.places.clear();
        self.free.clear();
        self.heard = self.told.last as u8;
        self.regions.clear();
    }

    /// A site for a place. Where there are more places than sites some have the same.
    fn next_site(&mut self, write: bool) -> usize {
        let (first, end) = if write {
            (READ_SITES, SITES)
        } else {
            (0, READ_SITES)
        };
        let next = &mut self.next[usize::from(write)];
        let site = *next;
        *next = if site + 1 == end { first } else { site + 1 };
        site
    }

    fn next_place(&mut self) -> Option<usize> {
        if let Some(free) = self.free.pop() {
            return Some(free as usize);
        }
        let next = self.places.len();
        if next == MOST {
            return None;
        }
        if next == self.counters.len() * PART {
            self.counters.push(Box::new([Counter::default(); PART]));
        }
        self.places.push(None);
        Some(next)
    }

    fn counter(&mut self, place: usize) -> &mut Counter {
        &mut self.counters[place / PART][place % PART]
    }

    /// Gives the checks of a region, whose code begins at `origin`, sites, after so many instructions. They
    /// are watched first if `watched`.
    pub fn give(
        &mut self,
        area: &mut CodeArea,
        (region, origin): (u32, u64),
        checks: &[Check],
        (watched, instructions): (bool, u64),
    ) {
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for check in checks.iter().filter(|c| c.can_have_site()) {
            let group = (check.number, check.access.write, check.access.size);
            let address = origin + u64::from(check.at);
            let mut bytes = [0; LONGEST_CHECK];
            area.read(address, &mut bytes[..usize::from(check.length)]);
            groups.entry(group).or_default().push(Placed {
                check: *check,
                address,
                bytes,
            });
        }
        let mut places = Vec::new();
        for ((_, write, size), checks) in groups {
            if area.room() < OUT_OF_LINE * checks.len() {
                break;
            }
            let Some(index) = self.next_place() else {
                break;
            };
            let site = self.next_site(write);
            let times = if watched { SEEN } else { MISSES };
            *self.counter(index) = Counter {
                watched: u64::from(watched),
                place: index as u64,
                low: u64::from(size) - 1,
                left: times,
                again: times,
                ..Counter::default()
            };
            let counter = &raw const *self.counter(index) as u64;
            for placed in &checks {
                let mut out_of_line = Asm::new(area.next_address());
                emit_out_of_line(&mut out_of_line, placed, site, counter, &self.counting);
                let mut inline = Asm::new(placed.address);
                emit_site_check(&mut inline, &placed.check, site, out_of_line.origin);
                area.append(&out_of_line.code);
                self.bytes += out_of_line.code.len() as u64;
                area.patch(placed.address, &inline.code);
            }
            self.places[index] = Some(Place {
                checks,
                site: site as u16,
                watched: 0,
                since: instructions,
                rate: (0, 0),
            });
            self.given += 1;
            places.push(index as u32);
        }
        if !places.is_empty() {
            self.regions.insert(region, places);
        }
    }

    /// A region is gone.
    pub fn drop_region(&mut self, region: u32) {
        for place in self.regions.remove(&region).unwrap_or_default() {
            self.places[place as usize] = None;
            self.free.push(place);
        }
    }

    /// A place is by the TLB again.
    fn take(&mut self, area: &mut CodeArea, index: usize) {
        self.taken += 1;
        for placed in self.places[index].take().into_iter().flat_map(|p| p.checks) {
            let length = usize::from(placed.check.length);
            area.patch(placed.address, &placed.bytes[..length]);
        }
    }

    /// Looks at the places that were told of, after so many instructions. True if code was changed.
    pub fn look(&mut self, area: &mut CodeArea, tlb: &mut Tlb, instructions: u64) -> bool {
        let taken = self.taken;
        let mut seen = Vec::new();
        while self.heard != self.told.last as u8 {
            let index = self.told.places[usize::from(self.heard) + 1] as usize;
            self.heard = self.heard.wrapping_add(1);
            let Some(Some(place)) = self.places.get_mut(index) else {
                continue;
            };
            if seen.contains(&index) {
                continue;
            }
            seen.push(index);
            let counter = &mut self.counters[index / PART][index % PART];
            let watched = counter.watched == 0;
            let took = instructions.saturating_sub(place.since);
            place.since = instructions;
            let serves = if watched {
                let (accesses, meanwhile) = place.rate;
                let missed = counter.seen.saturating_mul(meanwhile);
                missed.saturating_mul(RARELY) <= accesses.saturating_mul(took)
            } else {
                place.rate = (counter.seen, took);
                (counter.seen - counter.same) * RARELY <= counter.seen
            };
            if !serves {
                self.take(area, index);
                continue;
            }
            let times = if watched {
                tlb.drop_site(usize::from(place.site));
                SEEN
            } else {
                place.watched += 1;
                MISSES << place.watched.min(DOUBLED)
            };
            *counter = Counter {
                watched: u64::from(watched),
                left: times,
                again: times,
                seen: 0,
                same: 0,
                ..*counter
            };
        }
        taken != self.taken
    }
}

/// Where a check by a site goes that does not find its page there.
fn emit_out_of_line(
    a: &mut Asm,
    place: &Placed,
    site: usize,
    counter_address: u64,
    counting: &Counting,
) {
    let check = &place.check;
    let length = usize::from(check.length);
    let miss = check.misses_to(place.address, &place.bytes[..length]);
    let end = place.address + length as u64;
    // What loads the place inline.
    let loads = end - SITE_PLACE_BYTES as u64;
    a.set_wide(SLOT, counter_address);
    a.load(RCX, counter(SLOT, offset_of!(Counter, watched)));
    let fills = a.if_zero();
    a.call(counting.access);
    emit_right(a, check.access);
    a.jump_unless_zero(miss);
    a.load(SLOT, PLACE);
    a.jump(end);
    a.land(fills);
    a.call(counting.access);
    emit_right(a, check.access);
    a.jump_unless_zero(miss);
    let word = Legacy {
        wide: true,
        opcode: &[0xc7],
        ..Legacy::default()
    };
    a.legacy(&word, 0, Rm::Mem(ANY_SITES));
    a.raw(&1u32.to_le_bytes());
    let byte = Legacy {
        opcode: &[0xc6],
        ..Legacy::default()
    };
    a.legacy(&byte, 0, Rm::Mem(COPIED));
    a.raw(&[1]);
    a.load(RCX, PLACE);
    a.store(site_place(site), RCX);
    a.extract(RCX, ADDRESS, mask(1));
    a.not(RCX);
    a.lea(RCX, Mem::at(RCX, 1));
    a.store(site_page(site), RCX);
    a.jump(loads);
}
