//! The local APIC against chapter 11 of volume 3: registers, priorities, IPIs, the timer in its three
//! modes, x2APIC, and when the processor takes an interrupt (6.8) and which (6.9); the board's other timers.

#![no_std]
#![no_main]

mod board;
mod ipi;
mod priority;
mod registers;
mod shadows;
mod timer;
mod x2apic;

use core::sync::atomic::{AtomicUsize, Ordering};

use runtime::cpu;
use runtime::trap::{self, Frame};

runtime::guest!("apic", run);

fn run() {
    registers::run();
    runtime::apic::enable();
    ipi::run();
    shadows::run();
    priority::run();
    timer::run();
    board::run();
    x2apic::run();
}

/// Vectors taken, in order; RIPs they interrupted.
static mut TAKEN: [(u8, u64); 64] = [(0, 0); 64];
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn note(frame: &mut Frame) {
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    if n < 64 {
        // SAFETY: one flow of control; handlers do not nest where this is read.
        unsafe {
            (&raw mut TAKEN)
                .cast::<(u8, u64)>()
                .add(n)
                .write((frame.vector as u8, frame.rip))
        };
    }
}

/// Notes the vector and signals its end.
fn note_and_end(frame: &mut Frame) {
    note(frame);
    runtime::apic::end_of_interrupt();
}

/// Takes `vectors` with [`note_and_end`]; forgets what was taken.
fn listen(vectors: &[u8]) {
    COUNT.store(0, Ordering::Relaxed);
    for &vector in vectors {
        trap::handle(vector, Some(note_and_end));
    }
}

fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

fn taken(i: usize) -> (u8, u64) {
    // SAFETY: bounded by the array; written before it is counted.
    unsafe { (&raw const TAKEN).cast::<(u8, u64)>().add(i & 63).read() }
}

/// Opens the window for interrupts.
fn window() {
    cpu::enable_interrupts();
    cpu::disable_interrupts();
}
