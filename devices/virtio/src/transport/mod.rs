//! A virtio device as a PCI function (4.1), modern only.
//!
//! ```text
//! BAR 1   MSI-X table and pending bits
//! BAR 4   0000h common configuration, 1000h notifications, 2000h ISR status, 3000h device configuration
//! ```
//!
//! A queue is worked on inside the notification that announces it, for one turn (see `bus::Turn`): as many chains as it has
//! entries, or as many bytes as a turn moves. What is left is done at the function's next turn, so that neither a driver
//! that keeps adding nor a request as long as the disk holds the processor and the lock of all PCI functions.

mod layout;
mod registers;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{TURN_NS, VirtualTime};
use guestmem::GuestRam;
use pci::{
    BarKind, ConfigError, ConfigSpace, EndpointFunction, FunctionWiring, Identity, Interrupts,
};

use crate::device::{Outcome, VirtioDevice};
use layout::{BAR, CAP_BAR, CAP_DATA, CAP_LENGTH, CAP_OFFSET, NOTIFY_MULTIPLIER, Structure};
use registers::{Common, NO_VECTOR, Request, status};

/// Virtio's PCI vendor ID, and the device ID of a modern device of ID 0 (4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// A modern device has at least this revision (4.1.2.1).
const REVISION: u8 = 1;
/// A modern device's subsystem ID is at least 40h (4.1.2.1).
const SUBSYSTEM: u16 = 0x1100;
/// ISR status (4.1.4.5): a queue; the configuration.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// A virtio device on PCI.
pub struct VirtioFunction {
    // Configuration and wiring.
    device: Box<dyn VirtioDevice>,
    device_config: Vec<u8>,
    ram: Arc<GuestRam>,
    /// Where the capability for access through the configuration space is.
    window: u16,
    // Volatile.
    config: ConfigSpace,
    interrupts: Interrupts,
    common: Common,
    isr: u8,
    /// Queues that were announced, or have more; one bit each.
    announced: u64,
    due: Option<VirtualTime>,
}

