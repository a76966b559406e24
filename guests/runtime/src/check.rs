//! Counting checks.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::{exit, println};

static HELD: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Counts a check and hands its result back.
pub fn record(held: bool) -> bool {
    let counter = if held { &HELD } else { &FAILED };
    counter.fetch_add(1, Ordering::Relaxed);
    held
}

/// Says what is checked next.
pub fn section(name: &str) {
    println!("-- {name}");
}

/// Says what this processor cannot be checked for.
pub fn skip(what: &str) {
    println!("skip {what}");
}

/// Says the sum and ends the machine.
pub fn finish() -> ! {
    let (held, failed) = (HELD.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
    println!("{held} checks held, {failed} failed");
    exit(if failed == 0 && held > 0 { 0x10 } else { 0x11 })
}
