//! ACPI tables for the configured board (ACPI specification 6.5).
//!
//! For a kernel that is booted without firmware all tables lie in the BIOS area from E0000h on, which the memory map
//! reports as reserved: the RSDP first, where a search finds it (5.2.5.1), the FACS after it on its 64-byte boundary,
//! then the rest. Firmware gets the same tables as `loader` makes them.

mod dsdt;
mod fixed;
pub mod loader;
mod osc;

use std::ops::Range;

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, facs::FACS, mcfg::MCFG, rsdp::Rsdp, xsdt::XSDT};
use guestmem::Gpa;

use crate::memory::{
    BIOS_START, ECAM_SIZE_BYTES, HIGH_MEMORY_START, HPET_BASE, IOAPIC_BASE, LAPIC_BASE,
    PCI_MMIO_LAST,
};

const OEM_ID: [u8; 6] = *b"NESTLG";
const OEM_TABLE_ID: [u8; 8] = *b"NESTLING";
const OEM_REVISION: u32 = 1;

/// The system control interrupt's GSI (and ISA interrupt).
pub const SCI_GSI: u32 = chipset::acpi_pm::regs::SCI_IRQ;
/// The I/O APIC's id: what its register holds after reset.
const IOAPIC_ID: u8 = 0;

/// What the tables depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Number of vCPUs; their APIC ids are 0 to `vcpus - 1`.
    pub vcpus: u32,
    /// Whether the board has an HPET.
    pub hpet: bool,
    /// Where ECAM for 256 buses is, below 4 GByte.
    pub ecam: Gpa,
    /// First address below 4 GByte that PCI functions may have, besides ECAM's.
    pub pci_low: Gpa,
    /// The PCI memory window above 4 GByte; may be empty.
    pub pci_high: Range<u64>,
}

impl AcpiConfig {
    /// The PCI memory windows below 4 GByte, first and last address: what ECAM leaves.
    fn pci_low_windows(&self) -> impl Iterator<Item = (u32, u32)> {
        let ecam_end = self.ecam.0 + ECAM_SIZE_BYTES;
        let below = (self.pci_low.0, self.ecam.0);
        let above = (self.pci_low.0.max(ecam_end), PCI_MMIO_LAST + 1);
        [below, above]
            .into_iter()
            .filter(|(start, end)| start < end)
            .map(|(start, end)| (start as u32, (end - 1) as u32))
    }
}

/// A table and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its address.
    pub gpa: Gpa,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Where the RSDP lies.
