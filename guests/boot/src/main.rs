//! What a loader tells a kernel, by each protocol: checked against the protocol's specification, and printed in
//! one form for all, so that whoever started it can compare.

#![no_std]
#![no_main]

mod linux;
mod multiboot;
mod pvh;
mod raw;

use raw::Text;
use runtime::boot::{self, Loader};
use runtime::{println, section};

runtime::guest!("boot", run);

fn run() {
    let at = boot::information();
    match boot::loader() {
        Loader::Linux64 | Loader::Linux32 => linux::run(at),
        Loader::Multiboot => multiboot::run(at),
        Loader::Pvh => pvh::run(at),
    }
}

/// Prints the name of the protocol.
fn protocol(name: &str) {
    section(name);
    println!("protocol {name}");
}

/// Prints the command line.
fn command_line(at: u64) {
    println!("cmdline [{}]", Text(at));
}

/// Prints a file: its size and the sum of its bytes.
fn file(text: Option<u64>, start: u64, size_bytes: u64) {
    let sum: u64 = (start..start + size_bytes)
        .map(|at| u64::from(raw::u8(at)))
        .sum();
    match text {
        Some(at) => println!("file [{}] size={size_bytes} sum={sum}", Text(at)),
        None => println!("file size={size_bytes} sum={sum}"),
    }
}

/// Checks a memory map given as `(base, length, type)` in ascending order.
fn memory_map(entries: impl Iterator<Item = (u64, u64, u32)>) {
    const RAM: u32 = 1;
    let mut ram_bytes = 0;
    let mut end = 0;
    for (base, length, kind) in entries {
        runtime::check!(base >= end && length > 0, "{base:#x} lies behind {end:#x}");
        end = base + length;
        if kind == RAM {
            ram_bytes += length;
            let hole = base < 0x10_0000 && end > 0xa_0000;
            runtime::check!(!hole, "no RAM from A0000h to FFFFFh");
        }
    }
    println!("ram_kib={}", ram_bytes >> 10);
}
