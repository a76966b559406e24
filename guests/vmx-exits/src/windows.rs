//! External interrupts, interrupt and NMI windows, the preemption timer, monitor trap, activity states.

use runtime::apic::{self, reg};
use runtime::cpu;
use runtime::vmx::{Vm, add, capability, exit, field, get, may, msr, pin, primary, remove, set};
use runtime::{address, check, check_eq, labels, section, skip, snippet};

snippet! {
    w_open: "sti", "nop", "w_open_1: nop", "nop", "cli", "vmcall";
    w_spin: "2: pause", "jmp 2b";
    w_nops: "nop", "w_nops_1: nop", "nop", "vmcall";
    w_hlt: "hlt", "w_hlt_1: vmcall";
    w_iret: "mov eax, ss", "push rax", "lea rax, [rsp + 8]", "push rax", "pushfq", "mov eax, cs",
        "push rax", "lea rax, [rip + w_iret_1]", "push rax", "iretq", "w_iret_1: nop", "nop", "vmcall";
}

labels! { w_open_1, w_nops_1, w_hlt_1, w_iret_1 }

const VALID: u64 = 1 << 31;

pub fn run(vm: &mut Vm) {
    interrupts(vm);
    windows(vm);
    nmis(vm);
    timer(vm);
    trap(vm);
}

fn request(vector: u32) {
    apic::write(reg::ICR, 1 << 18 | vector);
}

fn drain() {
    runtime::trap::handle(0x71, Some(end));
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    runtime::trap::handle(0x71, None);
}

fn end(_: &mut runtime::trap::Frame) {
    apic::end_of_interrupt();
}

fn interrupts(vm: &mut Vm) {
    section("26.2 external interrupts");
    apic::enable();
    add(field::PIN_CONTROLS, pin::EXTERNAL_INTERRUPT);
    // It exits whatever the guest's IF.
    request(0x71);
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(
        (exit.reason, exit.rip),
        (1, address!(w_nops)),
        "IF clear: exits before the first instruction"
    );
    check_eq!(exit.info & VALID, 0, "not acknowledged: no information");
    check!(
        apic::bit(reg::IRR, 0x71),
        "not acknowledged: still requested"
    );
    drain();
    add(field::EXIT_CONTROLS, exit::ACKNOWLEDGE);
    request(0x71);
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(
        (exit.reason, exit.info),
        (1, VALID | 0x71),
        "acknowledged: vector, external interrupt"
    );
    check!(apic::bit(reg::ISR, 0x71), "acknowledged: in service");
    apic::end_of_interrupt();
    // Out of HLT.
    set(field::ACTIVITY, 1);
    request(0x71);
    let exit = vm.run(address!(w_hlt_1), 0);
    check_eq!(
        (exit.reason, get(field::ACTIVITY)),
        (1, 1),
        "28.1: an exit out of HLT leaves the activity state"
    );
    apic::end_of_interrupt();
    vm.fill();
    // A timer interrupt ends a loop.
    add(field::PIN_CONTROLS, pin::EXTERNAL_INTERRUPT);
    add(field::EXIT_CONTROLS, exit::ACKNOWLEDGE);
    apic::write(reg::DIVIDE, 0b1011);
    apic::write(reg::LVT_TIMER, 0x71);
    apic::write(reg::INITIAL_COUNT, 20_000);
    let exit = vm.run(address!(w_spin), 0);
    check_eq!(
        (exit.reason, exit.info),
        (1, VALID | 0x71),
        "the timer ends a loop"
    );
    apic::end_of_interrupt();
    apic::write(reg::LVT_TIMER, 0x1_0000);
    vm.fill();
}

fn windows(vm: &mut Vm) {
    section("26.2 interrupt-window exiting");
    add(field::PROCESSOR_CONTROLS, primary::INTERRUPT_WINDOW);
    let exit = vm.run(address!(w_open), 0);
    check_eq!(
        (exit.reason, exit.rip, exit.qualification),
        (7, address!(w_open_1), 0),
        "after STI and its shadow"
    );
    check_eq!(get(field::GUEST_RFLAGS) & 0x200, 0x200, "IF set");
    // Open at entry: before the first instruction.
    set(field::GUEST_RIP, address!(w_nops));
    set(field::GUEST_RFLAGS, 0x202);
    let exit = vm.go().map(|e| (e.reason, e.rip));
    check_eq!(exit, Ok((7, address!(w_nops))), "open at entry");
    // Blocked by STI or MOV SS: one instruction later.
    for blocking in [1, 2] {
        set(field::GUEST_RIP, address!(w_nops));
        set(field::GUEST_RFLAGS, 0x202);
        set(field::INTERRUPTIBILITY, blocking);
        let exit = vm.go().map(|e| (e.reason, e.rip));
        check_eq!(
            exit,
            Ok((7, address!(w_nops_1))),
            "blocking {blocking}: one instruction later"
        );
        check_eq!(get(field::INTERRUPTIBILITY), 0, "blocking {blocking}: gone");
    }
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(exit.reason, 18, "IF clear: no window");
    // 26.2: it wakes HLT.
    set(field::ACTIVITY, 1);
    set(field::GUEST_RIP, address!(w_hlt_1));
    set(field::GUEST_RFLAGS, 0x202);
    let exit = vm.go().map(|e| e.reason);
    check_eq!((exit, get(field::ACTIVITY)), (Ok(7), 1), "out of HLT");
    vm.fill();
}

