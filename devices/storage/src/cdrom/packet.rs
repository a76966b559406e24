//! The packets a drive understands: SPC-3 and MMC-6, cited by section.

use super::{CdRom, FIRMWARE, MODEL};
use crate::ata::{BusFault, Data};
use crate::raw::CD_SECTOR_BYTES;

/// Operation codes.
mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const SEEK_10: u8 = 0x2b;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_12: u8 = 0xa8;
    pub const MECHANISM_STATUS: u8 = 0xbd;
}

/// What went wrong (SPC-3 4.5): sense key, additional sense code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense {
    pub key: u8,
    code: u8,
    qualifier: u8,
}

impl Sense {
    pub const NONE: Self = Self::new(0, 0, 0);
    const UNREADABLE: Self = Self::new(3, 0x11, 0);
    const BAD_OPERATION: Self = Self::new(5, 0x20, 0);
    const BAD_ADDRESS: Self = Self::new(5, 0x21, 0);
    const BAD_FIELD: Self = Self::new(5, 0x24, 0);
    const RESET: Self = Self::new(6, 0x29, 0);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self {
            key,
            code,
            qualifier,
        }
    }

    /// Fixed format (SPC-3 4.5.3).
    fn bytes(self) -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = 10;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes
    }
}

/// What is left of a read: sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    next: u64,
    end: u64,
}

/// The end of a packet as the host sees it.
type Ended = Result<(), Sense>;

/// The track the one session's data is in, and the lead-out's number (MMC-6 6.25).
const FIRST_TRACK: u8 = 1;
const LEAD_OUT: u8 = 0xaa;
/// ADR 1, control: data track.
const DATA_TRACK: u8 = 0x14;
/// Current profile: CD-ROM (MMC-6 5.3.1).
const PROFILE_CD_ROM: u16 = 0x0008;
/// Data goes in pieces of so many sectors.
const PIECE_SECTORS: u64 = 32;
/// Frames of a second, and those before address zero (MMC-6 table 652).
const FRAMES: u32 = 75;
const PREGAP: u32 = 150;

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Sends at most `allocation` bytes: what a host gives room for less is no error (SPC-3 4.3.4.6).
fn send(data: &mut dyn Data, bytes: &[u8], allocation: usize) -> Result<Ended, BusFault> {
    data.send(&bytes[..bytes.len().min(allocation)])?;
    Ok(Ok(()))
}

