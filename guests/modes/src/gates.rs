//! Call gates and interrupt gates of 16 and 32 bits outside IA-32e mode (5.8, 6.12).

use runtime::legacy::{self, Record};
use runtime::memory::write_bytes;
use runtime::{check_eq, section};

use crate::{CODE, END_VECTOR, STACK, place, read16, read32, user, what};

/// The target of call gates.
const INNER: u64 = CODE + 0x1000;
/// A conforming code segment, and 16-bit code at [`CODE`].
const CONFORMING: u16 = legacy::SPARE + 8;
const INNER16: u16 = legacy::SPARE + 16;

fn call(gate: u64, stack: &[u8]) -> Record {
    legacy::set_descriptor(legacy::SPARE, gate);
    place(CODE, &[0x9a, 0, 0, 0, 0, legacy::SPARE as u8 | 3, 0]);
    place(INNER, &[]);
    write_bytes(STACK + 0x8000, stack);
    legacy::protected(&user())
}

pub fn run() {
    legacy::install();
    legacy::set_descriptor(CONFORMING, 0x00cf_9f00_0000_ffff);
    legacy::set_descriptor(INNER16, legacy::segment(CODE, 0xffff, 0x9b, 0));
    let top = legacy::stack_top();
    let user_ss = u32::from(legacy::USER_DATA);
    let user_cs = u32::from(legacy::USER_CODE);

    section("5.8.5 call gates of 32 bits");
    let stack = [1, 0, 0, 0x10, 2, 0, 0, 0x10, 3, 0, 0, 0x10];
    let r = call(legacy::gate(0xec, legacy::CODE, INNER, 2), &stack);
    check_eq!(what(&r), (END_VECTOR, 0, INNER as u32 + 2), "the target");
    check_eq!(r.cs, u32::from(legacy::CODE), "CPL 0");
    let words: [u32; 6] = core::array::from_fn(|i| read32(top - 24 + 4 * i as u64));
    check_eq!(
        words,
        [
            CODE as u32 + 7,
            user_cs,
            0x1000_0001,
            0x1000_0002,
            (STACK + 0x8000) as u32,
            user_ss
        ],
        "EIP, CS, parameters, ESP, SS"
    );
    let r = call(legacy::gate(0xec, CONFORMING, INNER, 2), &stack);
    check_eq!(
        r.cs,
        u32::from(CONFORMING) | 3,
        "conforming code keeps CPL 3"
    );
    check_eq!(r.above[0], (STACK + 0x8000 - 8) as u32, "and the stack");

    section("5.8.5 call gates of 16 bits");
    let r = call(
        legacy::gate(0xe4, INNER16, 0xffff_1000, 3),
        &[1, 2, 3, 4, 5, 6],
    );
    check_eq!(what(&r), (END_VECTOR, 0, 0x1002), "16 bits of the offset");
    let words: [u16; 7] = core::array::from_fn(|i| read16(top - 14 + 2 * i as u64));
    check_eq!(
        words,
        [
            7,
            user_cs as u16,
            0x0201,
            0x0403,
            0x0605,
            0x8000,
            user_ss as u16
        ],
        "IP, CS, parameters, SP, SS"
    );

    section("Vol 2, CALL: faults of a gate");
    let spare = u32::from(legacy::SPARE);
    let at = CODE as u32;
    for (gate, expected, name) in [
        (
            legacy::gate(0x8c, legacy::CODE, INNER, 0),
            (13, spare, at),
            "privilege",
        ),
        (
            legacy::gate(0x6c, legacy::CODE, INNER, 0),
            (11, spare, at),
            "not present",
        ),
        (legacy::gate(0xec, 0, INNER, 0), (13, 0, at), "null target"),
        (
            legacy::gate(0xec, legacy::DATA, INNER, 0),
            (13, 0x10, at),
            "data as target",
        ),
        (
            legacy::gate(0xec, INNER16, INNER, 0),
            (13, 0, at),
            "beyond the limit",
        ),
    ] {
        check_eq!(what(&call(gate, &[])), expected, "{name}");
    }

    section("6.12.1 interrupt and trap gates of 16 bits");
    legacy::set_descriptor(INNER16, legacy::segment(CODE, 0xffff, 0x9b, 0));
    for (kind, interrupts, name) in [(0xe6, 0, "interrupt gate"), (0xe7, 0x200, "trap gate")] {
        legacy::set_gate(0x41, legacy::gate(kind, INNER16, 0x1000, 0));
        place(CODE, &[0xcd, 0x41]);
        place(INNER, &[]);
        let mut s = user();
        s.eflags = 0x202;
        let r = legacy::protected(&s);
        check_eq!(what(&r), (END_VECTOR, 0, 0x1002), "{name}");
        check_eq!(r.eflags & 0x200, interrupts, "IF: {name}");
        let words: [u16; 5] = core::array::from_fn(|i| read16(top - 10 + 2 * i as u64));
        check_eq!(
            words,
            [2, user_cs as u16, 0x202, 0x8000, user_ss as u16],
            "frame: {name}"
        );
    }
    legacy::install();
}
