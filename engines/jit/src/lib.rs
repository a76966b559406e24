//! The translator: hot 64-bit guest code becomes code of the host.
//!
//! A [`Translator`] is a [`BlockExecutor`] of the software CPU. It translates block by block, in the cuts the
//! interpreter makes, and has each block count and look up where the interpreter would, so that both give the same
//! instruction counts and take events between the same instructions. What it has no code for it asks the interpreter's
//! handlers to do, one instruction at a time ([`translate`]).
//!
//! Guest registers are in host registers and guest flags in host flags ([`layout`]). Code does not contain the linear
//! address it was translated for: a block serves wherever its page is mapped.
//!
//! # Safety
//! Generated code reads and writes these: the processor behind GS, the TLB's view in force, its own table of blocks, what
//! it counts ([`sites`], and what a region counts of itself), guest RAM by addresses that the TLB gave out, and the bytes in
//! guest RAM it was made from, which it only reads. It calls nothing but the handlers, with MXCSR as Rust code expects it. The
//! processor stays where it is while it runs, and a region's count until its code is gone.

mod asm;
mod crossing;
mod fields;
mod layout;
mod record;
mod sites;
mod stubs;
mod table;
mod translate;
mod vectors;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::arch::asm;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use guestmem::RamOffset;
use hostexec::CodeArea;
pub use hostexec::CodeMemoryError;
use iced_x86::Mnemonic;
use record::{Record, What};
use sites::{Noted, Sites};
use softcpu::code::{BlockCache, BlockExecutor, Entry, Left, Op, Source, Way, room_for};
use softcpu::cpu::{Cpu, RIP, Trap};
use softcpu::hashing::NumberMap;
use stubs::{ELSEWHERE, GOES_ON, HANDLER, LEAVES, NO_WAY, Stubs};
use table::Table;
use translate::{Exit, Numbers, Windowing, translate, translate_region};
use vcpu::Profile;

/// A way out of a block.
#[derive(Clone, Copy)]
struct WayOut {
    /// Where the distance of its jump is in the area.
    jump: u32,
    /// Where it goes while it is not joined.
    leave: u32,
    /// The next way that is joined to the same block, [`NONE`] behind the last; [`NOT_JOINED`].
    next: u32,
}

/// A block in the area.
#[derive(Clone, Copy, Debug)]
struct Placed {
    /// Where in the area the code is that leaves before it begins.
    leave: u32,
    /// The first way that is joined to it.
    joined: u32,
}

/// No way.
const NONE: u32 = u32::MAX;
/// A way is joined to no block.
const NOT_JOINED: u32 = u32::MAX - 1;

/// A region in the area.
#[derive(Default)]
struct Joint {
    /// Its blocks, with what they are entered by where that is in it. Empty if it is gone.
    members: Vec<(u32, Option<Entry>)>,
    /// Instructions of all of them.
    instructions: u64,
    /// How often the check of a window failed, which its code counts.
    failed: Box<AtomicU64>,
    /// That when it was last looked at, and how many instructions had been executed.
    seen: (u64, u64),
}

impl Joint {
    /// Whether a good part of the ways through it end with the check of a window, since it was last looked at and while
    /// it was where time was spent.
    fn fails_often(&mut self, instructions: u64) -> bool {
        /// Fewer say nothing.
        const SOME: u64 = 64;
        /// One of so many ways through all of it.
        const OFTEN: u64 = 4;
        let failed = self.failed.load(Ordering::Relaxed);
        let (before, since) = std::mem::replace(&mut self.seen, (failed, instructions));
        let times = failed.wrapping_sub(before);
        let took = instructions.saturating_sub(since);
        times > SOME && times.saturating_mul(OFTEN * self.instructions) > took
    }
}

/// Bytes of code memory of a vCPU, and of all of a VM. Only what is used takes memory of the host.
const AREA: usize = 64 << 20;
const ALL_AREAS: usize = 256 << 20;
/// Bytes that a vCPU has however many there are.
const LEAST_AREA: usize = 1 << 20;
/// Most that one block or region can take.
const LONGEST: usize = 64 << 10;
/// There is room for one record and one way to so many bytes of code. Code as it is has more bytes to each.
const BYTES_TO_A_RECORD: usize = 64;
/// How often time is up before a block until it is joined with others.
const SAMPLES: u8 = 3;

