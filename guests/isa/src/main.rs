//! What CPUID shows beyond the basic processor: the instructions of the XSAVE family (volume 1, 13), AES, SHA, PCLMULQDQ,
//! RDRAND, RDSEED, RDPID, the flushes of lines, MONITOR and MWAIT (volume 3,
//! 9.10.4), MTRRs and PAT (volume 3, 12.11 and 12.12), performance counters (volume 3, 20).

#![no_std]
#![no_main]

mod amd;
mod counters;
mod crypto;
mod memory_types;
mod monitor;
mod single;
mod xsaves;

use runtime::{check, smp};

/// Processors of the machine this guest is run on.
pub const CPUS: usize = 2;

runtime::guest!("isa", run);

fn run() {
    runtime::apic::enable();
    check!(smp::start(CPUS), "9.4.4: both processors come up");
    xsaves::run();
    crypto::run();
    single::run();
    memory_types::run();
    monitor::run();
    counters::run();
    amd::run();
}
