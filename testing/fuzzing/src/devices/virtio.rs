//! A driver of virtio disks, right and wrong (Virtual I/O Device 1.2: 2.7, 4.1.4, 5.2).

use super::hand::{AREA, Hand, address, length};
use crate::Input;
use crate::board::bytes;

/// PCI functions of the disks: what can be written, what cannot.
pub const FUNCTIONS: [u32; 2] = [2 << 3, 3 << 3];
/// Sectors of each.
pub const SECTORS: u64 = 3072;
/// The base address registers with structures and MSI-X, by the driver's choice.
pub const PLACES: [u64; 2] = [0xc010_0000, 0xc020_0000];
const MSIX: [u64; 2] = [0xc018_0000, 0xc028_0000];
/// Offsets of the structures, as their capabilities say; this is checked.
const NOTIFY: u64 = 0x1000;
const DEVICE: u64 = 0x3000;

/// Common configuration.
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_ADDRESSES: [u64; 3] = [0x20, 0x28, 0x30];
/// Bytes of it that a reset puts back.
const COMMON: u64 = 0x38;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const FEATURE_INDIRECT: u64 = 1 << 28;
const FEATURE_EVENT: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// What a sound driver does with its part of the area: table, rings, request, data.
const TABLE: u64 = AREA.start;
const AVAILABLE: u64 = AREA.start + 0x1000;
const USED: u64 = AREA.start + 0x2000;
const HEADER: u64 = AREA.start + 0x4000;
const STATE: u64 = AREA.start + 0x4100;
const DATA: u64 = AREA.start + 0x8000;
const SIZE: u16 = 8;

/// The drivers' memory of what they did.
#[derive(Default)]
pub struct Drivers {
    available: u16,
    /// Sound requests that were answered.
    pub answered: u64,
}

/// Places the registers of both disks.
pub fn place(hand: &mut Hand<'_>) {
    for (n, function) in FUNCTIONS.into_iter().enumerate() {
        hand.place(function, 1, MSIX[n]);
        hand.place(function, 4, PLACES[n]);
        hand.place(function, 5, 0);
        hand.enable(function);
    }
}

/// What the driver reads of a disk that is reset.
pub fn image(hand: &mut Hand<'_>, disk: usize) -> Vec<u64> {
    let common = (0..COMMON).step_by(4).map(|at| PLACES[disk] + at);
    let device = (0..0x3c).step_by(4).map(|at| PLACES[disk] + DEVICE + at);
    common.chain(device).map(|at| hand.read(at, 4)).collect()
}

/// Resets a disk.
pub fn reset(hand: &mut Hand<'_>, disk: usize) {
    hand.write(PLACES[disk] + STATUS, 0, 1);
}

fn negotiate(hand: &mut Hand<'_>, disk: usize, features: u64) {
    let base = PLACES[disk];
    for status in [0, 1, 3] {
        hand.write(base + STATUS, status, 1);
    }
    for half in 0..2 {
        hand.write(base + 8, half, 4);
        hand.write(base + 0xc, features >> (32 * half) & 0xffff_ffff, 4);
    }
    hand.write(base + STATUS, 11, 1);
}

fn queue(hand: &mut Hand<'_>, disk: usize, size: u16, at: [u64; 3]) {
    let base = PLACES[disk];
    hand.write(base + QUEUE_SELECT, 0, 2);
    hand.write(base + QUEUE_SIZE, size.into(), 2);
    for (register, address) in QUEUE_ADDRESSES.into_iter().zip(at) {
        hand.write(base + register, address & 0xffff_ffff, 4);
        hand.write(base + register + 4, address >> 32, 4);
    }
    hand.write(base + QUEUE_ENABLE, 1, 2);
    hand.write(base + STATUS, 15, 1);
}

fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

