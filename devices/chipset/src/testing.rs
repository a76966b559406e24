//! What the devices' tests share: fakes for the board, and the contract every device keeps.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bus::{Device, IrqLine, LineSink, Region, VirtualTime};

use crate::SystemControl;
use crate::serial::SerialOutput;

/// Lines that remember their levels and count rising edges.
#[derive(Default)]
pub struct Lines {
    levels: AtomicU64,
    edges: [AtomicUsize; 32],
}

impl Lines {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub fn line(self: &Arc<Self>, n: u32) -> IrqLine {
        IrqLine::new(self.clone(), n)
    }

    pub fn level(&self, n: u32) -> bool {
        self.levels.load(Ordering::SeqCst) >> n & 1 != 0
    }

    pub fn edges(&self, n: u32) -> usize {
        self.edges[n as usize].load(Ordering::SeqCst)
    }
}

impl LineSink for Lines {
    fn set_line(&self, line: u32, high: bool) {
        let bit = 1 << line;
        let before = if high {
            self.levels.fetch_or(bit, Ordering::SeqCst)
        } else {
            self.levels.fetch_and(!bit, Ordering::SeqCst)
        };
        if high && before & bit == 0 {
            self.edges[line as usize].fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Notes what the guest asked for.
#[derive(Default)]
pub struct Control {
    pub requests: Mutex<Vec<String>>,
}

impl Control {
    pub fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().expect("no test panics with it"))
    }

    fn note(&self, text: String) {
        self.requests
            .lock()
            .expect("no test panics with it")
            .push(text);
    }
}

impl SystemControl for Control {
    fn power_off(&self) {
        self.note("power off".into());
    }
    fn reset(&self) {
        self.note("reset".into());
    }
    fn debug_exit(&self, code: u8) {
        self.note(format!("exit {code}"));
    }
}

/// Keeps the last bytes of output.
#[derive(Clone, Default)]
pub struct Output(pub Arc<Mutex<Vec<u8>>>);

impl SerialOutput for Output {
    fn write(&mut self, bytes: &[u8]) {
        let mut all = self.0.lock().expect("no test panics with it");
        if all.len() < 1 << 16 {
            all.extend_from_slice(bytes);
        }
    }
}

/// A small generator of test inputs (Marsaglia's xorshift64).
pub struct XorShift(pub u64);

impl XorShift {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// All that reading every byte of every region shows.
fn image(device: &mut dyn Device, regions: &[(u8, u64)], now: VirtualTime) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(region, len) in regions {
        for offset in 0..len {
            let mut byte = [0xff];
            device.read(Region(region), offset, &mut byte, now);
            bytes.push(byte[0]);
        }
    }
    bytes
}

/// The contract of a device: it takes any size, offset, value and time without panic; `advance` makes its deadline
/// later or leaves none that is due for ever; and after a reset it reads as a new one.
pub fn keeps_contract<D: Device>(make: impl Fn() -> D, regions: &[(u8, u64)]) {
    let rounds = 20_000;
    for seed in [1, 0x9e37_79b9_7f4a_7c15, 0xdead_beef] {
        let mut random = XorShift(seed);
        let mut device = make();
        let mut now = VirtualTime(0);
        for round in 0..rounds {
            access(&mut device, regions, &mut random, now);
            if round % 7 == 0 {
                device.advance(now);
                let due = device.deadline();
                assert!(
                    due.is_none_or(|due| due > now),
                    "due for ever: {due:?} at {now:?}"
                );
            }
            let step = match random.below(64) {
                0 => random.below(u64::MAX / rounds / 4),
                1..8 => random.below(1_000_000_000),
                _ => random.below(10_000),
            };
            now = now + step;
            if round % 1_000 == 0 {
                device.reset();
            }
        }
        for _ in 0..3 {
            access(&mut device, regions, &mut random, VirtualTime(u64::MAX));
            device.advance(VirtualTime(u64::MAX));
        }
        device.reset();
        let mut fresh = make();
        // A second look in the same state: reading may have effects, and they are the same ones.
        for _ in 0..2 {
            assert_eq!(device.deadline(), fresh.deadline());
            assert_eq!(
                image(&mut device, regions, now),
                image(&mut fresh, regions, now),
                "seed {seed:#x}"
            );
        }
    }
}

fn access(device: &mut dyn Device, regions: &[(u8, u64)], random: &mut XorShift, now: VirtualTime) {
    let (region, len) = regions[random.below(regions.len() as u64) as usize];
    let offset = match random.below(16) {
        0 => random.next(),
        1 => len + random.below(16),
        _ => random.below(len),
    };
    let size = [1, 1, 1, 2, 4, 4, 8, 3][random.below(8) as usize];
    let mut data = random.next().to_le_bytes();
    if random.below(2) == 0 {
        device.write(Region(region), offset, &data[..size], now);
    } else {
        data.fill(0xff);
        device.read(Region(region), offset, &mut data[..size], now);
    }
}

/// Reads one byte.
pub fn inb(device: &mut dyn Device, region: u8, offset: u64, now: VirtualTime) -> u8 {
    let mut byte = [0xff];
    device.read(Region(region), offset, &mut byte, now);
    byte[0]
}

/// Writes one byte.
pub fn outb(device: &mut dyn Device, region: u8, offset: u64, value: u8, now: VirtualTime) {
    device.write(Region(region), offset, &[value], now);
}
