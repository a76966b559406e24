//! The header of a multiboot image (Multiboot specification 0.6.96, 3.1).

use super::MultibootError;
use crate::boot::elf::{Elf, Segment};

/// The header lies in so many bytes from the start of the file.
pub(crate) const SEARCH_BYTES: usize = 8192;
const MAGIC: u32 = 0x1bad_b002;
/// Flags 0 to 15 are requirements: a loader that does not know one must refuse the image.
const REQUIREMENTS: u32 = 0xffff;

mod flag {
    /// Modules start at page boundaries; ours always do.
    pub const ALIGN_MODULES: u32 = 1 << 0;
    /// Memory sizes and map are wanted; they are always given.
    pub const MEMORY: u32 = 1 << 1;
    /// A video mode is wanted.
    pub const VIDEO: u32 = 1 << 2;
    /// The address fields are valid and used instead of the ELF headers.
    pub const ADDRESSES: u32 = 1 << 16;
}

/// The address fields, all physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where the header itself is to be.
    header: u32,
    /// Start of text and data.
    load: u32,
    /// End of text and data; 0 for the end of the file.
    load_end: u32,
    /// End of the zeroed memory; 0 for none.
    bss_end: u32,
    /// Where the loader jumps to.
    entry: u32,
}

/// A multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where it lies in the file.
    offset: usize,
    flags: u32,
    addresses: Option<Addresses>,
}

/// What an image asks to be loaded, and where it starts.
pub(super) struct Program<'a> {
    /// Segments with physical addresses.
    pub segments: Vec<Segment<'a>>,
    /// Physical address of the entry point.
    pub entry: u32,
}

impl Header {
    /// Looks for the header: at a multiple of 4, wholly in the first 8192 bytes, its three words summing to 0.
    #[must_use]
    pub fn find(file: &[u8]) -> Option<Self> {
        let file = &file[..file.len().min(SEARCH_BYTES)];
        let word = |at: usize| {
            let bytes = file.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let is_header = |&at: &usize| {
            word(at) == Some(MAGIC)
                && matches!((word(at + 4), word(at + 8)), (Some(flags), Some(checksum))
                    if MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0)
        };
        let offset = (0..file.len()).step_by(4).find(is_header)?;
        let flags = word(offset + 4)?;
        let field = |i: usize| word(offset + 12 + 4 * i);
        let addresses = match flags & flag::ADDRESSES {
            0 => None,
            // A header without room for the fields it announces is none.
            _ => Some(Addresses {
                header: field(0)?,
                load: field(1)?,
                load_end: field(2)?,
                bss_end: field(3)?,
                entry: field(4)?,
            }),
        };
        Some(Self {
            offset,
            flags,
            addresses,
        })
    }

    /// What is to be loaded, by the address fields or else by the ELF headers.
    pub(super) fn program<'a>(
        &self,
        file: &'a [u8],
    ) -> Result<Program<'a>, crate::boot::ImageError> {
        let known = flag::ALIGN_MODULES | flag::MEMORY | flag::VIDEO;
        let unknown = self.flags & REQUIREMENTS & !known;
        if unknown != 0 {
            return Err(MultibootError::Requirements(unknown).into());
        }
        if let Some(addresses) = &self.addresses {
            return Ok(self.by_addresses(file, addresses)?);
        }
        if !file.starts_with(crate::boot::elf::MAGIC) {
            return Err(MultibootError::NoAddresses.into());
        }
        let elf = Elf::parse(file)?;
        let entry = u32::try_from(elf.physical_entry()).map_err(|_| MultibootError::HighEntry)?;
        Ok(Program {
            segments: elf.segments,
            entry,
        })
    }

    fn by_addresses<'a>(
        &self,
        file: &'a [u8],
        a: &Addresses,
    ) -> Result<Program<'a>, MultibootError> {
        let broken = MultibootError::Addresses;
        // The text starts as far before the header in the file as in memory.
        let before = a.header.checked_sub(a.load).ok_or(broken.clone())?;
        let from = self
            .offset
            .checked_sub(before as usize)
            .ok_or(broken.clone())?;
        let to = match a.load_end {
            0 => file.len(),
            end => from + end.checked_sub(a.load).ok_or(broken.clone())? as usize,
        };
        let bytes = file.get(from..to).ok_or(broken.clone())?;
        let end = u64::from(a.load) + bytes.len() as u64;
        let memory_end = match a.bss_end {
            0 => end,
            bss_end => u64::from(bss_end),
        };
        if memory_end < end {
            return Err(broken);
        }
        Ok(Program {
            segments: vec![Segment {
                linear: a.load.into(),
                physical: a.load.into(),
                bytes,
                memory_bytes: memory_end - u64::from(a.load),
            }],
            entry: a.entry,
        })
    }

    /// Whether the image wants a video mode.
    pub(super) fn wants_video(&self) -> bool {
        self.flags & flag::VIDEO != 0
    }
}
