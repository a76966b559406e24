//! The serial port: a 16550A with its FIFOs.
//!
//! Source: National PC16550D datasheet. Output goes byte by byte to a [`SerialOutput`]; input comes through a
//! [`SerialInput`], which any thread may hold. The receiver takes from that queue as fast as the guest reads, so nothing is lost.

mod model;
pub mod regs;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::{Device, IrqLine, Region, VirtualTime};

pub use model::Uart;

use crate::line::DrivenLine;

/// Where the guest's output goes.
pub trait SerialOutput: Send {
    /// Takes bytes. Called on the vCPU's thread with the device's lock held, so it should not wait long.
    fn write(&mut self, bytes: &[u8]);
}

/// Bytes the input queue holds for a guest that does not read.
pub const INPUT_QUEUE_BYTES: usize = 4096;

#[derive(Default)]
struct Queue {
    bytes: Mutex<VecDeque<u8>>,
    room: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end of a serial port's input, for any thread.
///
/// After [`Self::push`] the board must re-read deadlines (`Bus::reschedule`) and advance the bus, for the device to notice.
#[derive(Clone)]
pub struct SerialInput {
    queue: Arc<Queue>,
}

impl SerialInput {
    /// Queues as many bytes as there is room for, and says how many.
    #[must_use]
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut queue = self.queue.lock();
        let count = bytes
            .len()
            .min(INPUT_QUEUE_BYTES.saturating_sub(queue.len()));
        queue.extend(&bytes[..count]);
        count
    }

    /// How many bytes [`Self::push`] would take.
    #[must_use]
    pub fn room(&self) -> usize {
        INPUT_QUEUE_BYTES.saturating_sub(self.queue.lock().len())
    }

    /// Waits until there is room or the time is over; true when there is room.
    #[must_use]
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let full = |q: &mut VecDeque<u8>| q.len() >= INPUT_QUEUE_BYTES;
        let result = self
            .queue
            .room
            .wait_timeout_while(self.queue.lock(), timeout, full);
        let (queue, _) = result.unwrap_or_else(PoisonError::into_inner);
        queue.len() < INPUT_QUEUE_BYTES
    }
}

/// A serial port on the bus: one region of [`regs::PORTS`] ports.
pub struct Serial {
    irq: DrivenLine,
    output: Box<dyn SerialOutput>,
    input: Arc<Queue>,
    uart: Uart,
}

impl Serial {
    /// A port after power-up, and the writing end of its input.
    #[must_use]
    pub fn new(irq: IrqLine, output: Box<dyn SerialOutput>) -> (Self, SerialInput) {
        let queue = Arc::new(Queue::default());
        let input = SerialInput {
            queue: queue.clone(),
        };
        (
            Self {
                irq: DrivenLine::new(irq),
                output,
                input: queue,
                uart: Uart::new(),
            },
            input,
        )
    }

    /// Moves queued input into the receiver as far as it has room, and drives the interrupt line.
    fn settle(&mut self, now: VirtualTime) {
        let room = self.uart.rx_room();
        if room > 0 {
            let mut queue = self.input.lock();
            let count = room.min(queue.len());
            for byte in queue.drain(..count) {
                self.uart.receive(byte, now);
            }
            if count > 0 {
                self.input.room.notify_all();
            }
        }
        self.irq.set(self.uart.interrupt());
    }
}

impl Device for Serial {
    fn name(&self) -> &'static str {
        "serial"
    }

    /// Queued input stays: it is on the line, not in the chip.
    fn reset(&mut self) {
        self.uart = Uart::new();
        self.irq.set(false);
    }

    /// A wide access is split into byte accesses, as the ISA bridge does.
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        for (byte, offset) in data.iter_mut().zip(offset..u64::from(regs::PORTS)) {
            *byte = self.uart.read(offset as u8, now);
            self.settle(now);
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        for (&byte, offset) in data.iter().zip(offset..u64::from(regs::PORTS)) {
            let irq = &mut self.irq;
            let sent = self
                .uart
                .write(offset as u8, byte, now, |uart| irq.set(uart.interrupt()));
            if let Some(byte) = sent {
                self.output.write(&[byte]);
            }
            self.settle(now);
        }
    }

    fn advance(&mut self, now: VirtualTime) {
        self.uart.advance(now);
        self.settle(now);
    }

    /// Input that the receiver has room for is due at once.
    fn deadline(&self) -> Option<VirtualTime> {
        if self.uart.rx_room() > 0 && !self.input.lock().is_empty() {
            return Some(VirtualTime(0));
        }
        self.uart.deadline()
    }
}
