//! The processor's other modes against the manual: real-address and virtual-8086 mode, gates of 16 and 32 bits,
//! segments, hardware task switches, 32-bit and PAE paging, numeric errors without CR0.NE.
//!
//! References are to volume 3 of the Intel SDM where nothing else is said.

#![no_std]
#![no_main]

mod ferr;
mod gates;
mod paging;
mod real;
mod segments;
mod sixteen;
mod tasks;
mod v8086;
mod vme;

use runtime::legacy::{self, Record, State};
use runtime::memory::write_bytes;

runtime::guest!("modes", run);

/// Where code of the tests lies: segment 2000h.
const CODE: u64 = 0x2_0000;
/// Its stack: segment 3000h.
const STACK: u64 = 0x3_0000;
/// Data: segment 4000h.
const DATA: u64 = 0x4_0000;
/// INT 40h ends a state.
const END: [u8; 2] = [0xcd, 0x40];
const END_VECTOR: u32 = 0x40;

fn run() {
    real::run();
    v8086::run();
    vme::run();
    segments::run();
    sixteen::run();
    gates::run();
    tasks::run();
    paging::run();
    ferr::run();
}

/// Puts code in place, with an end behind it.
fn place(at: u64, code: &[u8]) {
    write_bytes(at, code);
    write_bytes(at + code.len() as u64, &END);
}

/// A state of 32-bit protected mode at CPL 0, at [`CODE`].
fn kernel() -> State {
    State {
        eip: CODE as u32,
        cs: u32::from(legacy::CODE),
        eflags: 2,
        esp: (STACK + 0x8000) as u32,
        ..State::default()
    }
}

/// The same at CPL 3.
fn user() -> State {
    State {
        cs: u32::from(legacy::USER_CODE),
        ss: u32::from(legacy::USER_DATA),
        ..kernel()
    }
}

/// Vector, error code and EIP.
fn what(r: &Record) -> (u32, u32, u32) {
    (r.vector, r.error, r.eip)
}

/// A 32-bit word of memory.
fn read32(at: u64) -> u32 {
    runtime::memory::read(at) as u32
}

/// A 16-bit word of memory.
fn read16(at: u64) -> u16 {
    runtime::memory::read(at) as u16
}
