//! The I/O APIC as a state machine.
//!
//! A line carries assertion, not voltage: the polarity bit of an entry is kept and has no effect, since the
//! board's lines are already in the sense their device means.

use super::regs;
use crate::message::{DeliveryMode, Destination, InterruptMessage, LapicBus, Trigger};

/// The I/O APIC's registers and the levels of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoApic {
    select: u8,
    id: u8,
    entries: [u64; regs::PINS],
    /// Bit for each input that is asserted.
    levels: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// An I/O APIC after power-up: every entry masked.
    #[must_use]
    pub fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [regs::MASKED; regs::PINS],
            levels: 0,
        }
    }

    /// Back to the state after power-up; the inputs keep their levels, which are their devices' to change.
    pub fn reset(&mut self) {
        let levels = self.levels;
        *self = Self {
            levels,
            ..Self::new()
        };
    }

    /// Drives input `pin`; inputs that do not exist are ignored.
    pub fn set_line(&mut self, pin: u32, high: bool, bus: &mut dyn LapicBus) {
        let pin = pin as usize;
        if pin >= regs::PINS {
            return;
        }
        let rising = high && self.levels >> pin & 1 == 0;
        self.levels = self.levels & !(1 << pin) | u32::from(high) << pin;
        if is_level(self.entries[pin]) {
            self.evaluate(pin, bus);
        } else if rising && self.entries[pin] & regs::MASKED == 0 {
            // An edge on a masked input is neither delivered nor held (82093AA 3.2.4, interrupt mask).
            bus_deliver(self.entries[pin], bus);
        }
    }

    /// Sends a level-triggered input's message if the input is asserted and no earlier one is being served.
    fn evaluate(&mut self, pin: usize, bus: &mut dyn LapicBus) {
        let entry = self.entries[pin];
        let asserted = self.levels >> pin & 1 != 0;
        if asserted
            && is_level(entry)
            && entry & (regs::MASKED | regs::REMOTE_IRR) == 0
            && bus_deliver(entry, bus)
        {
            self.entries[pin] |= regs::REMOTE_IRR;
        }
    }

    /// An EOI for `vector`, from a local APIC's broadcast or from the EOI register.
    pub fn eoi(&mut self, vector: u8, bus: &mut dyn LapicBus) {
        for pin in 0..regs::PINS {
            let entry = self.entries[pin];
            if entry & regs::REMOTE_IRR != 0 && entry as u8 == vector {
                self.entries[pin] &= !regs::REMOTE_IRR;
                self.evaluate(pin, bus);
            }
        }
    }

    /// Tries inputs again whose level-triggered message no local APIC accepted so far.
    pub fn retry(&mut self, bus: &mut dyn LapicBus) {
        for pin in 0..regs::PINS {
            self.evaluate(pin, bus);
        }
    }

    /// The redirection entry of `pin`, for inspection.
    #[must_use]
    pub fn entry(&self, pin: usize) -> Option<u64> {
        self.entries.get(pin).copied()
    }

    fn read_register(&self) -> u32 {
        match self.select {
            regs::ID | regs::ARBITRATION => u32::from(self.id) << 24,
            regs::VERSION => regs::VERSION_VALUE,
            index => match self.selected_entry(index) {
                Some((pin, false)) => self.entries[pin] as u32,
                Some((pin, true)) => (self.entries[pin] >> 32) as u32,
                None => u32::MAX,
            },
        }
    }

    fn write_register(&mut self, value: u32, bus: &mut dyn LapicBus) {
        if self.select == regs::ID {
            self.id = (value >> 24) as u8 & 0xf;
        }
        let Some((pin, high)) = self.selected_entry(self.select) else {
            return;
        };
        let old = self.entries[pin];
        let written = if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        let mut entry = written & regs::WRITABLE;
        // Remote IRR is undefined for edge triggering; it clears there, as version 20h parts do.
        if entry & regs::LEVEL != 0 {
            entry |= old & regs::REMOTE_IRR;
        }
        self.entries[pin] = entry;
        self.evaluate(pin, bus);
    }

    /// Which entry, and whether its high half, an index selects.
    fn selected_entry(&self, index: u8) -> Option<(usize, bool)> {
        let n = usize::from(index.checked_sub(regs::REDIRECTION)?);
        (n / 2 < regs::PINS).then_some((n / 2, n & 1 != 0))
    }

    /// Reads from the register page; a register answers in its first four bytes, all else reads zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & !3 {
            regs::IOREGSEL => u32::from(self.select),
            regs::IOWIN => self.read_register(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        let first = (offset & 3) as usize;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(first + i).copied().unwrap_or(0);
        }
    }

    /// Writes to the register page. IOREGSEL and EOI take a byte or more; the window takes doublewords only.
    pub fn write(&mut self, offset: u64, data: &[u8], bus: &mut dyn LapicBus) {
        let Some(&low) = data.first() else { return };
        match offset {
            regs::IOREGSEL => self.select = low,
            regs::IOWIN => {
                if let Some(word) = data.first_chunk::<4>() {
                    self.write_register(u32::from_le_bytes(*word), bus);
                }
            }
            regs::EOI => self.eoi(low, bus),
            _ => {}
        }
    }
}

/// Whether an entry's input is a level. SMI, NMI, INIT and ExtINT are edges whatever it says, and no EOI follows them
/// (82093AA 3.2.4, delivery mode).
fn is_level(entry: u64) -> bool {
    let mode = DeliveryMode::from_bits((entry >> 8) as u32);
    let vectored = matches!(
        mode,
        Some(DeliveryMode::Fixed | DeliveryMode::LowestPriority)
    );
    vectored && entry & regs::LEVEL != 0
}

fn bus_deliver(entry: u64, bus: &mut dyn LapicBus) -> bool {
    let Some(mode) = DeliveryMode::from_bits((entry >> 8) as u32) else {
        return false;
    };
    if mode == DeliveryMode::StartUp {
        return false;
    }
    let trigger = if is_level(entry) {
        Trigger::Level
    } else {
        Trigger::Edge
    };
    bus.deliver(InterruptMessage {
        destination: Destination::from_xapic((entry >> 56) as u8, entry & regs::LOGICAL != 0),
        mode,
        vector: entry as u8,
        trigger,
    })
}
