//! Where things are while translated code runs.
//!
//! | host register | holds |
//! | --- | --- |
//! | RAX, RDX, RBX, RBP, RSI, RDI, R8, R12 | the guest's register of the same name |
//! | R9 | the guest's RCX |
//! | R14 | the guest's RSP |
//! | R10 | the address of the TLB's view in force |
//! | RCX, R11, R15 | values on their way; RCX because JRCXZ tests without touching the flags |
//! | R13 | the budget: a chain of additions in memory would take longer than the blocks it is for |
//! | RSP | the host's stack |
//! | OF, SF, ZF, AF, PF, CF | the guest's |
//! | XMM0 to XMM15, MXCSR | the guest's while [`Native::no_sse`] is zero |
//! | YMM0 to YMM15 | the guest's while [`Native::no_avx`] is zero, which needs the other |
//! | the x87's state but FIP, FDP and FOP | the guest's while [`Native::no_x87`] is zero |
//! | base of GS | the address of [`Cpu`] |
//!
//! The guest's R9, R10, R11 and R13 to R15 are in [`Cpu::regs`]. In the joined copies of a region some of these have changed places
//! with others (`translate::renaming`).

use std::mem::offset_of;

use softcpu::cpu::{Cpu, Native};
use softcpu::insn::KnownLeaves;
use softcpu::mem::{Jump, Sites, View};

use crate::asm::{Mem, Reg};

/// Scratch, and what JRCXZ tests.
pub const RCX: Reg = Reg(1);
/// The host's stack.
pub const STACK: Reg = Reg(4);
/// Address of the TLB's view.
pub const VIEW: Reg = Reg(10);
/// Slot of the TLB, then what is to be added to an address.
pub const SLOT: Reg = Reg(11);
/// The guest's stack pointer.
pub const RSP: Reg = Reg(14);
/// A linear address.
pub const ADDRESS: Reg = Reg(15);
/// [`Cpu::budget`].
pub const BUDGET: Reg = Reg(13);
/// The guest's RCX.
pub const GUEST_RCX: Reg = Reg(9);

/// Guest registers by encoding and the host registers they are in.
pub const MAPPED: [(u8, Reg); 10] = [
    (0, Reg(0)),
    (1, GUEST_RCX),
    (2, Reg(2)),
    (3, Reg(3)),
    (4, RSP),
    (5, Reg(5)),
    (6, Reg(6)),
    (7, Reg(7)),
    (8, Reg(8)),
    (12, Reg(12)),
];

/// The host register a guest register is in, if it is in one; not in joined copies of a region.
pub fn host(guest: u8) -> Option<Reg> {
    match guest {
        0 | 2 | 3 | 5..=8 | 12 => Some(Reg(guest)),
        1 => Some(GUEST_RCX),
        4 => Some(RSP),
        _ => None,
    }
}

/// A place in [`Cpu`].
pub const fn field(offset: usize) -> Mem {
    Mem::gs(offset as i32)
}

/// A register in [`Cpu::regs`], by index.
pub const fn register(index: usize) -> Mem {
    field(offset_of!(Cpu, regs) + 8 * index)
}

/// A base of [`Cpu::ea_base`].
pub const fn segment_base(segment: usize) -> Mem {
    field(offset_of!(Cpu, ea_base) + 8 * segment)
}

const fn native(offset: usize) -> Mem {
    field(offset_of!(Cpu, native) + offset)
}

