//! The keyboard controller as a state machine, with a keyboard and no auxiliary device.
//!
//! Bytes for the guest wait in a bounded queue and reach the output buffer one by one, each as the guest reads the
//! one before. The controller takes no time over anything, so its input buffer is never full.

use std::collections::VecDeque;

use super::keyboard::{Keyboard, translate};
use super::regs;

/// Bytes that wait for the guest at most; more are dropped, as a full keyboard buffer does.
const QUEUE: usize = 32;

/// Where a byte in the output buffer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Controller,
    Keyboard,
    Aux,
    /// The auxiliary device did not answer.
    AuxTimeout,
}

/// What the next byte to the data port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Keyboard,
    Ram(u8),
    OutputPort,
    KeyboardOutput,
    AuxOutput,
    Aux,
}

/// What a write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRequest;

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I8042 {
    /// The controller's RAM; byte 0 is the controller command byte.
    ram: [u8; 32],
    output_port: u8,
    expect: Expect,
    last_was_command: bool,
    buffer: Option<(u8, Source)>,
    last: u8,
    queue: VecDeque<(u8, Source)>,
    keyboard: Keyboard,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// The controller as firmware leaves it: tested, translating, keyboard on with its interrupt, auxiliary device off.
    #[must_use]
    pub fn new() -> Self {
        let mut ram = [0; 32];
        ram[0] =
            regs::MODE_KEYBOARD_INT | regs::MODE_SYS | regs::MODE_AUX_OFF | regs::MODE_TRANSLATE;
        Self {
            ram,
            output_port: regs::OUTPUT_NOT_RESET | regs::OUTPUT_A20,
            expect: Expect::Keyboard,
            last_was_command: false,
            buffer: None,
            last: 0,
            queue: VecDeque::with_capacity(QUEUE),
            keyboard: Keyboard::new(),
        }
    }

    fn mode(&self) -> u8 {
        self.ram[0]
    }

    fn push(&mut self, byte: u8, source: Source) {
        if self.queue.len() < QUEUE {
            self.queue.push_back((byte, source));
        }
    }

    /// Moves the next byte that may pass into the empty output buffer; true when it did.
    pub fn settle(&mut self) -> bool {
        if self.buffer.is_some() {
            return false;
        }
        let keyboard_off = self.mode() & regs::MODE_KEYBOARD_OFF != 0;
        let free = |&(_, source): &(u8, Source)| !(keyboard_off && source == Source::Keyboard);
        let Some(at) = self.queue.iter().position(free) else {
            return false;
        };
        self.buffer = self.queue.remove(at).map(|(byte, source)| {
            let translated = source == Source::Keyboard && self.mode() & regs::MODE_TRANSLATE != 0;
            (if translated { translate(byte) } else { byte }, source)
        });
        true
    }

    /// The level of the keyboard's interrupt.
    #[must_use]
    pub fn keyboard_interrupt(&self) -> bool {
        let full = matches!(
            self.buffer,
            Some((_, Source::Keyboard | Source::Controller))
        );
        full && self.mode() & regs::MODE_KEYBOARD_INT != 0
    }

    /// The level of the auxiliary device's interrupt.
    #[must_use]
    pub fn aux_interrupt(&self) -> bool {
        let full = matches!(self.buffer, Some((_, Source::Aux | Source::AuxTimeout)));
        full && self.mode() & regs::MODE_AUX_INT != 0
    }

    /// Reads the status port.
    #[must_use]
    pub fn read_status(&self) -> u8 {
        let source = match self.buffer {
            None => 0,
            Some((_, Source::Controller | Source::Keyboard)) => regs::STATUS_OBF,
            Some((_, Source::Aux)) => regs::STATUS_OBF | regs::STATUS_AUX,
            Some((_, Source::AuxTimeout)) => {
                regs::STATUS_OBF | regs::STATUS_AUX | regs::STATUS_TIMEOUT
            }
        };
        let system = if self.mode() & regs::MODE_SYS != 0 {
            regs::STATUS_SYS
        } else {
            0
        };
        let command = if self.last_was_command {
            regs::STATUS_COMMAND
        } else {
            0
        };
        source | system | command | regs::STATUS_UNLOCKED
    }

    /// Reads the data port: empties the output buffer, or gives its last byte again.
    pub fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.buffer.take() {
            self.last = byte;
        }
        self.last
    }

    /// Writes the command port.
    pub fn write_command(&mut self, command: u8) -> Option<ResetRequest> {
        self.last_was_command = true;
        self.expect = Expect::Keyboard;
        match command {
            0x20..=0x3f => self.push(self.ram[usize::from(command & 0x1f)], Source::Controller),
            0x60..=0x7f => self.expect = Expect::Ram(command & 0x1f),
            0xa7 => self.ram[0] |= regs::MODE_AUX_OFF,
            0xa8 => self.ram[0] &= !regs::MODE_AUX_OFF,
            // Interface tests: no error.
            0xa9 | 0xab => self.push(0x00, Source::Controller),
            0xaa => {
                self.ram[0] |= regs::MODE_SYS;
                self.push(0x55, Source::Controller);
            }
            0xad => self.ram[0] |= regs::MODE_KEYBOARD_OFF,
            0xae => self.ram[0] &= !regs::MODE_KEYBOARD_OFF,
            // Input port: not locked.
            0xc0 => self.push(0x80, Source::Controller),
            0xd0 => self.push(self.read_output_port(), Source::Controller),
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 => self.expect = Expect::KeyboardOutput,
            0xd3 => self.expect = Expect::AuxOutput,
            0xd4 => self.expect = Expect::Aux,
            0xdd => self.output_port &= !regs::OUTPUT_A20,
            0xdf => self.output_port |= regs::OUTPUT_A20,
            // Test inputs: clock lines idle.
            0xe0 => self.push(0x00, Source::Controller),
            // Pulse the output port's bits that are zero; bit 0 is the reset line.
            0xf0..=0xff if command & regs::OUTPUT_NOT_RESET == 0 => return Some(ResetRequest),
            _ => {}
        }
        None
    }

    fn read_output_port(&self) -> u8 {
        let keyboard = if self.keyboard_interrupt() { 1 << 4 } else { 0 };
        let aux = if self.aux_interrupt() { 1 << 5 } else { 0 };
        self.output_port & 0xcf | keyboard | aux
    }

    /// Writes the data port.
    pub fn write_data(&mut self, value: u8) -> Option<ResetRequest> {
        self.last_was_command = false;
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Keyboard => {
                // A write to the keyboard turns its interface on.
                self.ram[0] &= !regs::MODE_KEYBOARD_OFF;
                let (bytes, count) = self.keyboard.command(value);
                if value == 0xff {
                    self.queue.retain(|&(_, source)| source != Source::Keyboard);
                }
                for &byte in &bytes[..count] {
                    self.push(byte, Source::Keyboard);
                }
            }
            Expect::Ram(index) => self.ram[usize::from(index & 0x1f)] = value,
            Expect::OutputPort => {
                self.output_port = value;
                if value & regs::OUTPUT_NOT_RESET == 0 {
                    self.output_port |= regs::OUTPUT_NOT_RESET;
                    return Some(ResetRequest);
                }
            }
            Expect::KeyboardOutput => self.push(value, Source::Controller),
            Expect::AuxOutput => self.push(value, Source::Aux),
            // Nobody answers; the controller says so with a timeout and a resend.
            Expect::Aux => self.push(0xfe, Source::AuxTimeout),
        }
        None
    }

    /// Whether A20 is open, as the guest last set it. The board leaves the line open: the state is only kept.
    #[must_use]
    pub fn a20(&self) -> bool {
        self.output_port & regs::OUTPUT_A20 != 0
    }

    /// Sets A20 from port 92h.
    pub fn set_a20(&mut self, open: bool) {
        self.output_port =
            self.output_port & !regs::OUTPUT_A20 | if open { regs::OUTPUT_A20 } else { 0 };
    }
}
