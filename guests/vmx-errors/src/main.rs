//! VMX instructions and VM entries that must fail, against chapters 24, 27 and 31 of volume 3: #UD, #GP,
//! VMfail with the right number, entry failures with the right reason.

#![no_std]
#![no_main]

mod capabilities;
mod controls;
mod guest_state;
mod host_state;
mod instructions;

use runtime::{cpu, skip};

runtime::guest!("vmx-errors", run);

fn run() {
    if !cpu::has(1, 2, 5) {
        skip("VT-x");
        runtime::record(true);
        return;
    }
    capabilities::run();
    instructions::run();
    controls::run();
    host_state::run();
    guest_state::run();
}
