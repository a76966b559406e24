//! The APIC-access page and the TPR shadow (chapter 30, 28.2.1).

use runtime::memory::{page, read, write};
use runtime::paging::{P, TEST_BASE, W, map, root};
use runtime::vmx::{Vm, add, capability, field, get, may, msr, primary, secondary, set};
use runtime::{address, check, check_eq, labels, section, skip, snippet};

use crate::{exits, passes};

snippet! {
    a_read: "mov eax, [rdi]", "vmcall";
    a_write: "mov [rdi], eax", "vmcall";
    a_cr8: "mov rax, cr8", "vmcall";
    a_to_cr8: "mov eax, 3", "mov cr8, rax", "a_to_cr8_1: vmcall";
    a_to_cr8_9: "mov eax, 9", "mov cr8, rax", "vmcall";
}

labels! { a_to_cr8_1 }

pub fn run(vm: &mut Vm) {
    shadow(vm);
    accesses(vm);
}

fn shadow(vm: &mut Vm) {
    section("30.1.1, 30.1.2 TPR shadow");
    if !may(capability(1), primary::TPR_SHADOW) {
        skip("TPR shadow");
        return;
    }
    let virtual_apic = page();
    let on = |tpr: u64, threshold: u64| {
        add(field::PROCESSOR_CONTROLS, primary::TPR_SHADOW);
        set(field::VIRTUAL_APIC, virtual_apic);
        write(virtual_apic + 0x80, tpr);
        set(field::TPR_THRESHOLD, threshold);
    };
    on(0x75, 0);
    passes(vm, "MOV from CR8", address!(a_cr8), 0);
    check_eq!(vm.gpr[0], 7, "CR8 of the virtual TPR");
    passes(vm, "MOV to CR8", address!(a_to_cr8), 0);
    check_eq!(read(virtual_apic + 0x80) & 0xff, 0x30, "the virtual TPR");
    check_eq!(
        runtime::cpu::read_cr8(),
        0,
        "the processor's own is another"
    );
    // Below the threshold: a trap-like exit after MOV to CR8.
    on(0x70, 5);
    let exit = vm.run(address!(a_to_cr8), 0);
    check_eq!(
        (exit.reason, exit.qualification, exit.rip),
        (43, 0, address!(a_to_cr8_1)),
        "TPR below threshold"
    );
    check_eq!(read(virtual_apic + 0x80) & 0xff, 0x30, "and written");
    on(0x70, 5);
    passes(
        vm,
        "MOV to CR8 above the threshold",
        address!(a_to_cr8_9),
        0,
    );
    vm.fill();
}

fn accesses(vm: &mut Vm) {
    section("28.2.1 APIC accesses");
    if !may(msr::SECONDARY, secondary::APIC_ACCESSES) {
        skip("APIC-access page");
        return;
    }
    let target = page();
    let address = TEST_BASE + (12 << 30);
    map(root(), address, target, 1, P | W);
    runtime::cpu::invlpg(address);
    write(target, 0xabcd);
    passes(vm, "a page like any other", address!(a_read), address);
    check_eq!(vm.gpr[0], 0xabcd, "its contents");
    let on = || {
        add(field::SECONDARY_CONTROLS, secondary::APIC_ACCESSES);
        set(field::APIC_ACCESS, target);
        if may(msr::EPT_VPID, 0) {
            runtime::vmx::invvpid(2, 0, 0);
        }
    };
    on();
    // Table 28-6: offset, access type (0 linear read, 1 linear write, 2 fetch).
    exits(vm, "read", address!(a_read), address + 0x20, (44, 0x20, 2));
    exits(
        vm,
        "write",
        address!(a_write),
        address + 0xb0,
        (44, 0xb0 | 1 << 12, 2),
    );
    let exit = vm.run(address + 0x100, 0);
    check_eq!(
        (exit.reason, exit.qualification),
        (44, 0x100 | 2 << 12),
        "fetch"
    );
    check_eq!(read(target + 0xb0), 0, "nothing written");
    if may(capability(1), primary::TPR_SHADOW) {
        // 30.2: TPR accesses are virtualized, others still exit.
        let virtual_apic = page();
        add(field::PROCESSOR_CONTROLS, primary::TPR_SHADOW);
        set(field::VIRTUAL_APIC, virtual_apic);
        set(field::TPR_THRESHOLD, 0);
        write(virtual_apic + 0x80, 0x60);
        passes(vm, "TPR read", address!(a_read), address + 0x80);
        check_eq!(vm.gpr[0], 0x60, "TPR read: the virtual one");
        vm.gpr[0] = 0x20;
        passes(vm, "TPR write", address!(a_write), address + 0x80);
        check_eq!(
            read(virtual_apic + 0x80) & 0xff,
            0x20,
            "TPR write: the virtual one"
        );
        exits(
            vm,
            "another register",
            address!(a_read),
            address + 0x30,
            (44, 0x30, 2),
        );
        set(field::TPR_THRESHOLD, 2);
        vm.gpr[0] = 0x10;
        let exit = vm.run(address!(a_write), address + 0x80);
        check_eq!(
            (exit.reason, exit.rip),
            (43, address!(a_write) + 2),
            "TPR write below the threshold"
        );
    }
    vm.fill();
    check!(get(field::SECONDARY_CONTROLS) == 0, "controls put back");
}
