//! Exits while an event is being delivered: IDT-vectoring information (28.2.4).

use runtime::descriptors::{self, KERNEL_CS, set_raw_gate, stub};
use runtime::memory::page;
use runtime::paging::{self, P, W, root};
use runtime::vmx::{Vm, add, field, get, may, msr, secondary, set};
use runtime::{address, check_eq, section, skip, snippet};

use crate::{
    CODE, EXTERNAL, HARDWARE, NMI, PRIVILEGED, SOFTWARE_EXCEPTION, SOFTWARE_INTERRUPT, VALID,
    j_end, j_handler,
};

snippet! {
    v_int: "int 0x60", "vmcall";
    v_int3: "int3", "vmcall";
    v_ud: "ud2", "vmcall";
    v_page: "mov rax, [rdi]", "vmcall";
    v_divide: "xor ecx, ecx", "xor edx, edx", "div ecx", "vmcall";
}

fn not_present(vector: u8) {
    set_raw_gate(vector, address!(j_handler), KERNEL_CS, 0, 0x0e);
}

fn restore(vector: u8) {
    let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
    descriptors::set_gate(vector, stub(vector), 1, dpl);
}

pub fn run(vm: &mut Vm) {
    injected(vm);
    raised(vm);
    double(vm);
    stacks(vm);
    ept(vm);
}

/// The injected event meets a gate that is not present: #NP exits.
fn injected(vm: &mut Vm) {
    section("28.2.4 exceptions in the delivery of injected events");
    for (name, info, vector, error, length, ext) in [
        ("external interrupt", EXTERNAL | 0x55, 0x55, 0, 0, 1),
        ("NMI", NMI | 2, 2, 0, 0, 1),
        ("#UD", HARDWARE | 6, 6, 0, 0, 1),
        ("INT n", SOFTWARE_INTERRUPT | 0x60, 0x60, 0, 2, 0),
        ("INT3", SOFTWARE_EXCEPTION | 3, 3, 0, 1, 0),
        ("INT1", PRIVILEGED | 1, 1, 0, 1, 1),
    ] {
        not_present(vector);
        set(field::ENTRY_INFO, VALID | info);
        set(field::ENTRY_ERROR, error);
        set(field::ENTRY_LENGTH, length);
        set(field::GUEST_RIP, address!(j_end));
        set(field::GUEST_RFLAGS, 0x202);
        let exit = vm.go();
        check_eq!(
            exit.map(|e| (e.reason, e.info)),
            Ok((0, VALID | HARDWARE | CODE | 11)),
            "{name}: #NP exits"
        );
        check_eq!(
            exit.map(|e| e.error),
            Ok(u64::from(vector) * 8 + 2 + ext),
            "{name}: its error code, EXT"
        );
        check_eq!(
            exit.map(|e| e.idt_info),
            Ok(VALID | info),
            "{name}: IDT-vectoring information"
        );
        check_eq!(
            exit.map(|e| e.rip),
            Ok(address!(j_end)),
            "{name}: RIP as before the event"
        );
        if length != 0 {
            check_eq!(
                exit.map(|e| e.length),
                Ok(length),
                "{name}: instruction length"
            );
        }
        restore(vector);
        vm.fill();
    }
}

/// The same for events the guest raises itself.
fn raised(vm: &mut Vm) {
    section("28.2.4 exceptions in the delivery of the guest's own events");
    not_present(0x60);
    let exit = vm.run(address!(v_int), 0);
    restore(0x60);
    check_eq!(
        (exit.reason, exit.info, exit.error),
        (0, VALID | HARDWARE | CODE | 11, 0x60 * 8 + 2),
        "INT n, then #NP"
    );
    check_eq!(
        (exit.idt_info, exit.length),
        (VALID | SOFTWARE_INTERRUPT | 0x60, 2),
        "INT n: information, length"
    );
    check_eq!(exit.rip, address!(v_int), "INT n: RIP");
    set(field::EXCEPTION_BITMAP, 1 << 11);
    not_present(3);
    let exit = vm.run(address!(v_int3), 0);
    restore(3);
    check_eq!(
        (exit.idt_info, exit.length),
        (VALID | SOFTWARE_EXCEPTION | 3, 1),
        "INT3, then #NP"
    );
    not_present(6);
    let exit = vm.run(address!(v_ud), 0);
    restore(6);
    check_eq!(
        (exit.idt_info, exit.error),
        (VALID | HARDWARE | 6, 6 * 8 + 3),
        "#UD, then #NP"
    );
    check_eq!(exit.rip, address!(v_ud), "#UD: RIP");
    vm.fill();
}

