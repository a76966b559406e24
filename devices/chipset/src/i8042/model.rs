//! The keyboard controller as a state machine, with a keyboard and no auxiliary device.
//!
//! Bytes for the guest wait where they come from, the controller's own in a bounded queue and before the keyboard's, and
//! reach the output buffer one by one, each as the guest reads the one before. The controller takes no time over
//! anything, so its input buffer is never full. A keyboard that is disabled has its clock line held low: it takes its
//! keys and sends nothing.

use std::collections::VecDeque;

use bus::VirtualTime;

use super::keyboard::Keyboard;
use super::keys::Key;
use super::regs;
use super::scan::{BREAK, translate};

/// The controller's own bytes that wait at most, for a guest that gives commands and reads nothing.
const QUEUE: usize = 16;

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
    /// The translation has taken the byte that says that a key goes up.
    breaking: bool,
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
            output_port: regs::OUTPUT_NOT_RESET | regs::OUTPUT_A20 | regs::OUTPUT_LINES,
            expect: Expect::Keyboard,
            last_was_command: false,
            buffer: None,
            last: 0,
            queue: VecDeque::with_capacity(QUEUE),
            keyboard: Keyboard::new(),
            breaking: false,
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
        self.buffer = match self.queue.pop_front() {
            Some(own) => Some(own),
            None => self
                .take_from_keyboard()
                .map(|byte| (byte, Source::Keyboard)),
        };
        self.buffer.is_some()
    }

    /// The next byte from the keyboard, unless its clock line is held.
    fn take_from_keyboard(&mut self) -> Option<u8> {
        if self.mode() & regs::MODE_KEYBOARD_OFF != 0 {
            return None;
        }
        if self.mode() & regs::MODE_TRANSLATE == 0 {
            self.breaking = false;
            return self.keyboard.take();
        }
        let mut byte = self.keyboard.take()?;
        if byte == BREAK {
            self.breaking = true;
            byte = self.keyboard.take()?;
        }
        let up = if std::mem::take(&mut self.breaking) {
            0x80
        } else {
            0
        };
        Some(translate(byte) | up)
    }

    /// A key of the keyboard goes down, or is held and comes again.
    pub fn press(&mut self, key: Key, now: VirtualTime) {
        self.keyboard.press(key, now);
    }

    /// A key of the keyboard goes up.
    pub fn release(&mut self, key: Key) {
        self.keyboard.release(key);
    }

    /// The keyboard.
    #[must_use]
    pub fn keyboard(&self) -> &Keyboard {
        &self.keyboard
    }

    /// Whether the guest lets the keyboard send, and has read all that it sent: the controller holds the clock line while
    /// the output buffer is full.
    fn lets_send(&self) -> bool {
        let off = self.mode() & regs::MODE_KEYBOARD_OFF != 0;
        let read = self.buffer.is_none() && self.queue.is_empty() && self.keyboard.is_empty();
        !off && read
    }

    /// Whether the guest has enabled the keyboard, lets it send, and has read all that it sent.
    #[must_use]
    pub fn wants_keys(&self) -> bool {
        self.lets_send() && self.keyboard.is_enabled()
    }

    /// When the key that is held comes again; `None` while the keyboard cannot send.
    #[must_use]
    pub fn repetition_due(&self) -> Option<VirtualTime> {
        self.keyboard.repetition_due().filter(|_| self.lets_send())
    }

    /// Lets the key that is held come again, if it is due and can be sent.
    pub fn repeat(&mut self, now: VirtualTime) {
        if self.repetition_due().is_some_and(|due| due <= now) {
            self.keyboard.repeat(now);
        }
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
            // No password is there.
            0xa4 => self.push(0xf1, Source::Controller),
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
            0xe0 => self.push(self.test_inputs(), Source::Controller),
            // Pulse the output port's bits that are zero; bit 0 is the reset line.
            0xf0..=0xff if command & regs::OUTPUT_NOT_RESET == 0 => return Some(ResetRequest),
            _ => {}
        }
        None
    }

    fn read_output_port(&self) -> u8 {
        let mut port = self.output_port & !(regs::OUTPUT_KEYBOARD_INT | regs::OUTPUT_AUX_INT);
        if self.keyboard_interrupt() {
            port |= regs::OUTPUT_KEYBOARD_INT;
        }
        if self.aux_interrupt() {
            port |= regs::OUTPUT_AUX_INT;
        }
        port
    }

    /// The clock lines: high when idle, low where the controller holds them.
    fn test_inputs(&self) -> u8 {
        let line = |off, bit| if self.mode() & off == 0 { bit } else { 0 };
        line(regs::MODE_KEYBOARD_OFF, regs::TEST_KEYBOARD_CLOCK)
            | line(regs::MODE_AUX_OFF, regs::TEST_AUX_CLOCK)
    }

    /// Writes the data port.
    pub fn write_data(&mut self, value: u8) -> Option<ResetRequest> {
        self.last_was_command = false;
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Keyboard => {
                // A write to the keyboard turns its interface on.
                self.ram[0] &= !regs::MODE_KEYBOARD_OFF;
                self.keyboard.command(value);
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
