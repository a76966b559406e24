//! Keys and the keyboard's commands, by the tables of the IBM PS/2 Technical Reference.

mod repetition;

use super::*;

/// Usages of USB HID's keyboard page.
mod usage {
    pub const A: u8 = 0x04;
    pub const ESC: u8 = 0x29;
    pub const F7: u8 = 0x40;
    pub const PRINT_SCREEN: u8 = 0x46;
    pub const PAUSE: u8 = 0x48;
    pub const INSERT: u8 = 0x49;
    pub const UP: u8 = 0x52;
    pub const PAD_SLASH: u8 = 0x54;
    pub const PAD_ENTER: u8 = 0x58;
    pub const LEFT_CTRL: u8 = 0xe0;
    pub const LEFT_SHIFT: u8 = 0xe1;
    pub const RIGHT_SHIFT: u8 = 0xe5;
    pub const RIGHT_CTRL: u8 = 0xe4;
    pub const RIGHT_ALT: u8 = 0xe6;
}

fn key(usage: u8) -> Key {
    Key::from_usage(usage).expect("a key of a US keyboard")
}

impl Kbc {
    /// A keyboard without translation, with scan code set `set`.
    fn raw(set: u8) -> Self {
        let mut kbc = Self::new();
        kbc.mode(0x05);
        kbc.data(0xf0);
        kbc.data(set);
        assert_eq!(kbc.bytes(), [0xfa, 0xfa]);
        kbc
    }

    fn down(&mut self, usage: u8) -> Vec<u8> {
        self.device.press(key(usage), T0);
        self.bytes()
    }

    fn up(&mut self, usage: u8) -> Vec<u8> {
        self.device.release(key(usage));
        self.bytes()
    }

    fn tap(&mut self, usage: u8) -> (Vec<u8>, Vec<u8>) {
        (self.down(usage), self.up(usage))
    }

    /// The answers to a command and its arguments.
    fn ask(&mut self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            self.data(byte);
        }
        self.bytes()
    }
}

#[test]
fn keys_have_the_codes_of_the_three_sets() {
    // Usage; make and break of set 1; of set 2; make of set 3.
    type Row<'a> = (u8, [&'a [u8]; 2], [&'a [u8]; 2], u8);
    let rows: [Row; 12] = [
        (usage::A, [&[0x1e], &[0x9e]], [&[0x1c], &[0xf0, 0x1c]], 0x1c),
        (0x14, [&[0x10], &[0x90]], [&[0x15], &[0xf0, 0x15]], 0x15),
        (0x27, [&[0x0b], &[0x8b]], [&[0x45], &[0xf0, 0x45]], 0x45),
        (0x31, [&[0x2b], &[0xab]], [&[0x5d], &[0xf0, 0x5d]], 0x5c),
        (
            usage::ESC,
            [&[0x01], &[0x81]],
            [&[0x76], &[0xf0, 0x76]],
            0x08,
        ),
        (
            usage::F7,
            [&[0x41], &[0xc1]],
            [&[0x83], &[0xf0, 0x83]],
            0x37,
        ),
        (0x44, [&[0x57], &[0xd7]], [&[0x78], &[0xf0, 0x78]], 0x56),
        (
            usage::UP,
            [&[0xe0, 0x48], &[0xe0, 0xc8]],
            [&[0xe0, 0x75], &[0xe0, 0xf0, 0x75]],
            0x63,
        ),
        (
            usage::PAD_ENTER,
            [&[0xe0, 0x1c], &[0xe0, 0x9c]],
            [&[0xe0, 0x5a], &[0xe0, 0xf0, 0x5a]],
            0x79,
        ),
        (
            usage::LEFT_CTRL,
            [&[0x1d], &[0x9d]],
            [&[0x14], &[0xf0, 0x14]],
            0x11,
        ),
        (
            usage::RIGHT_CTRL,
            [&[0xe0, 0x1d], &[0xe0, 0x9d]],
            [&[0xe0, 0x14], &[0xe0, 0xf0, 0x14]],
            0x58,
        ),
        (
            usage::RIGHT_ALT,
            [&[0xe0, 0x38], &[0xe0, 0xb8]],
            [&[0xe0, 0x11], &[0xe0, 0xf0, 0x11]],
            0x39,
        ),
    ];
    let (mut set1, mut set2, mut set3) = (Kbc::raw(1), Kbc::raw(2), Kbc::raw(3));
    let mut translated = Kbc::new();
    for (usage, one, two, three) in rows {
        let expected = (one[0].to_vec(), one[1].to_vec());
        assert_eq!(set1.tap(usage), expected, "{usage:#x}");
        assert_eq!(translated.tap(usage), expected, "{usage:#x}");
        assert_eq!(
            set2.tap(usage),
            (two[0].to_vec(), two[1].to_vec()),
            "{usage:#x}"
        );
        assert_eq!(set3.down(usage), [three], "{usage:#x}");
        set3.device.release(key(usage));
        set3.bytes();
    }
}

