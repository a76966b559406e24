//! The I/O APIC: 24 inputs, version 20h with the EOI register, at FEC0_0000h.
//!
//! Sources: Intel 82093AA datasheet; ICH9 datasheet 13.5. The model sends messages through
//! [`crate::message::LapicBus`]; [`IoApicDevice`] is its place on the bus.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, Region, VirtualTime};

pub use model::IoApic;

use crate::fabric::InterruptFabric;

/// The I/O APIC's registers on the bus: one MMIO region of [`regs::MMIO_SIZE`] at [`regs::BASE`].
pub struct IoApicDevice {
    fabric: Arc<InterruptFabric>,
}

impl IoApicDevice {
    /// The registers of the fabric's I/O APIC.
    #[must_use]
    pub fn new(fabric: Arc<InterruptFabric>) -> Self {
        Self { fabric }
    }
}

impl Device for IoApicDevice {
    fn name(&self) -> &'static str {
        "ioapic"
    }

    fn reset(&mut self) {
        self.fabric.reset_ioapic();
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], _now: VirtualTime) {
        self.fabric.ioapic_read(offset, data);
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        self.fabric.ioapic_write(offset, data);
    }
}
