//! Event injection (27.6), IDT vectoring (28.2.4), interruptibility and NMI blocking (27.7), against volume 3.
//!
//! The guest's handlers are of its own: each notes what it was given and ends with VMCALL.

#![no_std]
#![no_main]

mod activity;
mod injection;
mod vectoring;

use runtime::descriptors::{self, KERNEL_CS, set_raw_gate, stub};
use runtime::vmx::{self, Vm, field, get};
use runtime::{address, cpu, labels, skip, snippet};

runtime::guest!("vmx-inject", run);

/// The event is there.
pub const VALID: u64 = 1 << 31;
/// It has an error code.
pub const CODE: u64 = 1 << 11;
/// Type: external interrupt.
pub const EXTERNAL: u64 = 0;
/// Type: NMI.
pub const NMI: u64 = 2 << 8;
/// Type: hardware exception.
pub const HARDWARE: u64 = 3 << 8;
/// Type: software interrupt (INT n).
pub const SOFTWARE_INTERRUPT: u64 = 4 << 8;
/// Type: privileged software exception (INT1).
pub const PRIVILEGED: u64 = 5 << 8;
/// Type: software exception (INT3, INTO).
pub const SOFTWARE_EXCEPTION: u64 = 6 << 8;

snippet! {
    // RAX 1000h, then VMCALL: the guest's handler. Frames are read from its stack.
    j_handler: "mov eax, 0x1000", "vmcall", "iretq";
    j_end: "nop", "j_end_1: nop", "j_end_2: vmcall";
}

labels! { j_end_1, j_end_2 }

fn run() {
    if !cpu::has(1, 2, 5) {
        skip("VT-x");
        runtime::record(true);
        return;
    }
    vmx::turn_on();
    let vm = &mut Vm::new();
    injection::run(vm);
    vectoring::run(vm);
    activity::run(vm);
}

/// Runs `body` with the guest's own handler for `vector`, on the interrupted stack.
fn with_handler<T>(vector: u8, body: impl FnOnce() -> T) -> T {
    set_raw_gate(vector, address!(j_handler), KERNEL_CS, 0, 0x8e);
    let result = body();
    let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
    descriptors::set_gate(vector, stub(vector), 1, dpl);
    result
}

/// Word `i` of the guest's stack: an error code or RIP first.
fn stacked(i: u64) -> u64 {
    runtime::memory::read(get(field::GUEST_RSP) + 8 * i)
}

/// RIP of the handler's VMCALL.
fn handled() -> u64 {
    address!(j_handler) + 5
}
