//! Ports that talk to the host rather than model a chip: debug exit, debug console, POST code.
//!
//! Debug exit and debug console are there on request only; they behave as the `isa-debug-exit` and
//! `isa-debugcon` ports that test kernels and firmware know.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, Region, VirtualTime};

use crate::SystemControl;
use crate::serial::SerialOutput;

/// Port of [`DebugExit`].
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// Port of [`DebugConsole`] where SeaBIOS and most tools write.
pub const DEBUG_CONSOLE_PORT: u16 = 0x402;
/// Port of [`DebugConsole`] as Bochs has it.
pub const DEBUG_CONSOLE_PORT_BOCHS: u16 = 0xe9;
/// Port of [`PostCode`].
pub const POST_PORT: u16 = 0x80;
/// What a debug console port reads as, by which software finds it.
pub const DEBUG_CONSOLE_ID: u8 = 0xe9;

/// A write ends the VM with the value written.
pub struct DebugExit {
    control: Arc<dyn SystemControl>,
}

impl DebugExit {
    /// The port, which tells `control`.
    #[must_use]
    pub fn new(control: Arc<dyn SystemControl>) -> Self {
        Self { control }
    }
}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "debugexit"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8], _now: VirtualTime) {
        data.fill(0);
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        if let (0, Some(&code)) = (offset, data.first()) {
            self.control.debug_exit(code);
        }
    }
}

/// Each byte written goes to an output.
pub struct DebugConsole {
    output: Box<dyn SerialOutput>,
}

impl DebugConsole {
    /// The port, which writes to `output`.
    #[must_use]
    pub fn new(output: Box<dyn SerialOutput>) -> Self {
        Self { output }
    }
}

impl Device for DebugConsole {
    fn name(&self) -> &'static str {
        "debugcon"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8], _now: VirtualTime) {
        if let Some(byte) = data.first_mut() {
            *byte = DEBUG_CONSOLE_ID;
        }
    }

    fn write(&mut self, _region: Region, _offset: u64, data: &[u8], _now: VirtualTime) {
        if let Some(byte) = data.first() {
            self.output.write(std::slice::from_ref(byte));
        }
    }
}

/// The POST code latch, which Linux writes for a delay: keeps the last byte.
#[derive(Default)]
pub struct PostCode {
    code: u8,
}

impl PostCode {
    /// A cleared latch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for PostCode {
    fn name(&self) -> &'static str {
        "post"
    }

    fn reset(&mut self) {
        self.code = 0;
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8], _now: VirtualTime) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.code;
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        if let (0, Some(&byte)) = (offset, data.first()) {
            self.code = byte;
        }
    }
}
