//! The 64-bit Linux boot protocol (Linux Documentation/arch/x86/boot.rst, zero-page.rst).
//!
//! Puts a bzImage, its initial RAM disk, command line and `boot_params` into guest RAM and says in which
//! state the boot processor starts. Low memory is used like this:
//!
//! ```text
//! 0_0400   BIOS data area (base memory size, segment of the EBDA)
//! 0_0500   GDT of the 64-bit entry
//! 0_7000   boot_params ("zero page")
//! 0_8000   end of a small stack, growing down
//! 0_9000   page tables: PML4, PDPT, 4 page directories of 2-MByte pages
//! 2_0000   command line
//! ```

mod bzimage;
mod entry;
mod zero_page;

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};

use guestmem::{Gpa, GuestRam, RamError};
use vcpu::VcpuState;

use crate::config::Image;
use crate::memory::{EBDA_START, LEGACY_START, MemoryMap};

pub use bzimage::{HeaderError, SetupHeader};
pub use zero_page::ZERO_PAGE_SIZE;

/// Where `boot_params` lies.
pub const ZERO_PAGE: Gpa = Gpa(0x7000);
/// Where the command line lies.
pub const CMDLINE: Gpa = Gpa(0x2_0000);
const BIOS_DATA_AREA: Gpa = Gpa(0x400);

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("cannot read the {what} {name}: {source}")]
    Unreadable {
        /// "kernel" or "initial RAM disk".
        what: &'static str,
        /// Which one.
        name: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// The file is no bzImage we can start.
    #[error("{name} is not a kernel that can be booted: {source}")]
    NotAKernel {
        /// Which one.
        name: String,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// The kernel does not fit into RAM.
    #[error(
        "{} MiB of memory is too little for the kernel {name}, which needs RAM up to {} MiB; give the VM more memory",
        have_bytes >> 20, (need_bytes >> 20) + 1
    )]
    KernelTooLarge {
        /// Which one.
        name: String,
        /// Low RAM there is.
        have_bytes: u64,
        /// Low RAM needed.
        need_bytes: u64,
    },
    /// The initial RAM disk does not fit beside the kernel.
    #[error(
        "the initial RAM disk {name} of {} MiB does not fit beside the kernel into {} MiB of memory; give the VM at least {} MiB",
        size_bytes.div_ceil(1 << 20), have_bytes >> 20, need_bytes.div_ceil(1 << 20)
    )]
    InitrdTooLarge {
        /// Which one.
        name: String,
        /// Its size.
        size_bytes: u64,
        /// Low RAM there is.
        have_bytes: u64,
        /// Low RAM that would be enough, as far as the kernel can reach.
        need_bytes: u64,
    },
    /// The initial RAM disk lies beyond what this kernel can reach, whatever the memory.
    #[error(
        "the initial RAM disk {name} of {size_bytes} bytes is larger than this kernel accepts; use a smaller one"
    )]
    InitrdBeyondKernel {
        /// Which one.
        name: String,
        /// Its size.
        size_bytes: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error(
        "the kernel command line has {length} characters, this kernel takes at most {limit}; shorten it"
    )]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// The longest there may be.
        limit: usize,
    },
    /// The board's own tables do not fit (RAM is smaller than the board's minimum).
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct LinuxBoot<'a> {
    /// The bzImage.
    pub kernel: &'a Image,
    /// Initial RAM disk.
    pub initrd: Option<&'a Image>,
    /// Command line, without NUL.
    pub cmdline: &'a str,
    /// Where the RSDP lies.
    pub rsdp: Gpa,
}

trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

/// Bytes that go to guest RAM.
struct Blob<'a> {
    source: Box<dyn Source + 'a>,
    what: &'static str,
    name: String,
    size_bytes: u64,
}

impl<'a> Blob<'a> {
    fn open(what: &'static str, image: &'a Image) -> Result<Self, BootError> {
        let name = image.name();
        let (source, size_bytes): (Box<dyn Source + 'a>, u64) = match image {
            Image::Bytes(bytes) => (Box::new(Cursor::new(bytes.as_slice())), bytes.len() as u64),
            Image::File(path) => {
                let open = || {
                    let file = File::open(path)?;
                    let meta = file.metadata()?;
                    if !meta.is_file() {
                        return Err(std::io::Error::other("it is not a regular file"));
                    }
                    Ok((file, meta.len()))
                };
                let (file, size) = open().map_err(|source| BootError::Unreadable {
                    what,
                    name: name.clone(),
                    source,
                })?;
                (Box::new(file), size)
            }
        };
        Ok(Self {
            source,
            what,
            name,
            size_bytes,
        })
    }

