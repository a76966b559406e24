//! Reads of bytes that lie in two pages.
//!
//! What a check before memory turns away most often is not a page that the TLB does not have, but the end of a page in
//! the middle of an access: copies from anywhere meet one in every page. If the TLB has both pages, the bytes on both
//! sides of the end are copied to where they lie beside each other, and the access goes on there. The interpreter asks
//! the TLB for both as well ([`softcpu::mem`]), so no walk is left out that it makes.
//!
//! Only what is read and not written can be read elsewhere.

use crate::asm::{Asm, Mem, Reg};
use crate::layout::{ADDRESS, CROSSING, PLACE, RCX, READ, SLOT, THIS, crossing, mask, scratch};

/// Sizes of accesses there is a function for, as powers of two.
const LOG2: std::ops::RangeInclusive<u32> = 1..=5;

/// Functions for reads of two pages, by the logarithm of their size.
#[derive(Clone, Copy, Debug)]
pub struct Crossings([u64; 5]);

impl Crossings {
    /// The function for reads of `size` bytes at [`ADDRESS`]. RCX is zero then if the bytes are there, and [`SLOT`]
    /// leads from the address to them; else nothing is known of both. It is for reads that a check has turned away
    /// which did not ask for alignment.
    pub fn function(&self, size: u8) -> Option<u64> {
        let log2 = size.trailing_zeros();
        let known = size.is_power_of_two() && LOG2.contains(&log2);
        known.then(|| self.0[(log2 - LOG2.start()) as usize])
    }

    /// Writes them.
    pub fn emit(a: &mut Asm) -> Self {
        Self(std::array::from_fn(|n| {
            let at = a.origin + a.here() as u64;
            emit_one(a, 1 << (LOG2.start() + n as u32));
            at
        }))
    }
}

fn emit_one(a: &mut Asm, size: i32) {
    const RET: u8 = 0xc3;
    const RDI: Reg = Reg(7);
    // On each side of the end, in whole words.
    let side = size.max(8);
    let ask = |a: &mut Asm| {
        a.extract(SLOT, ADDRESS, mask(0));
        a.load(RCX, READ);
        a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
        a.extract(RCX, RCX, mask(1));
    };
    a.store(scratch(2), ADDRESS);
    ask(a);
    let first = a.if_zero();
    a.raw(&[RET]);
    a.land(first);
    a.store(scratch(3), RDI);
    a.load(RDI, PLACE);
    // The last byte. Since the access was turned away and the first page can be read, it lies in the next one.
    a.lea(ADDRESS, Mem::at(ADDRESS, size - 1));
    ask(a);
    let second = a.if_zero();
    a.load(RDI, scratch(3));
    a.raw(&[RET]);
    a.land(second);
    a.load(RCX, PLACE);
    // Where the second page begins.
    a.load(SLOT, mask(1));
    a.keep(ADDRESS, SLOT);
    a.lea(RDI, Mem::indexed(RDI, ADDRESS, 0, -side));
    a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
    for (from, to) in [(RDI, 0), (RCX, side)] {
        for at in (0..side).step_by(8) {
            a.load(SLOT, Mem::at(from, at));
            a.store(crossing(to + at), SLOT);
        }
    }
    // The page's end lies `side` bytes behind the first of them.
    a.load(SLOT, THIS);
    a.not(ADDRESS);
    a.lea(SLOT, Mem::indexed(SLOT, ADDRESS, 0, CROSSING + side + 1));
    a.load(ADDRESS, scratch(2));
    a.load(RDI, scratch(3));
    a.set(RCX, 0);
    a.raw(&[RET]);
}