#[test]
fn no_two_keys_share_a_code() {
    for set in 1..=3 {
        let mut kbc = Kbc::raw(set);
        let mut seen = Vec::new();
        for usage in (0..=0xff).filter(|&usage| Key::from_usage(usage).is_some()) {
            let code = kbc.tap(usage).0;
            assert!(
                !code.is_empty() && !seen.contains(&code),
                "{usage:#x} {code:x?}"
            );
            seen.push(code);
        }
        // The keyboard of 101 keys, two GUI keys and a menu key.
        assert_eq!(seen.len(), 104);
    }
}

#[test]
fn print_screen_and_pause_have_sequences() {
    let mut kbc = Kbc::raw(2);
    let (down, up) = kbc.tap(usage::PRINT_SCREEN);
    assert_eq!(down, [0xe0, 0x12, 0xe0, 0x7c]);
    assert_eq!(up, [0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12]);
    let (down, up) = kbc.tap(usage::PAUSE);
    assert_eq!(down, [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]);
    assert_eq!(up, []);
    kbc.down(usage::LEFT_CTRL);
    assert_eq!(kbc.tap(usage::PRINT_SCREEN).0, [0xe0, 0x7c]);
    assert_eq!(kbc.tap(usage::PAUSE).0, [0xe0, 0x7e, 0xe0, 0xf0, 0x7e]);
    kbc.up(usage::LEFT_CTRL);
    kbc.down(usage::RIGHT_ALT);
    let (down, up) = kbc.tap(usage::PRINT_SCREEN);
    assert_eq!((down, up), (vec![0x84], vec![0xf0, 0x84]));
    // The same by set 1.
    let mut kbc = Kbc::new();
    let (down, up) = kbc.tap(usage::PRINT_SCREEN);
    assert_eq!(down, [0xe0, 0x2a, 0xe0, 0x37]);
    assert_eq!(up, [0xe0, 0xb7, 0xe0, 0xaa]);
    assert_eq!(
        kbc.tap(usage::PAUSE).0,
        [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]
    );
    kbc.down(usage::RIGHT_ALT);
    let (down, up) = kbc.tap(usage::PRINT_SCREEN);
    assert_eq!((down, up), (vec![0x54], vec![0xd4]));
}

