//! How a function interrupts: by its INTx pin, by MSI or by MSI-X, whichever software switched on.
//!
//! Sources: PCI Local Bus 3.0 2.2.6 (INTx), 6.8.1 (MSI), 6.8.2 (MSI-X). A message is a memory write, so a function sends it
//! only while its bus master bit is set; a message that cannot go out stays pending where there is a pending bit, and
//! goes out as soon as it may. While MSI or MSI-X is on, the pin is silent (6.8.1.3, 6.8.2.3).

mod msi;
mod msix;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{IrqLine, MsiSink};

use crate::config::{ConfigError, ConfigSpace, regs};
use crate::function::Bdf;
use crate::intx::IntxRouter;
use msi::Msi;
use msix::Msix;
pub use msix::MsixLayout;

/// INTA, as the interrupt pin register numbers the pins.
pub const INTA: u8 = 1;

/// What the board connects a function's interrupts to.
#[derive(Clone)]
pub struct FunctionWiring {
    line: IrqLine,
    pin: u8,
    messages: Arc<dyn MsiSink>,
}

impl FunctionWiring {
    /// For the function at `bdf` of bus 0, which uses pin `pin` ([`INTA`] is 1, INTD is 4).
    #[must_use]
    pub fn new(router: &Arc<IntxRouter>, messages: Arc<dyn MsiSink>, bdf: Bdf, pin: u8) -> Self {
        let pin = pin.clamp(1, 4);
        Self {
            line: router.line(bdf.device(), pin - 1),
            pin,
            messages,
        }
    }
}

/// The interrupts of one function. Lives beside its configuration space, which each call is given.
pub struct Interrupts {
    // Configuration and wiring.
    wiring: FunctionWiring,
    msi: Option<Msi>,
    msix: Option<Msix>,
    // Volatile.
    level: bool,
}

impl Interrupts {
    /// Interrupts by pin only; says in the configuration space which pin.
    #[must_use]
    pub fn new(config: &mut ConfigSpace, wiring: FunctionWiring) -> Self {
        config.set_interrupt_pin(wiring.pin);
        Self {
            wiring,
            msi: None,
            msix: None,
            level: false,
        }
    }

    /// Adds an MSI capability for `vectors` messages: 1, 2, 4, 8, 16 or 32, with 64-bit address and masks.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`], [`ConfigError::Vectors`].
    pub fn add_msi(&mut self, config: &mut ConfigSpace, vectors: u8) -> Result<(), ConfigError> {
        self.msi = Some(Msi::new(config, vectors)?);
        Ok(())
    }

    /// Adds an MSI-X capability, whose table and pending bits the function's base address register holds; the function
    /// sends accesses to it to [`Self::bar_read`] and [`Self::bar_write`].
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`], [`ConfigError::Vectors`].
    pub fn add_msix(
        &mut self,
        config: &mut ConfigSpace,
        layout: MsixLayout,
    ) -> Result<(), ConfigError> {
        self.msix = Some(Msix::new(config, layout)?);
        Ok(())
    }

    /// Whether software switched MSI or MSI-X on.
    #[must_use]
    pub fn uses_messages(&self, config: &ConfigSpace) -> bool {
        self.msix.as_ref().is_some_and(|m| m.enabled(config))
            || self.msi.as_ref().is_some_and(|m| m.enabled(config))
    }

    /// Whether software switched MSI-X on.
    #[must_use]
    pub fn uses_msix(&self, config: &ConfigSpace) -> bool {
        self.msix.as_ref().is_some_and(|m| m.enabled(config))
    }

    /// Says whether the function asks for service; drives the pin unless messages are used or INTx is off.
    pub fn set_level(&mut self, config: &mut ConfigSpace, high: bool) {
        self.level = high;
        self.drive(config);
    }

    /// Sends message `vector` by MSI-X or MSI; nothing where neither is on or has that vector. Software may give a function
    /// fewer MSI messages than it asked for; it then sends the last of those (6.8.1.3).
    pub fn signal(&mut self, config: &mut ConfigSpace, vector: u16) {
        let messages = &*self.wiring.messages;
        if let Some(msix) = self.msix.as_mut().filter(|m| m.enabled(config)) {
            msix.signal(config, vector, messages);
        } else if let Some(msi) = self.msi.as_ref().filter(|m| m.enabled(config)) {
            msi.signal(config, vector, messages);
        }
    }

    /// To be called when software wrote the configuration space: masks and enables may have changed.
    pub fn config_written(&mut self, config: &mut ConfigSpace) {
        let messages = &*self.wiring.messages;
        if let Some(msix) = &mut self.msix {
            msix.send_pending(config, messages);
        }
        if let Some(msi) = &self.msi {
            msi.send_pending(config, messages);
        }
        self.drive(config);
    }

    /// Reads the part of base address register `bar` that belongs to MSI-X; false if the offset does not.
    pub fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        self.msix
            .as_ref()
            .is_some_and(|m| m.read(bar, offset, data))
    }

    /// Writes the part of base address register `bar` that belongs to MSI-X; false if the offset does not.
    pub fn bar_write(&mut self, config: &ConfigSpace, bar: u8, offset: u64, data: &[u8]) -> bool {
        let messages = &*self.wiring.messages;
        let Some(msix) = &mut self.msix else {
            return false;
        };
        let mine = msix.write(bar, offset, data);
        if mine {
            msix.send_pending(config, messages);
        }
        mine
    }

    /// Back to the state after power-up; the configuration space has been reset.
    pub fn reset(&mut self, config: &mut ConfigSpace) {
        self.level = false;
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.drive(config);
    }

    /// Brings pin and status bit to what they are to be.
    fn drive(&self, config: &mut ConfigSpace) {
        let asks = self.level && !self.uses_messages(config);
        let status = config.word(regs::STATUS) & !regs::STATUS_INTX;
        let bit = if asks { regs::STATUS_INTX } else { 0 };
        config.set(regs::STATUS, &(status | bit).to_le_bytes());
        let off = config.command() & regs::COMMAND_INTX_OFF != 0;
        self.wiring.line.set(asks && !off);
    }
}

/// Whether the function may write memory.
fn is_master(config: &ConfigSpace) -> bool {
    config.command() & regs::COMMAND_MASTER != 0
}
