//! Firmware: its files, where they lie in the address space, and what the machine tells it.
//!
//! ```text
//! C_0000 .. 10_0000        switched by PAM; after reset its last 128 KByte show the ROM's end
//! .. FFxx_xxxx             flash for variables, below the ROM
//! FFxx_xxxx .. 1_0000_0000 ROM; the processor starts 16 bytes before its end (SDM Vol 3 10.1.4)
//! ```

mod items;
mod rom;
mod store;

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use chipset::flash::{BLOCK_BYTES, FlashDevice, FlashStore};
use chipset::fw_cfg::{FwCfgDevice, FwCfgError};
use guestmem::{Gpa, GuestRam, LegacySwitches, MemoryLayout};
use pci::{HostBridge, MemoryMapSink, PAMS};
use vcpu::{Attention, Vm};

use crate::acpi::AcpiConfig;
use crate::boot::real_mode::RealModeKernel;
use crate::config::Image;
use crate::memory::{ECAM_BASE, FOUR_GIB, MemoryMap};
use crate::signal::VcpuLine;
use crate::smbios::SmbiosConfig;

use items::{ItemsConfig, items};
use store::FileStore;

/// What a machine is started with. It starts the kernel, if there is one, else what it finds on disks.
#[derive(Clone, Debug)]
pub struct Firmware {
    /// The code: a file that ends at 4 GByte and holds the reset vector.
    pub code: Image,
    /// Its flash for variables, if it keeps some.
    pub variables: Option<Variables>,
}

/// The flash for variables.
#[derive(Clone, Debug)]
pub struct Variables {
    /// What it holds at first.
    pub template: Image,
    /// Where it is kept. An empty file, or one that does not exist, is filled from the template. `None`: for this run.
    pub file: Option<PathBuf>,
}

/// Least bytes of code: what shows below 1 MByte.
const MIN_CODE_BYTES: u64 = 128 << 10;
/// Most bytes of code and variables.
const MAX_BYTES: u64 = 16 << 20;
const PAGE_BYTES: u64 = 4096;

/// Why firmware cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// A file cannot be opened, read or written.
    #[error("cannot use the firmware file {name}: {source}; check the path")]
    File {
        /// Which one.
        name: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// The code has a size no board maps.
    #[error(
        "{name} has {bytes} bytes, firmware has 128 KiB to 16 MiB in whole pages of 4 KiB; give a ROM image"
    )]
    CodeSize {
        /// Which one.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// The variables have a size no flash has.
    #[error(
        "the firmware variables {name} have {bytes} bytes, not whole blocks of 4 KiB, 16 MiB at most with the code; give the file that belongs to the firmware"
    )]
    VariablesSize {
        /// Which one.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// Another machine uses the file of variables.
    #[error("the firmware variables {0} are in use by another machine; give each its own file")]
    VariablesInUse(String),
    /// A file of variables belongs to other firmware.
    #[error(
        "{name} has {bytes} bytes, variables of this firmware have {expected}; remove it to start anew"
    )]
    OtherVariables {
        /// Which one.
        name: String,
        /// Its size.
        bytes: u64,
        /// The template's size.
        expected: u64,
    },
}

/// What the flash holds, and where it is kept.
type ReadVariables = (Vec<u8>, Option<Box<dyn FlashStore>>);

/// Firmware, read and checked.
pub(crate) struct Loaded {
    code: Vec<u8>,
    variables: Option<ReadVariables>,
}

impl Loaded {
    /// Reads the files.
    pub(crate) fn read(firmware: &Firmware) -> Result<Self, FirmwareError> {
        let code = read(&firmware.code)?;
        let bytes = code.len() as u64;
        if !(MIN_CODE_BYTES..=MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(FirmwareError::CodeSize {
                name: firmware.code.name(),
                bytes,
            });
        }
        let variables = match &firmware.variables {
            Some(variables) => Some(read_variables(variables, bytes)?),
            None => None,
        };
        Ok(Self { code, variables })
    }

    fn code_base(&self) -> u64 {
        FOUR_GIB - self.code.len() as u64
    }

    /// The memory of a machine with it.
    pub(crate) fn layout(&self, map: &MemoryMap) -> MemoryLayout {
        MemoryLayout {
            ram: map.ram_regions(),
            roms: vec![(Gpa(self.code_base()), self.code.len() as u64)],
            legacy_area: true,
        }
    }

    /// Puts the code into its ROM.
    pub(crate) fn place(&self, ram: &GuestRam) {
        let at = ram
            .find(Gpa(self.code_base()), self.code.len() as u64)
            .expect("the layout has the ROM");
        ram.write_at(at, &self.code);
    }

    /// The flash with its address and size, to go on the bus.
    fn flash(self) -> Option<(FlashDevice, Gpa, u64)> {
        let code_base = self.code_base();
        let (bytes, store) = self.variables?;
        let len = bytes.len() as u64;
        let flash = FlashDevice::new(bytes, store)
            .unwrap_or_else(|len| unreachable!("{len} bytes of flash were checked"));
        Some((flash, Gpa(code_base - len), len))
    }
}

