//! Configuration mechanisms, decoding of base address registers, INTx wires, the bridge functions.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bus::LineSink;

use super::*;
use crate::config::{ConfigSpace, Identity};
use crate::intx::IntxRouter;
use crate::q35::{HostBridge, IsaBridge};

const T0: VirtualTime = VirtualTime(0);

#[derive(Default)]
struct Lines(AtomicU32);

impl Lines {
    fn high(&self) -> Vec<u32> {
        (0..32)
            .filter(|n| self.0.load(Ordering::SeqCst) >> n & 1 != 0)
            .collect()
    }
}

impl LineSink for Lines {
    fn set_line(&self, line: u32, high: bool) {
        if high {
            self.0.fetch_or(1 << line, Ordering::SeqCst);
        } else {
            self.0.fetch_and(!(1 << line), Ordering::SeqCst);
        }
    }
}

/// A function with a memory and an I/O register, which remembers what was written last and where.
struct Probe {
    config: ConfigSpace,
    last: Option<(u8, u64, Vec<u8>)>,
    due: Option<VirtualTime>,
}

impl Probe {
    fn new() -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 0x1111,
            revision: 0,
            class: 0xff_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        config.add_bar(0, BarKind::Memory32, 0x1000).expect("free");
        config.add_bar(1, BarKind::Io, 0x20).expect("free");
        config.add_bar(2, BarKind::Memory64, 0x1000).expect("free");
        Self {
            config,
            last: None,
            due: None,
        }
    }
}

impl EndpointFunction for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn reset(&mut self) {
        self.config.reset();
        self.last = None;
        self.due = None;
    }
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8], _: VirtualTime) {
        data.fill(bar << 4 | offset as u8);
    }
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8], now: VirtualTime) {
        self.last = Some((bar, offset, data.to_vec()));
        self.due = Some(now + 100);
    }
    fn advance(&mut self, _: VirtualTime) {
        self.due = None;
    }
    fn deadline(&self) -> Option<VirtualTime> {
        self.due
    }
}

const CONFIG: HostConfig = HostConfig {
    ecam: Gpa(0xb000_0000),
    io_start: 0xc000,
    io_ports: 0x4000,
    memory32_start: Gpa(0xc000_0000),
    memory32_bytes: 0x2000_0000,
    memory64_start: Gpa(0x80_0000_0000),
    memory64_bytes: 1 << 36,
};

struct Board {
    host: PciHost,
    probe: Arc<Mutex<Probe>>,
    intx: Arc<IntxRouter>,
    lines: Arc<Lines>,
}

impl Board {
    fn new() -> Self {
        let lines = Arc::new(Lines::default());
        let intx = IntxRouter::new(lines.clone());
        let probe = Arc::new(Mutex::new(Probe::new()));
        let mut host = PciHost::new(CONFIG);
        let add = |host: &mut PciHost, bdf, f: SharedFunction| host.add(bdf, f).expect("free");
        add(
            &mut host,
            HostBridge::BDF,
            Arc::new(Mutex::new(HostBridge::new(CONFIG.ecam))),
        );
        add(
            &mut host,
            IsaBridge::BDF,
            Arc::new(Mutex::new(IsaBridge::new(0x600, intx.clone()))),
        );
        add(&mut host, Bdf::new(0, 3, 0), probe.clone());
        Self {
            host,
            probe,
            intx,
            lines,
        }
    }

    fn outl(&mut self, region: u8, offset: u64, value: u32) {
        self.host
            .write(Region(region), offset, &value.to_le_bytes(), T0);
    }

    fn read(&mut self, region: u8, offset: u64, size: usize) -> u64 {
        let mut data = [0xff; 8];
        self.host
            .read(Region(region), offset, &mut data[..size], T0);
        data[size..].fill(0);
        u64::from_le_bytes(data)
    }

    /// A configuration read by mechanism #1.
    fn config(&mut self, bdf: Bdf, register: u8, size: usize) -> u64 {
        let id = u32::from(bdf.bus()) << 16
            | u32::from(bdf.device()) << 11
            | u32::from(bdf.function()) << 8;
        self.outl(REGION_ADDRESS, 0, 1 << 31 | id | u32::from(register & 0xfc));
        self.read(REGION_DATA, u64::from(register & 3), size)
    }

    fn ecam(&mut self, bdf: Bdf, register: u64, size: usize) -> u64 {
        let at = u64::from(bdf.bus()) << 20
            | u64::from(bdf.device()) << 15
            | u64::from(bdf.function()) << 12
            | register;
        self.read(REGION_ECAM, at, size)
    }

