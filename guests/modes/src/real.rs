//! Real-address mode (21.1), limits of code (5.3), debug traps there.

use runtime::legacy::{self, RealRecord, RealState};
use runtime::memory::write_bytes;
use runtime::{check_eq, section};

use crate::{CODE, DATA, place};

fn state() -> RealState {
    RealState {
        esp: 0x8000,
        words: [0, (CODE >> 4) as u16, 2, 0x3000, (DATA >> 4) as u16],
        ..RealState::default()
    }
}

fn run_code(code: &[u8], change: impl FnOnce(&mut RealState)) -> RealRecord {
    place(CODE, code);
    let mut s = state();
    change(&mut s);
    legacy::real(&s)
}

/// Vector and IP.
fn what(r: &RealRecord) -> (u16, u16) {
    (r.vector, r.frame[0])
}

pub fn run() {
    legacy::install();
    section("21.1.4 real-address mode: interrupts");
    let r = run_code(&[0xcd, 0x41], |s| s.words[2] = 0x0ed7);
    check_eq!(what(&r), (0x41, 2), "INT n");
    check_eq!(r.frame, [2, 0x2000, 0x0ed7], "IP, CS, FLAGS");
    check_eq!(r.esp, 0x8000 - 6, "three words");
    let r = run_code(&[0xcc], |_| {});
    check_eq!(what(&r), (3, 1), "INT3");
    let r = run_code(&[0xce], |s| s.words[2] = 0x802);
    check_eq!(what(&r), (4, 1), "INTO");
    let r = run_code(&[0x31, 0xdb, 0xf7, 0xf3], |_| {});
    check_eq!(what(&r), (0, 2), "DIV by zero");
    // A handler of our own that returns: INT 41h, then the end.
    legacy::set_real_vector(0x41, 0x2000, 0x100);
    write_bytes(CODE + 0x100, &[0x9c, 0x58, 0xcf]);
    let r = run_code(&[0xcd, 0x41, 0x90], |s| s.words[2] = 0x0302);
    check_eq!(
        what(&r),
        (1, 3),
        "IRET loads TF, and the next instruction traps"
    );
    check_eq!(r.gpr[0] & 0x300, 0, "IF and TF are clear in the handler");
    let r = run_code(&[0xcd, 0x41], |s| s.words[2] = 0x0202);
    check_eq!(what(&r), (0x40, 4), "IRET");
    check_eq!(r.frame[2], 0x0202, "FLAGS after IRET");
    legacy::install();

    section("21.1.1, 5.3 real-address mode: limits");
    let r = run_code(&[0xa1, 0xff, 0xff], |_| {});
    check_eq!(what(&r), (13, 0), "a word at FFFFh");
    check_eq!(r.esp, 0x8000 - 6, "no error code");
    let r = run_code(&[0xbd, 0xff, 0xff, 0x8b, 0x46, 0x00], |_| {});
    check_eq!(what(&r), (12, 3), "a word at SS:FFFFh");
    let r = run_code(&[0x67, 0x8a, 0x03], |s| s.gpr[1] = 0x1_0000);
    check_eq!(what(&r), (13, 0), "an offset of 17 bits");
    let r = run_code(&[0x66, 0xea, 0, 0, 1, 0, 0, 0x20], |_| {});
    check_eq!(what(&r), (13, 0), "JMP to an offset of 17 bits");
    write_bytes(CODE + 0xffff, &[0x90]);
    let r = run_code(&[0xe9, 0xfc, 0xff], |_| {});
    check_eq!(what(&r), (13, 0), "sequential execution past FFFFh");
    write_bytes(CODE + 0xfffe, &[0xb8, 0x34]);
    let r = run_code(&[0xe9, 0xfb, 0xff], |_| {});
    check_eq!(what(&r), (13, 0xfffe), "an instruction across FFFFh");

    section("big real mode");
    write_bytes(0x18_0000, &[0x78, 0x56, 0x34, 0x12]);
    let r = run_code(&[0x66, 0x67, 0x8b, 0x03], |s| {
        s.gpr[1] = 0x14_0000;
        s.big = 1;
    });
    check_eq!(
        (r.vector, r.gpr[0]),
        (0x40, 0x1234_5678),
        "a limit of 4 GiB"
    );
    let r = run_code(&[0x8c, 0xd8, 0x8e, 0xd8, 0x66, 0x67, 0x8b, 0x03], |s| {
        s.gpr[1] = 0x14_0000;
        s.big = 1;
    });
    check_eq!(r.gpr[0], 0x1234_5678, "that a load keeps");

    section("Vol 2: what real-address mode does not recognize");
    for code in [
        &[0x0f, 0x02, 0xc0][..],
        &[0x0f, 0x03, 0xc0],
        &[0x0f, 0x00, 0xe0],
        &[0x0f, 0x00, 0xe8],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
        &[0x63, 0xc0],
        &[0xc4, 0xe2, 0x60, 0xf2, 0xc1],
        &[0xc5, 0xf8, 0x58, 0xc1],
    ] {
        let r = run_code(code, |_| {});
        check_eq!(what(&r), (6, 0), "{code:x?}");
    }
    let r = run_code(&[0x0f, 0x34], |_| {});
    check_eq!(what(&r), (13, 0), "SYSENTER");
    let r = run_code(&[0x0f, 0x01, 0xe0], |_| {});
    check_eq!((r.vector, r.gpr[0] & 1), (0x40, 0), "SMSW shows PE clear");

    section("Vol 2: far transfers");
    place(CODE + 0x1000, &[0x58, 0x5b]);
    let r = run_code(&[0x9a, 0, 0, 0, 0x21], |_| {});
    check_eq!((r.vector, r.frame[1]), (0x40, 0x2100), "CALL");
    check_eq!((r.gpr[0], r.gpr[1]), (5, 0x2000), "IP and CS on the stack");
    let r = run_code(&[0x68, 0, 0x21, 0x6a, 0, 0xca, 4, 0], |_| {});
    check_eq!((r.vector, r.frame[1]), (0x40, 0x2100), "RETF");
    check_eq!(r.esp, 0x8000 + 4 + 4 - 6, "and the bytes it releases");

    section("18.3.1.4 single steps");
    let r = run_code(&[0x90], |s| s.words[2] = 0x102);
    check_eq!(what(&r), (1, 1), "TF");
    let r = run_code(&[0x8c, 0xd0, 0x8e, 0xd0, 0x90], |s| s.words[2] = 2);
    check_eq!(r.vector, 0x40, "no TF");
    let r = run_code(&[0x8e, 0xd1, 0x90], |s| {
        s.words[2] = 0x102;
        s.gpr[2] = 0x3000;
    });
    check_eq!(what(&r), (1, 3), "6.8.3: MOV SS holds the trap off");
}
