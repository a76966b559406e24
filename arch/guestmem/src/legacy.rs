//! The legacy area below 1 MByte: what answers there is switched by the chipset's PAM registers.
//!
//! ```text
//! A_0000 .. C_0000   video memory: never RAM as the guest sees it
//! C_0000 .. 10_0000  16 pieces of 16 KByte, each with a read and a write switch
//! ```
//!
//! A piece whose read switch is on reads RAM, else what the board has there: the end of the firmware's ROM in
//! the last 128 KByte, nothing below. One whose write switch is on writes RAM, else the write goes to the board,
//! which drops it (82G33 datasheet 5.1.18, "PAM0", and the table there).

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{RamOffset, RamRegion};

/// Start of the video memory.
pub(crate) const START: u64 = 0xa_0000;
/// First address with switches.
const SWITCHED: u64 = 0xc_0000;
/// End of the area.
pub(crate) const END: u64 = 0x10_0000;
/// Start of the firmware's alias.
const FIRMWARE: u64 = 0xe_0000;
/// log2 of a piece's bytes.
const PIECE_SHIFT: u32 = 14;
/// Number of pieces.
const PIECES: u32 = ((END - SWITCHED) >> PIECE_SHIFT) as u32;

/// The switches of all pieces: two bits each, read in the lower, write in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacySwitches(u32);

impl LegacySwitches {
    /// After a reset: reads come from the board, writes go there.
    pub const BOARD: Self = Self(0);
    /// As firmware leaves it where nothing is to be protected: RAM everywhere.
    pub const RAM: Self = Self(u32::MAX);

    /// These, with the pieces that touch `first..=last` (within C0000h to FFFFFh) switched.
    #[must_use]
    pub fn with(self, first: u64, last: u64, read: bool, write: bool) -> Self {
        let mut bits = self.0;
        for piece in piece_of(first)..=piece_of(last) {
            let value = u32::from(read) | u32::from(write) << 1;
            bits = bits & !(3 << (2 * piece)) | value << (2 * piece);
        }
        Self(bits)
    }
}

/// The piece of an address; the nearest for one outside.
fn piece_of(gpa: u64) -> u32 {
    (gpa.saturating_sub(SWITCHED) >> PIECE_SHIFT).min(u64::from(PIECES) - 1) as u32
}

/// A stretch of the area with one backing; for engines that hand it to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) start: u64,
    pub(crate) read: Option<RamOffset>,
    pub(crate) write: Option<RamOffset>,
}

/// The area in the mapping.
#[derive(Debug)]
pub(crate) struct LegacyArea {
    /// Where RAM for address 0 is.
    ram: RamOffset,
    /// Where the ROM's byte for E0000h is, if there is a ROM.
    firmware: Option<RamOffset>,
    switches: AtomicU32,
}

impl LegacyArea {
    /// `ram` holds the area; `firmware` is the ROM of which the last 128 KByte are seen.
    pub(crate) fn new(ram: &RamRegion, firmware: Option<&RamRegion>) -> Self {
        Self {
            ram: ram.offset,
            firmware: firmware
                .filter(|rom| rom.size_bytes >= END - FIRMWARE)
                .map(|rom| RamOffset(rom.offset.0 + rom.size_bytes - (END - FIRMWARE))),
            switches: AtomicU32::new(LegacySwitches::RAM.0),
        }
    }

    /// Sets all switches; whether any changed.
    pub(crate) fn set(&self, switches: LegacySwitches) -> bool {
        self.switches.swap(switches.0, Ordering::SeqCst) != switches.0
    }

    /// What answers at `gpa`, which lies in the area.
    fn backing(&self, gpa: u64, write: bool) -> Option<RamOffset> {
        if gpa < SWITCHED {
            return None;
        }
        let switches = self.switches.load(Ordering::Acquire) >> (2 * piece_of(gpa));
        if switches >> u32::from(write) & 1 != 0 {
            return Some(RamOffset(self.ram.0 + gpa));
        }
        match self.firmware {
            Some(rom) if !write && gpa >= FIRMWARE => Some(RamOffset(rom.0 + gpa - FIRMWARE)),
            _ => None,
        }
    }

    /// Where `len` bytes from `gpa`, which lies in the area, are in the mapping, if they are in one run there.
    pub(crate) fn find(&self, gpa: u64, len: u64, write: bool) -> Option<RamOffset> {
        let last = gpa.checked_add(len.max(1) - 1).filter(|&last| last < END)?;
        let start = self.backing(gpa, write)?;
        let piece = 1 << PIECE_SHIFT;
        let mut next = (gpa | (piece - 1)) + 1;
        while next <= last {
            if self.backing(next, write)?.0 != start.0 + (next - gpa) {
                return None;
            }
            next += piece;
        }
        Some(start)
    }

    /// The pieces with their backings.
    pub(crate) fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        (0..u64::from(PIECES)).map(|piece| {
            let start = SWITCHED + (piece << PIECE_SHIFT);
            Stretch {
                start,
                read: self.backing(start, false),
                write: self.backing(start, true),
            }
        })
    }

    /// Bytes of a stretch.
    pub(crate) const STRETCH_BYTES: u64 = 1 << PIECE_SHIFT;
}
