//! The keys of a US keyboard: their codes, and which of them type a text.
//!
//! Sources: USB HID Usage Tables, keyboard page (07h), for the names; IBM PS/2 Technical Reference, keyboard, scan code
//! sets 2 and 3 and the types of the keys in set 3.

use std::str::FromStr;

/// What a key of scan code set 3 sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyType {
    /// A code when it goes down, again while it is held, and one when it goes up.
    TypematicMakeBreak,
    /// A code when it goes down, and again while it is held.
    Typematic,
    /// A code when it goes down and one when it goes up.
    MakeBreak,
    /// A code when it goes down.
    Make,
}

/// What stands on a key decides what it sends beside its own code in sets 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    /// A key between the letters and the key pad, which looks to old software as the one on the key pad.
    Cursor,
    /// The key pad's slash.
    Slash,
    PrintScreen,
    Pause,
}

/// HID usage; code of set 2, with its prefix in the high byte; code of set 3; the key's type at power-up.
type Row = (u8, u16, u8, KeyType);

const T: KeyType = KeyType::Typematic;
const MB: KeyType = KeyType::MakeBreak;
const M: KeyType = KeyType::Make;

#[rustfmt::skip]
const KEYS: [Row; 104] = [
    // A to Z.
    (0x04, 0x1c, 0x1c, T), (0x05, 0x32, 0x32, T), (0x06, 0x21, 0x21, T), (0x07, 0x23, 0x23, T), (0x08, 0x24, 0x24, T),
    (0x09, 0x2b, 0x2b, T), (0x0a, 0x34, 0x34, T), (0x0b, 0x33, 0x33, T), (0x0c, 0x43, 0x43, T), (0x0d, 0x3b, 0x3b, T),
    (0x0e, 0x42, 0x42, T), (0x0f, 0x4b, 0x4b, T), (0x10, 0x3a, 0x3a, T), (0x11, 0x31, 0x31, T), (0x12, 0x44, 0x44, T),
    (0x13, 0x4d, 0x4d, T), (0x14, 0x15, 0x15, T), (0x15, 0x2d, 0x2d, T), (0x16, 0x1b, 0x1b, T), (0x17, 0x2c, 0x2c, T),
    (0x18, 0x3c, 0x3c, T), (0x19, 0x2a, 0x2a, T), (0x1a, 0x1d, 0x1d, T), (0x1b, 0x22, 0x22, T), (0x1c, 0x35, 0x35, T),
    (0x1d, 0x1a, 0x1a, T),
    // 1 to 9, 0.
    (0x1e, 0x16, 0x16, T), (0x1f, 0x1e, 0x1e, T), (0x20, 0x26, 0x26, T), (0x21, 0x25, 0x25, T), (0x22, 0x2e, 0x2e, T),
    (0x23, 0x36, 0x36, T), (0x24, 0x3d, 0x3d, T), (0x25, 0x3e, 0x3e, T), (0x26, 0x46, 0x46, T), (0x27, 0x45, 0x45, T),
    // Enter, Esc, Backspace, Tab, space; - = [ ] \ ; ' ` , . /
    (0x28, 0x5a, 0x5a, T), (0x29, 0x76, 0x08, M), (0x2a, 0x66, 0x66, T), (0x2b, 0x0d, 0x0d, T), (0x2c, 0x29, 0x29, T),
    (0x2d, 0x4e, 0x4e, T), (0x2e, 0x55, 0x55, T), (0x2f, 0x54, 0x54, T), (0x30, 0x5b, 0x5b, T), (0x31, 0x5d, 0x5c, T),
    (0x33, 0x4c, 0x4c, T), (0x34, 0x52, 0x52, T), (0x35, 0x0e, 0x0e, T), (0x36, 0x41, 0x41, T), (0x37, 0x49, 0x49, T),
    (0x38, 0x4a, 0x4a, T),
    // Caps Lock, F1 to F12.
    (0x39, 0x58, 0x14, MB), (0x3a, 0x05, 0x07, M), (0x3b, 0x06, 0x0f, M), (0x3c, 0x04, 0x17, M), (0x3d, 0x0c, 0x1f, M),
    (0x3e, 0x03, 0x27, M), (0x3f, 0x0b, 0x2f, M), (0x40, 0x83, 0x37, M), (0x41, 0x0a, 0x3f, M), (0x42, 0x01, 0x47, M),
    (0x43, 0x09, 0x4f, M), (0x44, 0x78, 0x56, M), (0x45, 0x07, 0x5e, M),
    // Print Screen, Scroll Lock, Pause; Insert, Home, Page Up, Delete, End, Page Down; right, left, down, up.
    (0x46, 0xe07c, 0x57, M), (0x47, 0x7e, 0x5f, M), (0x48, 0xe114, 0x62, M), (0x49, 0xe070, 0x67, M),
    (0x4a, 0xe06c, 0x6e, M), (0x4b, 0xe07d, 0x6f, M), (0x4c, 0xe071, 0x64, T), (0x4d, 0xe069, 0x65, M),
    (0x4e, 0xe07a, 0x6d, M), (0x4f, 0xe074, 0x6a, T), (0x50, 0xe06b, 0x61, T), (0x51, 0xe072, 0x60, T),
    (0x52, 0xe075, 0x63, T),
    // The key pad: Num Lock / * - + Enter 1 to 9, 0 and the point.
    (0x53, 0x77, 0x76, M), (0x54, 0xe04a, 0x77, M), (0x55, 0x7c, 0x7e, M), (0x56, 0x7b, 0x84, M), (0x57, 0x79, 0x7c, T),
    (0x58, 0xe05a, 0x79, M), (0x59, 0x69, 0x69, M), (0x5a, 0x72, 0x72, M), (0x5b, 0x7a, 0x7a, M), (0x5c, 0x6b, 0x6b, M),
    (0x5d, 0x73, 0x73, M), (0x5e, 0x74, 0x74, M), (0x5f, 0x6c, 0x6c, M), (0x60, 0x75, 0x75, M), (0x61, 0x7d, 0x7d, M),
    (0x62, 0x70, 0x70, M), (0x63, 0x71, 0x71, M),
    // The menu key; left Ctrl, Shift, Alt, GUI; the right ones.
    (0x65, 0xe02f, 0x8d, MB), (0xe0, 0x14, 0x11, MB), (0xe1, 0x12, 0x12, MB), (0xe2, 0x11, 0x19, MB),
    (0xe3, 0xe01f, 0x8b, MB), (0xe4, 0xe014, 0x58, M), (0xe5, 0x59, 0x59, MB), (0xe6, 0xe011, 0x39, M),
    (0xe7, 0xe027, 0x8c, MB),
];

