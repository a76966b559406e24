//! The display: a VGA (IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem") with the linear frame
//! buffer and the mode registers of the Bochs VBE extension, as a PCI function.
//!
//! Nothing is shown anywhere: frame memory stays in memory, and a [`Screen`] makes a picture of it when asked.

mod edid;
mod frame;
mod function;
mod vbe;
mod vga;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use frame::Frame;
pub use function::{DisplayFunction, LegacyWindow};
pub use vga::Vga;

/// The display as its faces on the buses share it.
#[derive(Clone)]
pub struct Screen(Arc<Mutex<Vga>>);

impl Screen {
    /// A display as after power-up.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Vga::new())))
    }

    /// The picture a monitor would show now.
    #[must_use]
    pub fn picture(&self) -> Frame {
        self.lock().picture()
    }

    /// Sets text mode 3 with a font, as the display's firmware does; for machines that start without it.
    pub fn set_text_mode(&self) {
        self.lock().set_text_mode();
    }

    fn lock(&self) -> MutexGuard<'_, Vga> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}
