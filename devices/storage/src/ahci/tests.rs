//! Facts from AHCI 1.3.1.

mod hostile;
mod turns;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bus::{LineSink, Msi, MsiSink};
use guestmem::Gpa;
use pci::{INTA, IntxRouter, regs};

use super::*;
use crate::testing::{Disc, next};

const T0: VirtualTime = VirtualTime(0);
const LIST: u64 = 0x1000;
const FRAMES: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const DATA: u64 = 0x10000;
const PORT: u64 = 0x100;

#[derive(Default)]
struct Board {
    sent: AtomicU32,
    high: AtomicBool,
}

impl MsiSink for Board {
    fn signal(&self, _: Msi) {
        self.sent.fetch_add(1, Ordering::SeqCst);
    }
}

impl LineSink for Board {
    fn set_line(&self, _: u32, high: bool) {
        self.high.store(high, Ordering::SeqCst);
    }
}

struct Rig {
    function: AhciFunction,
    ram: Arc<GuestRam>,
    board: Arc<Board>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Box::new(Disc {
            sectors: 100,
            fails: false,
        }))
    }

    fn with(disc: Box<dyn bus::BlockBackend>) -> Self {
        let board = Arc::new(Board::default());
        let router = IntxRouter::new(board.clone());
        let wiring = FunctionWiring::new(&router, board.clone(), AhciFunction::BDF, INTA);
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), 1 << 20)]).expect("memory"));
        let drive = CdRom::new(disc);
        let function = AhciFunction::new(Some(drive), ram.clone(), wiring).expect("fits");
        Self {
            function,
            ram,
            board,
        }
    }

    /// A controller whose first port is running (10.1, 10.3.1).
    fn running() -> Self {
        let mut rig = Self::new();
        rig.run();
        rig
    }

    fn run(&mut self) {
        self.configure(regs::COMMAND, &[6, 0]);
        self.set(PORT, LIST as u32);
        self.set(PORT + 8, FRAMES as u32);
        self.set(PORT + 0x18, 0x10);
        self.set(PORT + 0x30, u32::MAX);
        self.set(PORT + 0x18, 0x11);
    }

    fn configure(&mut self, offset: u16, data: &[u8]) {
        self.function.config_mut().write(offset, data);
        self.function.config_written(offset, data.len(), T0);
    }

    fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.function.bar_read(BAR, offset, &mut data, T0);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.function
            .bar_write(BAR, offset, &value.to_le_bytes(), T0);
    }

    fn put(&self, at: u64, data: &[u8]) {
        self.ram.write(Gpa(at), data).expect("RAM");
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read(Gpa(at), &mut data).expect("RAM");
        data
    }

    /// Puts a command into a slot: frame, packet, regions `(address, bytes)`.
    fn prepare(&self, slot: u64, frame: &[u8], packet: &[u8], regions: &[(u64, u32)]) {
        let table = TABLE + 0x100 * slot;
        let flags = if packet.is_empty() { 5 } else { 5 | 1 << 5 };
        let mut header = (flags | (regions.len() as u32) << 16)
            .to_le_bytes()
            .to_vec();
        header.extend([0; 4]);
        header.extend(table.to_le_bytes());
        self.put(LIST + 32 * slot, &header);
        self.put(table, &[0; 0x100]);
        self.put(table, frame);
        self.put(table + 0x40, packet);
        for (n, &(at, bytes)) in (0u64..).zip(regions) {
            self.put(table + 0x80 + 16 * n, &at.to_le_bytes());
            self.put(table + 0x8c + 16 * n, &(bytes - 1).to_le_bytes());
        }
    }

    fn packet(&mut self, packet: &[u8], regions: &[(u64, u32)]) {
        self.prepare(0, &[0x27, 0x80, 0xa0, 1], packet, regions);
        self.set(PORT + 0x38, 1);
    }

    /// Takes the unit attention away.
    fn settle(&mut self) {
        self.packet(&[3, 0, 0, 0, 18], &[(DATA, 18)]);
        self.set(PORT + 0x10, u32::MAX);
        self.put(DATA, &[0; 18]);
    }
}

