//! Random instructions in every mode.
//!
//! What must hold: no panic, whatever the bytes; the run ends; what a processor keeps between any two instructions
//! ([`invariants`](crate::cpu::invariants)); and code of 32 bits without paging touches nothing beyond 4 GByte.

use vcpu::{MpState, RunExit};

use crate::cpu::modes::{CODE, DATA, HANDLER, MODES, image, start};
use crate::cpu::{Events, Machine, invariants};
use crate::{Input, Target};

/// The most bytes of code.
const CODE_BYTES: usize = 96;
/// The most instructions a case may execute: two slices, the block that crosses the second one's end, and the
/// iterations of a REP that was under way.
const MOST_RETIRED: u64 = 4096;
/// What instruction encodings consist of more often than chance would have it: prefixes, escapes, VEX, groups.
const FAVOURITES: [u8; 48] = [
    0x0f, 0x0f, 0x0f, 0x0f, 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x48,
    0x41, 0x4c, 0xc4, 0xc5, 0x38, 0x3a, 0x01, 0x00, 0xae, 0xc7, 0xff, 0xf7, 0xd9, 0xdb, 0xdd, 0xdf,
    0x8e, 0x9c, 0x9d, 0xcf, 0xcb, 0xca, 0x9a, 0xea, 0xcd, 0xcc, 0xf4, 0xe8, 0x22, 0x20, 0x30, 0x32,
];

/// The target.
pub struct Code {
    machine: Machine,
    instructions: u64,
    shutdowns: u64,
    handled: u64,
}

impl Default for Code {
    fn default() -> Self {
        Self::new()
    }
}

impl Code {
    /// The target, with a machine.
    #[must_use]
    pub fn new() -> Self {
        Self {
            machine: Machine::new(image()),
            instructions: 0,
            shutdowns: 0,
            handled: 0,
        }
    }
}

fn code(input: &mut Input<'_>) -> Vec<u8> {
    // As the bytes come, or with favourites among them.
    let favour = input.once_in(2);
    let mut code = Vec::with_capacity(CODE_BYTES);
    while code.len() < CODE_BYTES && !input.is_empty() {
        code.push(if favour && input.once_in(3) {
            input.pick(&FAVOURITES)
        } else {
            input.any()
        });
    }
    code
}

impl Target for Code {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let mode = input.pick(&MODES);
        let user = input.once_in(2);
        let state = start(&self.machine.reset, mode, user, &mut input);
        let events = Events {
            nmi: input.once_in(16),
            interrupt: input.once_in(8).then(|| input.any()),
        };
        let memory = input.bytes(32).to_vec();
        self.machine.write(DATA, &memory);
        let code = code(&mut input);
        self.machine.write(CODE, &code);
        let (exit, after, retired) = self.machine.execute(&state, events);
        assert!(retired <= MOST_RETIRED, "{retired} instructions");
        invariants::check(&after);
        let paged = |cr0: u64| cr0 >> 31 != 0;
        if !paged(state.system.cr0) && !paged(after.system.cr0) {
            assert!(self.machine.far_is_untouched(), "{mode:?} reached 4 GByte");
        }
        self.instructions += retired;
        self.shutdowns += u64::from(exit == RunExit::Shutdown);
        let halted = after.mp_state == MpState::Halted;
        self.handled += u64::from(halted && after.rip.wrapping_sub(HANDLER) < 8);
        if (state.system.cr4 | after.system.cr4) & 1 << 13 != 0 {
            // What VMXON made is no part of the state that is set.
            self.machine = Machine::new(image());
        } else {
            self.machine.restore();
        }
    }

    fn longest(&self) -> usize {
        512
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("instructions", self.instructions),
            ("ended in a handler", self.handled),
            ("shutdowns", self.shutdowns),
        ]
    }
}
