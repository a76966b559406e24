//! Virtual-8086 mode (21.2, 21.3).

use runtime::legacy::{self, Record, State};
use runtime::{check_eq, section};

use crate::{CODE, DATA, END_VECTOR, place, read16};

const VM: u32 = 1 << 17;
const IOPL3: u32 = 3 << 12;

fn state(flags: u32) -> State {
    State {
        eip: 0,
        cs: (CODE >> 4) as u32,
        eflags: flags | VM | 2,
        esp: 0x8000,
        ss: 0x3000,
        data: [0x4001, (DATA >> 4) as u32, 0x4002, 0x4003],
        ..State::default()
    }
}

fn run_code(code: &[u8], flags: u32) -> Record {
    place(CODE, code);
    legacy::protected(&state(flags))
}

/// Vector, error code, IP.
fn what(r: &Record) -> (u32, u32, u32) {
    (r.vector, r.error, r.eip)
}

pub fn run() {
    legacy::install();
    section("21.3.1 virtual-8086 mode: events");
    let r = run_code(&[], IOPL3);
    check_eq!(what(&r), (END_VECTOR, 0, 2), "INT n with IOPL 3");
    check_eq!((r.cs, r.eflags), (0x2000, VM | IOPL3 | 2), "CS, EFLAGS");
    check_eq!(
        r.above,
        [0x8000, 0x3000, 0x4001, 0x4000, 0x4002, 0x4003],
        "ESP, SS, ES, DS, FS, GS"
    );
    check_eq!(
        u64::from(r.gpr[3]),
        legacy::stack_top() - 4 * 11,
        "nine words, error code and vector"
    );
    let r = run_code(&[0x31, 0xdb, 0xf7, 0xf3], IOPL3);
    check_eq!(what(&r), (0, 0, 2), "DIV by zero");
    check_eq!(r.eflags & 1 << 16, 1 << 16, "18.3.1.1: RF of a fault");
    let r = run_code(&[0xa1, 0xff, 0xff], 0);
    check_eq!(what(&r), (13, 0, 0), "a word at FFFFh");

    section("21.2.7 sensitive instructions");
    for code in [
        &[0xfa][..],
        &[0xfb],
        &[0x9c],
        &[0x9d],
        &[0x66, 0x9c],
        &[0xcd, 0x41],
        &[0xcf],
    ] {
        let r = run_code(code, 0);
        check_eq!(what(&r), (13, 0, 0), "{code:x?} with IOPL 0");
    }
    let r = run_code(&[0xcc], 0);
    check_eq!(what(&r), (3, 0, 1), "INT3 is not sensitive");
    let r = run_code(&[0xf1], 0);
    check_eq!(what(&r), (1, 0, 1), "nor INT1");
    let r = run_code(&[0xfb, 0x90, 0xfa, 0x9c, 0x58], IOPL3);
    check_eq!(
        (r.vector, r.gpr[7] & 0xffff),
        (END_VECTOR, 0x3002),
        "CLI, PUSHF"
    );
    let r = run_code(&[0x68, 0x02, 0x00, 0x9d], IOPL3);
    check_eq!(r.eflags, VM | IOPL3 | 2, "POPF leaves IOPL and VM");

    section("21.2.8.1 ports by the bitmap alone");
    let r = run_code(&[0xe4, 0x80], IOPL3);
    check_eq!(what(&r), (13, 0, 0), "no bitmap");

    section("21.2.2 modes of instructions");
    for code in [&[0x0f, 0x02, 0xc0][..], &[0x0f, 0x00, 0xc0], &[0x63, 0xc0]] {
        let r = run_code(code, IOPL3);
        check_eq!(what(&r), (6, 0, 0), "{code:x?}");
    }
    for code in [
        &[0xf4][..],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x21, 0xc0],
        &[0x0f, 0x06],
    ] {
        let r = run_code(code, IOPL3);
        check_eq!(what(&r), (13, 0, 0), "{code:x?}");
    }
    let r = run_code(
        &[
            0x8c, 0xd8, 0x8e, 0xc0, 0x26, 0xc7, 0x06, 0x10, 0, 0x34, 0x12,
        ],
        IOPL3,
    );
    check_eq!((r.vector, r.above[2]), (END_VECTOR, 0x4000), "MOV ES");
    check_eq!(
        read16(DATA + 0x10),
        0x1234,
        "its base is the selector times 16"
    );

    section("21.3.1 handlers");
    legacy::set_descriptor(legacy::SPARE, 0x00cf_9f00_0000_ffff);
    legacy::set_gate(
        0x41,
        legacy::gate(0xee, legacy::SPARE, legacy::stub(0x41), 0),
    );
    let r = run_code(&[0xcd, 0x41], IOPL3);
    check_eq!(
        what(&r),
        (13, u32::from(legacy::SPARE), 0),
        "conforming code"
    );
    legacy::set_gate(
        0x41,
        legacy::gate(0x8e, legacy::CODE, legacy::stub(0x41), 0),
    );
    let r = run_code(&[0xcd, 0x41], IOPL3);
    check_eq!(what(&r), (13, 0x41 << 3 | 2, 0), "a gate of privilege 0");
    legacy::install();
}
