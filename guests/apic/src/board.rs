//! The board's timers: the 8254's channels (its datasheet), the HPET (IA-PC HPET specification 1.0a), both by IRQ 0 of
//! the 8259A and LINT0 (11.5.1). Times are compared with the timer's own count only.

use core::sync::atomic::{AtomicU64, Ordering};

use runtime::apic::{self, reg};
use runtime::memory::{read, write};
use runtime::trap::{self, Frame};
use runtime::{check, check_eq, cpu, section, skip};

/// IRQ 0.
const VECTOR: u8 = 0x60;
const PIT: u16 = 0x40;
const CONTROL: u16 = PIT + 3;
const GATE: u16 = 0x61;
const HPET: u64 = 0xfed0_0000;

static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
static COUNTER: AtomicU64 = AtomicU64::new(0);

fn interrupt(_: &mut Frame) {
    INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    COUNTER.store(read(HPET + 0xf0), Ordering::Relaxed);
    cpu::outb(0x20, 0x20);
}

fn interrupts() -> u64 {
    INTERRUPTS.load(Ordering::Relaxed)
}

/// Vectors 60h and 70h, all masked but IRQ 0 if it is to come.
fn controllers(open: bool) {
    for (port, base, wiring, mask) in [(0x20, VECTOR, 4, 0xfe), (0xa0, 0x70, 2, 0xff)] {
        cpu::outb(port, 0x11);
        cpu::outb(port + 1, base);
        cpu::outb(port + 1, wiring);
        cpu::outb(port + 1, 1);
        cpu::outb(port + 1, if open { mask } else { 0xff });
    }
    INTERRUPTS.store(0, Ordering::Relaxed);
    apic::write(reg::LVT_LINT0, if open { 0x700 } else { 0x1_0000 });
}

/// Waits, with interrupts open or not.
fn until(open: bool, mut done: impl FnMut() -> bool) -> bool {
    if open {
        cpu::enable_interrupts();
    }
    let came = (0..20_000_000).any(|_| done());
    cpu::disable_interrupts();
    came
}

/// Sets a channel: access to both bytes.
fn program(channel: u8, mode: u8, count: u16) {
    cpu::outb(CONTROL, channel << 6 | 3 << 4 | mode << 1);
    let [low, high] = count.to_le_bytes();
    cpu::outb(PIT + u16::from(channel), low);
    cpu::outb(PIT + u16::from(channel), high);
}

/// The count, latched by a counter latch command.
fn count(channel: u8) -> u16 {
    cpu::outb(CONTROL, channel << 6);
    let port = PIT + u16::from(channel);
    u16::from_le_bytes([cpu::inb(port), cpu::inb(port)])
}

/// The status byte, by a read-back command.
fn status(channel: u8) -> u8 {
    cpu::outb(CONTROL, 0xe0 | 2 << channel);
    cpu::inb(PIT + u16::from(channel))
}

fn output_2() -> bool {
    cpu::inb(GATE) & 1 << 5 != 0
}

/// How often a count that goes down began anew, up to ten.
fn periods(mut count: impl FnMut() -> u64) -> u32 {
    let (mut periods, mut last) = (0, count());
    until(false, || {
        let now = count();
        periods += u32::from(now > last);
        last = now;
        periods == 10
    });
    periods
}

pub fn run() {
    trap::handle(VECTOR, Some(interrupt));
    channel_2();
    channel_0();
    hpet();
    trap::handle(VECTOR, None);
}

