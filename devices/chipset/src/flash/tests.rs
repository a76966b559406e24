use std::sync::{Arc, Mutex};

use super::*;
use crate::testing::{inb, keeps_contract, outb};

const NOW: VirtualTime = VirtualTime(0);

/// Offset and bytes of each change.
type Changes = Vec<(u64, Vec<u8>)>;

#[derive(Clone, Default)]
struct Stored(Arc<Mutex<Changes>>);

impl FlashStore for Stored {
    fn store(&mut self, offset: u64, bytes: &[u8]) {
        let mut all = self.0.lock().expect("no test panics with it");
        all.push((offset, bytes.to_vec()));
    }
}

fn device() -> FlashDevice {
    FlashDevice::new(vec![0xff; 0x4000], None).expect("whole blocks")
}

fn write(d: &mut FlashDevice, at: u64, values: &[u8]) {
    for &value in values {
        outb(d, 0, at, value, NOW);
    }
}

fn read(d: &mut FlashDevice, at: u64) -> u8 {
    inb(d, 0, at, NOW)
}

/// The chip keeps its content over a reset, so a random one could differ from a new one; the commands that change it
/// need a length.
#[test]
fn contract() {
    let make = || {
        let mut d = device();
        // No bit can be cleared that is not clear, and an erased block is what it was.
        d.flash = Flash::new(vec![], BLOCK_BYTES);
        d
    };
    keeps_contract(make, &[(0, 0x4000)]);
}

#[test]
fn random_writes_stay_inside() {
    let mut random = crate::testing::XorShift(7);
    let mut d = device();
    for _ in 0..200_000 {
        let at = random.below(0x5000);
        let commands = [
            0xff, 0x90, 0x98, 0x70, 0x50, 0x40, 0x10, 0xe8, 0x20, 0xd0, 0x60, 1, 9,
        ];
        let value = commands[random.below(13) as usize];
        outb(&mut d, 0, at, value, NOW);
        let _ = read(&mut d, random.below(0x5000));
    }
    assert_eq!(d.flash.bytes().len(), 0x4000);
}

#[test]
fn programming_clears_bits_and_erasing_sets_a_block() {
    let mut d = device();
    write(&mut d, 0x1234, &[regs::PROGRAM, 0x5a]);
    assert_eq!(read(&mut d, 0x1234), regs::READY, "status after it");
    write(&mut d, 0, &[regs::READ_ARRAY]);
    assert_eq!(read(&mut d, 0x1234), 0x5a);
    write(
        &mut d,
        0x1234,
        &[regs::PROGRAM_OTHER, 0xf0, regs::READ_ARRAY],
    );
    assert_eq!(read(&mut d, 0x1234), 0x50);
    write(
        &mut d,
        0x2000,
        &[regs::ERASE, regs::CONFIRM, regs::READ_ARRAY],
    );
    assert_eq!(read(&mut d, 0x1234), 0x50, "another block");
    write(
        &mut d,
        0x1fff,
        &[regs::ERASE, regs::CONFIRM, regs::READ_ARRAY],
    );
    assert_eq!(read(&mut d, 0x1234), 0xff);
}

#[test]
fn a_buffer_is_programmed_when_confirmed() {
    let mut d = device();
    write(&mut d, 0x100, &[regs::BUFFER]);
    assert_eq!(read(&mut d, 0x100) & regs::READY, regs::READY);
    write(&mut d, 0x100, &[2]);
    for (at, value) in [(0x100, 1), (0x101, 2), (0x102, 3)] {
        outb(&mut d, 0, at, value, NOW);
    }
    assert_eq!(d.flash.bytes()[0x100], 0xff);
    write(&mut d, 0x100, &[regs::CONFIRM, regs::READ_ARRAY]);
    assert_eq!(d.flash.bytes()[0x100..0x104], [1, 2, 3, 0xff]);
}

#[test]
fn wrong_sequences_are_told_until_cleared() {
    let mut d = device();
    write(&mut d, 0, &[regs::ERASE, 0x11]);
    let both = regs::READY | regs::ERASE_ERROR | regs::PROGRAM_ERROR;
    assert_eq!(read(&mut d, 0), both);
    write(&mut d, 0, &[regs::READ_ARRAY, regs::READ_STATUS]);
    assert_eq!(read(&mut d, 0), both);
    write(&mut d, 0, &[regs::CLEAR_STATUS, regs::READ_STATUS]);
    assert_eq!(read(&mut d, 0), 0);
    write(&mut d, 0, &[regs::LOCK, regs::CONFIRM]);
    assert_eq!(read(&mut d, 0), regs::READY);
    assert!(d.flash.bytes().iter().all(|&b| b == 0xff));
}

