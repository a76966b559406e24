//! A guest processor for tests: decodes bytes and runs them through a [`HostExec`].

use crate::{Bounce, ExtState, HostExec, MemoryUse, Outcome, Prepared, X87Context};
use iced_x86::{Decoder, DecoderOptions, Instruction};

pub(super) struct Cpu {
    pub(super) exec: HostExec,
    pub(super) ext: ExtState,
    pub(super) gpr: [u64; 16],
    pub(super) mem: Bounce,
    pub(super) rflags: u64,
}

pub(super) fn decode(bitness: u32, bytes: &[u8]) -> Instruction {
    let insn = Decoder::with_ip(bitness, bytes, 0, DecoderOptions::NONE).decode();
    assert!(!insn.is_invalid(), "{bytes:02x?} is no instruction");
    assert_eq!(
        insn.len(),
        bytes.len(),
        "{bytes:02x?} is longer than {insn}"
    );
    insn
}

pub(super) const CONTEXT: X87Context = X87Context {
    rip: 0x1122_3344_5566_7788,
    data_address: Some(0x99aa_bbcc_ddee_ff00),
    opcode: 0x5a5,
    real_mode: false,
};

impl Cpu {
    pub(super) fn new() -> Cpu {
        Cpu {
            exec: HostExec::new().unwrap(),
            ext: ExtState::initialized(),
            gpr: [0; 16],
            mem: Bounce::new(),
            rflags: 2,
        }
    }

    pub(super) fn prepare(&mut self, bytes: &[u8]) -> Prepared {
        self.exec.prepare(&decode(64, bytes)).unwrap()
    }

    pub(super) fn run(&mut self, bytes: &[u8]) -> Outcome {
        self.run_in(64, bytes)
    }

    pub(super) fn run_in(&mut self, bitness: u32, bytes: &[u8]) -> Outcome {
        let prepared = self.exec.prepare(&decode(bitness, bytes)).unwrap();
        self.run_prepared(&prepared)
    }

    pub(super) fn run_prepared(&mut self, prepared: &Prepared) -> Outcome {
        self.exec.run_x87(
            prepared,
            &mut self.ext,
            &mut self.gpr,
            &mut self.mem,
            &mut self.rflags,
            &CONTEXT,
        )
    }

    pub(super) fn memory_use(&mut self, bytes: &[u8]) -> MemoryUse {
        self.prepare(bytes).facts().memory
    }

    pub(super) fn set_mem(&mut self, bytes: &[u8]) {
        self.mem.0[..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn set_ps(&mut self, register: usize, values: [f32; 4]) {
        let [a, b, c, d] = values.map(|value| u64::from(value.to_bits()));
        self.ext.ymm[register][0] = a | b << 32;
        self.ext.ymm[register][1] = c | d << 32;
    }

    pub(super) fn ps(&self, register: usize) -> [f32; 4] {
        let [low, high, ..] = self.ext.ymm[register];
        [
            low as u32,
            (low >> 32) as u32,
            high as u32,
            (high >> 32) as u32,
        ]
        .map(f32::from_bits)
    }
}