/// What the handlers' caller works with.
struct Calls {
    records: Vec<Record>,
    /// Where the operations of records are, while code runs.
    code: *const BlockCache,
    /// Calls of records that are gone, by mnemonic: without code for it, and with.
    past: HashMap<u16, (u64, u64)>,
    /// With what, which operation, of which block.
    trapped: Option<(Trap, Op, u32)>,
    panic: Option<Box<dyn Any + Send>>,
    /// Stores to pages of which somebody has code.
    told: u64,
}

// SAFETY: `code` is followed only by what `Translator::run` calls, which has set it.
unsafe impl Send for Calls {}

impl Default for Calls {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            code: std::ptr::null(),
            past: HashMap::new(),
            trapped: None,
            panic: None,
            told: 0,
        }
    }
}

impl Calls {
    /// Calls so far.
    fn by_mnemonic(&self) -> HashMap<u16, (u64, u64)> {
        let mut all = self.past.clone();
        for record in &self.records {
            let (without, with) = all.entry(record.mnemonic).or_default();
            let native = record.what.has(What::NATIVE);
            let count = if native { with } else { without };
            *count += u64::from(record.calls);
        }
        all
    }
}

/// The translator of one vCPU.
pub struct Translator {
    area: CodeArea,
    stubs: Stubs,
    /// Where the blocks begin.
    first: usize,
    ways: Vec<WayOut>,
    blocks: NumberMap<Entry, Placed>,
    sites: Sites,
    table: Box<Table>,
    calls: Box<Calls>,
    regions: Vec<Joint>,
    /// Regions that a block is part of.
    regions_of: NumberMap<u32, Vec<u32>>,
    /// Blocks whose regions have no windows: the page ends where they would be.
    without_windows: NumberMap<u32, ()>,
    threshold: u16,
    full: bool,
    /// Code that may have run was changed since it ran last.
    changed: bool,
    counts: Counts,
}

/// For the profile.
#[derive(Debug, Default)]
struct Counts {
    blocks: u64,
    regions: u64,
    parted: u64,
    bytes: u64,
    entries: u64,
    instructions: u64,
    joined: u64,
    clears: u64,
    left_for_event: u64,
    left_for_block: u64,
    left_by_handler: u64,
    trapped: u64,
}

impl Translator {
    /// A translator of one of `vcpus` vCPUs, that translates what has been interpreted `threshold` times.
    ///
    /// # Errors
    /// The host gives no memory for code.
    pub fn new(threshold: u16, vcpus: u32) -> Result<Self, CodeMemoryError> {
        let share = ALL_AREAS / vcpus.max(1) as usize;
        Self::with_room(threshold, vcpus, share.clamp(LEAST_AREA, AREA))
    }

    /// The same with so many bytes for code: few of them, and everything is dropped all the time.
    ///
    /// # Errors
    /// The host gives no memory for code.
    ///
    /// # Panics
    /// Not even the code that all blocks share has room.
    pub fn with_room(threshold: u16, vcpus: u32, bytes: usize) -> Result<Self, CodeMemoryError> {
        let vcpus = vcpus.max(1) as usize;
        let mut area = CodeArea::new(c"nestling-translations", bytes & !0xfff)?;
        let functions = (handler as *const () as u64, stored as *const () as u64);
        let told = Noted::new();
        let stubs = Stubs::new(&mut area, functions.0, functions.1, &raw const *told as u64);
        Ok(Self {
            first: area.used(),
            area,
            stubs,
            ways: room_for(bytes / BYTES_TO_A_RECORD),
            blocks: NumberMap::default(),
            regions: Vec::new(),
            regions_of: NumberMap::default(),
            without_windows: NumberMap::default(),
            sites: Sites::new(stubs.counting, told),
            table: Table::new(vcpus),
            calls: Box::new(Calls {
                records: room_for(bytes / BYTES_TO_A_RECORD),
                ..Calls::default()
            }),
            threshold,
            full: false,
            changed: false,
            counts: Counts::default(),
        })
    }
}

impl Translator {
    /// Where numbers go on.
    fn numbers(&self) -> Numbers {
        Numbers {
            record: self.calls.records.len() as u32,
            way: self.ways.len() as u32,
        }
    }

    /// Keeps what belongs to code at `origin`.
    fn keep(&mut self, origin: u64, exits: &[Exit], records: Vec<Record>) {
        self.calls.records.extend(records);
        let start = self.in_area(origin);
        self.ways.extend(exits.iter().map(|e| WayOut {
            jump: start + e.jump as u32,
            leave: start + e.leave as u32,
            next: NOT_JOINED,
        }));
    }

