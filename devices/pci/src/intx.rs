//! The four legacy interrupt wires and where they lead (ICH9 datasheet 5.8.6 and 13.1.14).
//!
//! Pin p (INTA is 0) of device d is on wire (d + p) mod 4. Wire n leads to I/O APIC input 16 + n, and to the ISA interrupt
//! that the ISA bridge routes it to. The wires are shared: each is high while any function drives it.

use std::sync::{Arc, Mutex, PoisonError};

use bus::{IrqLine, LineSink};

/// Wires.
pub const PIRQS: usize = 4;
/// I/O APIC input of the first wire.
const FIRST_GSI: u32 = 16;
/// ISA interrupts a wire can be routed to (ICH9 datasheet 13.1.14): 3 to 7, 10 to 12, 14, 15. The chip allows 9 too,
/// which is left out because the board's SCI drives it.
const ROUTABLE: u16 = 0xdcf8;

#[derive(Default)]
struct Wires {
    /// For each wire, one bit for each device and pin that drives it.
    driven: [u128; PIRQS],
    route: [Option<u8>; PIRQS],
}

impl Wires {
    fn level(&self, wire: usize) -> bool {
        self.driven[wire] != 0
    }

    /// The level of an ISA interrupt to which several wires may be routed.
    fn isa_level(&self, irq: u8) -> bool {
        (0..PIRQS).any(|wire| self.route[wire] == Some(irq) && self.level(wire))
    }
}

/// Joins the interrupt pins of all devices of bus 0.
pub struct IntxRouter {
    sink: Arc<dyn LineSink>,
    wires: Mutex<Wires>,
}

/// The bus's side of the router: line number is device * 4 + pin.
struct Pins(Arc<IntxRouter>);

impl LineSink for Pins {
    fn set_line(&self, line: u32, high: bool) {
        self.0.drive(line, high);
    }
}

impl IntxRouter {
    /// A router that drives inputs of `sink`, with no wire routed to an ISA interrupt.
    #[must_use]
    pub fn new(sink: Arc<dyn LineSink>) -> Arc<Self> {
        Arc::new(Self {
            sink,
            wires: Mutex::default(),
        })
    }

    /// The I/O APIC input of pin `pin` (INTA is 0) of device `device`, for the ACPI _PRT.
    #[must_use]
    pub fn gsi(device: u8, pin: u8) -> u32 {
        FIRST_GSI + (u32::from(device) + u32::from(pin)) % PIRQS as u32
    }

    /// The line for pin `pin` (INTA is 0) of device `device` (0 to 31) of bus 0.
    #[must_use]
    pub fn line(self: &Arc<Self>, device: u8, pin: u8) -> IrqLine {
        let line = u32::from(device & 31) * 4 + u32::from(pin & 3);
        IrqLine::new(Arc::new(Pins(self.clone())), line)
    }

    fn drive(&self, line: u32, high: bool) {
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        let wire = ((line >> 2) + (line & 3)) as usize % PIRQS;
        let bit = 1u128 << (line & 127);
        let before = wires.driven[wire];
        wires.driven[wire] = if high { before | bit } else { before & !bit };
        if (before != 0) == wires.level(wire) {
            return;
        }
        self.sink
            .set_line(FIRST_GSI + wire as u32, wires.level(wire));
        if let Some(irq) = wires.route[wire] {
            self.sink.set_line(u32::from(irq), wires.isa_level(irq));
        }
    }

    /// Routes a wire to an ISA interrupt, or to none; an interrupt that wires cannot have counts as none.
    pub fn set_route(&self, wire: usize, irq: Option<u8>) {
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        let irq = irq.filter(|&irq| irq < 16 && ROUTABLE >> irq & 1 != 0);
        let Some(&old) = wires.route.get(wire) else {
            return;
        };
        if old == irq {
            return;
        }
        wires.route[wire] = irq;
        for changed in [old, irq].into_iter().flatten() {
            self.sink
                .set_line(u32::from(changed), wires.isa_level(changed));
        }
    }
}
