//! ACPI tables as an operating system reads them (ACPI 6.5, 5.2).

use guestmem::GuestRam;

use crate::board::{bytes, dword, qword, sum};

/// Bytes of a table's header.
const HEADER: u64 = 36;

/// A table with its header.
struct Table {
    at: u64,
    bytes: Vec<u8>,
}

impl Table {
    fn u32(&self, at: usize) -> u64 {
        let bytes = self.bytes[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes).into()
    }

    fn u64(&self, at: usize) -> u64 {
        self.u32(at) | self.u32(at + 4) << 32
    }
}

/// Finds the RSDP below 1 MByte (5.2.5.1) and checks all it leads to.
///
/// # Panics
/// Something is wrong.
pub fn check_from_search(ram: &GuestRam, vcpus: u32) {
    let signature = u64::from_le_bytes(*b"RSD PTR ");
    let rsdp = (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|&at| qword(ram, at) == signature);
    check(ram, rsdp.expect("a search finds the RSDP"), vcpus);
}

/// Checks the RSDP at `rsdp` and all it leads to: lengths, sums, places that do not overlap, pointers, and that the
/// MADT has a local APIC for each of `vcpus`.
///
/// # Panics
/// Something is wrong.
pub fn check(ram: &GuestRam, rsdp: u64, vcpus: u32) {
    assert_eq!(sum(&bytes(ram, rsdp, 20)), 0, "the RSDP's first sum");
    assert_eq!(sum(&bytes(ram, rsdp, 36)), 0, "the RSDP's second sum");
    let mut places = vec![(rsdp, rsdp + 36)];
    let mut read = |at: u64, signature: Option<&[u8; 4]>| {
        let table = table(ram, at, signature);
        places.push((at, at + table.bytes.len() as u64));
        table
    };
    let xsdt = read(qword(ram, rsdp + 24), Some(b"XSDT"));
    let mut found = Vec::new();
    for n in (HEADER as usize..xsdt.bytes.len()).step_by(8) {
        found.push(read(xsdt.u64(n), None));
    }
    let find = |signature: &[u8; 4]| {
        let mut with = found.iter().filter(|t| t.bytes.starts_with(signature));
        let table = with.next();
        let table = table.unwrap_or_else(|| panic!("no {}", String::from_utf8_lossy(signature)));
        assert!(with.next().is_none(), "two tables of one signature");
        table
    };
    let fadt = find(b"FACP");
    // DSDT and X_DSDT; FIRMWARE_CTRL (table 5.9).
    let dsdt = read(fadt.u64(140), Some(b"DSDT"));
    assert_eq!(fadt.u32(40), dsdt.at, "DSDT and X_DSDT");
    let facs = fadt.u32(36);
    assert_eq!(facs % 64, 0, "the FACS' alignment");
    assert_eq!(bytes(ram, facs, 4), b"FACS");
    places.push((facs, facs + u64::from(dword(ram, facs + 4))));
    check_madt(find(b"APIC"), vcpus);
    places.sort_unstable();
    for pair in places.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "tables overlap: {pair:x?}");
    }
}

fn table(ram: &GuestRam, at: u64, signature: Option<&[u8; 4]>) -> Table {
    let length = dword(ram, at + 4);
    assert!(
        (HEADER as u32..0x2_0000).contains(&length),
        "table at {at:#x} of {length} bytes"
    );
    let bytes = bytes(ram, at, length as usize);
    assert_eq!(sum(&bytes), 0, "the sum of the table at {at:#x}");
    if let Some(signature) = signature {
        assert!(bytes.starts_with(signature), "table at {at:#x}");
    }
    Table { at, bytes }
}

/// Structures fill the MADT, and each vCPU has one enabled local APIC (5.2.12.2).
fn check_madt(madt: &Table, vcpus: u32) {
    let mut at = 44;
    let mut ids = Vec::new();
    while at < madt.bytes.len() {
        let structure = &madt.bytes[at..];
        let length = usize::from(structure[1]);
        assert!(
            (2..=structure.len()).contains(&length),
            "a structure of {length} bytes"
        );
        if structure[0] == 0 && structure[4] & 1 != 0 {
            ids.push(u32::from(structure[3]));
        }
        at += length;
    }
    assert!(ids.iter().copied().eq(0..vcpus), "APIC ids {ids:?}");
}
