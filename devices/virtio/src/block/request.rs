//! Block requests (5.2.6).

use bus::{BlockError, SECTOR_BYTES};
use guestmem::GuestRam;

use super::{Block, MOST_RANGE_SECTORS, MOST_RANGES};
use crate::queue::{Chain, QueueError, Reader, Writer};

/// Request types.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Status bytes.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Bytes of the header: type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// Bytes of a range: sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;
/// Range flag: the storage may be given back.
const UNMAP: u32 = 1;
/// Data goes in pieces of so many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Why a request is not done.
enum Refusal {
    /// The driver sees this status.
    Status(u8),
    /// The driver broke the rules of queues.
    Queue(QueueError),
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<BlockError> for Refusal {
    fn from(error: BlockError) -> Self {
        tracing::debug!(device = "virtio-blk", %error, "request failed");
        Self::Status(IO_ERROR)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .rev()
        .fold(0, |all, &byte| all << 8 | u32::from(byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The byte offset of a sector; one no disk has if it does not fit.
fn offset_of(sector: u64) -> u64 {
    sector.saturating_mul(SECTOR_BYTES)
}

impl Block {
    /// Does the request in `chain`. Gives the number of bytes written into it.
    pub(super) fn serve(&mut self, chain: &Chain, ram: &GuestRam) -> Result<u32, QueueError> {
        let mut reader = chain.reader();
        let mut data = chain.writer();
        // The status is the last byte that the device may write, wherever the driver cut its buffers.
        let room = data.left().checked_sub(1);
        let room = room.ok_or(QueueError::Request("a status"))?;
        let mut status = chain.writer();
        status.skip(room);
        let mut header = [0; HEADER_BYTES];
        reader.read(ram, &mut header)?;
        let value = match self.request(&header, &mut reader, &mut data, room, ram) {
            Ok(()) => OK,
            Err(Refusal::Status(value)) => value,
            Err(Refusal::Queue(error)) => return Err(error),
        };
        status.write(ram, &[value])?;
        Ok(data.written().saturating_add(1))
    }

    fn request(
        &mut self,
        header: &[u8; HEADER_BYTES],
        reader: &mut Reader<'_>,
        data: &mut Writer<'_>,
        room: u64,
        ram: &GuestRam,
    ) -> Result<(), Refusal> {
        let offset = offset_of(u64_at(header, 8));
        match u32_at(header, 0) {
            IN => self.read(offset, data, room, ram),
            OUT => self.write(offset, reader, ram),
            FLUSH => Ok(self.backend.flush()?),
            GET_ID => {
                let len = self.id.len().min(usize::try_from(room).unwrap_or(0));
                Ok(data.write(ram, &self.id[..len])?)
            }
            kind @ (DISCARD | WRITE_ZEROES) => self.ranges(kind, reader, ram),
            _ => Err(Refusal::Status(UNSUPPORTED)),
        }
    }

    /// Checks the whole request before its first piece, so that it happens whole or not at all.
    fn check(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        Ok(bus::check_range(self.backend.size_bytes(), offset, len)?)
    }

    fn read(
        &mut self,
        offset: u64,
        data: &mut Writer<'_>,
        room: u64,
        ram: &GuestRam,
    ) -> Result<(), Refusal> {
        self.check(offset, room)?;
        self.buffer.resize(PIECE_BYTES, 0);
        let mut done = 0;
        while done < room {
            let len = (room - done).min(PIECE_BYTES as u64);
            let piece = &mut self.buffer[..len as usize];
            self.backend.read(offset + done, piece)?;
            data.write(ram, piece)?;
            done += len;
        }
        Ok(())
    }

    fn write(
        &mut self,
        offset: u64,
        reader: &mut Reader<'_>,
        ram: &GuestRam,
    ) -> Result<(), Refusal> {
        let all = reader.left();
        self.check(offset, all)?;
        if self.backend.is_read_only() {
            return Err(BlockError::ReadOnly.into());
        }
        self.buffer.resize(PIECE_BYTES, 0);
        let mut done = 0;
        while done < all {
            let len = (all - done).min(PIECE_BYTES as u64);
            let piece = &mut self.buffer[..len as usize];
            reader.read(ram, piece)?;
            self.backend.write(offset + done, piece)?;
            done += len;
        }
        Ok(())
    }

    /// Discard and write-zeroes: a list of ranges. Unknown flags, and unmap in a discard, are not supported (5.2.6.2).
    fn ranges(
        &mut self,
        kind: u32,
        reader: &mut Reader<'_>,
        ram: &GuestRam,
    ) -> Result<(), Refusal> {
        if self.backend.is_read_only() {
            return Err(BlockError::ReadOnly.into());
        }
        let most = u64::from(MOST_RANGES) * RANGE_BYTES as u64;
        let all = reader.left();
        if all == 0 || all > most || !all.is_multiple_of(RANGE_BYTES as u64) {
            return Err(Refusal::Status(IO_ERROR));
        }
        let allowed = if kind == WRITE_ZEROES { UNMAP } else { 0 };
        while reader.left() > 0 {
            let mut range = [0; RANGE_BYTES];
            reader.read(ram, &mut range)?;
            let (sectors, flags) = (u32_at(&range, 8), u32_at(&range, 12));
            if flags & !allowed != 0 {
                return Err(Refusal::Status(UNSUPPORTED));
            }
            if sectors > MOST_RANGE_SECTORS {
                return Err(Refusal::Status(IO_ERROR));
            }
            let offset = offset_of(u64_at(&range, 0));
            let len = u64::from(sectors) * SECTOR_BYTES;
            self.check(offset, len)?;
            if kind == DISCARD {
                self.backend.discard(offset, len)?;
            } else {
                self.backend.write_zeroes(offset, len, flags & UNMAP != 0)?;
            }
        }
        Ok(())
    }
}
