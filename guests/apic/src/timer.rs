//! The timer (11.5.4): one-shot, periodic, TSC deadline.

use runtime::apic::{DEADLINE_MSR, bit, read, reg, write};
use runtime::cpu;
use runtime::{check, check_eq, section, skip};

use crate::{count, listen, taken};

const VECTOR: u8 = 0x48;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;

/// Waits with interrupts open until `done`, or a long time.
fn wait(done: impl Fn() -> bool) -> bool {
    cpu::enable_interrupts();
    for _ in 0..3_000_000 {
        if done() {
            break;
        }
        core::hint::spin_loop();
    }
    cpu::disable_interrupts();
    done()
}

fn stop() {
    write(reg::INITIAL_COUNT, 0);
    write(reg::LVT_TIMER, MASKED);
}

pub fn run() {
    one_shot();
    periodic();
    divide();
    halt();
    deadline();
}

fn one_shot() {
    section("11.5.4 timer, one-shot");
    listen(&[VECTOR]);
    write(reg::DIVIDE, DIVIDE_BY_1);
    write(reg::LVT_TIMER, u32::from(VECTOR));
    write(reg::INITIAL_COUNT, 10_000_000);
    let (a, b) = (read(reg::CURRENT_COUNT), read(reg::CURRENT_COUNT));
    check!(a <= 10_000_000 && b <= a && b > 0, "counts down: {a} {b}");
    check_eq!(read(reg::INITIAL_COUNT), 10_000_000, "initial count stays");
    write(reg::INITIAL_COUNT, 5000);
    check!(wait(|| count() > 0), "fires");
    check_eq!(taken(0).0, VECTOR, "its vector");
    check_eq!(read(reg::CURRENT_COUNT), 0, "stays at zero");
    for _ in 0..100_000 {
        core::hint::spin_loop();
    }
    check_eq!(count(), 1, "once");
    write(reg::INITIAL_COUNT, 5000);
    check!(wait(|| count() > 1), "again after another write");
    // Masked: it counts, nothing is requested.
    write(reg::LVT_TIMER, u32::from(VECTOR) | MASKED);
    write(reg::INITIAL_COUNT, 1000);
    check!(wait(|| read(reg::CURRENT_COUNT) == 0), "masked: counts");
    check!(!bit(reg::IRR, VECTOR), "masked: requests nothing");
    check_eq!(count(), 2, "masked: nothing taken");
    // A zero stops it.
    write(reg::LVT_TIMER, u32::from(VECTOR));
    write(reg::INITIAL_COUNT, 100_000_000);
    write(reg::INITIAL_COUNT, 0);
    check_eq!(read(reg::CURRENT_COUNT), 0, "zero stops it");
    // With IF clear the request waits.
    write(reg::INITIAL_COUNT, 1000);
    for _ in 0..3_000_000 {
        if bit(reg::IRR, VECTOR) {
            break;
        }
    }
    check!(bit(reg::IRR, VECTOR), "requested with IF clear");
    check!(wait(|| count() == 3), "taken with IF set");
    stop();
}

fn periodic() {
    section("11.5.4 timer, periodic");
    listen(&[VECTOR]);
    write(reg::LVT_TIMER, u32::from(VECTOR) | PERIODIC);
    let start = cpu::tsc();
    write(reg::INITIAL_COUNT, 20_000);
    check!(wait(|| count() >= 5), "fires and fires");
    let five = cpu::tsc() - start;
    check!(wait(|| count() >= 10), "and goes on");
    check!(cpu::tsc() - start > five, "time passes");
    check!(read(reg::CURRENT_COUNT) <= 20_000, "reloaded");
    stop();
    let before = count();
    for _ in 0..200_000 {
        core::hint::spin_loop();
    }
    window_and_check(before);
}

fn window_and_check(before: usize) {
    crate::window();
    check!(count() <= before + 1, "stopped");
}

