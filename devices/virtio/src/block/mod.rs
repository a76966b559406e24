//! The block device (5.2): one queue of requests, done one after the other.
//!
//! A turn moves at most [`bus::TURN_BYTES`], of one request or of many; each descriptor counts as [`DESCRIPTOR_COST`] bytes
//! of it, a discard as one byte for each 64, and a flush ends it. A chain has at most 1,024 descriptors, and a turn begins
//! at most as many requests as the queue has entries. A request that is longer goes on in the next turn. The driver
//! sees nothing of it before all of it is done, and a reset drops it.
//!
//! What is not bounded here is how long the host takes for a turn's reads and writes, and for a flush.

mod request;

#[cfg(test)]
mod tests;

use bus::{BlockBackend, SECTOR_BYTES, Turn};
use guestmem::GuestRam;

use crate::device::{Outcome, VirtioDevice};
use crate::queue::{Queue, QueueError};
use request::{Active, Progress};

/// Device ID (5).
const ID: u16 = 2;
/// Mass storage, SCSI; what the field gives such a device.
const CLASS: u32 = 0x01_00_00;
/// Entries of the queue.
const QUEUE_SIZES: &[u16] = &[256];

/// Feature bits (5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Data buffers of a request: those of a queue less header and status.
const SEGMENTS: u32 = QUEUE_SIZES[0] as u32 - 2;
/// The most sectors of a discard or write-zeroes, and ranges in one request.
const MOST_RANGE_SECTORS: u32 = 1 << 22;
const MOST_RANGES: u32 = 1;
/// What following a descriptor costs, in bytes of a turn.
const DESCRIPTOR_COST: u64 = 64;
/// Bytes of the ID string (5.2.6).
const ID_BYTES: usize = 20;

/// A virtio disk.
pub struct Block {
    // Configuration.
    backend: Box<dyn BlockBackend>,
    id: [u8; ID_BYTES],
    // Volatile.
    /// A piece of a request's data on its way.
    buffer: Vec<u8>,
    /// A request that takes several turns. Those behind it wait.
    active: Option<Active>,
}

impl Block {
    /// A disk that keeps its sectors in `backend` and calls itself `id`, of which 20 bytes count.
    #[must_use]
    pub fn new(backend: Box<dyn BlockBackend>, id: &str) -> Self {
        let mut bytes = [0; ID_BYTES];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Self {
            backend,
            id: bytes,
            buffer: Vec::new(),
            active: None,
        }
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        let always = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        let by_kind = match self.backend.is_read_only() {
            true => feature::READ_ONLY,
            false => feature::DISCARD | feature::WRITE_ZEROES,
        };
        always | by_kind
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = self.backend.size_bytes() / SECTOR_BYTES;
        put(0, &sectors.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        if !self.backend.is_read_only() {
            // Discard: most sectors, most ranges, alignment in sectors; write zeroes: the same, and that it may unmap.
            put(36, &MOST_RANGE_SECTORS.to_le_bytes());
            put(40, &MOST_RANGES.to_le_bytes());
            put(44, &8u32.to_le_bytes());
            put(48, &MOST_RANGE_SECTORS.to_le_bytes());
            put(52, &MOST_RANGES.to_le_bytes());
            put(56, &[1]);
        }
        config
    }

    fn negotiated(&mut self, _features: u64) {}

    /// A request that is not done is dropped: the driver has forgotten it.
    fn reset(&mut self) {
        self.active = None;
    }

    fn process(
        &mut self,
        _index: usize,
        queue: &mut Queue,
        ram: &GuestRam,
    ) -> Result<Outcome, QueueError> {
        let mut turn = Turn::new();
        let mut begun = 0;
        loop {
            let (mut request, mut progress) = match self.active.take() {
                Some(request) => (request, Progress::More),
                None if begun == queue.size() || turn.is_over() => break,
                None => {
                    let Some(chain) = queue.pop(ram)? else {
                        return Ok(Outcome::Done);
                    };
                    begun += 1;
                    turn.spend(DESCRIPTOR_COST * chain.buffers() as u64);
                    self.begin(chain, &mut turn, ram)?
                }
            };
            if progress == Progress::More {
                progress = self.go_on(&mut request, &mut turn, ram)?;
            }
            match progress {
                Progress::Done(status) => {
                    let (head, written) = request.finish(status, ram)?;
                    queue.push(ram, head, written)?;
                }
                Progress::More => {
                    self.active = Some(request);
                    return Ok(Outcome::More);
                }
            }
        }
        match queue.has_work(ram)? {
            true => Ok(Outcome::More),
            false => Ok(Outcome::Done),
        }
    }
}
