//! Block requests (5.2.6): each is begun, then goes on for as many turns as its length takes.

use bus::{BlockError, SECTOR_BYTES, Turn};
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
/// Where a discard or write-zeroes that takes several turns is cut.
const RANGE_ALIGN: u64 = 64 << 10;
/// A discard, which moves nothing, counts as one byte of a turn for so many: 64 MiB are a turn.
const DISCARDED_PER_BYTE: u64 = 64;

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

/// What is left to be done of a request.
#[derive(Debug, PartialEq, Eq)]
enum Work {
    Read,
    Write,
    Zero { unmap: bool },
    Discard,
}

/// A request that is being done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Active {
    chain: Chain,
    /// What the driver wrote behind the header.
    reader: Reader,
    /// Where the data goes that the driver reads.
    data: Writer,
    work: Work,
    /// The next byte of the disk, and how many are left.
    offset: u64,
    left: u64,
}

/// What came of a turn of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is done, with this status.
    Done(u8),
    /// It goes on in the next turn.
    More,
}

impl Active {
    /// The head of its chain, to give it back by, and the bytes written into it once `status` is.
    pub fn finish(mut self, status: u8, ram: &GuestRam) -> Result<(u16, u32), QueueError> {
        // The status is the last byte that the device may write, wherever the driver cut its buffers.
        let rest = self.data.left().saturating_sub(1);
        let written = self.data.written().saturating_add(1);
        self.data.skip(&self.chain, rest);
        self.data.write(&self.chain, ram, &[status])?;
        Ok((self.chain.head(), written))
    }
}

impl Block {
    /// Begins the request in `chain`: what needs no data is done, the rest is left to [`Self::go_on`].
    pub(super) fn begin(
        &mut self,
        chain: Chain,
        turn: &mut Turn,
        ram: &GuestRam,
    ) -> Result<(Active, Progress), QueueError> {
        let mut request = Active {
            reader: chain.reader(),
            data: chain.writer(),
            chain,
            work: Work::Read,
            offset: 0,
            left: 0,
        };
        let room = request.data.left().checked_sub(1);
        let room = room.ok_or(QueueError::Request("a status"))?;
        let mut header = [0; HEADER_BYTES];
        request.reader.read(&request.chain, ram, &mut header)?;
        let progress = match self.understand(&header, &mut request, room, turn, ram) {
            Ok(progress) => progress,
            Err(Refusal::Status(value)) => Progress::Done(value),
            Err(Refusal::Queue(error)) => return Err(error),
        };
        Ok((request, progress))
    }

    fn understand(
        &mut self,
        header: &[u8; HEADER_BYTES],
        request: &mut Active,
        room: u64,
        turn: &mut Turn,
        ram: &GuestRam,
    ) -> Result<Progress, Refusal> {
        request.offset = offset_of(u64_at(header, 8));
        match u32_at(header, 0) {
            IN => (request.work, request.left) = (Work::Read, room),
            OUT => (request.work, request.left) = (Work::Write, request.reader.left()),
            FLUSH => {
                // How long it takes is the host's affair.
                turn.end();
                self.backend.flush()?;
                return Ok(Progress::Done(OK));
            }
            GET_ID => {
                let len = self.id.len().min(usize::try_from(room).unwrap_or(0));
                request.data.write(&request.chain, ram, &self.id[..len])?;
                return Ok(Progress::Done(OK));
            }
            kind @ (DISCARD | WRITE_ZEROES) => self.range(kind, request, ram)?,
            _ => return Err(Refusal::Status(UNSUPPORTED)),
        }
        // Before the first piece, so that the request happens whole or not at all.
        bus::check_range(self.backend.size_bytes(), request.offset, request.left)?;
        if request.work != Work::Read && self.backend.is_read_only() {
            return Err(BlockError::ReadOnly.into());
        }
        Ok(Progress::More)
    }

    /// Reads the range of a discard or write-zeroes. Unknown flags, and unmap in a discard, are not supported (5.2.6.2).
    fn range(&self, kind: u32, request: &mut Active, ram: &GuestRam) -> Result<(), Refusal> {
        if self.backend.is_read_only() {
            return Err(BlockError::ReadOnly.into());
        }
        if request.reader.left() != u64::from(MOST_RANGES) * RANGE_BYTES as u64 {
            return Err(Refusal::Status(IO_ERROR));
        }
        let mut range = [0; RANGE_BYTES];
        request.reader.read(&request.chain, ram, &mut range)?;
        let (sectors, flags) = (u32_at(&range, 8), u32_at(&range, 12));
        let (work, allowed) = match kind {
            DISCARD => (Work::Discard, 0),
            _ => {
                let unmap = flags & UNMAP != 0;
                (Work::Zero { unmap }, UNMAP)
            }
        };
        if flags & !allowed != 0 {
            return Err(Refusal::Status(UNSUPPORTED));
        }
        if sectors > MOST_RANGE_SECTORS {
            return Err(Refusal::Status(IO_ERROR));
        }
        request.work = work;
        request.offset = offset_of(u64_at(&range, 0));
        request.left = u64::from(sectors) * SECTOR_BYTES;
        Ok(())
    }

    /// Does as much of a request as is left of the turn.
    pub(super) fn go_on(
        &mut self,
        request: &mut Active,
        turn: &mut Turn,
        ram: &GuestRam,
    ) -> Result<Progress, QueueError> {
        while request.left > 0 {
            let most = match request.work {
                Work::Read | Work::Write => turn.left().min(PIECE_BYTES as u64),
                Work::Zero { .. } => turn.left(),
                Work::Discard => turn.left().saturating_mul(DISCARDED_PER_BYTE),
            };
            let len = match request.work {
                Work::Read | Work::Write => request.left.min(most - most % SECTOR_BYTES),
                Work::Zero { .. } | Work::Discard => range_piece(request, most),
            };
            if len == 0 {
                return Ok(Progress::More);
            }
            turn.spend(match request.work {
                Work::Discard => len.div_ceil(DISCARDED_PER_BYTE),
                _ => len,
            });
            match self.piece(request, len, ram) {
                Ok(()) => {}
                Err(Refusal::Status(value)) => return Ok(Progress::Done(value)),
                Err(Refusal::Queue(error)) => return Err(error),
            }
            request.offset += len;
            request.left -= len;
        }
        Ok(Progress::Done(OK))
    }

    /// Does the next `len` bytes of a request.
    fn piece(&mut self, request: &mut Active, len: u64, ram: &GuestRam) -> Result<(), Refusal> {
        let (chain, offset) = (&request.chain, request.offset);
        match request.work {
            Work::Read => {
                self.buffer.resize(len as usize, 0);
                self.backend.read(offset, &mut self.buffer)?;
                request.data.write(chain, ram, &self.buffer)?;
            }
            Work::Write => {
                self.buffer.resize(len as usize, 0);
                request.reader.read(chain, ram, &mut self.buffer)?;
                self.backend.write(offset, &self.buffer)?;
            }
            Work::Zero { unmap } => self.backend.write_zeroes(offset, len, unmap)?,
            Work::Discard => self.backend.discard(offset, len)?,
        }
        Ok(())
    }
}

/// How much of a range is done at once: at most `most` bytes, and up to a boundary of [`RANGE_ALIGN`] where that is not all
/// of it, since only whole blocks of the host's file can be given back.
fn range_piece(request: &Active, most: u64) -> u64 {
    if request.left <= most {
        return request.left;
    }
    let end = request.offset.saturating_add(most);
    let aligned = end - end % RANGE_ALIGN;
    aligned.saturating_sub(request.offset)
}
