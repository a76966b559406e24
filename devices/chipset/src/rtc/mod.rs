//! The real-time clock: an MC146818A with 256 bytes of battery-backed RAM.
//!
//! Sources: Motorola MC146818A datasheet; ICH9 datasheet 13.6. The time of day is given at construction and goes on with
//! virtual time; the guest may set it.

mod calendar;
mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use bus::{Device, IrqLine, Region, VirtualTime};

pub use calendar::Date;
pub use model::Rtc;

use crate::line::DrivenLine;

/// The clock on the bus: one region of four ports at [`regs::PORT`].
pub struct RtcDevice {
    irq: DrivenLine,
    rtc: Rtc,
}

impl RtcDevice {
    /// The port ranges for `BusBuilder::add`.
    pub const PORTS: [(u16, u16, Region); 1] = [(regs::PORT, 4, Region(0))];

    /// A clock that shows `epoch_s` (seconds since 1970, UTC) at time zero.
    #[must_use]
    pub fn new(epoch_s: i64, irq: IrqLine) -> Self {
        Self {
            irq: DrivenLine::new(irq),
            rtc: Rtc::new(epoch_s),
        }
    }

    /// Sets a byte of RAM before the guest runs; see [`Rtc::set_ram`].
    pub fn set_ram(&mut self, index: u8, value: u8) {
        self.rtc.set_ram(index, value);
    }
}

impl Device for RtcDevice {
    fn name(&self) -> &'static str {
        "rtc"
    }

    fn reset(&mut self) {
        self.rtc.reset();
        self.irq.set(false);
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        for (byte, offset) in data.iter_mut().zip(offset..4) {
            *byte = match offset {
                // The standard index cannot be read back.
                0 => 0xff,
                2 => self.rtc.selected(true),
                _ => self.rtc.read(offset == 3, now),
            };
        }
        self.irq.set(self.rtc.interrupt());
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        for (&byte, offset) in data.iter().zip(offset..4) {
            match offset {
                0 | 2 => self.rtc.select(offset == 2, byte),
                _ => self.rtc.write(offset == 3, byte, now),
            }
        }
        self.irq.set(self.rtc.interrupt());
    }

    fn advance(&mut self, now: VirtualTime) {
        self.rtc.advance(now);
        self.irq.set(self.rtc.interrupt());
    }

    fn deadline(&self) -> Option<VirtualTime> {
        self.rtc.deadline()
    }
}
