//! What a PCI function is to the host.

use std::fmt;
use std::sync::{Arc, Mutex};

use bus::VirtualTime;
use guestmem::Gpa;

use crate::config::ConfigSpace;

/// Bus, device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// Device `device` (0 to 31), function `function` (0 to 7) of a bus; higher bits are dropped.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 31) << 3 | (function as u16 & 7))
    }

    /// From the requester ID: bus in bits 15:8, device in 7:3, function in 2:0.
    #[must_use]
    pub const fn from_id(id: u16) -> Self {
        Self(id)
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device number.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// The function number.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

/// One function of a device on the PCI bus.
///
/// The host reads and writes the configuration space itself and tells the function afterwards. Like a
/// [`bus::Device`], a function answers every size and offset and never panics.
pub trait EndpointFunction: Send {
    /// The field's name for the device, for logs.
    fn name(&self) -> &'static str;

    /// The configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The configuration space, to write.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Back to the state after power-up; the configuration space is to be reset too.
    fn reset(&mut self);

    /// Bytes `offset` to `offset + len` of the configuration space are about to be read.
    fn config_read(&mut self, _offset: u16, _len: usize, _now: VirtualTime) {}

    /// Bytes `offset` to `offset + len` of the configuration space were written.
    fn config_written(&mut self, _offset: u16, _len: usize, _now: VirtualTime) {}

    /// A read from base address register `bar`, or [`crate::ROM_BAR`]; `data` arrives filled with ones.
    fn bar_read(&mut self, _bar: u8, _offset: u64, _data: &mut [u8], _now: VirtualTime) {}

    /// A write to base address register `bar`.
    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8], _now: VirtualTime) {}

    /// Where the function has the host decode ECAM, and how many bytes of it; only a host bridge has a say.
    fn ecam(&self) -> Option<(Gpa, u64)> {
        None
    }

    /// Does everything that is due at `now`.
    fn advance(&mut self, _now: VirtualTime) {}

    /// When the function next wants [`Self::advance`].
    fn deadline(&self) -> Option<VirtualTime> {
        None
    }
}

/// A function shared between the host and whoever feeds it.
pub type SharedFunction = Arc<Mutex<dyn EndpointFunction>>;
