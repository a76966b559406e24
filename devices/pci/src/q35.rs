//! The two functions every board of the q35 kind has: the memory controller's host bridge and the ISA bridge.
//!
//! Sources: Intel 3 Series Express Chipset datasheet (82G33, 316966); ICH9 datasheet chapter 13. Both are as firmware leaves
//! them. Firmware may move ECAM; the power-management block is decoded where the board has it, and cannot be moved.

use std::sync::Arc;

use bus::VirtualTime;
use guestmem::Gpa;

use crate::config::{ConfigSpace, Identity};
use crate::function::{Bdf, EndpointFunction};
use crate::host::ECAM_BYTES;
use crate::intx::{IntxRouter, PIRQS};

/// Host bridge: where PCIEXBAR is (82G33 datasheet 5.1.14).
const PCIEXBAR: u16 = 0x60;
/// PCIEXBAR: ECAM decodes.
const PCIEXBAR_ENABLE: u64 = 1;
/// PCIEXBAR: where the length is, and how many lengths there are: 256, 128, 64 MByte.
const PCIEXBAR_LENGTH_SHIFT: u64 = 1;
const PCIEXBAR_LENGTHS: u64 = 3;
/// PCIEXBAR: the bits software may set: 35:26 and 2:0. Bits 27:26 are the address only with a shorter length.
const PCIEXBAR_WRITABLE: u64 = 0xf_fc00_0007;
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

    /// A host bridge that has ECAM at `ecam`, with 256 buses.
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
        let ecam = ecam.0 & !(ECAM_BYTES - 1) | PCIEXBAR_ENABLE;
        config.define(PCIEXBAR, &ecam.to_le_bytes());
        config.allow(PCIEXBAR, &PCIEXBAR_WRITABLE.to_le_bytes());
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

    fn ecam(&self) -> Option<(Gpa, u64)> {
        let low = self.config.dword(PCIEXBAR);
        let register = u64::from(self.config.dword(PCIEXBAR + 4)) << 32 | u64::from(low);
        let length = register >> PCIEXBAR_LENGTH_SHIFT & 3;
        let enabled = register & PCIEXBAR_ENABLE != 0 && length < PCIEXBAR_LENGTHS;
        let bytes = ECAM_BYTES >> length;
        enabled.then(|| (Gpa(register & !(bytes - 1)), bytes))
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
        // The SATA function and others are further functions of the device.
        config.set_multifunction();
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
