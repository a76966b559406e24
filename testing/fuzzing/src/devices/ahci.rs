//! A driver of the SATA controller with its CD-ROM drive, right and wrong (AHCI 1.3.1: 3.3, 4.2; MMC-6: READ (10)).

use super::hand::{AREA, Hand, address, length};
use crate::Input;
use crate::board::bytes;

/// The PCI function.
pub const FUNCTION: u32 = 31 << 3 | 2;
/// Its registers, by the driver's choice.
pub const PLACE: u64 = 0xc080_0000;
/// Sectors of the disc.
pub const SECTORS: u32 = 40;
const SECTOR: usize = 2048;

const GHC: u64 = 4;
const PORT: u64 = 0x100;
const LIST: u64 = 0x00;
const FRAMES: u64 = 0x08;
const STATUS: u64 = 0x10;
const COMMAND: u64 = 0x18;
const ISSUE: u64 = 0x38;
/// Start, and receive frames.
const RUN: u64 = 1 | 1 << 4;
/// Registers that are compared after a reset: generic control and six ports.
const REGISTERS: u64 = PORT + 6 * 0x80;

const HEADERS: u64 = AREA.start;
const RECEIVED: u64 = AREA.start + 0x400;
const TABLES: u64 = AREA.start + 0x1000;
const DATA: u64 = AREA.start + 0x4000;

/// Packet commands: test unit ready, request sense, inquiry, mode sense, start and stop, capacity, read, table of
/// contents, configuration, event, disc information.
const PACKETS: [u8; 16] = [
    0x00, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0xa8, 0xbe,
];
/// Commands: device reset, execute diagnostics, packet, identify packet device, identify device, set features, read.
const COMMANDS: [u8; 8] = [0x08, 0x90, 0xa0, 0xa0, 0xa1, 0xec, 0xef, 0x25];

/// Places its registers.
pub fn place(hand: &mut Hand<'_>) {
    hand.place(FUNCTION, 5, PLACE);
    hand.enable(FUNCTION);
}

/// Resets the controller (10.4.3), with the addresses it keeps as after power-up.
pub fn reset(hand: &mut Hand<'_>) {
    for port in 0..6 {
        for register in [LIST, LIST + 4, FRAMES, FRAMES + 4] {
            hand.write(PLACE + PORT + 0x80 * port + register, 0, 4);
        }
    }
    hand.write(PLACE + GHC, 1, 4);
}

/// What a driver reads of it.
pub fn image(hand: &mut Hand<'_>) -> Vec<u64> {
    let registers = (0..REGISTERS).step_by(4);
    registers.map(|at| hand.read(PLACE + at, 4)).collect()
}

fn port(hand: &mut Hand<'_>, register: u64, value: u64) {
    hand.write(PLACE + PORT + register, value, 4);
}

fn start(hand: &mut Hand<'_>, list: u64, frames: u64) {
    port(hand, COMMAND, 0);
    for (register, address) in [(LIST, list), (FRAMES, frames)] {
        port(hand, register, address & 0xffff_ffff);
        port(hand, register + 4, address >> 32);
    }
    port(hand, COMMAND, RUN);
}

fn frame(command: u8, features: u8) -> Vec<u8> {
    let mut frame = vec![0; 0x40];
    (frame[0], frame[1], frame[2], frame[3]) = (0x27, 0x80, command, features);
    frame
}

fn region(at: u64, count: u32) -> Vec<u8> {
    let mut region = at.to_le_bytes().to_vec();
    region.extend([0; 4]);
    region.extend(count.to_le_bytes());
    region
}

fn put_header(hand: &Hand<'_>, slot: u64, flags: u16, regions: u16, table: u64) {
    let mut header = flags.to_le_bytes().to_vec();
    header.extend(regions.to_le_bytes());
    header.extend([0; 4]);
    header.extend(table.to_le_bytes());
    hand.put(HEADERS + 32 * slot, &header);
}

