//! The guest's memory and how its processors start.
//!
//! ```text
//! page  0 to 0f  tables and handlers, the kernel's, the same in both address spaces
//!      10 to 17  code
//!      18 to 1f  data
//!      20, 21    stacks
//!      22        no RAM
//!      40 to 7f  the same once more, by entries of their own
//!    4000, 8000  all of it once more, by the same entries: pages that share slots of the TLB
//! ```
//!
//! 1000h PML4, PDPT, PD, page table; 5000h GDT, 5800h two TSSs; 6000h IDT; 7000h handlers; 8000h their stacks; 9000h what
//! they count and are asked for; a000h the tables of another address space, where neighbouring pages have changed places.

use vcpu::{DescriptorTable, MpState, SegmentRegister, VcpuState};
use x86defs::segment::{Access, Selector};

use super::handlers;

/// RAM from address zero on.
pub const RAM_BYTES: u64 = 0x2_2000;
/// Page tables of the two address spaces.
pub const TABLES: [u64; 2] = [0x4000, 0xd000];
/// Their roots.
pub const ROOTS: [u64; 2] = [0x1000, 0xa000];
/// Entries of a page table that are used.
pub const PAGES: u64 = 0x80;
/// The first page of code, and how many there are.
pub const CODE: u64 = 0x10;
/// The first page of data.
pub const DATA: u64 = 0x18;
/// Pages of code, and of data.
pub const COUNT: u64 = 8;
/// The first page of stacks.
pub const STACKS: u64 = 0x20;
/// Where that is.
pub const DEVICE_AT: u64 = 1 << 30;
/// A page that is no RAM.
pub const DEVICE: u64 = 0x22;
/// Where the second set of entries for the pages begins.
pub const ALIAS: u64 = 0x40;
/// What may be added to a linear address for another one of the same byte.
pub const ALIASES: [u64; 5] = [
    0,
    ALIAS << 12,
    SAME_SLOTS,
    2 * SAME_SLOTS,
    SAME_SLOTS + (ALIAS << 12),
];
/// What lies so far apart shares the TLB's slots.
const SAME_SLOTS: u64 = (softcpu::mem::SLOTS as u64) << 12;
/// What is kept of CR3 for the address of the root, then what is added.
pub const ROOT_MASK: u64 = 0x9028;
/// What handlers count.
pub const COUNTS: u64 = 0x9100;
/// What is asked of [`handlers::REQUEST`].
pub const ASKED: u64 = 0x9200;
/// Registers that a request may load.
pub const REGISTERS: u64 = 0x9300;
/// Where handlers go on if there is nothing at RIP, one after the other.
pub const ELSEWHERE: u64 = 0x9400;
/// How many those are.
pub const WAYS_ON: u64 = 32;
/// An interrupt that is only counted, the first of many.
pub const INTERRUPT: u8 = 0x20;
/// The interrupt that does what the request says.
pub const REQUESTS: u8 = 0x30;

const GDT: u64 = 0x5000;
const TSS: u64 = 0x5800;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x7000;
const SYSTEM_CALL: u64 = 0x7f00;

/// The handlers' stacks.
pub const FRAMES: std::ops::Range<u64> = 0x8000..0x9000;

/// Whether the word at this address can be RFLAGS in a frame, which lies below a multiple of 16.
pub fn may_be_flags(at: u64) -> bool {
    at & 8 != 0
}

/// Where handlers begin.
pub fn handler_entries(image: &[u8]) -> Vec<u64> {
    let gates = image[IDT as usize..][..0x1000].chunks(16);
    let mut entries: Vec<u64> = gates
        .map(|gate| u64::from(u16::from_le_bytes([gate[0], gate[1]])))
        .collect();
    entries.sort_unstable();
    entries.dedup();
    entries
}

