//! The SATA controller of the ICH9 in AHCI mode (AHCI 1.3.1; ICH9 datasheet chapter 15): PCI function, generic host control,
//! and six ports. Commands are executed inside the access that issues them, as far as a turn reaches (see `bus::Turn`); what
//! is left goes on at the function's next turn.
//!
//! Frames and data go by `fis`, a port's registers and command list are `port`, what is on a port is an
//! [`AtaDevice`]. Command completion coalescing, port multipliers, native command queuing and power states are not
//! there and not announced.

mod fis;
mod port;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::VirtualTime;
use guestmem::GuestRam;
use pci::{
    BarKind, Bdf, ConfigError, ConfigSpace, EndpointFunction, FunctionWiring, Identity, Interrupts,
};

use crate::ata::AtaDevice;
use crate::cdrom::CdRom;
use port::Port;

/// Ports.
const PORTS: usize = 6;
/// The base address register of the registers, and its size: generic control, then 80h for each port.
const BAR: u8 = 5;
const BAR_BYTES: u64 = 0x1000;
const FIRST_PORT: u64 = 0x100;
const PORT_BYTES: u64 = 0x80;

/// Generic host control (3.1).
mod at {
    pub const CAP: u64 = 0x00;
    pub const GHC: u64 = 0x04;
    pub const IS: u64 = 0x08;
    pub const PI: u64 = 0x0c;
    pub const VS: u64 = 0x10;
}
/// Capabilities: 6 ports, 32 slots, AHCI only, generation 1, 64-bit addresses.
const CAP: u32 = (PORTS as u32 - 1) | 31 << 8 | 1 << 18 | 1 << 20 | 1 << 31;
/// Version 1.3.1.
const VERSION: u32 = 0x0001_0301;
/// Global control: reset, interrupts, AHCI (fixed).
const GHC_RESET: u32 = 1 << 0;
const GHC_INTERRUPTS: u32 = 1 << 1;
const GHC_AHCI: u32 = 1 << 31;

/// The controller.
pub struct AhciFunction {
    // Wiring.
    ram: Arc<GuestRam>,
    // Volatile.
    config: ConfigSpace,
    interrupts: Interrupts,
    ports: [Port; PORTS],
    enabled: bool,
    /// Interrupt status: one bit a port.
    pending: u32,
}

impl AhciFunction {
    /// Its place: device 31, function 2.
    pub const BDF: Bdf = Bdf::new(0, 31, 2);

    /// A controller with `drive` on its first port, if there is one.
    ///
    /// # Errors
    /// [`ConfigError`] never for the registers it has.
    pub fn new(
        drive: Option<CdRom>,
        ram: Arc<GuestRam>,
        wiring: FunctionWiring,
    ) -> Result<Self, ConfigError> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x2922,
            revision: 0x02,
            class: 0x01_06_01,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        config.add_bar(BAR, BarKind::Memory32, BAR_BYTES)?;
        let mut interrupts = Interrupts::new(&mut config, wiring);
        interrupts.add_msi(&mut config, 1)?;
        let mut drive = drive.map(|drive| Box::new(drive) as Box<dyn AtaDevice>);
        Ok(Self {
            ram,
            config,
            interrupts,
            ports: std::array::from_fn(|_| Port::new(drive.take())),
            enabled: false,
            pending: 0,
        })
    }

    fn is_master(&self) -> bool {
        self.config.command() & pci::regs::COMMAND_MASTER != 0
    }

    /// Lets the ports execute, and brings the interrupt to what it is to be.
    fn work(&mut self, now: VirtualTime) {
        if self.is_master() {
            for port in &mut self.ports {
                port.work(&self.ram, now);
            }
        } else {
            // It goes on once the function may access memory again.
            self.ports.iter_mut().for_each(Port::suspend);
        }
        self.interrupt(false);
    }

    /// Gathers the ports' requests (3.1.4). A message goes out for each that is new, and again when software cleared some
    /// and others are left (10.6.2.1).
    fn interrupt(&mut self, again: bool) {
        let asks = (self.ports.iter().enumerate())
            .filter(|(_, port)| port.asks())
            .fold(0, |bits, (n, _)| bits | 1 << n);
        let new = asks & !self.pending;
        self.pending |= asks;
        let high = self.enabled && self.pending != 0;
        if high && (new != 0 || again) && self.interrupts.uses_messages(&self.config) {
            self.interrupts.signal(&mut self.config, 0);
        }
        self.interrupts.set_level(&mut self.config, high);
    }

    /// A reset by GHC.HR (10.4.3).
    fn reset_controller(&mut self, keep: bool) {
        for port in &mut self.ports {
            port.reset(keep);
        }
        self.enabled = false;
        self.pending = 0;
    }

    fn read32(&self, offset: u64) -> u32 {
        match offset {
            at::CAP => CAP,
            at::GHC => GHC_AHCI | if self.enabled { GHC_INTERRUPTS } else { 0 },
            at::IS => self.pending,
            at::PI => (1 << PORTS) - 1,
            at::VS => VERSION,
            _ => match self.port_at(offset) {
                Some((port, offset)) => self.ports[port].read(offset),
                None => 0,
            },
        }
    }

    fn port_at(&self, offset: u64) -> Option<(usize, u64)> {
        let into = offset.checked_sub(FIRST_PORT)?;
        let port = usize::try_from(into / PORT_BYTES).ok()?;
        (port < PORTS).then_some((port, into % PORT_BYTES))
    }

    fn write32(&mut self, offset: u64, value: u32, now: VirtualTime) {
        match offset {
            at::GHC if value & GHC_RESET != 0 => {
                self.reset_controller(true);
                self.interrupt(false);
            }
            at::GHC => {
                let before = self.enabled;
                self.enabled = value & GHC_INTERRUPTS != 0;
                self.interrupt(!before);
            }
            at::IS => {
                self.pending &= !value;
                self.interrupt(true);
            }
            _ => {
                if let Some((port, offset)) = self.port_at(offset) {
                    self.ports[port].write(offset, value);
                    self.work(now);
                }
            }
        }
    }
}

impl EndpointFunction for AhciFunction {
    fn name(&self) -> &'static str {
        "ahci"
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn reset(&mut self) {
        self.config.reset();
        self.reset_controller(false);
        self.interrupts.reset(&mut self.config);
    }

    fn config_written(&mut self, _offset: u16, _len: usize, now: VirtualTime) {
        self.interrupts.config_written(&mut self.config);
        self.work(now);
    }

    /// Registers are read by aligned doublewords; parts of one are given too.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8], _now: VirtualTime) {
        if bar != BAR || offset >= BAR_BYTES {
            return;
        }
        for (at, byte) in (offset..).zip(data) {
            *byte = (self.read32(at & !3) >> (8 * (at & 3))) as u8;
        }
    }

    /// Registers are written by aligned doublewords (3); other writes have no effect.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8], now: VirtualTime) {
        if bar != BAR
            || offset >= BAR_BYTES
            || !offset.is_multiple_of(4)
            || !matches!(data.len(), 4 | 8)
        {
            return;
        }
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let value = word
                .iter()
                .rev()
                .fold(0, |all, &byte| all << 8 | u32::from(byte));
            self.write32(at, value, now);
        }
    }

    fn advance(&mut self, now: VirtualTime) {
        if self.deadline().is_some_and(|due| due <= now) {
            self.work(now);
        }
    }

    fn deadline(&self) -> Option<VirtualTime> {
        self.ports.iter().filter_map(Port::deadline).min()
    }
}
