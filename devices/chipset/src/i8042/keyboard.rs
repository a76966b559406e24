//! A PS/2 keyboard: its commands, and the bytes that its keys leave in its buffer.
//!
//! Source: IBM PS/2 Technical Reference, keyboard. Answers to commands do not take room in the buffer of keys and go
//! before them. Commands take no time. The key that was pressed last repeats while it is held (`typematic`).

use std::collections::VecDeque;

use bus::VirtualTime;

use super::keys::{Form, Key, KeyType, types_at_power_up};
use super::scan::{BREAK, Modifiers, codes, repeated};
use super::typematic::{AT_POWER_UP, Pace, Typematic};

/// Acknowledge.
const ACK: u8 = 0xfa;
/// Resend: the command is not known.
const RESEND: u8 = 0xfe;
/// The self-test passed.
const TEST_PASSED: u8 = 0xaa;
/// The two bytes of a keyboard's identity.
const IDENTITY: [u8; 2] = [0xab, 0x83];

/// Bytes of keys the buffer holds; the overrun code has a place of its own.
pub const BUFFER_BYTES: usize = 16;
/// Bytes of answers that wait for a host that sends commands and reads nothing.
const ANSWER_BYTES: usize = 32;

/// What the next byte from the controller may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaiting {
    Lights,
    ScanSet,
    Typematic,
    /// Codes of set 3, whose keys become of this type, until something else comes.
    Keys(KeyType),
}

/// The keyboard's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyboard {
    scan_set: u8,
    /// Bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock.
    lights: u8,
    pace: Pace,
    typematic: Typematic,
    /// Whether keys send codes.
    scanning: bool,
    /// Whether the host has asked for them.
    enabled: bool,
    types: [Option<KeyType>; 256],
    awaiting: Option<Awaiting>,
    answers: VecDeque<u8>,
    buffer: VecDeque<u8>,
    /// The byte that was sent last, but for a resend.
    last: u8,
    /// The keys that are down, by [`Key::bit`].
    held: u128,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self::new()
    }
}

impl Keyboard {
    /// A keyboard after power-up; what its self-test sent has been read.
    #[must_use]
    pub fn new() -> Self {
        Self {
            scan_set: 2,
            lights: 0,
            pace: Pace(AT_POWER_UP),
            typematic: Typematic::default(),
            scanning: true,
            enabled: false,
            types: types_at_power_up(),
            awaiting: None,
            answers: VecDeque::with_capacity(ANSWER_BYTES),
            buffer: VecDeque::with_capacity(BUFFER_BYTES + 1),
            last: TEST_PASSED,
            held: 0,
        }
    }

    /// The lights: bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock.
    #[must_use]
    pub fn lights(&self) -> u8 {
        self.lights
    }

    /// Rate and delay, as command F3h sets them.
    #[must_use]
    pub fn typematic(&self) -> u8 {
        self.pace.0
    }

