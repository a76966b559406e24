//! A split virtqueue (2.7) from the device's side.
//!
//! Descriptors are copied out of guest memory once and checked then; what the driver changes later has no effect.

mod chain;

#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};

use guestmem::{Gpa, GuestRam};

pub use chain::{Chain, Reader, Writer};
use chain::{Descriptor, Segment};

/// Available ring flag: the driver wants no interrupts (2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Descriptor flags (2.7.5).
const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const DESC_BYTES: u64 = 16;
/// The most descriptors of a chain that are followed. A driver must not make a chain longer than its queue (2.7.5.3.1);
/// those in the field do with indirect tables, so the bound is the largest queue in use.
const MOST_DESCRIPTORS: u32 = 1024;

/// The driver broke the rules of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Part of the queue, or a buffer, is not in RAM.
    #[error("{len} bytes at {gpa} are not RAM")]
    NotRam {
        /// First address.
        gpa: Gpa,
        /// Bytes.
        len: u64,
    },
    /// The available index is more than a queue ahead.
    #[error("available index {index} is too far from {expected}")]
    Index {
        /// What the driver wrote.
        index: u16,
        /// What the device has taken.
        expected: u16,
    },
    /// A descriptor number outside of its table.
    #[error("descriptor {0} is outside of its table")]
    Descriptor(u16),
    /// Descriptors that go in a circle, or far too many.
    #[error("a chain of more than {MOST_DESCRIPTORS} descriptors")]
    TooLong,
    /// An indirect table where there must be none, or of an odd size.
    #[error("an indirect table of {0} bytes where it cannot be")]
    Indirect(u32),
    /// A buffer to read behind one to write (2.7.4.2).
    #[error("a readable buffer behind a writable one")]
    Order,
    /// A chain that the device's requests do not look like.
    #[error("a chain without room for {0}")]
    Request(&'static str),
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    // Configuration.
    most: u16,
    // Set by the driver.
    pub(crate) size: u16,
    pub(crate) enabled: bool,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    /// VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were agreed on.
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    // Progress.
    next_available: u16,
    next_used: u16,
    /// `next_used` when the driver was last interrupted, or asked whether to be.
    signalled: u16,
    /// Whether `signalled` means anything.
    signalled_once: bool,
}

impl Queue {
    /// A queue of at most `most` entries.
    #[must_use]
    pub fn new(most: u16) -> Self {
        Self {
            most,
            size: most,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
            event_idx: false,
            indirect: false,
            next_available: 0,
            next_used: 0,
            signalled: 0,
            signalled_once: false,
        }
    }

    /// Back to a new queue.
    pub fn reset(&mut self) {
        *self = Self::new(self.most);
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Sets the number of entries; what is no power of two or too large is not taken.
    pub(crate) fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.most {
            self.size = size;
        }
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & (self.size - 1))
    }

    /// Whether the driver has made chains available that were not taken; if not, asks it to say when it has.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn has_work(&self, ram: &GuestRam) -> Result<bool, QueueError> {
        Ok(self.available_index(ram)? != self.next_available)
    }

    /// The driver's index. Where that is ours, so that it may have to notify us, it is looked at once more after the
    /// event index says so (2.7.10).
    fn available_index(&self, ram: &GuestRam) -> Result<u16, QueueError> {
        let read = || read_u16(ram, self.available.saturating_add(2));
        let index = read()?;
        if index != self.next_available || !self.event_idx {
            return Ok(index);
        }
        let at = self.used.saturating_add(4 + 8 * u64::from(self.size));
        write(ram, at, &self.next_available.to_le_bytes())?;
        fence(Ordering::SeqCst);
        read()
    }

    /// Takes the next chain; `None` when there is none. Asks the driver to say when there is one again.
    ///
    /// # Errors
    /// Any [`QueueError`].
    pub fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, QueueError> {
        if !self.enabled {
            return Ok(None);
        }
        let index = self.available_index(ram)?;
        if index == self.next_available {
            return Ok(None);
        }
        if index.wrapping_sub(self.next_available) > self.size {
            return Err(QueueError::Index {
                index,
                expected: self.next_available,
            });
        }
        fence(Ordering::Acquire);
        let entry = 4 + 2 * self.slot(self.next_available);
        let head = read_u16(ram, self.available.saturating_add(entry))?;
        let chain = self.chain(ram, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Follows a chain.
    fn chain(&self, ram: &GuestRam, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain::new(head);
        let mut table = self.descriptors;
        let mut entries = u32::from(self.size);
        let mut index = head;
        let mut is_indirect = false;
        for _ in 0..MOST_DESCRIPTORS {
            if u32::from(index) >= entries {
                return Err(QueueError::Descriptor(index));
            }
            let at = table.saturating_add(DESC_BYTES * u64::from(index));
            let d = Descriptor::read(ram, at)?;
            if d.flags & DESC_INDIRECT != 0 {
                // 2.7.5.3.1: not in a table, not together with NEXT.
                if !self.indirect
                    || is_indirect
                    || d.flags & DESC_NEXT != 0
                    || d.len == 0
                    || !u64::from(d.len).is_multiple_of(DESC_BYTES)
                {
                    return Err(QueueError::Indirect(d.len));
                }
                is_indirect = true;
                table = d.address;
                entries = d.len / DESC_BYTES as u32;
                index = 0;
                continue;
            }
            let writable = d.flags & DESC_WRITE != 0;
            chain.push(Segment::check(ram, d.address, d.len)?, writable)?;
            if d.flags & DESC_NEXT == 0 {
                return Ok(chain);
            }
            index = d.next;
        }
        Err(QueueError::TooLong)
    }

    /// Gives a chain back, into which `written` bytes were written.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn push(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), QueueError> {
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        let entry = 4 + 8 * self.slot(self.next_used);
        write(ram, self.used.saturating_add(entry), &element)?;
        self.next_used = self.next_used.wrapping_add(1);
        fence(Ordering::Release);
        write(
            ram,
            self.used.saturating_add(2),
            &self.next_used.to_le_bytes(),
        )
    }

    /// Whether the driver wants an interrupt for what was given back since this was last asked (2.7.7.2, 2.7.10).
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn wants_interrupt(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        let old = std::mem::replace(&mut self.signalled, self.next_used);
        let first = !std::mem::replace(&mut self.signalled_once, true);
        if old == self.next_used {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(read_u16(ram, self.available)? & AVAIL_NO_INTERRUPT == 0);
        }
        let at = self.available.saturating_add(4 + 2 * u64::from(self.size));
        let event = read_u16(ram, at)?;
        let passed = self.next_used.wrapping_sub(event).wrapping_sub(1);
        Ok(first || passed < self.next_used.wrapping_sub(old))
    }
}

fn read(ram: &GuestRam, at: u64, data: &mut [u8]) -> Result<(), QueueError> {
    let len = data.len() as u64;
    ram.read(Gpa(at), data)
        .map_err(|_| QueueError::NotRam { gpa: Gpa(at), len })
}

fn write(ram: &GuestRam, at: u64, data: &[u8]) -> Result<(), QueueError> {
    ram.write(Gpa(at), data).map_err(|_| QueueError::NotRam {
        gpa: Gpa(at),
        len: data.len() as u64,
    })
}

/// A word that the driver may be changing: one access.
fn read_u16(ram: &GuestRam, at: u64) -> Result<u16, QueueError> {
    let offset = ram.find(Gpa(at), 2).ok_or(QueueError::NotRam {
        gpa: Gpa(at),
        len: 2,
    })?;
    Ok(ram.load(offset))
}