/// [`Cpu::budget`], while no translated code runs.
pub const BUDGET_PLACE: Mem = field(offset_of!(Cpu, budget));
/// [`Cpu::cpl`], a byte.
pub const CPL: Mem = field(offset_of!(Cpu, cpl));
/// A byte, zero outside VMX non-root operation.
pub const IN_GUEST: Mem = field(offset_of!(Cpu, vmx.in_guest));
/// A byte, zero if no interrupt waits for IF.
pub const INTERRUPT_WAITING: Mem = field(offset_of!(Cpu, interrupt_waiting));
/// A byte, zero if no hypervisor waits for IF.
pub const WATCHES_IF: Mem = field(offset_of!(Cpu, vmx.watches_if));
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: Mem = field(offset_of!(Cpu, msr.kernel_gs_base));
/// A byte of [`Cpu::seg`].
pub const fn segments(offset: usize) -> Mem {
    field(offset_of!(Cpu, seg) + offset)
}
const fn known_leaves(offset: usize) -> usize {
    offset_of!(Cpu, known_leaves) + offset
}
/// [`KnownLeaves::mask`].
pub const LEAF_MASK: Mem = field(known_leaves(offset_of!(KnownLeaves, mask)));
/// The slot's word of [`KnownLeaves::keys`].
pub const LEAF_KEY: Mem = Mem {
    index: Some((SLOT, 3)),
    ..field(known_leaves(offset_of!(KnownLeaves, keys)))
};
/// A register of [`KnownLeaves::answers`], with twice the slot in [`SLOT`].
pub const fn leaf_answer(register: usize) -> Mem {
    Mem {
        index: Some((SLOT, 3)),
        ..field(known_leaves(offset_of!(KnownLeaves, answers)) + 4 * register)
    }
}
/// [`Cpu::uncounted`].
pub const UNCOUNTED: Mem = field(offset_of!(Cpu, uncounted));
/// [`Native::page`].
pub const PAGE: Mem = native(offset_of!(Native, page));
/// [`Native::poll`].
pub const POLL: Mem = native(offset_of!(Native, poll));
/// [`Native::view`].
pub const VIEW_ADDRESS: Mem = native(offset_of!(Native, view));
/// [`Native::flags`].
pub const FLAGS: Mem = native(offset_of!(Native, flags));
/// [`Cpu::rflags_rest`].
pub const REST: Mem = field(offset_of!(Cpu, rflags_rest));
/// [`Native::table`].
pub const TABLE: Mem = native(offset_of!(Native, table));
/// [`Native::code_map`].
pub const CODE_MAP: Mem = native(offset_of!(Native, code_map));
/// [`Native::this`].
pub const THIS: Mem = native(offset_of!(Native, this));
/// [`Native::entry`].
pub const ENTRY: Mem = native(offset_of!(Native, entry));
/// [`Native::left`].
pub const LEFT: Mem = native(offset_of!(Native, left));
/// A word of [`Native::scratch`].
pub const fn scratch(index: usize) -> Mem {
    native(offset_of!(Native, scratch) + 8 * index)
}
/// How many words of [`Native::windows`] there are.
pub const WINDOWS: usize = 6;
/// A word of [`Native::windows`].
pub const fn window_word(index: usize) -> Mem {
    native(offset_of!(Native, windows) + 8 * index)
}
/// How far [`Native::crossing`] is behind the beginning of the processor.
pub const CROSSING: i32 = (offset_of!(Cpu, native) + offset_of!(Native, crossing)) as i32;
/// The word at an offset in bytes there.
pub const fn crossing(at: i32) -> Mem {
    Mem::gs(CROSSING + at)
}
/// [`Native::no_sse`].
pub const NO_SSE: Mem = native(offset_of!(Native, no_sse));
/// [`Native::no_avx`].
pub const NO_AVX: Mem = native(offset_of!(Native, no_avx));
/// [`Native::no_x87`].
pub const NO_X87: Mem = native(offset_of!(Native, no_x87));
/// A word of [`Native::x87_last`].
pub const fn x87_last(index: usize) -> Mem {
    native(offset_of!(Native, x87_last) + 8 * index)
}
/// A byte of the x87's image, with the address of the processor in [`ADDRESS`].
pub const fn x87_image(offset: usize) -> Mem {
    Mem::at(ADDRESS, (offset_of!(Cpu, ext.fx) + offset) as i32)
}
/// A word of [`Native::barriers`].
pub const fn barrier(index: usize) -> Mem {
    native(offset_of!(Native, barriers) + 8 * index)
}
/// A mask of [`Native::mxcsr_masks`].
pub const fn mxcsr_mask(index: usize) -> Mem {
    native(offset_of!(Native, mxcsr_masks) + 8 * index)
}
/// Where a YMM register is kept, with the address of the processor in [`ADDRESS`].
pub const fn ymm(number: u8) -> Mem {
    Mem::at(
        ADDRESS,
        (offset_of!(Cpu, ext.ymm) + 32 * number as usize) as i32,
    )
}
/// Where its upper half is.
pub const fn ymm_upper(number: u8) -> Mem {
    Mem::at(
        ADDRESS,
        (offset_of!(Cpu, ext.ymm) + 32 * number as usize + 16) as i32,
    )
}
/// Where MXCSR is kept.
pub const MXCSR: Mem = field(offset_of!(Cpu, ext.mxcsr));
/// A mask of [`View::masks`].
pub const fn mask(index: usize) -> Mem {
    Mem::at(VIEW, (offset_of!(View, masks) + 8 * index) as i32)
}