    fn unreadable(&self, source: std::io::Error) -> BootError {
        BootError::Unreadable {
            what: self.what,
            name: self.name.clone(),
            source,
        }
    }

    /// Copies everything from `start` on to `gpa`; at most as much as the file had when it was opened.
    fn copy_to(&mut self, start: u64, ram: &GuestRam, gpa: Gpa) -> Result<(), BootError> {
        self.source
            .seek(SeekFrom::Start(start))
            .map_err(|e| self.unreadable(e))?;
        let mut left = self.size_bytes.saturating_sub(start);
        let mut at = gpa;
        let mut chunk = vec![0u8; 1 << 20];
        while left > 0 {
            let len = usize::try_from(left).map_or(chunk.len(), |l| l.min(chunk.len()));
            let part = &mut chunk[..len];
            self.source
                .read_exact(part)
                .map_err(|e| self.unreadable(e))?;
            ram.write(at, part)?;
            at = at.offset(part.len() as u64);
            left -= part.len() as u64;
        }
        Ok(())
    }
}

/// Loads everything and returns the boot processor's first state.
///
/// # Errors
/// [`BootError`]: which file or size is wrong, and what to do.
pub fn load(ram: &GuestRam, map: &MemoryMap, boot: &LinuxBoot<'_>) -> Result<VcpuState, BootError> {
    let mut kernel = Blob::open("kernel", boot.kernel)?;
    let header = read_header(&mut kernel)?;
    let load = place_kernel(&kernel, &header, map)?;
    let code_start = header.protected_mode_offset();
    kernel.copy_to(code_start, ram, load)?;

    let kernel_end = load.0 + header.memory_needed(kernel.size_bytes);
    let initrd = match boot.initrd {
        Some(image) => Some(load_initrd(image, &header, kernel_end, ram, map)?),
        None => None,
    };
    write_cmdline(boot.cmdline, &header, ram)?;
    write_bios_data(ram)?;
    let page = zero_page::build(
        &header,
        &zero_page::Contents {
            load,
            cmdline: CMDLINE,
            initrd,
            rsdp: boot.rsdp,
            map: &map.e820(),
        },
    );
    ram.write(ZERO_PAGE, &page)?;
    Ok(entry::prepare(ram, load)?)
}

fn read_header(kernel: &mut Blob<'_>) -> Result<SetupHeader, BootError> {
    let mut start = Vec::with_capacity(bzimage::HEADER_END);
    (&mut kernel.source)
        .take(bzimage::HEADER_END as u64)
        .read_to_end(&mut start)
        .map_err(|e| kernel.unreadable(e))?;
    SetupHeader::parse(&start, kernel.size_bytes).map_err(|source| BootError::NotAKernel {
        name: kernel.name.clone(),
        source,
    })
}

/// Where the kernel goes: where it prefers to be, or, if that is beyond RAM and it is relocatable, as low
/// as its alignment allows.
fn place_kernel(
    kernel: &Blob<'_>,
    header: &SetupHeader,
    map: &MemoryMap,
) -> Result<Gpa, BootError> {
    let have = map.low_end().0;
    let need = header.memory_needed(kernel.size_bytes);
    let candidates = [Some(header.preferred_address()), header.lowest_address()];
    let fits = |at: &Gpa| at.0.checked_add(need).is_some_and(|end| end <= have);
    candidates
        .into_iter()
        .flatten()
        .find(fits)
        .ok_or_else(|| BootError::KernelTooLarge {
            name: kernel.name.clone(),
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
    let size = blob.size_bytes;
    let reach = header.initrd_end_limit();
    if kernel_end.saturating_add(size) > reach {
        return Err(BootError::InitrdBeyondKernel {
            name: blob.name.clone(),
            size_bytes: size,
        });
    }
    let have = map.low_end().0;
    let start = have
        .min(reach)
        .checked_sub(size)
        .map(|s| Gpa(s).page())
        .filter(|s| s.0 >= kernel_end)
        .ok_or_else(|| BootError::InitrdTooLarge {
            name: blob.name.clone(),
            size_bytes: size,
            have_bytes: have,
            // Unpacking takes at least as much room again.
            need_bytes: kernel_end + 2 * size,
        })?;
    blob.copy_to(0, ram, start)?;
    Ok((start, size))
}

fn write_cmdline(cmdline: &str, header: &SetupHeader, ram: &GuestRam) -> Result<(), BootError> {
    let room = (EBDA_START - CMDLINE.0 - 1) as usize;
    let limit = header.cmdline_limit().min(room);
    if cmdline.len() > limit {
        return Err(BootError::CmdlineTooLong {
            length: cmdline.len(),
            limit,
        });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    Ok(ram.write(CMDLINE, &bytes)?)
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
