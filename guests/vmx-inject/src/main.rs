//! Later.
#![no_std]
#![no_main]
runtime::guest!("x", run);
fn run() {}