    /// Where something that runs at `address` is in the area.
    fn in_area(&self, address: u64) -> u32 {
        (address - self.area.address(0)) as u32
    }

    /// Has a way go to an address.
    fn aim_way(&mut self, way: u32, to: u64) {
        let jump = self.area.address(self.ways[way as usize].jump);
        aim(&mut self.area, jump, to);
    }

    /// A block is entered by `new` from now on, by those who come by `old` too.
    fn replace(&mut self, old: Option<Entry>, new: Entry, leave: u64) {
        let old = old.and_then(|old| Some((old, self.blocks.remove(&old)?)));
        let mut joined = NONE;
        if let Some((old, block)) = old {
            self.changed = true;
            joined = block.joined;
            let mut way = joined;
            while way != NONE {
                self.aim_way(way, new.0.get());
                way = self.ways[way as usize].next;
            }
            self.lead(old, new.0.get());
        }
        let leave = self.in_area(leave);
        self.blocks.insert(new, Placed { leave, joined });
    }

    /// Nobody comes to a region any more. Gives its blocks, with what they were entered by where that was in it.
    fn drop_region(&mut self, region: u32) -> Vec<(u32, Option<Entry>)> {
        let members = std::mem::take(&mut self.regions[region as usize].members);
        self.sites.drop_region(region);
        for (member, entry) in &members {
            if let Some(entry) = entry {
                self.unlink(*entry);
            }
            if let Some(of) = self.regions_of.get_mut(member) {
                of.retain(|r| *r != region);
            }
        }
        members
    }

    /// Who comes to a block leaves before it.
    fn unlink(&mut self, entry: Entry) {
        let Some(block) = self.blocks.remove(&entry) else {
            return;
        };
        self.changed = true;
        let mut way = block.joined;
        while way != NONE {
            let leave = self.area.address(self.ways[way as usize].leave);
            self.aim_way(way, leave);
            way = std::mem::replace(&mut self.ways[way as usize].next, NOT_JOINED);
        }
        // Who finds it in the table leaves, and the next time finds what is there now.
        self.lead(entry, self.area.address(block.leave));
    }

    /// Overwrites the beginning of a block with a jump.
    fn lead(&mut self, from: Entry, to: u64) {
        let at = from.0.get();
        self.area.patch(at, &[0xe9]);
        aim(&mut self.area, at + 1, to);
    }
}

/// RFLAGS' bits from what LAHF and SETO AL leave.
fn flags_of(image: u64) -> u64 {
    (image >> 8 & 0xd5) | (image & 1) << 11
}

/// What LAHF and SETO AL leave of RFLAGS' bits.
fn image_of(flags: u64) -> u64 {
    (flags & 0xd5) << 8 | (flags >> 11 & 1)
}

/// Calls the handler of a record. 0: the block goes on.
///
/// # Safety
/// `cpu` is the processor of a [`Translator::run`] under way, whose `native.executor` is its `calls`.
unsafe extern "sysv64" fn handler(cpu: *mut Cpu, record: u32) -> u64 {
    // SAFETY: `run` has lent the processor to the code that calls this, and uses it only when that is back.
    let cpu = unsafe { &mut *cpu };
    // SAFETY: `run` has put the address of its box there; nobody else uses it meanwhile.
    let calls = unsafe { &mut *(cpu.native.executor as *mut Calls) };
    let done = catch_unwind(AssertUnwindSafe(|| handle(cpu, calls, record)));
    done.unwrap_or_else(|panic| {
        calls.panic = Some(panic);
        LEAVES
    })
}

/// Tells others of a store to a page they have code of.
///
/// # Safety
/// As for [`handler`]; `address` lies in RAM.
unsafe extern "sysv64" fn stored(cpu: *mut Cpu, address: u64, len: u64) {
    // SAFETY: as in `handler`.
    let cpu = unsafe { &mut *cpu };
    // SAFETY: as in `handler`.
    let calls = unsafe { &mut *(cpu.native.executor as *mut Calls) };
    calls.told += 1;
    let at = RamOffset(address.wrapping_sub(cpu.ram.host_base() as u64));
    let done = catch_unwind(AssertUnwindSafe(|| cpu.stored(at, len)));
    if let Err(panic) = done {
        calls.panic = Some(panic);
        // The next block leaves.
        cpu.attention.trip();
    }
}

