//! SMBIOS tables (DMTF DSP0134, System Management BIOS Reference Specification 2.8).
//!
//! What a system says of itself in words: firmware, system, enclosure, processor, memory. Firmware gets entry point and
//! structure table apart and puts them where it likes.

#[cfg(test)]
mod tests;

use crate::memory::{FOUR_GIB, MemoryMap};

/// Names of the files in which firmware looks for them.
pub const ANCHOR_FILE: &str = "etc/smbios/smbios-anchor";
/// The structure table's file.
pub const TABLES_FILE: &str = "etc/smbios/smbios-tables";

/// What the tables say.
#[derive(Clone, Copy, Debug)]
pub struct SmbiosConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM.
    pub memory: MemoryMap,
    /// CPUID.01H:EAX and EDX.
    pub processor_id: (u32, u32),
    /// Clock of the processor, as the TSC's.
    pub processor_hz: u64,
}

/// The entry point and the structure table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// Entry point structure (5.2.1), with the table's address zero.
    pub anchor: Vec<u8>,
    /// Structure table.
    pub tables: Vec<u8>,
}

/// Major and minor version.
const VERSION: (u8, u8) = (2, 8);
const MANUFACTURER: &str = "Nestling";
const PRODUCT: &str = "Virtual machine (Q35 + ICH9)";
/// A handle: none.
const NO_HANDLE: u16 = 0xfffe;
/// A cache handle: not given.
const NO_CACHE: u16 = 0xffff;

/// Handles of the structures.
mod handle {
    pub const FIRMWARE: u16 = 0x0000;
    pub const SYSTEM: u16 = 0x0100;
    pub const ENCLOSURE: u16 = 0x0300;
    pub const PROCESSOR: u16 = 0x0400;
    pub const MEMORY_ARRAY: u16 = 0x1000;
    pub const MEMORY_DEVICE: u16 = 0x1100;
    pub const MAPPED_ADDRESS: u16 = 0x1300;
    pub const BOOT: u16 = 0x2000;
    pub const END: u16 = 0x7f00;
}

/// A structure: its formatted area, its strings.
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let mut formatted = vec![kind, 0];
        formatted.extend(handle.to_le_bytes());
        Self {
            formatted,
            strings: Vec::new(),
            count: 0,
        }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.formatted.extend(bytes);
        self
    }

    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A string: its number in the formatted area, its text behind (6.1.3).
    fn string(mut self, text: &str) -> Self {
        self.count += 1;
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        let number = self.count;
        self.bytes(&[number])
    }

    /// All of it; two zeros end a structure without strings.
    fn finish(mut self) -> Vec<u8> {
        self.formatted[1] =
            u8::try_from(self.formatted.len()).expect("the specification's lengths are bytes");
        if self.count == 0 {
            self.strings.push(0);
        }
        self.strings.push(0);
        self.formatted.extend(self.strings);
        self.formatted
    }
}

/// Builds entry point and structure table.
#[must_use]
pub fn build(config: &SmbiosConfig) -> Smbios {
    let mut structures = vec![
        firmware(),
        system(),
        enclosure(),
        processor(config),
        memory_array(&config.memory),
        memory_device(&config.memory),
    ];
    structures.extend(mapped_addresses(&config.memory));
    structures.push(boot());
    structures.push(Structure::new(127, handle::END));
    let structures: Vec<Vec<u8>> = structures.into_iter().map(Structure::finish).collect();
    let largest = structures.iter().map(Vec::len).max().unwrap_or(0);
    let tables = structures.concat();
    Smbios {
        anchor: anchor(&tables, largest, structures.len()),
        tables,
    }
}

/// Entry point structure (5.2.1): its checksums hold for an address of zero.
fn anchor(tables: &[u8], largest: usize, count: usize) -> Vec<u8> {
    const INTERMEDIATE: usize = 0x10;
    let small = |n: usize| {
        u16::try_from(n)
            .expect("the board's tables are small")
            .to_le_bytes()
    };
    let mut bytes = b"_SM_\0\x1f".to_vec();
    bytes.extend([VERSION.0, VERSION.1]);
    bytes.extend(small(largest));
    bytes.extend([0; 6]);
    bytes.extend(b"_DMI_\0");
    bytes.extend(small(tables.len()));
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(small(count));
    bytes.push(VERSION.0 << 4 | VERSION.1);
    bytes[INTERMEDIATE + 5] = checksum(&bytes[INTERMEDIATE..]);
    bytes[4] = checksum(&bytes);
    bytes
}

/// What makes the sum of `bytes` and this zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, &b| sum.wrapping_sub(b))
}

/// Platform firmware information (7.1).
fn firmware() -> Structure {
    /// BIOS characteristics: not supported.
    const NO_CHARACTERISTICS: u64 = 1 << 3;
    /// Extension byte 2: targeted content distribution, virtual machine.
    const EXTENSION_2: u8 = 1 << 2 | 1 << 4;
    /// Releases: none.
    const NONE: u8 = 0xff;
    Structure::new(0, handle::FIRMWARE)
        .string(MANUFACTURER)
        .string(env!("CARGO_PKG_VERSION"))
        .word(0xe800)
        .string("01/01/2025")
        .bytes(&[0])
        .qword(NO_CHARACTERISTICS)
        .bytes(&[0, EXTENSION_2, NONE, NONE, NONE, NONE])
}

