//! The board as a vCPU sees it whose engine has interrupt controllers of its own: ports and memory only.

use std::sync::Arc;

use guestmem::Gpa;
use vcpu::{Attention, InterruptFault, Platform, Wake};

use crate::board::Board;
use crate::signal::VcpuLine;

/// [`Platform`] for an engine with interrupt controllers.
///
/// What concerns interrupts and time is the engine's; it does not ask here, and is told "nothing" if it does.
pub(crate) struct PortsPlatform {
    board: Arc<Board>,
    line: Arc<VcpuLine>,
    tsc_hz: u64,
}

impl PortsPlatform {
    pub(crate) fn new(index: usize, board: Arc<Board>, tsc_hz: u64) -> Self {
        let line = Arc::clone(&board.lines()[index]);
        Self {
            board,
            line,
            tsc_hz,
        }
    }
}

impl Platform for PortsPlatform {
    fn pio_read(&mut self, port: u16, size_bytes: u8) -> u32 {
        let mut data = [0; 4];
        let size = usize::from(size_bytes).min(data.len());
        let now = self.board.now();
        self.board.bus.pio_read(port, &mut data[..size], now);
        self.board.deadlines_changed();
        u32::from_le_bytes(data)
    }

    fn pio_write(&mut self, port: u16, size_bytes: u8, value: u32) {
        let data = value.to_le_bytes();
        let size = usize::from(size_bytes).min(data.len());
        let now = self.board.now();
        self.board.bus.pio_write(port, &data[..size], now);
        self.board.deadlines_changed();
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) {
        self.board.bus.mmio_read(gpa, data, self.board.now());
        self.board.deadlines_changed();
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) {
        self.board.bus.mmio_write(gpa, data, self.board.now());
        self.board.deadlines_changed();
    }

    fn apic_page(&self) -> Option<Gpa> {
        None
    }

    fn apic_msr_read(&mut self, _msr: u32) -> Result<u64, InterruptFault> {
        Err(InterruptFault)
    }

    fn apic_msr_write(&mut self, _msr: u32, _value: u64) -> Result<(), InterruptFault> {
        Err(InterruptFault)
    }

    fn cr8(&mut self) -> u8 {
        0
    }

    fn set_cr8(&mut self, _priority: u8) {}

    fn interrupt_pending(&mut self) -> bool {
        false
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }

    fn take_nmi(&mut self) -> bool {
        false
    }

    fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    fn tsc(&mut self, _retired: u64) -> u64 {
        self.board.now().to_ticks(self.tsc_hz)
    }

    fn set_tsc_offset(&mut self, _offset: u64) {}

    fn poll(&mut self, _retired: u64) -> u64 {
        u64::MAX
    }

    fn idle(&mut self, _retired: u64) -> Wake {
        self.line.park(None);
        if self.line.attention().get() & Attention::STOP != 0 {
            Wake::Stop
        } else {
            Wake::Event
        }
    }
}
