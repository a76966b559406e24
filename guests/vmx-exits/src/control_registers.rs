//! Control-register accesses: Table 28-3, masks and shadows (26.3), CR3 targets.

use runtime::cpu;
use runtime::vmx::{Vm, add, capability, field, get, may, primary, remove, set};
use runtime::{address, check, check_eq, section, skip, snippet};

use crate::{exits, passes, raises};

snippet! {
    c_to_cr0: "mov cr0, rdi", "vmcall";
    c_from_cr0: "mov rcx, cr0", "vmcall";
    c_to_cr4: "mov cr4, rdi", "vmcall";
    c_from_cr4: "mov rdx, cr4", "vmcall";
    c_to_cr3: "mov cr3, rdi", "vmcall";
    c_from_cr3: "mov r15, cr3", "vmcall";
    c_to_cr8: "mov cr8, rdi", "vmcall";
    c_from_cr8: "mov rsi, cr8", "vmcall";
    c_clts: "clts", "vmcall";
    c_lmsw: "lmsw di", "vmcall";
    c_lmsw_memory: "lmsw [rdi]", "vmcall";
    c_smsw: "smsw rcx", "vmcall";
}

const CR0: u64 = 28;

pub fn run(vm: &mut Vm) {
    masks(vm);
    cr3(vm);
    cr8(vm);
    words(vm);
}

fn masks(vm: &mut Vm) {
    section("26.3, 28.2.1 CR0 and CR4, masks and shadows");
    let cr0 = get(field::GUEST_CR0);
    passes(vm, "MOV from CR0, no mask", address!(c_from_cr0), 0);
    check_eq!(vm.gpr[1], cr0, "CR0 as it is");
    passes(vm, "MOV to CR0, no mask", address!(c_to_cr0), cr0 | 8);
    check_eq!(get(field::GUEST_CR0), cr0 | 8, "CR0 written");
    vm.fill();
    // A masked bit is read from the shadow, and a write that differs from the shadow exits.
    set(field::CR0_MASK, 0x8001_0008);
    set(field::CR0_SHADOW, 0x0000_0008);
    passes(vm, "MOV from CR0, masked", address!(c_from_cr0), 0);
    check_eq!(
        vm.gpr[1],
        cr0 & !0x8001_0008 | 8,
        "masked bits of the shadow"
    );
    let value = cr0 & !0x8001_0008 | 8;
    passes(
        vm,
        "MOV to CR0 as the shadow has it",
        address!(c_to_cr0),
        value,
    );
    check_eq!(get(field::GUEST_CR0), cr0, "masked bits keep their value");
    exits(
        vm,
        "MOV to CR0 against the shadow",
        address!(c_to_cr0),
        cr0,
        (CR0, 7 << 8, 3),
    );
    vm.fill();
    let cr4 = get(field::GUEST_CR4);
    set(field::CR4_MASK, 1 << 13);
    set(field::CR4_SHADOW, 0);
    passes(vm, "MOV from CR4, masked", address!(c_from_cr4), 0);
    check_eq!(vm.gpr[2], cr4 & !(1 << 13), "VMXE hidden");
    passes(
        vm,
        "MOV to CR4 as the shadow has it",
        address!(c_to_cr4),
        cr4 & !(1 << 13) | 4,
    );
    check_eq!(get(field::GUEST_CR4), cr4 | 4, "VMXE kept, TSD written");
    exits(
        vm,
        "MOV to CR4 against the shadow",
        address!(c_to_cr4),
        cr4,
        (CR0, 4 | 7 << 8, 3),
    );
    vm.fill();
    // 26.1.1: faults come before exits where they are about the value or the privilege.
    raises(
        vm,
        "MOV to CR4, VMXE cleared, no mask",
        address!(c_to_cr4),
        cr4 & !(1 << 13),
        13,
    );
    raises(
        vm,
        "MOV to CR0, NE cleared, no mask",
        address!(c_to_cr0),
        cr0 & !(1 << 5),
        13,
    );
    raises(
        vm,
        "MOV to CR0, PG without PE",
        address!(c_to_cr0),
        cr0 & !1,
        13,
    );
}