impl Drivers {
    /// A driver without scruples: a queue anywhere, descriptors of anything.
    pub fn wrong(&mut self, hand: &mut Hand<'_>, input: &mut Input<'_>) {
        let disk = input.below(2);
        match input.below(8) {
            0 => {
                let mut features = VERSION_1;
                features |= FEATURE_INDIRECT * u64::from(input.any::<u8>() & 1);
                features |= FEATURE_EVENT * u64::from(input.any::<u8>() & 1);
                if input.once_in(4) {
                    features ^= input.any::<u64>();
                }
                negotiate(hand, disk, features);
            }
            1 => {
                let size = match input.below(4) {
                    0 => input.any(),
                    _ => 1 << input.below(9),
                };
                let at = [(); 3].map(|()| match input.below(4) {
                    0 => address(input),
                    _ => AREA.start + u64::from(input.any::<u16>() & 0x7ff0),
                });
                let usual = input.once_in(2);
                let at = if usual { [TABLE, AVAILABLE, USED] } else { at };
                queue(hand, disk, size, at);
            }
            2 if input.once_in(4) => self.long(hand, input, disk),
            2 | 3 => self.descriptors(hand, input),
            4 => {
                let ring: Vec<u8> = input.bytes(64).to_vec();
                let at = input.pick(&[TABLE, AVAILABLE, USED, HEADER, DATA]);
                hand.put(at + u64::from(input.any::<u8>()), &ring);
            }
            _ => {
                let ahead = match input.below(8) {
                    0 => input.any::<u16>(),
                    _ => u16::from(input.any::<u8>() & 3),
                };
                self.available = self.available.wrapping_add(ahead);
                hand.put(AVAILABLE + 2, &self.available.to_le_bytes());
                let value = u64::from(input.any::<u16>() & 1);
                hand.write(PLACES[disk] + NOTIFY, value, 2);
            }
        }
    }

    /// A request of more than is moved in one turn, and sometimes a reset while it is under way.
    fn long(&mut self, hand: &mut Hand<'_>, input: &mut Input<'_>, disk: usize) {
        const PART: u32 = 0x8000;
        const PARTS: u16 = 40;
        // Reads go to the data's place, over and over.
        let kind = input.pick(&[0, 1]);
        negotiate(hand, disk, VERSION_1);
        queue(hand, disk, 64, [TABLE, AVAILABLE, USED]);
        hand.put(HEADER, &header(kind, input.below(64) as u64));
        let writes = if kind == 0 { WRITE } else { 0 };
        let mut table = descriptor(HEADER, 16, NEXT, 1);
        for n in 1..=PARTS {
            table.extend(descriptor(DATA, PART, NEXT | writes, n + 1));
        }
        table.extend(descriptor(STATE, 1, WRITE, 0));
        hand.put(TABLE, &table);
        hand.put(AVAILABLE, &[0, 0, 1, 0, 0, 0]);
        self.available = 1;
        hand.write(PLACES[disk] + NOTIFY, 0, 2);
        if input.once_in(2) {
            reset(hand, disk);
        }
    }

    /// A table of requests, some with chains that break the rules.
    fn descriptors(&mut self, hand: &mut Hand<'_>, input: &mut Input<'_>) {
        let kind = input.pick(&[0, 0, 1, 1, 4, 8, 11, 13, 0xffff]);
        let sector = match input.below(4) {
            0 => input.number(),
            1 => SECTORS - 8 + u64::from(input.any::<u8>() & 15),
            _ => u64::from(input.any::<u8>()),
        };
        hand.put(HEADER, &header(kind, sector));
        let count = 2 + input.below(6) as u16;
        let mut table = Vec::new();
        for n in 0..count {
            let mut next = n + 1;
            let mut flags = if next < count { NEXT } else { 0 };
            let (mut at, mut len) = (address(input), length(input));
            if n == 0 {
                (at, len) = (HEADER, 16);
            } else if n + 1 == count || kind == 0 || kind == 8 {
                flags |= WRITE;
            }
            if n + 1 == count {
                (at, len) = (STATE, 1);
            }
            if input.once_in(8) {
                flags ^= input.pick(&[NEXT, WRITE, INDIRECT, 0x8000]);
                next = input.pick(&[0, n, next, 7, 0x100, 0xffff]);
                at = address(input);
                len = length(input);
            }
            table.extend(descriptor(at, len, flags, next));
        }
        if input.once_in(3) {
            // The same, behind one descriptor.
            let at = AREA.start + 0x800 + 16 * input.below(4) as u64;
            hand.put(at, &table);
            let len = match input.below(4) {
                0 => length(input),
                _ => table.len() as u32,
            };
            table = descriptor(at, len, INDIRECT | input.pick(&[0, 0, WRITE, NEXT]), 1);
        }
        hand.put(TABLE, &table);
        let heads = (0..8).map(|_| input.pick(&[0u16, 0, 0, 1, 2, 0x100]));
        let ring: Vec<u8> = heads.flat_map(u16::to_le_bytes).collect();
        hand.put(AVAILABLE + 4, &ring);
    }