/// A double fault that exits is not considered to happen during the delivery of the first event (28.2.4).
fn double(vm: &mut Vm) {
    section("28.2.4 double faults");
    set(field::EXCEPTION_BITMAP, 1 << 8);
    not_present(0);
    let exit = vm.run(address!(v_divide), 0);
    restore(0);
    check_eq!(
        (exit.reason, exit.info, exit.error),
        (0, VALID | HARDWARE | CODE | 8, 0),
        "#DE, #NP: #DF exits"
    );
    check_eq!(
        exit.idt_info & VALID,
        0,
        "#DE: no IDT-vectoring information"
    );
    not_present(14);
    let exit = vm.run(address!(v_page), 0x6_0000_0000);
    restore(14);
    check_eq!(
        (exit.reason, exit.info & 0xff),
        (0, 8),
        "#PF, #NP: #DF exits"
    );
    check_eq!(
        exit.idt_info & VALID,
        0,
        "#PF: no IDT-vectoring information"
    );
    // A fault in the delivery of #DF itself: triple fault, no vectoring information asked for.
    set(field::EXCEPTION_BITMAP, 0);
    not_present(0);
    not_present(8);
    let exit = vm.run(address!(v_divide), 0);
    restore(0);
    restore(8);
    check_eq!(exit.reason, 2, "#DE, #NP, #NP: triple fault");
    vm.fill();
}

/// A page fault at the handler's stack.
fn stacks(vm: &mut Vm) {
    section("28.2.4 page faults in delivery");
    descriptors::set_stack(2, 0x6000_0000_0000);
    descriptors::set_gate(0x60, address!(j_handler), 2, 0);
    let exit = vm.run(address!(v_int), 0);
    check_eq!(
        (exit.reason, exit.info & 0xff, exit.error),
        (0, 14, 2),
        "INT n, then #PF"
    );
    check_eq!(exit.qualification & !0xff, 0x5fff_ffff_ff00, "its address");
    check_eq!(
        (exit.idt_info, exit.length),
        (VALID | SOFTWARE_INTERRUPT | 0x60, 2),
        "INT n: information, length"
    );
    descriptors::set_stack(2, descriptors::stack_top(2));
    restore(0x60);
}

/// EPT violations in delivery: the IDT, the stack.
fn ept(vm: &mut Vm) {
    if !may(msr::SECONDARY, secondary::EPT) {
        skip("EPT");
        return;
    }
    section("28.2.4 EPT violations in delivery");
    // Identity by 1-GiB or 2-MiB pages, but for one page of stack.
    let tables = page();
    let directories = page();
    runtime::memory::write(tables, directories | 7);
    for i in 0..4u64 {
        let directory = page();
        runtime::memory::write(directories + 8 * i, directory | 7);
        for j in 0..512u64 {
            runtime::memory::write(directory + 8 * j, (i << 30 | j << 21) | 7 | 6 << 3 | 1 << 7);
        }
    }
    // A guest-physical page beyond: not mapped at first.
    let gpa = 5 << 30;
    let stack_memory = page();
    let linear = paging::TEST_BASE + (60 << 30);
    paging::map(root(), linear, gpa, 1, P | W);
    let leaf_directory = page();
    let leaf_table = page();
    runtime::memory::write(directories + 8 * 5, leaf_directory | 7);
    runtime::memory::write(leaf_directory, leaf_table | 7);
    add(field::SECONDARY_CONTROLS, secondary::EPT);
    set(field::EPTP, tables | 6 | 3 << 3);
    runtime::vmx::invept(2, 0, 0);
    descriptors::set_stack(2, linear + 4096);
    descriptors::set_gate(0x60, address!(j_handler), 2, 0);
    descriptors::set_gate(6, address!(j_handler), 2, 0);
    let exit = vm.run(address!(v_int), 0);
    check_eq!(exit.reason, 48, "INT n: its stack is not there");
    check_eq!(
        (exit.idt_info, exit.length),
        (VALID | SOFTWARE_INTERRUPT | 0x60, 2),
        "INT n: information, length"
    );
    check_eq!(
        get(field::GUEST_PHYSICAL) & !0xfff,
        gpa,
        "guest-physical address"
    );
    check_eq!(
        exit.qualification & 0x183,
        0x182,
        "a write of the access itself"
    );
    check_eq!(exit.rip, address!(v_int), "RIP");
    // The hypervisor maps it and injects the event again (a fault first, then what it injected).
    runtime::memory::write(leaf_table, stack_memory | 7 | 6 << 3);
    set(field::ENTRY_INFO, exit.idt_info);
    set(field::ENTRY_LENGTH, exit.length);
    let again = vm.go();
    check_eq!(
        again.map(|e| (e.reason, e.rip)),
        Ok((18, address!(j_handler) + 5)),
        "delivered when injected again"
    );
    check_eq!(
        runtime::memory::read(stack_memory + 4096 - 40),
        address!(v_int) + 2,
        "RIP pushed: after INT n"
    );
    // A hardware exception.
    runtime::memory::write(leaf_table, 0);
    runtime::vmx::invept(2, 0, 0);
    set(field::EXCEPTION_BITMAP, 0);
    let exit = vm.run(address!(v_ud), 0);
    check_eq!(
        (exit.reason, exit.idt_info),
        (48, VALID | HARDWARE | 6),
        "#UD: its stack is not there"
    );
    runtime::memory::write(leaf_table, stack_memory | 7 | 6 << 3);
    set(field::ENTRY_INFO, exit.idt_info);
    let again = vm.go();
    check_eq!(
        again.map(|e| e.reason),
        Ok(18),
        "delivered when injected again"
    );
    check_eq!(
        runtime::memory::read(stack_memory + 4096 - 40),
        address!(v_ud),
        "RIP pushed: of UD2"
    );
    descriptors::set_stack(2, descriptors::stack_top(2));
    restore(0x60);
    restore(6);
    vm.fill();
}
