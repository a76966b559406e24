//! The keyboard controller of the PC/AT and PS/2, and port 92h.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference. A keyboard is attached; the auxiliary port is there with
//! nothing on it. The host presses keys ([`I8042Device::press`]) or leaves a text to be typed
//! ([`I8042Device::type_keys`]).

mod keyboard;
mod keys;
mod model;
pub mod regs;
mod scan;
mod typematic;
mod typing;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bus::{Device, IrqLine, Region, VirtualTime};

pub use keyboard::Keyboard;
pub use keys::{Key, KeyEvent, KeysError, Typed};
pub use model::{I8042, ResetRequest};

use crate::SystemControl;
use crate::line::DrivenLine;
use typing::Typing;

/// The controller on the bus.
pub struct I8042Device {
    keyboard_irq: DrivenLine,
    aux_irq: DrivenLine,
    control: Arc<dyn SystemControl>,
    controller: I8042,
    /// Port 92h's reset bit, as last written.
    fast_reset: bool,
    typing: Typing,
}

impl I8042Device {
    /// The port ranges for `BusBuilder::add`.
    pub const PORTS: [(u16, u16, Region); 3] = [
        (regs::PORT_DATA, 1, Region(regs::REGION_DATA)),
        (regs::PORT_COMMAND, 1, Region(regs::REGION_COMMAND)),
        (regs::PORT_FAST, 1, Region(regs::REGION_FAST)),
    ];

    /// The controller after firmware set it up.
    #[must_use]
    pub fn new(keyboard_irq: IrqLine, aux_irq: IrqLine, control: Arc<dyn SystemControl>) -> Self {
        Self {
            keyboard_irq: DrivenLine::new(keyboard_irq),
            aux_irq: DrivenLine::new(aux_irq),
            control,
            controller: I8042::new(),
            fast_reset: false,
            typing: Typing::default(),
        }
    }

    /// A key goes down, or is held and comes again. Afterwards the board re-reads deadlines.
    pub fn press(&mut self, key: Key, now: VirtualTime) {
        self.controller.press(key, now);
        self.settle();
    }

    /// A key goes up. Afterwards the board re-reads deadlines.
    pub fn release(&mut self, key: Key) {
        self.controller.release(key);
        self.settle();
    }

    /// Leaves keys to be typed one after the other, from when the guest enables the keyboard. What is not typed
    /// yet outlives a reset.
    pub fn type_keys(&mut self, keys: &[KeyEvent]) {
        self.typing.extend(keys);
    }

    /// The keyboard's lights: bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock.
    #[must_use]
    pub fn lights(&self) -> u8 {
        self.controller.keyboard().lights()
    }

    fn drive(&mut self) {
        self.keyboard_irq.set(self.controller.keyboard_interrupt());
        self.aux_irq.set(self.controller.aux_interrupt());
    }

    /// Drives the lines, lets the next byte into the output buffer, and drives them again: each byte is an edge.
    fn settle(&mut self) {
        self.drive();
        if self.controller.settle() {
            self.drive();
        }
    }

    /// Settles after an access, which may be the one that makes the guest ready for keys.
    fn settle_at(&mut self, now: VirtualTime) {
        self.settle();
        if self.controller.wants_keys() {
            self.typing.wanted(now);
        } else if !self.controller.keyboard().is_enabled() {
            self.typing.pause();
        }
    }
}

impl Device for I8042Device {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn reset(&mut self) {
        self.controller = I8042::new();
        self.fast_reset = false;
        self.typing.pause();
        self.drive();
    }

    fn read(&mut self, region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        let (0, Some(byte)) = (offset, data.first_mut()) else {
            return;
        };
        match region.0 {
            regs::REGION_DATA => *byte = self.controller.read_data(),
            regs::REGION_COMMAND => *byte = self.controller.read_status(),
            regs::REGION_FAST => {
                *byte = if self.controller.a20() {
                    regs::FAST_A20
                } else {
                    0
                }
            }
            _ => {}
        }
        self.settle_at(now);
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        let (0, Some(&value)) = (offset, data.first()) else {
            return;
        };
        let request = match region.0 {
            regs::REGION_DATA => self.controller.write_data(value),
            regs::REGION_COMMAND => self.controller.write_command(value),
            regs::REGION_FAST => {
                self.controller.set_a20(value & regs::FAST_A20 != 0);
                let reset = value & regs::FAST_RESET != 0;
                let rising = reset && !self.fast_reset;
                self.fast_reset = reset;
                rising.then_some(ResetRequest)
            }
            _ => None,
        };
        if let Some(ResetRequest) = request {
            self.control.reset();
        }
        self.settle_at(now);
    }

    fn advance(&mut self, now: VirtualTime) {
        while self.controller.wants_keys()
            && let Some(KeyEvent { key, down }) = self.typing.take(now)
        {
            if down {
                self.press(key, now);
            } else {
                self.release(key);
            }
        }
        // After what is typed: on a host that was busy a key's going up may be as overdue as its repetition, and a letter
        // that is typed must not come twice.
        self.controller.repeat(now);
        self.settle();
    }

    fn deadline(&self) -> Option<VirtualTime> {
        let typed = self.typing.due().filter(|_| self.controller.wants_keys());
        let repeated = self.controller.repetition_due();
        typed.into_iter().chain(repeated).min()
    }
}
