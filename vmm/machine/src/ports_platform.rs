//! The board as a vCPU sees it whose engine has interrupt controllers of its own: ports and memory only.

use std::sync::Arc;

use guestmem::Gpa;
use vcpu::Platform;

use crate::board::Board;

/// [`Platform`] for an engine with interrupt controllers. What concerns interrupts and time is the engine's, which does
/// not ask here.
pub(crate) struct PortsPlatform {
    board: Arc<Board>,
}

impl PortsPlatform {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self { board }
    }
}

impl Platform for PortsPlatform {
    fn pio_read(&mut self, port: u16, size_bytes: u8, _retired: u64) -> u32 {
        let mut data = [0; 4];
        let size = usize::from(size_bytes).min(data.len());
        let now = self.board.now();
        self.board.bus.pio_read(port, &mut data[..size], now);
        self.board.deadlines_changed();
        u32::from_le_bytes(data)
    }

    fn pio_write(&mut self, port: u16, size_bytes: u8, value: u32, _retired: u64) {
        let data = value.to_le_bytes();
        let size = usize::from(size_bytes).min(data.len());
        let now = self.board.now();
        self.board.bus.pio_write(port, &data[..size], now);
        self.board.deadlines_changed();
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8], _retired: u64) {
        self.board.bus.mmio_read(gpa, data, self.board.now());
        self.board.deadlines_changed();
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8], _retired: u64) {
        self.board.bus.mmio_write(gpa, data, self.board.now());
        self.board.deadlines_changed();
    }
}
