//! `boot_params`, the "zero page" (Linux Documentation/arch/x86/zero-page.rst, boot.rst).

use guestmem::Gpa;

use super::bzimage::{HEADER_START, SetupHeader, UNDEFINED_LOADER};
use crate::memory::MapEntry;

/// Size of `boot_params`.
pub const ZERO_PAGE_SIZE: usize = 4096;
/// Most entries of the memory map in it.
const E820_MAX_ENTRIES: usize = 128;

mod field {
    pub(super) use super::super::bzimage::field::{
        CMD_LINE_PTR, RAMDISK_IMAGE, RAMDISK_SIZE, TYPE_OF_LOADER,
    };

    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const VID_MODE: usize = 0x1fa;
    pub const CODE32_START: usize = 0x214;
    pub const E820_TABLE: usize = 0x2d0;
}

/// `vid_mode`: "normal".
const VIDEO_MODE_NORMAL: u16 = 0xffff;

/// `screen_info` of text mode 3: mode, columns, lines, a VGA, scan lines of a character.
const TEXT_SCREEN: [(usize, u8); 5] = [(0x06, 3), (0x07, 80), (0x0e, 25), (0x0f, 1), (0x10, 16)];

/// What the boot loader fills in.
pub(super) struct Contents<'a> {
    /// Where the protected-mode code was put.
    pub load: Gpa,
    /// The command line.
    pub cmdline: Gpa,
    /// The initial RAM disk and its length.
    pub initrd: Option<(Gpa, u64)>,
    /// The RSDP.
    pub rsdp: Gpa,
    /// Memory map.
    pub map: &'a [MapEntry],
    /// Whether there is a display in text mode 3.
    pub text_screen: bool,
}

/// A pointer below 4 GByte; everything `boot_params` points to in 32 bits is placed there.
fn low(gpa: Gpa) -> u32 {
    u32::try_from(gpa.0).expect("boot data is placed below 4 GByte")
}

/// Builds the page.
pub(super) fn build(header: &SetupHeader, contents: &Contents<'_>) -> Vec<u8> {
    let mut page = vec![0u8; ZERO_PAGE_SIZE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(HEADER_START, header.raw());
    put(field::TYPE_OF_LOADER, &[UNDEFINED_LOADER]);
    put(field::VID_MODE, &VIDEO_MODE_NORMAL.to_le_bytes());
    put(field::CODE32_START, &low(contents.load).to_le_bytes());
    put(field::CMD_LINE_PTR, &low(contents.cmdline).to_le_bytes());
    put(field::ACPI_RSDP_ADDR, &contents.rsdp.0.to_le_bytes());
    let (initrd, initrd_bytes) = contents.initrd.unwrap_or_default();
    put(field::RAMDISK_IMAGE, &low(initrd).to_le_bytes());
    put(field::RAMDISK_SIZE, &low(Gpa(initrd_bytes)).to_le_bytes());
    // ext_ramdisk_image, ext_ramdisk_size, ext_cmd_line_ptr: the upper halves, all zero.
    put(field::EXT_RAMDISK_IMAGE, &[0; 12]);

    if contents.text_screen {
        for (at, value) in TEXT_SCREEN {
            put(at, &[value]);
        }
    }
    assert!(
        contents.map.len() <= E820_MAX_ENTRIES,
        "the board has few memory ranges"
    );
    put(field::E820_ENTRIES, &[contents.map.len() as u8]);
    for (i, e) in contents.map.iter().enumerate() {
        let at = field::E820_TABLE + 20 * i;
        put(at, &e.base.0.to_le_bytes());
        put(at + 8, &e.size_bytes.to_le_bytes());
        put(at + 16, &(e.kind as u32).to_le_bytes());
    }
    page
}
