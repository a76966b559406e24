//! A line that passes on changes only: devices drive their lines after every access, and most accesses change nothing.

use bus::IrqLine;

/// An interrupt line and the level it was last driven to.
#[derive(Debug)]
pub(crate) struct DrivenLine {
    line: IrqLine,
    high: bool,
}

impl DrivenLine {
    /// A line that is low.
    pub(crate) fn new(line: IrqLine) -> Self {
        Self { line, high: false }
    }

    /// Drives the line.
    pub(crate) fn set(&mut self, high: bool) {
        if self.high != high {
            self.high = high;
            self.line.set(high);
        }
    }
}
