//! Segments of protected mode, each check in each register: loads (3.4.3, 5.4 to 5.7), limits (5.3) and types (5.5) of
//! accesses. At CPL 3, so that SS may be anything.

use runtime::legacy::{self, Record, State};
use runtime::memory::write_bytes;
use runtime::{check_eq, section};

use crate::{CODE, DATA, END_VECTOR, place, user, what};

/// The selector under test, and its error code.
const SELECTOR: u16 = legacy::SPARE | 3;
const ERROR: u32 = legacy::SPARE as u32;
const VALUE: u32 = 0x1234_5678;
/// Name, ModR/M byte of the load, prefix of an access, exception of a limit.
const REGISTERS: [(&str, u8, u8, u32); 5] = [
    ("ES", 0xc0, 0x26, 13),
    ("SS", 0xd0, 0x36, 12),
    ("DS", 0xd8, 0x3e, 13),
    ("FS", 0xe0, 0x64, 13),
    ("GS", 0xe8, 0x65, 13),
];
/// Where the load and the access lie.
const LOAD: u32 = CODE as u32 + 5;
const ACCESS: u32 = CODE as u32 + 7;

/// MOV EAX, selector; MOV sreg, AX; MOV EAX, sreg:[offset], or the other way.
fn access(register: (u8, u8), selector: u16, write: bool, offset: u32) -> Record {
    let [low, high] = selector.to_le_bytes();
    let [a, b, c, d] = offset.to_le_bytes();
    let opcode = if write { 0xa3 } else { 0xa1 };
    place(
        CODE,
        &[
            0xb8, low, high, 0, 0, 0x8e, register.0, register.1, opcode, a, b, c, d,
        ],
    );
    legacy::protected(&user())
}

pub fn run() {
    legacy::install();
    for (name, load, prefix, limit) in REGISTERS {
        let stack = name == "SS";
        let set = |kind: u64, flags: u64| {
            let segment = legacy::segment(DATA, 0xfff, kind, flags);
            legacy::set_descriptor(legacy::SPARE, segment);
        };
        let go = |write: bool, offset: u32| access((load, prefix), SELECTOR, write, offset);
        section("5.6, 5.7 loads of a segment register");
        for (kind, data, of_stack, what_is) in [
            (0x73, 11, 12, "not present"),
            (0x93, 13, 13, "DPL 0"),
            (0xf9, 13, 13, "execute-only code"),
            (0xe9, 13, 13, "a TSS"),
            (0xec, 13, 13, "a call gate"),
        ] {
            set(kind, 4);
            let vector = if stack { of_stack } else { data };
            check_eq!(
                what(&go(false, 0)),
                (vector, ERROR, LOAD),
                "{name}: {what_is}"
            );
        }
        let beyond = access((load, prefix), 0xffb, false, 0);
        check_eq!(what(&beyond), (13, 0xff8, LOAD), "{name}: beyond the GDT");
        let local = access((load, prefix), 7, false, 0);
        check_eq!(what(&local), (13, 4, LOAD), "{name}: no LDT");
        let null = access((load, prefix), 3, false, 0);
        let at = if stack { LOAD } else { ACCESS };
        check_eq!(what(&null), (13, 0, at), "{name}: null");

        section("5.5 types");
        set(0xf1, 4);
        if stack {
            check_eq!(what(&go(false, 0)), (13, ERROR, LOAD), "{name}: read-only");
            set(0xfb, 4);
            check_eq!(what(&go(false, 0)), (13, ERROR, LOAD), "{name}: code");
        } else {
            for kind in [0xf1, 0xfb, 0x9f] {
                set(kind, 4);
                let r = go(false, 0);
                check_eq!(r.vector, END_VECTOR, "{name}: read of type {kind:x}");
                let r = go(true, 0);
                check_eq!(what(&r), (13, 0, ACCESS), "{name}: write of type {kind:x}");
            }
        }

        section("5.3 limits");
        // Type, flags (4: B), offset, whether it is inside.
        for (kind, flags, offset, inside) in [
            (0xf3, 4, 0xffc, true),
            (0xf3, 4, 0xffd, false),
            (0xf3, 4, 0xffff_fffc, false),
            (0xf3, 0, 0xffc, true),
            (0xf3, 0, 0xffd, false),
            (0xf7, 4, 0xffc, false),
            (0xf7, 4, 0xfff, false),
            (0xf7, 4, 0x1000, true),
            (0xf7, 4, 0x1_0000, true),
            (0xf7, 0, 0xfff, false),
            (0xf7, 0, 0x1000, true),
            (0xf7, 0, 0xfffc, true),
            (0xf7, 0, 0xfffd, false),
            (0xf7, 0, 0x1_0000, false),
            // In pages: FFFh is the limit's 12 bits below.
            (0xf3, 0xc, 0xff_fffc, true),
            (0xf3, 0xc, 0x100_0000, false),
        ] {
            set(kind, flags);
            for write in [false, true] {
                let at = DATA + u64::from(offset);
                if inside {
                    write_bytes(at, &VALUE.to_le_bytes());
                }
                let r = go(write, offset);
                let expected = if inside {
                    (END_VECTOR, 0, ACCESS + 8)
                } else {
                    (limit, 0, ACCESS)
                };
                check_eq!(
                    what(&r),
                    expected,
                    "{name}: type {kind:x}, flags {flags:x}, {offset:x}, write {write}"
                );
                if inside && !write {
                    check_eq!(r.gpr[7], VALUE, "{name}: {offset:x}: what is read");
                }
            }
        }
    }
    section("5.3 the limit of code");
    legacy::set_descriptor(legacy::SPARE, legacy::segment(CODE, 0xff, 0xfb, 4));
    place(CODE + 0xff, &[0x90]);
    let r = legacy::protected(&State {
        cs: u32::from(SELECTOR),
        eip: 0xff,
        ..user()
    });
    check_eq!(what(&r), (13, 0, 0x100), "the instruction behind it");
    place(CODE + 0xfe, &[0xb0, 1, 0x90]);
    let state = State {
        cs: u32::from(SELECTOR),
        eip: 0xff,
        ..user()
    };
    write_bytes(CODE + 0xff, &[0xb0]);
    check_eq!(
        what(&legacy::protected(&state)),
        (13, 0, 0xff),
        "an instruction across it"
    );
    legacy::install();
}
