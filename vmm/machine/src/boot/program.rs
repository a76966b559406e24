//! What multiboot and PVH have in common: segments to physical addresses, modules, and what the kernel is told.

use guestmem::{Gpa, GuestRam, PAGE_SIZE};

use super::blob::Blob;
use super::elf::Segment;
use super::place::Room;
use super::{BootError, BootRequest, ImageError, Kernel};

/// Where modules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// Above this address, one after the other.
    From(u64),
    /// As high as possible.
    High,
}

/// A module in guest RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Its first byte; page aligned.
    pub start: Gpa,
    /// Its length.
    pub size_bytes: u64,
    /// Its command line.
    pub text: String,
}

/// Copies segments to where they belong and takes their memory. Gives the end of the highest.
pub(super) fn load_segments(
    ram: &GuestRam,
    room: &mut Room,
    kernel: &Kernel<'_>,
    segments: &[Segment<'_>],
) -> Result<u64, BootError> {
    let mut end = 0;
    for s in segments.iter().filter(|s| s.memory_bytes > 0) {
        if !room.take(s.physical, s.memory_bytes) {
            return Err(BootError::SegmentOutsideRam {
                name: kernel.name.to_owned(),
                start: s.physical,
                size_bytes: s.memory_bytes,
            });
        }
        // What follows the bytes of the file is zero: nobody has written to it yet.
        ram.write(Gpa(s.physical), s.bytes)?;
        end = end.max(s.physical + s.memory_bytes);
    }
    Ok(end)
}

/// Checks that a kernel is entered where one of its segments is.
pub(super) fn check_entry(entry: u32, segments: &[Segment<'_>]) -> Result<(), ImageError> {
    let inside = |s: &Segment<'_>| {
        let into = u64::from(entry).checked_sub(s.physical);
        into.is_some_and(|into| into < s.memory_bytes)
    };
    match segments.iter().any(inside) {
        true => Ok(()),
        false => Err(ImageError::EntryOutside(entry)),
    }
}

/// Copies the initial RAM disk and the modules to guest RAM.
pub(super) fn load_modules(
    ram: &GuestRam,
    room: &mut Room,
    boot: &BootRequest<'_>,
    placement: Placement,
) -> Result<Vec<Loaded>, BootError> {
    let initrd = boot
        .initrd
        .map(|image| ("initial RAM disk", image, "initrd"));
    let modules = boot
        .modules
        .iter()
        .map(|m| ("module", &m.image, m.text.as_str()));
    let mut loaded = Vec::new();
    for (what, image, text) in initrd.into_iter().chain(modules) {
        let mut blob = Blob::open(what, image)?;
        let size_bytes = blob.size_bytes;
        let start = match placement {
            Placement::From(lowest) => room.lowest(lowest, size_bytes, PAGE_SIZE),
            Placement::High => room.highest(size_bytes, PAGE_SIZE),
        };
        let start = start.ok_or_else(|| BootError::ModuleTooLarge {
            name: blob.name.clone(),
            size_bytes,
        })?;
        blob.copy_to(0, ram, start)?;
        loaded.push(Loaded {
            start,
            size_bytes,
            text: text.to_owned(),
        });
    }
    Ok(loaded)
}

/// What a loader tells the kernel, in low memory.
pub(super) struct Information<'a> {
    ram: &'a GuestRam,
    room: &'a mut Room,
}

impl<'a> Information<'a> {
    /// Takes its memory from `room`.
    pub fn new(ram: &'a GuestRam, room: &'a mut Room) -> Self {
        Self { ram, room }
    }

    /// Puts `bytes` somewhere below 4 GByte, at a multiple of 16.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u32, BootError> {
        let size = bytes.len() as u64;
        let gpa = self
            .room
            .lowest(0, size, 16)
            .ok_or(BootError::NoRoomForInformation(size))?;
        self.ram.write(gpa, bytes)?;
        Ok(low(gpa.0))
    }

    /// Puts a text with its terminating zero.
    pub fn put_text(&mut self, text: &str) -> Result<u32, BootError> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(&bytes)
    }
}

/// An address or size of something that was placed below 4 GByte.
pub(super) fn low(value: u64) -> u32 {
    u32::try_from(value).expect("boot data is placed below 4 GByte")
}