/// Whether `ram` has tables that nobody has made so: the guest has stored there, and when it sees what it has stored is
/// not said (SDM Vol 3 4.10.2.3).
pub fn tables_are_broken(image: &[u8], ram: &[u8]) -> bool {
    let word = |of: &[u8], at: u64| {
        let bytes = of[at as usize..][..8].try_into();
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    // But for A and D.
    const KEPT: u64 = !0x60;
    let roots = ROOTS
        .iter()
        .flat_map(|root| (*root..root + 0x3000).step_by(8));
    let mut upper = roots.filter(|at| (word(image, *at) ^ word(ram, *at)) & KEPT != 0);
    let wrong = |(space, page): (usize, u64)| {
        const ADDRESS: u64 = 0xf_ffff_ffff_f000;
        let entry = word(ram, TABLES[space] + 8 * page);
        let at = target(space, page) << 12;
        entry & !(ADDRESS | 0x1ff | 1 << 63) != 0
            || ![at, at ^ 0x1000, DEVICE_AT, 0].contains(&(entry & ADDRESS))
    };
    let mut pages = (0..2).flat_map(|space| (0..PAGES).map(move |page| (space, page)));
    upper.next().is_some() || pages.any(wrong)
}

fn put(image: &mut [u8], at: u64, bytes: &[u8]) {
    image[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn quad(image: &mut [u8], at: u64, value: u64) {
    put(image, at, &value.to_le_bytes());
}

/// Which page of RAM, or of what is no RAM, a linear page is in an address space.
pub fn target(space: usize, page: u64) -> u64 {
    let one = if page >= ALIAS { page - ALIAS } else { page };
    match one {
        0..CODE if page < ALIAS => one,
        CODE..STACKS => one ^ space as u64,
        STACKS | 0x21 => one,
        _ => 0x100 + one,
    }
}

/// RAM at the start of a case, but for the page tables.
pub fn image() -> Vec<u8> {
    let mut image = vec![0; RAM_BYTES as usize];
    let i = &mut image[..];
    for (root, table) in ROOTS.into_iter().zip(TABLES) {
        quad(i, root, (root + 0x1000) | 7);
        quad(i, root + 0x1000, (root + 0x2000) | 7);
        for at in [0, SAME_SLOTS, 2 * SAME_SLOTS] {
            quad(i, root + 0x2000 + 8 * (at >> 21), table | 7);
        }
    }
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    for (at, value) in (GDT..).step_by(8).zip(descriptors) {
        quad(i, at, value);
    }
    for vcpu in 0..2 {
        let tss = TSS + 0x80 * vcpu;
        quad(i, GDT + 0x30 + 16 * vcpu, tss << 16 | 0x8b00_0000_0067);
        // RSP0, then IST1 to IST4.
        for (n, at) in [4, 36, 44, 52, 60].into_iter().enumerate() {
            let stack = 0x8000 + 0x800 * vcpu + 0x200 * (n as u64).max(1);
            quad(i, tss + at, stack);
        }
        put(i, tss + 102, &[0x68, 0]);
    }
    handlers(i);
    for at in (DATA << 12..STACKS << 12).step_by(8) {
        // Pointers to data, to code, and small numbers.
        let mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let value = match mixed & 7 {
            0..4 => (DATA << 12) + (mixed >> 3 & 0x7ff8),
            4 => (CODE << 12) + (mixed >> 3 & 0x7fff),
            5 => mixed >> 3 & 0xff,
            _ => at.wrapping_mul(0xbf58_476d_1ce4_e5b9),
        };
        quad(i, at, value);
    }
    image
}

fn handlers(i: &mut [u8]) {
    let mut next = HANDLERS;
    let mut place = |code: &[&[u8]]| {
        let at = next;
        for bytes in code {
            put(i, next, bytes);
            next += bytes.len() as u64;
        }
        next = next.next_multiple_of(16);
        at
    };
    let all = [
        handlers::PASS,
        handlers::DEBUG,
        handlers::REQUEST,
        handlers::NO_X87,
        handlers::DOUBLE_FAULT,
        handlers::PASS_ERROR,
        handlers::PAGE_FAULT,
        handlers::X87_ERROR,
        handlers::INTERRUPT,
        handlers::RING_0,
        handlers::RING_3,
        handlers::COMPATIBILITY,
    ]
    .map(&mut place);
    assert!(next < SYSTEM_CALL, "the handlers fit");
    let [
        pass,
        debug,
        request,
        no_x87,
        double,
        pass_error,
        page,
        x87,
        interrupt,
        ring0,
        ring3,
        compatibility,
    ] = all;
    for vector in 0..256u64 {
        // The handler and its stack: 0 is the one that is in use, if there is no change of privilege.
        let (at, stack) = match vector {
            1 => (debug, 4),
            2 => (request, 2),
            7 => (no_x87, 1),
            8 => (double, 3),
            10..=13 | 17 | 21 => (pass_error, 1),
            14 => (page, 1),
            16 => (x87, 1),
            0x30 => (request, 2),
            0x81 => (ring0, 1),
            0x82 => (ring3, 1),
            0x83 => (compatibility, 1),
            0x20..=0x28 => (interrupt, 0),
            0x29..=0xff => (interrupt, 1),
            _ => (pass, 1),
        };
        let dpl = if matches!(vector, 3 | 4 | 0x20..) {
            0x60
        } else {
            0
        };
        let gate = at | 8 << 16 | stack << 32 | (0x8e | dpl) << 40;
        quad(i, IDT + 16 * vector, gate);
    }
    for (at, bytes) in (SYSTEM_CALL..).step_by(8).zip(handlers::SYSTEM_CALL) {
        // Each with its NOPs.
        put(i, at, &[0x90; 8]);
        put(i, at, bytes);
    }
}

fn segment(selector: u16, access: u32) -> SegmentRegister {
    SegmentRegister {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access: Access(access),
    }
}

/// A processor in 64-bit mode, with or without privilege; its registers are zero.
pub fn start(reset: &VcpuState, vcpu: u64, user: bool) -> VcpuState {
    let mut s = reset.clone();
    s.gpr = [0; 16];
    s.rflags = 2;
    s.mp_state = MpState::Running;
    let (code, data) = selectors(user);
    let rights = if user { 0x60 } else { 0 };
    s.segments = [segment(data as u16, 0xc093 | rights); 6];
    s.segments[1] = segment(code as u16, 0xa09b | rights);
    s.tr = segment(0x30 + 16 * vcpu as u16, 0x8b);
    s.tr.base = TSS + 0x80 * vcpu;
    s.tr.limit = 0x67;
    s.ldtr = segment(0, 0x1_0000);
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x4f,
    };
    s.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    // PG, WP, NE, ET, MP, PE; OSXSAVE, FSGSBASE, OSXMMEXCPT, OSFXSR, PAE; NXE, LMA, LME, SCE.
    s.system.cr0 = 0x8001_0033;
    s.system.cr3 = ROOTS[0];
    s.system.cr4 = 0x5_0620;
    s.system.efer = 0xd01;
    s.system.xcr0 = 7;
    const STAR: u32 = 0xc000_0081;
    for (msr, value) in &mut s.system.msrs {
        match *msr {
            STAR => *value = 0x1b << 48 | 8 << 32,
            0xc000_0082 => *value = SYSTEM_CALL,
            0xc000_0084 => *value = 0x4_7700,
            _ => {}
        }
    }
    s
}

/// Selectors of code and of the stack.
pub fn selectors(user: bool) -> (u64, u64) {
    if user { (0x2b, 0x23) } else { (8, 0x10) }
}
