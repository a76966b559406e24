//! How an event is delivered: gates, stacks, what is pushed, faults on the way (6.9 to 6.15).

use runtime::descriptors::{
    self, KERNEL_CS, KERNEL_SS, SPARE, USER_CS, USER_SS, set_descriptor, set_gate, set_raw_gate,
    stack_top, stub,
};
use runtime::paging::user_address;
use runtime::trap::{self, raised_at as at};
use runtime::{address, check, check_eq, section, snippet};

use crate::user_stack;

const RF: u64 = 1 << 16;
const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;
const NT: u64 = 1 << 14;

snippet! {
    d_ud2: "ud2", "ret";
    d_divide: "xor edx, edx", "xor ecx, ecx", "div ecx", "ret";
    d_int: "int 0x90", "ret";
    d_int_ud: "int 6", "ret";
    d_int_gp: "int 13", "ret";
    d_int3: "int3", "ret";
    d_int80: "int 0x80", "ret";
    d_general: "mov eax, 0xffff", "mov ds, eax", "ret";
    d_page: "mov rax, [rdi]", "ret";
    // Odd stack pointer, flags worth seeing, then INT 90h.
    d_odd: "push rbp", "mov rbp, rsp", "sub rsp, 3", "stc", "std", "int 0x90", "cld", "mov rsp, rbp", "pop rbp", "ret";
    // A handler's view: notes RSP, SS, RFLAGS, then goes on to the vector 90h stub.
    d_handler: "mov [D_SEEN], rsp", "mov [D_SEEN + 8], ss", "pushfq", "pop qword ptr [D_SEEN + 16]",
        "jmp [D_SEEN + 24]";
}

// SAFETY: the one symbol of this name, for d_handler.
#[unsafe(no_mangle)]
static mut D_SEEN: [u64; 4] = [0; 4];

fn seen(i: usize) -> u64 {
    // SAFETY: written by d_handler, which ran to its end.
    unsafe { (&raw const D_SEEN).cast::<u64>().add(i).read_volatile() }
}

fn reset(vector: u8) {
    let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
    set_gate(vector, stub(vector), 1, dpl);
}

pub fn run() {
    frames();
    privilege();
    gates();
    double_faults();
}

/// 6.14: the frame, its alignment, IST, flags.
fn frames() {
    section("6.14 exception and interrupt handling in 64-bit mode");
    let trap = at(address!(d_ud2), 0);
    check_eq!(
        trap.pushed_at,
        stack_top(1) - 40,
        "IST: frame at the stack's top"
    );
    check_eq!(trap.frame.cs, u64::from(KERNEL_CS), "CS pushed");
    check_eq!(
        trap.frame.ss,
        u64::from(KERNEL_SS),
        "SS pushed without a change of privilege"
    );
    check_eq!(
        trap.frame.rflags & RF,
        RF,
        "18.3.1.1: RF in the image of a fault"
    );
    let trap = at(address!(d_general), 0);
    check_eq!(
        trap.what(),
        (13, 0xfffc),
        "selector beyond the GDT, RPL not in the code"
    );
    check_eq!(
        trap.pushed_at,
        stack_top(1) - 48,
        "error code below the frame"
    );
    let trap = at(address!(d_int3), 0);
    check_eq!(
        trap.frame.rflags & RF,
        0,
        "18.3.1.1: RF in the image of INT3"
    );

    // No IST, no change of privilege: the same stack, aligned to 16 bytes.
    // SAFETY: one flow of control.
    unsafe {
        (&raw mut D_SEEN)
            .cast::<u64>()
            .add(3)
            .write_volatile(stub(0x90))
    };
    set_gate(0x90, address!(d_handler), 0, 0);
    let trap = at(address!(d_odd), 0);
    check_eq!(trap.frame.vector, 0x90, "INT 90h");
    check_eq!(
        trap.pushed_at,
        (trap.frame.rsp & !15) - 40,
        "6.14.2: stack aligned to 16 bytes before the push"
    );
    check_eq!(trap.frame.rsp & 15, 13, "the old RSP as it was");
    check_eq!(trap.frame.rflags & 0x401, 0x401, "CF and DF pushed");
    check_eq!(seen(0), trap.pushed_at, "RSP at the handler");
    check_eq!(
        seen(2) & (IF | TF | NT | RF),
        0,
        "6.12.1.3: TF, NT, RF, IF cleared"
    );
    check_eq!(seen(2) & 0x401, 0x401, "other flags as they were");
    check_eq!(seen(1), u64::from(KERNEL_SS), "SS unchanged");
    // A trap gate leaves IF.
    set_raw_gate(0x90, address!(d_handler), KERNEL_CS, 1, 0x8f);
    runtime::cpu::enable_interrupts();
    at(address!(d_int), 0);
    runtime::cpu::disable_interrupts();
    check_eq!(seen(2) & IF, IF, "6.12.1.3: a trap gate leaves IF");
    set_gate(0x90, address!(d_handler), 1, 0);
    runtime::cpu::enable_interrupts();
    at(address!(d_int), 0);
    runtime::cpu::disable_interrupts();
    check_eq!(seen(2) & IF, 0, "6.12.1.3: an interrupt gate clears IF");
    reset(0x90);
}

