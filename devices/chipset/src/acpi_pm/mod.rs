//! ACPI power management: PM1 registers, PM timer, GPE0, the system control interrupt, and the reset port.
//!
//! Source: ACPI 6.5 section 4.8; ICH9 datasheet 13.7.5 and 13.8.3. The board has no system management mode, so it
//! is always in ACPI mode. S5 is the only sleep state besides S0.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, IrqLine, Region, VirtualTime};

pub use model::{AcpiPm, SleepRequest};

use crate::SystemControl;
use crate::line::DrivenLine;

/// The block on the bus: one region of [`regs::PORTS`] ports at [`regs::PORT`].
pub struct AcpiPmDevice {
    sci: DrivenLine,
    control: Arc<dyn SystemControl>,
    pm: AcpiPm,
}

impl AcpiPmDevice {
    /// The port ranges for `BusBuilder::add`.
    pub const PORTS: [(u16, u16, Region); 1] = [(regs::PORT, regs::PORTS, Region(0))];

    /// The block after reset; `sci` is the system control interrupt.
    #[must_use]
    pub fn new(sci: IrqLine, control: Arc<dyn SystemControl>) -> Self {
        Self {
            sci: DrivenLine::new(sci),
            control,
            pm: AcpiPm::new(),
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.pm.raise(regs::PM1_POWER_BUTTON);
        self.sci.set(self.pm.sci());
    }

    /// Raises general-purpose event `n` (0 to 63).
    pub fn raise_gpe(&mut self, n: u8) {
        self.pm.raise_gpe(n);
        self.sci.set(self.pm.sci());
    }
}

impl Device for AcpiPmDevice {
    fn name(&self) -> &'static str {
        "acpipm"
    }

    fn reset(&mut self) {
        self.pm = AcpiPm::new();
        self.sci.set(false);
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        self.pm.advance(now);
        for (byte, offset) in data.iter_mut().zip(offset..u64::from(regs::PORTS)) {
            *byte = self.pm.read(offset as u16, now);
        }
        self.sci.set(self.pm.sci());
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        self.pm.advance(now);
        for (&byte, offset) in data.iter().zip(offset..u64::from(regs::PORTS)) {
            match self.pm.write(offset as u16, byte) {
                Some(SleepRequest::PowerOff) => self.control.power_off(),
                None => {}
            }
        }
        self.sci.set(self.pm.sci());
    }

    fn advance(&mut self, now: VirtualTime) {
        self.pm.advance(now);
        self.sci.set(self.pm.sci());
    }

    fn deadline(&self) -> Option<VirtualTime> {
        self.pm.deadline()
    }
}

/// The reset control register, port CF9h (ICH9 datasheet 13.7.5); claim one port, so that doubleword accesses
/// to CF8h stay the PCI host bridge's.
pub struct ResetPort {
    control: Arc<dyn SystemControl>,
    value: u8,
}

impl ResetPort {
    /// The port ranges for `BusBuilder::add`.
    pub const PORTS: [(u16, u16, Region); 1] = [(regs::RESET_PORT, 1, Region(0))];

    /// The register after reset.
    #[must_use]
    pub fn new(control: Arc<dyn SystemControl>) -> Self {
        Self { control, value: 0 }
    }
}

impl Device for ResetPort {
    fn name(&self) -> &'static str {
        "resetport"
    }

    fn reset(&mut self) {
        self.value = 0;
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], _now: VirtualTime) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.value;
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        let (0, Some(&value)) = (offset, data.first()) else {
            return;
        };
        let rising = value & !self.value & regs::RESET_CPU != 0;
        // SYS_RST, RST_CPU, FULL_RST.
        self.value = value & 0x0e;
        if rising {
            self.control.reset();
        }
    }
}
