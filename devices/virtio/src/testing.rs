//! A driver's side of a queue, and a disk in memory, for tests.

use std::sync::{Arc, Mutex};

use bus::{BlockBackend, BlockError, check_range};
use guestmem::{Gpa, GuestRam};

use crate::queue::Queue;

pub const RAM_BYTES: u64 = 1 << 20;
pub const DESC: u64 = 0x1000;
pub const AVAIL: u64 = 0x2000;
pub const USED: u64 = 0x3000;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// The rings of one queue in RAM.
pub struct Driver {
    pub ram: Arc<GuestRam>,
    pub size: u16,
    available: u16,
}

impl Driver {
    pub fn new(size: u16) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM_BYTES)]).expect("memory");
        Self {
            ram: Arc::new(ram),
            size,
            available: 0,
        }
    }

    /// The device's side, ready to use.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size);
        queue.descriptors = DESC;
        queue.available = AVAIL;
        queue.used = USED;
        queue.enabled = true;
        queue
    }

    pub fn write(&self, at: u64, data: &[u8]) {
        self.ram.write(Gpa(at), data).expect("RAM");
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read(Gpa(at), &mut data).expect("RAM");
        data
    }

    pub fn word(&self, at: u64) -> u16 {
        let bytes = self.read(at, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Puts a descriptor into a table (2.7.5: address, length, flags, next).
    pub fn descriptor(&self, table: u64, index: u16, d: (u64, u32, u16, u16)) {
        let mut bytes = Vec::new();
        bytes.extend(d.0.to_le_bytes());
        bytes.extend(d.1.to_le_bytes());
        bytes.extend(d.2.to_le_bytes());
        bytes.extend(d.3.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain of buffers `(address, length, device writes)` from descriptor `head` on.
    pub fn chain(&self, head: u16, buffers: &[(u64, u32, bool)]) {
        for (n, &(at, len, writes)) in (head..).zip(buffers) {
            let last = n == head + buffers.len() as u16 - 1;
            let flags = if writes { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(DESC, n, (at, len, flags, n + 1));
        }
    }

    /// Makes the chain at `head` available (2.7.6: flags, index, ring).
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.write(AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAIL + 2, &self.available.to_le_bytes());
    }

    /// Empty rings, for a device that was reset.
    pub fn restart(&mut self) {
        self.write(DESC, &[0; 0x3000]);
        self.available = 0;
    }

    /// The used index, and the element at `index` (2.7.8: flags, index, ring of id and length).
    pub fn used(&self, index: u16) -> (u16, u32, u32) {
        let at = USED + 4 + 8 * u64::from(index % self.size);
        let bytes = self.read(at, 8);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        (self.word(USED + 2), word(0), word(4))
    }
}

/// A disk in memory whose content a test can see.
#[derive(Clone)]
pub struct Memory {
    pub content: Arc<Mutex<Vec<u8>>>,
    pub read_only: bool,
    pub fails: bool,
    pub flushes: Arc<Mutex<u32>>,
}

impl Memory {
    pub fn new(sectors: usize) -> Self {
        Self {
            content: Arc::new(Mutex::new(vec![0; 512 * sectors])),
            read_only: false,
            fails: false,
            flushes: Arc::default(),
        }
    }

    pub fn content(&self) -> Vec<u8> {
        self.content.lock().expect("unpoisoned").clone()
    }

    fn host(&self) -> Result<(), BlockError> {
        match self.fails {
            true => Err(std::io::Error::other("broken").into()),
            false => Ok(()),
        }
    }

    fn fill(&mut self, offset: u64, len: u64, value: u8) -> Result<(), BlockError> {
        self.write(offset, &vec![value; len as usize])
    }
}

impl BlockBackend for Memory {
    fn size_bytes(&self) -> u64 {
        self.content.lock().expect("unpoisoned").len() as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, data.len() as u64)?;
        self.host()?;
        let content = self.content.lock().expect("unpoisoned");
        data.copy_from_slice(&content[offset as usize..][..data.len()]);
        Ok(())
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, data.len() as u64)?;
        assert!(!self.read_only, "the device looks first");
        self.host()?;
        let mut content = self.content.lock().expect("unpoisoned");
        content[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn write_zeroes(&mut self, offset: u64, len: u64, _unmap: bool) -> Result<(), BlockError> {
        self.fill(offset, len, 0)
    }
    fn discard(&mut self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.fill(offset, len, 0xdd)
    }
    fn flush(&mut self) -> Result<(), BlockError> {
        *self.flushes.lock().expect("unpoisoned") += 1;
        self.host()
    }
}

/// Marsaglia's xorshift64.
pub fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
