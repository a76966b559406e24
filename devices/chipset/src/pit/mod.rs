//! The interval timer of the PC/AT: an 8254 at 1.193182 MHz, and port 61h with channel 2's gate and output.
//!
//! Sources: Intel 8254 datasheet; ICH9 datasheet 13.3. Channel 0's output drives ISA interrupt 0. When the
//! board is late by several periods, the edges due are delivered as one: an interrupt controller could not hold more.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use bus::{Device, IrqLine, Region, VirtualTime};

pub use model::{Channel, Pit};

use crate::line::DrivenLine;

/// The timer on the bus.
pub struct PitDevice {
    irq: DrivenLine,
    pit: Pit,
}

impl PitDevice {
    /// The port ranges for `BusBuilder::add`.
    pub const PORTS: [(u16, u16, Region); 2] = [
        (regs::PORT_COUNTERS, 4, Region(regs::REGION_COUNTERS)),
        (regs::PORT_CONTROL, 1, Region(regs::REGION_CONTROL)),
    ];

    /// A timer after power-up; `irq` is driven by channel 0.
    #[must_use]
    pub fn new(irq: IrqLine) -> Self {
        Self {
            irq: DrivenLine::new(irq),
            pit: Pit::new(),
        }
    }

    /// Brings the counters to `now` and drives the line: a fall and a rise for edges that were due, then the level.
    fn settle(&mut self, now: VirtualTime) -> u64 {
        let tick = now.to_ticks(regs::CLOCK_HZ);
        if self.pit.run_to(tick) {
            self.irq.set(false);
            self.irq.set(true);
        }
        tick
    }

    fn drive(&mut self, tick: u64) {
        self.irq.set(self.pit.channel(0).output(tick));
    }
}

impl Device for PitDevice {
    fn name(&self) -> &'static str {
        "pit"
    }

    fn reset(&mut self) {
        self.pit = Pit::new();
        self.irq.set(false);
    }

    fn read(&mut self, region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        let tick = self.settle(now);
        for (byte, offset) in data.iter_mut().zip(offset..) {
            match (region.0, offset) {
                (regs::REGION_COUNTERS, 0..4) => *byte = self.pit.read(offset, tick),
                (regs::REGION_CONTROL, 0) => *byte = self.pit.read_control(tick),
                _ => {}
            }
        }
        self.drive(tick);
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        let tick = self.settle(now);
        for (&byte, offset) in data.iter().zip(offset..) {
            match (region.0, offset) {
                (regs::REGION_COUNTERS, 0..4) => self.pit.write(offset, byte, tick),
                (regs::REGION_CONTROL, 0) => self.pit.write_control(byte, tick),
                _ => {}
            }
        }
        self.drive(tick);
    }

    fn advance(&mut self, now: VirtualTime) {
        let tick = self.settle(now);
        self.drive(tick);
    }

    fn deadline(&self) -> Option<VirtualTime> {
        let tick = self.pit.channel(0).next_event()?;
        Some(VirtualTime::from_ticks(tick, regs::CLOCK_HZ))
    }
}
