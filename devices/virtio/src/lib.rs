//! Virtio devices on PCI.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, cited by section. Devices are modern only: a driver that does not take
//! VIRTIO_F_VERSION_1 is refused. [`VirtioFunction`] is the PCI function; it holds the queues and a [`VirtioDevice`],
//! which is one of the modules here.
//!
//! The driver is hostile. Every address, length and index in a queue is checked where it is used; a queue that breaks the
//! rules makes the device stop and ask for a reset (2.1.1, DEVICE_NEEDS_RESET). Guest memory is written through
//! [`guestmem::GuestRam::write`] only, so that who caches something of it learns.

pub mod block;
mod device;
mod queue;
#[cfg(test)]
mod testing;
mod transport;

pub use device::{Outcome, VirtioDevice};
pub use queue::{Chain, Queue, QueueError, Reader, Writer};
pub use transport::VirtioFunction;
