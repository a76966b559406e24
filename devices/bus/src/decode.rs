//! Address decoding: which device answers a port or a guest-physical address.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guestmem::Gpa;

use crate::VirtualTime;

/// Which of a device's address ranges is accessed; numbered by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region(pub u8);

/// A device on the bus.
///
/// Offsets are relative to the region's start. Data is 1 to 8 bytes for MMIO, 1, 2 or 4 for ports; a device
/// must give a defined answer for every size and offset, and never panic.
pub trait Device: Send {
    /// The field's name for the device, for logs.
    fn name(&self) -> &'static str;

    /// Back to the state after power-up.
    fn reset(&mut self);

    /// A read; `data` arrives filled with ones (what an unclaimed bus reads as).
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8], now: VirtualTime);

    /// A write.
    fn write(&mut self, region: Region, offset: u64, data: &[u8], now: VirtualTime);

    /// Does everything that is due at `now`.
    fn advance(&mut self, _now: VirtualTime) {}

    /// When the device next wants [`Device::advance`].
    fn deadline(&self) -> Option<VirtualTime> {
        None
    }
}

/// A device shared between the bus and whoever feeds it.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

/// Two devices claim the same addresses.
#[derive(Debug, thiserror::Error)]
#[error("{device} claims {start:#x}..={last:#x}, which {other} holds")]
pub struct BusError {
    device: &'static str,
    other: &'static str,
    start: u64,
    last: u64,
}

struct Range {
    start: u64,
    last: u64,
    slot: usize,
    region: Region,
}

struct Slot {
    name: &'static str,
    device: SharedDevice,
    /// Nanoseconds; `u64::MAX` for none.
    deadline: AtomicU64,
}

/// Collects devices and their ranges.
#[derive(Default)]
pub struct BusBuilder {
    slots: Vec<Slot>,
    ports: Vec<Range>,
    mmio: Vec<Range>,
}

/// The devices of a board, by address.
pub struct Bus {
    slots: Vec<Slot>,
    ports: Vec<Range>,
    mmio: Vec<Range>,
}

fn lock(device: &SharedDevice) -> MutexGuard<'_, dyn Device + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BusBuilder {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device with its port ranges and MMIO ranges, each `(start, length, region)`.
    ///
    /// # Errors
    /// [`BusError`] when a range is empty, wraps, or overlaps one already claimed.
    pub fn add(
        &mut self,
        device: SharedDevice,
        ports: &[(u16, u16, Region)],
        mmio: &[(Gpa, u64, Region)],
    ) -> Result<(), BusError> {
        let slot = self.slots.len();
        let name = lock(&device).name();
        self.slots.push(Slot {
            name,
            device,
            deadline: AtomicU64::new(u64::MAX),
        });
        for &(start, len, region) in ports {
            let r = (u64::from(start), u64::from(len), region);
            claim(&self.slots, &mut self.ports, slot, r)?;
        }
        for &(start, len, region) in mmio {
            claim(&self.slots, &mut self.mmio, slot, (start.0, len, region))?;
        }
        Ok(())
    }

    /// Finishes the address maps.
    #[must_use]
    pub fn build(mut self) -> Bus {
        self.ports.sort_by_key(|r| r.start);
        self.mmio.sort_by_key(|r| r.start);
        let bus = Bus {
            slots: self.slots,
            ports: self.ports,
            mmio: self.mmio,
        };
        for slot in &bus.slots {
            slot.reschedule(&*lock(&slot.device));
        }
        bus
    }
}

fn claim(
    slots: &[Slot],
    ranges: &mut Vec<Range>,
    slot: usize,
    (start, len, region): (u64, u64, Region),
) -> Result<(), BusError> {
    let last = start.checked_add(len.wrapping_sub(1)).filter(|_| len > 0);
    let error = |other| BusError {
        device: slots[slot].name,
        other,
        start,
        last: last.unwrap_or(u64::MAX),
    };
    let Some(last) = last else {
        return Err(error("no one (the range is empty or wraps)"));
    };
    if let Some(r) = ranges.iter().find(|r| start <= r.last && r.start <= last) {
        return Err(error(slots[r.slot].name));
    }
    ranges.push(Range {
        start,
        last,
        slot,
        region,
    });
    Ok(())
}

impl Slot {
    fn reschedule(&self, device: &dyn Device) {
        let ns = device.deadline().map_or(u64::MAX, |t| t.0);
        self.deadline.store(ns, Ordering::Release);
    }
}

fn find(ranges: &[Range], at: u64) -> Option<&Range> {
    let after = ranges.partition_point(|r| r.start <= at);
    ranges[..after].last().filter(|r| at <= r.last)
}

