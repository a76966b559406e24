//! Every exit reason a guest of one processor can reach (Appendix C), with what is recorded: qualification
//! (28.2.1), instruction length and information (28.2.5), interruption information (28.2.2), and what happens
//! instead when the control is clear. Chapters 25, 26 and 28 of volume 3.

#![no_std]
#![no_main]

mod apic;
mod control_registers;
mod exceptions;
mod instructions;
mod io_msr;
mod state;
mod windows;

use runtime::vmx::{self, Exit, Vm};
use runtime::{address, check_eq, cpu, section, skip, snippet};

runtime::guest!("vmx-exits", run);

snippet! { x_end: "vmcall", "ret"; }

fn run() {
    if !cpu::has(1, 2, 5) {
        skip("VT-x");
        runtime::record(true);
        return;
    }
    vmx::turn_on();
    let vm = &mut Vm::new();
    section("28.2 the plainest exit");
    let exit = vm.run(address!(x_end), 0);
    check_eq!(
        exit,
        Exit {
            reason: 18,
            length: 3,
            rip: address!(x_end),
            instruction: exit.instruction,
            ..Exit::default()
        },
        "VMCALL"
    );
    instructions::run(vm);
    control_registers::run(vm);
    io_msr::run(vm);
    exceptions::run(vm);
    windows::run(vm);
    apic::run(vm);
    state::run(vm);
}

/// Runs `function` and checks reason, qualification and instruction length; RIP is the function's.
fn exits(vm: &mut Vm, what: &str, function: u64, argument: u64, expected: (u64, u64, u64)) -> Exit {
    let exit = vm.run(function, argument);
    check_eq!(
        (exit.reason, exit.qualification, exit.length),
        expected,
        "{what}: reason, qualification, length"
    );
    check_eq!(exit.rip, function, "{what}: RIP");
    check_eq!(
        (exit.info >> 31, exit.idt_info >> 31),
        (0, 0),
        "{what}: no event"
    );
    exit
}

/// Runs `function`, which must reach a VMCALL after itself.
fn passes(vm: &mut Vm, what: &str, function: u64, argument: u64) -> Exit {
    let exit = vm.run(function, argument);
    check_eq!(exit.reason, 18, "{what}: no exit before VMCALL");
    exit
}

/// Runs `function`, which must raise `vector` (an exit, since every exception is one).
fn raises(vm: &mut Vm, what: &str, function: u64, argument: u64, vector: u64) {
    let exit = vm.run(function, argument);
    check_eq!(
        (exit.reason, exit.info & 0xff),
        (0, vector),
        "{what}: exception"
    );
}
