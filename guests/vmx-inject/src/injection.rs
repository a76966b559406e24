//! Events the entry delivers (27.6.1) or makes pending (27.7).

use runtime::cpu;
use runtime::descriptors;
use runtime::paging::user_address;
use runtime::vmx::{Vm, capability, field, get, may, pin, set};
use runtime::{address, check_eq, section, skip};

use crate::{
    CODE, EXTERNAL, HARDWARE, NMI, PRIVILEGED, SOFTWARE_EXCEPTION, SOFTWARE_INTERRUPT, VALID,
    handled, j_end, stacked, with_handler,
};

const RF: u64 = 1 << 16;

pub fn run(vm: &mut Vm) {
    kinds(vm);
    pages(vm);
    privilege(vm);
    blocking(vm);
    traps(vm);
}

fn enter(vm: &mut Vm, info: u64, error: u64, length: u64, flags: u64) -> u64 {
    set(field::ENTRY_INFO, VALID | info);
    set(field::ENTRY_ERROR, error);
    set(field::ENTRY_LENGTH, length);
    set(field::GUEST_RIP, address!(j_end));
    set(field::GUEST_RSP, vm.stack - 8);
    set(field::GUEST_RFLAGS, flags);
    vm.gpr[0] = 0;
    vm.go().map_or(u64::MAX, |e| e.reason)
}

fn kinds(vm: &mut Vm) {
    section("27.6.1 injected events go through the guest's IDT");
    let rip = address!(j_end);
    for (name, info, vector, error, length, flags, pushed) in [
        (
            "external interrupt",
            EXTERNAL | 0x55,
            0x55,
            None,
            0,
            0x202,
            rip,
        ),
        ("NMI", NMI | 2, 2, None, 0, 2, rip),
        ("#UD", HARDWARE | 6, 6, None, 0, 2, rip),
        ("#DE", HARDWARE, 0, None, 0, 2, rip),
        ("#GP", HARDWARE | CODE | 13, 13, Some(0x1234), 0, 2, rip),
        ("#PF", HARDWARE | CODE | 14, 14, Some(6), 0, 2, rip),
        ("#DB", HARDWARE | 1, 1, None, 0, 2, rip),
        (
            "INT n",
            SOFTWARE_INTERRUPT | 0x60,
            0x60,
            None,
            2,
            2,
            rip + 2,
        ),
        (
            "INT n of 13",
            SOFTWARE_INTERRUPT | 13,
            13,
            None,
            2,
            2,
            rip + 2,
        ),
        ("INT3", SOFTWARE_EXCEPTION | 3, 3, None, 1, 2, rip + 1),
        ("INT1", PRIVILEGED | 1, 1, None, 1, 2, rip + 1),
    ] {
        with_handler(vector, || {
            let reason = enter(vm, info, error.unwrap_or(0), length, flags);
            check_eq!(
                (reason, get(field::GUEST_RIP)),
                (18, handled()),
                "{name}: delivered"
            );
            let base = u64::from(error.is_some());
            if let Some(code) = error {
                check_eq!(stacked(0), code, "{name}: error code");
            }
            check_eq!(stacked(base), pushed, "{name}: RIP pushed");
            check_eq!(
                stacked(base + 1),
                u64::from(descriptors::KERNEL_CS),
                "{name}: CS pushed"
            );
            check_eq!(stacked(base + 2) & !RF, flags, "{name}: RFLAGS pushed");
            check_eq!(stacked(base + 3), vm.stack - 8, "{name}: RSP pushed");
            check_eq!(
                get(field::GUEST_RFLAGS) & 0x200,
                0,
                "{name}: IF cleared by the gate"
            );
            check_eq!(
                get(field::ENTRY_INFO) & VALID,
                0,
                "{name}: valid bit cleared by the exit"
            );
            // 27.6.1.2: an injected exception does not look at the bitmap (all ones here).
            let shadow = get(field::INTERRUPTIBILITY);
            let expected = if info == NMI | 2 { 8 } else { 0 };
            check_eq!(shadow, expected, "{name}: interruptibility");
            vm.fill();
        });
    }
}

fn pages(vm: &mut Vm) {
    section("27.6.1.2 what injection does not change");
    cpu_write_cr2(0x1111);
    with_handler(14, || {
        enter(vm, HARDWARE | CODE | 14, 2, 0, 2);
    });
    check_eq!(
        cpu::read_cr2(),
        0x1111,
        "CR2 of an injected #PF is the hypervisor's to set"
    );
    cpu::write_dr6(0xffff_0ff0);
    with_handler(1, || {
        enter(vm, HARDWARE | 1, 0, 0, 2);
    });
    check_eq!(cpu::read_dr6(), 0xffff_0ff0, "DR6 neither");
    vm.fill();
}

fn cpu_write_cr2(value: u64) {
    // SAFETY: CR2 means nothing until the next page fault.
    unsafe { core::arch::asm!("mov cr2, {}", in(reg) value) };
}

