//! The chip's command state machine.
//!
//! ```text
//!   array <--FFh-- any mode; 90h identifier, 98h query, 70h status
//!   40h/10h --data--> status        20h --D0h--> status       60h --01h/D0h--> status
//!   E8h --count--> data, count + 1 times --D0h--> status
//! ```
//!
//! Programming clears bits, erasing sets all bits of a block. A buffer lies in one block: as in Intel's P30 (datasheet,
//! "Buffered Programming"), cells beyond a block's boundary are a sequence error, and nothing is programmed.
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

    /// A write of `value` at `offset`; says what it changed, in ascending order: nothing twice, nothing that is as it
    /// was before, except that an erasure is a whole block. All lies in one block.
    pub fn write(&mut self, offset: u64, value: u8) -> Vec<Changed> {
        match self.expect {
            Expect::Command => {
                self.command(value);
                Vec::new()
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
                    regs::CONFIRM | regs::LOCK_BLOCK => Vec::new(),
                    _ => self.sequence_error(),
                }
            }
            Expect::BufferCount => {
                self.buffer.clear();
                self.expect = Expect::BufferData((u64::from(value) + 1).min(regs::BUFFER_BYTES));
                Vec::new()
            }
            Expect::BufferData(left) => {
                self.buffer.push((offset, value));
                self.expect = match left {
                    0 | 1 => Expect::BufferConfirm,
                    more => Expect::BufferData(more - 1),
                };
                Vec::new()
            }
            Expect::BufferConfirm => {
                self.expect = Expect::Command;
                let buffer = std::mem::take(&mut self.buffer);
                match value {
                    regs::CONFIRM if self.is_one_block(&buffer) => self.program(&buffer),
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
    fn sequence_error(&mut self) -> Vec<Changed> {
        self.status |= regs::ERASE_ERROR | regs::PROGRAM_ERROR;
        Vec::new()
    }

    fn is_one_block(&self, cells: &[(u64, u8)]) -> bool {
        let block = |cell: &(u64, u8)| cell.0 / self.block_bytes;
        cells
            .windows(2)
            .all(|pair| block(&pair[0]) == block(&pair[1]))
    }

    /// Clears bits.
    fn program(&mut self, cells: &[(u64, u8)]) -> Vec<Changed> {
        let size = self.bytes.len() as u64;
        if cells.iter().any(|&(at, _)| at >= size) {
            self.status |= regs::PROGRAM_ERROR;
            return Vec::new();
        }
        let mut changed = Vec::new();
        for &(at, value) in cells {
            let byte = &mut self.bytes[at as usize];
            if *byte & value != *byte {
                *byte &= value;
                changed.push(at as usize);
            }
        }
        stretches(changed)
    }

    fn erase(&mut self, offset: u64) -> Vec<Changed> {
        let start = (offset - offset % self.block_bytes) as usize;
        let block = start
            .checked_add(self.block_bytes as usize)
            .and_then(|end| self.bytes.get_mut(start..end));
        let Some(block) = block else {
            self.status |= regs::ERASE_ERROR;
            return Vec::new();
        };
        block.fill(0xff);
        let len = block.len();
        vec![Changed { start, len }]
    }
}

/// Bytes that lie side by side, as one.
fn stretches(mut bytes: Vec<usize>) -> Vec<Changed> {
    bytes.sort_unstable();
    bytes.dedup();
    let mut all: Vec<Changed> = Vec::new();
    for at in bytes {
        match all.last_mut() {
            Some(last) if last.start + last.len == at => last.len += 1,
            _ => all.push(Changed { start: at, len: 1 }),
        }
    }
    all
}
