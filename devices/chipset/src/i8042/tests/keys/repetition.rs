//! Keys that are held (IBM PS/2 Technical Reference, keyboard, "Typematic keys"; command F3h).

use super::*;

const MS: u64 = 1_000_000;

/// What waits is read at each turn; the times, in milliseconds, at which something came, and the bytes.
fn run(kbc: &mut Kbc, until_ms: u64) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(due) = kbc.device.deadline().filter(|due| due.0 <= until_ms * MS) {
        kbc.device.advance(due);
        all.push((due.0 / MS, kbc.bytes()));
    }
    all
}

fn times(came: &[(u64, Vec<u8>)]) -> Vec<u64> {
    came.iter().map(|(at, _)| *at).collect()
}

#[test]
fn a_held_key_repeats_by_itself() {
    for (set, code) in [(1, 0x1e), (2, 0x1c), (3, 0x1c)] {
        let mut kbc = Kbc::raw(set);
        assert_eq!(kbc.down(usage::A), [code]);
        let came = run(&mut kbc, 1000);
        // Half a second, then 10.9 a second.
        assert_eq!(times(&came), [500, 591, 683, 775, 866, 958], "set {set}");
        assert!(came.iter().all(|(_, bytes)| *bytes == [code]), "set {set}");
        kbc.up(usage::A);
        assert_eq!(kbc.device.deadline(), None, "set {set}");
    }
}

#[test]
fn rate_and_delay_are_the_guests() {
    let mut kbc = Kbc::raw(2);
    // 250 ms, 30 a second.
    assert_eq!(kbc.ask(&[0xf3, 0x00]), [0xfa, 0xfa]);
    kbc.down(usage::A);
    assert_eq!(times(&run(&mut kbc, 350)), [250, 283, 316]);
    // 1 s, 2 a second; the next one is at the new rate.
    assert_eq!(kbc.ask(&[0xf3, 0x7f]), [0xfa, 0xfa]);
    assert_eq!(times(&run(&mut kbc, 1500)), [350, 850, 1350]);
    kbc.up(usage::A);
    kbc.down(0x05);
    assert_eq!(times(&run(&mut kbc, 1500)), [1000, 1500]);
}

#[test]
fn only_the_last_key_repeats() {
    let mut kbc = Kbc::raw(2);
    kbc.down(usage::A);
    kbc.down(0x05);
    let came = run(&mut kbc, 600);
    assert!(!came.is_empty() && came.iter().all(|(_, bytes)| *bytes == [0x32]));
    // Another key's going up does not stop it, its own does, whatever is held.
    kbc.up(usage::A);
    assert!(kbc.device.deadline().is_some());
    kbc.down(usage::LEFT_SHIFT);
    kbc.up(usage::LEFT_SHIFT);
    assert_eq!(kbc.device.deadline(), None, "B is still held");
}

#[test]
fn some_keys_do_not_repeat() {
    for set in [1, 2] {
        let mut kbc = Kbc::raw(set);
        kbc.down(usage::A);
        kbc.down(usage::PAUSE);
        assert_eq!(kbc.device.deadline(), None, "Pause, set {set}");
    }
    // At power-up of set 3: letters repeat, Shift and Esc do not; F8h makes all make and break, F9h make only.
    let mut kbc = Kbc::raw(3);
    for (usage, repeats) in [
        (usage::A, true),
        (usage::LEFT_SHIFT, false),
        (usage::ESC, false),
    ] {
        kbc.down(usage);
        assert_eq!(kbc.device.deadline().is_some(), repeats, "{usage:#x}");
        kbc.up(usage);
    }
    for (command, repeats) in [(0xf7, true), (0xf8, false), (0xf9, false), (0xfa, true)] {
        kbc.ask(&[command]);
        kbc.down(usage::A);
        assert_eq!(kbc.device.deadline().is_some(), repeats, "{command:#x}");
        kbc.up(usage::A);
    }
}

#[test]
fn prefixed_keys_repeat_their_own_code_only() {
    let mut kbc = Kbc::raw(2);
    kbc.down(usage::LEFT_SHIFT);
    kbc.down(usage::INSERT);
    let came = run(&mut kbc, 600);
    assert!(!came.is_empty() && came.iter().all(|(_, bytes)| *bytes == [0xe0, 0x70]));
}

#[test]
fn commands_end_a_repetition() {
    for command in [&[0xf5][..], &[0xf4], &[0xff], &[0xf0, 0x02]] {
        let mut kbc = Kbc::raw(2);
        kbc.down(usage::A);
        kbc.ask(command);
        assert_eq!(kbc.device.deadline(), None, "{command:x?}");
        // The key is still down, and comes again when it is pressed anew.
        kbc.ask(&[0xf4]);
        assert_eq!(kbc.device.deadline(), None, "{command:x?}");
        kbc.up(usage::A);
        kbc.down(usage::A);
        assert!(kbc.device.deadline().is_some(), "{command:x?}");
    }
    let mut kbc = Kbc::raw(2);
    kbc.down(usage::A);
    kbc.device.reset();
    assert_eq!(kbc.device.deadline(), None);
}

/// "Only the first make code is stored": what cannot be sent is left out.
#[test]
fn a_keyboard_that_cannot_send_leaves_repetitions_out() {
    let late = VirtualTime(10_000 * MS);
    // The interface is off.
    let mut kbc = Kbc::new();
    kbc.down(usage::A);
    kbc.command(0xad);
    assert_eq!(kbc.device.deadline(), None);
    kbc.device.advance(late);
    kbc.command(0xae);
    assert_eq!(kbc.bytes(), []);
    kbc.device.advance(late);
    assert_eq!(kbc.bytes(), [0x1e], "one, however long it was");
    kbc.device.advance(late);
    assert_eq!(kbc.bytes(), []);
    // Nobody reads.
    let mut kbc = Kbc::new();
    kbc.device.press(key(usage::A), T0);
    assert_eq!(kbc.device.deadline(), None);
    kbc.device.advance(late);
    assert_eq!(kbc.bytes(), [0x1e]);
    // A command waits for its argument.
    let mut kbc = Kbc::new();
    kbc.down(usage::A);
    assert_eq!(kbc.ask(&[0xed]), [0xfa]);
    assert_eq!(kbc.device.deadline(), None);
    assert_eq!(kbc.ask(&[0x00]), [0xfa]);
    assert!(kbc.device.deadline().is_some());
}

/// A host that was busy for longer than the delay, before or after the guest read the key: what is typed is typed once.
#[test]
fn typed_letters_come_once_however_late() {
    for late_ms in [0, 100, 600, 60_000] {
        let mut kbc = Kbc::new();
        let typed: Typed = "aAb".parse().expect("letters");
        kbc.device.type_keys(&typed.0);
        kbc.ask(&[0xf4]);
        let mut seen = Vec::new();
        while let Some(due) = kbc.device.deadline() {
            let now = VirtualTime(due.0 + late_ms * MS);
            kbc.device.advance(now);
            // The guest reads late, too.
            let read = VirtualTime(now.0 + late_ms * MS);
            while inb(&mut kbc.device, regs::REGION_COMMAND, 0, read) & 1 != 0 {
                seen.push(inb(&mut kbc.device, regs::REGION_DATA, 0, read));
            }
        }
        let once = [0x1e, 0x9e, 0x2a, 0x1e, 0x9e, 0xaa, 0x30, 0xb0];
        assert_eq!(seen, once, "{late_ms} ms");
    }
}
