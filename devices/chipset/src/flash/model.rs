//! The chip's command state machine.
//!
//! ```text
//!   array <--FFh-- any mode; 90h identifier, 98h query, 70h status
//!   40h/10h --data--> status        20h --D0h--> status       60h --01h/D0h--> status
//!   E8h --count--> data, count + 1 times --D0h--> status
//! ```
//!
//! Programming clears bits, erasing sets all bits of a block.
//!
//! Clearing the status clears "ready" too, until the next operation sets it. Intel's chips keep it; firmware made for
//! the board this one is modelled on tells the flash from ROM and RAM by a status of zero.

use super::regs;

/// What reads give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Array,
    Identifier,
    Query,
    Status,
}

/// What the next write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Command,
    Data,
    EraseConfirm,
    Lock,
    BufferCount,
    /// This many more bytes for the buffer.
    BufferData(u64),
    BufferConfirm,
}

/// A stretch that was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// First byte.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

/// The chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flash {
    bytes: Vec<u8>,
    block_bytes: u64,
    mode: Mode,
    expect: Expect,
    status: u8,
    buffer: Vec<(u64, u8)>,
}

impl Flash {
    /// A chip with the given content, whose length is a multiple of `block_bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>, block_bytes: u64) -> Self {
        Self {
            bytes,
            block_bytes,
            mode: Mode::Array,
            expect: Expect::Command,
            status: regs::READY,
            buffer: Vec::new(),
        }
    }

    /// The content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The chip after power-up. What it holds stays.
    pub fn reset(&mut self) {
        self.mode = Mode::Array;
        self.expect = Expect::Command;
        self.status = regs::READY;
        self.buffer.clear();
    }

    /// Reads the byte at `offset`.
    #[must_use]
    pub fn read(&self, offset: u64) -> u8 {
        match self.mode {
            Mode::Array => usize::try_from(offset)
                .ok()
                .and_then(|at| self.bytes.get(at))
                .copied()
                .unwrap_or(0xff),
            Mode::Status => self.status,
            Mode::Identifier => match offset & 0xff {
                0 => regs::MANUFACTURER,
                1 => regs::DEVICE,
                _ => 0,
            },
            Mode::Query => {
                let table = regs::query(self.bytes.len() as u64, self.block_bytes);
                let at = (offset & 0xff) as usize;
                let known = at
                    .checked_sub(regs::QUERY_START)
                    .and_then(|at| table.get(at));
                known.copied().unwrap_or(0)
            }
        }
    }

    /// A write of `value` at `offset`; says what it changed.
    pub fn write(&mut self, offset: u64, value: u8) -> Option<Changed> {
        match self.expect {
            Expect::Command => {
                self.command(value);
                None
            }
            Expect::Data => {
                self.expect = Expect::Command;
                self.status |= regs::READY;
                self.program(&[(offset, value)])
            }
            Expect::EraseConfirm => {
                self.expect = Expect::Command;
                self.status |= regs::READY;
                match value {
                    regs::CONFIRM => self.erase(offset),
                    _ => self.sequence_error(),
                }
            }
            Expect::Lock => {
                self.expect = Expect::Command;
                self.status |= regs::READY;
                // Blocks have no locks: both commands succeed.
                match value {
                    regs::CONFIRM | regs::LOCK_BLOCK => None,
                    _ => self.sequence_error(),
                }
            }
            Expect::BufferCount => {
                self.buffer.clear();
                self.expect = Expect::BufferData((u64::from(value) + 1).min(regs::BUFFER_BYTES));
                None
            }
            Expect::BufferData(left) => {
                self.buffer.push((offset, value));
                self.expect = match left {
                    0 | 1 => Expect::BufferConfirm,
                    more => Expect::BufferData(more - 1),
                };
                None
            }
            Expect::BufferConfirm => {
                self.expect = Expect::Command;
                let buffer = std::mem::take(&mut self.buffer);
                match value {
                    regs::CONFIRM => self.program(&buffer),
                    _ => self.sequence_error(),
                }
            }
        }
    }

    fn command(&mut self, value: u8) {
        let (mode, expect) = match value {
            regs::READ_IDENTIFIER => (Mode::Identifier, Expect::Command),
            regs::READ_QUERY => (Mode::Query, Expect::Command),
            regs::READ_STATUS => (Mode::Status, Expect::Command),
            regs::CLEAR_STATUS => {
                self.status = 0;
                (Mode::Array, Expect::Command)
            }
            regs::PROGRAM | regs::PROGRAM_OTHER => (Mode::Status, Expect::Data),
            regs::BUFFER => {
                self.status |= regs::READY;
                (Mode::Status, Expect::BufferCount)
            }
            regs::ERASE => (Mode::Status, Expect::EraseConfirm),
            regs::LOCK => (Mode::Status, Expect::Lock),
            // Read array, and what is no command.
            _ => (Mode::Array, Expect::Command),
        };
        self.mode = mode;
        self.expect = expect;
    }

    /// A wrong second cycle sets both error bits.
    fn sequence_error(&mut self) -> Option<Changed> {
        self.status |= regs::ERASE_ERROR | regs::PROGRAM_ERROR;
        None
    }

    /// Clears bits. Gives the stretch from the first to the last byte.
    fn program(&mut self, cells: &[(u64, u8)]) -> Option<Changed> {
        let size = self.bytes.len() as u64;
        if cells.iter().any(|&(at, _)| at >= size) {
            self.status |= regs::PROGRAM_ERROR;
            return None;
        }
        for &(at, value) in cells {
            self.bytes[at as usize] &= value;
        }
        let first = cells.iter().map(|c| c.0).min()?;
        let last = cells.iter().map(|c| c.0).max()?;
        Some(Changed {
            start: first as usize,
            len: (last - first + 1) as usize,
        })
    }

    fn erase(&mut self, offset: u64) -> Option<Changed> {
        let start = (offset - offset % self.block_bytes) as usize;
        let end = start.checked_add(self.block_bytes as usize)?;
        let Some(block) = self.bytes.get_mut(start..end) else {
            self.status |= regs::ERASE_ERROR;
            return None;
        };
        block.fill(0xff);
        Some(Changed {
            start,
            len: block.len(),
        })
    }
}
