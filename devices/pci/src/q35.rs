//! The two functions every board of the q35 kind has: the memory controller's host bridge and the ISA bridge.
//!
//! Sources: Intel 3 Series Express Chipset datasheet (82G33, 316966); ICH9 datasheet chapter 13. Both are as firmware leaves
//! them: ECAM and the power-management block are decoded where the board has them, and cannot be moved.

use std::sync::Arc;

use bus::VirtualTime;
use guestmem::Gpa;

use crate::config::{ConfigSpace, Identity};
use crate::function::{Bdf, EndpointFunction};
use crate::intx::{IntxRouter, PIRQS};

/// Host bridge: where PCIEXBAR is (82G33 datasheet 5.1.14).
const PCIEXBAR: u16 = 0x60;
/// ISA bridge: power-management base (ICH9 13.1.11).
const PMBASE: u16 = 0x40;
/// ISA bridge: ACPI control (ICH9 13.1.12).
const ACPI_CNTL: u16 = 0x44;
/// ISA bridge: routes of PIRQA to PIRQD (ICH9 13.1.14).
const PIRQ_ROUT: u16 = 0x60;
/// A route register: not routed.
const PIRQ_OFF: u8 = 1 << 7;

/// Device 0 of bus 0: the memory controller, 8086:29C0.
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// Its place.
    pub const BDF: Bdf = Bdf::new(0, 0, 0);

    /// A host bridge that says ECAM is at `ecam`, with 256 buses.
    #[must_use]
    pub fn new(ecam: Gpa) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x29c0,
            revision: 0x02,
            class: 0x06_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        // Enabled, 256 buses.
        config.define(PCIEXBAR, &(ecam.0 & !0x0fff_ffff | 1).to_le_bytes());
        Self { config }
    }
}

impl EndpointFunction for HostBridge {
    fn name(&self) -> &'static str {
        "hostbridge"
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn reset(&mut self) {
        self.config.reset();
    }
}

/// Device 31 function 0 of bus 0: the ISA (LPC) bridge, 8086:2918.
pub struct IsaBridge {
    intx: Arc<IntxRouter>,
    config: ConfigSpace,
}

impl IsaBridge {
    /// Its place.
    pub const BDF: Bdf = Bdf::new(0, 31, 0);

    /// An ISA bridge that says the power-management block is at port `pm_port`, and routes the wires of `intx`.
    #[must_use]
    pub fn new(pm_port: u16, intx: Arc<IntxRouter>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x2918,
            revision: 0x02,
            class: 0x06_01_00,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        // I/O, memory and bus master are always on (ICH9 13.1.3).
        config.define(crate::regs::COMMAND, &[0x07, 0x00]);
        config.allow(crate::regs::COMMAND, &[0x40, 0x01]);
        config.define(PMBASE, &u32::from(pm_port & 0xff80 | 1).to_le_bytes());
        // ACPI enabled, SCI on interrupt 9.
        config.define(ACPI_CNTL, &[0x80]);
        config.define(PIRQ_ROUT, &[PIRQ_OFF; PIRQS]);
        config.allow(PIRQ_ROUT, &[PIRQ_OFF | 0x0f; PIRQS]);
        Self { intx, config }
    }

    fn route(&self) {
        let mut routes = [0; PIRQS];
        self.config.read(PIRQ_ROUT, &mut routes);
        for (wire, route) in routes.into_iter().enumerate() {
            self.intx
                .set_route(wire, (route & PIRQ_OFF == 0).then_some(route & 0x0f));
        }
    }
}

impl EndpointFunction for IsaBridge {
    fn name(&self) -> &'static str {
        "isabridge"
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn reset(&mut self) {
        self.config.reset();
        self.route();
    }

    fn config_written(&mut self, _offset: u16, _len: usize, _now: VirtualTime) {
        self.route();
    }
}
