//! x87 instructions, on the host's x87.
//!
//! The host's is the guest's then as the vector registers are (`vector`): the status word, the stack, and the control
//! word with all exceptions masked. What the host would record of addresses is its own, so the guest's is recorded
//! beside it.

use iced_x86::{Instruction, Mnemonic as M, Register};
use softcpu::code::Op;
use softcpu::insn::{Facts, MemoryUse};

use super::{ByHandler, Done, Translator};
use crate::asm::{Legacy, Mem, Rm};
use crate::layout::{ADDRESS, PAGE, RCX, SLOT, x87_last};

/// Masks of all exceptions in the control word.
const MASKS: u32 = 0x3f;

impl Translator<'_> {
    pub(super) fn x87(&mut self, op: &Op, insn: &Instruction, bytes: &[u8], facts: &Facts) -> Done {
        // Of what moves control state, what programs use often; it is not recorded (SDM Vol 1 8.1.8).
        let recorded = match insn.mnemonic() {
            M::Fnstcw | M::Fldcw | M::Fnstsw => false,
            M::Fninit
            | M::Fnclex
            | M::Fldenv
            | M::Fnstenv
            | M::Frstor
            | M::Fnsave
            | M::Fneni
            | M::Fndisi
            | M::Fnsetpm
            | M::Wait => return Err(ByHandler),
            _ => true,
        };
        let operand = match facts.memory {
            MemoryUse::None => None,
            MemoryUse::Read(size) => Some((size, false)),
            MemoryUse::Write(size) => Some((size, true)),
            _ => return Err(ByHandler),
        };
        self.ask_for_x87();
        let Some((size, write)) = operand else {
            if recorded {
                self.record_x87(op);
            }
            // Without prefixes, which mean nothing.
            let instruction = bytes.last_chunk::<2>().ok_or(ByHandler)?;
            self.a.raw(instruction);
            return Ok(());
        };
        if matches!(insn.memory_segment(), Register::FS | Register::GS) {
            // What is recorded is the address in the segment.
            return Err(ByHandler);
        }
        self.address(insn)?;
        self.check(size, write, false);
        if recorded {
            self.a.store(x87_last(1), ADDRESS);
            self.record_x87(op);
        }
        let mut memory = Mem::indexed(SLOT, ADDRESS, 0, 0);
        if insn.mnemonic() == M::Fldcw {
            self.a.lea(ADDRESS, memory);
            memory = Mem::at(ADDRESS, 0);
            self.all_masked(memory);
        }
        // The decoder has put the opcode and ModRM there.
        let opcode = [0xd8 | (op.extra >> 8 & 7) as u8];
        let i = Legacy {
            opcode: &opcode,
            ..Legacy::default()
        };
        self.a
            .legacy(&i, (op.extra >> 3 & 7) as u8, Rm::Mem(memory));
        if write {
            self.written(memory, u32::from(size));
        }
        Ok(())
    }

    /// FIP and FOP (SDM Vol 1 8.1.8, 8.1.9).
    fn record_x87(&mut self, op: &Op) {
        let at = self.in_page(i64::from(op.offset)) as i32;
        self.a.load(RCX, PAGE);
        self.a.lea(RCX, Mem::at(RCX, at));
        self.a.store(x87_last(0), RCX);
        self.a.set(RCX, u32::from(op.extra & 0x7ff));
        self.a.store(x87_last(2), RCX);
    }

    /// Goes out of line unless a control word masks all exceptions: only so the x87 may stay the guest's.
    fn all_masked(&mut self, control_word: Mem) {
        let movzx = Legacy {
            opcode: &[0x0f, 0xb7],
            ..Legacy::default()
        };
        self.a.changes(RCX);
        self.a.legacy(&movzx, RCX.0, Rm::Mem(control_word));
        self.a.not(RCX);
        self.a.set(SLOT, MASKS);
        self.a.extract_by(RCX, RCX, SLOT);
        self.found();
    }
}
