//! Facts from VIRTIO 1.2 4.1, and the contract of devices.

mod hostile;
mod turns;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::{LineSink, Msi, MsiSink};
use pci::{Bdf, INTA, IntxRouter, regs};

use super::*;
use crate::block::Block;
use crate::testing::*;

const T0: VirtualTime = VirtualTime(0);

#[derive(Default)]
struct Board {
    sent: Mutex<Vec<u32>>,
    high: AtomicBool,
}

impl MsiSink for Board {
    fn signal(&self, msi: Msi) {
        self.sent.lock().expect("unpoisoned").push(msi.data);
    }
}

impl LineSink for Board {
    fn set_line(&self, _line: u32, high: bool) {
        self.high.store(high, Ordering::SeqCst);
    }
}

struct Rig {
    function: VirtioFunction,
    driver: Driver,
    board: Arc<Board>,
    disk: Memory,
}

/// Offsets in the common configuration (4.1.4.3).
const STATUS: u64 = 0x14;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;

impl Rig {
    fn new() -> Self {
        let board = Arc::new(Board::default());
        let router = IntxRouter::new(board.clone());
        let wiring = FunctionWiring::new(&router, board.clone(), Bdf::new(0, 2, 0), INTA);
        let driver = Driver::new(256);
        let disk = Memory::new(64);
        let block = Box::new(Block::new(Box::new(disk.clone()), "test"));
        let function = VirtioFunction::new(block, driver.ram.clone(), wiring).expect("fits");
        Self {
            function,
            driver,
            board,
            disk,
        }
    }

    fn get(&mut self, offset: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(BAR, offset, &mut data[..size], T0);
        u64::from_le_bytes(data)
    }

    fn set(&mut self, offset: u64, value: u64, size: usize) {
        self.function
            .bar_write(BAR, offset, &value.to_le_bytes()[..size], T0);
    }

    fn configure(&mut self, offset: u16, data: &[u8]) {
        self.function.config_mut().write(offset, data);
        self.function.config_written(offset, data.len(), T0);
    }

    fn offered(&mut self) -> u64 {
        self.set(0, 0, 4);
        let low = self.get(4, 4);
        self.set(0, 1, 4);
        low | self.get(4, 4) << 32
    }

    fn accept(&mut self, features: u64) {
        for half in 0..2 {
            self.set(8, half, 4);
            self.set(0xc, features >> (32 * half) & 0xffff_ffff, 4);
        }
        self.set(STATUS, 3, 1);
        self.set(STATUS, 0xb, 1);
    }

    /// Everything a driver does (3.1.1), without MSI-X.
    fn start(&mut self, features: u64) {
        self.configure(regs::COMMAND, &[6, 0]);
        self.accept(features | registers::VERSION_1);
        self.set(0x16, 0, 2);
        for (offset, at) in [(0x20, DESC), (0x28, AVAIL), (0x30, USED)] {
            self.set(offset, at, 4);
            self.set(offset + 4, at >> 32, 4);
        }
        self.set(0x1c, 1, 2);
        self.set(STATUS, 0xf, 1);
    }

    /// A request that writes the sector's number into the disk at sector 3.
    fn offer_write(&mut self) {
        let mut header = vec![0; 16];
        header[0] = 1;
        header[8] = 3;
        self.driver.write(0x8000, &header);
        self.driver.write(0x9000, &[0xab; 512]);
        self.driver.write(0xa000, &[0xff]);
        let chain = [(0x8000, 16, false), (0x9000, 512, false), (0xa000, 1, true)];
        self.driver.chain(0, &chain);
        self.driver.offer(0);
    }

    fn notify(&mut self) {
        self.set(0x1000, 0, 2);
    }

    fn is_done(&self) -> bool {
        self.driver.read(0xa000, 1) == [0]
    }

    fn capability(&self, kind: u8) -> u16 {
        let config = self.function.config();
        let byte = |at: u16| config.word(at) as u8;
        let mut at = u16::from(byte(regs::CAPABILITIES));
        while at != 0 {
            if byte(at) == 9 && byte(at + 3) == kind {
                return at;
            }
            at = byte(at + 1).into();
        }
        panic!("no capability of type {kind}");
    }
}

