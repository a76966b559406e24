//! Call gates of 64 bits (5.8.3.1, 5.8.5.1).

use runtime::descriptors::{
    KERNEL_CS, KERNEL_SS, SPARE, USER_CS, USER_SS, set_descriptor, set_stack, tss_base,
};
use runtime::memory::{page, read, write};
use runtime::paging::user_address;
use runtime::trap::{self, Trap};
use runtime::{address, check_eq, section, snippet};

use crate::user_stack;

/// A code segment for tests, behind the gate's two slots.
const CODE: u16 = SPARE + 16;

snippet! {
    // CALL m16:64 by RDI.
    c_user: ".byte 0x48, 0xff, 0x1f", "int 0x80";
    c_kernel: ".byte 0x48, 0xff, 0x1f", "ret";
    c_target: "mov eax, ss", "int3";
    c_return: ".byte 0x48, 0xcb";
}

/// The gate: type byte, selector, target; `reserved` is its last doubleword.
fn gate(kind: u64, selector: u16, target: u64, reserved: u64) {
    let low =
        target & 0xffff | u64::from(selector) << 16 | kind << 40 | (target >> 16 & 0xffff) << 48;
    set_descriptor(SPARE, low);
    set_descriptor(SPARE + 8, target >> 32 | reserved << 32);
}

pub fn run() {
    section("5.8.3.1, 5.8.5.1 call gates of 64 bits");
    let pointer = page();
    // The offset is ignored.
    write(pointer, u64::MAX);
    write(pointer + 8, u64::from(SPARE | 3));
    let stack = user_stack();
    let from_user = || enter(pointer, stack);
    let before = read(tss_base() + 4);
    let own = page() + 4096;
    set_stack(0, own);
    let target = address!(c_target);
    gate(0xec, KERNEL_CS, target, 0);
    let trap = from_user();
    check_eq!(trap.what(), (3, 0), "the target");
    check_eq!(trap.frame.cs, u64::from(KERNEL_CS), "CPL 0");
    check_eq!(trap.frame.rax() & 0xffff, 0, "SS is null");
    check_eq!(trap.frame.rsp, own - 32, "RSP0");
    let words: [u64; 4] = core::array::from_fn(|i| read(own - 32 + 8 * i as u64));
    check_eq!(
        words,
        [
            user_address(address!(c_user)) + 3,
            u64::from(USER_CS),
            stack,
            u64::from(USER_SS)
        ],
        "RIP, CS, RSP, SS"
    );
    gate(0xec, KERNEL_CS, address!(c_return), 0);
    let trap = from_user();
    check_eq!(trap.what(), (0x80, 0), "RETF: back at CPL 3");
    check_eq!(
        (trap.frame.cs, trap.frame.rsp),
        (u64::from(USER_CS), stack),
        "its CS and RSP"
    );
    // Conforming code: no change of privilege, the stack of CPL 3.
    set_descriptor(CODE, 0x00af_9f00_0000_ffff);
    gate(0xec, CODE, user_address(target), 0);
    let trap = from_user();
    check_eq!(
        (trap.frame.vector, trap.frame.cs, trap.frame.rsp),
        (3, u64::from(CODE) | 3, stack - 16),
        "conforming code keeps CPL 3"
    );
    gate(0x8c, KERNEL_CS, target, 0);
    write(pointer + 8, u64::from(SPARE));
    let trap = trap::raised_at(address!(c_kernel), pointer);
    check_eq!(trap.what(), (3, 0), "from CPL 0");
    check_eq!(trap.frame.rax() & 0xffff, u64::from(KERNEL_SS), "SS stays");
    check_eq!(
        [read(trap.frame.rsp), read(trap.frame.rsp + 8)],
        [address!(c_kernel) + 3, u64::from(KERNEL_CS)],
        "RIP and CS"
    );
    write(pointer + 8, u64::from(SPARE | 3));

    faults(pointer, stack);
    set_stack(0, before);
}

/// The call at CPL 3.
fn enter(pointer: u64, stack: u64) -> Trap {
    let call = user_address(address!(c_user));
    trap::user(call, user_address(pointer), stack, 0)
}

fn faults(pointer: u64, stack: u64) {
    section("vol 2, CALL: faults of a gate");
    let target = address!(c_target);
    let selector = u64::from(SPARE);
    for (kind, code, descriptor, target, reserved, expected, name) in [
        (0x8c, KERNEL_CS, 0, target, 0, (13, selector), "DPL 0"),
        (0x6c, KERNEL_CS, 0, target, 0, (11, selector), "not present"),
        (
            0xec,
            KERNEL_CS,
            0,
            target,
            1 << 8,
            (13, selector),
            "a type in its upper half",
        ),
        (0xe4, KERNEL_CS, 0, target, 0, (13, selector), "of 16 bits"),
        (0xe5, KERNEL_CS, 0, target, 0, (13, selector), "a task gate"),
        (0xec, 0, 0, target, 0, (13, 0), "null target"),
        (
            0xec,
            KERNEL_SS,
            0,
            target,
            0,
            (13, u64::from(KERNEL_SS)),
            "data as target",
        ),
        (
            0xec,
            CODE,
            0x00cf_9b00_0000_ffff,
            target,
            0,
            (13, u64::from(CODE)),
            "32-bit code as target",
        ),
        (
            0xec,
            CODE,
            0x00ef_9b00_0000_ffff,
            target,
            0,
            (13, u64::from(CODE)),
            "code with L and D",
        ),
        (
            0xec,
            CODE,
            0x00af_1b00_0000_ffff,
            target,
            0,
            (11, u64::from(CODE)),
            "code not present",
        ),
        (
            0xec,
            KERNEL_CS,
            0,
            1 << 47,
            0,
            (13, 0),
            "target not canonical",
        ),
    ] {
        set_descriptor(CODE, descriptor);
        gate(kind, code, target, reserved);
        let trap = enter(pointer, stack);
        check_eq!(trap.what(), expected, "{name}");
        check_eq!(
            trap.frame.rip,
            user_address(address!(c_user)),
            "{name}: RIP"
        );
    }
}
