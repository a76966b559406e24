//! Requests that are longer than a turn.

use std::sync::atomic::AtomicU64;

use bus::{BlockBackend, BlockError, TURN_BYTES, check_range};

use super::*;

const HEADER: u64 = 0x8000;
const STATUS_BYTE: u64 = 0xa000;
const TABLE: u64 = 0x1_0000;
const DATA: u64 = 0x8_0000;
/// Bytes of each data buffer; all lie at the same place.
const BUFFER: u32 = 0x8_0000;
const PENDING: u8 = 0xee;
const T1: VirtualTime = VirtualTime(T0.0 + TURN_NS);

/// A disk of 1 TByte with nothing in it, that counts what it is asked for.
#[derive(Clone, Default)]
struct Sparse {
    moved: Arc<AtomicU64>,
    discarded: Arc<AtomicU64>,
    flushes: Arc<AtomicU64>,
}

impl Sparse {
    /// Bytes moved since this was last asked.
    fn moved(&self) -> u64 {
        self.moved.swap(0, Ordering::SeqCst)
    }
}

impl BlockBackend for Sparse {
    fn size_bytes(&self) -> u64 {
        1 << 40
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, data.len() as u64)?;
        data.fill(0);
        self.moved.fetch_add(data.len() as u64, Ordering::SeqCst);
        Ok(())
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, data.len() as u64)?;
        self.moved.fetch_add(data.len() as u64, Ordering::SeqCst);
        Ok(())
    }
    fn write_zeroes(&mut self, offset: u64, len: u64, _: bool) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, len)?;
        self.moved.fetch_add(len, Ordering::SeqCst);
        Ok(())
    }
    fn discard(&mut self, offset: u64, len: u64) -> Result<(), BlockError> {
        check_range(self.size_bytes(), offset, len)?;
        self.discarded.fetch_add(len, Ordering::SeqCst);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), BlockError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn rig(disk: &Sparse) -> Rig {
    let mut rig = Rig::new();
    rig.function.device = Box::new(Block::new(Box::new(disk.clone()), "sparse"));
    rig.start(registers::INDIRECT_DESC);
    rig
}

/// Offers a request whose descriptors, `data` of [`BUFFER`] bytes between header and status, are in a table of their own.
fn offer_long(rig: &mut Rig, kind: u32, data: u16) {
    rig.driver.write(HEADER, &kind.to_le_bytes());
    rig.driver.write(HEADER + 8, &0u64.to_le_bytes());
    rig.driver.write(STATUS_BYTE, &[PENDING]);
    let writes = if kind == 0 { WRITE } else { 0 };
    rig.driver.descriptor(TABLE, 0, (HEADER, 16, NEXT, 1));
    for n in 1..=data {
        rig.driver
            .descriptor(TABLE, n, (DATA, BUFFER, NEXT | writes, n + 1));
    }
    rig.driver
        .descriptor(TABLE, data + 1, (STATUS_BYTE, 1, WRITE, 0));
    let bytes = 16 * (u32::from(data) + 2);
    rig.driver.descriptor(DESC, 0, (TABLE, bytes, INDIRECT, 0));
    rig.driver.offer(0);
}

/// Offers a discard or write-zeroes of so many sectors from sector 1 on.
fn offer_range(rig: &mut Rig, kind: u32, sectors: u32) {
    rig.driver.write(HEADER, &kind.to_le_bytes());
    rig.driver.write(DATA, &1u64.to_le_bytes());
    rig.driver.write(DATA + 8, &sectors.to_le_bytes());
    rig.driver.write(DATA + 12, &0u32.to_le_bytes());
    rig.driver.write(STATUS_BYTE, &[PENDING]);
    let chain = [
        (HEADER, 16, false),
        (DATA, 16, false),
        (STATUS_BYTE, 1, true),
    ];
    rig.driver.chain(0, &chain);
    rig.driver.offer(0);
}

fn is_pending(rig: &Rig) -> bool {
    let pending = rig.driver.read(STATUS_BYTE, 1) == [PENDING];
    assert_eq!(pending, rig.driver.used(0).0 == 0, "status and used ring");
    assert_ne!(pending, rig.board.high.load(Ordering::SeqCst), "interrupt");
    pending
}

/// Takes turns until nothing is left; each moves something and not more than the budget. How many there were.
fn finish(rig: &mut Rig, disk: &Sparse) -> u64 {
    let mut turns = 0;
    while let Some(due) = rig.function.deadline() {
        rig.function.advance(due);
        let moved = disk.moved();
        assert!((1..=TURN_BYTES).contains(&moved), "{moved}");
        turns += 1;
    }
    turns
}

#[test]
fn a_request_of_half_a_gigabyte_goes_in_turns() {
    for kind in [0, 1] {
        let disk = Sparse::default();
        let mut rig = rig(&disk);
        offer_long(&mut rig, kind, 1000);
        rig.notify();
        let first = disk.moved();
        assert!((1..=TURN_BYTES).contains(&first), "{first}");
        assert!(is_pending(&rig));
        assert_eq!(rig.function.deadline(), Some(T1));
        rig.function.advance(T0);
        assert_eq!(disk.moved(), 0, "not before it is due");
        let turns = finish(&mut rig, &disk);
        assert!((499..=501).contains(&turns), "{turns}");
        assert!(!is_pending(&rig));
        let written = if kind == 0 { 1000 * BUFFER + 1 } else { 1 };
        assert_eq!(rig.driver.used(0), (1, 0, written));
        assert_eq!(rig.driver.read(STATUS_BYTE, 1), [0]);
    }
}