/// 6.12.1, 6.14.4: from CPL 3.
fn privilege() {
    section("6.12.1 privilege of handlers");
    let stack = user_stack();
    let int80 = user_address(address!(d_int80));
    let trap = trap::user(int80, 0, stack, 0);
    check_eq!(trap.what(), (0x80, 0), "INT 80h, DPL 3");
    check_eq!(trap.frame.rip, int80 + 2, "RIP after INT");
    check_eq!(trap.frame.cs, u64::from(USER_CS), "CS pushed");
    check_eq!(trap.frame.ss, u64::from(USER_SS), "SS pushed");
    check_eq!(trap.frame.rsp, stack, "RSP pushed");
    check_eq!(trap.pushed_at, stack_top(1) - 40, "stack of IST 1");
    let trap = trap::user(user_address(address!(d_int)), 0, stack, 0);
    check_eq!(
        trap.what(),
        (13, 0x90 * 8 + 2),
        "INT 90h, DPL 0: #GP with the IDT bit"
    );
    check_eq!(trap.frame.rip, user_address(address!(d_int)), "RIP at INT");
    let trap = trap::user(user_address(address!(d_int3)), 0, stack, 0);
    check_eq!(trap.what(), (3, 0), "INT3, DPL 3");
    set_gate(3, stub(3), 1, 0);
    let trap = trap::user(user_address(address!(d_int3)), 0, stack, 0);
    check_eq!(trap.what(), (13, 3 * 8 + 2), "INT3, DPL 0");
    reset(3);
    // Exceptions do not look at the DPL.
    let trap = trap::user(user_address(address!(d_ud2)), 0, stack, 0);
    check_eq!(trap.what(), (6, 0), "#UD through a gate of DPL 0");
    // RSP0 without IST; SS is null with the RPL of the new CPL.
    // SAFETY: one flow of control.
    unsafe {
        (&raw mut D_SEEN)
            .cast::<u64>()
            .add(3)
            .write_volatile(stub(6))
    };
    set_gate(6, address!(d_handler), 0, 0);
    let trap = trap::user(user_address(address!(d_ud2)), 0, stack, 0);
    check_eq!(trap.pushed_at, stack_top(0) - 40, "6.14.4: RSP0");
    check_eq!(seen(1) & 0xffff, 0, "6.14.4: SS null");
    set_gate(6, address!(d_handler), 3, 0);
    let trap = trap::user(user_address(address!(d_ud2)), 0, stack, 0);
    check_eq!(trap.pushed_at, stack_top(3) - 40, "6.14.5: IST 3");
    reset(6);
}

