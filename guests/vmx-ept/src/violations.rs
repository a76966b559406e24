//! EPT violations (29.3.3.2) and their exit qualification (Table 28-7).

use runtime::memory::{page, read, write, write_bytes};
use runtime::paging;
use runtime::vmx::{Vm, field, get, msr};
use runtime::{address, check_eq, cpu, labels, section, skip, snippet};

use crate::{ALL, EXECUTE, Ept, READ, WB, WRITE, linear, memory, p_end, p_modify, p_read, p_write};

const VIOLATION: u64 = 48;
/// Bits 7 and 8: a linear address is there; it is of the access itself, not of the walk.
const LINEAR: u64 = 1 << 7;
const ACCESS: u64 = 1 << 8;

/// Bits that later processors define (advanced information) are not compared.
const COMPARED: u64 = 0x1ff | 1 << 12;

pub fn run(vm: &mut Vm, ept: &Ept) {
    accesses(vm, ept);
    walks(vm, ept);
    levels(vm, ept);
    across(vm, ept);
    others(vm, ept);
}

fn execute_only() -> bool {
    cpu::read_msr(msr::EPT_VPID) & 1 != 0
}

fn accesses(vm: &mut Vm, ept: &Ept) {
    section("29.3.3.2, table 28-7 violations by the access itself");
    let target = page();
    write_bytes(target + 0x123, &[0x0f, 0x01, 0xc1]);
    let address = linear(target);
    for rights in 0..8u64 {
        // Write without read is a misconfiguration, execute alone one where it is not offered.
        if rights & 3 == 2 || rights == EXECUTE && !execute_only() {
            continue;
        }
        for (name, function, wanted, at) in [
            ("read", address!(p_read), READ, address + 0x10),
            ("write", address!(p_write), WRITE, address + 0x10),
            (
                "read and write",
                address!(p_modify),
                READ | WRITE,
                address + 0x10,
            ),
            ("fetch", address + 0x123, EXECUTE, address + 0x123),
        ] {
            let value = target | rights | if rights == 0 { 0 } else { WB };
            let exit = ept.with(target, 1, value, || vm.run(function, at));
            let needed = wanted;
            if rights & needed == needed {
                check_eq!(exit.reason, 18, "{name} with rights {rights}");
                continue;
            }
            check_eq!(exit.reason, VIOLATION, "{name} with rights {rights}");
            let shown = get(field::QUALIFICATION) & COMPARED;
            // A read-modify-write may be reported as write, or as both (Table 28-7).
            let mut expected = wanted | rights << 3 | LINEAR | ACCESS;
            if wanted == READ | WRITE {
                expected = expected & !READ | shown & READ;
            }
            check_eq!(
                shown,
                expected,
                "{name} with rights {rights}: qualification"
            );
            check_eq!(
                get(field::GUEST_PHYSICAL),
                target + (at & 0xfff),
                "{name}: guest-physical address"
            );
            check_eq!(get(field::GUEST_LINEAR), at, "{name}: guest-linear address");
            check_eq!(exit.rip, function, "{name}: RIP");
        }
    }
    check_eq!(
        read(target),
        0,
        "nothing was written where it was not allowed"
    );
}

/// The guest's own paging structures are read, and written for accessed and dirty flags.
fn walks(vm: &mut Vm, ept: &Ept) {
    section("table 28-7 violations by the page walk");
    let target = page();
    let address = linear(target);
    let root = paging::root();
    for level in 1..=4 {
        let slot = paging::entry(root, address, level);
        let table = slot & !0xfff;
        if level == 4 {
            // The root also maps the code that runs: it must be another one to be taken away alone.
            continue;
        }
        let exit = ept.with(table, 1, 0, || vm.run(address!(p_read), address + 8));
        check_eq!(exit.reason, VIOLATION, "level {level} taken away");
        let shown = get(field::QUALIFICATION) & COMPARED;
        check_eq!(
            shown,
            READ | LINEAR,
            "level {level}: a read, not of the access itself"
        );
        check_eq!(
            get(field::GUEST_PHYSICAL),
            slot,
            "level {level}: guest-physical address of the entry"
        );
        check_eq!(
            get(field::GUEST_LINEAR),
            address + 8,
            "level {level}: linear address of the access"
        );
        // Read-only: setting the accessed flag is a write.
        write(slot, read(slot) & !(paging::A | paging::D));
        let exit = ept.with(table, 1, table | READ | WB, || {
            vm.run(address!(p_read), address + 8)
        });
        check_eq!(
            exit.reason,
            VIOLATION,
            "level {level} read-only, accessed flag to be set"
        );
        let shown = get(field::QUALIFICATION) & COMPARED & !READ;
        check_eq!(shown, WRITE | READ << 3 | LINEAR, "level {level}: a write");
        check_eq!(get(field::GUEST_PHYSICAL), slot, "level {level}: the entry");
        // With the flag set there is nothing to write.
        write(slot, read(slot) | paging::A | paging::D);
        let exit = ept.with(table, 1, table | READ | WB, || {
            vm.run(address!(p_read), address + 8)
        });
        check_eq!(exit.reason, 18, "level {level} read-only, flag set");
    }
    // A page fault of the guest comes before the violation of the page itself, after that of its tables.
    let slot = paging::entry(root, address, 1);
    let old = read(slot);
    write(slot, old & !paging::P);
    let exit = ept.with(target, 1, 0, || vm.run(address!(p_read), address));
    check_eq!(
        (exit.reason, exit.info & 0xff),
        (0, 14),
        "not present in the guest: a page fault"
    );
    write(slot, old);
    let nowhere = old & !paging::ADDRESS | 0x80_0000_0000;
    write(slot, nowhere);
    cpu::invlpg(address);
    let exit = vm.run(address!(p_read), address);
    check_eq!(
        (exit.reason, get(field::GUEST_PHYSICAL)),
        (VIOLATION, 0x80_0000_0000),
        "a guest-physical address nobody mapped"
    );
    write(slot, old);
}

