//! The interrupt controllers of the PC/AT: two 8259A in cascade, with edge/level control.
//!
//! Sources: Intel 8259A datasheet (231468); ICH9 datasheet 13.4. The pair lives in the
//! [`InterruptFabric`], which carries its INTR to the local APICs; [`PicDevice`] is its place on the bus.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, Region, VirtualTime};

pub use model::{Pic, PicPair};

use crate::fabric::InterruptFabric;

/// The pair's ports on the bus.
///
/// Regions: [`regs::REGION_MASTER`] (2 ports at 20h), [`regs::REGION_SLAVE`] (2 at A0h), [`regs::REGION_ELCR`] (2 at 4D0h).
pub struct PicDevice {
    fabric: Arc<InterruptFabric>,
}

impl PicDevice {
    /// The port ranges for `BusBuilder::add`.
    pub const PORTS: [(u16, u16, Region); 3] = [
        (regs::PORT_MASTER, 2, Region(regs::REGION_MASTER)),
        (regs::PORT_SLAVE, 2, Region(regs::REGION_SLAVE)),
        (regs::PORT_ELCR, 2, Region(regs::REGION_ELCR)),
    ];

    /// The ports of the fabric's controllers.
    #[must_use]
    pub fn new(fabric: Arc<InterruptFabric>) -> Self {
        Self { fabric }
    }
}

impl Device for PicDevice {
    fn name(&self) -> &'static str {
        "pic"
    }

    fn reset(&mut self) {
        self.fabric.with_pic(PicPair::reset);
    }

    /// A wide access reads as consecutive byte accesses, as the ISA bridge splits it.
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8], _now: VirtualTime) {
        self.fabric.with_pic(|pic| {
            for (byte, offset) in data.iter_mut().zip(offset..2) {
                let odd = offset & 1 != 0;
                match region.0 {
                    regs::REGION_MASTER => *byte = pic.read(false, odd),
                    regs::REGION_SLAVE => *byte = pic.read(true, odd),
                    regs::REGION_ELCR => *byte = pic.read_elcr(odd),
                    _ => {}
                }
            }
        });
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        self.fabric.with_pic(|pic| {
            for (&byte, offset) in data.iter().zip(offset..2) {
                let odd = offset & 1 != 0;
                match region.0 {
                    regs::REGION_MASTER => pic.write(false, odd, byte),
                    regs::REGION_SLAVE => pic.write(true, odd, byte),
                    regs::REGION_ELCR => pic.write_elcr(odd, byte),
                    _ => {}
                }
            }
        });
    }
}