/// A key of a US keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u8);

impl Key {
    /// Enter.
    pub const ENTER: Self = Self::named(0x28);
    /// The left Shift.
    pub const LEFT_SHIFT: Self = Self::named(0xe1);

    const fn named(usage: u8) -> Self {
        let mut at = 0;
        while KEYS[at].0 != usage {
            at += 1;
        }
        Self(at as u8)
    }

    /// The key of a usage on USB HID's keyboard page; `None` where a US keyboard has none.
    #[must_use]
    pub fn from_usage(usage: u8) -> Option<Self> {
        let at = KEYS.iter().position(|row| row.0 == usage)?;
        u8::try_from(at).ok().map(Self)
    }

    fn row(self) -> &'static Row {
        &KEYS[usize::from(self.0)]
    }

    /// The usage on USB HID's keyboard page.
    #[must_use]
    pub fn usage(self) -> u8 {
        self.row().0
    }

    /// The code in set 2, with its prefix in the high byte.
    pub(super) fn set2(self) -> u16 {
        self.row().1
    }

    /// The code in set 3.
    pub(super) fn set3(self) -> u8 {
        self.row().2
    }

    /// This key's bit in a set of keys.
    pub(super) fn bit(self) -> u128 {
        1 << self.0
    }

    pub(super) fn form(self) -> Form {
        match self.usage() {
            0x46 => Form::PrintScreen,
            0x48 => Form::Pause,
            0x49..=0x52 => Form::Cursor,
            0x54 => Form::Slash,
            _ => Form::Plain,
        }
    }
}

/// The types of set 3's keys at power-up, by code; `None` for codes that no key has.
pub(super) fn types_at_power_up() -> [Option<KeyType>; 256] {
    let mut types = [None; 256];
    for (_, _, code, kind) in KEYS {
        types[usize::from(code)] = Some(kind);
    }
    types
}

/// A key going down or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyEvent {
    /// The key.
    pub key: Key,
    /// Whether it goes down.
    pub down: bool,
}

/// Why a text cannot be typed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// No key types it.
    #[error("no key of a US keyboard types {0:?}")]
    Character(char),
    /// A name in angle brackets that is none.
    #[error("there is no key <{0}>")]
    Name(String),
    /// A name without its end.
    #[error("a name of a key lacks its >; write <lt> for the character itself")]
    Open,
}

