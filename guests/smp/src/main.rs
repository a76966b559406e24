//! Several processors: start-up (9.4), locked operations (9.1), memory ordering (9.2), code changed by another
//! processor (9.1.3), translations (4.10.5), interprocessor interrupts (11.6). Volume 3.

#![no_std]
#![no_main]

mod atomic;
mod code;
mod ipi;
mod litmus;
mod ordering;
mod start;
mod tables;
mod translations;

use runtime::{check, smp};

/// Processors of the machine this guest is run on.
pub const CPUS: usize = 4;

runtime::guest!("smp", run);

fn run() {
    runtime::apic::enable();
    start::before();
    check!(smp::start(CPUS), "9.4.4: all processors come up");
    start::run();
    atomic::run();
    tables::run();
    ordering::run();
    litmus::run();
    code::run();
    translations::run();
    ipi::run();
}