fn cr3(vm: &mut Vm) {
    section("28.2.1 CR3, CR3-target values");
    let root = get(field::GUEST_CR3);
    let forced = cpu::read_msr(capability(1));
    if forced & u64::from(primary::CR3_LOAD) == 0 {
        remove(
            field::PROCESSOR_CONTROLS,
            primary::CR3_LOAD | primary::CR3_STORE,
        );
        passes(vm, "MOV to CR3", address!(c_to_cr3), root);
        passes(vm, "MOV from CR3", address!(c_from_cr3), 0);
        check_eq!(vm.gpr[15], root, "CR3");
    }
    add(
        field::PROCESSOR_CONTROLS,
        primary::CR3_LOAD | primary::CR3_STORE,
    );
    exits(
        vm,
        "MOV to CR3",
        address!(c_to_cr3),
        root,
        (CR0, 3 | 7 << 8, 3),
    );
    exits(
        vm,
        "MOV from CR3",
        address!(c_from_cr3),
        0,
        (CR0, 3 | 1 << 4 | 15 << 8, 4),
    );
    set(field::CR3_TARGET_COUNT, 2);
    set(field::CR3_TARGET_0, 0x1000);
    set(field::CR3_TARGET_0 + 2, root);
    passes(vm, "MOV to CR3 of a target", address!(c_to_cr3), root);
    set(field::CR3_TARGET_COUNT, 1);
    exits(
        vm,
        "MOV to CR3 of a target that does not count",
        address!(c_to_cr3),
        root,
        (CR0, 3 | 7 << 8, 3),
    );
    vm.fill();
}

fn cr8(vm: &mut Vm) {
    section("28.2.1 CR8");
    if !may(capability(1), primary::CR8_LOAD | primary::CR8_STORE) {
        skip("CR8 exiting");
        return;
    }
    passes(vm, "MOV to CR8", address!(c_to_cr8), 0);
    add(
        field::PROCESSOR_CONTROLS,
        primary::CR8_LOAD | primary::CR8_STORE,
    );
    exits(
        vm,
        "MOV to CR8",
        address!(c_to_cr8),
        5,
        (CR0, 8 | 7 << 8, 4),
    );
    exits(
        vm,
        "MOV from CR8",
        address!(c_from_cr8),
        0,
        (CR0, 8 | 1 << 4 | 6 << 8, 4),
    );
    check!(cpu::read_cr8() == 0, "not written");
    vm.fill();
}

fn words(vm: &mut Vm) {
    section("28.2.1 CLTS, LMSW, SMSW");
    let cr0 = get(field::GUEST_CR0);
    set(field::GUEST_CR0, cr0 | 8);
    passes(vm, "CLTS", address!(c_clts), 0);
    check_eq!(get(field::GUEST_CR0), cr0 & !8, "TS cleared");
    vm.fill();
    set(field::CR0_MASK, 8);
    set(field::CR0_SHADOW, 8);
    exits(
        vm,
        "CLTS, masked and set in the shadow",
        address!(c_clts),
        0,
        (CR0, 2 << 4, 2),
    );
    set(field::CR0_SHADOW, 0);
    set(field::GUEST_CR0, cr0 | 8);
    passes(
        vm,
        "CLTS, masked and clear in the shadow",
        address!(c_clts),
        0,
    );
    check_eq!(get(field::GUEST_CR0) & 8, 8, "TS unchanged");
    vm.fill();
    passes(vm, "LMSW", address!(c_lmsw), 0xb);
    check_eq!(get(field::GUEST_CR0) & 15, 0xb, "LMSW: PE, MP, TS");
    vm.fill();
    set(field::CR0_MASK, 8);
    set(field::CR0_SHADOW, 0);
    exits(
        vm,
        "LMSW that sets a masked bit",
        address!(c_lmsw),
        0xb,
        (CR0, 3 << 4 | 0xb << 16, 3),
    );
    let memory = runtime::memory::page();
    runtime::memory::write(memory, 0xb);
    let exit = exits(
        vm,
        "LMSW of memory",
        address!(c_lmsw_memory),
        memory,
        (CR0, 3 << 4 | 1 << 6 | 0xb << 16, 3),
    );
    check_eq!(
        get(field::GUEST_LINEAR),
        memory,
        "LMSW of memory: guest-linear address"
    );
    let _ = exit;
    passes(vm, "LMSW as the shadow has it", address!(c_lmsw), 0x3);
    passes(vm, "SMSW", address!(c_smsw), 0);
    check_eq!(
        vm.gpr[1] & 0xffff,
        get(field::GUEST_CR0) & 0xfff7,
        "SMSW reads the shadow"
    );
    vm.fill();
}
