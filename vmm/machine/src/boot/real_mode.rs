//! A Linux kernel that firmware starts, by what the firmware configuration device says of it.
//!
//! UEFI firmware starts the whole file as a UEFI application. A BIOS starts our option ROM, which is a boot loader by the
//! 16-bit Linux boot protocol (boot.rst): the kernel's real-mode code asks the BIOS what the machine is and goes to
//! protected mode itself. Memory then is used like this:
//!
//! ```text
//! 1_0000    real-mode kernel: boot sector and setup code, at most 32 KByte
//! ..        its heap and, from 1_E000 down, its stack
//! 1_E000    command line
//! 10_0000   protected-mode kernel, which moves to where it wants to be
//! ..        initial RAM disk, as high as the firmware's map of memory and the kernel allow
//! ```

use guestmem::Gpa;

use super::blob::Blob;
use super::bzimage::SetupHeader;
use super::{BootError, HeaderError, ImageError, linux};
use crate::config::{Image, MachineConfig};
use crate::memory::{HIGH_MEMORY_START, MemoryMap};

pub(crate) use super::bzimage::{UNDEFINED_LOADER, VERSION_INIT_SIZE, field};

/// Where the real-mode kernel goes.
pub(crate) const BASE: Gpa = Gpa(0x1_0000);
/// End of its stack, as an offset from there.
pub(crate) const STACK_END: u16 = 0xe000;
/// Where the command line goes.
pub(crate) const CMDLINE: Gpa = Gpa(BASE.0 + STACK_END as u64);
/// Where the protected-mode kernel goes.
pub(crate) const KERNEL: Gpa = Gpa(HIGH_MEMORY_START);
/// Most bytes of the real-mode kernel ("Memory Layout").
const SETUP_LIMIT: usize = 0x8000;
/// Longest command line: what is left of 64 KByte, without the zero at the end.
const CMDLINE_LIMIT: usize = 0x1fff;
/// What a BIOS keeps at the end of RAM for its tables, at most.
const FIRMWARE_BYTES: u64 = 1 << 20;

/// `heap_end_ptr` is that much below the end of the stack.
pub(crate) const HEAP_END_BEFORE_STACK_END: u16 = 0x200;
/// In `loadflags`: `heap_end_ptr` is valid.
pub(crate) const CAN_USE_HEAP: u8 = 0x80;

/// What firmware is given of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RealModeKernel {
    /// Boot sector and setup code, as they are in the file.
    pub(crate) setup: Vec<u8>,
    /// The rest of the file.
    pub(crate) code: Vec<u8>,
    /// The initial RAM disk, and the highest address for it that RAM and kernel allow.
    pub(crate) initrd: Option<(Vec<u8>, Gpa)>,
    /// The command line with a zero at its end.
    pub(crate) cmdline: Vec<u8>,
}

/// Checks that firmware can start a kernel's file.
///
/// # Errors
/// [`ImageError`]: it is no bzImage, or a broken one.
pub fn check(file: &[u8]) -> Result<(), ImageError> {
    header_of(file).map(|_| ())
}

fn header_of(file: &[u8]) -> Result<SetupHeader, ImageError> {
    let header = match SetupHeader::parse(file, file.len() as u64) {
        Err(HeaderError::NoSignature) => return Err(ImageError::NotForFirmware),
        other => other?,
    };
    if header.protected_mode_offset() > SETUP_LIMIT as u64 {
        return Err(HeaderError::Broken("setup_sects is more than 63").into());
    }
    Ok(header)
}

impl RealModeKernel {
    /// Reads the kernel of a machine that starts with firmware, if it has one, and what comes with it.
    ///
    /// # Errors
    /// [`BootError`]: which file or size is wrong, and what to do.
    pub(crate) fn read(
        config: &MachineConfig,
        memory: &MemoryMap,
    ) -> Result<Option<Self>, BootError> {
        let Some(kernel) = &config.kernel else {
            return Ok(None);
        };
        if !config.modules.is_empty() {
            return Err(BootError::NoModules);
        }
        let mut blob = Blob::open("kernel", kernel)?;
        let mut setup = blob.whole()?;
        let header = header_of(&setup).map_err(|source| BootError::image(&blob.name, source))?;
        let file_bytes = setup.len() as u64;
        let code = setup.split_off(header.protected_mode_offset() as usize);

        let have_bytes = memory.low_end().0;
        let end = (KERNEL.0 + code.len() as u64).max(
            header
                .preferred_address()
                .0
                .saturating_add(header.memory_needed(file_bytes)),
        );
        if end.saturating_add(FIRMWARE_BYTES) > have_bytes {
            return Err(BootError::KernelTooLarge {
                name: blob.name,
                have_bytes,
                need_bytes: end.saturating_add(FIRMWARE_BYTES),
            });
        }
        let initrd = match &config.initrd {
            Some(image) => read_initrd(image, &header, end, have_bytes)?,
            None => None,
        };
        Ok(Some(Self {
            setup,
            code,
            initrd,
            cmdline: linux::cmdline_bytes(&config.cmdline, &header, CMDLINE_LIMIT)?,
        }))
    }
}

fn read_initrd(
    image: &Image,
    header: &SetupHeader,
    kernel_end: u64,
    memory_end: u64,
) -> Result<Option<(Vec<u8>, Gpa)>, BootError> {
    let mut blob = Blob::open("initial RAM disk", image)?;
    // Its place as if the firmware kept nothing: the loader knows better what it keeps. But room for that has to be.
    let at = linux::place_initrd(&blob, header, kernel_end, memory_end)?;
    linux::place_initrd(&blob, header, kernel_end, memory_end - FIRMWARE_BYTES)?;
    let bytes = blob.whole()?;
    Ok((!bytes.is_empty()).then_some((bytes, at)))
}

#[cfg(test)]
mod tests;
