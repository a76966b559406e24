//! A parallel NOR flash chip, where firmware keeps its variables.
//!
//! Source: JEDEC JEP137; Intel's command set 0001h. Eight bits wide. Operations are done at once: the chip is always ready.
//!
//! What an operation changes is given to the store, and nothing else: at most the 4 KiB of a block, in at most as many
//! pieces as the write buffer has bytes, of which an access of the guest brings at most eight.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use bus::{Device, Region, VirtualTime};

pub use model::{Changed, Flash};

/// Bytes of an erase block.
pub const BLOCK_BYTES: u64 = 4096;

/// Where the content is kept beyond the VM's life.
pub trait FlashStore: Send {
    /// `bytes` are now at `offset`. Called with the device's lock held.
    fn store(&mut self, offset: u64, bytes: &[u8]);
}

/// The chip on the bus: one region of memory, as long as its content.
pub struct FlashDevice {
    store: Option<Box<dyn FlashStore>>,
    flash: Flash,
}

impl FlashDevice {
    /// A chip that holds `bytes`, a whole number of blocks, and tells `store` of changes.
    ///
    /// # Errors
    /// The length, if it is nothing or no whole number of blocks.
    pub fn new(bytes: Vec<u8>, store: Option<Box<dyn FlashStore>>) -> Result<Self, usize> {
        let len = bytes.len();
        if len == 0 || !(len as u64).is_multiple_of(BLOCK_BYTES) {
            return Err(len);
        }
        Ok(Self {
            store,
            flash: Flash::new(bytes, BLOCK_BYTES),
        })
    }
}

impl Device for FlashDevice {
    fn name(&self) -> &'static str {
        "flash"
    }

    fn reset(&mut self) {
        self.flash.reset();
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], _now: VirtualTime) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.flash.read(at);
        }
    }

    /// Software writes bytes; a wider write is taken as several, from the lowest address on.
    fn write(&mut self, _region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        for (&byte, at) in data.iter().zip(offset..) {
            let changed = self.flash.write(at, byte);
            let Some(store) = &mut self.store else {
                continue;
            };
            for c in changed {
                let bytes = &self.flash.bytes()[c.start..c.start + c.len];
                store.store(c.start as u64, bytes);
            }
        }
    }
}