#[test]
fn cursor_keys_hide_shift_and_num_lock() {
    let mut kbc = Kbc::raw(2);
    kbc.down(usage::LEFT_SHIFT);
    let (down, up) = kbc.tap(usage::INSERT);
    assert_eq!(down, [0xe0, 0xf0, 0x12, 0xe0, 0x70]);
    assert_eq!(up, [0xe0, 0xf0, 0x70, 0xe0, 0x12]);
    assert_eq!(kbc.tap(usage::PAD_SLASH).0, [0xe0, 0xf0, 0x12, 0xe0, 0x4a]);
    kbc.down(usage::RIGHT_SHIFT);
    kbc.up(usage::LEFT_SHIFT);
    let (down, up) = kbc.tap(usage::INSERT);
    assert_eq!(down, [0xe0, 0xf0, 0x59, 0xe0, 0x70]);
    assert_eq!(up, [0xe0, 0xf0, 0x70, 0xe0, 0x59]);
    // Num Lock is the light, which the host sets.
    kbc.ask(&[0xed, 0x02]);
    assert_eq!(kbc.device.lights(), 2);
    assert_eq!(kbc.tap(usage::INSERT).0, [0xe0, 0x70]);
    kbc.up(usage::RIGHT_SHIFT);
    kbc.device.press(key(usage::INSERT), T0);
    assert_eq!(kbc.bytes(), [0xe0, 0x12, 0xe0, 0x70]);
    assert_eq!(kbc.down(usage::INSERT), [0xe0, 0x70], "held");
    assert_eq!(kbc.up(usage::INSERT), [0xe0, 0xf0, 0x70, 0xe0, 0xf0, 0x12]);
    assert_eq!(kbc.tap(usage::PAD_SLASH).0, [0xe0, 0x4a]);
}

#[test]
fn set_3_has_types_of_keys() {
    let mut kbc = Kbc::raw(3);
    // Typematic, make and break, make only.
    kbc.down(usage::A);
    assert_eq!((kbc.down(usage::A), kbc.up(usage::A)), (vec![0x1c], vec![]));
    kbc.down(usage::LEFT_SHIFT);
    let again = kbc.down(usage::LEFT_SHIFT);
    assert_eq!(
        (again, kbc.up(usage::LEFT_SHIFT)),
        (vec![], vec![0xf0, 0x12])
    );
    kbc.down(usage::ESC);
    assert_eq!((kbc.down(usage::ESC), kbc.up(usage::ESC)), (vec![], vec![]));
    // All keys, then some; the list ends with what is no code of set 3.
    assert_eq!(kbc.ask(&[0xfa]), [0xfa]);
    kbc.down(usage::A);
    let again = kbc.down(usage::A);
    assert_eq!((again, kbc.up(usage::A)), (vec![0x1c], vec![0xf0, 0x1c]));
    assert_eq!(kbc.ask(&[0xfd, 0x1c, 0x08, 0xee]), [0xfa, 0xfa, 0xfa, 0xee]);
    assert_eq!(kbc.tap(usage::A), (vec![0x1c], vec![]));
    assert_eq!(kbc.tap(usage::ESC), (vec![0x08], vec![]));
    assert_eq!(kbc.tap(0x05), (vec![0x32], vec![0xf0, 0x32]));
    assert_eq!(kbc.ask(&[0xfc, 0x00]), [0xfa, 0xfe]);
    assert_eq!(kbc.ask(&[0xf8]), [0xfa]);
    assert_eq!(kbc.tap(usage::A), (vec![0x1c], vec![0xf0, 0x1c]));
    let held = |kbc: &mut Kbc, usage| {
        kbc.down(usage);
        (kbc.down(usage), kbc.up(usage))
    };
    assert_eq!(kbc.ask(&[0xf7]), [0xfa]);
    assert_eq!(held(&mut kbc, usage::LEFT_SHIFT), (vec![0x12], vec![]));
    assert_eq!(kbc.ask(&[0xf9]), [0xfa]);
    assert_eq!(held(&mut kbc, usage::LEFT_SHIFT), (vec![], vec![]));
    assert_eq!(kbc.ask(&[0xfb, 0x1c, 0xfc, 0x08]), [0xfa; 4]);
    assert_eq!(held(&mut kbc, usage::A), (vec![0x1c], vec![]));
    assert_eq!(held(&mut kbc, usage::ESC), (vec![], vec![0xf0, 0x08]));
    assert_eq!(kbc.tap(usage::LEFT_SHIFT), (vec![0x12], vec![]));
}