#[test]
fn it_is_a_modern_virtio_function() {
    let rig = Rig::new();
    let config = rig.function.config();
    assert_eq!(config.dword(0), 0x1042_1af4, "4.1.2: 1040h + 2");
    assert!(config.word(8) as u8 >= 1, "4.1.2.1: revision");
    assert!(config.word(0x2e) >= 0x40, "4.1.2.1: subsystem");
}

#[test]
fn capabilities_say_where_the_structures_are() {
    let mut rig = Rig::new();
    let mut places = Vec::new();
    for kind in 1..=4 {
        let at = rig.capability(kind);
        let config = rig.function.config();
        let length = config.dword(at + 12);
        let bytes = if kind == 2 { 20 } else { 16 };
        assert_eq!(config.word(at + 2) & 0xff, bytes, "cap_len");
        assert_eq!(config.word(at + 4) & 0xff, u16::from(BAR));
        places.push((config.dword(at + 8), length));
    }
    assert_eq!(rig.function.config().dword(rig.capability(2) + 16), 4);
    places.sort_unstable();
    for pair in places.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{places:?}");
    }
    // 4.1.4.5: one byte of ISR; 5.2.4: the capacity comes first.
    let device = rig.function.config().dword(rig.capability(4) + 8);
    assert_eq!(rig.get(device.into(), 8), 64);
}

#[test]
fn features_need_version_1_and_must_be_offered() {
    let mut rig = Rig::new();
    let offered = rig.offered();
    // 5.2.3 and 6: SEG_MAX, BLK_SIZE, FLUSH, DISCARD, WRITE_ZEROES, INDIRECT_DESC, EVENT_IDX, VERSION_1.
    assert_eq!(
        offered,
        1 << 2 | 1 << 6 | 1 << 9 | 3 << 13 | 3 << 28 | 1 << 32
    );
    for (features, status) in [
        (0, 3),
        (1 << 9, 3),
        (1 << 32 | 1 << 12, 3),
        (1 << 32 | 1 << 33, 3),
        (1 << 32, 0xb),
        (offered, 0xb),
    ] {
        rig.set(STATUS, 0, 1);
        rig.accept(features);
        assert_eq!(rig.get(STATUS, 1), status, "{features:#x}");
        rig.set(STATUS, 0xf, 1);
        let live = if status == 0xb { 0xf } else { 3 };
        assert_eq!(rig.get(STATUS, 1), live);
    }
    // 2.2.1: settled now.
    rig.set(8, 0, 4);
    rig.set(0xc, 0, 4);
    assert_eq!(rig.get(0xc, 4), offered & 0xffff_ffff);
}

#[test]
fn queues_are_what_the_driver_says_until_they_are_enabled() {
    let mut rig = Rig::new();
    assert_eq!(rig.get(0x12, 2), 1, "num_queues");
    assert_eq!(rig.get(QUEUE_SIZE, 2), 256);
    for (written, read) in [
        (128, 128),
        (100, 128),
        (0, 128),
        (512, 128),
        (1, 1),
        (256, 256),
    ] {
        rig.set(QUEUE_SIZE, written, 2);
        assert_eq!(rig.get(QUEUE_SIZE, 2), read, "{written}");
    }
    for vector in [0u64, 1, 2, 0xffff] {
        rig.set(QUEUE_VECTOR, vector, 2);
        let expected = if vector < 2 { vector } else { 0xffff };
        assert_eq!(rig.get(QUEUE_VECTOR, 2), expected);
        rig.set(0x10, vector, 2);
        assert_eq!(rig.get(0x10, 2), expected);
    }
    rig.set(0x20, 0x1122_3344_5566_7788, 8);
    assert_eq!(rig.get(0x20, 8), 0x1122_3344_5566_7788);
    rig.set(0x1c, 1, 2);
    rig.set(0x20, 0, 4);
    rig.set(QUEUE_SIZE, 4, 2);
    assert_eq!(rig.get(0x24, 4), 0x1122_3344);
    assert_eq!(rig.get(QUEUE_SIZE, 2), 256);
    // 4.1.4.3: a queue that does not exist has size zero.
    rig.set(0x16, 1, 2);
    assert_eq!(rig.get(QUEUE_SIZE, 2), 0);
}

