//! Blocks of one instruction whose last bytes are in another page.

use super::{Leaving, Translator};
use crate::asm::Mem;
use crate::layout::{ADDRESS, FETCH, PAGE, PLACE, RCX, SLOT, mask};

/// How many bytes a comparison takes.
const ROOM: usize = 60;

impl Translator<'_> {
    /// Leaves before the block unless the page of RAM it was decoded from is the one that follows in linear addresses, and
    /// may be executed.
    pub(super) fn follows(&mut self) {
        let Some(second) = self.source.second else {
            return;
        };
        let start = self.in_page(0);
        let on_host = self.on_host(second);
        self.a.keep_in_reach(ROOM);
        let a = &mut self.a;
        a.load(ADDRESS, PAGE);
        a.lea(ADDRESS, Mem::at(ADDRESS, 4096));
        a.extract(SLOT, ADDRESS, mask(0));
        a.load(RCX, FETCH);
        a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
        let other = a.jump_unless_zero(0);
        a.load(RCX, PLACE);
        a.lea(ADDRESS, Mem::indexed(ADDRESS, RCX, 0, 0));
        a.set_wide(RCX, on_host.wrapping_neg());
        a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
        let elsewhere = a.jump_unless_zero(0);
        for leave in [other, elsewhere] {
            self.ways.push((leave, start, Leaving::Before));
        }
    }
}
