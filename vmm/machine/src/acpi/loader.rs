//! The tables for firmware that places them itself: table blobs and a script of commands (QEMU's "table loader", as
//! SeaBIOS and OVMF execute it).
//!
//! Pointers in the blobs are offsets into the blob they point to; a command has the firmware add where it put that.
//! Checksums are zero until a command has the firmware compute them.

use acpi_tables::rsdp::Rsdp;

use super::{AcpiConfig, LaidOut, OEM_ID, bytes_of, lay_out};

/// The file with the script.
pub const LOADER_FILE: &str = "etc/table-loader";
/// The file with the tables.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// The file with the RSDP.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";

/// Bytes of a command.
const COMMAND_BYTES: usize = 128;
/// Bytes of a file's name in a command.
const NAME_BYTES: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Allocation zones: anywhere below 4 GByte; the BIOS area, where a search finds the RSDP.
const ZONE_HIGH: u8 = 1;
const ZONE_BIOS: u8 = 2;
/// Where a table's checksum is (5.2.6).
const CHECKSUM: u32 = 9;
/// The RSDP's checksum over its first bytes, the one over all, and the pointer to the XSDT (5.2.5.3).
const RSDP_CHECKSUM: u32 = 8;
const RSDP_OLD_BYTES: u32 = 20;
const RSDP_EXTENDED_CHECKSUM: u32 = 32;
const RSDP_XSDT: u32 = 24;

/// The three files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderFiles {
    /// The script.
    pub loader: Vec<u8>,
    /// All tables but the RSDP.
    pub tables: Vec<u8>,
    /// The RSDP.
    pub rsdp: Vec<u8>,
}

/// A command under construction.
struct Command(Vec<u8>);

impl Command {
    fn new(code: u32) -> Self {
        Self(code.to_le_bytes().to_vec())
    }

    fn name(mut self, name: &str) -> Self {
        let mut field = [0; NAME_BYTES];
        field[..name.len()].copy_from_slice(name.as_bytes());
        self.0.extend(field);
        self
    }

    fn dword(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(COMMAND_BYTES, 0);
        self.0
    }
}

fn allocate(file: &str, alignment: u32, zone: u8) -> Vec<u8> {
    Command::new(ALLOCATE)
        .name(file)
        .dword(alignment)
        .byte(zone)
        .finish()
}

/// Adds the address of `to` to the pointer of `size` bytes at `offset` of `file`.
fn add_pointer(file: &str, to: &str, offset: u32, size: u8) -> Vec<u8> {
    Command::new(ADD_POINTER)
        .name(file)
        .name(to)
        .dword(offset)
        .byte(size)
        .finish()
}

/// Makes `len` bytes from `start` of `file` sum to zero by the byte at `offset`.
fn add_checksum(file: &str, offset: u32, start: u32, len: u32) -> Vec<u8> {
    Command::new(ADD_CHECKSUM)
        .name(file)
        .dword(offset)
        .dword(start)
        .dword(len)
        .finish()
}

/// An offset in the blob, which is small.
fn small(at: u64) -> u32 {
    u32::try_from(at).expect("the blob of the board's tables is small")
}

/// Builds blobs and script.
#[must_use]
pub fn build(config: &AcpiConfig) -> LoaderFiles {
    let LaidOut {
        tables,
        pointers,
        xsdt,
    } = lay_out(config, 0);
    let mut loader = vec![
        allocate(RSDP_FILE, 16, ZONE_BIOS),
        allocate(TABLES_FILE, 64, ZONE_HIGH),
    ];
    for (at, size) in pointers {
        loader.push(add_pointer(TABLES_FILE, TABLES_FILE, small(at), size));
    }
    let mut blob = Vec::new();
    for table in tables {
        let start = small(table.gpa.0);
        blob.resize(start as usize, 0);
        blob.extend(&table.bytes);
        // The FACS has no checksum (5.2.10).
        if !table.bytes.starts_with(b"FACS") {
            let checksum = start + CHECKSUM;
            blob[checksum as usize] = 0;
            let len = small(table.bytes.len() as u64);
            loader.push(add_checksum(TABLES_FILE, checksum, start, len));
        }
    }
    let mut rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt.0));
    rsdp[RSDP_CHECKSUM as usize] = 0;
    rsdp[RSDP_EXTENDED_CHECKSUM as usize] = 0;
    loader.push(add_pointer(RSDP_FILE, TABLES_FILE, RSDP_XSDT, 8));
    loader.push(add_checksum(RSDP_FILE, RSDP_CHECKSUM, 0, RSDP_OLD_BYTES));
    let len = small(rsdp.len() as u64);
    loader.push(add_checksum(RSDP_FILE, RSDP_EXTENDED_CHECKSUM, 0, len));
    LoaderFiles {
        loader: loader.concat(),
        tables: blob,
        rsdp,
    }
}
