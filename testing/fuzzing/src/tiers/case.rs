//! One case: what memory holds, how the processors start, and what happens between their turns.

use super::guest::{
    ALIAS, ALIASES, ASKED, CODE, COUNT, DATA, DEVICE, DEVICE_AT, ELSEWHERE, INTERRUPT, PAGES,
    RAM_BYTES, REGISTERS, REQUESTS, ROOT_MASK, ROOTS, STACKS, TABLES, WAYS_ON, selectors, start,
    target,
};
use super::pieces::snippet;
use crate::Input;
use vcpu::VcpuState;

/// Bytes of choices.
pub const CHOICES: usize = 8192;
/// Snippets, and bytes of real code in each.
pub const SNIPPETS: usize = 24;
/// Bytes of real code for a snippet.
pub const REAL: usize = 44;

/// Turns of a case.
pub const MOST_TURNS: usize = 96;
/// Where the choice of their number is.
pub const TURNS_AT: usize = 2;

/// What happens before a turn.
#[derive(Clone, Debug, Default)]
pub struct Action {
    /// Words in memory that the request's handler looks at, by their addresses.
    pub asked: Vec<(u64, u64)>,
    /// An NMI, whose handler follows requests.
    pub nmi: bool,
    /// An interrupt.
    pub interrupt: Option<u8>,
    /// A device writes to RAM.
    pub device: Option<(u64, Vec<u8>)>,
}

/// A processor's next turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Which.
    pub vcpu: usize,
    /// Instructions until the poll.
    pub slice: u64,
    /// What happens before it.
    pub action: Action,
}

/// A case.
pub struct Case {
    /// Which pair of machines.
    pub kind: usize,
    /// RAM.
    pub image: Vec<u8>,
    /// Processors.
    pub states: Vec<VcpuState>,
    /// Their turns.
    pub turns: Vec<Turn>,
}

/// An entry of a page table for `page`.
fn entry(space: usize, page: u64, one: bool, input: &mut Input<'_>) -> u64 {
    let there = |page: u64| target(space, page) << 12;
    // P, W, A, D; U where it is not the kernel's; G where other address spaces have the same.
    if page < CODE {
        return there(page) | 0x63 | if input.once_in(4) { 0x100 } else { 0 };
    }
    if page == DEVICE || page == DEVICE + ALIAS {
        return DEVICE_AT | 0x67;
    }
    if target(space, page) >= RAM_BYTES >> 12 {
        return 0;
    }
    let all = there(page) | 0x67;
    match input.below(16) {
        0 => all & !1,
        1 => all & !2,
        2 => all & !0x20,
        3 => all & !0x40,
        4 => all & !4,
        5 => all | 1 << 63,
        6 | 10 if one => all | 0x100,
        7 => all & !0x42,
        8 | 11 | 12 => there(page ^ 1) | 0x67,
        _ => all,
    }
}

/// An address that is mapped, as a rule.
fn pointer(input: &mut Input<'_>) -> u64 {
    let page = match input.below(16) {
        0 | 1 => CODE + input.below(COUNT as usize) as u64,
        2 => STACKS + input.below(3) as u64,
        _ => DATA + input.below(COUNT as usize) as u64,
    };
    let offset = match input.below(4) {
        // Near its end.
        0 => 0x1000 - u64::from(input.any::<u8>() & 0x3f),
        1 => u64::from(input.any::<u16>() & 0xff0),
        _ => u64::from(input.any::<u16>() & 0xfff),
    };
    (page << 12) + offset + alias(input)
}

fn alias(input: &mut Input<'_>) -> u64 {
    match input.below(4) {
        0 => input.pick(&ALIASES),
        _ => 0,
    }
}

fn register(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0 => input.number(),
        1 => u64::from(input.any::<u8>() & 0x3f),
        2 => input.any(),
        _ => pointer(input),
    }
}

fn stack(input: &mut Input<'_>) -> u64 {
    let offset = match input.below(8) {
        0 => 0x1000 + 8 * input.below(4) as u64,
        1 => 0x1ff9,
        _ => 0x800 + 8 * input.below(0x280) as u64,
    };
    (STACKS << 12) + offset + alias(input)
}

/// How long a turn lasts.
fn slice(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0..=2 => 1,
        3 => 2 + input.below(6) as u64,
        4 | 5 => 8 + input.below(24) as u64,
        6 => 32 + input.below(96) as u64,
        _ => 100 + input.below(300) as u64,
    }
}

struct Maker<'a, 'b> {
    input: &'a mut Input<'b>,
    /// There is one address space only.
    one: bool,
    targets: Vec<u64>,
    cr0: u64,
    cr4: u64,
}

impl Maker<'_, '_> {
    fn code_address(&mut self) -> u64 {
        let at = self.input.pick(&self.targets) + alias(self.input);
        match self.input.below(16) {
            0 => at + self.input.below(24) as u64,
            _ => at,
        }
    }

