//! What the firmware configuration device offers: the items SeaBIOS, OVMF and Linux read.

use std::sync::{Arc, Mutex, PoisonError};

use chipset::fw_cfg::{FwCfgError, Items, regs};
use guestmem::Gpa;
use pci::{EndpointFunction, HostBridge};

use super::rom;
use crate::acpi::{self, AcpiConfig};
use crate::boot::real_mode::{self, RealModeKernel};
use crate::memory::{ECAM_BASE, MemoryMap, RangeKind};
use crate::ports;
use crate::smbios::{self, SmbiosConfig};

/// What the items depend on.
pub(crate) struct ItemsConfig {
    pub(crate) memory: MemoryMap,
    /// The tables, but for where ECAM is.
    pub(crate) acpi: AcpiConfig,
    pub(crate) smbios: SmbiosConfig,
    /// Knows where ECAM is.
    pub(crate) bridge: Arc<Mutex<HostBridge>>,
    /// A kernel to be started.
    pub(crate) kernel: Option<RealModeKernel>,
}

/// Item: whether the PIT is at pin 2 of the I/O APIC, a byte.
const IRQ0_OVERRIDE: u16 = 0x8002;
/// Bytes by which the tables may grow when ECAM moves.
const TABLES_ROUND: usize = 4096;
/// By how much the tables may grow when firmware moves the configuration space: one more window in `_CRS`, and
/// alignment.
const MOVED_ECAM_BYTES: usize = 256;

/// All items.
///
/// # Errors
/// [`FwCfgError`] when the board's own files do not fit the directory.
pub(crate) fn items(config: ItemsConfig) -> Result<Items, FwCfgError> {
    let mut items = Items::new();
    let vcpus = u16::try_from(config.acpi.vcpus).unwrap_or(u16::MAX);
    let ram: u64 = config.memory.ram_regions().iter().map(|r| r.1).sum();
    items.put(regs::UUID, vec![0; 16]);
    items.put(regs::RAM_SIZE, ram.to_le_bytes().to_vec());
    items.put(regs::NO_GRAPHIC, 1u16.to_le_bytes().to_vec());
    items.put(regs::NB_CPUS, vcpus.to_le_bytes().to_vec());
    items.put(regs::MAX_CPUS, vcpus.to_le_bytes().to_vec());
    items.put(regs::BOOT_MENU, 0u16.to_le_bytes().to_vec());
    items.put(IRQ0_OVERRIDE, vec![1]);
    items.add_file("etc/e820", e820(&config.memory))?;
    items.add_file("etc/system-states", system_states())?;
    // SeaBIOS gives up instead of resetting after a minute.
    items.add_file("etc/boot-fail-wait", u32::MAX.to_le_bytes().to_vec())?;
    // SeaBIOS shows on the first serial port what it shows on a display.
    items.add_file("etc/sercon-port", ports::COM1.to_le_bytes().to_vec())?;
    let smbios = smbios::build(&config.smbios);
    items.add_file(smbios::ANCHOR_FILE, smbios.anchor)?;
    items.add_file(smbios::TABLES_FILE, smbios.tables)?;
    add_acpi(&mut items, &config)?;
    if let Some(kernel) = config.kernel {
        add_kernel(&mut items, kernel)?;
    }
    Ok(items)
}

/// The kernel with what comes with it, and, for a BIOS, the option ROM that starts it as the first device to boot from.
fn add_kernel(items: &mut Items, kernel: RealModeKernel) -> Result<(), FwCfgError> {
    let mut part = |[address, size, data]: [u16; 3], at: Gpa, bytes: Vec<u8>| {
        // All of it is below 4 GByte.
        items.put(address, (at.0 as u32).to_le_bytes().to_vec());
        items.put(size, (bytes.len() as u32).to_le_bytes().to_vec());
        items.put(data, bytes);
    };
    part(regs::SETUP, real_mode::BASE, kernel.setup);
    part(regs::KERNEL, real_mode::KERNEL, kernel.code);
    part(regs::CMDLINE, real_mode::CMDLINE, kernel.cmdline);
    if let Some((bytes, at)) = kernel.initrd {
        part(regs::INITRD, at, bytes);
    }
    items.add_file(rom::FILE, rom::build())?;
    items.add_file("bootorder", format!("{}\0", rom::BOOT_DEVICE).into_bytes())
}

/// The ACPI files. Firmware reads them after it has set up PCI, and they say where ECAM is then.
fn add_acpi(items: &mut Items, config: &ItemsConfig) -> Result<(), FwCfgError> {
    use acpi::loader::{self, LoaderFiles};
    let bridge = Arc::clone(&config.bridge);
    let tables = config.acpi.clone();
    let build = Arc::new(move || {
        let bridge = bridge.lock().unwrap_or_else(PoisonError::into_inner);
        let ecam = bridge.ecam().map_or(ECAM_BASE, |(base, _)| base);
        drop(bridge);
        // The table and the windows know 32 bits.
        let ecam = if ecam.0 >> 32 == 0 { ecam } else { ECAM_BASE };
        loader::build(&AcpiConfig {
            ecam,
            ..tables.clone()
        })
    });
    let now = build();
    let mut add = |name: &str, len: usize, part: fn(LoaderFiles) -> Vec<u8>| {
        let build = Arc::clone(&build);
        items.add_made_file(name, len, Box::new(move || part(build())))
    };
    let tables = (now.tables.len() + MOVED_ECAM_BYTES).next_multiple_of(TABLES_ROUND);
    add(loader::TABLES_FILE, tables, |files| files.tables)?;
    add(loader::RSDP_FILE, now.rsdp.len(), |files| files.rsdp)?;
    add(loader::LOADER_FILE, now.loader.len(), |files| files.loader)
}

/// RAM as firmware is told: address, length, kind, without padding.
fn e820(memory: &MemoryMap) -> Vec<u8> {
    let entry = |(base, bytes): (Gpa, u64)| {
        let mut entry = base.0.to_le_bytes().to_vec();
        entry.extend(bytes.to_le_bytes());
        entry.extend((RangeKind::Ram as u32).to_le_bytes());
        entry
    };
    memory.ram_regions().into_iter().flat_map(entry).collect()
}

/// A byte for each of S0 to S5: bit 7 says that the state is there, the others are its SLP_TYP.
fn system_states() -> Vec<u8> {
    const THERE: u8 = 0x80;
    vec![THERE, 0, 0, 1, 2, THERE | ports::SLEEP_TYPE_S5]
}

#[cfg(test)]
mod tests;