impl CdRom {
    /// Performs a packet; a read only so far that there is something in `reading`. The inner error is the sense data.
    pub(super) fn perform(
        &mut self,
        packet: &[u8; 16],
        data: &mut dyn Data,
    ) -> Result<Ended, BusFault> {
        let p = packet;
        let operation = p[0];
        // Commands that do not report a unit attention (SPC-3 5.8; MMC-6 4.1.6.1).
        let quiet = matches!(
            operation,
            op::INQUIRY | op::REQUEST_SENSE | op::GET_CONFIGURATION | op::GET_EVENT_STATUS
        );
        if self.attention && !quiet {
            self.attention = false;
            return Ok(Err(Sense::RESET));
        }
        let allocation = usize::from(be16(&p[7..9]));
        match operation {
            op::REQUEST_SENSE => self.request_sense(p[4].into(), data),
            op::INQUIRY if p[1] & 1 != 0 => Ok(Err(Sense::BAD_FIELD)),
            op::INQUIRY => send(data, &inquiry(), be16(&p[3..5]).into()),
            // The disc is always there, ready, and cannot be taken out.
            op::TEST_UNIT_READY | op::PREVENT_ALLOW => Ok(Ok(())),
            // MMC-6 6.42: an eject is refused.
            op::START_STOP_UNIT if p[4] & 3 == 2 => Ok(Err(Sense::BAD_FIELD)),
            op::START_STOP_UNIT => Ok(Ok(())),
            op::READ_CAPACITY => {
                let mut bytes = [0; 8];
                bytes[..4].copy_from_slice(&self.sectors().saturating_sub(1).to_be_bytes());
                bytes[4..].copy_from_slice(&(CD_SECTOR_BYTES as u32).to_be_bytes());
                send(data, &bytes, bytes.len())
            }
            op::READ_10 => Ok(self.read(be32(&p[2..6]), be16(&p[7..9]).into())),
            op::READ_12 => Ok(self.read(be32(&p[2..6]), be32(&p[6..10]))),
            op::SEEK_10 if be32(&p[2..6]) < self.sectors() => Ok(Ok(())),
            op::SEEK_10 => Ok(Err(Sense::BAD_ADDRESS)),
            op::READ_TOC => match self.table_of_contents(p) {
                Some(bytes) => send(data, &bytes, allocation),
                None => Ok(Err(Sense::BAD_FIELD)),
            },
            op::GET_CONFIGURATION => send(data, &configuration(p), allocation),
            // MMC-6 6.6: only the polled form is there.
            op::GET_EVENT_STATUS if p[1] & 1 == 0 => Ok(Err(Sense::BAD_FIELD)),
            op::GET_EVENT_STATUS => send(data, &event_status(p[4]), allocation),
            op::READ_DISC_INFORMATION if p[1] & 7 == 0 => {
                send(data, &disc_information(), allocation)
            }
            op::READ_DISC_INFORMATION => Ok(Err(Sense::BAD_FIELD)),
            op::MODE_SENSE_6 => match mode_pages(p[2]) {
                Some(pages) => send(data, &with_header_6(&pages), p[4].into()),
                None => Ok(Err(Sense::BAD_FIELD)),
            },
            op::MODE_SENSE_10 => match mode_pages(p[2]) {
                Some(pages) => send(data, &with_header_10(&pages), allocation),
                None => Ok(Err(Sense::BAD_FIELD)),
            },
            // MMC-6 6.11: nothing in a changer.
            op::MECHANISM_STATUS => send(data, &[0; 8], be16(&p[8..10]).into()),
            _ => Ok(Err(Sense::BAD_OPERATION)),
        }
    }

    /// Sectors of the disc; what does not fit 32 bits is not offered.
    fn sectors(&self) -> u32 {
        u32::try_from(self.disc.size_bytes() / CD_SECTOR_BYTES).unwrap_or(u32::MAX)
    }

    fn request_sense(&mut self, allocation: usize, data: &mut dyn Data) -> Result<Ended, BusFault> {
        let sense = match std::mem::take(&mut self.attention) {
            true => Sense::RESET,
            false => self.sense,
        };
        self.sense = Sense::NONE;
        send(data, &sense.bytes(), allocation)
    }

    /// READ(10) and READ(12) (MMC-6 6.15, 6.16): checks the range; [`Self::send_sectors`] sends it.
    fn read(&mut self, first: u32, sectors: u32) -> Ended {
        let (first, sectors) = (u64::from(first), u64::from(sectors));
        if first + sectors > u64::from(self.sectors()) {
            return Err(Sense::BAD_ADDRESS);
        }
        self.reading = Some(Reading {
            next: first,
            end: first + sectors,
        });
        Ok(())
    }

    /// Sends what is left of a read until it is all, the host has no more room, or the turn is over; then there is still
    /// something left.
    pub(super) fn send_sectors(&mut self, data: &mut dyn Data) -> Result<Ended, BusFault> {
        let Some(Reading { mut next, end }) = self.reading.take() else {
            return Ok(Ok(()));
        };
        // Nothing is read that the host has no room for.
        while next < end && !data.is_full() {
            let turn = data.left_of_turn() / CD_SECTOR_BYTES;
            let count = (end - next).min(PIECE_SECTORS).min(turn);
            if count == 0 {
                self.reading = Some(Reading { next, end });
                return Ok(Ok(()));
            }
            self.buffer.resize((count * CD_SECTOR_BYTES) as usize, 0);
            let offset = next * CD_SECTOR_BYTES;
            if let Err(error) = self.disc.read(offset, &mut self.buffer) {
                tracing::debug!(device = "cdrom", %error, "read failed");
                return Ok(Err(Sense::UNREADABLE));
            }
            data.send(&self.buffer)?;
            next += count;
        }
        if next < end {
            data.overflow();
        }
        Ok(Ok(()))
    }