    /// A driver that keeps the rules has its request answered (5.2.6): what it reads is what is on the disk, what is
    /// beyond the end or cannot be written is refused, and nothing but the buffers is written to.
    pub fn right(&mut self, hand: &mut Hand<'_>, input: &mut Input<'_>, disks: [&[u8]; 2]) {
        let disk = input.below(2);
        let sector = match input.once_in(2) {
            true => SECTORS - 8 + u64::from(input.any::<u8>() & 15),
            false => u64::from(input.any::<u16>()) % SECTORS,
        };
        let sectors = 1 + input.below(8) as u64;
        let kind = u32::from(input.once_in(4));
        let fits = sector + sectors <= SECTORS;
        let mut features = VERSION_1;
        let indirect = input.once_in(2);
        if indirect {
            features |= FEATURE_INDIRECT;
        }
        negotiate(hand, disk, features);
        hand.put(AVAILABLE, &[0; 4]);
        hand.put(USED, &[0; 4]);
        queue(hand, disk, SIZE, [TABLE, AVAILABLE, USED]);
        let data = (sectors * 512) as usize;
        let cut = input.below(data) as u32;
        hand.put(HEADER, &header(kind, sector));
        hand.put(STATE, &[0xee, 0xee]);
        let pattern = vec![0xa7; data + 16];
        hand.put(DATA, &pattern);
        let writes = if kind == 0 { WRITE } else { 0 };
        let mut table = descriptor(HEADER, 16, NEXT, 1);
        table.extend(descriptor(DATA, cut, NEXT | writes, 2));
        let rest = data as u32 - cut;
        table.extend(descriptor(DATA + u64::from(cut), rest, NEXT | writes, 3));
        table.extend(descriptor(STATE, 1, WRITE, 0));
        if indirect {
            hand.put(AREA.start + 0x800, &table);
            table = descriptor(AREA.start + 0x800, 64, INDIRECT, 0);
        }
        hand.put(TABLE, &table);
        hand.put(AVAILABLE + 4, &[0, 0]);
        hand.put(AVAILABLE + 2, &[1, 0]);
        hand.write(PLACES[disk] + NOTIFY, 0, 2);
        let done = hand.wait(|hand| bytes(hand.ram, USED + 2, 2) == [1, 0]);
        assert!(done, "a request of {sectors} sectors is answered");
        let found = bytes(hand.ram, DATA, data + 16);
        let status = bytes(hand.ram, STATE, 2);
        assert_eq!(status[1], 0xee, "behind the status");
        assert!(found[data..] == pattern[data..], "behind the data");
        let good = fits && (kind == 0 || disk == 0);
        assert_eq!(status[0], u8::from(!good), "status, kind {kind}, {sector}");
        if kind == 0 && good {
            let from = sector as usize * 512;
            let on_disk = &disks[disk][from..from + data];
            assert!(&found[..data] == on_disk, "sector {sector} of disk {disk}");
        }
        self.answered += 1;
        self.available = 1;
    }
}
