//! Multiboot 1 (Multiboot specification 0.6.96): ELF32, ELF64 and any file with the header's address fields.
//!
//! Modules lie behind the kernel, each at a page boundary; the information structure and what it points to lie
//! in low memory. As loaders do, the command line starts with a word for the kernel itself, which kernels skip.

mod header;

use guestmem::GuestRam;
use vcpu::VcpuState;

use super::place::Room;
use super::program::{self, Information, Loaded, Placement, low};
use super::{BootError, BootRequest, Kernel, entry};
use crate::memory::{MapEntry, MemoryMap, RangeKind};

pub(super) use header::Header;

/// What the kernel is told its loader is.
const LOADER_NAME: &str = "nestling";
/// First word of the command line.
const KERNEL_WORD: &str = "kernel";

/// Fields of the information structure (3.3).
mod field {
    pub const FLAGS: usize = 0;
    pub const MEM_LOWER: usize = 4;
    pub const MEM_UPPER: usize = 8;
    pub const CMDLINE: usize = 16;
    pub const MODS_COUNT: usize = 20;
    pub const MODS_ADDR: usize = 24;
    pub const MMAP_LENGTH: usize = 44;
    pub const MMAP_ADDR: usize = 48;
    pub const BOOT_LOADER_NAME: usize = 64;
    pub const FRAMEBUFFER: usize = 88;
    /// The whole of it, with the framebuffer fields.
    pub const SIZE: usize = 116;
}

/// Which fields are valid.
mod valid {
    pub const MEMORY: u32 = 1 << 0;
    pub const CMDLINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const BOOT_LOADER_NAME: u32 = 1 << 9;
    pub const FRAMEBUFFER: u32 = 1 << 12;
}

/// Why a multiboot image cannot be booted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MultibootError {
    /// Requirement flags that the specification does not know.
    #[error(
        "its multiboot header requires {0:#x}, which multiboot 1 does not have; build it for multiboot 1"
    )]
    Requirements(u32),
    /// Address fields that contradict each other or the file.
    #[error("the addresses in its multiboot header are broken; build or fetch it again")]
    Addresses,
    /// Neither address fields nor ELF headers.
    #[error(
        "it has a multiboot header without addresses and is no ELF file; build it as an ELF file"
    )]
    NoAddresses,
    /// An entry point beyond 32 bits.
    #[error("its entry point is above 4 GiB; link it below")]
    HighEntry,
    /// It needs a video mode.
    #[error("it requires a video mode and the machine has no display; give --vga std")]
    NoDisplay,
}

/// Loads everything and returns the boot processor's first state.
pub(super) fn load(
    ram: &GuestRam,
    map: &MemoryMap,
    boot: &BootRequest<'_>,
    kernel: &Kernel<'_>,
) -> Result<VcpuState, BootError> {
    let not_a_kernel = |e| BootError::image(kernel.name, e);
    let header = Header::find(kernel.bytes)
        .ok_or_else(|| not_a_kernel(super::ImageError::Protocol(boot.protocol)))?;
    if header.wants_video() && !boot.text_screen {
        return Err(not_a_kernel(MultibootError::NoDisplay.into()));
    }
    let program = header.program(kernel.bytes).map_err(not_a_kernel)?;
    let mut room = Room::new(map);
    let end = program::load_segments(ram, &mut room, kernel, &program.segments)?;
    program::check_entry(program.entry, &program.segments).map_err(not_a_kernel)?;
    let modules = program::load_modules(ram, &mut room, boot, Placement::From(end))?;
    let told = Told {
        boot,
        modules: &modules,
        map,
        video: header.wants_video(),
    };
    let info = tell(&mut Information::new(ram, &mut room), &told)?;
    Ok(entry::multiboot(ram, program.entry, info)?)
}

/// What the kernel is told.
struct Told<'a> {
    boot: &'a BootRequest<'a>,
    modules: &'a [Loaded],
    map: &'a MemoryMap,
    /// Whether it asked for a video mode.
    video: bool,
}

/// Writes the information structure and what it points to; gives its address.
fn tell(to: &mut Information<'_>, told: &Told<'_>) -> Result<u32, BootError> {
    let Told {
        boot,
        modules,
        map,
        video,
    } = *told;
    let mut info = vec![0; field::SIZE];
    let mut put = |at: usize, value: u32| info[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let e820 = map.e820();
    let (lower, upper) = memory_kib(&e820);
    put(field::MEM_LOWER, lower);
    put(field::MEM_UPPER, upper);
    let cmdline = match boot.cmdline {
        "" => KERNEL_WORD.to_owned(),
        arguments => format!("{KERNEL_WORD} {arguments}"),
    };
    put(field::CMDLINE, to.put_text(&cmdline)?);
    put(field::BOOT_LOADER_NAME, to.put_text(LOADER_NAME)?);
    let mut list = Vec::new();
    for module in modules {
        let text = to.put_text(&module.text)?;
        let start = low(module.start.0);
        let end = low(module.start.0 + module.size_bytes);
        // mod_start, mod_end, string, reserved.
        for word in [start, end, text, 0] {
            list.extend(word.to_le_bytes());
        }
    }
    put(field::MODS_COUNT, modules.len() as u32);
    if !list.is_empty() {
        put(field::MODS_ADDR, to.put(&list)?);
    }
    let memory: Vec<u8> = e820.iter().flat_map(map_entry).collect();
    put(field::MMAP_LENGTH, memory.len() as u32);
    put(field::MMAP_ADDR, to.put(&memory)?);
    let framebuffer = if video { valid::FRAMEBUFFER } else { 0 };
    put(
        field::FLAGS,
        framebuffer
            | valid::MEMORY
            | valid::CMDLINE
            | valid::MODULES
            | valid::MEMORY_MAP
            | valid::BOOT_LOADER_NAME,
    );
    if video {
        info[field::FRAMEBUFFER..][..TEXT_SCREEN.len()].copy_from_slice(&TEXT_SCREEN);
    }
    to.put(&info)
}

/// The framebuffer fields of text mode 3: address (64 bits), pitch, width, height (32 bits each), bits a cell,
/// type 2 for text. A mode that the header prefers is no more than a preference (3.1.4).
const TEXT_SCREEN: [u8; 22] = {
    let mut b = [0; 22];
    (b[1], b[2]) = (0x80, 0x0b);
    (b[8], b[12], b[16], b[20], b[21]) = (160, 80, 25, 16, 2);
    b
};

/// Memory from 0 and from 1 MByte to its first hole, in KByte.
fn memory_kib(map: &[MapEntry]) -> (u32, u32) {
    let ram_at = |base: u64| {
        map.iter()
            .find(|e| e.base.0 == base && e.kind == RangeKind::Ram)
            .map_or(0, |e| low(e.size_bytes >> 10))
    };
    (ram_at(0), ram_at(crate::memory::HIGH_MEMORY_START))
}

/// An entry of the memory map: its size without the size field, base, length, type.
fn map_entry(e: &MapEntry) -> Vec<u8> {
    const ENTRY_BYTES: u32 = 20;
    let mut bytes = ENTRY_BYTES.to_le_bytes().to_vec();
    bytes.extend(e.base.0.to_le_bytes());
    bytes.extend(e.size_bytes.to_le_bytes());
    bytes.extend((e.kind as u32).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests;
