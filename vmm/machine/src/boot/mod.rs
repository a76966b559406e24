//! Loading a kernel directly, as a boot loader would: by its contents a Linux bzImage, a multiboot image or
//! an ELF file with a PVH entry.
//!
//! | file | protocol | entered in |
//! | --- | --- | --- |
//! | bzImage with a 64-bit entry | Linux, 64 bits ([`linux`]) | 64-bit mode |
//! | other bzImage | Linux, 32 bits ([`linux`]) | protected mode |
//! | multiboot header in the first 8 KByte | multiboot 1 ([`multiboot`]) | protected mode |
//! | ELF with the note of a 32-bit entry | PVH ([`pvh`]) | protected mode |
//!
//! With firmware a bzImage goes to the firmware instead ([`real_mode`]).
//!
//! All of them get the first page of RAM with the BIOS data area and the GDT of the entry.

mod blob;
mod bzimage;
mod elf;
mod entry;
mod error;
mod linux;
mod multiboot;
mod place;
mod program;
mod pvh;
pub(crate) mod real_mode;
mod zero_page;

use std::fmt;

use guestmem::{Gpa, GuestRam, RamError};
use vcpu::VcpuState;

use crate::config::{Image, Module};
use crate::memory::{EBDA_START, LEGACY_START, MemoryMap};
use blob::Blob;

pub use bzimage::{HeaderError, SetupHeader};
pub use elf::ElfError;
pub use error::{BootError, ImageError};
pub use linux::{CMDLINE, ZERO_PAGE};
pub use multiboot::MultibootError;
pub use real_mode::check as check_for_firmware;
pub use zero_page::ZERO_PAGE_SIZE;

const BIOS_DATA_AREA: Gpa = Gpa(0x400);

/// By which rules a kernel is loaded and entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootProtocol {
    /// Chosen by the file's contents.
    #[default]
    Auto,
    /// Linux, 64-bit entry.
    Linux64,
    /// Linux, 32-bit entry.
    Linux32,
    /// Multiboot 1.
    Multiboot,
    /// The x86/HVM direct boot ABI.
    Pvh,
}

impl fmt::Display for BootProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Linux64 => "linux64",
            Self::Linux32 => "linux32",
            Self::Multiboot => "multiboot",
            Self::Pvh => "pvh",
        })
    }
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// The kernel's file.
    pub kernel: &'a Image,
    /// Initial RAM disk. For multiboot and PVH it is the first module.
    pub initrd: Option<&'a Image>,
    /// More modules, for multiboot and PVH.
    pub modules: &'a [Module],
    /// Command line, without NUL.
    pub cmdline: &'a str,
    /// Where the RSDP lies.
    pub rsdp: Gpa,
    /// How to boot it.
    pub protocol: BootProtocol,
    /// Whether there is a display in text mode 3.
    pub text_screen: bool,
}

/// A kernel's file in memory.
#[derive(Clone, Copy)]
struct Kernel<'a> {
    /// What messages call it.
    name: &'a str,
    bytes: &'a [u8],
}

impl Kernel<'_> {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// The protocol by which `file` will be booted when `asked` for: never [`BootProtocol::Auto`].
///
/// # Errors
/// [`ImageError`]: it is no kernel, a broken one, or not one for that protocol.
pub fn identify(file: &[u8], asked: BootProtocol) -> Result<BootProtocol, ImageError> {
    let linux = match SetupHeader::parse(file, file.len() as u64) {
        Err(HeaderError::NoSignature) => None,
        other => Some(other?),
    };
    if let Some(header) = linux {
        return match asked {
            BootProtocol::Auto if header.has_64_bit_entry() => Ok(BootProtocol::Linux64),
            BootProtocol::Auto | BootProtocol::Linux32 => Ok(BootProtocol::Linux32),
            BootProtocol::Linux64 if header.has_64_bit_entry() => Ok(asked),
            BootProtocol::Linux64 => Err(HeaderError::No64BitEntry.into()),
            BootProtocol::Multiboot | BootProtocol::Pvh => Err(ImageError::Protocol(asked)),
        };
    }
    let may_be_multiboot = matches!(asked, BootProtocol::Auto | BootProtocol::Multiboot);
    if may_be_multiboot && multiboot::Header::find(file).is_some() {
        return Ok(BootProtocol::Multiboot);
    }
    let is_elf = file.starts_with(elf::MAGIC);
    let has_pvh_entry = is_elf && elf::Elf::parse(file)?.pvh_entry.is_some();
    match asked {
        BootProtocol::Auto | BootProtocol::Pvh if has_pvh_entry => Ok(BootProtocol::Pvh),
        BootProtocol::Auto if is_elf => Err(ImageError::NoEntry),
        BootProtocol::Auto => Err(ImageError::Unknown),
        BootProtocol::Linux64 | BootProtocol::Linux32 => Err(HeaderError::NoSignature.into()),
        BootProtocol::Multiboot | BootProtocol::Pvh => Err(ImageError::Protocol(asked)),
    }
}

/// Loads everything and returns the boot processor's first state.
///
/// # Errors
/// [`BootError`]: which file or size is wrong, and what to do.
pub fn load(
    ram: &GuestRam,
    map: &MemoryMap,
    boot: &BootRequest<'_>,
) -> Result<VcpuState, BootError> {
    write_bios_data(ram)?;
    let mut blob = Blob::open("kernel", boot.kernel)?;
    let bytes = blob.whole()?;
    let kernel = Kernel {
        name: &blob.name,
        bytes: &bytes,
    };
    let protocol =
        identify(&bytes, boot.protocol).map_err(|source| BootError::image(kernel.name, source))?;
    match protocol {
        BootProtocol::Auto => unreachable!("a protocol has been chosen"),
        BootProtocol::Linux64 => linux::load(ram, map, boot, &kernel, linux::Entry::Long),
        BootProtocol::Linux32 => linux::load(ram, map, boot, &kernel, linux::Entry::Protected),
        BootProtocol::Multiboot => multiboot::load(ram, map, boot, &kernel),
        BootProtocol::Pvh => pvh::load(ram, map, boot, &kernel),
    }
}

/// The two words of the BIOS data area from which a kernel learns where conventional memory ends.
fn write_bios_data(ram: &GuestRam) -> Result<(), RamError> {
    let ebda_segment = (EBDA_START >> 4) as u16;
    let base_memory_kib = (EBDA_START >> 10) as u16;
    ram.write(BIOS_DATA_AREA.offset(0x0e), &ebda_segment.to_le_bytes())?;
    ram.write(BIOS_DATA_AREA.offset(0x13), &base_memory_kib.to_le_bytes())?;
    // The EBDA starts with its own length in KByte.
    let ebda_kib = ((LEGACY_START - EBDA_START) >> 10) as u8;
    ram.write(Gpa(EBDA_START), &[ebda_kib])
}

#[cfg(test)]
pub(crate) mod tests;