    /// What a handler is asked for.
    fn request(&mut self, action: &mut Action) {
        let mut bits = 0;
        let mut asked = Vec::new();
        let i = &mut *self.input;
        let kinds: u16 = i.any();
        // Most of them go on somewhere else, with other registers.
        if kinds & 3 != 0 {
            bits |= 0x10 | 0x800;
            if kinds & 4 != 0 {
                for n in (0..16).filter(|n| *n != 4) {
                    asked.push((REGISTERS + 8 * n, register(self.input)));
                }
            }
            let rip = self.code_address();
            asked.push((ASKED + 0x40, rip));
        }
        let i = &mut *self.input;
        if kinds & 0x18 == 0x18 {
            bits |= 0x20;
            asked.push((ASKED + 0x48, stack(i)));
        }
        if kinds & 0x60 == 0x60 {
            bits |= 0x40;
            // Arithmetic flags, IF, DF seldom, TF seldom, AC.
            let mut flags = i.any::<u64>() & 0x4_0ad5 | 2;
            if i.once_in(4) {
                flags |= 0x100;
            }
            if i.once_in(8) {
                flags |= 0x400;
            }
            asked.push((ASKED + 0x50, flags));
        }
        if kinds & 0x180 == 0x180 {
            bits |= 0x80;
            let (code, data) = selectors(i.once_in(2));
            asked.push((ASKED + 0x58, code));
            asked.push((ASKED + 0x60, data));
        }
        match kinds >> 9 & 31 {
            // An entry of a page table changes.
            0..5 => {
                bits |= 1;
                let space = if self.one { 0 } else { i.below(2) };
                let page = match i.below(3) {
                    0 => CODE + i.below(0x12) as u64,
                    1 => DATA + i.below(COUNT as usize) as u64,
                    _ => ALIAS + CODE + i.below(0x12) as u64,
                };
                let table = TABLES[space] + 8 * page;
                asked.push((ASKED + 8, table));
                asked.push((ASKED + 0x10, entry(space, page, self.one, i)));
                asked.push((ASKED + 0x18, page << 12 | u64::from(i.any::<u8>())));
            }
            5 | 6 => {
                bits |= 2;
                // A PCID belongs to one root, or a write that flushes nothing leaves translations of the other.
                let space = i.below(2);
                let pcid = match self.cr4 >> 17 & 1 {
                    0 => 0,
                    _ => {
                        let keeps = u64::from(i.any::<u8>() & 1) << 63;
                        space as u64 | (2 * i.below(2) as u64) | keeps
                    }
                };
                asked.push((ASKED + 0x28, ROOTS[space] | pcid));
            }
            7 => {
                bits |= 4;
                // WP, AM, TS, MP.
                let flips = i.pick(&[1 << 16, 1 << 18, 8, 2, 4]);
                self.cr0 ^= flips;
                asked.push((ASKED + 0x30, self.cr0));
            }
            8 => {
                bits |= 8;
                // PGE, SMEP, SMAP, TSD, UMIP, OSFXSR, OSXSAVE.
                let flips = i.pick(&[
                    1 << 7,
                    1 << 7,
                    1 << 20,
                    1 << 21,
                    4,
                    1 << 11,
                    1 << 9,
                    1 << 18,
                ]);
                self.cr4 ^= flips;
                asked.push((ASKED + 0x38, self.cr4));
            }
            9 => {
                bits |= 0x100;
                let code = self.code_address();
                let i = &mut *self.input;
                asked.push((ASKED + 0x68, code));
                asked.push((ASKED + 0x70, pointer(i)));
                // One of code, one of data, or none.
                asked.push((
                    ASKED + 0x78,
                    i.pick(&[0x400, 0x400, 0x402, 0x00d0_0408, 0x0070_0408]),
                ));
            }
            10..14 => {
                bits |= 0x200;
                let to = self.code_address() + self.input.below(40) as u64;
                asked.push((ASKED + 0x80, to));
                asked.push((ASKED + 0x88, u64::from(self.input.any::<u8>())));
            }
            14 => {
                bits |= 0x400;
                // Bases of FS, GS, and the other one of GS.
                asked.push((ASKED + 0x90, 0xc000_0100 + i.below(3) as u64));
                let base = pointer(i);
                asked.push((ASKED + 0x98, base >> 32));
                asked.push((ASKED + 0xa0, base));
            }
            _ => {}
        }
        asked.push((ASKED, bits));
        action.asked = asked;
        if self.input.once_in(4) {
            action.interrupt = Some(REQUESTS);
        } else {
            action.nmi = true;
        }
    }