fn nmis(vm: &mut Vm) {
    section("26.2 NMIs");
    if !may(capability(0), pin::NMI) {
        skip("NMI exiting");
        return;
    }
    add(field::PIN_CONTROLS, pin::NMI);
    let exit = vm.run(address!(w_send_nmi), 0);
    check_eq!(
        (exit.reason, exit.info),
        (0, VALID | 2 << 8 | 2),
        "NMI exits"
    );
    // 28.1: an NMI exit blocks NMIs until an IRET of the host.
    unblock();
    vm.fill();
    if !may(capability(0), pin::VIRTUAL_NMIS) {
        skip("virtual NMIs");
        return;
    }
    section("26.2 NMI-window exiting");
    add(field::PIN_CONTROLS, pin::NMI | pin::VIRTUAL_NMIS);
    add(field::PROCESSOR_CONTROLS, primary::NMI_WINDOW);
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(
        (exit.reason, exit.rip),
        (8, address!(w_nops)),
        "no virtual-NMI blocking: at once"
    );
    // Blocked: until IRET.
    set(field::INTERRUPTIBILITY, 8);
    let exit = vm.run(address!(w_iret), 0);
    check_eq!(
        (exit.reason, exit.rip),
        (8, address!(w_iret_1)),
        "virtual-NMI blocking: after IRET"
    );
    check_eq!(get(field::INTERRUPTIBILITY), 0, "IRET ended it");
    // Blocked by MOV SS: one instruction later.
    set(field::INTERRUPTIBILITY, 2);
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(
        (exit.reason, exit.rip),
        (8, address!(w_nops_1)),
        "blocking by MOV SS"
    );
    vm.fill();
}

snippet! {
    w_send_nmi: "mov edx, 0xfee00000", "mov eax, [rdx + 0x20]", "mov [rdx + 0x310], eax",
        "mov dword ptr [rdx + 0x300], 0x400", "2: pause", "jmp 2b";
}

/// IRET ends NMI blocking.
fn unblock() {
    // SAFETY: returns to the next instruction with the same stack.
    unsafe {
        core::arch::asm!(
            "mov {t:e}, ss", "push {t}", "lea {t}, [rsp + 8]", "push {t}", "pushfq", "mov {t:e}, cs",
            "push {t}", "lea {t}, [rip + 2f]", "push {t}", "iretq", "2:", t = out(reg) _
        );
    }
}

fn timer(vm: &mut Vm) {
    section("26.5.1 VMX-preemption timer");
    if !may(capability(0), pin::PREEMPTION_TIMER) {
        skip("the VMX-preemption timer");
        return;
    }
    add(field::PIN_CONTROLS, pin::PREEMPTION_TIMER);
    set(field::PREEMPTION_TIMER, 0);
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(
        (exit.reason, exit.rip, exit.qualification),
        (52, address!(w_nops), 0),
        "zero: before the first instruction"
    );
    set(field::PREEMPTION_TIMER, 2000);
    let rate = cpu::read_msr(msr::MISC) & 31;
    let before = cpu::tsc();
    let exit = vm.run(address!(w_spin), 0);
    let elapsed = cpu::tsc() - before;
    check_eq!(exit.reason, 52, "ends a loop");
    check!(
        elapsed >= 2000 << rate,
        "counts at TSC >> {rate}: {elapsed} ticks"
    );
    // Not saved without the control.
    check_eq!(get(field::PREEMPTION_TIMER), 2000, "not saved");
    let exit = vm.run(address!(crate::x_end), 0);
    check_eq!(
        (exit.reason, get(field::PREEMPTION_TIMER)),
        (18, 2000),
        "not saved by another exit"
    );
    if may(capability(2), exit::SAVE_TIMER) {
        add(field::EXIT_CONTROLS, exit::SAVE_TIMER);
        set(field::PREEMPTION_TIMER, 0xffff_0000);
        let exit = vm.run(address!(crate::x_end), 0);
        check_eq!(exit.reason, 18, "another exit");
        let left = get(field::PREEMPTION_TIMER);
        check!(left <= 0xffff_0000 && left > 0xff00_0000, "saved: {left:x}");
        set(field::PREEMPTION_TIMER, 100);
        let exit = vm.run(address!(w_spin), 0);
        check_eq!(
            (exit.reason, get(field::PREEMPTION_TIMER)),
            (52, 0),
            "saved when it has fired: 0"
        );
    }
    vm.fill();
    // In HLT it goes on counting.
    add(field::PIN_CONTROLS, pin::PREEMPTION_TIMER);
    set(field::PREEMPTION_TIMER, 2000);
    let exit = vm.run(address!(w_hlt), 0);
    check_eq!(
        (exit.reason, exit.rip, get(field::ACTIVITY)),
        (52, address!(w_hlt_1), 1),
        "in HLT"
    );
    vm.fill();
}

fn trap(vm: &mut Vm) {
    section("26.5.2 monitor trap flag");
    if !may(capability(1), primary::MONITOR_TRAP) {
        skip("the monitor trap flag");
        return;
    }
    add(field::PROCESSOR_CONTROLS, primary::MONITOR_TRAP);
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(
        (exit.reason, exit.rip, exit.qualification),
        (37, address!(w_nops_1), 0),
        "after one instruction"
    );
    remove(field::PROCESSOR_CONTROLS, primary::MONITOR_TRAP);
    // Pending by injection (27.7.2): before the first instruction.
    set(field::ENTRY_INFO, VALID | 7 << 8);
    let exit = vm.run(address!(w_nops), 0);
    check_eq!(
        (exit.reason, exit.rip),
        (37, address!(w_nops)),
        "injected: before the first instruction"
    );
    vm.fill();
}