fn handle(cpu: &mut Cpu, calls: &mut Calls, number: u32) -> u64 {
    let record = &mut calls.records[number as usize];
    record.calls = record.calls.saturating_add(1);
    // SAFETY: `run` has borrowed the cache for as long as the code runs, and nothing changes it meanwhile.
    let code = unsafe { &*calls.code };
    let block = code.block(record.block);
    let flags = record.what.has(What::FLAGS);
    cpu.regs[RIP] = cpu.native.page + (block.start & 0xfff);
    cpu.code_pages.running_start = block.start;
    cpu.code_pages.running_len = u64::from(block.bytes);
    if block.crosses {
        cpu.code_pages.running_second = code.second_page(record.block);
    }
    if flags {
        cpu.flags.set_bits(flags_of(cpu.native.flags));
    }
    let mut ops = code.ops(block)[usize::from(record.op)..].iter();
    let mut op = ops.next().expect("a record names an operation");
    let mut done = (op.run)(cpu, op);
    if record.what.has(What::REST) {
        while done.is_ok()
            && let Some(next) = ops.next()
        {
            op = next;
            done = (op.run)(cpu, op);
        }
    }
    cpu.code_pages.running_second = u64::MAX;
    let goes_on = done.is_ok() && !record.what.has(What::LAST);
    if goes_on {
        if flags {
            cpu.native.flags = image_of(cpu.flags.bits());
        }
        if cpu.pending != 0 {
            cpu.attention.trip();
        }
        cpu.native.view = cpu.tlb.view_address();
        cpu.native.barriers = cpu.vector_barriers();
        return GOES_ON;
    }
    match done {
        Ok(()) => {
            cpu.regs[RIP] = cpu.next_rip;
            if cpu.pending == 0 && cpu.long64 {
                if flags {
                    cpu.native.flags = image_of(cpu.flags.bits());
                }
                cpu.native.view = cpu.tlb.view_address();
                cpu.native.barriers = cpu.vector_barriers();
                return u64::from(ELSEWHERE);
            }
        }
        Err(trap) => calls.trapped = Some((trap, *op, record.block)),
    }
    if !flags {
        cpu.flags.set_bits(flags_of(cpu.native.flags));
    }
    cpu.native.left = HANDLER;
    LEAVES
}

impl BlockExecutor for Translator {
    fn threshold(&self) -> u16 {
        self.threshold
    }

    fn attach(&mut self, cpu: &mut Cpu) {
        let this = &raw const *cpu as u64;
        cpu.native.this = this;
        cpu.native.poll = cpu.attention.poll_address();
        cpu.native.table = &raw const *self.table as u64;
        cpu.native.executor = &raw mut *self.calls as u64;
        (cpu.native.no_sse, cpu.native.no_avx, cpu.native.no_x87) = (1, 1, 1);
        cpu.native.mxcsr_masks = Cpu::MXCSR_MASKS;
        let first_page = cpu.ram.host_base() as u64 >> 12;
        cpu.native.code_map = cpu.ram.code().words_address().wrapping_sub(8 * first_page);
        set_gs(this);
    }

    fn translate(&mut self, cpu: &Cpu, source: &Source) -> Option<Entry> {
        if self.area.room() < LONGEST {
            self.full = true;
            return None;
        }
        let origin = self.area.next_address();
        let t = translate(cpu, source, &self.stubs, origin, self.numbers())?;
        if t.code.len() > LONGEST || self.area.append(&t.code).is_none() {
            return None;
        }
        self.counts.blocks += 1;
        self.counts.bytes += t.code.len() as u64;
        self.keep(origin, &t.exits, t.records);
        let entry = Entry(NonZeroU64::new(origin)?);
        let block = Placed {
            leave: self.in_area(origin) + t.leave as u32,
            joined: NONE,
        };
        self.blocks.insert(entry, block);
        Some(entry)
    }

    fn samples(&self) -> u8 {
        if self.threshold == 0 { 1 } else { SAMPLES }
    }

