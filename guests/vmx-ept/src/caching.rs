//! Large pages, other mappings, INVEPT, VPIDs (29.4).

use runtime::memory::{page, pages, read, write, write_bytes};
use runtime::paging;
use runtime::vmx::{self, Vm, add, field, get, may, msr, secondary, set};
use runtime::{address, check_eq, cpu, section, skip, snippet};

use crate::{ALL, Ept, READ, WB, WRITE, linear, p_read, p_write};

snippet! {
    c_two: "mov rax, [rdi]", "vmcall", "mov rax, [rdi]", "vmcall";
    c_fetch: "call rdi", "vmcall";
    c_cr3: "mov rcx, cr3", "mov rax, [rdi]", "mov cr3, rcx", "vmcall", "mov rax, [rdi]", "mov cr3, rcx", "mov rax, [rdi]", "vmcall";
    c_invlpg: "mov rax, [rdi]", "vmcall", "invlpg [rdi]", "mov rax, [rdi]", "vmcall";
}

pub fn run(vm: &mut Vm, ept: &Ept) {
    large(vm, ept);
    mappings(vm, ept);
    invalidation(vm, ept);
    vpids(vm, ept);
}

fn large(vm: &mut Vm, ept: &Ept) {
    section("29.3.2 large pages");
    let capabilities = cpu::read_msr(msr::EPT_VPID);
    let target = page();
    write(target + 0x40, 0x5555);
    let address = linear(target);
    let slot = paging::entry(paging::root(), address, 1);
    for (level, offered) in [(2u32, capabilities >> 16 & 1), (3, capabilities >> 17 & 1)] {
        if offered == 0 {
            skip("a size of large pages");
            continue;
        }
        // Physical 0 on, seen from guest-physical 256 GiB on.
        let gpa = 0x40_0000_0000 + (u64::from(level) << 33);
        ept.map(gpa, 0, level, ALL | WB);
        write(slot, (gpa + target) | paging::P | paging::W);
        ept.invalidate();
        vm.run(address!(p_read), address + 0x40);
        check_eq!(vm.gpr[0], 0x5555, "level {level}: read");
        let exit = ept.with(gpa, level, READ | WB | crate::LEAF, || {
            vm.run(address!(p_write), address + 0x40)
        });
        check_eq!(
            (exit.reason, get(field::GUEST_PHYSICAL)),
            (48, gpa + target + 0x40),
            "level {level}: violation"
        );
        check_eq!(
            exit.qualification & 0x3f,
            WRITE | READ << 3,
            "level {level}: qualification"
        );
    }
    write(slot, target | paging::P | paging::W);
}

/// Guest-physical memory elsewhere; code through it.
fn mappings(vm: &mut Vm, ept: &Ept) {
    section("29.3.2 other mappings");
    let two = pages(2, 4096);
    let gpa = 0x30_0000_0000;
    let address = linear(0);
    write(
        paging::entry(paging::root(), address, 1),
        gpa | paging::P | paging::W,
    );
    for i in 0..2 {
        // mov eax, imm32 ; ret
        write_bytes(two + 4096 * i, &[0xb8, 1 + i as u8, 0, 0, 0, 0xc3]);
    }
    for i in 0..10 {
        ept.map(gpa, two + 4096 * (i & 1), 1, ALL | WB);
        ept.invalidate();
        let exit = vm.run(address!(c_fetch), address);
        check_eq!(
            (exit.reason, vm.gpr[0]),
            (18, 1 + (i & 1)),
            "code of other memory"
        );
    }
    // A guest's store changes the host's memory and the other way round.
    vm.run(address!(p_write), address + 0x100);
    check_eq!(read(two + 4096 + 0x100), address + 0x100, "a store");
    write(two + 4096 + 0x100, 77);
    vm.run(address!(p_read), address + 0x100);
    check_eq!(vm.gpr[0], 77, "a load");
    // A hypervisor that changes the guest's code between two runs.
    for i in 0..5u8 {
        write_bytes(two + 4096 + 1, &[0x10 + i]);
        vm.run(address!(c_fetch), address);
        check_eq!(vm.gpr[0], u64::from(0x10 + i), "code changed by the host");
    }
}