#[test]
fn scan_code_sets_are_told_and_refused() {
    let mut kbc = Kbc::raw(3);
    assert_eq!(kbc.ask(&[0xf0, 0x00]), [0xfa, 0xfa, 0x03]);
    assert_eq!(kbc.ask(&[0xf0, 0x04]), [0xfa, 0xfe]);
    assert_eq!(kbc.ask(&[0xf0, 0x00]), [0xfa, 0xfa, 0x03]);
    // A command in place of the argument is carried out.
    assert_eq!(kbc.ask(&[0xf0, 0xee]), [0xfa, 0xee]);
    for default in [0xf5, 0xf6, 0xff] {
        kbc.ask(&[0xf0, 0x01]);
        kbc.ask(&[default]);
        assert_eq!(kbc.ask(&[0xf0, 0x00]), [0xfa, 0xfa, 0x02]);
    }
    // The set's number is translated as any other byte: what drivers know as 43h, 41h and 3Fh.
    let mut kbc = Kbc::new();
    assert_eq!(kbc.ask(&[0xf0, 0x00]), [0xfa, 0xfa, 0x41]);
    kbc.ask(&[0xf0, 0x03]);
    assert_eq!(kbc.ask(&[0xf0, 0x00]), [0xfa, 0xfa, 0x3f]);
}

#[test]
fn the_keyboard_is_switched_off_and_on() {
    let mut kbc = Kbc::raw(2);
    assert_eq!(kbc.tap(usage::A).0, [0x1c], "on after power-up");
    assert_eq!(kbc.ask(&[0xf5]), [0xfa]);
    assert_eq!(kbc.tap(usage::A), (vec![], vec![]));
    assert_eq!(kbc.ask(&[0xf6]), [0xfa]);
    assert_eq!(
        kbc.tap(usage::A),
        (vec![], vec![]),
        "defaults do not switch it on"
    );
    assert_eq!(kbc.ask(&[0xf4]), [0xfa]);
    assert_eq!(kbc.tap(usage::A).0, [0x1c]);
    kbc.ask(&[0xf5]);
    assert_eq!(kbc.ask(&[0xff]), [0xfa, 0xaa]);
    assert_eq!(kbc.tap(usage::A).0, [0x1c]);
}

#[test]
fn settings_are_kept_and_go_with_a_reset() {
    let mut keyboard = Keyboard::new();
    let at_power_up = keyboard.typematic();
    // 10.9 characters a second after 500 ms.
    assert_eq!(at_power_up, 0x2b);
    for byte in [0xf3, 0x7f, 0xed, 0x05] {
        keyboard.command(byte);
    }
    assert_eq!((keyboard.typematic(), keyboard.lights()), (0x7f, 5));
    keyboard.command(0xf6);
    assert_eq!((keyboard.typematic(), keyboard.lights()), (at_power_up, 5));
    keyboard.command(0xff);
    assert_eq!(keyboard.lights(), 0);
    assert_eq!([keyboard.take(), keyboard.take()], [Some(0xfa), Some(0xaa)]);
    assert!(keyboard.is_empty());
}