/// 6.13, 6.15 (#NP, #GP): what is wrong with a gate, with and without EXT.
fn gates() {
    section("6.13 error codes of delivery");
    let int = address!(d_int);
    set_raw_gate(0x90, stub(0x90), KERNEL_CS, 1, 0x0e);
    check_eq!(at(int, 0).what(), (11, 0x90 * 8 + 2), "gate not present");
    set_raw_gate(0x90, stub(0x90), KERNEL_CS, 1, 0x85);
    check_eq!(
        at(int, 0).what(),
        (13, 0x90 * 8 + 2),
        "task gate in IA-32e mode"
    );
    set_raw_gate(0x90, stub(0x90), KERNEL_CS, 1, 0x86);
    check_eq!(
        at(int, 0).what(),
        (13, 0x90 * 8 + 2),
        "16-bit gate in IA-32e mode"
    );
    set_raw_gate(0x90, stub(0x90), 0, 1, 0x8e);
    check_eq!(at(int, 0).what(), (13, 0), "null selector");
    set_raw_gate(0x90, stub(0x90), KERNEL_SS, 1, 0x8e);
    check_eq!(
        at(int, 0).what(),
        (13, u64::from(KERNEL_SS)),
        "selector of data"
    );
    set_raw_gate(0x90, stub(0x90), 0x1000, 1, 0x8e);
    check_eq!(at(int, 0).what(), (13, 0x1000), "selector beyond the GDT");
    set_descriptor(SPARE, 0x00af_1b00_0000_ffff);
    set_raw_gate(0x90, stub(0x90), SPARE, 1, 0x8e);
    check_eq!(
        at(int, 0).what(),
        (11, u64::from(SPARE)),
        "code segment not present"
    );
    set_descriptor(SPARE, 0x00cf_9b00_0000_ffff);
    check_eq!(
        at(int, 0).what(),
        (13, u64::from(SPARE)),
        "6.14.1: 32-bit code segment"
    );
    set_descriptor(SPARE, 0x00af_fb00_0000_ffff);
    check_eq!(
        at(int, 0).what(),
        (13, u64::from(SPARE)),
        "code segment of DPL 3 from CPL 0"
    );
    set_raw_gate(0x90, 1 << 47, KERNEL_CS, 1, 0x8e);
    check_eq!(at(int, 0).what(), (13, 0), "target not canonical");
    reset(0x90);
    descriptors::load_idt(0x90 * 16 + 14);
    let trap = at(int, 0);
    descriptors::load_idt(0xfff);
    check_eq!(trap.what(), (13, 0x90 * 8 + 2), "beyond the IDT's limit");
    // The same for an exception: EXT is set; #UD is benign, so the second fault is delivered.
    set_raw_gate(6, stub(6), KERNEL_CS, 1, 0x0e);
    check_eq!(
        at(address!(d_ud2), 0).what(),
        (11, 6 * 8 + 3),
        "#UD, gate not present: EXT"
    );
    check_eq!(
        at(address!(d_int_ud), 0).what(),
        (11, 6 * 8 + 2),
        "INT 6, gate not present: no EXT"
    );
    set_raw_gate(6, stub(6), 0, 1, 0x8e);
    check_eq!(
        at(address!(d_ud2), 0).what(),
        (13, 1),
        "#UD, null selector: EXT"
    );
    reset(6);
    // A stack that is not canonical: #SS.
    descriptors::set_stack(2, 1 << 47);
    set_gate(0x90, stub(0x90), 2, 0);
    check_eq!(at(int, 0).what(), (12, 0), "IST not canonical, INT n");
    reset(0x90);
    set_gate(6, stub(6), 2, 0);
    check_eq!(
        at(address!(d_ud2), 0).what(),
        (12, 1),
        "IST not canonical, exception: EXT"
    );
    reset(6);
    descriptors::set_stack(2, stack_top(2));
    // INT n pushes no error code even for a vector that has one.
    set_gate(13, stub(0x90), 1, 0);
    let trap = at(address!(d_int_gp), 0);
    check_eq!(
        trap.frame.vector,
        0x90,
        "INT 13: no error code, taken by a stub that expects none"
    );
    check_eq!(
        trap.frame.cs,
        u64::from(KERNEL_CS),
        "INT 13: frame where it belongs"
    );
    reset(13);
}

/// Table 6-5: which two make a double fault.
fn double_faults() {
    section("6.15 double fault");
    let broken = |vector: u8| set_raw_gate(vector, stub(vector), KERNEL_CS, 1, 0x0e);
    broken(0);
    let trap = at(address!(d_divide), 0);
    reset(0);
    check_eq!(trap.what(), (8, 0), "#DE, then #NP");
    broken(13);
    let trap = at(address!(d_general), 0);
    reset(13);
    check_eq!(trap.what(), (8, 0), "#GP, then #NP");
    broken(14);
    let trap = at(address!(d_page), 0x7000_0000_0000);
    reset(14);
    check_eq!(trap.what(), (8, 0), "#PF, then #NP");
    // A page fault on the way of delivering a contributory exception is no double fault.
    descriptors::set_stack(2, 0x6000_0000_0000);
    set_gate(0, stub(0), 2, 0);
    let trap = at(address!(d_divide), 0);
    reset(0);
    check_eq!(
        trap.frame.vector,
        14,
        "#DE, then #PF: the page fault is delivered"
    );
    check_eq!(
        trap.frame.error_code,
        2,
        "4.7: a write of the processor's own, supervisor"
    );
    check!(
        (0x5fff_ffff_ff00..0x6000_0000_0000).contains(&trap.cr2),
        "CR2 {:x} below the stack",
        trap.cr2
    );
    set_gate(14, stub(14), 2, 0);
    let trap = at(address!(d_page), 0x7000_0000_0000);
    reset(14);
    check_eq!(trap.what(), (8, 0), "#PF, then #PF");
    descriptors::set_stack(2, stack_top(2));
}