/// JEP137: "QRY" at 10h, command set at 13h, size at 27h, erase blocks at 2Ch.
#[test]
fn the_query_table() {
    let mut d = device();
    write(&mut d, 0x55, &[regs::READ_QUERY]);
    let q: Vec<u8> = (0..0x31).map(|at| read(&mut d, at)).collect();
    assert_eq!(&q[0x10..0x13], b"QRY");
    assert_eq!(q[0x13..0x15], [1, 0]);
    assert_eq!(q[0x27], 14, "2^14 bytes");
    assert_eq!(q[0x2c], 1, "one region");
    assert_eq!(
        q[0x2d..0x31],
        [3, 0, 0x10, 0],
        "four blocks of 16 times 256"
    );
    write(&mut d, 0, &[regs::READ_IDENTIFIER]);
    assert_eq!((read(&mut d, 0), read(&mut d, 1)), (0x89, 0x18));
}

#[test]
fn changes_are_stored() {
    let stored = Stored::default();
    let mut d =
        FlashDevice::new(vec![0xff; 0x2000], Some(Box::new(stored.clone()))).expect("blocks");
    write(&mut d, 0x1001, &[regs::PROGRAM, 0x12]);
    write(&mut d, 0x10, &[regs::ERASE, regs::CONFIRM]);
    let all = stored.0.lock().expect("no test panics with it");
    assert_eq!(all[0], (0x1001, vec![0x12]));
    assert_eq!((all[1].0, all[1].1.len()), (0, 0x1000));
}

fn stored() -> (FlashDevice, Stored) {
    let stored = Stored::default();
    let store = Box::new(stored.clone());
    let d = FlashDevice::new(vec![0xff; 1 << 20], Some(store)).expect("blocks");
    (d, stored)
}

/// Programs cells by the buffer.
fn program(d: &mut FlashDevice, cells: &[(u64, u8)]) {
    let at = cells[0].0;
    write(d, at, &[regs::BUFFER, cells.len() as u8 - 1]);
    for &(at, value) in cells {
        outb(d, 0, at, value, NOW);
    }
    write(d, at, &[regs::CONFIRM]);
}

#[test]
fn only_what_a_buffer_changed_is_stored() {
    let (mut d, stored) = stored();
    // In any order; side by side; far apart; twice; and one that clears nothing.
    program(
        &mut d,
        &[
            (0x1ffe, 1),
            (0x1801, 2),
            (0x1000, 3),
            (0x1800, 4),
            (0x1c00, 0xff),
            (0x1801, 0xfe),
        ],
    );
    assert_eq!(read(&mut d, 0), regs::READY);
    let all = stored.0.lock().expect("no test panics with it");
    let expected = [(0x1000, vec![3]), (0x1800, vec![4, 2]), (0x1ffe, vec![1])];
    assert_eq!(*all, expected);
}

/// P30 datasheet, "Buffered Programming": past an erase block's boundary is a command sequence error.
#[test]
fn a_buffer_across_blocks_is_a_sequence_error() {
    for cells in [[(0xfff, 1), (0x1000, 2)], [(0, 1), (0xf_ffff, 2)]] {
        let (mut d, stored) = stored();
        program(&mut d, &cells);
        let both = regs::READY | regs::ERASE_ERROR | regs::PROGRAM_ERROR;
        assert_eq!(read(&mut d, 0), both);
        assert!(d.flash.bytes().iter().all(|&byte| byte == 0xff));
        assert_eq!(*stored.0.lock().expect("no test panics with it"), []);
    }
}

/// A hostile guest: no operation stores more than a block, and the file is always what the chip holds.
#[test]
fn the_store_is_what_the_chip_holds() {
    let (mut d, stored) = stored();
    let mut file = vec![0xff; 1 << 20];
    let mut random = crate::testing::XorShift(11);
    for _ in 0..2000 {
        let block = random.below(256) * BLOCK_BYTES;
        let at = block + random.below(BLOCK_BYTES);
        match random.below(8) {
            0 => write(&mut d, at, &[regs::ERASE, regs::CONFIRM]),
            1 => write(&mut d, at, &[regs::PROGRAM, random.below(256) as u8]),
            _ => {
                let cells: Vec<_> = (0..1 + random.below(256))
                    .map(|_| (block + random.below(BLOCK_BYTES), random.below(256) as u8))
                    .collect();
                program(&mut d, &cells);
            }
        }
        let changes = std::mem::take(&mut *stored.0.lock().expect("no test panics with it"));
        let bytes: usize = changes.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= BLOCK_BYTES as usize, "{bytes}");
        for (at, bytes) in changes {
            file[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
    }
    assert!(file == d.flash.bytes());
}

#[test]
fn a_chip_has_whole_blocks() {
    for len in [0, 1, 0x1001] {
        assert_eq!(FlashDevice::new(vec![0; len], None).err(), Some(len));
    }
}