/// The mask that is clear in offsets in a page that are multiples of `1 << log2`.
pub const fn alignment(log2: u8) -> Mem {
    Mem::at(
        VIEW,
        (offset_of!(View, alignments) + 8 * (log2 as usize - 1)) as i32,
    )
}

const fn in_slot(offset: usize) -> Mem {
    Mem::indexed(VIEW, SLOT, 3, offset as i32)
}

/// The slot's page for reads, negated.
pub const READ: Mem = in_slot(offset_of!(View, read));
/// The slot's page for writes, negated.
pub const WRITE: Mem = in_slot(offset_of!(View, write));
/// The slot's page for fetches, negated.
pub const FETCH: Mem = in_slot(offset_of!(View, fetch));
const fn in_view(offset: usize) -> Mem {
    Mem::at(VIEW, offset as i32)
}

/// [`View::jump_mask`].
pub const JUMP_MASK: Mem = in_view(offset_of!(View, jump_mask));
/// [`View::jump_group_mask`].
pub const JUMP_GROUP_MASK: Mem = in_view(offset_of!(View, jump_group_mask));
/// A byte of [`View::jump_groups`], by the number in [`RCX`].
pub const JUMP_GROUP: Mem = Mem::indexed(VIEW, RCX, 0, offset_of!(View, jump_groups) as i32);
/// What [`SLOT`] is multiplied by for [`JUMP_FROM`] and [`JUMP_TO`], beside the scale of an address.
pub const JUMP_WORDS: usize = size_of::<Jump>() / 8;
/// A jump's [`Jump::from`].
pub const JUMP_FROM: Mem = in_slot(offset_of!(View, jumps) + offset_of!(Jump, from));
/// A jump's [`Jump::to`].
pub const JUMP_TO: Mem = in_slot(offset_of!(View, jumps) + offset_of!(Jump, to));
/// What leads from the linear address to the byte.
pub const PLACE: Mem = in_slot(offset_of!(View, place));

const fn in_sites(offset: usize) -> Mem {
    in_view(offset_of!(View, sites) + offset)
}

/// [`Sites::any`].
pub const ANY_SITES: Mem = in_sites(offset_of!(Sites, any));
/// [`Sites::flushes`].
pub const FLUSHES: Mem = in_sites(offset_of!(Sites, flushes));
/// The slot's [`Sites::copied`].
pub const COPIED: Mem = Mem::indexed(
    VIEW,
    SLOT,
    0,
    (offset_of!(View, sites) + offset_of!(Sites, copied)) as i32,
);
/// A site's [`Sites::page`].
pub const fn site_page(site: usize) -> Mem {
    in_sites(offset_of!(Sites, page) + 8 * site)
}
/// A site's [`Sites::place`].
pub const fn site_place(site: usize) -> Mem {
    in_sites(offset_of!(Sites, place) + 8 * site)
}
