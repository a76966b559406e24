//! Facts from VIRTIO 1.2 5.2.

use super::*;
use crate::testing::*;

struct Rig {
    driver: Driver,
    queue: Queue,
    block: Block,
    disk: Memory,
}

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x10000;
const STATUS: u64 = 0xa000;

impl Rig {
    fn of(disk: Memory) -> Self {
        let driver = Driver::new(16);
        let queue = driver.queue();
        let block = Block::new(Box::new(disk.clone()), "a disk");
        Self {
            driver,
            queue,
            block,
            disk,
        }
    }

    fn new() -> Self {
        Self::of(Memory::new(64))
    }

    /// Offers as many requests as the queue has entries, serves them, and gives where the driver is asked to notify
    /// again.
    fn fill(&mut self) -> u16 {
        let entries = self.queue.size();
        self.header(0, 0);
        for _ in 0..entries {
            self.driver.chain(
                0,
                &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)],
            );
            self.driver.offer(0);
        }
        let outcome = self.block.process(0, &mut self.queue, &self.driver.ram);
        assert_eq!(outcome, Ok(Outcome::Done));
        self.driver.word(USED + 4 + 8 * u64::from(entries))
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.write(HEADER, &kind.to_le_bytes());
        self.driver.write(HEADER + 8, &sector.to_le_bytes());
        self.driver.write(STATUS, &[0xee]);
    }

    /// Offers the buffers as a chain; the status and the number of bytes written.
    fn run(&mut self, buffers: &[(u64, u32, bool)]) -> (u8, u32) {
        self.driver.chain(0, buffers);
        self.driver.offer(0);
        let outcome = self.block.process(0, &mut self.queue, &self.driver.ram);
        assert_eq!(outcome, Ok(Outcome::Done));
        let index = self.driver.word(USED + 2).wrapping_sub(1);
        let written = self.driver.used(index).2;
        (self.driver.read(STATUS, 1)[0], written)
    }

    fn request(&mut self, kind: u32, sector: u64, data: (u64, u32, bool)) -> (u8, u32) {
        self.header(kind, sector);
        self.run(&[(HEADER, 16, false), data, (STATUS, 1, true)])
    }

    fn ranges(&mut self, kind: u32, range: (u64, u32, u32)) -> u8 {
        self.driver.write(DATA, &range.0.to_le_bytes());
        self.driver.write(DATA + 8, &range.1.to_le_bytes());
        self.driver.write(DATA + 12, &range.2.to_le_bytes());
        self.request(kind, 0, (DATA, 16, false)).0
    }
}

/// 2.7.10: a queue that was full is empty afterwards, and the driver has to say when it is no more.
#[test]
fn a_full_queue_is_asked_to_notify_again() {
    let mut rig = Rig::new();
    rig.queue.event_idx = true;
    let entries = rig.queue.size();
    assert_eq!(rig.fill(), entries);
    assert_eq!(rig.fill(), 2 * entries);
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let config = Rig::new().block.config();
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().expect("four"));
    assert_eq!((word(0), word(4)), (64, 0), "capacity in sectors");
    assert_eq!(word(12), 254, "seg_max");
    assert_eq!(word(20), 512, "blk_size");
    assert_eq!((word(40), word(52), config[56]), (1, 1, 1));
    assert_eq!(config.len(), 60);
}

#[test]
fn sectors_are_written_and_read() {
    let mut rig = Rig::new();
    rig.driver.write(DATA, &[0x5a; 1024]);
    assert_eq!(rig.request(1, 5, (DATA, 1024, false)), (0, 1));
    let content = rig.disk.content();
    assert_eq!(content[5 * 512..7 * 512], [0x5a; 1024]);
    assert_eq!((content[5 * 512 - 1], content[7 * 512]), (0, 0));
    assert_eq!(rig.request(0, 6, (0x2_0000, 1024, true)), (0, 1025));
    assert_eq!(rig.driver.read(0x2_0000, 512), [0x5a; 512]);
    assert_eq!(rig.driver.read(0x2_0200, 512), [0; 512]);
}

#[test]
fn buffers_may_be_cut_anywhere() {
    // 2.7.4.3: the device makes no assumption about framing.
    let mut rig = Rig::new();
    rig.header(1, 1);
    rig.driver.write(DATA, &[7; 512]);
    let write = [
        (HEADER, 5, false),
        (HEADER + 5, 11, false),
        (DATA, 100, false),
        (DATA + 100, 0, false),
        (DATA + 100, 412, false),
        (STATUS, 1, true),
    ];
    assert_eq!(rig.run(&write), (0, 1));
    assert_eq!(rig.disk.content()[512..1024], [7; 512]);
    // Status in one buffer with the data.
    rig.header(0, 1);
    let read = [(HEADER, 16, false), (STATUS - 500, 500 + 1, true)];
    let (_, written) = rig.run(&read);
    assert_eq!(
        (written, rig.driver.read(STATUS, 1)[0]),
        (1, 1),
        "500 bytes are no sector"
    );
    let read = [(HEADER, 16, false), (STATUS - 512, 512 + 1, true)];
    assert_eq!(rig.run(&read), (0, 513));
    assert_eq!(rig.driver.read(STATUS - 512, 512), [7; 512]);
}