#[test]
fn it_is_an_ahci_controller() {
    let mut rig = Rig::new();
    let config = rig.function.config();
    assert_eq!(config.dword(0), 0x2922_8086);
    assert_eq!(config.dword(8) >> 8, 0x01_0601, "2.1.5: SATA, AHCI 1.0");
    let cap = rig.get(0);
    assert_eq!((cap & 0x1f, cap >> 8 & 0x1f, cap >> 30 & 1), (5, 31, 0));
    assert_eq!(rig.get(0xc), 0x3f, "ports implemented");
    assert_eq!(rig.get(4), 1 << 31, "3.1.2: AE is fixed with SAM");
    rig.set(4, 2);
    assert_eq!(rig.get(4), 1 << 31 | 2);
}

#[test]
fn a_port_says_what_is_on_it() {
    let mut rig = Rig::new();
    assert_eq!(
        rig.get(PORT + 0x28) & 0xf,
        3,
        "3.3.10: present, communicating"
    );
    assert_eq!(
        rig.get(PORT + 0x24),
        0xeb14_0101,
        "signature of a packet device"
    );
    assert_eq!(rig.get(PORT + 0x20) & 0x89, 0, "neither busy nor failed");
    let empty = PORT + 0x80;
    assert_eq!(rig.get(empty + 0x28), 0);
    assert_eq!(rig.get(empty + 0x20), 0x7f);
    assert_eq!(rig.get(empty + 0x24), 0xffff_ffff);
    assert_eq!(rig.get(PORT + 6 * 0x80 + 0x28), 0, "no seventh port");
}

#[test]
fn the_signature_frame_comes_when_frames_are_received() {
    let mut rig = Rig::new();
    rig.configure(regs::COMMAND, &[6, 0]);
    rig.set(PORT + 8, FRAMES as u32);
    assert_eq!(rig.read(FRAMES + 0x40, 1), [0]);
    rig.set(PORT + 0x18, 0x10);
    let frame = rig.read(FRAMES + 0x40, 13);
    assert_eq!(
        (frame[0], &frame[4..7], frame[12]),
        (0x34, &[1, 0x14, 0xeb][..], 1)
    );
    assert_eq!(rig.get(PORT + 0x18) & 0x4000, 0x4000, "FR");
}

#[test]
fn identify_comes_by_pio_setup() {
    let mut rig = Rig::running();
    rig.prepare(0, &[0x27, 0x80, 0xa1], &[], &[(DATA, 512)]);
    rig.set(PORT + 0x38, 1);
    assert_eq!(rig.get(PORT + 0x38), 0);
    assert_eq!(rig.get(PORT + 0x10), 2, "PSS");
    assert_eq!(rig.read(DATA, 2), [0xc0, 0x85]);
    assert_eq!(
        rig.read(LIST + 4, 4),
        512u32.to_le_bytes(),
        "bytes transferred"
    );
    let frame = rig.read(FRAMES + 0x20, 20);
    assert_eq!((frame[0], frame[15]), (0x5f, 0x50));
    assert_eq!(rig.get(PORT + 0x20), 0x50);
}

#[test]
fn a_packet_reads_into_all_regions() {
    let mut rig = Rig::running();
    rig.settle();
    let regions = [(DATA, 1000), (DATA + 0x4000, 3000), (DATA + 0x8000, 96)];
    rig.packet(&[0x28, 0, 0, 0, 0, 5, 0, 0, 2], &regions);
    assert_eq!(rig.get(PORT + 0x10), 1, "DHRS");
    assert_eq!(rig.get(PORT + 0x38), 0);
    assert_eq!(rig.read(DATA, 1000), [5; 1000]);
    assert_eq!(rig.read(DATA + 0x4000, 1048), [5; 1048]);
    assert_eq!(rig.read(DATA + 0x4000 + 1048, 1952), [6; 1952]);
    assert_eq!(rig.read(DATA + 0x8000, 97), [vec![6; 96], vec![0]].concat());
    assert_eq!(rig.read(LIST + 4, 4), 4096u32.to_le_bytes());
    assert_eq!(rig.read(FRAMES + 0x40, 4), [0x34, 0x40, 0x50, 0]);
    rig.packet(&[0x28, 0, 0, 0, 0, 5, 0, 0, 1], &[(DATA, 512)]);
    assert_eq!(
        rig.get(PORT + 0x10),
        1 | 1 << 24,
        "OFS: more data than room"
    );
}