/// A driver without scruples.
pub fn wrong(hand: &mut Hand<'_>, input: &mut Input<'_>) {
    match input.below(8) {
        0 => {
            let list = [HEADERS, HEADERS, address(input)][input.below(3)];
            let frames = [RECEIVED, RECEIVED, address(input)][input.below(3)];
            start(hand, list, frames);
        }
        1 => {
            let register = 4 * u64::from(input.any::<u8>() & 15);
            let value = match input.below(3) {
                0 => input.any::<u32>().into(),
                1 => u32::MAX.into(),
                _ => input.pick(&[0, 1, RUN, 0x301, 0x300]),
            };
            if input.once_in(4) {
                // Generic control: interrupts on, reset, or anything.
                let value = if input.once_in(2) { 2 } else { value };
                hand.write(PLACE + 4 * input.below(11) as u64, value, 4);
            } else {
                port(hand, register, value);
            }
        }
        2 => hand.put(
            AREA.start + u64::from(input.any::<u16>() & 0x1fff),
            input.bytes(32),
        ),
        3 => port(hand, ISSUE, input.any::<u32>().into()),
        _ => {
            let slot = u64::from(input.any::<u8>() & 3);
            let table = TABLES + 0x400 * slot;
            let mut bytes = frame(input.pick(&COMMANDS), input.any::<u8>() & 3);
            let mut packet = [0; 16];
            packet[0] = input.pick(&PACKETS);
            for byte in &mut packet[1..12] {
                *byte = input.pick(&[0, 0, 0, 1, 2, 40, 0xff]);
            }
            bytes.extend(packet);
            bytes.resize(0x80, 0);
            let regions = input.below(6) as u16;
            for _ in 0..regions {
                bytes.extend(region(address(input), length(input)));
            }
            if input.once_in(8) {
                let at = input.below(bytes.len());
                bytes[at] = input.any();
            }
            hand.put(table, &bytes);
            let regions = if input.once_in(8) {
                input.any()
            } else {
                regions
            };
            let flags = match input.once_in(8) {
                true => input.any(),
                false => 5 | 1 << 5,
            };
            let table = if input.once_in(16) {
                address(input)
            } else {
                table
            };
            put_header(hand, slot, flags, regions, table);
            port(hand, ISSUE, 1 << slot);
        }
    }
}

/// A driver that keeps the rules reads what is on the disc; what is beyond its end is refused. The drive reports a reset
/// once before that.
pub fn right(hand: &mut Hand<'_>, input: &mut Input<'_>, disc: &[u8]) {
    hand.write(PLACE + GHC, 1, 4);
    start(hand, HEADERS, RECEIVED);
    let sector = u32::from(input.any::<u8>() & 0x3f);
    let sectors = 1 + input.below(4) as u32;
    let fits = sector + sectors <= SECTORS;
    let size = sectors as usize * SECTOR;
    let cut = 2 * (1 + input.below(size / 2 - 1)) as u32;
    let pattern = vec![0x91; size + 16];
    for attempt in 0..3 {
        hand.put(DATA, &pattern);
        let mut bytes_ = frame(0xa0, 1);
        let mut packet = [0; 16];
        packet[0] = 0x28;
        packet[2..6].copy_from_slice(&sector.to_be_bytes());
        packet[7..9].copy_from_slice(&(sectors as u16).to_be_bytes());
        bytes_.extend(packet);
        bytes_.resize(0x80, 0);
        bytes_.extend(region(DATA, cut - 1));
        bytes_.extend(region(DATA + u64::from(cut), size as u32 - cut - 1));
        hand.put(TABLES, &bytes_);
        put_header(hand, 0, 5 | 1 << 5, 2, TABLES);
        port(hand, STATUS, 0xffff_ffff);
        port(hand, ISSUE, 1);
        const ERROR: u64 = 1 << 30;
        let ended = hand.wait(|hand| {
            let issued = hand.read(PLACE + PORT + ISSUE, 4) & 1;
            issued == 0 || hand.read(PLACE + PORT + STATUS, 4) & ERROR != 0
        });
        assert!(ended, "READ (10) ends");
        let found = bytes(hand.ram, DATA, size + 16);
        assert!(found[size..] == pattern[size..], "behind the data");
        if hand.read(PLACE + PORT + STATUS, 4) & ERROR == 0 {
            assert!(fits, "{sectors} sectors at {sector}");
            let from = sector as usize * SECTOR;
            assert!(found[..size] == disc[from..from + size], "the disc's data");
            return;
        }
        assert!(found == pattern, "data of a refused command");
        assert!(!fits || attempt < 2, "{sectors} sectors at {sector}");
        // The list stopped.
        port(hand, COMMAND, 0);
        port(hand, COMMAND, RUN);
    }
}
