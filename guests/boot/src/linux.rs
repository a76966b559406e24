//! The Linux boot protocols (Documentation/arch/x86/boot.rst, zero-page.rst).

use runtime::boot::{self, Loader};
use runtime::{check, check_eq};

use crate::raw;

/// `at` points to `boot_params`.
pub fn run(at: u64) {
    crate::protocol(match boot::loader() {
        Loader::Linux32 => "linux32",
        _ => "linux64",
    });
    check!(
        raw::is(at + 0x202, b"HdrS"),
        "the setup header is in boot_params"
    );
    check_eq!(raw::u16(at + 0x1fe), 0xaa55, "boot_flag");
    check!(raw::u8(at + 0x210) != 0, "type_of_loader");
    check_eq!(raw::u32(at + 0x214), 0x10_0000, "code32_start");
    check!(raw::is(raw::u64(at + 0x70), b"RSD PTR "), "acpi_rsdp_addr");
    crate::command_line(u64::from(raw::u32(at + 0x228)));
    let (start, size) = (raw::u32(at + 0x218), raw::u32(at + 0x21c));
    if size > 0 {
        crate::file(None, start.into(), size.into());
    }
    let count = u64::from(raw::u8(at + 0x1e8));
    crate::memory_map((0..count).map(|i| {
        let entry = at + 0x2d0 + 20 * i;
        (raw::u64(entry), raw::u64(entry + 8), raw::u32(entry + 16))
    }));
}