#[test]
fn an_error_stops_the_list_until_it_is_restarted() {
    // 6.2.2.1: TFES, the command stays issued, software clears ST.
    let mut rig = Rig::running();
    rig.settle();
    rig.packet(&[0], &[]);
    rig.prepare(5, &[0x27, 0x80, 0xa0, 1], &[0xff], &[]);
    rig.set(PORT + 0x38, 1 << 5);
    assert_eq!(
        rig.get(PORT + 0x18) >> 8 & 0x1f,
        5,
        "3.3.7: CCS is the failing slot"
    );
    rig.set(PORT + 0x18, 0x10);
    rig.set(PORT + 0x18, 0x11);
    rig.set(PORT + 0x10, u32::MAX);
    rig.packet(&[0xff], &[]);
    assert_eq!(rig.get(PORT + 0x10), 1 << 30 | 1);
    assert_eq!(
        rig.get(PORT + 0x20),
        0x5451,
        "illegal request, abort; error"
    );
    assert_eq!(rig.get(PORT + 0x38), 1);
    rig.prepare(1, &[0x27, 0x80, 0xa0, 1], &[0], &[]);
    rig.set(PORT + 0x38, 2);
    assert_eq!(rig.get(PORT + 0x38), 3, "nothing goes on");
    rig.set(PORT + 0x18, 0x10);
    assert_eq!(rig.get(PORT + 0x38), 0, "3.3.14: cleared with ST");
    rig.set(PORT + 0x18, 0x11);
    rig.packet(&[0], &[]);
    assert_eq!((rig.get(PORT + 0x38), rig.get(PORT + 0x20)), (0, 0x50));
}

#[test]
fn many_slots_go_in_order() {
    let mut rig = Rig::running();
    rig.settle();
    for slot in 0..32u64 {
        let sector = 2 * slot as u8;
        let read = [0x28, 0, 0, 0, 0, sector, 0, 0, 1];
        rig.prepare(
            slot,
            &[0x27, 0x80, 0xa0, 1],
            &read,
            &[(DATA + 0x800 * slot, 2048)],
        );
    }
    rig.set(PORT + 0x38, u32::MAX);
    assert_eq!(rig.get(PORT + 0x38), 0);
    for slot in 0..32 {
        assert_eq!(rig.read(DATA + 0x800 * slot, 1), [2 * slot as u8]);
    }
}

#[test]
fn interrupts_by_pin_and_by_message() {
    let mut rig = Rig::running();
    rig.settle();
    rig.packet(&[0], &[]);
    assert!(!rig.board.high.load(Ordering::SeqCst));
    rig.set(PORT + 0x14, 1);
    assert_eq!(rig.get(8), 1, "IS of the port");
    assert!(!rig.board.high.load(Ordering::SeqCst), "GHC.IE is off");
    rig.set(4, 2);
    assert!(rig.board.high.load(Ordering::SeqCst));
    // The port's bit comes back as long as the port asks (3.1.4).
    rig.set(8, 1);
    assert_eq!(rig.get(8), 1);
    rig.set(PORT + 0x10, 1);
    assert!(rig.board.high.load(Ordering::SeqCst));
    rig.set(8, 1);
    assert!(!rig.board.high.load(Ordering::SeqCst));
    let msi = rig.function.config().word(regs::CAPABILITIES) & 0xff;
    assert_eq!(rig.function.config().word(msi) & 0xff, 5);
    rig.configure(msi + 2, &[1, 0]);
    rig.packet(&[0], &[]);
    assert!(!rig.board.high.load(Ordering::SeqCst));
    assert_eq!(rig.board.sent.load(Ordering::SeqCst), 1);
}

