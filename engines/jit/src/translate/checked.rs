//! Blocks that compare their bytes with RAM, and take the values in their instructions from there.

use guestmem::RamOffset;
use iced_x86::{Instruction, Mnemonic as M};
use softcpu::code::Varying;

use super::{Done, Leaving, Translator};
use crate::asm::{Legacy, Mem, Rm};
use crate::layout::{ADDRESS, RCX, SLOT, host, register};

/// Bytes that the comparison of a word takes.
const ROOM: usize = 60;

impl Translator<'_> {
    /// Where a byte of RAM is on the host. It stays there as long as the processor has its RAM.
    pub(super) fn on_host(&self, at: RamOffset) -> u64 {
        self.cpu.ram.host_base() as u64 + at.0
    }

    /// Leaves before the block unless it is what RAM holds.
    pub(super) fn compare(&mut self) {
        let Some(checked) = self.source.checked else {
            return;
        };
        let start = self.in_page(0);
        let mut based = None;
        for word in checked.compared(self.source.start) {
            self.a.keep_in_reach(ROOM);
            let address = self.on_host(word.at);
            let a = &mut self.a;
            let base = *based.get_or_insert_with(|| {
                a.set_wide(ADDRESS, address);
                word.at.0
            });
            a.load(RCX, Mem::at(ADDRESS, (word.at.0 - base) as i32));
            let mut bits = word.bits;
            if word.mask != u64::MAX {
                a.set_wide(SLOT, word.mask);
                a.extract_by(RCX, RCX, SLOT);
                bits = extract(bits, word.mask);
            }
            a.set_wide(SLOT, bits.wrapping_neg());
            a.lea(RCX, Mem::indexed(RCX, SLOT, 0, 0));
            let leave = a.jump_unless_zero(0);
            self.ways.push((leave, start, Leaving::Before));
        }
    }

    /// An instruction that moves a value to a register or computes with a register and one, which is in RAM. It never
    /// comes to a handler: the operation the interpreter has for it may still have another value.
    pub(super) fn with_value(&mut self, insn: &Instruction, varying: &Varying) -> Done {
        // ADD, OR, AND, SUB, XOR, CMP of a register to the r/m field.
        let opcode = match insn.mnemonic() {
            M::Mov => None,
            M::Add => Some(0x01),
            M::Or => Some(0x09),
            M::And => Some(0x21),
            M::Sub => Some(0x29),
            M::Xor => Some(0x31),
            M::Cmp => Some(0x39),
            other => unreachable!("{other:?} has no value that may change"),
        };
        let at = RamOffset(self.source.start.0 + u64::from(varying.at));
        let guest = insn.op0_register().full_register().number() as u8;
        let wide = insn.op0_register().size() == 8;
        let place = register(usize::from(guest));
        let from = self.on_host(at);
        let a = &mut self.a;
        a.set_wide(ADDRESS, from);
        let value = match opcode {
            None => host(guest).unwrap_or(RCX),
            Some(_) => RCX,
        };
        let from = Mem::at(ADDRESS, 0);
        match (varying.size, varying.signed) {
            (8, _) => a.load(value, from),
            (_, true) => a.sign_extend(value, Rm::Mem(from)),
            (_, false) => a.move_32(value, Rm::Mem(from)),
        }
        let to = match opcode {
            None => value,
            Some(opcode) => {
                let to = host(guest).unwrap_or(SLOT);
                if to == SLOT {
                    a.load(SLOT, place);
                }
                let i = Legacy {
                    wide,
                    opcode: &[opcode],
                    ..Legacy::default()
                };
                a.legacy(&i, RCX.0, Rm::Reg(to));
                if to == SLOT {
                    a.changes(SLOT);
                }
                to
            }
        };
        if host(guest).is_none() && insn.mnemonic() != M::Cmp {
            a.store(place, to);
        }
        Ok(())
    }
}

/// What PEXT gives.
fn extract(bits: u64, mask: u64) -> u64 {
    let mut out = 0;
    let set = (0..64).filter(|n| mask >> n & 1 != 0);
    for (to, from) in set.enumerate() {
        out |= (bits >> from & 1) << to;
    }
    out
}
