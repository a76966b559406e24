//! The 64-bit and 32-bit Linux boot protocols (Linux Documentation/arch/x86/boot.rst, zero-page.rst).
//!
//! Puts a bzImage, its initial RAM disk, command line and `boot_params` into guest RAM and says in which
//! state the boot processor starts. Low memory is used like this:
//!
//! ```text
//! 0_0500   GDT of the entry
//! 0_7000   boot_params ("zero page")
//! 0_8000   end of a small stack, growing down
//! 0_9000   page tables of the 64-bit entry: PML4, PDPT, 4 page directories of 2-MByte pages
//! 2_0000   command line
//! ```

use guestmem::{Gpa, GuestRam};
use vcpu::VcpuState;

use super::blob::Blob;
use super::bzimage::SetupHeader;
use super::{BootError, BootRequest, Kernel, entry, zero_page};
use crate::config::Image;
use crate::memory::{EBDA_START, MemoryMap};

/// Where `boot_params` lies.
pub const ZERO_PAGE: Gpa = Gpa(0x7000);
/// Where the command line lies.
pub const CMDLINE: Gpa = Gpa(0x2_0000);

/// Which entry point of a bzImage is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// At the load address, in protected mode.
    Protected,
    /// At 200h from the load address, in 64-bit mode.
    Long,
}

/// Loads everything and returns the boot processor's first state.
pub(super) fn load(
    ram: &GuestRam,
    map: &MemoryMap,
    boot: &BootRequest<'_>,
    kernel: &Kernel<'_>,
    entry: Entry,
) -> Result<VcpuState, BootError> {
    if !boot.modules.is_empty() {
        return Err(BootError::NoModules);
    }
    let header = SetupHeader::parse(kernel.bytes, kernel.size_bytes())
        .map_err(|source| BootError::image(kernel.name, source))?;
    let load = place_kernel(kernel, &header, map)?;
    let code = usize::try_from(header.protected_mode_offset())
        .ok()
        .and_then(|at| kernel.bytes.get(at..))
        .expect("the header was held against the file's size");
    ram.write(load, code)?;

    let kernel_end = load.0 + header.memory_needed(kernel.size_bytes());
    let initrd = match boot.initrd {
        Some(image) => Some(load_initrd(image, &header, kernel_end, ram, map)?),
        None => None,
    };
    write_cmdline(boot.cmdline, &header, ram)?;
    let page = zero_page::build(
        &header,
        &zero_page::Contents {
            load,
            cmdline: CMDLINE,
            initrd,
            rsdp: boot.rsdp,
            map: &map.e820(),
            text_screen: boot.text_screen,
        },
    );
    ram.write(ZERO_PAGE, &page)?;
    Ok(match entry {
        Entry::Long => entry::linux64(ram, load)?,
        Entry::Protected => entry::linux32(ram, load)?,
    })
}

/// Where the kernel goes: where it prefers to be, or, if that is beyond RAM and it is relocatable, as low
/// as its alignment allows.
fn place_kernel(
    kernel: &Kernel<'_>,
    header: &SetupHeader,
    map: &MemoryMap,
) -> Result<Gpa, BootError> {
    let have = map.low_end().0;
    let need = header.memory_needed(kernel.size_bytes());
    let candidates = [Some(header.preferred_address()), header.lowest_address()];
    let fits = |at: &Gpa| at.0.checked_add(need).is_some_and(|end| end <= have);
    candidates
        .into_iter()
        .flatten()
        .find(fits)
        .ok_or_else(|| BootError::KernelTooLarge {
            name: kernel.name.to_owned(),
            have_bytes: have,
            need_bytes: header
                .lowest_address()
                .unwrap_or(header.preferred_address())
                .0
                .saturating_add(need),
        })
}

/// Puts the initial RAM disk as high as the kernel can reach it below the 32-bit hole.
fn load_initrd(
    image: &Image,
    header: &SetupHeader,
    kernel_end: u64,
    ram: &GuestRam,
    map: &MemoryMap,
) -> Result<(Gpa, u64), BootError> {
    let mut blob = Blob::open("initial RAM disk", image)?;
    let start = place_initrd(&blob, header, kernel_end, map.low_end().0)?;
    blob.copy_to(0, ram, start)?;
    Ok((start, blob.size_bytes))
}

/// The highest page from which an initial RAM disk fits behind the kernel, below the end of memory and where the kernel
/// reaches it.
pub(super) fn place_initrd(
    blob: &Blob<'_>,
    header: &SetupHeader,
    kernel_end: u64,
    memory_end: u64,
) -> Result<Gpa, BootError> {
    let size = blob.size_bytes;
    let reach = header.initrd_end_limit();
    if kernel_end.saturating_add(size) > reach {
        return Err(BootError::InitrdBeyondKernel {
            name: blob.name.clone(),
            size_bytes: size,
        });
    }
    memory_end
        .min(reach)
        .checked_sub(size)
        .map(|s| Gpa(s).page())
        .filter(|s| s.0 >= kernel_end)
        .ok_or_else(|| BootError::InitrdTooLarge {
            name: blob.name.clone(),
            size_bytes: size,
            have_bytes: memory_end,
            // Unpacking takes at least as much room again.
            need_bytes: kernel_end + 2 * size,
        })
}

fn write_cmdline(cmdline: &str, header: &SetupHeader, ram: &GuestRam) -> Result<(), BootError> {
    let room = (EBDA_START - CMDLINE.0 - 1) as usize;
    Ok(ram.write(CMDLINE, &cmdline_bytes(cmdline, header, room)?)?)
}

/// The command line with a zero at its end, if the kernel takes it and it has at most `room` characters.
pub(super) fn cmdline_bytes(
    cmdline: &str,
    header: &SetupHeader,
    room: usize,
) -> Result<Vec<u8>, BootError> {
    let limit = header.cmdline_limit().min(room);
    if cmdline.len() > limit {
        return Err(BootError::CmdlineTooLong {
            length: cmdline.len(),
            limit,
        });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    Ok(bytes)
}
