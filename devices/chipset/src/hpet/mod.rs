//! The high precision event timer: a 64-bit counter at 100 MHz and three timers, the first periodic.
//!
//! Source: IA-PC HPET specification 1.0a. FSB (MSI) delivery is not offered. With legacy replacement, timers 0 and 1
//! drive ISA interrupts 0 and 8 in the places of PIT and RTC, whose lines therefore run through [`LegacyRoute`].

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use bus::{Device, IrqLine, LineSink, Region, VirtualTime};

pub use model::Hpet;

/// ISA interrupts that legacy replacement takes over: the PIT's and the RTC's.
const LEGACY_LINES: [u32; 2] = [0, 8];

#[derive(Default)]
struct Routed {
    replaced: bool,
    /// Levels of PIT and RTC.
    levels: [bool; 2],
}

/// The lines of PIT and RTC on their way to the interrupt controllers; cut off while the HPET replaces them.
pub struct LegacyRoute {
    sink: Arc<dyn LineSink>,
    routed: Mutex<Routed>,
}

impl LegacyRoute {
    /// Lines to ISA interrupts 0 and 8 of `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn LineSink>) -> Arc<Self> {
        Arc::new(Self {
            sink,
            routed: Mutex::default(),
        })
    }

    /// The line for the PIT.
    #[must_use]
    pub fn pit_line(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(self.clone(), LEGACY_LINES[0])
    }

    /// The line for the RTC.
    #[must_use]
    pub fn rtc_line(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(self.clone(), LEGACY_LINES[1])
    }

    fn set_replaced(&self, replaced: bool) {
        let mut routed = self.routed.lock().unwrap_or_else(PoisonError::into_inner);
        if routed.replaced == replaced {
            return;
        }
        routed.replaced = replaced;
        for (line, level) in LEGACY_LINES.into_iter().zip(routed.levels) {
            self.sink.set_line(line, level && !replaced);
        }
    }
}

impl LineSink for LegacyRoute {
    fn set_line(&self, line: u32, high: bool) {
        let mut routed = self.routed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = LEGACY_LINES.iter().position(|&l| l == line) {
            routed.levels[n] = high;
            if !routed.replaced {
                self.sink.set_line(line, high);
            }
        }
    }
}

/// The HPET on the bus: one MMIO region of [`regs::MMIO_SIZE`] at [`regs::BASE`].
pub struct HpetDevice {
    sink: Arc<dyn LineSink>,
    legacy: Arc<LegacyRoute>,
    hpet: Hpet,
    /// Lines held high, one bit for each.
    driven: u32,
}

impl HpetDevice {
    /// An HPET after reset. `sink` takes I/O APIC inputs 20 to 23 and, with legacy replacement, 0 and 8.
    #[must_use]
    pub fn new(sink: Arc<dyn LineSink>, legacy: Arc<LegacyRoute>) -> Self {
        Self {
            sink,
            legacy,
            hpet: Hpet::new(),
            driven: 0,
        }
    }

    fn line(&self, timer: usize) -> Option<u32> {
        match LEGACY_LINES.get(timer) {
            Some(&line) if self.hpet.legacy() => Some(line),
            _ => self.hpet.route(timer),
        }
    }

    fn drive(&mut self) {
        self.legacy.set_replaced(self.hpet.legacy());
        let edges = self.hpet.take_edges();
        let levels = self.hpet.levels();
        let mut wanted = 0u32;
        for timer in 0..regs::TIMERS {
            let Some(line) = self.line(timer) else {
                continue;
            };
            if levels >> timer & 1 != 0 {
                wanted |= 1 << line;
            }
            if edges >> timer & 1 != 0 {
                self.sink.set_line(line, true);
                self.sink.set_line(line, false);
            }
        }
        let changed = wanted ^ self.driven;
        self.driven = wanted;
        for line in (0..32).filter(|line| changed >> line & 1 != 0) {
            self.sink.set_line(line, wanted >> line & 1 != 0);
        }
    }
}

impl Device for HpetDevice {
    fn name(&self) -> &'static str {
        "hpet"
    }

    fn reset(&mut self) {
        self.hpet = Hpet::new();
        self.drive();
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        self.hpet.read(offset, data, now);
        self.drive();
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        self.hpet.write(offset, data, now);
        self.drive();
    }

    fn advance(&mut self, now: VirtualTime) {
        self.hpet.advance(now);
        self.drive();
    }

    fn deadline(&self) -> Option<VirtualTime> {
        self.hpet.deadline()
    }
}
