//! Virtual-8086 mode extensions (21.3.3, Table 21-2) and protected-mode virtual interrupts (21.4).

use runtime::legacy::{self, Record, State};
use runtime::memory::write_bytes;
use runtime::{check_eq, cpu, section, skip};

use crate::{CODE, END_VECTOR, STACK, place, read16, user, what};

const VME: u64 = 1;
const PVI: u64 = 1 << 1;

const IF: u32 = 1 << 9;
const IOPL3: u32 = 3 << 12;
const VM: u32 = 1 << 17;
const VIF: u32 = 1 << 19;
const VIP: u32 = 1 << 20;
const BREAKPOINT: u32 = 3;
/// INT 41h, and where the program's own handler of it lies in segment 2000h.
const INT: [u8; 2] = [0xcd, 0x41];
const HANDLER: u16 = 0x100;

/// Runs code in virtual-8086 mode until its INT3, which the extensions never redirect.
fn run_code(code: &[u8], flags: u32) -> Record {
    place(CODE, code);
    write_bytes(CODE + code.len() as u64, &[0xcc]);
    write_bytes(CODE + u64::from(HANDLER), &[0xcc]);
    legacy::protected(&State {
        cs: (CODE >> 4) as u32,
        eflags: flags | VM | 2,
        esp: 0x8000,
        ss: (STACK >> 4) as u32,
        ..State::default()
    })
}

/// Gives INT 41h to the monitor or to the program: the redirection bitmap ends where the I/O map begins, at 100h.
fn to_the_monitor(bit: bool) {
    let byte = legacy::tss_base() + 0x100 - 32 + 0x41 / 8;
    write_bytes(byte, &[u8::from(bit) << (0x41 % 8)]);
}

pub fn run() {
    if !cpu::has(1, 3, 1) {
        skip("VME and PVI");
        return;
    }
    legacy::install();
    legacy::set_real_vector(0x41, (CODE >> 4) as u16, HANDLER);
    let before = cpu::read_cr4();
    cpu::write_cr4(before | VME);
    section("21.3.3 software interrupts with VME");
    let handler = u32::from(HANDLER) + 1;
    for (flags, image, name) in [
        (VIF, IOPL3 | IF | 2, "IOPL 0, VIF set"),
        (0, IOPL3 | 2, "IOPL 0, VIF clear"),
        (IOPL3 | IF | VIF, IOPL3 | IF | 2, "IOPL 3"),
    ] {
        to_the_monitor(false);
        let r = run_code(&INT, flags);
        check_eq!(what(&r), (BREAKPOINT, 0, handler), "to the program: {name}");
        check_eq!(r.above[0], 0x8000 - 6, "three words: {name}");
        let words: [u16; 3] = core::array::from_fn(|i| read16(STACK + 0x7ffa + 2 * i as u64));
        check_eq!(
            words,
            [2, (CODE >> 4) as u16, image as u16],
            "IP, CS, FLAGS: {name}"
        );
        // IOPL 3 masks IF, IOPL 0 its virtual one.
        let left = if flags & IOPL3 != 0 { VIF } else { 0 };
        check_eq!(r.eflags & (IF | VIF), left, "masked: {name}");
    }
    to_the_monitor(true);
    check_eq!(what(&run_code(&INT, VIF)), (13, 0, 0), "#GP with IOPL 0");
    check_eq!(
        what(&run_code(&INT, IOPL3)),
        (0x41, 0, 2),
        "to the protected-mode handler with IOPL 3"
    );

    section("21.3.3.4 the virtual interrupt flag");
    let r = run_code(&[0xfa], VIF);
    check_eq!(what(&r), (BREAKPOINT, 0, 2), "CLI");
    check_eq!(r.eflags & VIF, 0, "CLI: VIF");
    let r = run_code(&[0xfb], IF);
    check_eq!(r.eflags & (VIF | IF), VIF | IF, "STI: VIF");
    let r = run_code(&[0xfa], VIF | IF);
    check_eq!(r.eflags & (VIF | IF), IF, "CLI leaves IF");
    check_eq!(
        what(&run_code(&[0xfb], VIP)),
        (13, 0, 0),
        "STI with VIP set"
    );
    check_eq!(
        what(&run_code(&[0xfa], VIP)),
        (BREAKPOINT, 0, 2),
        "CLI with VIP set"
    );
    let r = run_code(&[0x9c, 0x58], VIF);
    check_eq!(
        r.gpr[7] & 0xffff,
        IOPL3 | IF | 2,
        "PUSHF: VIF for IF, IOPL 3"
    );
    // PUSH 0202h; POPF.
    let r = run_code(&[0x68, 0x02, 0x02, 0x9d], 0);
    check_eq!(r.eflags & (VIF | IF | IOPL3), VIF, "POPF: VIF by IF");
    check_eq!(
        what(&run_code(&[0x68, 0x02, 0x02, 0x9d], VIP)),
        (13, 0, 3),
        "POPF of IF with VIP set"
    );
    check_eq!(
        what(&run_code(&[0x68, 0x02, 0x01, 0x9d], 0)),
        (13, 0, 3),
        "POPF of TF"
    );
    check_eq!(
        what(&run_code(&[0x66, 0x9c], 0)),
        (13, 0, 0),
        "PUSHFD with IOPL 0"
    );

    section("21.4 protected-mode virtual interrupts");
    let run_user = |code: &[u8], flags: u32| {
        place(CODE, code);
        let mut s = user();
        s.eflags = flags | 2;
        legacy::protected(&s)
    };
    cpu::write_cr4(before & !(VME | PVI));
    let at = CODE as u32;
    check_eq!(what(&run_user(&[0xfa], 0)), (13, 0, at), "CLI without PVI");
    cpu::write_cr4(before & !VME | PVI);
    let r = run_user(&[0xfa], VIF | IF);
    check_eq!(what(&r), (END_VECTOR, 0, at + 3), "CLI");
    check_eq!(r.eflags & (VIF | IF), IF, "CLI: VIF");
    let r = run_user(&[0xfb], 0);
    check_eq!(r.eflags & (VIF | IF), VIF, "STI: VIF");
    check_eq!(
        what(&run_user(&[0xfb], VIP)),
        (13, 0, at),
        "STI with VIP set"
    );
    let r = run_user(&[0xfa], IOPL3 | VIF | IF);
    check_eq!(r.eflags & (VIF | IF), VIF, "CLI with IOPL 3: IF");
    let r = run_user(&[0x9c, 0x58], VIF);
    check_eq!(r.gpr[7] & (IF | IOPL3), 0, "PUSHF shows IF, not VIF");
    let r = run_user(&[0x68, 0x02, 0x02, 0, 0, 0x9d], 0);
    check_eq!(r.eflags & (VIF | IF), 0, "POPF changes neither");
    cpu::write_cr4(before);
    legacy::install();
}
