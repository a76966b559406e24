//! The two functions every board of the q35 kind has: the memory controller's host bridge and the ISA bridge.
//!
//! Sources: Intel 3 Series Express Chipset datasheet (82G33, 316966); ICH9 datasheet chapter 13. Firmware may move ECAM;
//! the power-management block is decoded where the board has it, and cannot be moved. There is no system management RAM.

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
/// Host bridge: PAM0 to PAM6, what answers between C0000h and FFFFFh (82G33 datasheet 5.1.18 to 5.1.24).
const PAM: u16 = 0x90;
/// Number of PAM registers.
pub const PAMS: usize = 7;
/// PAM: the bits software may set, read and write enable of two segments.
const PAM_WRITABLE: u8 = 0x33;
/// Host bridge: SMRAM (82G33 datasheet 5.1.26). C_BASE_SEG is always 010b; nothing can be opened.
const SMRAM: u16 = 0x9d;
const SMRAM_NONE: u8 = 0x02;
/// Subsystem by which firmware for virtual machines knows the board: Red Hat, virtual machine.
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
const SUBSYSTEM: u16 = 0x1100;
/// ISA bridge: power-management base (ICH9 13.1.11).
const PMBASE: u16 = 0x40;
/// ISA bridge: ACPI control (ICH9 13.1.12).
const ACPI_CNTL: u16 = 0x44;
/// ISA bridge: root complex base address (ICH9 13.1.36), which can be set; no register of the complex is there.
const RCBA: u16 = 0xf0;
const RCBA_WRITABLE: u32 = 0xffff_c001;
/// ISA bridge: routes of PIRQA to PIRQD (ICH9 13.1.14).
const PIRQ_ROUT: u16 = 0x60;
/// A route register: not routed.
const PIRQ_OFF: u8 = 1 << 7;

/// Takes what the memory controller is told about the area below 1 MByte.
pub trait MemoryMapSink: Send + Sync {
    /// PAM0 to PAM6 as they are now.
    fn attributes(&self, pam: [u8; PAMS]);
}

/// Device 0 of bus 0: the memory controller, 8086:29C0.
pub struct HostBridge {
    map: Option<Arc<dyn MemoryMapSink>>,
    config: ConfigSpace,
}

impl HostBridge {
    /// Its place.
    pub const BDF: Bdf = Bdf::new(0, 0, 0);

    /// A host bridge as firmware leaves it: ECAM at `ecam`, with 256 buses, and RAM below 1 MByte.
    #[must_use]
    pub fn new(ecam: Gpa) -> Self {
        Self::with(ecam.0 & !(ECAM_BYTES - 1) | PCIEXBAR_ENABLE, PAM_WRITABLE)
    }

    /// A host bridge as a reset leaves it, with `ecam` in its register, not decoded; `map` hears what answers below
    /// 1 MByte, now and whenever it changes.
    #[must_use]
    pub fn after_reset(ecam: Gpa, map: Arc<dyn MemoryMapSink>) -> Self {
        let mut bridge = Self::with(ecam.0 & !(ECAM_BYTES - 1), 0);
        bridge.map = Some(map);
        bridge.tell_map();
        bridge
    }

    fn with(pciexbar: u64, pam: u8) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x29c0,
            revision: 0x02,
            class: 0x06_00_00,
            subsystem_vendor: SUBSYSTEM_VENDOR,
            subsystem: SUBSYSTEM,
        });
        config.define(PCIEXBAR, &pciexbar.to_le_bytes());
        config.allow(PCIEXBAR, &PCIEXBAR_WRITABLE.to_le_bytes());
        config.define(PAM, &[pam; PAMS]);
        config.allow(PAM, &[PAM_WRITABLE; PAMS]);
        config.define(SMRAM, &[SMRAM_NONE]);
        Self { map: None, config }
    }

    fn tell_map(&self) {
        if let Some(map) = &self.map {
            let mut pam = [0; PAMS];
            self.config.read(PAM, &mut pam);
            map.attributes(pam);
        }
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
        self.tell_map();
    }

    fn config_written(&mut self, _offset: u16, _len: usize, _now: VirtualTime) {
        self.tell_map();
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
            subsystem_vendor: SUBSYSTEM_VENDOR,
            subsystem: SUBSYSTEM,
        });
        // The SATA function and others are further functions of the device.
        config.set_multifunction();
        // I/O, memory and bus master are always on (ICH9 13.1.3).
        config.define(crate::regs::COMMAND, &[0x07, 0x00]);
        config.allow(crate::regs::COMMAND, &[0x40, 0x01]);
        config.define(PMBASE, &u32::from(pm_port & 0xff80 | 1).to_le_bytes());
        // ACPI enabled, SCI on interrupt 9.
        config.define(ACPI_CNTL, &[0x80]);
        config.allow(RCBA, &RCBA_WRITABLE.to_le_bytes());
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
