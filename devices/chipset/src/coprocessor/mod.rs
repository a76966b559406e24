//! Numeric errors as a PC/AT reports them: FERR#, IGNNE#, IRQ 13 and port F0h (SDM Vol 1 D.2.1; the coprocessor
//! interface of PC chip sets).
//!
//! ```text
//!   FERR# rises --> IRQ 13 high                port F0h written while FERR# --> IRQ 13 low, IGNNE# active
//!   FERR# falls --> IRQ 13 low, IGNNE# inactive
//! ```
//!
//! Port F1h resets a coprocessor of its own chip, which no processor of today is; a write does nothing.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, Region, VirtualTime};

use crate::fabric::InterruptFabric;

/// First port.
pub const PORT: u16 = 0xf0;
/// Ports.
pub const PORTS: u16 = 2;
/// Input of the interrupt controllers.
pub const IRQ: u32 = 13;

/// The logic between FERR#, IRQ 13 and IGNNE#.
#[derive(Debug, Default)]
pub(crate) struct ErrorLogic {
    /// vCPUs that drive FERR#.
    asserted: Vec<usize>,
    interrupt: bool,
    ignne: bool,
}

impl ErrorLogic {
    /// A vCPU drives FERR#. Gives the level of IRQ 13.
    pub(crate) fn set_ferr(&mut self, vcpu: usize, asserted: bool) -> bool {
        let before = !self.asserted.is_empty();
        self.asserted.retain(|v| *v != vcpu);
        if asserted {
            self.asserted.push(vcpu);
        }
        let now = !self.asserted.is_empty();
        if now != before {
            self.interrupt = now;
            self.ignne = false;
        }
        self.interrupt
    }

    /// Port F0h is written. Gives the level of IRQ 13.
    pub(crate) fn acknowledge(&mut self) -> bool {
        if !self.asserted.is_empty() {
            self.interrupt = false;
            self.ignne = true;
        }
        self.interrupt
    }

    /// IGNNE#.
    pub(crate) fn ignne(&self) -> bool {
        self.ignne
    }
}

/// Ports F0h and F1h.
pub struct CoprocessorPorts {
    fabric: Arc<InterruptFabric>,
}

impl CoprocessorPorts {
    /// The ports in front of a fabric's error logic.
    #[must_use]
    pub fn new(fabric: Arc<InterruptFabric>) -> Self {
        Self { fabric }
    }
}

impl Device for CoprocessorPorts {
    fn name(&self) -> &'static str {
        "coprocessor"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8], _now: VirtualTime) {
        data.fill(0xff);
    }

    fn write(&mut self, _region: Region, offset: u64, _data: &[u8], _now: VirtualTime) {
        if offset == 0 {
            self.fabric.acknowledge_ferr();
        }
    }
}
