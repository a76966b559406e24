//! 16-bit code and stacks of protected mode: sizes of operands and addresses (volume 1, 3.6), of the stack pointer
//! (volume 1, 6.2.3), of IP (volume 2, JMP, CALL, RET).

use runtime::legacy::{self, Record, State};
use runtime::memory::write_bytes;
use runtime::{check_eq, section};

use crate::{CODE, DATA, END_VECTOR, STACK, place, read16, user, what};

const CODE16: u16 = legacy::SPARE | 3;
const STACK16: u16 = (legacy::SPARE + 8) | 3;
const DATA16: u16 = (legacy::SPARE + 16) | 3;

fn run_at(ip: u32, code: &[u8], esp: u32, gpr: [u32; 7]) -> Record {
    place(CODE + u64::from(ip), code);
    legacy::protected(&State {
        gpr,
        eip: ip,
        cs: u32::from(CODE16),
        esp,
        ss: u32::from(STACK16),
        ..user()
    })
}

pub fn run() {
    legacy::install();
    for (selector, base, kind) in [
        (CODE16, CODE, 0xfb),
        (STACK16, STACK, 0xf3),
        (DATA16, DATA, 0xf3),
    ] {
        legacy::set_descriptor(selector & !3, legacy::segment(base, 0xffff, kind, 0));
    }
    section("vol 1, 3.6 operand and address sizes of 16-bit code");
    let eax = [0xaaaa_5555, 0, 0, 0, 0, 0, 0];
    let r = run_at(0, &[0xb8, 0x34, 0x12], 0x8000, eax);
    check_eq!(what(&r), (END_VECTOR, 0, 5), "MOV AX, imm16");
    check_eq!(r.gpr[7], 0xaaaa_1234, "its upper half stays");
    let r = run_at(0, &[0x66, 0xb8, 0x78, 0x56, 0x34, 0x12], 0x8000, eax);
    check_eq!(r.gpr[7], 0x1234_5678, "66h: MOV EAX, imm32");
    // MOV DS, CX; MOV AX, [BX+SI]; then the same with EBX and ESI.
    write_bytes(DATA + 2, &[0x78, 0x56]);
    let gpr = [0, u32::from(DATA16), 0, 0xffff, 0, 3, 0];
    let r = run_at(0, &[0x8e, 0xd9, 0x8b, 0x00], 0x8000, gpr);
    check_eq!(
        (r.vector, r.gpr[7]),
        (END_VECTOR, 0x5678),
        "an offset of 16 bits wraps"
    );
    let r = run_at(0, &[0x8e, 0xd9, 0x67, 0x8b, 0x04, 0x33], 0x8000, gpr);
    check_eq!(what(&r), (13, 0, 2), "67h: one of 32 bits does not");

    section("vol 1, 6.2.3 the stack pointer of a 16-bit stack");
    // MOV ESP, imm32 first: IRETD to a 16-bit stack loads SP alone.
    let push = |esp: u32, push: &[u8]| {
        let [a, b, c, d] = esp.to_le_bytes();
        place(0x100 + CODE, push);
        run_at(0, &[0x66, 0xbc, a, b, c, d, 0xe9, 0xf7, 0], 0x8000, eax)
    };
    for (before, after) in [(0xabcd_0002, 0xabcd_0000), (0x1234_0000, 0x1234_fffe_u32)] {
        let r = push(before, &[0x50]);
        check_eq!(
            (r.vector, r.above[0]),
            (END_VECTOR, after),
            "SP alone moves"
        );
        let at = STACK + u64::from(after & 0xffff);
        check_eq!(read16(at), 0x5555, "PUSH AX at {after:x}");
    }
    let r = push(0x0001_0002, &[0x66, 0x50]);
    check_eq!(what(&r), (12, 0, 0x100), "PUSH EAX over the segment's end");
    let r = push(0x0001_0004, &[0x66, 0x50]);
    check_eq!(r.above[0], 0x0001_0000, "66h: PUSH EAX");

    section("vol 2, JMP, CALL, RET in 16-bit code");
    place(CODE + 0xfff0, &[]);
    let r = run_at(0x10, &[0xe9, 0xdd, 0xff], 0x8000, eax);
    check_eq!(what(&r), (END_VECTOR, 0, 0xfff2), "JMP rel16 wraps");
    let r = run_at(0x10, &[0xe8, 0xdd, 0xff], 0x8000, eax);
    check_eq!(
        (r.eip, r.above[0] & 0xffff, read16(STACK + 0x7ffe)),
        (0xfff2, 0x7ffe, 0x13),
        "CALL pushes IP"
    );
    // PUSH 1FFF0h as 32 bits; RET takes 16 of them.
    let push = [0x66, 0x68, 0xf0, 0xff, 1, 0, 0xc3];
    let r = run_at(0x10, &push, 0x8000, eax);
    check_eq!(
        (r.eip, r.above[0] & 0xffff),
        (0xfff2, 0x7ffe),
        "RET takes IP"
    );
    let r = run_at(
        0x10,
        &[0x66, 0x68, 0xf0, 0xff, 1, 0, 0x66, 0xc3],
        0x8000,
        eax,
    );
    check_eq!(
        what(&r),
        (13, 0, 0x16),
        "66h: RET to an offset beyond the limit"
    );
    legacy::install();
}
