//! The MSI-X capability, its table and its pending bits (PCI Local Bus 3.0 6.8.2).

use std::ops::Range;

use bus::MsiSink;

use super::is_master;
use crate::config::{ConfigError, ConfigSpace};

const ID: u8 = 0x11;
/// Offset of message control in the capability.
const CONTROL: u16 = 2;
/// Message control: MSI-X enable.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a table entry: address, data, vector control.
const ENTRY: usize = 16;
/// Vector control in an entry, and its mask bit.
const VECTOR_CONTROL: usize = 12;
const MASKED: u8 = 1;
/// The most vectors of a function.
const MOST_VECTORS: u16 = 2048;

/// Where the function has MSI-X in its base address registers. Table and pending bits do not overlap; both offsets are
/// multiples of eight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// Messages, 1 to 2048.
    pub vectors: u16,
    /// The base address register with table and pending bits.
    pub bar: u8,
    /// Offset of the table.
    pub table: u32,
    /// Offset of the pending bits.
    pub pending: u32,
}

impl MsixLayout {
    fn table_range(&self) -> Range<u64> {
        let start = u64::from(self.table);
        start..start + u64::from(self.vectors) * ENTRY as u64
    }

    /// One bit a vector, in quadwords.
    fn pending_range(&self) -> Range<u64> {
        let start = u64::from(self.pending);
        start..start + u64::from(self.vectors.div_ceil(64)) * 8
    }
}

#[derive(Debug)]
pub(super) struct Msix {
    // Configuration.
    at: u16,
    layout: MsixLayout,
    // Volatile.
    table: Vec<[u8; ENTRY]>,
    pending: Vec<u8>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Msix {
    pub fn new(config: &mut ConfigSpace, layout: MsixLayout) -> Result<Self, ConfigError> {
        let MsixLayout {
            vectors,
            bar,
            table,
            pending,
        } = layout;
        let (table_range, pending_range) = (layout.table_range(), layout.pending_range());
        if !(1..=MOST_VECTORS).contains(&vectors)
            || bar > 5
            || (table | pending) & 7 != 0
            || overlap(&table_range, &pending_range)
        {
            return Err(ConfigError::Vectors(vectors));
        }
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        let writable = (ENABLE | FUNCTION_MASK).to_le_bytes();
        let at = config.add_capability(ID, &body, &writable)?;
        let pending_bytes = (pending_range.end - pending_range.start) as usize;
        let mut msix = Self {
            at,
            layout,
            table: vec![[0; ENTRY]; vectors.into()],
            pending: vec![0; pending_bytes],
        };
        msix.reset();
        Ok(msix)
    }

    /// Mask bits are set after a reset; the rest of the table is undefined (6.8.2.9), zero here.
    pub fn reset(&mut self) {
        for entry in &mut self.table {
            *entry = [0; ENTRY];
            entry[VECTOR_CONTROL] = MASKED;
        }
        self.pending.fill(0);
    }

    fn control(&self, config: &ConfigSpace) -> u16 {
        config.word(self.at + CONTROL)
    }

    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        self.control(config) & ENABLE != 0
    }

    /// Whether unmasked messages may go out.
    fn open(&self, config: &ConfigSpace) -> bool {
        self.control(config) & (ENABLE | FUNCTION_MASK) == ENABLE && is_master(config)
    }

    pub fn signal(&mut self, config: &ConfigSpace, vector: u16, messages: &dyn MsiSink) {
        let at = usize::from(vector);
        let Some(entry) = self.table.get(at) else {
            return;
        };
        if self.open(config) && entry[VECTOR_CONTROL] & MASKED == 0 {
            send(entry, messages);
        } else {
            self.pending[at / 8] |= 1 << (at % 8);
        }
    }

    pub fn send_pending(&mut self, config: &ConfigSpace, messages: &dyn MsiSink) {
        if !self.open(config) || self.pending.iter().all(|&byte| byte == 0) {
            return;
        }
        for (at, entry) in self.table.iter().enumerate() {
            let bit = 1 << (at % 8);
            if self.pending[at / 8] & bit != 0 && entry[VECTOR_CONTROL] & MASKED == 0 {
                self.pending[at / 8] &= !bit;
                send(entry, messages);
            }
        }
    }

    pub fn read(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        if bar != self.layout.bar {
            return false;
        }
        let (table, pending) = (self.layout.table_range(), self.layout.pending_range());
        if table.contains(&offset) {
            let from = (offset - table.start) as usize;
            for (at, byte) in (from..).zip(data) {
                *byte = self.table.get(at / ENTRY).map_or(0, |e| e[at % ENTRY]);
            }
        } else if pending.contains(&offset) {
            let from = (offset - pending.start) as usize;
            for (at, byte) in (from..).zip(data) {
                *byte = self.pending.get(at).copied().unwrap_or(0);
            }
        } else {
            return false;
        }
        true
    }

    /// The pending bits are read-only; so are the upper bits of vector control.
    pub fn write(&mut self, bar: u8, offset: u64, data: &[u8]) -> bool {
        if bar != self.layout.bar {
            return false;
        }
        let table = self.layout.table_range();
        if !table.contains(&offset) {
            return self.layout.pending_range().contains(&offset);
        }
        let from = (offset - table.start) as usize;
        for (at, &byte) in (from..).zip(data) {
            let Some(entry) = self.table.get_mut(at / ENTRY) else {
                break;
            };
            entry[at % ENTRY] = match at % ENTRY {
                0 => byte & !3,
                VECTOR_CONTROL => byte & MASKED,
                at if at > VECTOR_CONTROL => 0,
                _ => byte,
            };
        }
        true
    }
}

fn send(entry: &[u8; ENTRY], messages: &dyn MsiSink) {
    let word = |at: usize| {
        entry[at..at + 4]
            .iter()
            .rev()
            .fold(0u32, |all, &byte| all << 8 | u32::from(byte))
    };
    messages.signal(bus::Msi {
        address: u64::from(word(4)) << 32 | u64::from(word(0)),
        data: word(8),
    });
}
