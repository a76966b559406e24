//! Random accesses to the whole board, as a vCPU makes them: ports, memory-mapped devices, local APIC, time; and drivers of
//! its disks and its display, right and wrong, with queues and command lists in RAM.
//!
//! The board is the one `machine` builds, for a kernel or for firmware, so a device that is added there is fuzzed from
//! then on. What must hold: no panic; a case takes little processor time; a poll lets the vCPU go on for at least one
//! instruction; time does not go backwards; answers stay in the bytes that were asked for; functions write to no memory
//! they were not told of; a driver that keeps the rules gets its data whatever went on before its reset; a function
//! that was reset reads as a new one; what is read-only stays as it is, and no disk changes its size; there is always a
//! picture of the screen, and a mode that is set shows what is in frame memory.

mod ahci;
mod display;
mod hand;
mod virtio;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use guestmem::Gpa;
use machine::{DiskConfig, Firmware, Image, MachineConfig, Variables};
use rustix::time::{ClockId, clock_gettime};

use crate::board::{Built, build};
use crate::boot::made_up_kernel;
use crate::{Input, Target};
use hand::{Hand, MEMORY};
use virtio::Drivers;

/// Most accesses of a case.
const ACCESSES: usize = 160;
/// Ports where something is, and one after it.
const PORTS: [u16; 40] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x72, 0x73, 0x80,
    0x92, 0xb2, 0xcf8, 0xcf9, 0xcfc, 0xcfd, 0xcfe, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x402,
    0x4d0, 0x4d1, 0x510, 0x511, 0x514, 0x600, 0x604, 0x608, 0x3c0, 0x1ce,
];
/// Pages where something is: VGA, flash, PCI windows and ECAM, I/O APIC, HPET, local APIC.
const PAGES: [u64; 24] = [
    0xa_0000,
    0xb_8000,
    0xf_0000,
    0xb000_0000,
    0xb000_1000,
    0xb000_8000,
    0xb001_0000,
    0xb001_8000,
    0xb00f_8000,
    0xb00f_a000,
    0xc000_0000,
    0xc010_0000,
    0xc010_1000,
    0xc018_0000,
    0xc080_0000,
    0xd000_0000,
    0xd100_0000,
    0xe000_0000,
    0xfe00_0000,
    0xfec0_0000,
    0xfed0_0000,
    0xfee0_0000,
    0xffc0_0000,
    0xffff_f000,
];
/// x2APIC registers and what they are switched on with.
const APIC_MSRS: [u32; 4] = [0x1b, 0x6e0, 0x800, 0x830];

/// The most processor time of a case. Most take less than a thousandth of it.
const LONGEST: Duration = Duration::from_secs(2);

/// The files behind the board's disks, in a folder of their own.
struct Media {
    folder: tempfile::TempDir,
    /// What they hold at the start of a case: two disks and a disc.
    contents: [Vec<u8>; 3],
}

impl Media {
    fn new() -> Self {
        let content = |bytes: usize, seed: u8| -> Vec<u8> {
            let byte = |at: usize| (at as u8).wrapping_mul(seed) ^ (at >> 9) as u8;
            (0..bytes).map(byte).collect()
        };
        let disk = virtio::SECTORS as usize * 512;
        let disc = ahci::SECTORS as usize * 2048;
        let media = Self {
            folder: tempfile::tempdir().expect("a folder for temporary files"),
            contents: [content(disk, 3), content(disk, 5), content(disc, 7)],
        };
        for n in 0..3 {
            media.write(n);
        }
        media
    }

    fn path(&self, n: usize) -> PathBuf {
        self.folder.path().join(n.to_string())
    }

    fn write(&self, n: usize) {
        fs::write(self.path(n), &self.contents[n]).expect("room for a small file");
    }

    fn read(&self, n: usize) -> Vec<u8> {
        fs::read(self.path(n)).expect("the file is there")
    }

    /// What is read-only is as it was, and no disk has another size; puts the first back.
    fn check(&self) {
        for n in [1, 2] {
            assert!(self.read(n) == self.contents[n], "medium {n}");
        }
        let now = self.read(0);
        assert_eq!(now.len(), self.contents[0].len(), "a disk's size");
        if now != self.contents[0] {
            self.write(0);
        }
    }

