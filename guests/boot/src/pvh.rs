//! The x86/HVM direct boot ABI (Xen public/arch-x86/hvm/start_info.h).

use runtime::{check, check_eq};

use crate::raw;

/// `at` points to `hvm_start_info`.
pub fn run(at: u64) {
    crate::protocol("pvh");
    check_eq!(raw::u32(at), 0x336e_c578, "magic");
    check_eq!(raw::u32(at + 4), 1, "version");
    check_eq!(raw::u32(at + 8), 0, "flags");
    check!(raw::is(raw::u64(at + 32), b"RSD PTR "), "rsdp_paddr");
    crate::command_line(raw::u64(at + 24));
    let modules = raw::u64(at + 16);
    for i in 0..u64::from(raw::u32(at + 12)) {
        let module = modules + 32 * i;
        let (start, size) = (raw::u64(module), raw::u64(module + 8));
        crate::file(Some(raw::u64(module + 16)), start, size);
    }
    let map = raw::u64(at + 40);
    crate::memory_map((0..u64::from(raw::u32(at + 48))).map(|i| {
        let entry = map + 24 * i;
        (raw::u64(entry), raw::u64(entry + 8), raw::u32(entry + 16))
    }));
}
