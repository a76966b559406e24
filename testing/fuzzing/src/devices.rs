//! Random accesses to the whole board, as a vCPU makes them: ports, memory-mapped devices, local APIC, time.
//!
//! The board is the one `machine` builds, with a disk and a CD-ROM that a driver has started; so a device that
//! is added there is fuzzed from then on. Memory where their structures are is written too. What must hold: no
//! panic; a poll lets the vCPU go on for at least one instruction; time does not go backwards; answers stay in the
//! bytes that were asked for.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use guestmem::{Gpa, GuestRam};
use machine::{DiskConfig, Image, MachineConfig};
use vcpu::Platform;

use crate::board::{Built, build};
use crate::boot::made_up_kernel;
use crate::{Input, Target};

/// Most accesses of a case.
const ACCESSES: usize = 160;
/// Ports where something is, and one after it.
const PORTS: [u16; 40] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x72, 0x73, 0x80,
    0x92, 0xb2, 0xcf8, 0xcf9, 0xcfc, 0xcfd, 0xcfe, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x402,
    0x4d0, 0x4d1, 0x510, 0x511, 0x514, 0x600, 0x604, 0x608, 0x3c0, 0x3d4,
];
/// Pages where something is: VGA, flash, PCI windows and ECAM, I/O APIC, HPET, local APIC.
const PAGES: [u64; 18] = [
    DISK,
    DISK + 0x1000,
    DISK + 0x8000,
    SATA,
    0xa_0000,
    0xb_8000,
    0xf_0000,
    0xb000_0000,
    0xb000_1000,
    0xb00f_8000,
    0xc000_0000,
    0xe000_0000,
    0xfe00_0000,
    0xfec0_0000,
    0xfed0_0000,
    0xfee0_0000,
    0xffc0_0000,
    0xffff_f000,
];
/// Where the PCI functions' registers are put: the disk's structures and MSI-X, the SATA controller's.
const DISK: u64 = 0xd800_0000;
const SATA: u64 = 0xd900_0000;
/// Where their structures are in RAM: rings of a queue; list, frames and tables of a port.
const STRUCTURES: u64 = 0x1_0000;
const STRUCTURE_BYTES: u64 = 0x8000;
/// Bytes of the disk and of the disc.
const IMAGE_BYTES: usize = 64 << 10;
/// x2APIC registers and what they are switched on with.
const APIC_MSRS: [u32; 4] = [0x1b, 0x6e0, 0x800, 0x830];

/// The target.
pub struct Devices {
    kernel: Arc<Vec<u8>>,
    image: PathBuf,
    accesses: u64,
    claimed: u64,
    interrupts: u64,
}

impl Default for Devices {
    fn default() -> Self {
        Self::new()
    }
}

impl Devices {
    /// The target.
    #[must_use]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("nestling-fuzzing-{}-{number}", std::process::id());
        let image = std::env::temp_dir().join(name);
        std::fs::write(&image, vec![0; IMAGE_BYTES]).expect("room for temporary files");
        Self {
            kernel: Arc::new(made_up_kernel()),
            image,
            accesses: 0,
            claimed: 0,
            interrupts: 0,
        }
    }

    fn board(&self) -> Built {
        // Both only read it, so that each case starts with the same.
        let disk = DiskConfig {
            path: self.image.clone(),
            read_only: true,
        };
        let config = MachineConfig {
            memory_bytes: 32 << 20,
            kernel: Some(Image::Bytes(Arc::clone(&self.kernel))),
            clock: machine::ClockMode::Virtual,
            debug_exit: true,
            disks: vec![disk],
            cdrom: Some(self.image.clone()),
            ..MachineConfig::default()
        };
        let mut built = build(&config).expect("a machine");
        start_functions(&mut *built.platform);
        built
    }

    fn access(
        &mut self,
        platform: &mut dyn Platform,
        ram: &GuestRam,
        input: &mut Input<'_>,
        retired: &mut u64,
    ) {
        let size = input.pick(&[1u8, 1, 1, 2, 4, 4]);
        let value = match input.below(4) {
            0 => input.any::<u8>().into(),
            1 => input.number() as u32,
            _ => input.any::<u32>(),
        };
        match input.below(11) {
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
            8 | 9 => {
                let at = STRUCTURES + u64::from(input.any::<u16>()) % STRUCTURE_BYTES;
                // Half of them addresses of where something is.
                let value = match input.below(4) {
                    0 => u64::from(value),
                    1 => place(input).0,
                    _ => STRUCTURES + u64::from(input.any::<u16>()),
                };
                ram.write(Gpa(at), &value.to_le_bytes()).expect("RAM");
            }
            _ => self.pass_time(platform, input, retired),
        }
    }

    fn pass_time(&mut self, platform: &mut dyn Platform, input: &mut Input<'_>, retired: &mut u64) {
        let before = platform.tsc(*retired);
        *retired += match input.below(4) {
            0 => u64::from(input.any::<u32>()),
            _ => u64::from(input.any::<u16>()),
        };
        assert!(platform.poll(*retired) >= 1, "the vCPU may go on");
        assert!(platform.tsc(*retired) >= before, "time goes on");
        if platform.interrupt_pending() {
            self.interrupts += u64::from(platform.acknowledge_interrupt().is_some());
        }
        platform.take_nmi();
    }
}