fn channel_2() {
    section("8254, mode 0 and mode 3");
    cpu::outb(GATE, 1);
    program(2, 0, 20_000);
    check!(!output_2(), "mode 0: low");
    check_eq!(status(2) & 0xbf, 0x30, "read-back: low, both bytes, mode 0");
    let first = count(2);
    check!(first <= 20_000, "counts down");
    check!(until(false, || count(2) < first), "and goes on");
    cpu::outb(GATE, 0);
    let held = count(2);
    for _ in 0..10_000 {
        core::hint::spin_loop();
    }
    check_eq!(count(2), held, "mode 0: the gate stops it");
    cpu::outb(GATE, 1);
    check!(until(false, output_2), "high at the terminal count");
    check_eq!(status(2), 0xb0, "read-back: high, no null count");
    check!(count(2) > 20_000 || count(2) == 0, "counts on from FFFFh");
    check!(output_2(), "and stays high");
    program(2, 3, 2_000);
    let mut edges = 0;
    let mut last = output_2();
    until(false, || {
        let now = output_2();
        edges += u32::from(now != last);
        last = now;
        edges == 10
    });
    check_eq!(edges, 10, "mode 3: high and low in turn");
    check!(count(2) <= 2_000 && count(2) & 1 == 0, "mode 3: by two");
    cpu::outb(GATE, 0);
}

fn channel_0() {
    section("8254, mode 2 and IRQ 0");
    controllers(true);
    program(0, 2, 10_000);
    check!(until(true, || interrupts() >= 3), "interrupts come");
    controllers(true);
    let passed = periods(|| u64::from(count(0)));
    // Mode 0 with a count that is not written raises nothing more.
    cpu::outb(CONTROL, 0x30);
    check_eq!(passed, 10, "periods pass with interrupts off");
    for _ in 0..4 {
        crate::window();
    }
    check_eq!(interrupts(), 1, "one interrupt for all of them");
    controllers(true);
    program(0, 0, 5_000);
    check!(
        until(true, || interrupts() == 1),
        "mode 0: at the terminal count"
    );
    until(true, || {
        let now = count(0);
        now > 5_000 && now < 0xf000
    });
    check_eq!(interrupts(), 1, "and once");
    controllers(false);
}

fn hpet() {
    section("HPET specification, 2.3");
    let capabilities = read(HPET);
    let period = capabilities >> 32;
    if capabilities == u64::MAX || period == 0 {
        skip("HPET");
        return;
    }
    check!(period <= 0x05f5_e100, "2.3.4: the period is at most 100 ns");
    check!(capabilities & 0xff != 0, "2.3.4: a revision");
    write(HPET + 0x10, 0);
    write(HPET + 0xf0, 12_345);
    check_eq!(read(HPET + 0xf0), 12_345, "2.3.7: a counter that is halted");
    write(HPET + 0x10, 1);
    check!(
        until(false, || read(HPET + 0xf0) > 12_345),
        "2.3.5: it runs"
    );
    write(HPET + 0x10, 0);
    let halted = read(HPET + 0xf0);
    check_eq!(read(HPET + 0xf0), halted, "2.3.5: and halts");
    if capabilities & 1 << 15 == 0 {
        skip("legacy replacement");
        return;
    }
    let (config, comparator) = (HPET + 0x100, HPET + 0x108);
    controllers(true);
    write(config, 1 << 2);
    let at = read(HPET + 0xf0) + 200_000;
    write(comparator, at);
    write(HPET + 0x10, 3);
    check!(
        until(true, || interrupts() == 1),
        "2.3.9: one-shot, by IRQ 0"
    );
    let came = COUNTER.load(Ordering::Relaxed);
    check!(came >= at, "not before its time: {came} {at}");
    until(true, || read(HPET + 0xf0) > at + 1_000_000);
    check_eq!(interrupts(), 1, "and once");
    if read(config) & 1 << 4 == 0 {
        skip("periodic mode");
    } else {
        let start = |counter: u64| {
            write(HPET + 0x10, 0);
            controllers(true);
            write(config, 1 << 2 | 1 << 3 | 1 << 6);
            write(comparator, read(HPET + 0xf0) + counter);
            write(comparator, counter);
            write(HPET + 0x10, 3);
        };
        start(100_000);
        check!(until(true, || interrupts() >= 3), "2.3.9.2.2: periodic");
        start(100_000);
        let begin = read(HPET + 0xf0);
        until(false, || read(HPET + 0xf0) - begin >= 1_050_000);
        write(HPET + 0x10, 0);
        for _ in 0..4 {
            crate::window();
        }
        check_eq!(interrupts(), 1, "one interrupt for ten periods");
    }
    write(config, 0);
    write(HPET + 0x10, 0);
    controllers(false);
}