#[test]
fn large_requests_go_in_pieces() {
    let mut rig = Rig::of(Memory::new(1024));
    let pattern: Vec<u8> = (0..300 * 512u32).map(|n| (n / 509) as u8).collect();
    rig.driver.write(0x4_0000, &pattern);
    assert_eq!(rig.request(1, 10, (0x4_0000, 300 * 512, false)), (0, 1));
    assert!(rig.disk.content()[10 * 512..310 * 512] == pattern);
    assert_eq!(
        rig.request(0, 10, (0xa_0000, 300 * 512, true)),
        (0, 300 * 512 + 1)
    );
    assert!(rig.driver.read(0xa_0000, pattern.len()) == pattern);
}

#[test]
fn what_is_outside_of_the_disk_is_an_io_error() {
    let mut rig = Rig::new();
    for sector in [63, 64, u64::MAX, u64::MAX / 512 + 1] {
        assert_eq!(
            rig.request(0, sector, (DATA, 1024, true)),
            (1, 1),
            "{sector}"
        );
        assert_eq!(
            rig.request(1, sector, (DATA, 1024, false)),
            (1, 1),
            "{sector}"
        );
    }
    assert_eq!(rig.request(1, 0, (DATA, 100, false)), (1, 1));
    assert!(rig.disk.content() == [0; 64 * 512]);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut disk = Memory::new(64);
    disk.read_only = true;
    let mut rig = Rig::of(disk);
    assert_eq!(rig.block.features() & 1 << 5, 1 << 5, "VIRTIO_BLK_F_RO");
    assert_eq!(rig.block.features() & 3 << 13, 0);
    assert_eq!(rig.request(1, 0, (DATA, 512, false)), (1, 1));
    assert_eq!(rig.ranges(11, (0, 1, 0)), 1);
    assert_eq!(rig.ranges(13, (0, 1, 0)), 1);
    assert_eq!(rig.request(0, 0, (DATA, 512, true)), (0, 513));
}

#[test]
fn a_failing_host_is_an_io_error() {
    let mut disk = Memory::new(64);
    disk.fails = true;
    let mut rig = Rig::of(disk);
    assert_eq!(rig.request(0, 0, (DATA, 512, true)).0, 1);
    assert_eq!(rig.request(1, 0, (DATA, 512, false)).0, 1);
    assert_eq!(rig.request(4, 0, (DATA, 0, false)).0, 1);
}

#[test]
fn flush_id_and_unknown_requests() {
    let mut rig = Rig::new();
    rig.header(4, 0);
    assert_eq!(rig.run(&[(HEADER, 16, false), (STATUS, 1, true)]), (0, 1));
    assert_eq!(*rig.disk.flushes.lock().expect("unpoisoned"), 1);
    assert_eq!(rig.request(8, 0, (DATA, 20, true)), (0, 21));
    assert_eq!(
        rig.driver.read(DATA, 20),
        b"a disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    for kind in [2, 5, 14, u32::MAX] {
        assert_eq!(
            rig.request(kind, 0, (DATA, 512, true)),
            (2, 1),
            "VIRTIO_BLK_S_UNSUPP"
        );
    }
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut rig = Rig::new();
    rig.driver.write(DATA + 0x1000, &[1; 4096]);
    assert_eq!(rig.request(1, 0, (DATA + 0x1000, 4096, false)).0, 0);
    assert_eq!(rig.ranges(11, (2, 2, 0)), 0);
    assert_eq!(rig.ranges(13, (4, 1, 0)), 0);
    assert_eq!(rig.ranges(13, (5, 1, 1)), 0, "may unmap");
    let content = rig.disk.content();
    let first: Vec<u8> = (0..8).map(|sector| content[512 * sector]).collect();
    assert_eq!(first, [1, 1, 0xdd, 0xdd, 0, 0, 1, 1]);
    // 5.2.6.2: unmap in a discard and unknown flags are unsupported.
    assert_eq!(rig.ranges(11, (0, 1, 1)), 2);
    assert_eq!(rig.ranges(13, (0, 1, 2)), 2);
    for range in [(63, 2, 0), (u64::MAX, 1, 0), (0, u32::MAX, 0)] {
        assert_eq!(rig.ranges(11, range), 1);
        assert_eq!(rig.ranges(13, range), 1);
    }
    assert_eq!(rig.request(11, 0, (DATA, 15, false)).0, 1);
    assert_eq!(
        rig.request(11, 0, (DATA, 32, false)).0,
        1,
        "one range at most"
    );
}

#[test]
fn a_chain_that_is_no_request_breaks_the_rules() {
    for buffers in [
        &[(HEADER, 16, false)][..],
        &[(HEADER, 15, false), (STATUS, 1, true)],
    ] {
        let mut rig = Rig::new();
        rig.driver.chain(0, buffers);
        rig.driver.offer(0);
        let result = rig.block.process(0, &mut rig.queue, &rig.driver.ram);
        assert!(matches!(result, Err(QueueError::Request(_))), "{result:?}");
    }
}