/// A guest at CPL 3: stacks of the TSS, DPL for software events only.
fn privilege(vm: &mut Vm) {
    section("27.6.1.1 privilege");
    let user = |vm: &mut Vm, info: u64, length: u64| {
        set(field::GUEST_CS, u64::from(descriptors::USER_CS));
        set(field::GUEST_CS_ACCESS, 0xa0fb);
        set(field::GUEST_SS, u64::from(descriptors::USER_SS));
        set(field::GUEST_SS_ACCESS, 0xc0f3);
        for i in [0, 3] {
            set(field::GUEST_ES + 2 * i, u64::from(descriptors::USER_SS));
            set(field::GUEST_ES_ACCESS + 2 * i, 0xc0f3);
        }
        set(field::ENTRY_INFO, VALID | info);
        set(field::ENTRY_LENGTH, length);
        set(field::GUEST_RIP, user_address(address!(j_end)));
        set(field::GUEST_RFLAGS, 0x202);
        set(field::GUEST_RSP, user_address(vm.stack - 8));
        vm.go().map(|e| (e.reason, e.info & 0xff))
    };
    with_handler(0x61, || {
        let result = user(vm, EXTERNAL | 0x61, 0);
        check_eq!(
            (result, get(field::GUEST_RIP)),
            (Ok((18, 0)), handled()),
            "external interrupt, DPL 0"
        );
        check_eq!(
            get(field::GUEST_RSP),
            descriptors::stack_top(0) - 40,
            "stack of RSP0"
        );
        check_eq!(stacked(1), u64::from(descriptors::USER_CS), "CS pushed");
        check_eq!(stacked(4), u64::from(descriptors::USER_SS), "SS pushed");
        vm.fill();
        let result = user(vm, SOFTWARE_INTERRUPT | 0x61, 2);
        check_eq!(result, Ok((0, 13)), "INT n, DPL 0: #GP");
        check_eq!(get(field::EXIT_ERROR), 0x61 * 8 + 2, "its error code");
        // 28.2.4: it happened while the software interrupt was being delivered.
        check_eq!(
            get(field::IDT_INFO),
            VALID | SOFTWARE_INTERRUPT | 0x61,
            "IDT-vectoring information"
        );
        check_eq!(
            get(field::INSTRUCTION_LENGTH),
            2,
            "instruction length of the injected INT n"
        );
        vm.fill();
    });
}

fn blocking(vm: &mut Vm) {
    section("27.6.1.1, 27.7.1 interruptibility after injection");
    // 27.7.1: blocking by STI and by MOV SS does not survive the delivery.
    with_handler(6, || {
        set(field::INTERRUPTIBILITY, 2);
        let reason = enter(vm, HARDWARE | 6, 0, 0, 2);
        check_eq!(
            (reason, get(field::INTERRUPTIBILITY)),
            (18, 0),
            "a fault with blocking by MOV SS"
        );
        vm.fill();
        set(field::INTERRUPTIBILITY, 1);
        let reason = enter(vm, HARDWARE | 6, 0, 0, 0x202);
        check_eq!(
            (reason, get(field::INTERRUPTIBILITY)),
            (18, 0),
            "a fault with blocking by STI"
        );
        vm.fill();
    });
    // An NMI injected blocks NMIs until IRET; with virtual NMIs that is virtual-NMI blocking.
    if may(capability(0), pin::VIRTUAL_NMIS) {
        with_handler(2, || {
            set(
                field::PIN_CONTROLS,
                get(field::PIN_CONTROLS) | u64::from(pin::NMI | pin::VIRTUAL_NMIS),
            );
            let reason = enter(vm, NMI | 2, 0, 0, 2);
            check_eq!(
                (reason, get(field::INTERRUPTIBILITY)),
                (18, 8),
                "virtual-NMI blocking"
            );
            // The handler's IRET.
            let left = vm.skip().map(|e| e.reason);
            check_eq!(
                (left, get(field::INTERRUPTIBILITY)),
                (Ok(18), 0),
                "until IRET"
            );
            vm.fill();
        });
    } else {
        skip("virtual NMIs");
    }
}

/// 27.7.3: pending debug exceptions, after injection or alone.
fn traps(vm: &mut Vm) {
    section("27.7.3 pending debug exceptions");
    set(field::PENDING_DEBUG, 1 << 14 | 1 << 12);
    set(field::GUEST_RFLAGS, 0x102);
    let exit = {
        set(field::GUEST_RIP, address!(j_end));
        vm.go()
    };
    check_eq!(
        exit.map(|e| (e.reason, e.info)),
        Ok((0, VALID | HARDWARE | 1)),
        "a pending single step"
    );
    check_eq!(
        exit.map(|e| e.qualification & 0x4000),
        Ok(0x4000),
        "its qualification: BS"
    );
    check_eq!(
        get(field::GUEST_RIP),
        address!(j_end),
        "before the first instruction"
    );
    vm.fill();
    // Held by MOV SS: after one instruction.
    set(field::PENDING_DEBUG, 1 | 1 << 12);
    set(field::INTERRUPTIBILITY, 2);
    let exit = vm.start(address!(j_end), 0);
    check_eq!(
        exit.map(|e| (e.reason, e.info)),
        Ok((0, VALID | HARDWARE | 1)),
        "a pending breakpoint with MOV SS"
    );
    check_eq!(
        exit.map(|e| (e.qualification & 15, e.rip)),
        Ok((1, address!(crate::j_end_1))),
        "one instruction later"
    );
    vm.fill();
    // Discarded by the delivery of an injected fault.
    with_handler(6, || {
        set(field::PENDING_DEBUG, 1 | 1 << 12);
        let reason = enter(vm, HARDWARE | 6, 0, 0, 2);
        check_eq!(
            (reason, get(field::GUEST_RIP)),
            (18, handled()),
            "27.7.3: discarded with an injected fault"
        );
        vm.fill();
    });
}