    /// Whether the host has asked for keys.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether nothing waits to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.buffer.is_empty()
    }

    /// Sends the next byte.
    pub fn take(&mut self) -> Option<u8> {
        let byte = self
            .answers
            .pop_front()
            .or_else(|| self.buffer.pop_front())?;
        if byte != RESEND {
            self.last = byte;
        }
        Some(byte)
    }

    fn answer(&mut self, bytes: &[u8]) {
        let room = ANSWER_BYTES.saturating_sub(self.answers.len());
        self.answers.extend(bytes.iter().take(room));
    }

    /// Takes a byte from the controller.
    pub fn command(&mut self, byte: u8) {
        match self.awaiting.take() {
            // A command in place of the argument ends the wait.
            Some(awaiting) if byte < 0xed => self.argument(awaiting, byte),
            _ => self.plain(byte),
        }
    }

    fn argument(&mut self, awaiting: Awaiting, byte: u8) {
        match awaiting {
            Awaiting::Lights => self.lights = byte & 7,
            Awaiting::Typematic => self.pace = Pace(byte & 0x7f),
            Awaiting::ScanSet => match byte {
                0 => return self.answer(&[ACK, self.scan_set]),
                1..=3 => self.scan_set = byte,
                _ => return self.answer(&[RESEND]),
            },
            Awaiting::Keys(kind) => match &mut self.types[usize::from(byte)] {
                Some(of_key) => {
                    *of_key = kind;
                    self.awaiting = Some(awaiting);
                }
                None => return self.answer(&[RESEND]),
            },
        }
        self.answer(&[ACK]);
    }

    fn plain(&mut self, byte: u8) {
        match byte {
            0xff => {
                let held = self.held;
                *self = Self::new();
                self.held = held;
                self.answer(&[ACK, TEST_PASSED]);
            }
            0xfe if self.answers.len() < ANSWER_BYTES => self.answers.push_front(self.last),
            0xfe => {}
            0xee => self.answer(&[0xee]),
            0xf2 => self.answer(&[ACK, IDENTITY[0], IDENTITY[1]]),
            0xed => self.wait_for(Awaiting::Lights),
            0xf0 => {
                self.buffer.clear();
                self.typematic.stop();
                self.wait_for(Awaiting::ScanSet);
            }
            0xf3 => self.wait_for(Awaiting::Typematic),
            0xf4 => {
                self.buffer.clear();
                self.typematic.stop();
                self.enabled = true;
                self.scanning = true;
                self.answer(&[ACK]);
            }
            0xf5 | 0xf6 => {
                self.defaults();
                if byte == 0xf5 {
                    self.typematic.stop();
                    self.enabled = false;
                    self.scanning = false;
                }
                self.answer(&[ACK]);
            }
            0xf7 => self.all_keys(KeyType::Typematic),
            0xf8 => self.all_keys(KeyType::MakeBreak),
            0xf9 => self.all_keys(KeyType::Make),
            0xfa => self.all_keys(KeyType::TypematicMakeBreak),
            0xfb => self.some_keys(KeyType::Typematic),
            0xfc => self.some_keys(KeyType::MakeBreak),
            0xfd => self.some_keys(KeyType::Make),
            _ => self.answer(&[RESEND]),
        }
    }

    fn wait_for(&mut self, awaiting: Awaiting) {
        self.awaiting = Some(awaiting);
        self.answer(&[ACK]);
    }

    /// The state of power-up, but for the lights.
    fn defaults(&mut self) {
        self.scan_set = 2;
        self.pace = Pace(AT_POWER_UP);
        self.types = types_at_power_up();
        self.buffer.clear();
    }

    fn all_keys(&mut self, kind: KeyType) {
        self.buffer.clear();
        for of_key in self.types.iter_mut().flatten() {
            *of_key = kind;
        }
        self.answer(&[ACK]);
    }

    fn some_keys(&mut self, kind: KeyType) {
        self.buffer.clear();
        self.wait_for(Awaiting::Keys(kind));
    }

    fn is_held(&self, usage: u8) -> bool {
        Key::from_usage(usage).is_some_and(|key| self.held & key.bit() != 0)
    }

    fn modifiers(&self) -> Modifiers {
        Modifiers {
            left_shift: self.is_held(0xe1),
            right_shift: self.is_held(0xe5),
            ctrl: self.is_held(0xe0) || self.is_held(0xe4),
            alt: self.is_held(0xe2) || self.is_held(0xe6),
            num_lock: self.lights & 2 != 0,
        }
    }

    /// A key goes down; of one that is down already, it is a repetition.
    pub fn press(&mut self, key: Key, now: VirtualTime) {
        if self.held & key.bit() != 0 {
            return self.send_again(key);
        }
        let bytes = match self.scan_set {
            3 => vec![key.set3()],
            set => codes(key, true, self.modifiers(), set),
        };
        self.held |= key.bit();
        self.typematic.stop();
        if self.scanning && self.repeats(key) {
            self.typematic.start(key, self.pace, now);
        }
        self.send(&bytes);
    }

    /// Whether a key repeats: in sets 1 and 2 all but Pause, in set 3 those of a type that does.
    fn repeats(&self, key: Key) -> bool {
        match self.scan_set {
            3 => match self.types[usize::from(key.set3())] {
                Some(KeyType::TypematicMakeBreak | KeyType::Typematic) => true,
                Some(KeyType::MakeBreak | KeyType::Make) | None => false,
            },
            _ => key.form() != Form::Pause,
        }
    }

    /// Sends what a key that is held sends again.
    fn send_again(&mut self, key: Key) {
        if !self.repeats(key) {
            return;
        }
        let bytes = match self.scan_set {
            3 => vec![key.set3()],
            set => repeated(key, self.modifiers(), set),
        };
        self.send(&bytes);
    }

    /// When the key that is held is to be sent again, if nothing keeps the keyboard from sending. It does not scan its
    /// keys while it waits for a command's argument.
    #[must_use]
    pub fn repetition_due(&self) -> Option<VirtualTime> {
        self.typematic
            .due()
            .filter(|_| self.scanning && self.awaiting.is_none())
    }

    /// Sends the key that is held again, if it is due.
    pub fn repeat(&mut self, now: VirtualTime) {
        if self.repetition_due().is_some()
            && let Some(key) = self.typematic.take(self.pace, now)
        {
            self.send_again(key);
        }
    }

    /// A key goes up; nothing happens if it is not down.
    pub fn release(&mut self, key: Key) {
        if self.held & key.bit() == 0 {
            return;
        }
        self.held &= !key.bit();
        self.typematic.released(key);
        let bytes = match self.scan_set {
            3 => match self.types[usize::from(key.set3())] {
                Some(KeyType::TypematicMakeBreak | KeyType::MakeBreak) => vec![BREAK, key.set3()],
                Some(KeyType::Typematic | KeyType::Make) | None => Vec::new(),
            },
            set => codes(key, false, self.modifiers(), set),
        };
        self.send(&bytes);
    }

    /// Puts a key's codes into the buffer: all of them, or the overrun code after the last that fitted.
    fn send(&mut self, bytes: &[u8]) {
        if !self.scanning || bytes.is_empty() {
            return;
        }
        if self.buffer.len() + bytes.len() <= BUFFER_BYTES {
            self.buffer.extend(bytes);
            return;
        }
        let overrun = if self.scan_set == 1 { 0xff } else { 0x00 };
        if self.buffer.back() != Some(&overrun) {
            self.buffer.push_back(overrun);
        }
    }
}
