//! What the targets found, each by itself.

use fuzzing::Input;
use fuzzing::cpu::modes::{CODE, DATA, HANDLER, Mode, image, start};
use fuzzing::cpu::{Events, Machine};
use vcpu::{RunExit, VcpuState};

/// A machine in `mode` with privilege, all registers but RSP zero, and its code.
fn machine(mode: Mode, code: &[u8]) -> (Machine, VcpuState) {
    let machine = Machine::new(image());
    machine.write(CODE, code);
    let mut state = start(&machine.reset, mode, false, &mut Input::new(&[]));
    let stack = state.gpr[4];
    state.gpr = [0; 16];
    state.gpr[4] = stack;
    state.rflags = 2;
    (machine, state)
}

/// A handler whose first instruction faults: in real mode SP wraps, so this goes on for ever. Time passes all the same,
/// or nobody could stop it and no timer could interrupt it.
#[test]
fn faults_without_end_take_time() {
    const UD2: [u8; 2] = [0x0f, 0x0b];
    let (mut machine, state) = machine(Mode::Real, &UD2);
    machine.write(HANDLER, &UD2);
    let (exit, after, _) = machine.execute(&state, Events::default());
    assert_eq!(exit, RunExit::Stopped);
    assert_eq!(after.rip, HANDLER);
}

/// The same with faults of the fetch: no handler is mapped, and SP has 16 bits, so that there is always a stack.
#[test]
fn faults_of_fetches_take_time() {
    const NOWHERE: u64 = 0x100_0000;
    const IDT: u64 = 0x2000;
    let (mut machine, mut state) = machine(Mode::Paging32, &[0x0f, 0x0b]);
    for vector in 0..256 {
        let gate: u64 = 0x8e00_0018_0000 | (NOWHERE & 0xffff_0000) << 32;
        machine.write(IDT + 8 * vector, &gate.to_le_bytes());
    }
    state.segments[2].access.0 = 0x93;
    state.segments[2].limit = 0xffff;
    let (exit, after, _) = machine.execute(&state, Events::default());
    assert_eq!(exit, RunExit::Stopped);
    assert_eq!(after.rip, NOWHERE);
}

/// So do they with a breakpoint set, when they go iteration by iteration: code that never ends, in effect.
#[test]
fn repeats_beside_breakpoints_take_time() {
    for code in [[0x90, 0xf3, 0xac], [0x90, 0xf3, 0xa6]] {
        let (mut machine, mut state) = machine(Mode::Long, &code);
        state.gpr[1] = u64::MAX;
        (state.gpr[6], state.gpr[7]) = (DATA, DATA);
        // Not where anything is accessed.
        state.system.dr[0] = 0x1_8000;
        state.system.dr7 = 0x403;
        let (exit, after, retired) = machine.execute(&state, Events::default());
        assert_eq!(exit, RunExit::Stopped, "{code:02x?}");
        assert_eq!(after.rip, CODE + 1);
        assert_eq!(u64::MAX - after.gpr[1], retired - 1, "{code:02x?}");
    }
}

/// Long repeated string instructions give way, with the time they took.
#[test]
fn repeated_string_instructions_take_time() {
    // rep insb and rep outsb in real mode; rep stosb and rep movsb in 64-bit mode.
    for (mode, code) in [
        (Mode::Real, [0x67, 0xf3, 0x6c]),
        (Mode::Real, [0x67, 0xf3, 0x6e]),
        (Mode::Long, [0x90, 0xf3, 0xaa]),
        (Mode::Long, [0x90, 0xf3, 0xa4]),
        (Mode::Long, [0x90, 0xf3, 0xac]),
    ] {
        let (mut machine, mut state) = machine(mode, &code);
        state.gpr[1] = u64::from(u32::MAX);
        state.gpr[6] = DATA;
        state.gpr[7] = DATA;
        // A limit of 4 GByte, or real mode's would end it.
        if mode == Mode::Real {
            for segment in &mut state.segments {
                segment.limit = u32::MAX;
            }
        }
        // The counts wrap around a page of RAM that is there.
        let (exit, after, retired) = machine.execute(&state, Events::default());
        assert_eq!(exit, RunExit::Stopped, "{code:x?}");
        assert!(retired < 4096, "{code:x?}: {retired} instructions");
        assert!(
            after.gpr[1] < u64::from(u32::MAX),
            "{code:x?}: it makes progress"
        );
    }
}

/// Code written between two runs is what the second one executes: a machine is used for many cases.
#[test]
fn cases_execute_their_own_code() {
    // MOV AL, 1 and MOV AL, 2, each with HLT.
    let (mut machine, state) = machine(Mode::Long, &[0xb0, 1, 0xf4]);
    let (_, after, _) = machine.execute(&state, Events::default());
    assert_eq!(after.gpr[0], 1);
    machine.write(CODE, &[0xb0, 2, 0xf4]);
    let (_, after, _) = machine.execute(&state, Events::default());
    assert_eq!(after.gpr[0], 2);
}

/// A repeated string instruction takes as long whether its page holds code that was executed, and is stored to element by
/// element for that, or not.
#[test]
fn a_repeat_takes_as_long_whatever_was_executed_before() {
    let taken = |code_there: bool| {
        // REP STOSB; HLT.
        let (mut machine, mut state) = machine(Mode::Long, &[0xf3, 0xaa, 0xf4]);
        if code_there {
            machine.write(DATA + 0x800, &[0xf4]);
            let mut there = state.clone();
            there.rip = DATA + 0x800;
            let (_, after, _) = machine.execute(&there, Events::default());
            assert_eq!(after.rip, DATA + 0x801);
        }
        (state.gpr[1], state.gpr[7]) = (100, DATA);
        let (_, after, count) = machine.execute(&state, Events::default());
        assert_eq!((after.gpr[1], after.rip), (0, CODE + 3));
        count
    };
    assert_eq!(taken(true), taken(false));
}

/// An interrupt instruction that ends in shutdown stops there, also behind others of its block.
#[test]
fn a_shutdown_stops_at_its_instruction() {
    // JMP to the next; MOV ECX, EAX twice; INT3, without an IDT.
    let (mut machine, mut state) =
        machine(Mode::Protected32, &[0xeb, 0, 0x89, 0xc1, 0x89, 0xc1, 0xcc]);
    state.idtr.limit = 0;
    let (exit, after, _) = machine.execute(&state, Events::default());
    assert_eq!((exit, after.rip), (RunExit::Shutdown, CODE + 6));
}

/// A debug trap that waited is gone with the state it belonged to.
#[test]
fn a_state_that_is_set_has_no_old_trap() {
    let (mut machine, mut state) = machine(Mode::Long, &[0x90, 0xf4]);
    let untraced = state.clone();
    state.rflags |= 1 << 8;
    let (exit, after, count) = machine.execute_singly(&state, 1);
    assert_eq!((exit, after.rip, count), (None, CODE + 1, 1));
    let (_, after, _) = machine.execute(&untraced, Events::default());
    assert_eq!((after.rip, after.system.dr6 >> 14 & 1), (CODE + 2, 0));
}

/// The longest key name an argument of a program can hold is refused or typed.
#[test]
fn long_names_of_keys_end() {
    let long = "ctrl-".repeat(26_000);
    let typed: Result<machine::Typed, _> = format!("<{long}a>").parse();
    assert!(typed.is_ok_and(|typed| typed.0.len() == 2 * 26_001));
    assert!(
        format!("<{long}nothing>")
            .parse::<machine::Typed>()
            .is_err()
    );
}
