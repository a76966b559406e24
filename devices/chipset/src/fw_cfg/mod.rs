//! The firmware configuration device: how firmware, boot loaders and Linux learn what the machine is.
//!
//! Source: QEMU's docs/specs/fw_cfg. An item is selected by its key and then read, byte by byte through a port or by
//! DMA; reading past its end gives zeros. Items with names are files, listed in a directory. No item can be written.
//!
//! A DMA operation goes in turns (see `bus::Turn`): the control word in guest memory keeps its bits until it is done, by
//! which the interface says that a transfer is still in progress. Another operation, or another selection, before that ends
//! it with an error; a reset drops it. Skipping costs nothing, whatever the length.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, Region, TURN_NS, Turn, VirtualTime};
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
    running: Option<Transfer>,
    due: Option<VirtualTime>,
}

/// A read by DMA that is going on.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    /// Where its structure is.
    at: Gpa,
    /// Where the next byte goes, and how many are left.
    to: u64,
    left: u32,
}

/// What came of a turn of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Done,
    Failed,
    More,
}

impl FwCfgDevice {
    /// The device with `items`; DMA goes to `ram`.
    #[must_use]
    pub fn new(items: Items, ram: Arc<GuestRam>) -> Self {
        Self {
            ram,
            model: FwCfg::new(items),
            address: [0; 8],
            running: None,
            due: None,
        }
    }

    /// Begins the operation that the structure at the DMA address describes. Nothing happens if the structure is not in
    /// RAM.
    fn operate(&mut self, now: VirtualTime) {
        self.end_early();
        let at = Gpa(u64::from_be_bytes(std::mem::take(&mut self.address)));
        let mut operation = [0; regs::DMA_BYTES];
        if self.ram.read(at, &mut operation).is_err() {
            return;
        }
        let all = u128::from_be_bytes(operation);
        let (control, length, to) = ((all >> 96) as u32, (all >> 64) as u32, all as u64);
        if control & regs::DMA_SELECT != 0 {
            self.model.select((control >> 16) as u16);
        }
        // Reading goes before writing, and both before skipping.
        if control & regs::DMA_READ != 0 {
            let left = length;
            self.running = Some(Transfer { at, to, left });
            self.turn(now);
        } else if control & regs::DMA_WRITE != 0 {
            self.tell(at, regs::DMA_ERROR);
        } else {
            if control & regs::DMA_SKIP != 0 {
                self.model.skip(length);
            }
            self.tell(at, 0);
        }
    }

    /// Says in the structure's control word how an operation ended.
    fn tell(&self, at: Gpa, status: u32) {
        // The structure was read from there; if it lies in ROM, nobody can be told.
        let _ = self.ram.write(at, &status.to_be_bytes());
    }

    /// Ends what is going on, because of something that would change it.
    fn end_early(&mut self) {
        self.due = None;
        if let Some(transfer) = self.running.take() {
            self.tell(transfer.at, regs::DMA_ERROR);
        }
    }

    /// Does a turn of the transfer.
    fn turn(&mut self, now: VirtualTime) {
        self.due = None;
        let Some(mut transfer) = self.running.take() else {
            return;
        };
        match self.copy(&mut transfer, &mut Turn::new()) {
            Progress::Done => self.tell(transfer.at, 0),
            Progress::Failed => self.tell(transfer.at, regs::DMA_ERROR),
            Progress::More => {
                self.running = Some(transfer);
                self.due = Some(now + TURN_NS);
            }
        }
    }

    /// Copies bytes of the item to memory; it fails at the first step that is not all RAM.
    fn copy(&mut self, transfer: &mut Transfer, turn: &mut Turn) -> Progress {
        let mut buffer = [0; STEP];
        while transfer.left > 0 {
            if turn.is_over() {
                return Progress::More;
            }
            let most = turn.left().min(STEP as u64);
            let n = u64::from(transfer.left).min(most);
            let bytes = &mut buffer[..n as usize];
            self.model.read(bytes);
            if self.ram.write(Gpa(transfer.to), bytes).is_err() {
                return Progress::Failed;
            }
            turn.spend(n);
            transfer.left -= n as u32;
            let Some(to) = transfer.to.checked_add(n) else {
                return Progress::Failed;
            };
            transfer.to = to;
        }
        Progress::Done
    }
}

impl Device for FwCfgDevice {
    fn name(&self) -> &'static str {
        "fwcfg"
    }

    fn reset(&mut self) {
        self.model.reset();
        self.address = [0; 8];
        self.running = None;
        self.due = None;
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

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        match (offset, data) {
            (regs::SELECTOR, &[low, high]) => {
                self.end_early();
                self.model.select(u16::from_le_bytes([low, high]));
            }
            (4, &[a, b, c, d]) => self.address[..4].copy_from_slice(&[a, b, c, d]),
            (8, &[a, b, c, d]) => {
                self.address[4..].copy_from_slice(&[a, b, c, d]);
                self.operate(now);
            }
            _ => {}
        }
    }

    fn advance(&mut self, now: VirtualTime) {
        if self.due.is_some_and(|due| due <= now) {
            self.turn(now);
        }
    }

    fn deadline(&self) -> Option<VirtualTime> {
        self.due
    }
}
