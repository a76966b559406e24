//! Commands that are longer than a turn.

use std::sync::atomic::AtomicU64;

use bus::{BlockBackend, BlockError, TURN_BYTES, TURN_NS, check_range};

use super::*;

/// Bytes of each region; all lie at the same place.
const REGION: u32 = 0x4_0000;
const REGIONS: usize = 200;
const SECTORS: u32 = REGION / 2048 * REGIONS as u32;
const T1: VirtualTime = VirtualTime(TURN_NS);
const BSY: u32 = 0x80;

/// A disc of 1 TByte with nothing on it, that counts what is read.
#[derive(Clone, Default)]
struct Sparse(Arc<AtomicU64>);

impl Sparse {
    /// Bytes read since this was last asked.
    fn moved(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl BlockBackend for Sparse {
    fn size_bytes(&self) -> u64 {
        1 << 40
    }
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, data.len() as u64)?;
        data.fill(0);
        self.0.fetch_add(data.len() as u64, Ordering::SeqCst);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), BlockError> {
        Ok(())
    }
}

/// READ(12) of so many sectors.
fn read_12(sectors: u32) -> [u8; 12] {
    let [a, b, c, d] = sectors.to_be_bytes();
    [0xa8, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
}

/// A controller with its port running and its interrupt on, and its disc.
fn rig() -> (Rig, Sparse) {
    let disc = Sparse::default();
    let mut rig = Rig::with(Box::new(disc.clone()));
    rig.run();
    rig.settle();
    rig.set(8, u32::MAX);
    rig.set(PORT + 0x14, 1);
    rig.set(4, 2);
    (rig, disc)
}

/// The same in the middle of a read that takes several turns.
fn reading() -> (Rig, Sparse) {
    let (mut rig, disc) = rig();
    rig.packet(&read_12(SECTORS), &vec![(DATA, REGION); REGIONS]);
    let moved = disc.moved();
    assert!((1..=TURN_BYTES).contains(&moved), "{moved}");
    assert!(is_pending(&mut rig));
    assert_eq!(rig.function.deadline(), Some(T1));
    (rig, disc)
}

fn is_pending(rig: &mut Rig) -> bool {
    let pending = rig.get(PORT + 0x38) == 1;
    assert_eq!(rig.get(PORT + 0x20) & BSY != 0, pending, "3.3.8: BSY");
    assert_eq!(rig.board.high.load(Ordering::SeqCst), !pending, "interrupt");
    pending
}

#[test]
fn a_long_read_goes_in_turns() {
    let (mut rig, disc) = reading();
    rig.function.advance(T0);
    assert_eq!(disc.moved(), 0, "not before it is due");
    let mut turns = 1;
    while let Some(due) = rig.function.deadline() {
        assert!(is_pending(&mut rig));
        rig.function.advance(due);
        let moved = disc.moved();
        assert!((1..=TURN_BYTES).contains(&moved), "{moved}");
        turns += 1;
    }
    assert!((50..=53).contains(&turns), "{turns}");
    assert!(!is_pending(&mut rig));
    assert_eq!(rig.get(PORT + 0x10), 1, "DHRS, no overflow");
    let bytes = REGION * REGIONS as u32;
    assert_eq!(rig.read(LIST + 4, 4), bytes.to_le_bytes());
}

#[test]
fn accesses_do_not_make_a_turn_longer() {
    let (mut rig, disc) = reading();
    for offset in [0x38, 0x10, 0x14] {
        rig.set(PORT + offset, 1);
        assert!(disc.moved() <= TURN_BYTES, "{offset:#x}");
    }
    assert!(is_pending(&mut rig));
}

#[test]
fn small_regions_count_too() {
    let (mut rig, disc) = rig();
    rig.packet(&read_12(0x0100_0000), &vec![(DATA, 2); 2000]);
    assert!(disc.moved() <= TURN_BYTES);
    assert_eq!(rig.get(PORT + 0x10), 1 | 1 << 24, "OFS");
    assert_eq!(rig.read(LIST + 4, 4), 4000u32.to_le_bytes());
}

/// 10.1.2 (ST), 10.4.2 (port reset), 10.4.3 (controller reset), and the function's own.
#[test]
fn clearing_st_and_resets_drop_the_command() {
    type Drop = fn(&mut Rig);
    let ways: [(&str, Drop); 4] = [
        ("ST", |rig| rig.set(PORT + 0x18, 0x10)),
        ("DET", |rig| {
            rig.set(PORT + 0x18, 0x10);
            rig.set(PORT + 0x2c, 1);
            rig.set(PORT + 0x2c, 0);
        }),
        ("HR", |rig| rig.set(4, 1)),
        ("function", |rig| rig.function.reset()),
    ];
    for (name, drop) in ways {
        let (mut rig, disc) = reading();
        drop(&mut rig);
        assert_eq!(rig.function.deadline(), None, "{name}");
        rig.function.advance(VirtualTime(u64::MAX));
        assert_eq!(disc.moved(), 0, "{name}");
        assert_eq!(rig.get(PORT + 0x20) & BSY, 0, "{name}");
        assert_eq!(rig.get(PORT + 0x38), 0, "{name}");
        assert_eq!(rig.read(LIST + 4, 4), [0; 4], "{name}");
        assert!(!rig.board.high.load(Ordering::SeqCst), "{name}");
        // The next command is not a part of this one.
        rig.run();
        rig.settle();
        rig.packet(&read_12(1), &[(DATA, 4096)]);
        assert_eq!(disc.moved(), 2048, "{name}");
        assert_eq!(rig.read(LIST + 4, 4), 2048u32.to_le_bytes(), "{name}");
    }
}

#[test]
fn without_bus_mastering_a_command_waits() {
    let (mut rig, disc) = reading();
    rig.configure(regs::COMMAND, &[2, 0]);
    assert_eq!(rig.function.deadline(), None);
    rig.function.advance(VirtualTime(u64::MAX));
    assert_eq!(disc.moved(), 0);
    rig.configure(regs::COMMAND, &[6, 0]);
    assert!(disc.moved() <= TURN_BYTES);
    while let Some(due) = rig.function.deadline() {
        rig.function.advance(due);
    }
    assert!(!is_pending(&mut rig));
}

/// Memory that is not there, behind the first turn: a fatal error (6.1.2), and the device is not busy for ever.
#[test]
fn a_bus_error_in_a_later_turn_ends_the_command() {
    let (mut rig, _) = rig();
    let mut regions = vec![(DATA, REGION); 5];
    regions.push((1 << 40, REGION));
    rig.set(PORT + 0x14, 1 << 29);
    rig.packet(&read_12(SECTORS), &regions);
    while let Some(due) = rig.function.deadline() {
        rig.function.advance(due);
    }
    assert_eq!(rig.get(PORT + 0x10), 1 << 29, "HBFS");
    assert_eq!(rig.get(PORT + 0x20) & BSY, 0);
    assert!(rig.board.high.load(Ordering::SeqCst));
}

/// Commands behind a long one wait, and come in order: the search goes on behind the slot that was last.
#[test]
fn other_slots_wait_for_a_long_command() {
    let (mut rig, _) = rig();
    let identify_at = DATA + 0x8_0000;
    let packet = [0x27, 0x80, 0xa0, 1];
    rig.prepare(1, &packet, &read_12(800), &[(DATA, REGION); 7]);
    rig.prepare(2, &[0x27, 0x80, 0xa1], &[], &[(identify_at, 512)]);
    rig.set(PORT + 0x38, 6);
    assert_eq!(rig.get(PORT + 0x38), 6);
    while let Some(due) = rig.function.deadline() {
        assert_eq!(rig.read(identify_at, 2), [0, 0]);
        rig.function.advance(due);
    }
    assert_eq!(rig.get(PORT + 0x38), 0);
    assert_eq!(rig.read(identify_at, 2), [0xc0, 0x85]);
}