/// A text as keys that are pressed and released one after the other.
///
/// Names stand in angle brackets: `<ret>`, `<esc>`, `<tab>`, `<bs>`, `<space>`, `<lt>`, `<f1>` to `<f12>`, `<up>`,
/// `<down>`, `<left>`, `<right>`, `<home>`, `<end>`, `<pgup>`, `<pgdn>`, `<ins>`, `<del>`, and any key with `ctrl-`,
/// `alt-`, `shift-` before it, as `<ctrl-alt-del>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed(pub Vec<KeyEvent>);

impl FromStr for Typed {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Self, KeysError> {
        let mut typed = Self::default();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if c == '<' {
                let (name, after) = rest[1..].split_once('>').ok_or(KeysError::Open)?;
                typed.stroke(&named(name)?);
                rest = after;
            } else {
                typed.stroke(&character(c).ok_or(KeysError::Character(c))?);
                rest = &rest[c.len_utf8()..];
            }
        }
        Ok(typed)
    }
}

impl Typed {
    /// Presses keys in this order and releases them in the opposite one.
    fn stroke(&mut self, keys: &[Key]) {
        let event = |down| move |&key: &Key| KeyEvent { key, down };
        self.0.extend(keys.iter().map(event(true)));
        self.0.extend(keys.iter().rev().map(event(false)));
    }
}

/// What types a character of ASCII on a US keyboard.
fn character(c: char) -> Option<Vec<Key>> {
    /// What usages 2Dh to 38h type without and with Shift; 32h is not on a US keyboard.
    const SIGNS: [&str; 2] = ["-=[]\\\0;'`,./", "_+{}|\0:\"~<>?"];
    /// What the digits' keys type with Shift.
    const OVER_DIGITS: &str = "!@#$%^&*()";
    let (usage, shift) = match c {
        'a'..='z' => (0x04 + (c as u8 - b'a'), false),
        'A'..='Z' => (0x04 + (c as u8 - b'A'), true),
        '1'..='9' => (0x1e + (c as u8 - b'1'), false),
        '0' => (0x27, false),
        '\n' | '\r' => (0x28, false),
        '\x1b' => (0x29, false),
        '\x08' => (0x2a, false),
        '\t' => (0x2b, false),
        ' ' => (0x2c, false),
        _ => {
            let find = |signs: &str, first: u8| {
                let at = signs.find(c).and_then(|at| u8::try_from(at).ok());
                at.map(|at| first + at)
            };
            let plain = find(SIGNS[0], 0x2d).map(|usage| (usage, false));
            let shifted = find(SIGNS[1], 0x2d).or_else(|| find(OVER_DIGITS, 0x1e));
            plain.or_else(|| shifted.map(|usage| (usage, true)))?
        }
    };
    let key = Key::from_usage(usage)?;
    Some(if shift {
        vec![Key::LEFT_SHIFT, key]
    } else {
        vec![key]
    })
}

/// The keys of a name: modifiers, each with a dash behind it, and a character or a named key.
fn named(name: &str) -> Result<Vec<Key>, KeysError> {
    let unknown = || KeysError::Name(name.to_owned());
    let mut keys = Vec::new();
    let mut rest = name;
    // A single character is itself, also the dash.
    while let Some((modifier, after)) = rest.split_once('-')
        && rest.len() > 1
    {
        let usage = match modifier {
            "ctrl" => 0xe0,
            "shift" => 0xe1,
            "alt" => 0xe2,
            _ => return Err(unknown()),
        };
        keys.extend(Key::from_usage(usage));
        rest = after;
    }
    let mut letters = rest.chars();
    match (letters.next(), letters.next()) {
        // Without a modifier it stands for itself, not in brackets.
        (Some(c), None) if !keys.is_empty() => {
            keys.extend(character(c).ok_or_else(unknown)?);
        }
        _ if rest == "lt" => keys.extend(character('<').ok_or_else(unknown)?),
        _ => keys.push(single(rest).ok_or_else(unknown)?),
    }
    Ok(keys)
}

/// The key of a name without modifiers.
fn single(name: &str) -> Option<Key> {
    let usage = match name {
        "ret" => 0x28,
        "esc" => 0x29,
        "bs" => 0x2a,
        "tab" => 0x2b,
        "space" => 0x2c,
        "ins" => 0x49,
        "home" => 0x4a,
        "pgup" => 0x4b,
        "del" => 0x4c,
        "end" => 0x4d,
        "pgdn" => 0x4e,
        "right" => 0x4f,
        "left" => 0x50,
        "down" => 0x51,
        "up" => 0x52,
        _ => match name.strip_prefix('f')?.parse() {
            Ok(n @ 1..=12u8) => 0x39 + n,
            _ => return None,
        },
    };
    Key::from_usage(usage)
}
