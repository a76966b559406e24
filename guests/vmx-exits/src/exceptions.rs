//! Exceptions of the guest: the exception bitmap, page-fault masks, what is recorded (26.2, 28.2.1, 28.2.2),
//! and triple faults.

use runtime::descriptors::{self, set_raw_gate, stub};
use runtime::vmx::{Vm, field, get, set};
use runtime::{address, check_eq, labels, section, snippet};

snippet! {
    e_ud: "ud2", "vmcall";
    e_int3: "int3", "vmcall";
    e_int1: ".byte 0xf1", "vmcall";
    e_int: "int 0x60", "vmcall";
    e_gp: "mov eax, 0x1234", "mov ds, eax", "vmcall";
    e_page: "mov [rdi], rax", "vmcall";
    e_page_read: "mov rax, [rdi]", "vmcall";
    e_divide: "xor ecx, ecx", "xor edx, edx", "e_divide_at: div ecx", "vmcall";
    e_step: "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "e_step_at: nop", "vmcall";
    e_breakpoint: "mov dr0, rdi", "mov eax, 0x10002", "mov dr7, rax", "mov [rdi], al", "e_breakpoint_at: nop", "vmcall";
    // The guest's own handler.
    e_handler: "mov eax, 0x4444", "vmcall";
}

labels! { e_divide_at, e_step_at, e_breakpoint_at }

const VALID: u64 = 1 << 31;
const CODE: u64 = 1 << 11;
const HARDWARE: u64 = 3 << 8;

pub fn run(vm: &mut Vm) {
    recorded(vm);
    bitmap(vm);
    page_faults(vm);
    debug(vm);
    triple(vm);
}

fn recorded(vm: &mut Vm) {
    section("28.2.2 exceptions that exit");
    let mut go =
        |what: &str, function: u64, info: u64, error: u64, length: Option<u64>, rip: u64| {
            let exit = vm.run(function, 0);
            check_eq!(
                (exit.reason, exit.info),
                (0, VALID | info),
                "{what}: reason, information"
            );
            if info & CODE != 0 {
                check_eq!(exit.error, error, "{what}: error code");
            }
            if let Some(length) = length {
                check_eq!(exit.length, length, "{what}: instruction length");
            }
            check_eq!(exit.rip, rip, "{what}: RIP");
            check_eq!(
                exit.idt_info & VALID,
                0,
                "{what}: nothing was being delivered"
            );
        };
    go("UD2", address!(e_ud), HARDWARE | 6, 0, None, address!(e_ud));
    go(
        "DIV",
        address!(e_divide),
        HARDWARE,
        0,
        None,
        address!(e_divide_at),
    );
    go(
        "selector",
        address!(e_gp),
        HARDWARE | CODE | 13,
        0x1234,
        None,
        address!(e_gp) + 5,
    );
    // Software exceptions: RIP at the instruction, its length recorded (28.2.5).
    go(
        "INT3",
        address!(e_int3),
        6 << 8 | 3,
        0,
        Some(1),
        address!(e_int3),
    );
    go(
        "INT1",
        address!(e_int1),
        5 << 8 | 1,
        0,
        Some(1),
        address!(e_int1),
    );
}

/// The guest's IDT gets a handler of its own for `vector`.
fn with_handler(vector: u8, body: impl FnOnce()) {
    set_raw_gate(vector, address!(e_handler), descriptors::KERNEL_CS, 1, 0x8e);
    body();
    let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
    descriptors::set_gate(vector, stub(vector), 1, dpl);
}

fn bitmap(vm: &mut Vm) {
    section("25.6.3 exception bitmap");
    for (what, vector, function) in [
        ("UD2", 6, address!(e_ud)),
        ("INT3", 3, address!(e_int3)),
        ("DIV", 0, address!(e_divide)),
        ("selector", 13, address!(e_gp)),
    ] {
        with_handler(vector, || {
            set(field::EXCEPTION_BITMAP, 0xffff_ffff & !(1 << vector));
            let exit = vm.run(function, 0);
            check_eq!(
                (exit.reason, vm.gpr[0]),
                (18, 0x4444),
                "{what}: delivered to the guest"
            );
            set(field::EXCEPTION_BITMAP, 1 << vector);
            let exit = vm.run(function, 0);
            check_eq!(
                (exit.reason, exit.info & 0xff),
                (0, u64::from(vector)),
                "{what}: exits"
            );
            vm.fill();
        });
    }
    // INT n is no exception, whatever its vector.
    with_handler(0x60, || {
        let exit = vm.run(address!(e_int), 0);
        check_eq!(
            (exit.reason, vm.gpr[0]),
            (18, 0x4444),
            "INT n does not exit"
        );
    });
}

