//! A PS/2 keyboard with no keys pressed: it answers commands (IBM PS/2 Technical Reference, keyboard commands).

/// The controller's translation from scan code set 2 to set 1; codes from 80h up pass, but for two.
const SET2_TO_SET1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29,
    0x59, //
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03,
    0x5b, //
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06,
    0x5d, //
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09,
    0x5f, //
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c,
    0x61, //
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63,
    0x76, //
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f,
    0x6f, //
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// What the controller makes of a byte from the keyboard while it translates.
#[must_use]
pub fn translate(byte: u8) -> u8 {
    match byte {
        0x83 => 0x41,
        0x84 => 0x54,
        0x80.. => byte,
        _ => SET2_TO_SET1[usize::from(byte)],
    }
}

/// Acknowledge.
const ACK: u8 = 0xfa;
/// Resend: the command is not known.
const RESEND: u8 = 0xfe;

/// The keyboard's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyboard {
    scan_set: u8,
    /// The command whose argument is awaited.
    awaiting: Option<u8>,
    last: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self::new()
    }
}

/// A keyboard's answer: up to three bytes.
pub type Answer = ([u8; 3], usize);

fn answer<const N: usize>(bytes: [u8; N]) -> Answer {
    let mut all = [0; 3];
    all[..N].copy_from_slice(&bytes);
    (all, N)
}

impl Keyboard {
    /// A keyboard after power-up and its self-test.
    #[must_use]
    pub fn new() -> Self {
        Self {
            scan_set: 2,
            awaiting: None,
            last: 0xaa,
        }
    }

    /// Takes a byte from the controller.
    pub fn command(&mut self, byte: u8) -> Answer {
        let reply = match self.awaiting.take() {
            // A command in place of the argument ends the wait.
            Some(command) if byte < 0xed => self.argument(command, byte),
            _ => self.plain(byte),
        };
        if reply.1 > 0 {
            self.last = reply.0[reply.1 - 1];
        }
        reply
    }

    fn argument(&mut self, command: u8, byte: u8) -> Answer {
        match (command, byte) {
            (0xf0, 0) => return answer([ACK, self.scan_set]),
            (0xf0, 1..=3) => self.scan_set = byte,
            (0xf0, _) => return answer([RESEND]),
            // LEDs, typematic rate, key types: taken and of no effect.
            _ => {}
        }
        answer([ACK])
    }

    fn plain(&mut self, byte: u8) -> Answer {
        match byte {
            0xff => {
                *self = Self::new();
                answer([ACK, 0xaa])
            }
            0xfe => answer([self.last]),
            0xee => answer([0xee]),
            0xf2 => answer([ACK, 0xab, 0x83]),
            0xed | 0xf0 | 0xf3 | 0xfb | 0xfc | 0xfd => {
                self.awaiting = Some(byte);
                answer([ACK])
            }
            0xf5 | 0xf6 => {
                self.scan_set = 2;
                answer([ACK])
            }
            0xf4 | 0xf7..=0xfa => answer([ACK]),
            _ => answer([RESEND]),
        }
    }
}