#[test]
fn a_notification_does_the_work_and_raises_the_pin() {
    let mut rig = Rig::new();
    rig.offer_write();
    rig.notify();
    assert!(!rig.is_done(), "not started");
    let mut rig = Rig::new();
    rig.start(0);
    rig.offer_write();
    rig.notify();
    assert!(rig.is_done());
    assert_eq!(rig.driver.used(0), (1, 0, 1));
    assert_eq!(rig.disk.content()[3 * 512..4 * 512], [0xab; 512]);
    assert!(rig.board.high.load(Ordering::SeqCst));
    // 4.1.4.5: reading acknowledges.
    assert_eq!(rig.get(0x2000, 1), 1);
    assert!(!rig.board.high.load(Ordering::SeqCst));
    assert_eq!(rig.get(0x2000, 1), 0);
}

#[test]
fn without_bus_mastering_work_waits() {
    let mut rig = Rig::new();
    rig.start(0);
    rig.configure(regs::COMMAND, &[2, 0]);
    rig.offer_write();
    rig.notify();
    assert!(!rig.is_done());
    rig.configure(regs::COMMAND, &[6, 0]);
    assert!(rig.is_done());
}

#[test]
fn with_msix_the_queues_vector_is_sent() {
    let mut rig = Rig::new();
    rig.start(0);
    let msix = (0x40..0x100)
        .step_by(4)
        .find(|&at| rig.function.config().word(at) as u8 == 0x11)
        .expect("a capability");
    rig.configure(msix + 2, &[0, 0x80]);
    let entry = [
        &0xfee0_0000u64.to_le_bytes()[..],
        &[0x31, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    rig.function.bar_write(1, 16, &entry, T0);
    rig.offer_write();
    rig.notify();
    assert!(rig.is_done());
    assert_eq!(
        *rig.board.sent.lock().expect("unpoisoned"),
        [0; 0],
        "no vector set"
    );
    rig.set(QUEUE_VECTOR, 1, 2);
    rig.offer_write();
    rig.notify();
    assert_eq!(*rig.board.sent.lock().expect("unpoisoned"), [0x31]);
    assert_eq!(rig.get(0x2000, 1), 0);
    assert!(!rig.board.high.load(Ordering::SeqCst));
}

#[test]
fn a_broken_queue_asks_for_a_reset_and_rests_until_then() {
    let mut rig = Rig::new();
    rig.start(0);
    rig.driver.offer(0x4000);
    rig.notify();
    assert_eq!(rig.get(STATUS, 1), 0x4f, "2.1: DEVICE_NEEDS_RESET");
    assert_eq!(rig.get(0x2000, 1), 2, "a configuration change");
    rig.offer_write();
    rig.notify();
    assert!(!rig.is_done());
    rig.set(STATUS, 0, 1);
    assert_eq!(rig.get(STATUS, 1), 0);
    assert_eq!(rig.get(0x1c, 2), 0, "no queue is enabled");
    rig.driver.restart();
    rig.start(0);
    rig.offer_write();
    rig.notify();
    assert!(rig.is_done());
}

#[test]
fn the_structures_can_be_reached_through_the_configuration_space() {
    // 4.1.4.9.
    let mut rig = Rig::new();
    let window = rig.capability(5);
    let aim = |rig: &mut Rig, bar: u8, offset: u32, length: u32| {
        rig.configure(window + 4, &[bar]);
        rig.configure(window + 8, &offset.to_le_bytes());
        rig.configure(window + 12, &length.to_le_bytes());
    };
    let read = |rig: &mut Rig| {
        rig.function.config_read(window + 16, 4, T0);
        rig.function.config().dword(window + 16)
    };
    aim(&mut rig, BAR, STATUS as u32, 1);
    rig.configure(window + 16, &[1]);
    assert_eq!(rig.get(STATUS, 1), 1);
    assert_eq!(read(&mut rig), 1);
    aim(&mut rig, BAR, QUEUE_SIZE as u32, 2);
    assert_eq!(read(&mut rig), 256);
    // A register that is not there, an odd length, beyond the end: nothing happens.
    for (bar, offset, length) in [(0, 0x14, 1), (BAR, 0x14, 3), (BAR, 0x4000, 4), (BAR, 2, 4)] {
        aim(&mut rig, bar, offset, length);
        rig.configure(window + 16, &[0; 4]);
        assert_eq!(rig.get(STATUS, 1), 1);
    }
}

#[test]
fn keeps_the_device_contract() {
    let image = |rig: &mut Rig| {
        let mut all: Vec<u64> = (0..0x100)
            .map(|n| rig.function.config().word(2 * n).into())
            .collect();
        all.extend((0..0x40).map(|n| rig.get(n, 1)));
        all.extend((0x2000..0x2004).map(|n| rig.get(n, 1)));
        all.extend((0x3000..0x3080).map(|n| rig.get(n, 1)));
        let mut table = [0; 32];
        rig.function.bar_read(1, 0, &mut table, T0);
        all.extend(table.map(u64::from));
        all
    };
    for mut seed in [3, 0x9e37_79b9_7f4a_7c15] {
        let mut rig = Rig::new();
        rig.start(0);
        for n in 0..50_000u64 {
            let random = next(&mut seed);
            let offset = match random & 3 {
                0 => next(&mut seed),
                1 => random >> 8 & 0x3fff,
                2 => random >> 8 & 0x3f,
                _ => (random >> 8 & 3) << 12 | random >> 16 & 0x1f,
            };
            let size = [1, 2, 3, 4, 4, 8][(random >> 40) as usize % 6];
            let mut data = next(&mut seed).to_le_bytes();
            let now = VirtualTime(n);
            match random >> 60 {
                0..6 => {
                    rig.function
                        .bar_write((random >> 50) as u8 & 7, offset, &data[..size], now)
                }
                6..10 => {
                    rig.function
                        .bar_read((random >> 50) as u8 & 7, offset, &mut data[..size], now)
                }
                10 => {
                    let offset = offset as u16 & 0xff;
                    rig.function.config_mut().write(offset, &data[..size]);
                    rig.function.config_written(offset, size, now);
                }
                11 => rig.function.config_read(offset as u16, size, now),
                12 => rig.function.advance(now),
                // Guest memory changes under the device; now and then a driver sets it up anew.
                13 => rig.driver.write(0x1000 + (offset & 0x3fff), &data),
                14 => rig.notify(),
                _ if random & 0xf0 == 0 => rig.start(random >> 30 & 0x3000_0000),
                _ => rig.offer_write(),
            }
        }
        rig.function.reset();
        assert_eq!(image(&mut rig), image(&mut Rig::new()));
        assert_eq!(rig.function.deadline(), None);
    }
}

/// A disk whose driver adds a request whenever one is done.
struct Adding {
    ram: Arc<GuestRam>,
    left: u32,
}

impl bus::BlockBackend for Adding {
    fn size_bytes(&self) -> u64 {
        64 * 512
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), bus::BlockError> {
        Ok(())
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), bus::BlockError> {
        if self.left > 0 {
            self.left -= 1;
            let mut index = [0; 2];
            let at = guestmem::Gpa(AVAIL + 2);
            self.ram.read(at, &mut index).expect("RAM");
            let index = u16::from_le_bytes(index).wrapping_add(1);
            self.ram.write(at, &index.to_le_bytes()).expect("RAM");
        }
        Ok(())
    }
    fn write_zeroes(&mut self, _: u64, _: u64, _: bool) -> Result<(), bus::BlockError> {
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> Result<(), bus::BlockError> {
        Ok(())
    }
    fn flush(&mut self) -> Result<(), bus::BlockError> {
        Ok(())
    }
}

#[test]
fn a_driver_that_keeps_adding_gets_its_turns() {
    let mut rig = Rig::new();
    let ram = rig.driver.ram.clone();
    rig.function.device = Box::new(Block::new(Box::new(Adding { ram, left: 600 }), "adding"));
    rig.start(0);
    rig.offer_write();
    rig.notify();
    assert_eq!(rig.driver.used(0).0, 256, "a queue's size at once");
    let mut turns = 0;
    while let Some(due) = rig.function.deadline() {
        rig.function.advance(due);
        turns += 1;
    }
    assert_eq!((rig.driver.used(0).0, turns), (601, 2));
}
