//! Multiboot specification 0.6.96, 3.2 and 3.3.

use runtime::{boot, check, check_eq, println};

use crate::raw::{self, Text};

/// `at` points to the information structure.
pub fn run(at: u64) {
    crate::protocol("multiboot");
    check_eq!(boot::magic(), 0x2bad_b002, "EAX");
    let flags = raw::u32(at);
    // The header asks for memory information; the rest is what this loader gives always.
    for (bit, what) in [
        (0, "memory"),
        (2, "cmdline"),
        (3, "modules"),
        (6, "map"),
        (9, "name"),
    ] {
        check!(flags & 1 << bit != 0, "flag {bit}: {what}");
    }
    check!(raw::u32(at + 4) <= 640, "mem_lower is at most 640");
    println!("upper_kib={}", raw::u32(at + 8));
    println!("loader [{}]", Text(raw::u32(at + 64).into()));
    crate::command_line(raw::u32(at + 16).into());
    for i in 0..raw::u32(at + 20) {
        let module = u64::from(raw::u32(at + 24) + 16 * i);
        let (start, end) = (raw::u32(module), raw::u32(module + 4));
        check_eq!(start % 4096, 0, "the header asks for page alignment");
        crate::file(
            Some(raw::u32(module + 8).into()),
            start.into(),
            (end - start).into(),
        );
    }
    let mut entry = u64::from(raw::u32(at + 48));
    let end = entry + u64::from(raw::u32(at + 44));
    crate::memory_map(core::iter::from_fn(|| {
        let found = (entry < end).then(|| {
            (
                raw::u64(entry + 4),
                raw::u64(entry + 12),
                raw::u32(entry + 20),
            )
        });
        entry += u64::from(raw::u32(entry)) + 4;
        found
    }));
}