    /// READ TOC/PMA/ATIP (MMC-6 6.25): formats 0 and 1, and the part of format 2 a single-session disc has.
    fn table_of_contents(&self, p: &[u8; 16]) -> Option<Vec<u8>> {
        let by_time = p[1] & 2 != 0;
        // Older hosts give the format in the control byte.
        let format = match p[2] & 0xf {
            0 => p[9] >> 6,
            format => format,
        };
        let address = |sector: u32| match by_time {
            true => minutes(sector),
            false => sector.to_be_bytes(),
        };
        let entry = |track: u8, sector: u32| {
            let mut bytes = vec![0, DATA_TRACK, track, 0];
            bytes.extend(address(sector));
            bytes
        };
        let mut entries = Vec::new();
        match format {
            0 => {
                let from = p[6];
                if from > FIRST_TRACK && from != LEAD_OUT {
                    return None;
                }
                if from <= FIRST_TRACK {
                    entries.extend(entry(FIRST_TRACK, 0));
                }
                entries.extend(entry(LEAD_OUT, self.sectors()));
            }
            1 => entries.extend(entry(FIRST_TRACK, 0)),
            2 => {
                let [_, m, s, f] = minutes(self.sectors());
                for (point, [pmin, psec, pframe]) in [
                    (0xa0, [FIRST_TRACK, 0, 0]),
                    (0xa1, [FIRST_TRACK, 0, 0]),
                    (0xa2, [m, s, f]),
                    (FIRST_TRACK, [0, 2, 0]),
                ] {
                    let head = [1, DATA_TRACK, 0, point, 0, 0, 0, 0];
                    entries.extend(head);
                    entries.extend([pmin, psec, pframe]);
                }
            }
            _ => return None,
        }
        let length = u16::try_from(entries.len() + 2).ok()?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([FIRST_TRACK, FIRST_TRACK]);
        bytes.extend(entries);
        Some(bytes)
    }
}

/// Minutes, seconds and frames of a sector (MMC-6 table 652); beyond what they can say, the last.
fn minutes(sector: u32) -> [u8; 4] {
    let frame = sector.saturating_add(PREGAP);
    let minute = u8::try_from(frame / (60 * FRAMES)).unwrap_or(u8::MAX);
    [
        0,
        minute,
        (frame / FRAMES % 60) as u8,
        (frame % FRAMES) as u8,
    ]
}