    fn write_ecam(&mut self, device: u64, register: u64, value: u32) {
        self.outl(REGION_ECAM, device << 15 | register, value);
    }
}

#[test]
fn both_mechanisms_reach_the_same_functions() {
    let mut b = Board::new();
    assert_eq!(b.config(HostBridge::BDF, 0, 4), 0x29c0_8086);
    assert_eq!(b.ecam(HostBridge::BDF, 0, 4), 0x29c0_8086);
    assert_eq!(b.config(IsaBridge::BDF, 0, 4), 0x2918_8086);
    assert_eq!(b.config(IsaBridge::BDF, 0x0a, 2), 0x0601, "ISA bridge");
    assert_eq!(b.config(HostBridge::BDF, 0x0b, 1), 0x06);
    assert_eq!(
        b.ecam(HostBridge::BDF, 0x60, 8),
        0xb000_0001,
        "PCIEXBAR: enabled, 256 buses"
    );
    assert_eq!(b.ecam(IsaBridge::BDF, 0x40, 4), 0x601, "PMBASE");
}

#[test]
fn absent_functions_read_as_ones() {
    let mut b = Board::new();
    for bdf in [
        Bdf::new(0, 1, 0),
        Bdf::new(0, 0, 1),
        Bdf::new(0, 31, 7),
        Bdf::new(255, 31, 7),
    ] {
        assert_eq!(b.config(bdf, 0, 4), 0xffff_ffff, "{bdf}");
        assert_eq!(b.ecam(bdf, 0, 4), 0xffff_ffff, "{bdf}");
    }
    b.write_ecam(1, 4, 7);
}

#[test]
fn mechanism_1_needs_the_enable_bit_and_doublewords() {
    let mut b = Board::new();
    b.outl(REGION_ADDRESS, 0, 0x8000_0000);
    assert_eq!(b.read(REGION_DATA, 0, 4), 0x29c0_8086);
    // 3.2.2.3.2: only doubleword accesses are the register's; Linux writes a byte to CFBh and asks whether it took.
    b.host.write(Region(REGION_ADDRESS), 0, &[0], T0);
    assert_eq!(b.read(REGION_ADDRESS, 0, 4), 0x8000_0000);
    assert_eq!(b.read(REGION_ADDRESS, 0, 1), 0xff);
    b.outl(REGION_ADDRESS, 0, 0);
    assert_eq!(b.read(REGION_DATA, 0, 4), 0xffff_ffff);
    assert_eq!(
        b.host.ports()[0],
        (0xcf8, 1, Region(REGION_ADDRESS)),
        "CF9h is left to the reset port"
    );
}

#[test]
fn accesses_do_not_run_into_the_next_function() {
    let mut b = Board::new();
    assert_eq!(b.ecam(HostBridge::BDF, 0xffc, 8), 0xffff_ffff_0000_0000);
}

/// All functions share the lock that is held for a turn.
#[test]
fn one_function_acts_at_a_time_the_one_due_first() {
    let mut b = Board::new();
    let late = Arc::new(Mutex::new(Probe::new()));
    let early = Arc::new(Mutex::new(Probe::new()));
    for (device, probe) in [(4, &late), (5, &early)] {
        let bdf = Bdf::new(0, device, 0);
        b.host.add(bdf, probe.clone()).expect("free");
    }
    let due = |probe: &Arc<Mutex<Probe>>| probe.lock().expect("unpoisoned").due;
    for (probe, at) in [(&b.probe, 30), (&late, 20), (&early, 10)] {
        probe.lock().expect("unpoisoned").due = Some(VirtualTime(at));
    }
    for (now, left) in [(5, (true, true)), (25, (true, false)), (25, (false, false))] {
        b.host.advance(VirtualTime(now));
        assert_eq!((due(&late).is_some(), due(&early).is_some()), left);
    }
    b.host.advance(VirtualTime(25));
    assert_eq!(b.host.deadline(), Some(VirtualTime(30)), "not due yet");
}