    fn disks(&self) -> Vec<DiskConfig> {
        let disk = |n| DiskConfig {
            path: self.path(n),
            read_only: n == 1,
        };
        vec![disk(0), disk(1)]
    }
}

/// How functions read after a reset.
struct Fresh {
    disks: [Vec<u64>; 2],
    controller: Vec<u64>,
}

/// The target.
pub struct Devices {
    kernel: Arc<Vec<u8>>,
    code: Arc<Vec<u8>>,
    variables: Arc<Vec<u8>>,
    media: Media,
    fresh: Option<Fresh>,
    accesses: u64,
    claimed: u64,
    interrupts: u64,
    blocks: u64,
    discs: u64,
    pictures: u64,
}

impl Default for Devices {
    fn default() -> Self {
        Self::new()
    }
}

impl Devices {
    /// The target.
    ///
    /// # Panics
    /// There is no folder for the disks' files.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kernel: Arc::new(made_up_kernel()),
            code: Arc::new(vec![0xf4; 128 << 10]),
            variables: Arc::new(vec![0xff; 8 << 10]),
            media: Media::new(),
            fresh: None,
            accesses: 0,
            claimed: 0,
            interrupts: 0,
            blocks: 0,
            discs: 0,
            pictures: 0,
        }
    }

    fn board(&self, firmware: bool) -> Built {
        let firmware = firmware.then(|| Firmware {
            code: Image::Bytes(Arc::clone(&self.code)),
            variables: Some(Variables {
                template: Image::Bytes(Arc::clone(&self.variables)),
                file: None,
            }),
        });
        let has_firmware = firmware.is_some();
        let config = MachineConfig {
            memory_bytes: MEMORY,
            kernel: (!has_firmware).then(|| Image::Bytes(Arc::clone(&self.kernel))),
            clock: machine::ClockMode::Virtual,
            debug_exit: true,
            disks: self.media.disks(),
            cdrom: Some(self.media.path(2)),
            firmware,
            display: Some(Default::default()),
            keys: "a<ctrl-alt-del>B".parse().expect("keys"),
            ..MachineConfig::default()
        };
        build(&config).expect("a machine")
    }

    fn access(&mut self, hand: &mut Hand<'_>, input: &mut Input<'_>) {
        let size = input.pick(&[1u8, 1, 1, 2, 4, 4]);
        let value = match input.below(4) {
            0 => input.any::<u8>().into(),
            1 => input.number() as u32,
            _ => input.any::<u32>(),
        };
        let platform = &mut *hand.platform;
        match input.below(9) {
            0 | 1 => {
                let answer = platform.pio_read(port(input), size, 0);
                let mask = u32::MAX >> (32 - 8 * u32::from(size));
                assert!(answer & !mask == 0, "{answer:#x} in {size} bytes");
                self.claimed += u64::from(answer & mask != mask);
            }
            2 | 3 => platform.pio_write(port(input), size, value, 0),
            4 => {
                let mut data = [0xa5; 8];
                let wide = usize::from(size) * 2;
                platform.mmio_read(place(input), &mut data[..wide.min(8)], 0);
            }
            5 | 6 => {
                let data = (u64::from(value) | u64::from(value.rotate_left(7)) << 32).to_le_bytes();
                let wide = usize::from(size) * if input.once_in(4) { 2 } else { 1 };
                platform.mmio_write(place(input), &data[..wide.min(8)], 0);
            }
            7 => {
                let msr = input.pick(&APIC_MSRS) + u32::from(input.any::<u8>() & 0x3f);
                // A refusal is a #GP, which is an answer.
                let _ = match input.once_in(2) {
                    true => platform.apic_msr_write(msr, value.into(), 0),
                    false => platform.apic_msr_read(msr, 0).map(|_| ()),
                };
            }
            _ => hand.pass_time(match input.below(4) {
                0 => u64::from(input.any::<u32>()),
                _ => u64::from(input.any::<u16>()),
            }),
        }
    }

    /// Functions that were reset read as new ones, and drivers that keep the rules get their data.
    fn settle(&mut self, hand: &mut Hand<'_>, input: &mut Input<'_>, written: bool) {
        virtio::place(hand);
        ahci::place(hand);
        let fresh = self.fresh.as_ref().expect("there was a new board");
        for disk in 0..2 {
            virtio::reset(hand, disk);
            let image = virtio::image(hand, disk);
            assert_eq!(image, fresh.disks[disk], "disk {disk} after a reset");
        }
        ahci::reset(hand);
        assert_eq!(ahci::image(hand), fresh.controller, "after a reset");
        let mut drivers = Drivers::default();
        let now = match written {
            true => self.media.read(0),
            false => Vec::new(),
        };
        let first = if written {
            &now
        } else {
            &self.media.contents[0]
        };
        drivers.right(hand, input, [first, &self.media.contents[1]]);
        self.blocks += drivers.answered;
        ahci::right(hand, input, &self.media.contents[2]);
        self.discs += 1;
    }

    fn look(&mut self) {
        let mut built = self.board(false);
        let mut hand = Hand::new(&mut *built.platform, &built.ram);
        virtio::place(&mut hand);
        ahci::place(&mut hand);
        let disks = [0, 1].map(|disk| virtio::image(&mut hand, disk));
        ahci::reset(&mut hand);
        let controller = ahci::image(&mut hand);
        self.fresh = Some(Fresh { disks, controller });
    }
}