#[test]
fn ranges_go_in_turns() {
    const SECTORS: u32 = 1 << 22;
    let disk = Sparse::default();
    let mut rig = rig(&disk);
    offer_range(&mut rig, 13, SECTORS);
    rig.notify();
    assert!(is_pending(&rig));
    let first = disk.moved();
    assert!((1..=TURN_BYTES).contains(&first), "{first}");
    assert!(finish(&mut rig, &disk) >= 2047);
    assert!(!is_pending(&rig));

    let disk = Sparse::default();
    let mut rig = self::rig(&disk);
    offer_range(&mut rig, 11, SECTORS);
    rig.notify();
    let mut turns = 1;
    while let Some(due) = rig.function.deadline() {
        assert!(is_pending(&rig));
        rig.function.advance(due);
        turns += 1;
    }
    assert!(!is_pending(&rig));
    assert_eq!(
        disk.discarded.load(Ordering::SeqCst),
        u64::from(SECTORS) * 512
    );
    assert!((32..=34).contains(&turns), "64 MiB each: {turns}");
}

#[test]
fn notifications_do_not_make_a_turn_longer() {
    let disk = Sparse::default();
    let mut rig = rig(&disk);
    offer_long(&mut rig, 0, 100);
    for _ in 0..5 {
        rig.notify();
        assert!(disk.moved() <= TURN_BYTES);
    }
    assert!(is_pending(&rig));
}

#[test]
fn a_reset_drops_the_request() {
    for by_driver in [true, false] {
        let disk = Sparse::default();
        let mut rig = rig(&disk);
        offer_long(&mut rig, 0, 100);
        rig.notify();
        assert!(disk.moved() > 0);
        match by_driver {
            true => rig.set(STATUS, 0, 1),
            false => rig.function.reset(),
        }
        assert_eq!(rig.function.deadline(), None);
        rig.function.advance(VirtualTime(u64::MAX));
        assert_eq!(disk.moved(), 0);
        assert!(is_pending(&rig));
        // The next driver's request is the first one's.
        rig.driver.restart();
        rig.start(registers::INDIRECT_DESC);
        assert_eq!(disk.moved(), 0);
        offer_long(&mut rig, 1, 1);
        rig.notify();
        assert_eq!(disk.moved(), u64::from(BUFFER));
        assert_eq!(rig.driver.used(0), (1, 0, 1));
    }
}

#[test]
fn without_bus_mastering_a_request_waits() {
    let disk = Sparse::default();
    let mut rig = rig(&disk);
    offer_long(&mut rig, 0, 4);
    rig.notify();
    disk.moved();
    rig.configure(regs::COMMAND, &[2, 0]);
    rig.function.advance(T1);
    assert_eq!((disk.moved(), rig.function.deadline()), (0, None));
    rig.configure(regs::COMMAND, &[6, 0]);
    let moved = disk.moved();
    assert!((1..=TURN_BYTES).contains(&moved), "{moved}");
    finish(&mut rig, &disk);
    assert!(!is_pending(&rig));
}

/// What arrives is the same, wherever turns and buffers are cut.
#[test]
fn the_data_of_all_turns_is_in_order() {
    const SECTORS: u64 = 3 * TURN_BYTES / 512;
    let mut rig = Rig::new();
    let disk = Memory::new(SECTORS as usize);
    rig.function.device = Box::new(Block::new(Box::new(disk.clone()), "long"));
    rig.start(0);
    let pattern: Vec<u8> = (0..BUFFER).map(|n| (n % 251) as u8).collect();
    rig.driver.write(DATA, &pattern);
    rig.driver.write(HEADER, &1u32.to_le_bytes());
    let mut chain = vec![(HEADER, 16, false), (DATA + 100, BUFFER - 100, false)];
    chain.extend([(DATA, BUFFER, false); 5]);
    chain.extend([(DATA, 100, false), (STATUS_BYTE, 1, true)]);
    rig.driver.chain(0, &chain);
    rig.driver.offer(0);
    rig.notify();
    while let Some(due) = rig.function.deadline() {
        rig.function.advance(due);
    }
    assert_eq!(rig.driver.read(STATUS_BYTE, 1), [0]);
    let mut expected = pattern[100..].to_vec();
    for _ in 0..5 {
        expected.extend(&pattern);
    }
    expected.extend(&pattern[..100]);
    assert!(disk.content() == expected);
}

#[test]
fn a_flush_ends_a_turn() {
    let disk = Sparse::default();
    let mut rig = rig(&disk);
    rig.driver.write(HEADER, &4u32.to_le_bytes());
    rig.driver
        .chain(0, &[(HEADER, 16, false), (STATUS_BYTE, 1, true)]);
    for _ in 0..3 {
        rig.driver.offer(0);
    }
    rig.notify();
    for flushes in 1..=3 {
        assert_eq!(disk.flushes.load(Ordering::SeqCst), flushes);
        assert_eq!(u64::from(rig.driver.used(0).0), flushes);
        rig.function.advance(VirtualTime(u64::MAX));
    }
    assert_eq!(rig.function.deadline(), None);
}

/// 256 requests of a thousand descriptors that hold nothing each.
#[test]
fn descriptors_count_too() {
    let disk = Sparse::default();
    let mut rig = rig(&disk);
    offer_long(&mut rig, 0, 1000);
    for n in 1..=1000 {
        let empty = (DATA, 0, NEXT | WRITE, n + 1);
        rig.driver.descriptor(TABLE, n, empty);
    }
    (1..256).for_each(|_| rig.driver.offer(0));
    rig.notify();
    let mut done = rig.driver.used(0).0;
    assert!((1..=17).contains(&done), "{done}");
    while let Some(due) = rig.function.deadline() {
        rig.function.advance(due);
        let now = rig.driver.used(0).0;
        assert!((1..=17).contains(&(now - done)), "{now}");
        done = now;
    }
    assert_eq!(done, 256);
}