impl VirtioFunction {
    /// `device` as a function that works on `ram` and interrupts through `wiring`.
    ///
    /// # Errors
    /// [`ConfigError`] for a device with more queues or configuration than the function has room for.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        wiring: FunctionWiring,
    ) -> Result<Self, ConfigError> {
        let queues = device.queue_sizes().len() as u16;
        let device_config = device.config();
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + device.id(),
            revision: REVISION,
            class: device.class(),
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
        });
        config.add_bar(layout::MSIX_BAR, BarKind::Memory32, layout::MSIX_BYTES)?;
        config.add_bar(BAR, BarKind::Memory64, layout::BAR_BYTES)?;
        let mut interrupts = Interrupts::new(&mut config, wiring);
        if queues > 64 {
            return Err(ConfigError::Vectors(queues));
        }
        interrupts.add_msix(&mut config, layout::msix(queues))?;
        let device_bytes = device_config.len() as u32;
        let window = layout::add_capabilities(&mut config, queues.into(), device_bytes)?;
        Ok(Self {
            common: Common::new(device.features(), device.queue_sizes(), queues + 1),
            device,
            device_config,
            ram,
            window,
            config,
            interrupts,
            isr: 0,
            announced: 0,
            due: None,
        })
    }

    /// Resets the device, as the driver may; the configuration space stays (4.1.4.3).
    fn reset_device(&mut self) {
        self.common.reset();
        self.device.reset();
        self.isr = 0;
        self.announced = 0;
        self.due = None;
        self.interrupts.set_level(&mut self.config, false);
    }

    /// Interrupts for `cause`, by `vector` where MSI-X is on.
    fn interrupt(&mut self, cause: u8, vector: u16) {
        if self.interrupts.uses_msix(&self.config) {
            if vector != NO_VECTOR {
                self.interrupts.signal(&mut self.config, vector);
            }
        } else {
            self.isr |= cause;
            self.interrupts.set_level(&mut self.config, true);
        }
    }

    fn is_master(&self) -> bool {
        self.config.command() & pci::regs::COMMAND_MASTER != 0
    }

    /// Works on the queues that were announced.
    fn work(&mut self, now: VirtualTime) {
        self.due = None;
        if !self.common.is_live() || !self.is_master() {
            return;
        }
        let announced = std::mem::take(&mut self.announced);
        for index in (0..self.common.queues.len()).filter(|n| announced >> n & 1 != 0) {
            let slot = &mut self.common.queues[index];
            let vector = slot.vector;
            let result = self
                .device
                .process(index, &mut slot.queue, &self.ram)
                .and_then(|outcome| Ok((outcome, slot.queue.wants_interrupt(&self.ram)?)));
            match result {
                Ok((outcome, wants_interrupt)) => {
                    if wants_interrupt {
                        self.interrupt(ISR_QUEUE, vector);
                    }
                    if outcome == Outcome::More {
                        self.announced |= 1 << index;
                        self.due = Some(now + TURN_NS);
                    }
                }
                Err(error) => {
                    tracing::debug!(device = self.device.name(), index, %error, "needs a reset");
                    self.common.status |= status::NEEDS_RESET;
                    self.due = None;
                    self.interrupt(ISR_CONFIG, self.common.config_vector);
                    return;
                }
            }
        }
    }

    fn notify(&mut self, index: u64, now: VirtualTime) {
        if index < self.common.queues.len() as u64 {
            self.announced |= 1 << index;
            self.work(now);
        }
    }

    fn read_structures(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Structure::at(offset) {
            Some((Structure::Common, at)) => self.common.read(at, data),
            Some((Structure::Isr, 0)) => {
                if let Some(first) = data.first_mut() {
                    *first = std::mem::take(&mut self.isr);
                }
                self.interrupts.set_level(&mut self.config, false);
            }
            Some((Structure::Device, at)) => {
                let from = usize::try_from(at).unwrap_or(usize::MAX);
                let rest = self.device_config.get(from..).unwrap_or_default();
                for (to, &from) in data.iter_mut().zip(rest) {
                    *to = from;
                }
            }
            Some((Structure::Isr | Structure::Notify, _)) | None => {}
        }
    }

    fn write_structures(&mut self, offset: u64, data: &[u8], now: VirtualTime) {
        match Structure::at(offset) {
            Some((Structure::Common, at)) => match self.common.write(at, data) {
                Request::Nothing => {}
                Request::Reset => self.reset_device(),
                Request::Negotiated(features) => self.device.negotiated(features),
                // What was announced before it was ready counts (2.7.13 allows the driver no such order, but costs nothing).
                Request::Started => self.work(now),
            },
            // The address says which queue; the value is the same number (4.1.5.2).
            Some((Structure::Notify, at)) => self.notify(at / u64::from(NOTIFY_MULTIPLIER), now),
            Some((Structure::Isr | Structure::Device, _)) | None => {}
        }
    }

    /// The access that the driver has set up in the capability for it (4.1.4.9), if it is one.
    fn windowed(&self) -> Option<(u64, usize)> {
        let bar = self.config.word(self.window + CAP_BAR) as u8;
        let offset = u64::from(self.config.dword(self.window + CAP_OFFSET));
        let length = self.config.dword(self.window + CAP_LENGTH);
        let fits = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length.into());
        (bar == BAR && fits && offset < layout::BAR_BYTES).then_some((offset, length as usize))
    }

    /// Whether an access to the configuration space touches the window's data.
    fn touches_window(&self, offset: u16, len: usize) -> bool {
        let data = usize::from(self.window + CAP_DATA);
        let offset = usize::from(offset);
        offset < data + 4 && data < offset + len
    }
}

impl EndpointFunction for VirtioFunction {
    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn reset(&mut self) {
        self.config.reset();
        self.reset_device();
        self.interrupts.reset(&mut self.config);
    }

    fn config_read(&mut self, offset: u16, len: usize, _now: VirtualTime) {
        if self.touches_window(offset, len)
            && let Some((at, length)) = self.windowed()
        {
            let mut data = [0; 4];
            self.read_structures(at, &mut data[..length]);
            self.config.set(self.window + CAP_DATA, &data);
        }
    }

    fn config_written(&mut self, offset: u16, len: usize, now: VirtualTime) {
        self.interrupts.config_written(&mut self.config);
        if self.touches_window(offset, len)
            && let Some((at, length)) = self.windowed()
        {
            let data = self.config.dword(self.window + CAP_DATA).to_le_bytes();
            self.write_structures(at, &data[..length], now);
        } else if offset < pci::regs::HEADER_END && self.announced != 0 {
            // It may have become bus master.
            self.work(now);
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8], _now: VirtualTime) {
        if bar == BAR {
            self.read_structures(offset, data);
        } else {
            self.interrupts.bar_read(bar, offset, data);
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8], now: VirtualTime) {
        if bar == BAR {
            self.write_structures(offset, data, now);
        } else {
            self.interrupts.bar_write(&self.config, bar, offset, data);
        }
    }

    fn advance(&mut self, now: VirtualTime) {
        if self.due.is_some_and(|due| due <= now) {
            self.work(now);
        }
    }

    fn deadline(&self) -> Option<VirtualTime> {
        self.due
    }
}