#[test]
fn base_address_registers_decode_where_they_point() {
    let mut b = Board::new();
    b.write_ecam(3, 0x10, 0xc010_0000);
    b.write_ecam(3, 0x14, 0xc100);
    b.write_ecam(3, 0x18, 0x0000_2000);
    b.write_ecam(3, 0x1c, 0x80);
    assert_eq!(
        b.read(REGION_MEMORY32, 0x10_0008, 4),
        0xffff_ffff,
        "not enabled"
    );
    b.write_ecam(3, 4, 3);
    assert_eq!(b.read(REGION_MEMORY32, 0x10_0008, 1), 0x08);
    assert_eq!(b.read(REGION_IO, 0x104, 1), 0x14);
    assert_eq!(b.read(REGION_MEMORY64, 0x2001, 1), 0x21);
    assert_eq!(b.read(REGION_MEMORY32, 0x10_1000, 1), 0xff, "past the end");
    b.outl(REGION_MEMORY32, 0x10_0010, 0x0403_0201);
    assert_eq!(
        b.probe.lock().expect("unpoisoned").last,
        Some((0, 0x10, vec![1, 2, 3, 4]))
    );
    assert_eq!(b.host.deadline(), Some(VirtualTime(100)));
    b.host.advance(VirtualTime(99));
    assert!(b.host.deadline().is_some());
    b.host.advance(VirtualTime(100));
    assert_eq!(b.host.deadline(), None);
    // Moved.
    b.write_ecam(3, 0x10, 0xc020_0000);
    assert_eq!(b.read(REGION_MEMORY32, 0x10_0008, 1), 0xff);
    assert_eq!(b.read(REGION_MEMORY32, 0x20_0008, 1), 0x08);
    b.host.reset();
    assert_eq!(b.read(REGION_MEMORY32, 0x20_0008, 1), 0xff);
}

#[test]
fn software_may_move_ecam() {
    // 82G33 5.1.14: bit 0 enables, bits 2:1 are the length, bits 35:28 the address of 256 MByte.
    let mut b = Board::new();
    b.write_ecam(0, 0x60, 0xd000_0001);
    assert_eq!(
        b.read(REGION_ECAM, 0, 4),
        0xffff_ffff,
        "no longer where it was"
    );
    assert_eq!(b.read(REGION_MEMORY32, 0x1000_0000, 4), 0x29c0_8086);
    assert_eq!(
        b.read(REGION_MEMORY32, 0x1000_0000 + (31 << 15), 4),
        0x2918_8086
    );
    b.outl(REGION_MEMORY32, 0x1000_0000 | 3 << 15 | 0x3c, 0x0b);
    assert_eq!(b.config(Bdf::new(0, 3, 0), 0x3c, 1), 0x0b);
    // Half the length: 128 buses.
    b.outl(REGION_MEMORY32, 0x1000_0060, 0xd000_0003);
    assert_eq!(b.read(REGION_MEMORY32, 0x1000_0000, 4), 0x29c0_8086);
    b.outl(REGION_MEMORY32, 0x1000_0060, 0xd000_0000);
    assert_eq!(b.read(REGION_MEMORY32, 0x1000_0000, 4), 0xffff_ffff, "off");
    assert_eq!(b.config(HostBridge::BDF, 0x60, 4), 0xd000_0000);
    b.host.reset();
    assert_eq!(b.ecam(HostBridge::BDF, 0, 4), 0x29c0_8086);
}

#[test]
fn a_place_can_be_taken_once() {
    let mut b = Board::new();
    let again = b
        .host
        .add(HostBridge::BDF, Arc::new(Mutex::new(Probe::new())));
    assert_eq!(
        again,
        Err(PciError::Taken {
            bdf: HostBridge::BDF,
            name: "hostbridge"
        })
    );
}

#[test]
fn interrupt_wires_are_shared_and_swizzled() {
    let b = Board::new();
    // Device 3 INTA is wire 3; device 2 INTB too.
    assert_eq!(
        (
            IntxRouter::gsi(3, 0),
            IntxRouter::gsi(2, 1),
            IntxRouter::gsi(4, 0)
        ),
        (19, 19, 16)
    );
    let (one, two) = (b.intx.line(3, 0), b.intx.line(2, 1));
    one.set(true);
    two.set(true);
    assert_eq!(b.lines.high(), [19]);
    one.set(false);
    assert_eq!(b.lines.high(), [19]);
    two.set(false);
    assert_eq!(b.lines.high(), [0; 0]);
}

