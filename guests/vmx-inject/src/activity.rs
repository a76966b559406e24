//! Activity states (27.7.2) and interrupts that come on while the guest runs.

use runtime::apic::{self, reg};
use runtime::cpu;
use runtime::vmx::{Vm, add, capability, field, get, may, pin, set};
use runtime::{address, check, check_eq, labels, section, skip, snippet};

use crate::{EXTERNAL, HARDWARE, NMI, VALID, handled, j_end, with_handler};

snippet! {
    a_hlt: "hlt", "a_hlt_1: vmcall";
    a_sti_hlt: "sti", "hlt", "a_sti_hlt_1: vmcall";
    a_open: "sti", "nop", "nop", "vmcall";
    a_spin: "2: pause", "jmp 2b";
}

labels! { a_hlt_1 }

pub fn run(vm: &mut Vm) {
    passed_through(vm);
    timed(vm);
    preempted(vm);
    shutdown(vm);
    halted(vm);
}

fn halted(vm: &mut Vm) {
    section("27.7.2 activity state");
    // An injected event ends HLT.
    with_handler(0x55, || {
        set(field::ACTIVITY, 1);
        set(field::ENTRY_INFO, VALID | EXTERNAL | 0x55);
        set(field::GUEST_RIP, address!(a_hlt_1));
        set(field::GUEST_RFLAGS, 0x202);
        let exit = vm.go().map(|e| (e.reason, e.rip));
        check_eq!(exit, Ok((18, handled())), "an injected interrupt ends HLT");
        check_eq!(get(field::ACTIVITY), 0, "active");
        vm.fill();
    });
    with_handler(2, || {
        set(field::ACTIVITY, 1);
        set(field::ENTRY_INFO, VALID | NMI | 2);
        set(field::GUEST_RIP, address!(a_hlt_1));
        let exit = vm.go().map(|e| (e.reason, e.rip));
        check_eq!(exit, Ok((18, handled())), "an injected NMI ends HLT");
        vm.fill();
    });
    // 27.3.1.5: only #DB and #MC of the exceptions.
    set(field::ACTIVITY, 1);
    set(field::ENTRY_INFO, VALID | HARDWARE | 6);
    let exit = vm.start(address!(j_end), 0).map(|e| e.reason);
    check_eq!(exit, Ok(1 << 31 | 33), "#UD cannot be injected into HLT");
    vm.fill();
    // A pending debug exception ends HLT (volume 2, HLT); the timer, so that a failure is seen to end.
    if may(capability(0), pin::PREEMPTION_TIMER) {
        add(field::PIN_CONTROLS, pin::PREEMPTION_TIMER);
        set(field::PREEMPTION_TIMER, 1 << 20);
    }
    set(field::ACTIVITY, 1);
    set(field::PENDING_DEBUG, 1 | 1 << 12);
    let exit = vm
        .start(address!(a_hlt_1), 0)
        .map(|e| (e.reason, e.info & 0xff));
    check_eq!(exit, Ok((0, 1)), "a pending debug exception ends HLT");
    vm.fill();
}

fn shutdown(vm: &mut Vm) {
    // Activity state shutdown: an NMI that exits ends it.
    if cpu::read_msr(runtime::vmx::msr::MISC) & 1 << 7 == 0 {
        skip("activity state shutdown");
        return;
    }
    set(field::ACTIVITY, 2);
    set(field::ENTRY_INFO, VALID | EXTERNAL | 0x55);
    set(field::GUEST_RFLAGS, 0x202);
    set(field::GUEST_RIP, address!(j_end));
    let exit = vm.go().map(|e| e.reason);
    check_eq!(
        exit,
        Ok(1 << 31 | 33),
        "an interrupt cannot be injected into shutdown"
    );
    vm.fill();
}

