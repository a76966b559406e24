//! What a kind of virtio device is to its transport.

use guestmem::GuestRam;

use crate::queue::{Queue, QueueError};

/// What came of working on a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left.
    Done,
    /// It is another's turn; there is more to do.
    More,
}

/// A kind of virtio device: its features, its configuration, and what it does with what is in its queues.
pub trait VirtioDevice: Send {
    /// The field's name for the device, for logs.
    fn name(&self) -> &'static str;

    /// Virtio device ID (5).
    fn id(&self) -> u16;

    /// PCI class, subclass and programming interface.
    fn class(&self) -> u32;

    /// The device's own feature bits, 0 to 23 and from 50 on.
    fn features(&self) -> u64;

    /// The most entries of each queue; powers of two up to 32768.
    fn queue_sizes(&self) -> &'static [u16];

    /// The device configuration as bytes.
    fn config(&self) -> Vec<u8>;

    /// The driver has agreed to these features.
    fn negotiated(&mut self, features: u64);

    /// Back to the state after power-up.
    fn reset(&mut self);

    /// Works for one turn on queue `index`: takes not more chains than its size, and moves not more than
    /// [`bus::TURN_BYTES`]. A chain that is not done by then is put aside and gone on with at the next call; none is given
    /// back before it is done.
    ///
    /// # Errors
    /// [`QueueError`] when the driver broke the rules of queues.
    fn process(
        &mut self,
        index: usize,
        queue: &mut Queue,
        ram: &GuestRam,
    ) -> Result<Outcome, QueueError>;
}
