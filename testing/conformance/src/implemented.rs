//! Which forms the software CPU's instruction table has.

use std::cell::RefCell;

use hostexec::HostExec;
use iced_x86::Code;
use softcpu::code::{Decoded, Mode, decode_block};
use softcpu::insn::{HostSide, VectorTable, invalid_opcode};

use crate::case::Layout;
use crate::engine::guest_cpuid;
use crate::generate::Encodings;
use crate::random::Random;
use crate::segments::Setting;

/// Asks the instruction table by binding an encoding of the form.
pub struct Implemented {
    parts: RefCell<(Encodings, HostExec, VectorTable)>,
}

impl Implemented {
    /// Ready to ask.
    ///
    /// # Panics
    /// When the host has no memory for the engine's code.
    #[must_use]
    pub fn new() -> Self {
        let host = HostExec::new().expect("memory for the engine's code");
        Self {
            parts: RefCell::new((
                Encodings::new(Layout::worker(0)),
                host,
                VectorTable::new(&guest_cpuid()),
            )),
        }
    }

    /// Whether the software CPU executes `code` in code of `bits` bits; true for the forms that are defined
    /// to be #UD.
    #[must_use]
    pub fn has(&self, code: Code, bits: u32) -> bool {
        use iced_x86::Mnemonic as M;
        if matches!(code.mnemonic(), M::Ud0 | M::Ud1 | M::Ud2) {
            return true;
        }
        let (encodings, host, table) = &mut *self.parts.borrow_mut();
        let mut random = Random::new(0, code as u64, 0);
        let layout = Layout::worker(0);
        let Some(encoding) = (0..64).find_map(|_| {
            let setting = Setting::draw(layout, bits, &mut random);
            encodings.draw(code, &setting, &mut random)
        }) else {
            return true;
        };
        let mode = Mode {
            bits: bits as u8,
            big_stack: bits == 32,
            single: true,
        };
        let mut side = HostSide { host, table };
        let mut ops = Vec::new();
        let Decoded::Block(_) = decode_block(&encoding.bytes, mode, &mut side, &mut ops) else {
            return false;
        };
        ops.first()
            .is_some_and(|op| op.run as usize != invalid_opcode as *const () as usize)
    }
}

impl Default for Implemented {
    fn default() -> Self {
        Self::new()
    }
}
