//! Scan codes: what a key sends in each set, and the controller's translation from set 2 to set 1.
//!
//! Source: IBM PS/2 Technical Reference, keyboard, scan code sets 1 to 3, with the tables of the keys whose codes depend
//! on Shift, Ctrl, Alt and Num Lock.

use super::keys::{Form, Key};

/// The controller's translation from scan code set 2 to set 1; codes from 80h up pass, but for two.
#[rustfmt::skip]
const SET2_TO_SET1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// What goes before the code of a key that goes up, in sets 2 and 3.
pub const BREAK: u8 = 0xf0;

/// What the controller makes of a byte other than [`BREAK`] while it translates.
#[must_use]
pub fn translate(byte: u8) -> u8 {
    match byte {
        0x83 => 0x41,
        0x84 => 0x54,
        0x80.. => byte,
        _ => SET2_TO_SET1[usize::from(byte)],
    }
}

/// What the codes of some keys in sets 1 and 2 depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modifiers {
    /// The left Shift is down.
    pub left_shift: bool,
    /// The right Shift is down.
    pub right_shift: bool,
    /// A Ctrl is down.
    pub ctrl: bool,
    /// An Alt is down.
    pub alt: bool,
    /// The Num Lock light is on.
    pub num_lock: bool,
}

/// The Shift keys as keys that are not there send them: software that does not know a prefix ignores their effect.
const FAKE_LEFT: u16 = 0xe012;
const FAKE_RIGHT: u16 = 0xe059;

/// A code of set 2 with its prefix in the high byte, and whether the key goes down.
type Stroke = (u16, bool);

/// What a key sends in set 1 or 2.
pub fn codes(key: Key, down: bool, modifiers: Modifiers, set: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8);
    for (code, down) in strokes(key, down, modifiers) {
        let [prefix, code] = code.to_be_bytes();
        if prefix != 0 {
            bytes.push(prefix);
        }
        if set == 1 {
            bytes.push(translate(code) | if down { 0 } else { 0x80 });
        } else {
            if !down {
                bytes.push(BREAK);
            }
            bytes.push(code);
        }
    }
    bytes
}

/// What a key that is held sends again: its own code alone.
pub fn repeated(key: Key, modifiers: Modifiers, set: u8) -> Vec<u8> {
    if key.form() == Form::Pause {
        return Vec::new();
    }
    // With Ctrl and nothing else no key sends more than its own code.
    let bare = Modifiers {
        ctrl: true,
        alt: modifiers.alt,
        ..Modifiers::default()
    };
    codes(key, true, bare, set)
}

fn strokes(key: Key, down: bool, modifiers: Modifiers) -> Vec<Stroke> {
    let code = key.set2();
    let shifted = modifiers.left_shift || modifiers.right_shift;
    // What goes before the code on the way down, and undone after it on the way up.
    let around: Vec<Stroke> = match key.form() {
        Form::Pause if !down => return Vec::new(),
        Form::Pause if modifiers.ctrl => return vec![(0xe07e, true), (0xe07e, false)],
        // The prefix holds for two codes: E1 14 77, then both go up.
        Form::Pause => return vec![(code, true), (0x77, true), (code, false), (0x77, false)],
        Form::PrintScreen if modifiers.alt => return vec![(0x84, down)],
        Form::PrintScreen if !modifiers.ctrl && !shifted => vec![(FAKE_LEFT, true)],
        Form::Cursor if !shifted && modifiers.num_lock => vec![(FAKE_LEFT, true)],
        Form::Cursor if modifiers.num_lock => Vec::new(),
        Form::Cursor | Form::Slash => {
            let left = modifiers.left_shift.then_some((FAKE_LEFT, false));
            let right = modifiers.right_shift.then_some((FAKE_RIGHT, false));
            left.into_iter().chain(right).collect()
        }
        Form::PrintScreen | Form::Plain => Vec::new(),
    };
    if down {
        around.into_iter().chain([(code, true)]).collect()
    } else {
        let undone = around.into_iter().map(|(code, down)| (code, !down));
        [(code, false)].into_iter().chain(undone).collect()
    }
}