/// Processor time of this thread.
fn time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn port(input: &mut Input<'_>) -> u16 {
    match input.below(16) {
        0 => input.any(),
        1 => input
            .pick(&PORTS)
            .wrapping_add(u16::from(input.any::<u8>() & 15)),
        _ => input.pick(&PORTS),
    }
}

fn place(input: &mut Input<'_>) -> Gpa {
    let page = input.pick(&PAGES);
    let offset = match input.below(3) {
        0 => u64::from(input.any::<u16>()) & 0xff8,
        1 => u64::from(input.any::<u8>()) << 4,
        _ => u64::from(input.any::<u16>() & 0xfff).min(0xff8),
    };
    Gpa(page + offset.min(0xff8))
}

impl Target for Devices {
    fn run(&mut self, data: &[u8]) {
        if self.fresh.is_none() {
            self.look();
        }
        let started = time();
        let mut input = Input::new(data);
        let mut built = self.board(input.once_in(2));
        let mut hand = Hand::new(&mut *built.platform, &built.ram);
        virtio::place(&mut hand);
        ahci::place(&mut hand);
        display::place(&mut hand);
        let mut drivers = Drivers::default();
        // What a case is most of: registers, a disk, the disc, the display.
        let subject = input.below(4);
        let mut reached = false;
        for _ in 0..ACCESSES {
            if input.is_empty() {
                break;
            }
            self.accesses += 1;
            match subject {
                1 if !input.once_in(4) => {
                    reached = true;
                    drivers.wrong(&mut hand, &mut input);
                }
                2 if !input.once_in(4) => {
                    reached = true;
                    ahci::wrong(&mut hand, &mut input);
                }
                3 if !input.once_in(4) => display::any(&mut hand, &mut input),
                _ => self.access(&mut hand, &mut input),
            }
        }
        hand.check_guard();
        let screen = built.machine.screen.as_ref().expect("there is a display");
        display::check(&screen.picture());
        self.settle(&mut hand, &mut input, reached);
        if subject == 3 {
            display::right(&mut hand, &mut input, screen);
            self.pictures += 1;
        }
        hand.check_guard();
        self.interrupts += hand.interrupts;
        drop(built);
        self.media.check();
        let took = time() - started;
        assert!(took < LONGEST, "a case of {took:?}");
    }

    fn longest(&self) -> usize {
        2048
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("accesses", self.accesses),
            ("answered", self.claimed),
            ("interrupts", self.interrupts),
            ("blocks", self.blocks),
            ("discs", self.discs),
            ("pictures", self.pictures),
        ]
    }
}