/// Rights of all levels are combined.
fn levels(vm: &mut Vm, ept: &Ept) {
    section("29.3.2 rights of all levels");
    let target = page();
    let address = linear(target);
    // Guest-physical memory of its own, so that upper levels can be changed.
    let gpa = 0x70_0000_0000 + target;
    ept.map(gpa, target, 1, ALL | WB);
    let slot = paging::entry(paging::root(), address, 1);
    write(slot, gpa | paging::P | paging::W);
    ept.invalidate();
    check_eq!(vm.run(address!(p_read), address).reason, 18, "mapped");
    for level in 2..=3 {
        let old = read(ept.entry(gpa, level));
        for (name, rights, function, wanted) in [
            ("read", 0, address!(p_read), READ),
            ("write", READ, address!(p_write), WRITE),
            ("write", READ | EXECUTE, address!(p_write), WRITE),
            ("fetch", READ | WRITE, address, EXECUTE),
        ] {
            let exit = ept.with(gpa, level, old & !ALL | rights, || {
                vm.run(function, address)
            });
            check_eq!(
                exit.reason,
                VIOLATION,
                "{name}, rights {rights} in level {level}"
            );
            let shown = get(field::QUALIFICATION) & COMPARED;
            check_eq!(
                shown,
                wanted | rights << 3 | LINEAR | ACCESS,
                "{name}, level {level}: combined rights"
            );
            check_eq!(
                get(field::GUEST_PHYSICAL),
                gpa,
                "{name}, level {level}: guest-physical address"
            );
        }
    }
}

/// An access over two pages.
fn across(vm: &mut Vm, ept: &Ept) {
    section("28.2.1 accesses across pages");
    let target = memory(2);
    let first = runtime::paging::TEST_BASE + (30 << 30);
    for i in 0..2 {
        paging::map(
            paging::root(),
            first + 4096 * i,
            target + 4096 * i,
            1,
            paging::P | paging::W,
        );
    }
    let edge = first + 4096 - 4;
    let exit = ept.with(target + 4096, 1, (target + 4096) | READ | WB, || {
        vm.run(address!(p_write), edge)
    });
    check_eq!(
        (exit.reason, get(field::GUEST_PHYSICAL)),
        (VIOLATION, target + 4096),
        "the second page"
    );
    check_eq!(get(field::GUEST_LINEAR), first + 4096, "its linear address");
    check_eq!(read(target + 4088), 0, "nothing written to the first");
    let exit = ept.with(target, 1, target | READ | WB, || {
        vm.run(address!(p_write), edge)
    });
    check_eq!(
        (exit.reason, get(field::GUEST_PHYSICAL)),
        (VIOLATION, target + 4092),
        "the first page"
    );
    check_eq!(vm.run(address!(p_write), edge).reason, 18, "both");
    check_eq!(read(target + 4092 - 4) >> 32, edge & 0xffff_ffff, "written");
}

snippet! {
    v_iret: "mov eax, ss", "push rax", "lea rax, [rsp + 8]", "push rax", "pushfq", "mov eax, cs",
        "push rax", "lea rax, [rip + 2f]", "push rax", "mov rdx, rsp", "mov rsp, rdi", "v_iret_at: iretq",
        "2: vmcall";
}

labels! { v_iret_at }

/// NMI unblocking by IRET (28.2.3), MOV to CR3 with PAE paging apart.
fn others(vm: &mut Vm, ept: &Ept) {
    section("28.2.3 violations of IRET");
    let target = page();
    let address = linear(target);
    let go = |vm: &mut Vm, interruptibility: u64| {
        runtime::vmx::set(field::INTERRUPTIBILITY, interruptibility);
        ept.with(target, 1, 0, || vm.run(address!(v_iret), address))
    };
    let exit = go(vm, 0);
    check_eq!(
        (exit.reason, exit.rip),
        (VIOLATION, address!(v_iret_at)),
        "IRET's stack taken away"
    );
    check_eq!(get(field::QUALIFICATION) & 1 << 12, 0, "no NMI unblocking");
    if runtime::vmx::may(runtime::vmx::capability(0), runtime::vmx::pin::VIRTUAL_NMIS) {
        use runtime::vmx::{add, pin, remove};
        add(field::PIN_CONTROLS, pin::NMI | pin::VIRTUAL_NMIS);
        let exit = go(vm, 8);
        check_eq!(
            (exit.reason, exit.rip),
            (VIOLATION, address!(v_iret_at)),
            "with virtual-NMI blocking"
        );
        check_eq!(
            get(field::QUALIFICATION) & 1 << 12,
            1 << 12,
            "NMI unblocking due to IRET"
        );
        remove(field::PIN_CONTROLS, pin::NMI | pin::VIRTUAL_NMIS);
        runtime::vmx::set(field::INTERRUPTIBILITY, 0);
    } else {
        skip("virtual NMIs");
    }
    check_eq!(
        vm.run(address!(p_end), 0).reason,
        18,
        "the guest still runs"
    );
}
