//! ELF programs for the bare machine: what to load where, and the notes a loader looks for (System V ABI,
//! "Object Files" and "Program Loading").

use object::Endianness;
use object::elf::{
    EM_386, EM_X86_64, ET_DYN, ET_EXEC, FileHeader32, FileHeader64, NoteType, PT_LOAD, PT_NOTE,
};
use object::read::elf::{FileHeader, ProgramHeader};

/// What an ELF file starts with.
pub(super) const MAGIC: &[u8] = b"\x7fELF";
/// Most loadable segments there may be; a limit against made-up files, real ones have a handful.
const MAX_SEGMENTS: usize = 256;
/// Name and type of the note with the 32-bit entry (Xen public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`).
const XEN: &[u8] = b"Xen";
const PHYS32_ENTRY: NoteType = NoteType(18);

/// Why an ELF file cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Headers that do not parse.
    #[error("its ELF headers are broken; build or fetch it again")]
    Headers,
    /// Not for this processor.
    #[error("it is an ELF file for another processor; use one for x86")]
    Machine,
    /// An object file or a core.
    #[error("it is an ELF file that is no linked program; link it first")]
    Type,
    /// No segment, or too many.
    #[error("its ELF headers name {0} loadable segments; link it with 1 to {MAX_SEGMENTS}")]
    Segments(usize),
    /// A segment that is not in the file, or larger there than in memory.
    #[error("segment {0} of the ELF file is cut short or broken; build or fetch it again")]
    Segment(usize),
    /// A note for the 32-bit entry that holds no 32-bit address.
    #[error("its note with the PVH entry is broken; build it again")]
    PvhNote,
}

/// A loadable segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Linear address it is linked for.
    pub linear: u64,
    /// Physical address it goes to.
    pub physical: u64,
    /// Its bytes in the file.
    pub bytes: &'a [u8],
    /// Its size in memory, at least that of `bytes`; the rest is zero.
    pub memory_bytes: u64,
}

/// A checked ELF program.
#[derive(Clone, PartialEq, Eq)]
pub struct Elf<'a> {
    /// Entry point as the header states it.
    pub entry: u64,
    /// What to load. Neither `physical` nor `linear` plus `memory_bytes` overflows.
    pub segments: Vec<Segment<'a>>,
    /// Physical address of the PVH entry, when a note names one.
    pub pvh_entry: Option<u32>,
}

impl<'a> Elf<'a> {
    /// Reads the headers of a 32- or 64-bit little-endian x86 program.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn parse(data: &'a [u8]) -> Result<Self, ElfError> {
        const CLASS: usize = 4;
        const CLASS_64: u8 = 2;
        match data.get(CLASS) {
            Some(&CLASS_64) => read::<FileHeader64<Endianness>>(data),
            _ => read::<FileHeader32<Endianness>>(data),
        }
    }

    /// The entry point as a physical address: the header's is a linear address, as everything in it.
    #[must_use]
    pub fn physical_entry(&self) -> u64 {
        self.segments
            .iter()
            .find_map(|s| {
                let into = self.entry.checked_sub(s.linear)?;
                (into < s.memory_bytes).then(|| s.physical + into)
            })
            .unwrap_or(self.entry)
    }
}

fn read<'a, H>(data: &'a [u8]) -> Result<Elf<'a>, ElfError>
where
    H: FileHeader<Endian = Endianness>,
{
    let broken = |_| ElfError::Headers;
    let header = H::parse(data).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    if endian != Endianness::Little || ![EM_386, EM_X86_64].contains(&header.e_machine(endian)) {
        return Err(ElfError::Machine);
    }
    if ![ET_EXEC, ET_DYN].contains(&header.e_type(endian)) {
        return Err(ElfError::Type);
    }
    let headers = header.program_headers(endian, data).map_err(broken)?;
    let loadable = headers.iter().filter(|h| h.p_type(endian) == PT_LOAD);
    let count = loadable.clone().count();
    if !(1..=MAX_SEGMENTS).contains(&count) {
        return Err(ElfError::Segments(count));
    }
    let segments = loadable
        .enumerate()
        .map(|(i, h)| segment::<H>(data, h, endian).ok_or(ElfError::Segment(i)))
        .collect::<Result<_, _>>()?;
    let mut pvh_entry = None;
    for h in headers.iter().filter(|h| h.p_type(endian) == PT_NOTE) {
        if let Some(entry) = pvh_note::<H>(data, h, endian)? {
            pvh_entry = Some(entry);
        }
    }
    Ok(Elf {
        entry: header.e_entry(endian).into(),
        segments,
        pvh_entry,
    })
}

fn segment<'a, H>(data: &'a [u8], h: &H::ProgramHeader, endian: Endianness) -> Option<Segment<'a>>
where
    H: FileHeader<Endian = Endianness>,
{
    let (linear, physical) = (h.p_vaddr(endian).into(), h.p_paddr(endian).into());
    let memory_bytes: u64 = h.p_memsz(endian).into();
    let file_bytes: u64 = h.p_filesz(endian).into();
    let from = usize::try_from(h.p_offset(endian).into()).ok()?;
    let to = from.checked_add(usize::try_from(file_bytes).ok()?)?;
    // A segment without bytes may have any offset.
    let bytes = if from == to {
        &[][..]
    } else {
        data.get(from..to)?
    };
    let ends =
        linear.checked_add(memory_bytes).is_some() && physical.checked_add(memory_bytes).is_some();
    (file_bytes <= memory_bytes && ends).then_some(Segment {
        linear,
        physical,
        bytes,
        memory_bytes,
    })
}

/// The 32-bit entry named in a note segment: an address of 4 or, in ELF64, 8 bytes.
fn pvh_note<H>(
    data: &[u8],
    h: &H::ProgramHeader,
    endian: Endianness,
) -> Result<Option<u32>, ElfError>
where
    H: FileHeader<Endian = Endianness>,
{
    let notes = h.notes(endian, data).map_err(|_| ElfError::Headers)?;
    let mut notes = notes.ok_or(ElfError::Headers)?;
    while let Some(note) = notes.next().map_err(|_| ElfError::Headers)? {
        if note.name() != XEN || note.n_type(endian) != PHYS32_ENTRY {
            continue;
        }
        let desc = note.desc();
        let mut address = [0; 8];
        if ![4, 8].contains(&desc.len()) {
            return Err(ElfError::PvhNote);
        }
        address[..desc.len()].copy_from_slice(desc);
        let address = u64::from_le_bytes(address);
        return u32::try_from(address)
            .map(Some)
            .map_err(|_| ElfError::PvhNote);
    }
    Ok(None)
}

#[cfg(test)]
pub(super) mod tests;
