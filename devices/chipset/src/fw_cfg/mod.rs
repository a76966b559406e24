//! The firmware configuration device: how firmware, boot loaders and Linux learn what the machine is.
//!
//! Source: QEMU's docs/specs/fw_cfg. An item is selected by its key and then read, byte by byte through a port or by
//! DMA; reading past its end gives zeros. Items with names are files, listed in a directory. No item can be written.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, Region, VirtualTime};
use guestmem::{Gpa, GuestRam};

pub use model::{FwCfg, FwCfgError, Items};

/// Most bytes copied in one step of a DMA operation.
const STEP: usize = 1 << 16;

/// The device on the bus: one region of [`regs::PORTS`] ports at [`regs::PORT`].
pub struct FwCfgDevice {
    ram: Arc<GuestRam>,
    model: FwCfg,
    /// The DMA address register.
    address: [u8; 8],
}

impl FwCfgDevice {
    /// The device with `items`; DMA goes to `ram`.
    #[must_use]
    pub fn new(items: Items, ram: Arc<GuestRam>) -> Self {
        Self {
            ram,
            model: FwCfg::new(items),
            address: [0; 8],
        }
    }

    /// Does the operation that the structure at the DMA address describes, and clears its control word; what is left there
    /// says whether there was an error. Nothing happens if the structure is not in RAM.
    fn operate(&mut self) {
        let at = Gpa(u64::from_be_bytes(std::mem::take(&mut self.address)));
        let mut operation = [0; regs::DMA_BYTES];
        if self.ram.read(at, &mut operation).is_err() {
            return;
        }
        let word = |i: usize| {
            let bytes = [
                operation[i],
                operation[i + 1],
                operation[i + 2],
                operation[i + 3],
            ];
            u32::from_be_bytes(bytes)
        };
        let (control, length) = (word(0), word(4));
        let to = Gpa(u64::from(word(8)) << 32 | u64::from(word(12)));
        if control & regs::DMA_SELECT != 0 {
            self.model.select((control >> 16) as u16);
        }
        // Reading goes before writing, and both before skipping.
        let good = if control & regs::DMA_READ != 0 {
            self.transfer(to, length)
        } else if control & regs::DMA_WRITE != 0 {
            false
        } else {
            if control & regs::DMA_SKIP != 0 {
                self.model.skip(length);
            }
            true
        };
        let status = if good { 0 } else { regs::DMA_ERROR };
        // The structure was read from there; if it lies in ROM, nobody can be told.
        let _ = self.ram.write(at, &status.to_be_bytes());
    }

    /// Copies `length` bytes of the item to memory; false at the first byte that is not RAM.
    fn transfer(&mut self, to: Gpa, length: u32) -> bool {
        let mut buffer = [0; STEP];
        let mut done = 0;
        while done < u64::from(length) {
            let n = (u64::from(length) - done).min(STEP as u64) as usize;
            self.model.read(&mut buffer[..n]);
            let Some(at) = to.0.checked_add(done) else {
                return false;
            };
            if self.ram.write(Gpa(at), &buffer[..n]).is_err() {
                return false;
            }
            done += n as u64;
        }
        true
    }
}

impl Device for FwCfgDevice {
    fn name(&self) -> &'static str {
        "fwcfg"
    }

    fn reset(&mut self) {
        self.model.reset();
        self.address = [0; 8];
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], _now: VirtualTime) {
        match offset {
            // The selector reads as the data port does, one byte.
            regs::SELECTOR | regs::DATA => {
                if let [byte] = data {
                    self.model.read(std::slice::from_mut(byte));
                }
            }
            _ => {
                for (byte, at) in data.iter_mut().zip(offset..) {
                    let into = at.checked_sub(regs::DMA_ADDRESS);
                    let known = into.and_then(|i| regs::DMA_SIGNATURE.get(i as usize));
                    *byte = known.copied().unwrap_or(0xff);
                }
            }
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        match (offset, data) {
            (regs::SELECTOR, &[low, high]) => self.model.select(u16::from_le_bytes([low, high])),
            (4, &[a, b, c, d]) => self.address[..4].copy_from_slice(&[a, b, c, d]),
            (8, &[a, b, c, d]) => {
                self.address[4..].copy_from_slice(&[a, b, c, d]);
                self.operate();
            }
            _ => {}
        }
    }
}
