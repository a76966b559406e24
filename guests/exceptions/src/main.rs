//! Exceptions, interrupts and system calls of 64-bit mode against the manual: error codes, what is pushed
//! where, stacks, privilege, segment loads, returns, debug traps.
//!
//! References are to the Intel SDM. Sections by number of volume 3 where nothing else is said.

#![no_std]
#![no_main]

mod callgates;
mod compatibility;
mod control;
mod debug;
mod delivery;
mod faults;
mod returns;
mod segments;
mod syscalls;

use runtime::memory::page;
use runtime::paging::user_address;

runtime::guest!("exceptions", run);

fn run() {
    faults::run();
    delivery::run();
    segments::run();
    callgates::run();
    compatibility::run();
    returns::run();
    syscalls::run();
    debug::run();
    control::run();
}

/// Top of a fresh stack for CPL 3.
fn user_stack() -> u64 {
    user_address(page() + 4096)
}
