//! A chain of buffers, and reading and writing it as a stream, since a request may be cut into buffers
//! anywhere (2.7.4).

use guestmem::{Gpa, GuestRam};

use super::{QueueError, read, write};

/// A descriptor as the driver wrote it.
pub(super) struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn read(ram: &GuestRam, at: u64) -> Result<Self, QueueError> {
        let mut bytes = [0; 16];
        read(ram, at, &mut bytes)?;
        let value = u128::from_le_bytes(bytes);
        Ok(Self {
            address: value as u64,
            len: (value >> 64) as u32,
            flags: (value >> 96) as u16,
            next: (value >> 112) as u16,
        })
    }
}

/// A buffer that was found to be RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    at: u64,
    len: u32,
}

impl Segment {
    pub fn check(ram: &GuestRam, at: u64, len: u32) -> Result<Self, QueueError> {
        if len != 0 && ram.find(Gpa(at), len.into()).is_none() {
            let len = len.into();
            return Err(QueueError::NotRam { gpa: Gpa(at), len });
        }
        Ok(Self { at, len })
    }
}

/// A chain of buffers: those the device reads, then those it writes.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    pub(super) fn new(head: u16) -> Self {
        Self {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, segment: Segment, writable: bool) -> Result<(), QueueError> {
        if writable {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(QueueError::Order);
        }
        Ok(())
    }

    /// Its first descriptor's number, to give it back by.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Its buffers.
    #[must_use]
    pub fn buffers(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// What the driver wrote, from the start.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader(Place::new(&self.readable))
    }

    /// Where the device writes, from the start.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer {
            place: Place::new(&self.writable),
            written: 0,
        }
    }
}

/// A place in a list of segments. It does not borrow the list, so that a request can be put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    index: usize,
    /// Bytes of that segment that are behind.
    into: u32,
    left: u64,
}

impl Place {
    fn new(segments: &[Segment]) -> Self {
        Self {
            index: 0,
            into: 0,
            left: segments.iter().map(|s| u64::from(s.len)).sum(),
        }
    }

    /// The next run of at most `most` bytes.
    fn next(&mut self, segments: &[Segment], most: usize) -> Option<(u64, usize)> {
        while let Some(segment) = segments.get(self.index) {
            let rest = segment.len.saturating_sub(self.into) as usize;
            if rest == 0 {
                self.index += 1;
                self.into = 0;
                continue;
            }
            let at = segment.at.saturating_add(self.into.into());
            let len = rest.min(most);
            self.into += len as u32;
            self.left = self.left.saturating_sub(len as u64);
            return Some((at, len));
        }
        None
    }
}

/// A place in what the driver wrote. Always to be used with the chain it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader(Place);

impl Reader {
    /// Bytes left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.0.left
    }

    /// Fills `data`, or fails without a promise about it when so much is not left.
    ///
    /// # Errors
    /// [`QueueError::Request`], [`QueueError::NotRam`].
    pub fn read(
        &mut self,
        chain: &Chain,
        ram: &GuestRam,
        data: &mut [u8],
    ) -> Result<(), QueueError> {
        let mut rest = data;
        while !rest.is_empty() {
            let (at, len) = self
                .0
                .next(&chain.readable, rest.len())
                .ok_or(QueueError::Request("what is to be read"))?;
            let (now, later) = rest.split_at_mut(len);
            read(ram, at, now)?;
            rest = later;
        }
        Ok(())
    }
}

/// A place in what the driver reads. Always to be used with the chain it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    place: Place,
    written: u32,
}

impl Writer {
    /// Bytes of room left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.place.left
    }

    /// Bytes written; what does not fit the used ring's word is cut.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Writes `data`.
    ///
    /// # Errors
    /// [`QueueError::Request`] when there is not so much room, [`QueueError::NotRam`].
    pub fn write(&mut self, chain: &Chain, ram: &GuestRam, data: &[u8]) -> Result<(), QueueError> {
        let mut rest = data;
        while !rest.is_empty() {
            let (at, len) = self
                .place
                .next(&chain.writable, rest.len())
                .ok_or(QueueError::Request("what is to be written"))?;
            let (now, later) = rest.split_at(len);
            write(ram, at, now)?;
            self.written = self.written.saturating_add(len as u32);
            rest = later;
        }
        Ok(())
    }

    /// Leaves out `len` bytes, without counting them as written.
    pub fn skip(&mut self, chain: &Chain, len: u64) {
        let mut rest = len;
        while rest > 0 {
            let most = usize::try_from(rest).unwrap_or(usize::MAX);
            let Some((_, len)) = self.place.next(&chain.writable, most) else {
                return;
            };
            rest -= len as u64;
        }
    }
}