impl Bus {
    fn read(&self, ranges: &[Range], at: u64, data: &mut [u8], now: VirtualTime) {
        data.fill(0xff);
        if let Some(r) = find(ranges, at) {
            let slot = &self.slots[r.slot];
            let mut device = lock(&slot.device);
            device.read(r.region, at - r.start, data, now);
            slot.reschedule(&*device);
        }
    }

    fn write(&self, ranges: &[Range], at: u64, data: &[u8], now: VirtualTime) {
        if let Some(r) = find(ranges, at) {
            let slot = &self.slots[r.slot];
            let mut device = lock(&slot.device);
            device.write(r.region, at - r.start, data, now);
            slot.reschedule(&*device);
        }
    }

    /// A port read of 1, 2 or 4 bytes; all ones where no device answers.
    pub fn pio_read(&self, port: u16, data: &mut [u8], now: VirtualTime) {
        self.read(&self.ports, u64::from(port), data, now);
    }

    /// A port write; dropped where no device answers.
    pub fn pio_write(&self, port: u16, data: &[u8], now: VirtualTime) {
        self.write(&self.ports, u64::from(port), data, now);
    }

    /// A memory-mapped read; all ones where no device answers.
    pub fn mmio_read(&self, gpa: Gpa, data: &mut [u8], now: VirtualTime) {
        self.read(&self.mmio, gpa.0, data, now);
    }

    /// A memory-mapped write; dropped where no device answers.
    pub fn mmio_write(&self, gpa: Gpa, data: &[u8], now: VirtualTime) {
        self.write(&self.mmio, gpa.0, data, now);
    }

    /// The earliest time any device wants to act.
    pub fn deadline(&self) -> Option<VirtualTime> {
        let ns = self
            .slots
            .iter()
            .map(|s| s.deadline.load(Ordering::Acquire))
            .min()?;
        (ns != u64::MAX).then_some(VirtualTime(ns))
    }

    /// Lets every device act whose deadline has come.
    pub fn advance(&self, now: VirtualTime) {
        for slot in &self.slots {
            if slot.deadline.load(Ordering::Acquire) <= now.0 {
                let mut device = lock(&slot.device);
                device.advance(now);
                slot.reschedule(&*device);
            }
        }
    }

    /// Re-reads every device's deadline; for input that reached a device beside the bus.
    pub fn reschedule(&self) {
        for slot in &self.slots {
            slot.reschedule(&*lock(&slot.device));
        }
    }

    /// Resets every device.
    pub fn reset(&self) {
        for slot in &self.slots {
            let mut device = lock(&slot.device);
            device.reset();
            slot.reschedule(&*device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8, Option<VirtualTime>);
    impl Device for Echo {
        fn name(&self) -> &'static str {
            "echo"
        }
        fn reset(&mut self) {
            self.0 = 0;
        }
        fn read(&mut self, region: Region, offset: u64, data: &mut [u8], _: VirtualTime) {
            data[0] = self.0 + region.0 + offset as u8;
        }
        fn write(&mut self, _: Region, _: u64, data: &[u8], now: VirtualTime) {
            self.0 = data[0];
            self.1 = Some(now + 10);
        }
        fn advance(&mut self, _: VirtualTime) {
            self.1 = None;
        }
        fn deadline(&self) -> Option<VirtualTime> {
            self.1
        }
    }

    #[test]
    fn decodes_and_schedules() {
        let mut b = BusBuilder::new();
        let e: SharedDevice = Arc::new(Mutex::new(Echo(0, None)));
        b.add(
            e.clone(),
            &[(0x10, 4, Region(1))],
            &[(Gpa(0x1000), 16, Region(2))],
        )
        .expect("free");
        assert!(b.add(e, &[(0x13, 1, Region(0))], &[]).is_err());
        let bus = b.build();
        assert_eq!(bus.deadline(), None);
        bus.pio_write(0x12, &[7], VirtualTime(5));
        assert_eq!(bus.deadline(), Some(VirtualTime(15)));
        let mut d = [0u8; 1];
        bus.pio_read(0x13, &mut d, VirtualTime(5));
        assert_eq!(d, [7 + 1 + 3]);
        bus.mmio_read(Gpa(0x1010), &mut d, VirtualTime(5));
        assert_eq!(d, [0xff]);
        bus.advance(VirtualTime(14));
        assert!(bus.deadline().is_some());
        bus.advance(VirtualTime(15));
        assert_eq!(bus.deadline(), None);
    }
}