    fn join_blocks(&mut self, cpu: &Cpu, sources: &[Source]) -> Option<Vec<Option<Entry>>> {
        if self.area.room() < LONGEST {
            self.full = true;
            return None;
        }
        let origin = self.area.next_address();
        let without = |s: &Source| self.without_windows.contains_key(&s.index);
        let failed = Box::<AtomicU64>::default();
        let windowing = Windowing {
            any: !sources.iter().any(without),
            failed: &raw const *failed as u64,
        };
        let numbers = self.numbers();
        let r = translate_region(cpu, sources, &self.stubs, origin, numbers, windowing)?;
        if r.code.len() > LONGEST || self.area.append(&r.code).is_none() {
            return None;
        }
        self.counts.regions += 1;
        self.counts.bytes += r.code.len() as u64;
        self.keep(origin, &r.exits, r.records);
        let number = self.regions.len() as u32;
        let watched = (self.threshold > 0, cpu.retired_now());
        let region = (number, origin);
        self.sites.give(&mut self.area, region, &r.checks, watched);
        self.changed = true;
        let mut entries = Vec::new();
        for (source, gate) in sources.iter().zip(r.gates) {
            let of = self.regions_of.entry(source.index).or_default();
            of.push(number);
            let entry = gate.filter(|_| !source.keeps).and_then(|(gate, leave)| {
                let entry = Entry(NonZeroU64::new(origin + gate as u64)?);
                let leave = origin + leave as u64;
                self.replace(source.entry, entry, leave);
                Some(entry)
            });
            entries.push(entry);
        }
        let members = sources.iter().map(|s| s.index);
        let instructions = sources.iter().map(|s| s.ops.len() as u64).sum();
        self.regions.push(Joint {
            members: members.zip(entries.iter().copied()).collect(),
            instructions,
            failed,
            seen: (0, cpu.retired_now()),
        });
        Some(entries)
    }

    fn full(&self) -> bool {
        self.full
    }

    fn run(&mut self, cpu: &mut Cpu, code: &BlockCache, entry: Entry) -> Left {
        let rip = cpu.regs[RIP];
        if let Some(address) = cpu.tlb.code_address(rip) {
            self.table.insert(address, entry.0.get());
            cpu.tlb.aim_jump(rip, entry.0.get());
        }
        cpu.native.page = rip & !0xfff;
        cpu.native.view = cpu.tlb.view_address();
        cpu.native.flags = image_of(cpu.flags.bits());
        cpu.native.barriers = cpu.vector_barriers();
        cpu.native.entry = entry.0.get();
        self.calls.code = code;
        cpu.attention.arm();
        let before = cpu.retired_now();
        let this = &raw mut *cpu as u64;
        debug_assert_eq!(this, cpu.native.this, "the processor has moved");
        if std::mem::take(&mut self.changed) {
            serialize();
        }
        // SAFETY: the stub is a function of this signature in memory that lives as long as `self`. It and the code it
        // runs keep to what the crate's documentation says under "Safety"; GS has the processor's address since
        // `attach`, on this thread.
        unsafe {
            let enter: extern "sysv64" fn(u64) = std::mem::transmute(self.stubs.enter);
            enter(this);
        }
        self.counts.entries += 1;
        self.counts.instructions += cpu.retired_now().saturating_sub(before);
        if let Some(panic) = self.calls.panic.take() {
            resume_unwind(panic);
        }
        if let Some((trap, op, block)) = self.calls.trapped.take() {
            self.counts.trapped += 1;
            return Left::Trapped { trap, op, block };
        }
        let way = match cpu.native.left {
            HANDLER => {
                self.counts.left_by_handler += 1;
                None
            }
            left => {
                let event = cpu.pending != 0 || cpu.budget <= 0 || cpu.attention.get() != 0;
                if event {
                    self.counts.left_for_event += 1;
                } else {
                    self.counts.left_for_block += 1;
                }
                cpu.flags.set_bits(flags_of(cpu.native.flags));
                if cpu.budget <= 0 {
                    let instructions = cpu.retired_now();
                    self.changed |= self.sites.look(&mut self.area, &mut cpu.tlb, instructions);
                }
                (left != NO_WAY).then_some(Way(left as u32))
            }
        };
        Left::Boundary { way }
    }

    fn join(&mut self, way: Way, to: Entry) {
        let (Some(out), Some(block)) =
            (self.ways.get_mut(way.0 as usize), self.blocks.get_mut(&to))
        else {
            return;
        };
        if out.next != NOT_JOINED {
            return;
        }
        self.counts.joined += 1;
        self.changed = true;
        out.next = std::mem::replace(&mut block.joined, way.0);
        self.aim_way(way.0, to.0.get());
    }