/// Interrupts that do not exit go to the guest's IDT by its IF.
fn passed_through(vm: &mut Vm) {
    section("26.2 interrupts that do not exit");
    apic::enable();
    with_handler(0x72, || {
        apic::write(reg::ICR, 1 << 18 | 0x72);
        let exit = vm.run(address!(j_end), 0);
        check_eq!(
            (exit.reason, exit.rip),
            (18, address!(crate::j_end_2)),
            "IF clear: waits"
        );
        let exit = vm.run(address!(a_open), 0);
        check_eq!(
            (exit.reason, exit.rip),
            (18, handled()),
            "IF set: the guest's handler"
        );
        apic::end_of_interrupt();
        // It ends HLT.
        apic::write(reg::DIVIDE, 0b1011);
        apic::write(reg::LVT_TIMER, 0x72);
        apic::write(reg::INITIAL_COUNT, 50_000);
        let exit = vm.run(address!(a_sti_hlt), 0);
        check_eq!((exit.reason, exit.rip), (18, handled()), "ends HLT");
        apic::end_of_interrupt();
        apic::write(reg::LVT_TIMER, 0x1_0000);
        vm.fill();
    });
}

/// The VMX-preemption timer counts in HLT and ends it, at its rate and no earlier (26.5.1, MISC bits 4:0).
fn timed(vm: &mut Vm) {
    section("26.5.1 the VMX-preemption timer in HLT");
    if !may(capability(0), pin::PREEMPTION_TIMER) {
        skip("the VMX-preemption timer");
        return;
    }
    let rate = cpu::read_msr(runtime::vmx::msr::MISC) & 31;
    // 100 ms of a TSC of 1 GHz.
    let ticks = 100_000_000 >> rate;
    for activity in [0, 1] {
        add(field::PIN_CONTROLS, pin::PREEMPTION_TIMER);
        set(field::PREEMPTION_TIMER, ticks);
        set(field::ACTIVITY, activity);
        let from = cpu::tsc();
        let exit = vm.run(address!(a_hlt), 0);
        let took = cpu::tsc().wrapping_sub(from);
        check_eq!(
            (exit.reason, get(field::ACTIVITY)),
            (52, 1),
            "it ends HLT, entered with activity state {activity}"
        );
        let least = (ticks - 1) << rate;
        check!(
            took >= least,
            "after {took} ticks of the TSC, {least} at least"
        );
        vm.fill();
    }
}

/// Injection and another exit at once: the event is delivered first (27.6.1), then the exit comes.
fn preempted(vm: &mut Vm) {
    section("27.7 order of events after an entry");
    with_handler(0x55, || {
        if may(capability(0), pin::PREEMPTION_TIMER) {
            add(field::PIN_CONTROLS, pin::PREEMPTION_TIMER);
            set(field::PREEMPTION_TIMER, 0);
            set(field::ENTRY_INFO, VALID | EXTERNAL | 0x55);
            set(field::GUEST_RIP, address!(j_end));
            set(field::GUEST_RFLAGS, 0x202);
            let exit = vm.go().map(|e| (e.reason, e.rip));
            check_eq!(
                exit,
                Ok((52, handled() - 5)),
                "timer at zero: after the delivery, before the handler"
            );
            vm.fill();
        } else {
            skip("the VMX-preemption timer");
        }
        // An external interrupt that exits.
        add(field::PIN_CONTROLS, pin::EXTERNAL_INTERRUPT);
        apic::write(reg::ICR, 1 << 18 | 0x73);
        set(field::ENTRY_INFO, VALID | EXTERNAL | 0x55);
        set(field::GUEST_RIP, address!(j_end));
        set(field::GUEST_RFLAGS, 0x202);
        let exit = vm.go().map(|e| (e.reason, e.rip, e.idt_info & VALID));
        check_eq!(
            exit,
            Ok((1, handled() - 5, 0)),
            "external interrupt: after the delivery, before the handler"
        );
        vm.fill();
    });
    runtime::trap::handle(0x73, Some(end));
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    runtime::trap::handle(0x73, None);
}

fn end(_: &mut runtime::trap::Frame) {
    apic::end_of_interrupt();
}
