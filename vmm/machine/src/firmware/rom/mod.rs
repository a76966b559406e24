//! The option ROM by which a BIOS starts a kernel: a boot loader by the 16-bit Linux boot protocol (boot.rst, "Loading
//! The Rest of The Kernel" to "Running the Kernel").
//!
//! A BIOS finds it among the files `genroms/` of the firmware configuration device, copies it below 1 MByte, and takes
//! its boot entry vector for one more device to boot from (BIOS Boot Specification 1.01, 3.3). There the loader reads
//! the kernel's items by DMA, which reaches all memory from real mode, changes the setup header in memory as loaders
//! do, and jumps to the kernel's own real-mode code. [`crate::boot::real_mode`] has the places.
//!
//! ```text
//! 00  55 AA, length, initialization, which only says that there is something to boot from
//! 1A  offset of the PnP header (Plug and Play BIOS Specification 1.0A, 3.2)
//! 20  PnP header
//! 40  manufacturer, product, loader
//! ..  checksum: the bytes of the ROM add up to 0
//! ```

mod asm;
mod loader;

#[cfg(test)]
mod tests;

/// The ROM's name in the firmware configuration device.
pub(crate) const FILE: &str = "genroms/nestling-linux.rom";
/// What a boot order calls it.
pub(crate) const BOOT_DEVICE: &str = "/rom@genroms/nestling-linux.rom";

/// The length in the header counts blocks of this many bytes.
const BLOCK: usize = 512;
/// Offset of the pointer to the PnP header.
const PNP_POINTER: usize = 0x1a;
/// Where the PnP header lies, and its length, which it counts in units of 16 bytes.
const PNP: usize = 0x20;
const PNP_BYTES: usize = 0x20;
/// Offset of its checksum in it.
const PNP_CHECKSUM: usize = 9;
/// Names, which follow it.
const MANUFACTURER: (usize, &[u8]) = (PNP + PNP_BYTES, b"Nestling\0");
const PRODUCT: (usize, &[u8]) = (MANUFACTURER.0 + MANUFACTURER.1.len(), b"Linux kernel\0");
const LOADER: usize = PRODUCT.0 + PRODUCT.1.len();
/// `mov ax, 20h; retf`. Bits 5:4 of the answer are 10b: a device to boot from is attached.
const INITIALIZATION: [u8; 4] = [0xb8, 0x20, 0x00, 0xcb];
/// Device indicators: it can be booted from; the ROM may be cached and shadowed.
const INDICATORS: u8 = 0x64;

/// The ROM.
pub(crate) fn build() -> Vec<u8> {
    let loader = loader::assemble(LOADER as u16);
    // One byte more for the checksum.
    let bytes = (LOADER + loader.len() + 1).next_multiple_of(BLOCK);
    let mut rom = vec![0; bytes];
    let mut put = |at: usize, part: &[u8]| rom[at..at + part.len()].copy_from_slice(part);
    put(0, &[0x55, 0xaa, (bytes / BLOCK) as u8]);
    put(3, &INITIALIZATION);
    put(PNP_POINTER, &(PNP as u16).to_le_bytes());
    put(PNP, &pnp_header(LOADER as u16));
    put(MANUFACTURER.0, MANUFACTURER.1);
    put(PRODUCT.0, PRODUCT.1);
    put(LOADER, &loader);
    rom[bytes - 1] = checksum(&rom);
    rom
}

/// The PnP header with the offset of what boots.
fn pnp_header(boot_entry: u16) -> [u8; PNP_BYTES] {
    const REVISION: u8 = 1;
    let mut header = [0; PNP_BYTES];
    let mut put = |at: usize, part: &[u8]| header[at..at + part.len()].copy_from_slice(part);
    put(0, b"$PnP");
    put(4, &[REVISION, (PNP_BYTES / 16) as u8]);
    put(0x0e, &(MANUFACTURER.0 as u16).to_le_bytes());
    put(0x10, &(PRODUCT.0 as u16).to_le_bytes());
    put(0x15, &[INDICATORS]);
    put(0x1a, &boot_entry.to_le_bytes());
    header[PNP_CHECKSUM] = checksum(&header);
    header
}

/// The byte that makes the sum 0 where a zero is now.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &b| sum.wrapping_sub(b))
}
