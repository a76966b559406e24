//! Compatibility mode at CPL 0: segmentation is that of protected mode, events are those of 64-bit mode (volume 1, 3.1.1
//! and 3.3.4; 5.3.1, 6.14).

use runtime::descriptors::{KERNEL_SS, SPARE, set_descriptor};
use runtime::memory::{page, write, write_bytes};
use runtime::trap::{self, Trap};
use runtime::{check_eq, section};

const CODE: u16 = SPARE;
const DATA: u16 = SPARE + 8;
const VALUE: u64 = 0x1122_3344_5566_7788;

fn segment(base: u64, limit: u64, flags: u64) -> u64 {
    limit | (base & 0xff_ffff) << 16 | flags << 40 | (base >> 24 & 0xff) << 56
}

pub fn run() {
    section("vol 1, 3.1.1 compatibility mode");
    let (code, data, stack) = (page(), page(), page() + 4096);
    write(data, VALUE);
    write(data + 0xff8, VALUE);
    let go_at = |rip: u64, bytes: &[u8]| -> Trap {
        write_bytes(code, bytes);
        // UD2 ends what did not end before.
        write_bytes(code + bytes.len() as u64, &[0x0f, 0x0b]);
        let state = [rip, u64::from(CODE), 2, stack, u64::from(KERNEL_SS), 0];
        let trap = trap::enter(state);
        // SAFETY: a flat segment.
        unsafe { core::arch::asm!("mov ds, {:e}", in(reg) u32::from(KERNEL_SS)) };
        trap
    };
    let go = |bytes: &[u8]| go_at(code, bytes);
    // 32-bit code, flat; data of 4 KiB at the page.
    set_descriptor(CODE, 0x00cf_9b00_0000_ffff);
    set_descriptor(DATA, segment(data, 0xfff, 0x4093));
    // MOV EAX, DATA; MOV DS, AX; MOV EAX, [offset], whose ModR/M byte would be RIP-relative in 64-bit mode.
    let load = |offset: u32| {
        let [a, b, c, d] = offset.to_le_bytes();
        go(&[
            0xb8, DATA as u8, 0, 0, 0, 0x8e, 0xd8, 0x8b, 0x05, a, b, c, d,
        ])
    };
    let trap = load(0);
    check_eq!(
        (trap.what(), trap.frame.rip),
        ((6, 0), code + 13),
        "an access inside of DS"
    );
    check_eq!(trap.frame.rax(), VALUE & 0xffff_ffff, "DS has its base");
    check_eq!(trap.frame.cs, u64::from(CODE), "CS pushed");
    check_eq!(trap.frame.rsp, stack, "6.14.2: SS and RSP are pushed");
    check_eq!(load(0xffc).what(), (6, 0), "5.3: the last doubleword");
    let trap = load(0xffd);
    check_eq!(
        (trap.what(), trap.frame.rip),
        ((13, 0), code + 7),
        "5.3: beyond the limit"
    );
    // A null selector: MOV DS, AX of 0, and the access.
    let trap = go(&[0x31, 0xc0, 0x8e, 0xd8, 0x8b, 0x05, 0, 0, 0, 0]);
    check_eq!(
        (trap.what(), trap.frame.rip),
        ((13, 0), code + 4),
        "DS null may be loaded and not used"
    );
    // What 64-bit mode does not have: PUSH ES, DAA; what it has as a prefix.
    check_eq!(go(&[0x06, 0x1f]).what(), (6, 0), "PUSH ES, POP DS");
    check_eq!(go(&[0x27]).frame.rip, code + 1, "DAA");
    let trap = go(&[0xb8, 1, 0, 0, 0, 0x48, 0x48]);
    check_eq!(trap.frame.rax(), 0xffff_ffff, "48h is DEC EAX, of 32 bits");
    // 16-bit code with a base: MOV AX, imm16.
    set_descriptor(CODE, segment(code, 0xfff, 0x009b));
    let trap = go_at(0, &[0x66, 0x31, 0xc0, 0xb8, 0x34, 0x12]);
    check_eq!(
        (trap.what(), trap.frame.rax(), trap.frame.rip),
        ((6, 0), 0x1234, 6),
        "16-bit code"
    );
    write_bytes(code + 0xffe, &[0x90, 0x90]);
    let trap = go_at(0xffe, &[]);
    check_eq!(
        (trap.what(), trap.frame.rip),
        ((13, 0), 0x1000),
        "5.3: the instruction beyond CS's limit"
    );
}
