//! Which of two events at one boundary between instructions comes first (6.9, Table 6-2); how many interrupts a timer
//! makes whose periods were missed (11.8.4).

use runtime::apic::{read, reg, write};
use runtime::trap::{self, Frame};
use runtime::{address, check, check_eq, cpu, labels, section, snippet};

use crate::{count, listen, note, taken};

const VECTOR: u8 = 0x41;
const SELF: u32 = 1 << 18;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const RF: u64 = 1 << 16;

snippet! {
    p_step: "pushfq", "or dword ptr [rsp], 0x300", "xor eax, eax", "popfq", "mov cr8, rax", "p_step_1: nop", "cli", "ret";
    p_break: "sti", "xor eax, eax", "mov cr8, rax", "p_break_1: nop", "cli", "ret";
}

labels! { p_step_1, p_break_1 }

pub fn run() {
    section("6.9, Table 6-2 priority among simultaneous events");
    let both = |function: extern "C" fn(u64) -> u64| {
        listen(&[VECTOR]);
        cpu::write_cr8(15);
        write(reg::ICR, SELF | u32::from(VECTOR));
        function(0);
        (count(), taken(0), taken(1))
    };
    extern "C" fn step(argument: u64) -> u64 {
        p_step(argument)
    }
    extern "C" fn stop(argument: u64) -> u64 {
        p_break(argument)
    }
    trap::handle(1, Some(after_a_step));
    let at = address!(p_step_1);
    check_eq!(
        both(step),
        (2, (1, at), (VECTOR, at)),
        "a single-step trap, then an interrupt"
    );
    trap::handle(1, Some(at_a_breakpoint));
    let at = address!(p_break_1);
    cpu::write_dr0(at);
    cpu::write_dr7(2);
    let got = both(stop);
    cpu::write_dr7(0);
    check_eq!(
        got,
        (2, (VECTOR, at), (1, at)),
        "an interrupt, then an instruction breakpoint"
    );
    trap::handle(1, None);

    // Inside of the first NMI's handler both are requested; its IRET lets them come.
    listen(&[VECTOR]);
    trap::handle(2, Some(twice));
    write(reg::ICR_HIGH, read(reg::ID));
    write(reg::ICR, 4 << 8);
    for _ in 0..1000 {
        core::hint::spin_loop();
    }
    cpu::disable_interrupts();
    trap::handle(2, None);
    let at = taken(0).1;
    check_eq!(
        (count(), taken(0), taken(1), taken(2)),
        (3, (2, at), (2, at), (VECTOR, at)),
        "an NMI, then an interrupt"
    );
    missed();
}

fn after_a_step(frame: &mut Frame) {
    note(frame);
    frame.rflags &= !TF;
}

fn at_a_breakpoint(frame: &mut Frame) {
    note(frame);
    frame.rflags |= RF;
}

fn twice(frame: &mut Frame) {
    let first = count() == 0;
    note(frame);
    if first {
        write(reg::ICR, 4 << 8);
        write(reg::ICR, SELF | u32::from(VECTOR));
        while read(reg::ICR) & 1 << 12 != 0 {}
        frame.rflags |= IF;
    }
}

fn missed() {
    section("11.8.4 missed periods");
    listen(&[VECTOR]);
    write(reg::DIVIDE, 0b1011);
    write(reg::LVT_TIMER, u32::from(VECTOR) | 1 << 17);
    write(reg::INITIAL_COUNT, 1_000_000);
    // The count begins anew ten times while interrupts are off.
    let (mut periods, mut last) = (0, read(reg::CURRENT_COUNT));
    for _ in 0..100_000_000 {
        let now = read(reg::CURRENT_COUNT);
        periods += u32::from(now > last);
        last = now;
        if periods == 10 {
            break;
        }
    }
    write(reg::INITIAL_COUNT, 0);
    write(reg::LVT_TIMER, 1 << 16);
    check_eq!(periods, 10, "periods pass");
    check!(runtime::apic::bit(reg::IRR, VECTOR), "requested");
    for _ in 0..4 {
        crate::window();
    }
    check_eq!(count(), 1, "one interrupt for all of them");
}