#[test]
fn resets_of_port_device_and_controller() {
    let mut rig = Rig::running();
    rig.settle();
    // 10.4.2: DET 1, then 0.
    rig.set(PORT + 0x18, 0x10);
    rig.set(PORT + 0x2c, 0x301);
    assert_eq!(
        (rig.get(PORT + 0x28), rig.get(PORT + 0x24)),
        (0, 0xffff_ffff)
    );
    rig.set(PORT + 0x2c, 0x300);
    assert_eq!(rig.get(PORT + 0x28), 0x113);
    assert_eq!(rig.get(PORT + 0x24), 0xeb14_0101);
    assert_eq!(rig.get(PORT + 0x30), 1 << 26, "exchanged");
    assert_eq!(rig.get(PORT + 0x10) & 0x40, 0x40, "PCS");
    rig.set(PORT + 0x30, 1 << 26);
    assert_eq!(rig.get(PORT + 0x10) & 0x40, 0);
    // 10.4.1: a software reset, by two frames to the control register.
    rig.set(PORT + 0x18, 0x11);
    rig.settle();
    rig.put(FRAMES + 0x40, &[0; 20]);
    for control in [4u8, 0] {
        let mut frame = [0; 20];
        (frame[0], frame[15]) = (0x27, control);
        rig.prepare(0, &frame, &[], &[]);
        rig.set(PORT + 0x38, 1);
        assert_eq!(rig.get(PORT + 0x38), 0);
    }
    assert_eq!(rig.read(FRAMES + 0x40, 7)[4..], [1, 0x14, 0xeb]);
    rig.packet(&[0], &[]);
    assert_eq!(rig.get(PORT + 0x20) & 0xff00, 0x6400, "unit attention");
    // 10.4.3: the controller; list and frame addresses stay.
    rig.set(4, 1 << 31 | 3);
    assert_eq!(rig.get(4), 1 << 31);
    assert_eq!(
        (rig.get(PORT), rig.get(PORT + 8)),
        (LIST as u32, FRAMES as u32)
    );
    assert_eq!(rig.get(PORT + 0x18), 6);
}

#[test]
fn memory_that_is_not_there_is_a_fatal_error() {
    for regions in [vec![(0x20_0000, 2048)], vec![(u64::MAX - 1, 2048)]] {
        let mut rig = Rig::running();
        rig.settle();
        rig.packet(&[0x28, 0, 0, 0, 0, 5, 0, 0, 1], &regions);
        assert_eq!(rig.get(PORT + 0x10), 1 << 29, "HBFS");
        assert_eq!(rig.get(PORT + 0x38), 1);
    }
    let mut rig = Rig::running();
    rig.set(PORT + 0x18, 0x10);
    rig.set(PORT + 4, 0xffff_ffff);
    rig.set(PORT + 0x18, 0x11);
    rig.set(PORT + 0x38, 1);
    assert_eq!(rig.get(PORT + 0x10), 1 << 29);
}

#[test]
fn without_bus_mastering_commands_wait() {
    let mut rig = Rig::running();
    rig.configure(regs::COMMAND, &[2, 0]);
    rig.packet(&[0], &[]);
    assert_eq!(rig.get(PORT + 0x38), 1);
    rig.configure(regs::COMMAND, &[6, 0]);
    assert_eq!(rig.get(PORT + 0x10) & 1, 1);
}

#[test]
fn keeps_the_device_contract() {
    let image = |rig: &mut Rig| {
        let mut all: Vec<u32> = (0..0x40)
            .map(|n| rig.function.config().dword(4 * n))
            .collect();
        all.extend((0..0x400).map(|n| rig.get(4 * n)));
        all
    };
    for mut seed in [3, 0x9e37_79b9_7f4a_7c15] {
        let mut rig = Rig::running();
        for n in 0..50_000u64 {
            let random = next(&mut seed);
            let offset = match random & 3 {
                0 => next(&mut seed),
                1 => random >> 8 & 0xfff,
                _ => PORT + (random >> 8 & 0x3c),
            };
            let size = [1, 2, 3, 4, 4, 8][(random >> 40) as usize % 6];
            let mut data = next(&mut seed).to_le_bytes();
            let now = VirtualTime(n);
            let bar = if random >> 50 & 7 == 0 { 0 } else { BAR };
            match random >> 60 {
                0..5 => rig.function.bar_write(bar, offset, &data[..size], now),
                5..8 => rig.function.bar_read(bar, offset, &mut data[..size], now),
                8 => rig.configure(offset as u16 & 0xff, &data[..size]),
                9 => rig.put(0x1000 + (offset & 0x3fff), &data),
                10 => rig.function.advance(now),
                11 => rig.packet(&data, &[(DATA, 4096)]),
                12 => rig.set(PORT + 0x38, random as u32),
                13 => rig.set(PORT + 0x18, random as u32 & 0x1f),
                14 => rig.set(PORT + 0x18, 0x11),
                _ => {
                    rig.configure(regs::COMMAND, &[6, 0]);
                    rig.set(PORT, LIST as u32);
                    rig.set(PORT + 4, 0);
                }
            }
        }
        rig.function.reset();
        assert_eq!(image(&mut rig), image(&mut Rig::new()));
        assert_eq!(rig.function.deadline(), None);
    }
}