#[test]
fn resend_gives_the_last_byte_that_was_sent() {
    let mut kbc = Kbc::raw(2);
    assert_eq!(kbc.ask(&[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(kbc.ask(&[0xfe]), [0x83]);
    assert_eq!(kbc.ask(&[0x00]), [0xfe]);
    assert_eq!(kbc.ask(&[0xfe]), [0x83], "not the resend itself");
    kbc.down(usage::A);
    assert_eq!(kbc.ask(&[0xfe]), [0x1c]);
}

#[test]
fn a_full_buffer_says_so() {
    // 16 bytes, and the overrun code as the 17th: FFh in set 1, 00h in sets 2 and 3. One more is in the controller.
    for (set, overrun) in [(1, 0xff), (2, 0x00), (3, 0x00)] {
        let mut kbc = Kbc::raw(set);
        for _ in 0..40 {
            kbc.device.press(key(usage::A), T0);
        }
        let bytes = kbc.bytes();
        assert_eq!(bytes.len(), 18, "set {set}");
        assert!(bytes[..17].iter().all(|&byte| byte == bytes[0]));
        assert_eq!(bytes[17], overrun);
        assert_eq!(kbc.down(0x05).len(), 1, "and goes on");
    }
    // Translated, 00h is FFh.
    let mut kbc = Kbc::new();
    for _ in 0..40 {
        kbc.device.press(key(usage::A), T0);
    }
    assert_eq!(kbc.bytes()[17], 0xff);
}

#[test]
fn a_sequence_fits_whole_or_not_at_all() {
    let mut kbc = Kbc::raw(2);
    for _ in 0..16 {
        kbc.device.press(key(usage::A), T0);
    }
    // One byte is with the controller, 15 in the buffer: two do not fit.
    kbc.device.press(key(usage::UP), T0);
    let bytes = kbc.bytes();
    assert_eq!(bytes.len(), 17);
    assert_eq!(bytes[15..], [0x1c, 0x00]);
}

#[test]
fn answers_do_not_wait_for_keys() {
    let mut kbc = Kbc::raw(2);
    for usage in [0x04, 0x05, 0x06] {
        kbc.device.press(key(usage), T0);
    }
    kbc.data(0xed);
    kbc.data(0x00);
    assert_eq!(kbc.bytes(), [0x1c, 0xfa, 0xfa, 0x32, 0x21]);
    // Enabling empties the buffer; the byte with the controller has left it.
    for usage in [0x07, 0x08, 0x09] {
        kbc.device.press(key(usage), T0);
    }
    kbc.data(0xf4);
    assert_eq!(kbc.bytes(), [0x23, 0xfa]);
}

#[test]
fn a_keyboard_whose_clock_is_held_keeps_its_keys() {
    let mut kbc = Kbc::new();
    kbc.command(0xad);
    assert_eq!(kbc.tap(usage::A), (vec![], vec![]));
    assert!(!kbc.lines.level(1));
    kbc.command(0xae);
    assert!(kbc.lines.level(1));
    assert_eq!(kbc.bytes(), [0x1e, 0x9e]);
    // The translation of a key that goes up is one byte, and one interrupt.
    assert_eq!(kbc.lines.edges(1), 2);
}

#[test]
fn a_key_that_is_up_is_not_released() {
    let mut kbc = Kbc::new();
    assert_eq!(kbc.up(usage::A), []);
    assert!(Key::from_usage(0x00).is_none() && Key::from_usage(0xff).is_none());
    assert_eq!(key(usage::A).usage(), usage::A);
}

/// Usages that a text presses, with a minus where they are released.
fn events(text: &str) -> Vec<i16> {
    let typed: Typed = text.parse().expect("a text that can be typed");
    let number = |e: &KeyEvent| {
        let usage = i16::from(e.key.usage());
        if e.down { usage } else { -usage }
    };
    typed.0.iter().map(number).collect()
}

#[test]
fn texts_become_keys() {
    assert_eq!(events("a1"), [0x04, -0x04, 0x1e, -0x1e]);
    assert_eq!(
        events("Z)"),
        [0xe1, 0x1d, -0x1d, -0xe1, 0xe1, 0x27, -0x27, -0xe1]
    );
    assert_eq!(events("/?"), [0x38, -0x38, 0xe1, 0x38, -0x38, -0xe1]);
    assert_eq!(events(";:|\n")[..4], [0x33, -0x33, 0xe1, 0x33]);
    assert_eq!(
        events("<ret><esc><f2><f12>"),
        [0x28, -0x28, 0x29, -0x29, 0x3b, -0x3b, 0x45, -0x45]
    );
    assert_eq!(events("<lt>"), [0xe1, 0x36, -0x36, -0xe1]);
    assert_eq!(events("<ctrl-c>"), [0xe0, 0x06, -0x06, -0xe0]);
    assert_eq!(
        events("<ctrl-alt-del>"),
        [0xe0, 0xe2, 0x4c, -0x4c, -0xe2, -0xe0]
    );
    for c in ' '..='~' {
        let text = if c == '<' {
            "<lt>".to_owned()
        } else {
            c.to_string()
        };
        assert!(matches!(events(&text).len(), 2 | 4), "{c:?}");
    }
    let refused = |text: &str| text.parse::<Typed>().expect_err("it cannot be typed");
    assert_eq!(refused("\u{e4}"), KeysError::Character('\u{e4}'));
    assert_eq!(refused("\0"), KeysError::Character('\0'));
    assert_eq!(refused("<ret"), KeysError::Open);
    for name in ["", "f0", "f13", "hyper-x", "ctrl-", "ctrl-nothing"] {
        assert_eq!(
            refused(&format!("<{name}>")),
            KeysError::Name(name.to_owned())
        );
    }
}

#[test]
fn a_text_is_typed_once_the_guest_wants_it() {
    let mut kbc = Kbc::new();
    let typed: Typed = "aB".parse().expect("letters");
    kbc.device.type_keys(&typed.0);
    kbc.device.advance(VirtualTime(1 << 40));
    assert_eq!(kbc.device.deadline(), None, "nobody enabled the keyboard");
    assert_eq!(kbc.bytes(), []);
    kbc.data(0xf4);
    assert_eq!(kbc.device.deadline(), None, "the answer waits");
    assert_eq!(kbc.bytes(), [0xfa]);
    let mut seen = Vec::new();
    let mut last = T0;
    while let Some(due) = kbc.device.deadline() {
        assert!(due > last);
        last = due;
        kbc.device.advance(due);
        assert_eq!(kbc.device.deadline(), None, "one key at a time");
        seen.extend(kbc.bytes());
    }
    // A; left Shift, B, and up again.
    assert_eq!(seen, [0x1e, 0x9e, 0x2a, 0x30, 0xb0, 0xaa]);
    assert!(last.0 >= 5 * typing::KEY_NS);
}

#[test]
fn a_reset_pauses_a_text_and_releases_keys() {
    let mut kbc = Kbc::new();
    let typed: Typed = "A".parse().expect("a letter");
    kbc.device.type_keys(&typed.0);
    kbc.data(0xf4);
    kbc.bytes();
    let due = kbc.device.deadline().expect("the guest wants keys");
    kbc.device.advance(due);
    assert_eq!(kbc.bytes(), [0x2a]);
    kbc.device.reset();
    assert_eq!(kbc.device.deadline(), None);
    // A switched off keyboard makes the text wait, too.
    kbc.ask(&[0xf4]);
    assert!(kbc.device.deadline().is_some());
    kbc.ask(&[0xf5]);
    assert_eq!(kbc.device.deadline(), None);
    let later = VirtualTime(1 << 40);
    outb(&mut kbc.device, regs::REGION_DATA, 0, 0xf4, later);
    inb(&mut kbc.device, regs::REGION_DATA, 0, later);
    assert_eq!(kbc.device.deadline(), Some(later + typing::START_NS));
}

#[test]
fn random_keys_and_accesses_keep_the_bounds() {
    let mut random = crate::testing::XorShift(0x6b62_6420_6b65_7973);
    let mut kbc = Kbc::new();
    for _ in 0..200_000 {
        let byte = random.next() as u8;
        match random.below(8) {
            0 | 1 => kbc
                .device
                .press(Key::from_usage(byte & 0x7f | 4).unwrap_or(Key::ENTER), T0),
            2 => kbc
                .device
                .release(Key::from_usage(byte).unwrap_or(Key::LEFT_SHIFT)),
            3 => kbc.command(byte),
            4 | 5 => kbc.data(byte),
            _ => {
                inb(&mut kbc.device, regs::REGION_DATA, 0, T0);
            }
        }
        kbc.control.taken();
    }
    kbc.command(0xae);
    // Answers, buffer with overrun, the controller's own, and the output buffer.
    assert!(kbc.drain().len() <= 32 + 17 + 16 + 1);
}
