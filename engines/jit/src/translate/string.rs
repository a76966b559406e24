//! String instructions whose strings lie in one page each: the host's own, on the bytes in RAM.
//!
//! Upwards and with 64-bit addresses only, and repeated only up to a count; their handlers do the others. The host's
//! overlap as the guest's do, and compares leave the guest's flags.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use x86defs::rflags;

use super::{ByHandler, Done, Translator};
use crate::asm::{Mem, Reg};
use crate::layout::{
    ADDRESS, BUDGET, GUEST_RCX, PLACE, RCX, READ, REST, SLOT, UNCOUNTED, WRITE, mask,
};

const RSI: Reg = Reg(6);
const RDI: Reg = Reg(7);

/// What it does with its strings.
struct Use {
    source: bool,
    /// Whether it writes it.
    destination: Option<bool>,
    /// Log2 of the bytes from which on its handler does it.
    most: u32,
}

/// For copies and fills: a page, which is all that a check serves for.
const MOVES: u32 = 12;
/// For compares, which the host does one by one.
const COMPARES: u32 = 7;

/// MOVS, STOS, LODS, SCAS and CMPS.
fn use_of(mnemonic: M) -> Option<Use> {
    let (source, destination, most) = match mnemonic {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => (true, Some(true), MOVES),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => (false, Some(true), MOVES),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => (true, None, 0),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => (false, Some(false), COMPARES),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => (true, Some(false), COMPARES),
        _ => return None,
    };
    Some(Use {
        source,
        destination,
        most,
    })
}

impl Translator<'_> {
    pub(super) fn string(&mut self, insn: &Instruction, bytes: &[u8]) -> Done {
        let what = use_of(insn.mnemonic()).ok_or(ByHandler)?;
        let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
        let wide_addresses = insn.op_kinds().all(|kind| {
            matches!(
                kind,
                OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::Register
            )
        });
        let based = matches!(insn.memory_segment(), Register::FS | Register::GS);
        let writes = what.destination == Some(true);
        // Others would have to hear of what is written.
        let unheard = writes && self.cpu.shared;
        let odd = repeats && (what.most == 0 || writes && insn.has_repne_prefix());
        if !wide_addresses || what.source && based || unheard || odd {
            return Err(ByHandler);
        }
        let size = insn.memory_size().size();
        let opcode = *bytes.last().ok_or(ByHandler)?;

        self.a.set(SLOT, rflags::DF as u32);
        self.a.load(RCX, REST);
        self.a.extract_by(RCX, RCX, SLOT);
        self.found();
        if repeats {
            self.a.set(RCX, what.most - size.trailing_zeros());
            self.a.shrx(RCX, GUEST_RCX, RCX);
            self.found();
        }
        if what.source {
            self.string_check(RSI, READ, size, repeats);
            self.a.load(ADDRESS, PLACE);
        }
        if let Some(write) = what.destination {
            let right = if write { WRITE } else { READ };
            self.string_check(RDI, right, size, repeats);
            self.a.load(SLOT, PLACE);
        }

        let a = &mut self.a;
        let move_by = |a: &mut crate::asm::Asm, r: Reg, by: Reg, one: i32| {
            a.lea(r, Mem::indexed(r, by, 0, one));
        };
        if what.source {
            move_by(a, RSI, ADDRESS, 0);
        }
        if what.destination.is_some() {
            move_by(a, RDI, SLOT, 0);
        }
        if repeats {
            a.mov(RCX, GUEST_RCX);
            a.raw(&[if insn.has_repne_prefix() { 0xf2 } else { 0xf3 }]);
        }
        match size {
            2 => a.raw(&[0x66]),
            8 => a.raw(&[0x48]),
            _ => {}
        }
        a.raw(&[opcode]);
        // Back by the negation, which is one more than the complement.
        if what.source {
            a.not(ADDRESS);
            move_by(a, RSI, ADDRESS, 1);
        }
        if what.destination.is_some() {
            a.not(SLOT);
            move_by(a, RDI, SLOT, 1);
        }
        if repeats && writes {
            self.string_time();
            self.a.set(GUEST_RCX, 0);
        } else if repeats {
            self.a.mov(GUEST_RCX, RCX);
        }
        Ok(())
    }

    /// Goes out of line unless the string at `at` may be accessed and lies in one page; [`SLOT`] is its slot then.
    fn string_check(&mut self, at: Reg, right: Mem, size: usize, repeats: bool) {
        let a = &mut self.a;
        a.extract(SLOT, at, mask(0));
        a.load(RCX, right);
        if repeats {
            let scale = size.trailing_zeros() as u8;
            a.lea(RCX, Mem::indexed(RCX, at, 0, -1));
            a.lea(RCX, Mem::indexed(RCX, GUEST_RCX, scale, 0));
        } else {
            a.lea(RCX, Mem::indexed(RCX, at, 0, size as i32 - 1));
        }
        a.extract(RCX, RCX, mask(1));
        self.found_below();
    }

    /// Charges for as many elements as the guest's RCX says, like the handlers: an instruction's time for eight.
    fn string_time(&mut self) {
        let a = &mut self.a;
        a.set(RCX, 3);
        a.shrx(RCX, GUEST_RCX, RCX);
        let short = a.if_zero();
        a.load(SLOT, UNCOUNTED);
        a.lea(SLOT, Mem::indexed(SLOT, RCX, 0, 0));
        a.store(UNCOUNTED, SLOT);
        a.not(RCX);
        a.lea(BUDGET, Mem::indexed(BUDGET, RCX, 0, 1));
        a.land(short);
    }

    /// CLD and STD.
    pub(super) fn direction(&mut self, set: bool) {
        let a = &mut self.a;
        a.set_signed(RCX, !(rflags::DF as i32));
        a.load(SLOT, REST);
        a.keep(SLOT, RCX);
        if set {
            a.lea(SLOT, Mem::at(SLOT, rflags::DF as i32));
        }
        a.store(REST, SLOT);
    }
}