#[test]
fn the_isa_bridge_routes_wires_to_isa_interrupts() {
    let mut b = Board::new();
    assert_eq!(b.ecam(IsaBridge::BDF, 0x60, 4), 0x8080_8080);
    let line = b.intx.line(3, 0);
    line.set(true);
    // PIRQD to interrupt 11, then to 10, then off; 8 and 9 cannot be had.
    for (route, expected) in [
        (11u32, vec![11, 19]),
        (10, vec![10, 19]),
        (9, vec![19]),
        (8, vec![19]),
        (0x80, vec![19]),
    ] {
        b.write_ecam(31, 0x60, route << 24 | 0x0080_8080);
        assert_eq!(b.lines.high(), expected);
    }
    b.write_ecam(31, 0x60, 0x0b0b_8080);
    assert_eq!(b.lines.high(), [11, 19]);
    line.set(false);
    assert_eq!(b.lines.high(), [0; 0]);
    line.set(true);
    b.host.reset();
    assert_eq!(b.lines.high(), [19]);
}

/// Marsaglia's xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn keeps_the_device_contract() {
    // Any access is answered; after a reset, the host reads as a new one.
    let image = |b: &mut Board| {
        let mut all: Vec<u64> = (0..0x400)
            .map(|n| b.ecam(HostBridge::BDF, 4 * n, 4))
            .collect();
        all.extend((0..0x400).map(|n| b.ecam(IsaBridge::BDF, 4 * n, 4)));
        all.extend((0..0x400).map(|n| b.ecam(Bdf::new(0, 3, 0), 4 * n, 4)));
        all.push(b.read(REGION_ADDRESS, 0, 4));
        all.push(b.read(REGION_DATA, 0, 4));
        all
    };
    for mut seed in [3, 0x9e37_79b9_7f4a_7c15] {
        let mut b = Board::new();
        for _ in 0..100_000 {
            let random = next(&mut seed);
            let region = Region((random % 8) as u8);
            let offset = match random >> 8 & 3 {
                0 => next(&mut seed),
                1 => (random >> 16 & 0x1f) << 15 | random >> 24 & 0xfff,
                _ => random >> 16 & 0xff,
            };
            let size = [1, 2, 3, 4, 4, 8][(random >> 40) as usize % 6];
            let mut data = next(&mut seed).to_le_bytes();
            let now = VirtualTime(next(&mut seed));
            if random >> 63 == 0 {
                b.host.write(region, offset, &data[..size], now);
            } else {
                b.host.read(region, offset, &mut data[..size], now);
            }
        }
        b.host.advance(VirtualTime(u64::MAX));
        b.host.reset();
        assert_eq!(image(&mut b), image(&mut Board::new()));
        assert_eq!(b.host.deadline(), None);
    }
}

#[derive(Default)]
struct Map(Mutex<Vec<[u8; crate::PAMS]>>);

impl crate::MemoryMapSink for Map {
    fn attributes(&self, pam: [u8; crate::PAMS]) {
        self.0.lock().expect("no test panics with it").push(pam);
    }
}

/// 82G33 datasheet 5.1.18: after reset reads and writes below 1 MByte go to the bus; bits 1:0 and 5:4 can be set.
#[test]
fn the_memory_map_hears_of_the_attribute_registers() {
    let map = Arc::new(Map::default());
    let mut host = PciHost::new(CONFIG);
    let bridge = HostBridge::after_reset(CONFIG.ecam, map.clone());
    host.add(HostBridge::BDF, Arc::new(Mutex::new(bridge)))
        .expect("free");
    let mut write = |register: u32, data: &[u8]| {
        let address = 1u32 << 31 | register & !3;
        host.write(Region(REGION_ADDRESS), 0, &address.to_le_bytes(), T0);
        host.write(Region(REGION_DATA), u64::from(register & 3), data, T0);
    };
    write(0x90, &[0xff]);
    write(0x95, &[0x13, 0x02]);
    let heard = |map: &Map| *map.0.lock().expect("no panic").last().expect("told");
    assert_eq!(map.0.lock().expect("no panic")[0], [0; 7]);
    assert_eq!(heard(&map), [0x33, 0, 0, 0, 0, 0x13, 0x02]);
    host.reset();
    assert_eq!(heard(&map), [0; 7]);
    // ECAM is off then.
    assert!(host.target(Region(REGION_ECAM), 0).is_none());
}

#[test]
fn ecam_may_lie_in_the_window() {
    let host = PciHost::new(HostConfig {
        memory32_start: Gpa(0x8000_0000),
        memory32_bytes: 0x7ec0_0000,
        memory64_bytes: 0,
        ..CONFIG
    });
    let ranges = host.mmio();
    assert_eq!(
        ranges,
        [(Gpa(0x8000_0000), 0x7ec0_0000, Region(REGION_MEMORY32))]
    );
}
