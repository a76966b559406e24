//! Interrupt lines and message-signalled interrupts, as devices see them.

use std::fmt;
use std::sync::Arc;

/// The board's side of a set of interrupt lines.
pub trait LineSink: Send + Sync {
    /// Drives input `line`; called also when the level does not change.
    fn set_line(&self, line: u32, high: bool);
}

/// One interrupt line, held by the device that drives it.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn LineSink>,
    line: u32,
}

impl IrqLine {
    /// Connects to input `line` of `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn LineSink>, line: u32) -> Self {
        Self { sink, line }
    }

    /// Drives the line.
    pub fn set(&self, high: bool) {
        self.sink.set_line(self.line, high);
    }

    /// A rising and a falling edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.line)
    }
}

/// A message-signalled interrupt (SDM Vol 3 12.11): a write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// 0FEEx_xxxxh with destination and mode.
    pub address: u64,
    /// Vector, delivery mode, trigger.
    pub data: u32,
}

/// What takes message-signalled interrupts.
pub trait MsiSink: Send + Sync {
    /// Delivers the message.
    fn signal(&self, msi: Msi);
}
