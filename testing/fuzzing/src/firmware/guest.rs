//! Firmware's side of the configuration device.

use std::collections::BTreeMap;
use std::ops::Range;

use guestmem::{Gpa, GuestRam};
use vcpu::Platform;

use crate::board::bytes;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;
const DIRECTORY: u16 = 0x19;
/// Where the structure of an operation is.
pub const OPERATION: u64 = 0x8000;
/// Pages that no operation names.
pub const SENTINEL: Range<u64> = 0x1_e000..0x2_0000;
const FILL: u8 = 0xc3;

/// Firmware.
pub struct Guest<'a> {
    platform: &'a mut dyn Platform,
    /// RAM.
    pub ram: &'a GuestRam,
    memory: u64,
    retired: u64,
}

impl<'a> Guest<'a> {
    /// Select and read.
    pub const SELECT_READ: u32 = 8 | 2;

    /// Firmware of a machine with so much memory.
    pub fn new(platform: &'a mut dyn Platform, ram: &'a GuestRam, memory: u64) -> Self {
        let guard = vec![FILL; (SENTINEL.end - SENTINEL.start) as usize];
        ram.write(Gpa(SENTINEL.start), &guard).expect("RAM");
        Self {
            platform,
            ram,
            memory,
            retired: 0,
        }
    }

    /// Whether nobody wrote to the guard's pages.
    pub fn guard_is_untouched(&self) -> bool {
        let len = (SENTINEL.end - SENTINEL.start) as usize;
        let guard = bytes(self.ram, SENTINEL.start, len);
        guard.iter().all(|&byte| byte == FILL)
    }

    /// Where RAM below 4 GByte ends.
    pub fn memory_end(&self) -> u64 {
        self.memory.min(0xb000_0000)
    }

    /// Whether these bytes are RAM that firmware can write to after a reset: what the PAM registers switch shows ROM.
    pub fn is_ram(&self, at: u64, len: u32) -> bool {
        let inside = |start: u64, end: u64| {
            let last = at.checked_add(len.into());
            at >= start && last.is_some_and(|last| last <= end)
        };
        let high = (1 << 32) + self.memory.saturating_sub(0xb000_0000);
        inside(0, 0xa_0000) || inside(0x10_0000, self.memory_end()) || inside(1 << 32, high)
    }

    /// Executes an operation; gives its control word afterwards.
    pub fn dma(&mut self, control: u32, length: u32, to: u64) -> u32 {
        let mut operation = control.to_be_bytes().to_vec();
        operation.extend(length.to_be_bytes());
        operation.extend(to.to_be_bytes());
        self.ram.write(Gpa(OPERATION), &operation).expect("RAM");
        self.platform.pio_write(DMA_HIGH, 4, 0, 0);
        let low = (OPERATION as u32).swap_bytes();
        self.platform.pio_write(DMA_LOW, 4, low, 0);
        // A long transfer goes in turns; its control word says when it is done.
        for _ in 0..10_000 {
            let left = bytes(self.ram, OPERATION, 4);
            let left = u32::from_be_bytes(left.try_into().expect("four bytes"));
            if left & !1 == 0 {
                return left;
            }
            self.retired += 100_000;
            self.platform.poll(self.retired);
        }
        panic!("an operation without end: {control:#x}, {length:#x} bytes to {to:#x}")
    }

    /// The next byte of the item that is selected, by the data port.
    pub fn next(&mut self) -> u8 {
        self.platform.pio_read(DATA, 1, 0) as u8
    }

    /// The first bytes of an item, by the data port.
    pub fn item(&mut self, key: u16, size: usize) -> Vec<u8> {
        self.platform.pio_write(SELECTOR, 2, key.into(), 0);
        (0..size).map(|_| self.next()).collect()
    }

    /// The files' keys and sizes, by name.
    pub fn directory(&mut self) -> BTreeMap<String, (u16, usize)> {
        const ENTRY: usize = 64;
        let count = self.item(DIRECTORY, 4);
        let count = u32::from_be_bytes(count.try_into().expect("four bytes")) as usize;
        assert!((1..0x1000).contains(&count), "{count} files");
        let all = self.item(DIRECTORY, 4 + count * ENTRY);
        let entries = all[4..].chunks(ENTRY).map(|entry| {
            let size = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
            let key = u16::from_be_bytes([entry[4], entry[5]]);
            assert!(key >= 0x20, "a file's key {key:#x}");
            let name = &entry[8..];
            let end = name.iter().position(|&byte| byte == 0).expect("a zero");
            let name = String::from_utf8_lossy(&name[..end]).into_owned();
            (name, (key, size as usize))
        });
        let files: BTreeMap<_, _> = entries.collect();
        assert_eq!(files.len(), count, "names are unique");
        files
    }
}
