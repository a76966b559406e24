//! The functions on PCI bus 0 and where they are.
//!
//! ```text
//! 00:00.0   host bridge
//! 00:01.0   display
//! 00:02.0   the first disk; one device each, up to 00:19.0
//! 00:1f.0   ISA bridge
//! 00:1f.2   SATA controller, if there is a CD-ROM
//! ```

use std::sync::{Arc, Mutex};

use bus::{LineSink, MsiSink};
use chipset::acpi_pm;
use display::{DisplayFunction, Screen};
use guestmem::{Gpa, GuestRam};
use pci::{
    Bdf, FunctionWiring, HostBridge, HostConfig, INTA, IntxRouter, IsaBridge, PciHost,
    SharedFunction,
};
use storage::{AhciFunction, CdRom};
use virtio::VirtioFunction;
use virtio::block::Block;

use crate::disks::{Disks, MAX_DISKS};
use crate::firmware::FirmwareBoard;
use crate::memory::{
    ECAM_BASE, MemoryMap, PCI_IO_PORTS, PCI_IO_START, PCI_MMIO_LAST, PCI_MMIO_START,
};

const DISPLAY: Bdf = Bdf::new(0, 1, 0);
/// Device number of the first disk.
const FIRST_DISK: u8 = 2;

/// The PCI host while functions are being added to it.
pub(crate) struct Functions {
    host: PciHost,
    intx: Arc<IntxRouter>,
    messages: Arc<dyn MsiSink>,
}

impl Functions {
    /// The host with the two bridges of the chipset. Pins end in `lines`, messages in `messages`; the memory window
    /// above 4 GiB goes from the end of RAM to what `physical_bits` of address reach. With firmware, it divides the window
    /// below 4 GiB, and finds the host bridge as a reset leaves it.
    pub(crate) fn new(
        lines: &Arc<dyn LineSink>,
        messages: Arc<dyn MsiSink>,
        memory: &MemoryMap,
        physical_bits: u8,
        firmware: Option<&FirmwareBoard>,
    ) -> Self {
        let low = firmware.map_or(PCI_MMIO_START, |f| f.pci_low.0);
        let bridge: SharedFunction = match firmware {
            Some(firmware) => Arc::clone(&firmware.bridge) as _,
            None => Arc::new(Mutex::new(HostBridge::new(ECAM_BASE))),
        };
        let high = memory.pci_high_window(physical_bits);
        let host = PciHost::new(HostConfig {
            ecam: ECAM_BASE,
            io_start: PCI_IO_START,
            io_ports: PCI_IO_PORTS,
            memory32_start: Gpa(low),
            memory32_bytes: PCI_MMIO_LAST - low + 1,
            memory64_start: Gpa(high.start),
            memory64_bytes: high.end - high.start,
        });
        let intx = IntxRouter::new(Arc::clone(lines));
        let isa = IsaBridge::new(acpi_pm::regs::PORT, Arc::clone(&intx));
        let mut functions = Self {
            host,
            intx,
            messages,
        };
        functions.add(HostBridge::BDF, bridge);
        functions.add(IsaBridge::BDF, Arc::new(Mutex::new(isa)));
        functions
    }

    /// Adds the display.
    pub(crate) fn add_display(&mut self, screen: &Screen, rom: &[u8]) {
        let function = DisplayFunction::new(screen.clone(), rom.to_vec())
            .unwrap_or_else(|e| unreachable!("the display's registers: {e}"));
        self.add(DISPLAY, Arc::new(Mutex::new(function)));
    }

    /// Adds the disks, and with a CD-ROM the SATA controller.
    pub(crate) fn add_disks(&mut self, disks: Disks, ram: &Arc<GuestRam>) {
        for (n, disk) in (0u8..MAX_DISKS as u8).zip(disks.disks) {
            let bdf = Bdf::new(0, FIRST_DISK + n, 0);
            let block = Block::new(Box::new(disk), &format!("disk{n}"));
            let function = VirtioFunction::new(Box::new(block), Arc::clone(ram), self.wiring(bdf))
                .unwrap_or_else(|e| unreachable!("a virtio disk's registers: {e}"));
            self.add(bdf, Arc::new(Mutex::new(function)));
        }
        if let Some(disc) = disks.cdrom {
            let bdf = AhciFunction::BDF;
            let drive = CdRom::new(Box::new(disc));
            let function = AhciFunction::new(Some(drive), Arc::clone(ram), self.wiring(bdf))
                .unwrap_or_else(|e| unreachable!("the SATA controller's registers: {e}"));
            self.add(bdf, Arc::new(Mutex::new(function)));
        }
    }

    /// What the function at `bdf` interrupts through, with pin INTA.
    pub(crate) fn wiring(&self, bdf: Bdf) -> FunctionWiring {
        FunctionWiring::new(&self.intx, Arc::clone(&self.messages), bdf, INTA)
    }

    /// Adds a function at a place that is the board's own and cannot clash.
    pub(crate) fn add(&mut self, bdf: Bdf, function: SharedFunction) {
        self.host
            .add(bdf, function)
            .unwrap_or_else(|e| unreachable!("the board's PCI functions: {e}"));
    }

    /// The host, to go on the bus.
    pub(crate) fn finish(self) -> PciHost {
        self.host
    }
}
