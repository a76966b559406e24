//! The MSI capability (PCI Local Bus 3.0 6.8.1): all of it lives in the configuration space.

use bus::MsiSink;

use super::is_master;
use crate::config::{ConfigError, ConfigSpace};

const ID: u8 = 0x05;
/// Message control: MSI enable.
const ENABLE: u16 = 1 << 0;
/// Message control: how many messages the function can send, as a power of two.
const CAPABLE_SHIFT: u16 = 1;
/// Message control: how many it may send.
const ENABLED_SHIFT: u16 = 4;
/// Message control: 64-bit address.
const ADDRESS64: u16 = 1 << 7;
/// Message control: mask and pending bits.
const MASKABLE: u16 = 1 << 8;
/// Offsets in the capability.
const CONTROL: u16 = 2;
const ADDRESS: u16 = 4;
const DATA: u16 = 12;
const MASK: u16 = 16;
const PENDING: u16 = 20;
/// Bytes after ID and next pointer.
const BODY: usize = 22;

/// Where the capability is.
#[derive(Debug)]
pub(super) struct Msi {
    at: u16,
}

impl Msi {
    pub fn new(config: &mut ConfigSpace, vectors: u8) -> Result<Self, ConfigError> {
        if !vectors.is_power_of_two() || vectors > 32 {
            return Err(ConfigError::Vectors(vectors.into()));
        }
        let capable = (vectors.trailing_zeros() as u16) << CAPABLE_SHIFT;
        let mut body = [0; BODY];
        body[..2].copy_from_slice(&(capable | ADDRESS64 | MASKABLE).to_le_bytes());
        let mut writable = [0; BODY];
        let mut allow = |at: u16, mask: &[u8]| {
            let at = usize::from(at - 2);
            writable[at..at + mask.len()].copy_from_slice(mask);
        };
        allow(CONTROL, &(ENABLE | 7 << ENABLED_SHIFT).to_le_bytes());
        allow(ADDRESS, &(!3u64).to_le_bytes());
        allow(DATA, &[0xff; 2]);
        let all = u32::MAX >> (32 - u32::from(vectors));
        allow(MASK, &all.to_le_bytes());
        let at = config.add_capability(ID, &body, &writable)?;
        Ok(Self { at })
    }

    fn control(&self, config: &ConfigSpace) -> u16 {
        config.word(self.at + CONTROL)
    }

    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        self.control(config) & ENABLE != 0
    }

    /// How many messages software allows, as a power of two; not more than the function asked for.
    fn log_vectors(&self, config: &ConfigSpace) -> u16 {
        let control = self.control(config);
        (control >> ENABLED_SHIFT & 7).min(control >> CAPABLE_SHIFT & 7)
    }

    pub fn signal(&self, config: &mut ConfigSpace, vector: u16, messages: &dyn MsiSink) {
        let vector = vector.min((1 << self.log_vectors(config)) - 1);
        let bit = 1u32 << vector;
        if is_master(config) && config.dword(self.at + MASK) & bit == 0 {
            self.send(config, vector, messages);
        } else {
            let pending = config.dword(self.at + PENDING) | bit;
            config.set(self.at + PENDING, &pending.to_le_bytes());
        }
    }

    /// The function puts the vector into the low bits of the data (6.8.1.3).
    fn send(&self, config: &ConfigSpace, vector: u16, messages: &dyn MsiSink) {
        let low = u64::from(config.dword(self.at + ADDRESS));
        let high = u64::from(config.dword(self.at + ADDRESS + 4));
        let own = (1u16 << self.log_vectors(config)) - 1;
        let data = config.word(self.at + DATA) & !own | vector & own;
        messages.signal(bus::Msi {
            address: high << 32 | low,
            data: data.into(),
        });
    }

    pub fn send_pending(&self, config: &mut ConfigSpace, messages: &dyn MsiSink) {
        if !self.enabled(config) || !is_master(config) {
            return;
        }
        let pending = config.dword(self.at + PENDING);
        let due = pending & !config.dword(self.at + MASK);
        if due == 0 {
            return;
        }
        config.set(self.at + PENDING, &(pending & !due).to_le_bytes());
        for vector in (0..32).filter(|v| due >> v & 1 != 0) {
            self.send(config, vector, messages);
        }
    }
}