/// Figure 11-10: the divide configuration.
fn divide() {
    section("11.5.4 divide configuration");
    let elapsed = |configuration: u32| {
        write(reg::LVT_TIMER, u32::from(VECTOR) | MASKED);
        write(reg::DIVIDE, configuration);
        write(reg::INITIAL_COUNT, 4000);
        let start = cpu::tsc();
        while read(reg::CURRENT_COUNT) != 0 {}
        cpu::tsc() - start
    };
    let one = elapsed(DIVIDE_BY_1);
    for (configuration, divisor) in [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
    ] {
        let time = elapsed(configuration);
        let expected = one * divisor;
        check!(
            time > expected / 2 && time < expected * 2,
            "divide by {divisor}: {time} TSC ticks, by 1 {one}"
        );
    }
    write(reg::DIVIDE, DIVIDE_BY_1);
    check_eq!(read(reg::DIVIDE), DIVIDE_BY_1, "reads back");
}

/// HLT ends with the timer's interrupt.
fn halt() {
    section("vol 2, HLT");
    listen(&[VECTOR]);
    write(reg::LVT_TIMER, u32::from(VECTOR));
    let start = cpu::tsc();
    write(reg::INITIAL_COUNT, 1_000_000);
    cpu::wait_for_interrupt();
    check_eq!(count(), 1, "the timer ends HLT");
    check!(
        cpu::tsc() - start >= 1_000_000,
        "after its time, TSC {}",
        cpu::tsc() - start
    );
    stop();
}

fn deadline() {
    if !cpu::has(1, 2, 24) {
        skip("TSC deadline");
        return;
    }
    section("11.5.4.1 timer, TSC deadline");
    listen(&[VECTOR]);
    // Not in that mode: the MSR is zero and ignores writes.
    write(reg::LVT_TIMER, u32::from(VECTOR));
    cpu::write_msr(DEADLINE_MSR, cpu::tsc() + 1000);
    check_eq!(cpu::read_msr(DEADLINE_MSR), 0, "ignored in one-shot mode");
    write(reg::LVT_TIMER, u32::from(VECTOR) | DEADLINE);
    write(reg::INITIAL_COUNT, 1000);
    check_eq!(
        read(reg::CURRENT_COUNT),
        0,
        "initial count is ignored, current count zero"
    );
    check_eq!(cpu::read_msr(DEADLINE_MSR), 0, "not armed");
    let at = cpu::tsc() + 2_000_000;
    cpu::write_msr(DEADLINE_MSR, at);
    check_eq!(cpu::read_msr(DEADLINE_MSR), at, "armed");
    check!(wait(|| count() == 1), "fires");
    check!(cpu::tsc() >= at, "not before its time");
    check_eq!(cpu::read_msr(DEADLINE_MSR), 0, "disarmed when it has fired");
    // In the past: at once.
    cpu::write_msr(DEADLINE_MSR, 1);
    check!(wait(|| count() == 2), "a deadline in the past");
    // Zero disarms.
    cpu::write_msr(DEADLINE_MSR, cpu::tsc() + 3_000_000);
    cpu::write_msr(DEADLINE_MSR, 0);
    check_eq!(cpu::read_msr(DEADLINE_MSR), 0, "zero disarms");
    let start = cpu::tsc();
    while cpu::tsc() - start < 4_000_000 {}
    crate::window();
    check_eq!(count(), 2, "and nothing fires");
    // HLT.
    let at = cpu::tsc() + 5_000_000;
    cpu::write_msr(DEADLINE_MSR, at);
    cpu::wait_for_interrupt();
    check_eq!(count(), 3, "the deadline ends HLT");
    check!(cpu::tsc() >= at, "at its time");
    // A change of mode disarms.
    cpu::write_msr(DEADLINE_MSR, cpu::tsc() + 100_000_000);
    write(reg::LVT_TIMER, u32::from(VECTOR));
    write(reg::LVT_TIMER, u32::from(VECTOR) | DEADLINE);
    check_eq!(cpu::read_msr(DEADLINE_MSR), 0, "a change of mode disarms");
    // IA32_TSC_ADJUST and IA32_TSC move the deadline with the TSC.
    let at = cpu::tsc() + 50_000_000;
    cpu::write_msr(DEADLINE_MSR, at);
    cpu::write_msr(0x10, at + 1000);
    check!(
        wait(|| count() == 4),
        "18.17.3: the TSC written past the deadline"
    );
    stop();
}