/// What a board has for its firmware.
pub(crate) struct FirmwareBoard {
    /// The host bridge as a reset leaves it.
    pub(crate) bridge: Arc<Mutex<HostBridge>>,
    pub(crate) configuration: FwCfgDevice,
    /// The flash for variables, its address and size.
    pub(crate) flash: Option<(FlashDevice, Gpa, u64)>,
    /// Where PCI may begin.
    pub(crate) pci_low: Gpa,
}

impl FirmwareBoard {
    /// # Errors
    /// [`FwCfgError`] when what is to be told does not fit.
    pub(crate) fn new(
        loaded: Loaded,
        kernel: Option<RealModeKernel>,
        memory: MemoryMap,
        acpi: AcpiConfig,
        smbios: SmbiosConfig,
        legacy: Arc<LegacyMap>,
    ) -> Result<Self, FwCfgError> {
        let ram = Arc::clone(&legacy.ram);
        let bridge = HostBridge::after_reset(ECAM_BASE, legacy);
        let bridge = Arc::new(Mutex::new(bridge));
        // Firmware divides what is above RAM between ECAM and functions.
        let pci_low = memory.low_end();
        let items = items(ItemsConfig {
            memory,
            acpi: AcpiConfig { pci_low, ..acpi },
            smbios,
            bridge: Arc::clone(&bridge),
            kernel,
        })?;
        Ok(Self {
            bridge,
            configuration: FwCfgDevice::new(items, ram),
            flash: loaded.flash(),
            pci_low,
        })
    }
}

fn file_error(name: &str) -> impl FnOnce(std::io::Error) -> FirmwareError {
    let name = name.to_owned();
    move |source| FirmwareError::File { name, source }
}

fn read(image: &Image) -> Result<Vec<u8>, FirmwareError> {
    match image {
        Image::Bytes(bytes) => Ok(bytes.to_vec()),
        Image::File(path) => {
            let name = image.name();
            let file = File::open(path).map_err(file_error(&name))?;
            read_file(&file, &name)
        }
    }
}

/// Reads a file that is not larger than firmware may be.
fn read_file(file: &File, name: &str) -> Result<Vec<u8>, FirmwareError> {
    let meta = file.metadata().map_err(file_error(name))?;
    if !meta.is_file() {
        let what = std::io::Error::other("it is not a regular file");
        return Err(file_error(name)(what));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(file_error(name))?;
    Ok(bytes)
}

fn read_variables(variables: &Variables, code: u64) -> Result<ReadVariables, FirmwareError> {
    let template = read(&variables.template)?;
    let expected = template.len() as u64;
    if expected == 0 || !expected.is_multiple_of(BLOCK_BYTES) || expected + code > MAX_BYTES {
        return Err(FirmwareError::VariablesSize {
            name: variables.template.name(),
            bytes: expected,
        });
    }
    let Some(path) = &variables.file else {
        return Ok((template, None));
    };
    let name = path.display().to_string();
    let mut open = OpenOptions::new();
    open.read(true).write(true).create(true).truncate(false);
    let file = open.open(path).map_err(file_error(&name))?;
    // Two machines would each write through a copy of their own.
    file.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => FirmwareError::VariablesInUse(name.clone()),
        TryLockError::Error(source) => file_error(&name)(source),
    })?;
    let mut bytes = read_file(&file, &name)?;
    let store = FileStore::new(file);
    if bytes.is_empty() {
        store.write(0, &template).map_err(file_error(&name))?;
        bytes = template;
    }
    if bytes.len() as u64 != expected {
        return Err(FirmwareError::OtherVariables {
            name,
            bytes: bytes.len() as u64,
            expected,
        });
    }
    Ok((bytes, Some(Box::new(store))))
}

/// Follows the PAM registers: switches the legacy area and tells everybody who remembers translations.
pub(crate) struct LegacyMap {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) lines: Vec<Arc<VcpuLine>>,
}

impl MemoryMapSink for LegacyMap {
    fn attributes(&self, pam: [u8; PAMS]) {
        if self.ram.set_legacy(switches(pam)) {
            for line in &self.lines {
                line.attention().raise(Attention::REMAP);
            }
            self.vm.memory_changed();
        }
    }
}

/// What the PAM registers mean (82G33 datasheet 5.1.18 to 5.1.24): PAM0 has F0000h to FFFFFh in its high nibble; each
/// of the others two segments of 16 KByte from C0000h on. Bit 0 of a nibble lets reads through to RAM, bit 1 writes.
fn switches(pam: [u8; PAMS]) -> LegacySwitches {
    let set = |switches: LegacySwitches, first: u64, bytes: u64, nibble: u8| {
        switches.with(first, first + bytes - 1, nibble & 1 != 0, nibble & 2 != 0)
    };
    let [top, rest @ ..] = pam;
    let mut all = set(LegacySwitches::BOARD, 0xf_0000, 0x1_0000, top >> 4);
    for (i, register) in (0..).zip(rest) {
        let first = 0xc_0000 + 0x8000 * i;
        all = set(all, first, 0x4000, register);
        all = set(all, first + 0x4000, 0x4000, register >> 4);
    }
    all
}