    fn action(&mut self) -> Action {
        let mut action = Action::default();
        match self.input.below(32) {
            0..22 => {}
            22 | 23 => action.interrupt = Some(INTERRUPT + self.input.below(16) as u8),
            24 | 25 => {
                let at = match self.input.below(3) {
                    0 => pointer(self.input) % RAM_BYTES,
                    _ => self.code_address() % RAM_BYTES + self.input.below(32) as u64,
                };
                let at = at.clamp(CODE << 12, RAM_BYTES - 16);
                let count = 1 + self.input.below(9);
                action.device = Some((at, self.input.bytes(count).to_vec()));
            }
            _ => self.request(&mut action),
        }
        action
    }
}

impl Case {
    /// The case of these bytes. `kinds` says how many processors a pair of machines has.
    pub fn new(data: &[u8], image: &[u8], reset: &[VcpuState], kinds: &[u32]) -> Self {
        let (choices, real) = data.split_at(data.len().min(CHOICES));
        let input = &mut Input::new(choices);
        // In front, where they can be made smaller by themselves.
        let (kind, count) = (input.below(kinds.len()), 1 + input.below(MOST_TURNS));
        // One address space, whose pages may be global: a translation of another one's need not be forgotten.
        let one = input.once_in(2);
        let mut image = image.to_vec();
        for (space, table) in TABLES.into_iter().enumerate() {
            for page in 0..PAGES {
                let at = (table + 8 * page) as usize;
                let entry = entry(space, page, one, input);
                image[at..at + 8].copy_from_slice(&entry.to_le_bytes());
            }
        }
        let mut targets = Vec::with_capacity(SNIPPETS);
        for _ in 0..SNIPPETS {
            // Two of them pages of data too.
            let page = CODE + input.below(COUNT as usize + 2) as u64;
            let offset = match input.below(4) {
                0 => 0x1000 - 8 * (1 + input.below(16) as u64),
                1 => 0x40 * input.below(4) as u64,
                _ => u64::from(input.any::<u16>()) % 0xfa0,
            };
            targets.push(page << 12 | offset);
        }
        for (n, at) in targets.iter().enumerate() {
            let real = real.get(REAL * n..).unwrap_or_default();
            let code = snippet(*at, &real[..real.len().min(REAL)], &targets, input);
            image[*at as usize..][..code.len()].copy_from_slice(&code);
        }
        let mut put = |at: u64, value: u64| {
            image[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
        };
        if one {
            put(ROOTS[1], (ROOTS[0] + 0x1000) | 7);
        }
        let (mask, more) = if one { (0, ROOTS[0]) } else { (!0xfff, 0) };
        put(ROOT_MASK, mask);
        put(ROOT_MASK + 8, more);
        for n in 0..16 {
            put(REGISTERS + 8 * n, register(input));
        }
        for n in 0..WAYS_ON {
            put(ELSEWHERE + 8 * n, input.pick(&targets) + alias(input));
        }
        // SMEP, SMAP, PCIDE, PGE, UMIP, TSD, DE; the first two seldom.
        let mut cr4 = 0x5_0620;
        for bit in [17, 7, 11, 2, 3] {
            cr4 |= u64::from(input.once_in(3)) << bit;
        }
        if input.once_in(8) {
            cr4 |= u64::from(input.any::<u8>() & 3) << 20;
        }
        let mut cr0 = 0x8001_0033;
        if input.once_in(4) {
            cr0 ^= input.pick(&[1 << 16, 1 << 18, 8, 1 << 16 | 1 << 18]);
        }
        let space = input.below(2);
        let mut states = Vec::new();
        for vcpu in 0..kinds[kind] {
            let mut s = start(&reset[vcpu as usize], vcpu.into(), input.once_in(2));
            for gpr in &mut s.gpr {
                *gpr = register(input);
            }
            s.gpr[4] = stack(input);
            s.rip = input.pick(&targets);
            // Arithmetic flags and IF.
            s.rflags |= input.any::<u64>() & 0xad5;
            (s.system.cr0, s.system.cr4) = (cr0, cr4);
            s.system.cr3 = ROOTS[space] | if cr4 >> 17 & 1 == 0 { 0 } else { space as u64 };
            for segment in [4, 5] {
                s.segments[segment].base = pointer(input);
            }
            // MXCSR: rounding, FTZ, DAZ; x87: all masked or not.
            let mxcsr = 0x1f80 | u32::from(input.any::<u16>() & 0xe040);
            s.extended.legacy[24..28].copy_from_slice(&mxcsr.to_le_bytes());
            s.extended.legacy[512] = 7;
            for at in (160..416).step_by(4) {
                let value = (input.any::<i8>() as f32 / 4.0).to_bits();
                s.extended.legacy[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            states.push(s);
        }
        let mut maker = Maker {
            input,
            one,
            targets,
            cr0,
            cr4,
        };
        let turns = (0..count).map(|_| Turn {
            vcpu: maker.input.below(kinds[kind] as usize),
            slice: slice(maker.input),
            action: maker.action(),
        });
        let turns = turns.collect();
        Self {
            kind,
            turns,
            image,
            states,
        }
    }
}