#[must_use]
pub const fn rsdp_address() -> Gpa {
    Gpa(BIOS_START)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Lays tables out one after the other.
struct Placer {
    next: u64,
    tables: Vec<Table>,
}

impl Placer {
    fn place(&mut self, alignment: u64, bytes: Vec<u8>) -> Gpa {
        let gpa = Gpa(self.next.next_multiple_of(alignment));
        self.next = gpa.0 + bytes.len() as u64;
        assert!(
            self.next <= HIGH_MEMORY_START,
            "the tables of 255 vCPUs fit into the BIOS area"
        );
        self.tables.push(Table { gpa, bytes });
        gpa
    }
}

/// Tables at their places.
struct LaidOut {
    tables: Vec<Table>,
    /// Pointers in them: address and bytes.
    pointers: Vec<(u64, u8)>,
    xsdt: Gpa,
}

/// All tables but the RSDP, from `start` on.
fn lay_out(config: &AcpiConfig, start: u64) -> LaidOut {
    /// Pointers of the FADT (table 5.9): FIRMWARE_CTRL, DSDT, X_DSDT.
    const FADT_POINTERS: [(u64, u8); 3] = [(36, 4), (40, 4), (140, 8)];
    const XSDT_ENTRIES: u64 = 36;
    let mut placer = Placer {
        next: start,
        tables: Vec::new(),
    };
    let facs = placer.place(64, bytes_of(&FACS::new()));
    let dsdt = placer.place(16, dsdt::build(config));
    let fadt = placer.place(16, fixed::fadt(facs, dsdt));
    let mut listed = vec![
        fadt,
        placer.place(16, madt(config.vcpus)),
        placer.place(16, mcfg(config.ecam)),
    ];
    if config.hpet {
        listed.push(placer.place(16, hpet()));
    }
    let mut table = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for gpa in &listed {
        table.add_entry(gpa.0);
    }
    let xsdt = placer.place(16, bytes_of(&table));
    let in_fadt = FADT_POINTERS.map(|(at, size)| (fadt.0 + at, size));
    let in_xsdt = (0..listed.len() as u64).map(|i| (xsdt.0 + XSDT_ENTRIES + 8 * i, 8));
    LaidOut {
        tables: placer.tables,
        pointers: in_fadt.into_iter().chain(in_xsdt).collect(),
        xsdt,
    }
}

/// Builds all tables for a kernel without firmware.
#[must_use]
pub fn build(config: &AcpiConfig) -> Vec<Table> {
    let mut laid = lay_out(config, rsdp_address().0 + Rsdp::len() as u64);
    laid.tables.push(Table {
        gpa: rsdp_address(),
        bytes: bytes_of(&Rsdp::new(OEM_ID, laid.xsdt.0)),
    });
    laid.tables
}

fn new_table(signature: [u8; 4], revision: u8) -> Sdt {
    const HEADER_LENGTH: u32 = 36;
    Sdt::new(
        signature,
        HEADER_LENGTH,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    )
}

/// Memory-mapped configuration space (PCI Firmware 3.3, 4.1.2).
fn mcfg(ecam: Gpa) -> Vec<u8> {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(ecam.0, 0, 0, 255);
    bytes_of(&table)
}

/// Multiple APIC description table (5.2.12).
fn madt(vcpus: u32) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xff;
    /// MPS INTI flags (table 5.25): active high, level-triggered.
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    let mut table = new_table(*b"APIC", 5);
    table.append_slice(&(LAPIC_BASE.0 as u32).to_le_bytes());
    table.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus {
        // Processor local APIC structure (5.2.12.2).
        let id = u8::try_from(id).expect("APIC ids of the board have eight bits");
        table.append_slice(&[0, 8, id, id]);
        table.append_slice(&ENABLED.to_le_bytes());
    }
    // I/O APIC structure (5.2.12.3).
    table.append_slice(&[1, 12, IOAPIC_ID, 0]);
    table.append_slice(&(IOAPIC_BASE.0 as u32).to_le_bytes());
    table.append_slice(&0u32.to_le_bytes());
    // Interrupt source overrides (5.2.12.5): the PIT is at pin 2, the SCI is level-triggered.
    for (irq, gsi, flags) in [(0u8, 2u32, 0u16), (9, SCI_GSI, ACTIVE_HIGH_LEVEL)] {
        table.append_slice(&[2, 10, 0, irq]);
        table.append_slice(&gsi.to_le_bytes());
        table.append_slice(&flags.to_le_bytes());
    }
    // Local APIC NMI structure (5.2.12.7): LINT1 of every processor.
    table.append_slice(&[4, 6, ALL_PROCESSORS, 0, 0, 1]);
    table.as_slice().to_vec()
}

/// HPET description table (IA-PC HPET specification 1.0a, 3.2.4).
fn hpet() -> Vec<u8> {
    /// Hardware id: the low half of the device's capability register.
    const EVENT_TIMER_BLOCK_ID: u32 = chipset::hpet::regs::CAPABILITIES_VALUE as u32;
    /// Least count between two periodic interrupts without a loss.
    const MIN_TICK: u16 = 0x80;
    let mut table = new_table(*b"HPET", 1);
    table.append_slice(&EVENT_TIMER_BLOCK_ID.to_le_bytes());
    // Generic address: memory, 64 bits, offset 0, access size not stated.
    table.append_slice(&[0, 64, 0, 0]);
    table.append_slice(&HPET_BASE.0.to_le_bytes());
    table.append_slice(&[0]);
    table.append_slice(&MIN_TICK.to_le_bytes());
    table.append_slice(&[0]);
    table.as_slice().to_vec()
}

#[cfg(test)]
mod tests;
