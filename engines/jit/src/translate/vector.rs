//! SSE and VEX instructions, on the host's registers of the same numbers.
//!
//! The first one of a block sees to it that they are the guest's (`vectors`); what follows it in the block knows. If
//! they may not be, the handlers execute what is left of the block. A handler called in between has them back for the
//! host, so code that it returns to has to ask again: the cold code for itself, the other by the next instruction.

use iced_x86::{Instruction, Mnemonic as M};
use softcpu::insn::{Class, Facts, MemoryUse};

use super::{ByHandler, Done, Translator};
use crate::asm::{Mem, Rm};
use crate::layout::{ADDRESS, GUEST_RCX, NO_AVX, NO_SSE, NO_X87, RCX, SLOT, mxcsr_mask, scratch};
use crate::vectors;

/// Which of the host's vector registers are known to be the guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Given {
    /// None.
    #[default]
    Nothing,
    /// XMM registers and MXCSR.
    Sse,
    /// YMM registers and MXCSR.
    Avx,
}

/// What of the host's registers is known to be the guest's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lent {
    pub vectors: Given,
    pub x87: bool,
}

/// Out of line: registers asked for, then back.
#[derive(Clone, Copy)]
pub(super) struct Request {
    /// Offset of the distance of the jump that leads here.
    pub from: usize,
    /// What is asked for.
    pub given: Lent,
    /// The operation that needs them, by its place in the block.
    pub op: usize,
    /// Where to go on.
    pub back: usize,
}

/// LDMXCSR, STMXCSR.
pub(super) fn is_control(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr
    )
}

impl Translator<'_> {
    pub(super) fn vector(
        &mut self,
        insn: &Instruction,
        bytes: &[u8],
        offsets: &iced_x86::ConstantOffsets,
        facts: &Facts,
    ) -> Done {
        let needed = match facts.class {
            Class::Sse => Given::Sse,
            Class::Vex => Given::Avx,
            Class::X87 | Class::X87NoWait | Class::Mmx => return Err(ByHandler),
        };
        let plain = matches!(
            facts.memory,
            MemoryUse::None | MemoryUse::Read(_) | MemoryUse::Write(_)
        );
        if facts.x87_state || !plain {
            return Err(ByHandler);
        }
        self.ask_for(needed);
        match insn.mnemonic() {
            M::Vzeroupper | M::Vzeroall => self.a.raw(bytes),
            M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpistri
            | M::Vpcmpestri
            | M::Vpcmpestri64
            | M::Vpcmpistri => {
                self.written_again(insn, bytes, offsets, Some(facts))?;
                // The index.
                self.a.changes(RCX);
                self.a.mov(GUEST_RCX, RCX);
            }
            _ => self.written_again(insn, bytes, offsets, Some(facts))?,
        }
        Ok(())
    }

    /// LDMXCSR and STMXCSR. The former if all exceptions are masked then: so the registers may stay the guest's.
    pub(super) fn vector_control(&mut self, insn: &Instruction) -> Done {
        let (load, needed) = match insn.mnemonic() {
            M::Ldmxcsr => (true, Given::Sse),
            M::Vldmxcsr => (true, Given::Avx),
            M::Stmxcsr => (false, Given::Sse),
            _ => (false, Given::Avx),
        };
        self.ask_for(needed);
        self.address(insn)?;
        self.check(4, !load, false);
        let operand = Mem::indexed(SLOT, ADDRESS, 0, 0);
        if !load {
            vectors::store_mxcsr(&mut self.a, operand);
            self.written(operand, 4);
            return Ok(());
        }
        self.a.move_32(RCX, Rm::Mem(operand));
        self.a.mov(ADDRESS, RCX);
        self.a.store(scratch(0), RCX);
        self.a.extract(RCX, RCX, mxcsr_mask(0));
        self.found();
        self.a.not(ADDRESS);
        self.a.extract(RCX, ADDRESS, mxcsr_mask(1));
        self.found();
        vectors::load_mxcsr(&mut self.a, scratch(0));
        Ok(())
    }

    fn ask_for(&mut self, needed: Given) {
        if self.given.vectors >= needed {
            return;
        }
        let word = if needed == Given::Avx { NO_AVX } else { NO_SSE };
        let asked = Lent {
            vectors: needed,
            x87: false,
        };
        self.ask(word, asked);
        self.given.vectors = needed;
    }

    pub(super) fn ask_for_x87(&mut self) {
        if self.given.x87 {
            return;
        }
        self.given = Lent {
            vectors: Given::Nothing,
            x87: true,
        };
        self.ask(NO_X87, self.given);
    }

    fn ask(&mut self, word: Mem, given: Lent) {
        self.a.load(RCX, word);
        let from = self.unless_zero_below();
        self.requests.push(Request {
            from,
            given,
            op: self.op,
            back: self.a.here(),
        });
        // What comes back from there has lost them.
        self.a.forget();
    }

    /// Calls for registers; has the handlers execute the block from operation `op` on if they are not to be had.
    pub(super) fn request(&mut self, given: Lent, op: usize) {
        // It takes the vector registers away.
        if given.x87 {
            self.request_from(self.stubs.x87, op);
        }
        match given.vectors {
            Given::Nothing => {}
            Given::Sse => self.request_from(self.stubs.sse, op),
            Given::Avx => self.request_from(self.stubs.avx, op),
        }
    }

    fn request_from(&mut self, stub: u64, op: usize) {
        self.a.call(stub);
        let there = self.a.if_zero();
        let record = self.rest(op);
        self.call_handler(record);
        self.a.land(there);
    }
}