fn invalidation(vm: &mut Vm, ept: &Ept) {
    section("29.4.3 invalidation");
    let two = pages(2, 4096);
    write(two, 1);
    write(two + 4096, 2);
    let gpa = 0x31_0000_0000;
    let address = linear(0);
    let slot = paging::entry(paging::root(), address, 1);
    write(slot, gpa | paging::P | paging::W);
    let eptp = get(field::EPTP);
    for (name, kind) in [("one context", 1), ("all contexts", 2)] {
        ept.map(gpa, two, 1, ALL | WB);
        vmx::invept(kind, eptp, 0);
        vm.run(address!(c_two), address);
        check_eq!(vm.gpr[0], 1, "before");
        ept.map(gpa, two + 4096, 1, ALL | WB);
        vmx::invept(kind, eptp, 0);
        let exit = vm.skip().map(|e| e.reason);
        check_eq!((exit, vm.gpr[0]), (Ok(18), 2), "INVEPT, {name}");
    }
    // 29.4.3.1: an EPT violation invalidates what it used: rights given lazily.
    ept.map(gpa, two, 1, READ | WB);
    ept.invalidate();
    check_eq!(
        vm.run(address!(p_write), address).reason,
        48,
        "a write that is not allowed"
    );
    ept.map(gpa, two, 1, ALL | WB);
    check_eq!(
        vm.run(address!(p_write), address).reason,
        18,
        "29.4.3.1: allowed, without INVEPT"
    );
    // What is not present is not kept.
    ept.map(gpa, two, 1, 0);
    ept.invalidate();
    check_eq!(vm.run(address!(p_read), address).reason, 48, "not present");
    ept.map(gpa, two, 1, ALL | WB);
    check_eq!(
        vm.run(address!(p_read), address).reason,
        18,
        "present, without INVEPT"
    );
    // Another EPTP is another context.
    write(two, 1);
    let other = Ept::identity();
    other.map(gpa, two + 4096, 1, ALL | WB);
    for _ in 0..3 {
        set(field::EPTP, ept.pointer(0));
        vm.run(address!(p_read), address);
        let first = vm.gpr[0];
        set(field::EPTP, other.pointer(0));
        vm.run(address!(p_read), address);
        check_eq!((first, vm.gpr[0]), (1, 2), "two contexts");
    }
    set(field::EPTP, ept.pointer(0));
    // Without VPID, entries and exits invalidate linear mappings of the guest (29.4.3.1).
    write(slot, two | paging::P | paging::W);
    vm.run(address!(c_two), address);
    let first = vm.gpr[0];
    write(slot, (two + 4096) | paging::P | paging::W);
    let exit = vm.skip().map(|e| e.reason);
    check_eq!(
        (first, exit, vm.gpr[0]),
        (1, Ok(18), 2),
        "no VPID: an exit and an entry invalidate"
    );
}

fn vpids(vm: &mut Vm, _ept: &Ept) {
    if !may(msr::SECONDARY, secondary::VPID) {
        skip("VPID");
        return;
    }
    section("29.4.3.3 VPIDs");
    let two = pages(2, 4096);
    write(two, 1);
    write(two + 4096, 2);
    let address = linear(two);
    let slot = paging::entry(paging::root(), address, 1);
    add(field::SECONDARY_CONTROLS, secondary::VPID);
    set(field::VPID, 5);
    let capabilities = cpu::read_msr(msr::EPT_VPID);
    for (name, kind, bit) in [
        ("individual address", 0, 40),
        ("single context", 1, 41),
        ("all contexts", 2, 42),
        ("single context, globals kept", 3, 43),
    ] {
        if capabilities >> bit & 1 == 0 {
            skip("a type of INVVPID");
            continue;
        }
        write(slot, two | paging::P | paging::W);
        vmx::invvpid(2, 0, 0);
        vm.run(address!(c_two), address);
        check_eq!(vm.gpr[0], 1, "{name}: before");
        write(slot, (two + 4096) | paging::P | paging::W);
        check_eq!(
            vmx::invvpid(kind, 5, address),
            vmx::Answer::Succeeded,
            "{name}: INVVPID"
        );
        let exit = vm.skip().map(|e| e.reason);
        check_eq!((exit, vm.gpr[0]), (Ok(18), 2), "{name}: after");
    }
    // The guest's own invalidation works on its VPID.
    for (name, function) in [
        ("INVLPG", address!(c_invlpg)),
        ("MOV to CR3", address!(c_cr3)),
    ] {
        write(slot, two | paging::P | paging::W);
        vmx::invvpid(2, 0, 0);
        vm.run(function, address);
        check_eq!(vm.gpr[0], 1, "{name}: before");
        write(slot, (two + 4096) | paging::P | paging::W);
        let exit = vm.skip().map(|e| e.reason);
        check_eq!((exit, vm.gpr[0]), (Ok(18), 2), "{name} in the guest");
    }
    // Two VPIDs with roots of their own.
    let other = paging::new_root();
    paging::map(other, address, two + 4096, 1, paging::P | paging::W);
    write(slot, two | paging::P | paging::W);
    vmx::invvpid(2, 0, 0);
    let root = paging::root();
    for _ in 0..3 {
        set(field::VPID, 5);
        set(field::GUEST_CR3, root);
        vm.run(address!(p_read), address);
        let first = vm.gpr[0];
        set(field::VPID, 6);
        set(field::GUEST_CR3, other);
        vm.run(address!(p_read), address);
        check_eq!((first, vm.gpr[0]), (1, 2), "each VPID its own");
        check_eq!(read(address), 1, "and the host's");
    }
    vm.fill();
}
