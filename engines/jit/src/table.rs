//! Translated blocks by where their code lies in RAM: how branches to other pages, and indirect ones, find them.
//!
//! The linear address is looked up in the TLB like a fetch, so what the table holds is good in all address spaces and
//! survives their changes. What was found is kept among the view's jumps until the TLB forgets translations.

use std::mem::offset_of;

use crate::asm::{Asm, Legacy, Mem, Rm};
use crate::layout::{
    ADDRESS, FETCH, JUMP_FROM, JUMP_GROUP, JUMP_GROUP_MASK, JUMP_MASK, JUMP_TO, JUMP_WORDS, PLACE,
    RCX, SLOT, TABLE, mask, scratch,
};

/// Slots there can be; bits of the address choose.
const SLOTS: usize = 1 << 16;
/// Slots of all vCPUs of a VM.
const ALL_SLOTS: usize = 1 << 17;
/// Slots of a vCPU, however many there are.
const FEWEST_SLOTS: usize = 1 << 11;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Slot {
    /// The address of the block's first byte on the host, negated; 0 if the slot is empty.
    key: u64,
    /// Where the code is.
    code: u64,
}

/// What the slot of an address is chosen by. Most that is looked for are functions, which begin at multiples of 16: the
/// low bits are zero for them and not for others, so the higher ones are added.
const fn spread(address: u64) -> u64 {
    address.wrapping_add(address.rotate_right(SPREAD))
}

const SPREAD: u32 = 4;

/// The table. Generated code looks into it ([`emit_search`]).
#[repr(C)]
pub struct Table {
    /// The bits of [`spread`] that choose the pair.
    mask: u64,
    /// An address has two slots, the one used last first.
    pairs: [[Slot; 2]; SLOTS / 2],
}

const fn in_slot(offset: usize) -> Mem {
    Mem::at(SLOT, (offset_of!(Table, pairs) + offset) as i32)
}

impl Table {
    /// An empty table for one of `vcpus` vCPUs: it uses as many of its slots as are its share.
    pub fn new(vcpus: usize) -> Box<Self> {
        let share = (ALL_SLOTS / vcpus.max(1)).clamp(FEWEST_SLOTS, SLOTS);
        let pairs = (1u64 << share.ilog2()) / 2;
        let table = Box::<Self>::new_zeroed();
        // SAFETY: all bytes zero are empty slots and a mask.
        let mut table = unsafe { table.assume_init() };
        table.mask = pairs - 1;
        table
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pairs[..=self.mask as usize].fill([Slot::default(); 2]);
    }

    /// Remembers the code of a block that lies at `address` on the host.
    pub fn insert(&mut self, address: u64, code: u64) {
        let pair = &mut self.pairs[(spread(address) & self.mask) as usize];
        let key = address.wrapping_neg();
        if pair[0].key != key {
            pair[1] = pair[0];
        }
        pair[0] = Slot { key, code };
    }
}

/// Looks for the block at the linear address in [`ADDRESS`]: among the view's jumps, then by the stub of
/// [`emit_search`]. If it is there, [`SLOT`] is the address of its code and [`ADDRESS`] its linear page. `unless_zero`
/// writes what is done if RCX is not zero: the block is not at hand then.
pub fn emit_look_up(a: &mut Asm, search: u64, unless_zero: impl FnOnce(&mut Asm)) {
    choose_jump(a);
    a.load(RCX, JUMP_FROM);
    a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
    let known = a.if_zero();
    a.call(search);
    unless_zero(a);
    a.land(known);
    a.load(SLOT, JUMP_TO);
    // The page's number, times its size.
    a.extract(ADDRESS, ADDRESS, mask(1));
    a.rorx(ADDRESS, ADDRESS, 64 - 12);
}

/// Has [`SLOT`] be that of the address in [`ADDRESS`] among the view's jumps.
fn choose_jump(a: &mut Asm) {
    const { assert!(JUMP_WORDS == 2) };
    a.extract(SLOT, ADDRESS, JUMP_MASK);
    a.lea(SLOT, Mem::indexed(SLOT, SLOT, 0, 0));
}

/// A function that makes the block at the linear address in [`ADDRESS`] one of the view's jumps. RCX is zero then, and
/// [`SLOT`] what [`choose_jump`] makes it; else it is not at hand, and [`ADDRESS`] something else.
pub fn emit_search(a: &mut Asm) {
    const RET: u8 = 0xc3;
    let unless_zero = |a: &mut Asm| {
        let zero = a.if_zero();
        a.raw(&[RET]);
        a.land(zero);
    };
    a.store(scratch(2), ADDRESS);
    a.extract(SLOT, ADDRESS, mask(0));
    a.load(RCX, FETCH);
    a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
    a.extract(RCX, RCX, mask(1));
    unless_zero(a);
    a.load(RCX, PLACE);
    a.lea(ADDRESS, Mem::indexed(ADDRESS, RCX, 0, 0));
    a.load(SLOT, TABLE);
    a.rorx(RCX, ADDRESS, SPREAD as u8);
    a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
    a.extract(RCX, RCX, Mem::at(SLOT, offset_of!(Table, mask) as i32));
    for _ in 0..size_of::<[Slot; 2]>() / 8 {
        a.lea(SLOT, Mem::indexed(SLOT, RCX, 3, 0));
    }
    a.load(RCX, in_slot(offset_of!(Slot, key)));
    a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
    let first = a.if_zero();
    a.lea(SLOT, Mem::at(SLOT, size_of::<Slot>() as i32));
    a.load(RCX, in_slot(offset_of!(Slot, key)));
    a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
    unless_zero(a);
    a.land(first);
    a.load(RCX, in_slot(offset_of!(Slot, code)));
    a.load(ADDRESS, scratch(2));
    choose_jump(a);
    a.store(JUMP_TO, RCX);
    a.extract(RCX, ADDRESS, JUMP_GROUP_MASK);
    let byte = Legacy {
        opcode: &[0xc6],
        ..Legacy::default()
    };
    a.legacy(&byte, 0, Rm::Mem(JUMP_GROUP));
    a.raw(&[1]);
    a.mov(RCX, ADDRESS);
    a.not(RCX);
    a.lea(RCX, Mem::at(RCX, 1));
    a.store(JUMP_FROM, RCX);
    a.set(RCX, 0);
    a.raw(&[RET]);
}