/// What a driver does before the first request: base addresses, the disk's queue, the SATA controller's first port.
fn start_functions(platform: &mut dyn Platform) {
    let mut config = |device: u32, function: u32, register: u32, value: u64| {
        let address = 1 << 31 | device << 11 | function << 8 | register;
        platform.pio_write(0xcf8, 4, address, 0);
        platform.pio_write(0xcfc, 4, value as u32, 0);
    };
    for (device, function, bars) in [
        (2, 0, [(1, DISK + 0x8000), (4, DISK)]),
        (31, 2, [(5, SATA), (5, SATA)]),
    ] {
        for (bar, at) in bars {
            config(device, function, 0x10 + 4 * bar, at);
        }
        config(device, function, 4, 7);
    }
    let rings = [0u64, 0x1000, 0x2000].map(|at| STRUCTURES + at);
    platform.mmio_write(Gpa(DISK + 0x14), &[3], 0);
    for half in 0..2u32 {
        let mut features = [0; 4];
        for select in [0x00, 0x08] {
            platform.mmio_write(Gpa(DISK + select), &half.to_le_bytes(), 0);
        }
        platform.mmio_read(Gpa(DISK + 0x04), &mut features, 0);
        platform.mmio_write(Gpa(DISK + 0x0c), &features, 0);
    }
    platform.mmio_write(Gpa(DISK + 0x14), &[0x0b], 0);
    for (offset, at) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
        platform.mmio_write(Gpa(DISK + offset), &at.to_le_bytes(), 0);
    }
    platform.mmio_write(Gpa(DISK + 0x1c), &1u16.to_le_bytes(), 0);
    platform.mmio_write(Gpa(DISK + 0x14), &[0x0f], 0);
    for (offset, value) in [
        (0x00, STRUCTURES + 0x4000),
        (0x08, STRUCTURES + 0x5000),
        (0x18, 0x10),
        (0x30, 0xffff_ffff),
        (0x18, 0x11),
    ] {
        let value = (value as u32).to_le_bytes();
        platform.mmio_write(Gpa(SATA + 0x100 + offset), &value, 0);
    }
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

impl Drop for Devices {
    fn drop(&mut self) {
        // A file that is left behind does no harm.
        let _ = std::fs::remove_file(&self.image);
    }
}

impl Target for Devices {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let Built {
            machine: _machine,
            mut platform,
            ram,
            ..
        } = self.board();
        let mut retired = 0;
        for _ in 0..ACCESSES {
            if input.is_empty() {
                break;
            }
            self.accesses += 1;
            self.access(&mut *platform, &ram, &mut input, &mut retired);
        }
    }

    fn longest(&self) -> usize {
        2048
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("accesses", self.accesses),
            ("answered", self.claimed),
            ("interrupts", self.interrupts),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The functions are where they are looked for, and work.
    #[test]
    fn the_functions_are_started() {
        let devices = Devices::new();
        let Built {
            machine: _machine,
            mut platform,
            ram,
            ..
        } = devices.board();
        let mut status = [0; 1];
        platform.mmio_read(Gpa(DISK + 0x14), &mut status, 0);
        assert_eq!(status, [0x0f], "DRIVER_OK, no reset is needed");
        let mut command = [0; 4];
        platform.mmio_read(Gpa(SATA + 0x118), &mut command, 0);
        assert_eq!(u32::from_le_bytes(command) & 0xc011, 0xc011, "running");
        // A read of the first sector.
        let descriptor = |n: u64, at: u64, len: u32, flags: u16| {
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((n as u16 + 1).to_le_bytes());
            ram.write(Gpa(STRUCTURES + 16 * n), &bytes).expect("RAM");
        };
        descriptor(0, STRUCTURES + 0x6000, 16, 1);
        descriptor(1, STRUCTURES + 0x7000, 513, 2);
        let at = STRUCTURES + 0x7000 + 512;
        ram.write(Gpa(at), &[0xee]).expect("RAM");
        ram.write(Gpa(STRUCTURES + 0x1000), &[0, 0, 1, 0, 0, 0])
            .expect("RAM");
        platform.mmio_write(Gpa(DISK + 0x1000), &[0, 0], 0);
        let mut done = [0xff];
        ram.read(Gpa(at), &mut done).expect("RAM");
        assert_eq!(done, [0]);
    }
}