fn page_faults(vm: &mut Vm) {
    section("25.6.3, 28.2.1 page faults");
    let hole = 0x6_1234_5678;
    let exit = vm.run(address!(e_page), hole);
    check_eq!(
        (exit.reason, exit.info),
        (0, VALID | HARDWARE | CODE | 14),
        "write: information"
    );
    check_eq!(
        (exit.error, exit.qualification),
        (2, hole),
        "write: error code, linear address in the qualification"
    );
    // CR2 is not written by a page fault that exits.
    runtime::cpu::invlpg(0);
    let mut go = |mask: u64, matching: u64, bit: bool, write: bool| {
        set(field::PF_MASK, mask);
        set(field::PF_MATCH, matching);
        set(field::EXCEPTION_BITMAP, if bit { 1 << 14 } else { 0 });
        let mut reason = 0;
        with_handler(14, || {
            let function = if write {
                address!(e_page)
            } else {
                address!(e_page_read)
            };
            reason = vm.run(function, hole).reason;
        });
        vm.fill();
        reason == 0
    };
    check_eq!(
        (go(0, 0, true, true), go(0, 0, false, true)),
        (true, false),
        "mask 0, match 0: the bit decides"
    );
    check_eq!(
        (go(0, 1, true, true), go(0, 1, false, true)),
        (false, true),
        "mask 0, match 1: the bit reversed"
    );
    check_eq!(
        (go(2, 2, true, true), go(2, 2, true, false)),
        (true, false),
        "writes"
    );
    check_eq!(
        (go(2, 2, false, true), go(2, 2, false, false)),
        (false, true),
        "all but writes"
    );
    check_eq!(
        (go(3, 0, true, true), go(3, 0, true, false)),
        (false, true),
        "reads of pages not present"
    );
}

fn debug(vm: &mut Vm) {
    section("28.2.1 debug exceptions");
    let exit = vm.run(address!(e_step), 0);
    check_eq!(
        (exit.reason, exit.info),
        (0, VALID | HARDWARE | 1),
        "single step"
    );
    check_eq!(exit.qualification, 1 << 14, "single step: BS");
    check_eq!(exit.rip, address!(e_step_at), "single step: RIP");
    check_eq!(get(field::GUEST_RFLAGS) & 0x100, 0x100, "single step: TF");
    runtime::cpu::write_dr6(0xffff_0ff0);
    let memory = runtime::memory::page();
    let exit = vm.run(address!(e_breakpoint), memory);
    check_eq!(
        (exit.reason, exit.info),
        (0, VALID | HARDWARE | 1),
        "data breakpoint"
    );
    check_eq!(exit.qualification & 0x600f, 1, "data breakpoint: B0");
    check_eq!(exit.rip, address!(e_breakpoint_at), "data breakpoint: RIP");
    // 26.2: an exit does not change DR6 and leaves DR7 of the host as the exit loads it.
    check_eq!(runtime::cpu::read_dr6() & 0xf, 0, "DR6 unchanged");
    check_eq!(runtime::cpu::read_dr7(), 0x400, "28.5.1: DR7 after an exit");
    runtime::cpu::write_dr0(0);
    vm.fill();
}

fn triple(vm: &mut Vm) {
    section("26.2 triple fault");
    set(field::EXCEPTION_BITMAP, 0);
    set(field::GUEST_IDTR_LIMIT, 0);
    let exit = vm.run(address!(e_ud), 0);
    check_eq!((exit.reason, exit.qualification), (2, 0), "no IDT");
    check_eq!(exit.rip, address!(e_ud), "RIP");
    // With #DF in the bitmap the double fault is seen first.
    set(field::EXCEPTION_BITMAP, 1 << 8);
    let exit = vm.run(address!(e_ud), 0);
    check_eq!(
        (exit.reason, exit.info),
        (0, VALID | HARDWARE | CODE | 8),
        "double fault"
    );
    check_eq!(exit.error, 0, "double fault: error code");
    vm.fill();
}