/// System information (7.2). The UUID is not set.
fn system() -> Structure {
    /// Wake-up type: power switch.
    const POWER_SWITCH: u8 = 6;
    Structure::new(1, handle::SYSTEM)
        .string(MANUFACTURER)
        .string(PRODUCT)
        .string(env!("CARGO_PKG_VERSION"))
        .bytes(&[0])
        .bytes(&[0; 16])
        .bytes(&[POWER_SWITCH, 0, 0])
}

/// System enclosure or chassis (7.4).
fn enclosure() -> Structure {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    Structure::new(3, handle::ENCLOSURE)
        .string(MANUFACTURER)
        .bytes(&[OTHER, 0, 0, 0])
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN])
        .dword(0)
        // Height, power cords, contained elements and their length, SKU number.
        .bytes(&[0, 0, 0, 0, 0])
}

/// Processor information (7.5): one socket with all vCPUs.
fn processor(config: &SmbiosConfig) -> Structure {
    const CENTRAL: u8 = 3;
    const OTHER: u8 = 1;
    /// Socket populated, processor enabled.
    const ENABLED: u8 = 1 << 6 | 1;
    /// Characteristics: 64-bit capable, virtualization not told.
    const CHARACTERISTICS: u16 = 1 << 2;
    let mhz = u16::try_from(config.processor_hz / 1_000_000).unwrap_or(u16::MAX);
    // FFh means FFh or more (7.5.6).
    let cores = u8::try_from(config.vcpus).unwrap_or(0xff);
    Structure::new(4, handle::PROCESSOR)
        .string("CPU 0")
        .bytes(&[CENTRAL, OTHER])
        .string(MANUFACTURER)
        .dword(config.processor_id.0)
        .dword(config.processor_id.1)
        .string(PRODUCT)
        // Voltage, external clock: not known.
        .bytes(&[0])
        .word(0)
        .word(mhz)
        .word(mhz)
        .bytes(&[ENABLED, OTHER])
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        // Serial number, asset tag, part number.
        .bytes(&[0, 0, 0])
        .bytes(&[cores, cores, cores])
        .word(CHARACTERISTICS)
        .word(u16::from(OTHER))
}

fn memory_bytes(memory: &MemoryMap) -> u64 {
    memory.ram_regions().iter().map(|r| r.1).sum()
}

/// Physical memory array (7.17).
fn memory_array(memory: &MemoryMap) -> Structure {
    const OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    /// The capacity is in the extended field.
    const EXTENDED: u32 = 0x8000_0000;
    let bytes = memory_bytes(memory);
    let kib = bytes >> 10;
    let (short, extended) = match u32::try_from(kib) {
        Ok(kib) if kib < EXTENDED => (kib, 0),
        _ => (EXTENDED, bytes),
    };
    Structure::new(16, handle::MEMORY_ARRAY)
        .bytes(&[OTHER, SYSTEM_MEMORY, NO_CORRECTION])
        .dword(short)
        .word(NO_HANDLE)
        .word(1)
        .qword(extended)
}

/// Memory device (7.18): one that holds everything.
fn memory_device(memory: &MemoryMap) -> Structure {
    const UNKNOWN_WIDTH: u16 = 0xffff;
    /// The size is in the extended field.
    const EXTENDED: u16 = 0x7fff;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    let mib = memory_bytes(memory) >> 20;
    let (short, extended) = match u16::try_from(mib) {
        Ok(mib) if mib < EXTENDED => (mib, 0),
        _ => (EXTENDED, mib as u32 & 0x7fff_ffff),
    };
    Structure::new(17, handle::MEMORY_DEVICE)
        .word(handle::MEMORY_ARRAY)
        .word(NO_HANDLE)
        .word(UNKNOWN_WIDTH)
        .word(UNKNOWN_WIDTH)
        .word(short)
        .bytes(&[DIMM, 0])
        .string("DIMM 0")
        .bytes(&[0, RAM])
        .word(DETAIL_OTHER)
        .word(0)
        .string(MANUFACTURER)
        // Serial number, asset tag, part number, attributes.
        .bytes(&[0, 0, 0, 0])
        .dword(extended)
        // Speed and voltages: not known.
        .word(0)
        .word(0)
        .word(0)
        .word(0)
}

/// Memory array mapped address (7.20), one for each run of RAM.
fn mapped_addresses(memory: &MemoryMap) -> Vec<Structure> {
    /// The addresses are in the extended fields.
    const EXTENDED: u32 = u32::MAX;
    let runs = (handle::MAPPED_ADDRESS..).zip(memory.ram_regions());
    runs.map(|(handle, (base, bytes))| {
        let last = base.0 + bytes - 1;
        let short = last < FOUR_GIB << 10;
        let (start, end, wide_start, wide_end) = match short {
            true => ((base.0 >> 10) as u32, (last >> 10) as u32, 0, 0),
            false => (EXTENDED, EXTENDED, base.0, last),
        };
        Structure::new(19, handle)
            .dword(start)
            .dword(end)
            .word(handle::MEMORY_ARRAY)
            .bytes(&[1])
            .qword(wide_start)
            .qword(wide_end)
    })
    .collect()
}

/// System boot information (7.33): no errors.
fn boot() -> Structure {
    Structure::new(32, handle::BOOT).bytes(&[0; 7])
}
