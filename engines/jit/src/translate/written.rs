//! What follows an instruction that has written memory.
//!
//! A right to write in the TLB says that this vCPU has no code of the page. Others may have some: where there are
//! others, the map all share is asked behind each store, as `Cpu::stored` does for the interpreter.

use super::Translator;
use super::vector::Lent;
use crate::asm::Mem;
use crate::layout::{ADDRESS, CODE_MAP, RCX, SLOT, mask};

/// Out of line: tells of a store, then back.
pub(super) struct Told {
    /// Offset of the distance of the jump that leads here.
    from: usize,
    /// Bytes stored.
    len: u32,
    /// Where to go on.
    back: usize,
    /// What is relied upon there.
    given: Lent,
    /// The operation there, by its place in the block.
    next: usize,
}

impl Told {
    /// Offset of the distance of the jump that leads there.
    pub fn from(&self) -> usize {
        self.from
    }
}

impl Translator<'_> {
    /// The instruction has written `len` bytes of one page at `at`, a place the TLB has led to. Unless it ends the
    /// block, nothing of it may be left to do. Changes [`RCX`], [`SLOT`] and [`ADDRESS`].
    pub(super) fn written(&mut self, at: Mem, len: u32) {
        if !self.cpu.shared {
            return;
        }
        let a = &mut self.a;
        if self.cpu.stores_fence {
            // MFENCE.
            a.raw(&[0x0f, 0xae, 0xf0]);
        }
        if at != Mem::at(ADDRESS, 0) {
            a.lea(ADDRESS, at);
        }
        // The page's word, by the number of the page on the host.
        a.extract(RCX, ADDRESS, mask(1));
        a.load(SLOT, CODE_MAP);
        a.load(RCX, Mem::indexed(SLOT, RCX, 3, 0));
        let from = a.jump_unless_zero(0);
        let last = self.op + 1 == self.source.ops.len();
        self.told.push(Told {
            from,
            len,
            back: self.a.here(),
            given: if last { Lent::default() } else { self.given },
            next: self.op + 1,
        });
    }

    /// The code that tells.
    pub(super) fn tell(&mut self) {
        for told in std::mem::take(&mut self.told) {
            let here = self.a.here();
            self.a.aim(told.from, here);
            if let Some(exact) = self.exact() {
                exact.told.entry(told.next - 1).or_default().push(here);
            }
            self.a.set(SLOT, told.len);
            self.a.call(self.stubs.stored);
            self.request(told.given, told.next);
            let to = self.a.origin + told.back as u64;
            self.a.jump(to);
        }
    }
}