/// Standard INQUIRY data (SPC-3 6.4.2): a removable CD device.
fn inquiry() -> [u8; 36] {
    let mut bytes = [b' '; 36];
    // Version 5 is SPC-3; response format 2; 31 bytes follow.
    bytes[..8].copy_from_slice(&[0x05, 0x80, 0x05, 0x02, 31, 0, 0, 0]);
    let (vendor, product) = MODEL.split_once(' ').unwrap_or(("", MODEL));
    for (at, text) in [(8, vendor), (16, product), (32, FIRMWARE)] {
        bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    bytes
}

/// GET CONFIGURATION (MMC-6 6.5): profile list, core, morphing, removable medium, random readable, CD read.
fn configuration(p: &[u8; 16]) -> Vec<u8> {
    let [high, low] = PROFILE_CD_ROM.to_be_bytes();
    // Number, flags (version in 5:2, persistent, current), content (MMC-6 5.3).
    let features: [(u16, u8, &[u8]); 6] = [
        (0x0000, 0x03, &[high, low, 1, 0]),
        // Physical interface: ATAPI; DBE.
        (0x0001, 0x0b, &[0, 0, 0, 2, 1, 0, 0, 0]),
        (0x0002, 0x07, &[0, 0, 0, 0]),
        // A tray that is locked.
        (0x0003, 0x03, &[0x21, 0, 0, 0]),
        // 2,048 bytes a sector, one sector a block.
        (0x0010, 0x01, &[0, 0, 8, 0, 0, 1, 0, 0]),
        (0x001e, 0x09, &[0, 0, 0, 0]),
    ];
    let (requested, from) = (p[1] & 3, be16(&p[2..4]));
    let mut bytes = vec![0, 0, 0, 0, 0, 0, high, low];
    for (number, flags, content) in features {
        let wanted = match requested {
            0 => number >= from,
            1 => number >= from && flags & 1 != 0,
            2 => number == from,
            _ => false,
        };
        if wanted {
            bytes.extend(number.to_be_bytes());
            bytes.extend([flags, content.len() as u8]);
            bytes.extend(content);
        }
    }
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// GET EVENT STATUS NOTIFICATION (MMC-6 6.6): the medium is there and nothing changed; other classes have no events.
fn event_status(classes: u8) -> Vec<u8> {
    const MEDIA: u8 = 4;
    const NO_EVENT: u8 = 0x80;
    const PRESENT: u8 = 2;
    if classes & 1 << MEDIA != 0 {
        vec![0, 6, MEDIA, 1 << MEDIA, 0, PRESENT, 0, 0]
    } else {
        vec![0, 2, NO_EVENT, 1 << MEDIA]
    }
}

/// READ DISC INFORMATION (MMC-6 6.21): a complete disc of one session with one track.
fn disc_information() -> [u8; 34] {
    let mut bytes = [0; 34];
    bytes[..2].copy_from_slice(&32u16.to_be_bytes());
    // Last session complete, disc complete; first track, sessions, first and last track of the last session.
    bytes[2..7].copy_from_slice(&[0x0e, 1, 1, 1, 1]);
    // No more sessions can be added: their addresses are ones.
    bytes[16..24].fill(0xff);
    bytes
}

/// Mode pages (MMC-6 7, SPC-3 7.4): what a page code byte asks for; `None` for a page that is not there. Nothing can be
/// changed, and nothing is saved.
fn mode_pages(code: u8) -> Option<Vec<u8>> {
    const RECOVERY: [u8; 12] = [0x01, 10, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    /// Reads mode 2 forms; tray; no audio. Lock and its state.
    const CAPABILITIES: [u8; 22] = [
        0x2a, 20, 0, 0, 0x70, 0, 0x21, 0, 0x02, 0xc2, 0, 0, 0, 0, 0x02, 0xc2, 0, 0, 0, 0, 0, 0,
    ];
    const SAVED: u8 = 3;
    const CHANGEABLE: u8 = 1;
    let (control, page) = (code >> 6, code & 0x3f);
    let mut pages: Vec<Vec<u8>> = match page {
        0x01 => vec![RECOVERY.to_vec()],
        0x2a => vec![CAPABILITIES.to_vec()],
        0x3f => vec![RECOVERY.to_vec(), CAPABILITIES.to_vec()],
        _ => return None,
    };
    match control {
        SAVED => return None,
        CHANGEABLE => pages.iter_mut().for_each(|page| page[2..].fill(0)),
        _ => {}
    }
    Some(pages.concat())
}

/// Medium type: a data CD of 120 mm, in the MODE SENSE header (older editions of MMC; zero is allowed too).
const MEDIUM: u8 = 0x01;

fn with_header_6(pages: &[u8]) -> Vec<u8> {
    let mut bytes = vec![(pages.len() + 3) as u8, MEDIUM, 0, 0];
    bytes.extend(pages);
    bytes
}

fn with_header_10(pages: &[u8]) -> Vec<u8> {
    let mut bytes = ((pages.len() + 6) as u16).to_be_bytes().to_vec();
    bytes.extend([MEDIUM, 0, 0, 0, 0, 0]);
    bytes.extend(pages);
    bytes
}
