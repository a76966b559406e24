//! What the end-to-end tests stand on: the program as it is built, run as a user runs it; the cache all of them
//! share; and small made-up kernels.
//!
//! Invariants: a test sees the program only from outside (arguments, environment, files, streams, exit status);
//! no test changes the shared cache; every process a test starts is ended by a deadline.

pub mod boot_media;
pub mod cache;
pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod kernel_log;
pub mod nested;
pub mod packages;
pub mod program;

use std::io::Write;

/// Says on standard error that a test, or a part of one, did not run for want of something this machine lacks. The
/// test harness shows it also when the test passes: it captures what the print macros write, and nothing else.
pub fn skipped(why: &str) {
    // If standard error is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