    fn drop_block(
        &mut self,
        index: u32,
        entry: Option<Entry>,
        others: &mut Vec<(u32, Option<Entry>)>,
    ) {
        for region in self.regions_of.remove(&index).unwrap_or_default() {
            let members = self.drop_region(region);
            others.extend(members.into_iter().filter(|(member, _)| *member != index));
        }
        if let Some(entry) = entry {
            self.unlink(entry);
        }
    }

    fn part_blocks(&mut self, cpu: &Cpu, index: u32) -> Vec<(u32, Option<Entry>)> {
        let instructions = cpu.retired_now();
        let regions = self.regions_of.get(&index).into_iter().flatten().copied();
        let fails = |region: &u32| self.regions[*region as usize].fails_often(instructions);
        let Some(region) = regions.collect::<Vec<_>>().into_iter().find(fails) else {
            return Vec::new();
        };
        self.counts.parted += 1;
        let members = self.drop_region(region);
        let blocks = members.iter().map(|(member, _)| (*member, ()));
        self.without_windows.extend(blocks);
        members
    }

    fn clear(&mut self) {
        self.area.cut(self.first);
        self.changed = true;
        self.ways.clear();
        self.sites.clear();
        self.blocks.clear();
        self.regions.clear();
        self.regions_of.clear();
        self.without_windows.clear();
        self.table.clear();
        self.calls.past = self.calls.by_mnemonic();
        self.calls.records.clear();
        self.full = false;
        self.counts.clears += 1;
    }

    fn profile(&self, profile: &mut Profile) {
        let c = &self.counts;
        profile.count("blocks_translated", c.blocks);
        profile.count("regions", c.regions);
        profile.count("regions_parted", c.parted);
        profile.count("code_bytes", c.bytes + self.sites.bytes);
        profile.count("code_clears", c.clears);
        profile.count("entries", c.entries);
        profile.count("joined", c.joined);
        profile.count("sites_given", self.sites.given);
        profile.count("sites_taken", self.sites.taken);
        profile.count("left_for_event", c.left_for_event);
        profile.count("left_for_block", c.left_for_block);
        profile.count("left_by_handler", c.left_by_handler);
        profile.count("trapped", c.trapped);
        profile.count("stores_told", self.calls.told);
        profile.count("instructions_translated", c.instructions);
        for (mnemonic, (without, with)) in self.calls.by_mnemonic() {
            profile.count("handled", without);
            profile.count("missed", with);
            if let Ok(mnemonic) = Mnemonic::try_from(usize::from(mnemonic)) {
                *profile.handled.entry(format!("{mnemonic:?}")).or_default() += without;
                if with > 0 {
                    *profile
                        .handled
                        .entry(format!("{mnemonic:?}-miss"))
                        .or_default() += with;
                }
            }
        }
    }
}

/// The instruction-set extension translated code needs and this host has not, if there is one.
pub fn missing() -> Option<&'static str> {
    (!is_x86_feature_detected!("bmi2")).then_some("BMI2")
}

/// Has the processor forget what it has fetched: code was changed by another address than it is executed at (SDM Vol 3
/// 9.1.3). IRET serializes (9.3) and, unlike CPUID, does not leave a virtual machine.
fn serialize() {
    // SAFETY: IRETQ goes on behind itself with the segments, flags, and stack pointer that were pushed.
    unsafe {
        asm!(
            "mov {at}, rsp",
            "mov {word:e}, ss",
            "push {word}",
            "push {at}",
            "pushfq",
            "mov {word:e}, cs",
            "push {word}",
            "lea {word}, [rip + 2f]",
            "push {word}",
            "iretq",
            "2:",
            at = out(reg) _,
            word = out(reg) _,
        );
    }
}

/// Has the jump with its distance at address `jump` go to `to`.
fn aim(area: &mut CodeArea, jump: u64, to: u64) {
    let distance = to.wrapping_sub(jump + 4) as i32;
    area.patch(jump, &distance.to_le_bytes());
}

/// Gives GS a base on this thread.
fn set_gs(base: u64) {
    const HWCAP2_FSGSBASE: u64 = 2;
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: reads a number the kernel has given the program.
    let there = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
    if there {
        // SAFETY: the kernel says that programs may; nothing else in this program uses GS.
        unsafe { asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: changes the base of GS, which nothing else in this program uses.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}
