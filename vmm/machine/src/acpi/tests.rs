use std::process::Command;

use super::*;
use crate::memory::{ECAM_BASE, PCI_MMIO_START};
use crate::ports;

fn tables(vcpus: u32) -> Vec<Table> {
    build(&AcpiConfig {
        vcpus,
        hpet: true,
        ecam: ECAM_BASE,
        pci_low: Gpa(PCI_MMIO_START),
        pci_high: 0x1_0000_0000..1 << 46,
    })
}

fn find<'a>(tables: &'a [Table], signature: &[u8]) -> &'a Table {
    tables
        .iter()
        .find(|t| t.bytes.starts_with(signature))
        .unwrap_or_else(|| panic!("no {}", String::from_utf8_lossy(signature)))
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from(u16_at(b, at)) | u32::from(u16_at(b, at + 2)) << 16
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[test]
fn every_table_has_its_length_and_sums_to_zero() {
    for t in tables(3) {
        match &t.bytes[..4] {
            // The RSDP has two checksums (5.2.5.3); the FACS has none (5.2.10).
            b"RSD " => {
                assert_eq!(sum(&t.bytes[..20]), 0);
                assert_eq!(sum(&t.bytes), 0);
                assert_eq!(u32_at(&t.bytes, 20), 36);
            }
            b"FACS" => assert_eq!((u32_at(&t.bytes, 4), t.gpa.0 % 64), (64, 0)),
            _ => {
                assert_eq!(sum(&t.bytes), 0);
                assert_eq!(u32_at(&t.bytes, 4) as usize, t.bytes.len());
            }
        }
    }
}

#[test]
fn tables_lie_in_the_bios_area_without_overlap_even_for_the_most_vcpus() {
    let mut all = tables(255);
    all.sort_by_key(|t| t.gpa);
    assert_eq!(all[0].gpa, Gpa(0xe_0000));
    assert!(all[0].bytes.starts_with(b"RSD PTR "));
    for pair in all.windows(2) {
        assert!(pair[0].gpa.0 + pair[0].bytes.len() as u64 <= pair[1].gpa.0);
    }
    let last = all.last().expect("tables");
    assert!(last.gpa.0 + last.bytes.len() as u64 <= 0x10_0000);
}

#[test]
fn the_pointers_lead_from_the_rsdp_to_every_table() {
    let all = tables(1);
    let rsdp = find(&all, b"RSD PTR ");
    let xsdt = find(&all, b"XSDT");
    assert_eq!(u64_at(&rsdp.bytes, 24), xsdt.gpa.0);
    let listed: Vec<u64> = (36..xsdt.bytes.len())
        .step_by(8)
        .map(|at| u64_at(&xsdt.bytes, at))
        .collect();
    for signature in [&b"FACP"[..], b"APIC", b"MCFG", b"HPET"] {
        assert!(listed.contains(&find(&all, signature).gpa.0));
    }
    // DSDT and FACS are reached through the FADT only (5.2.9).
    let fadt = find(&all, b"FACP");
    assert_eq!(
        u64::from(u32_at(&fadt.bytes, 36)),
        find(&all, b"FACS").gpa.0
    );
    assert_eq!(u64_at(&fadt.bytes, 140), find(&all, b"DSDT").gpa.0);
}

#[test]
fn the_fadt_names_the_boards_registers() {
    let all = tables(1);
    let b = &find(&all, b"FACP").bytes;
    assert_eq!(u16_at(b, 46), 9, "SCI_INT");
    assert_eq!(u32_at(b, 48), 0, "SMI_CMD: always in ACPI mode");
    assert_eq!(u32_at(b, 56), 0x600, "PM1a_EVT_BLK");
    assert_eq!(u32_at(b, 64), 0x604, "PM1a_CNT_BLK");
    assert_eq!(u32_at(b, 76), 0x608, "PM_TMR_BLK");
    assert_eq!((b[88], b[89], b[91]), (4, 2, 4), "register lengths");
    let flags = u32_at(b, 112);
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    assert_eq!(flags >> 10 & 1, 1, "RESET_REG_SUP");
    assert_eq!(flags >> 8 & 1, 1, "TMR_VAL_EXT");
    assert_eq!(u64_at(b, 120), 0xcf9, "RESET_REG address");
    assert_eq!(b[128], ports::RESET_VALUE);
}

#[test]
fn the_madt_lists_processors_io_apic_and_overrides() {
    let all = tables(2);
    let b = &find(&all, b"APIC").bytes;
    assert_eq!(u32_at(b, 36), 0xfee0_0000);
    let mut entries = Vec::new();
    let mut at = 44;
    while at < b.len() {
        entries.push(&b[at..at + usize::from(b[at + 1])]);
        at += usize::from(b[at + 1]);
    }
    assert_eq!(entries[0], [0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(entries[1], [0, 8, 1, 1, 1, 0, 0, 0]);
    assert_eq!(entries[2][4..8], 0xfec0_0000u32.to_le_bytes());
    assert_eq!(entries[3], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(entries[4], [2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]);
    assert_eq!(entries[5], [4, 6, 0xff, 0, 0, 1]);
}

#[test]
fn a_board_without_hpet_does_not_announce_one() {
    let all = build(&AcpiConfig {
        vcpus: 1,
        hpet: false,
        ecam: ECAM_BASE,
        pci_low: Gpa(PCI_MMIO_START),
        pci_high: 0..0,
    });
    assert!(!all.iter().any(|t| t.bytes.starts_with(b"HPET")));
    let dsdt = find(&all, b"DSDT");
    assert!(!dsdt.bytes.windows(4).any(|w| w == b"HPET"));
}

/// Disassembles each table with ACPICA's compiler, and compiles the result again.
#[test]
fn iasl_accepts_every_table() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = |args: &[&str]| {
        Command::new("iasl")
            .args(args)
            .current_dir(dir.path())
            .output()
    };
    if run(&["-v"]).is_err() {
        eprintln!("skipped: iasl not found");
        return;
    }
    for t in tables(2) {
        let name = String::from_utf8_lossy(&t.bytes[..4]).trim().to_owned();
        // iasl reads the RSDP only inside a full dump.
        if name == "RSD" {
            continue;
        }
        let file = format!("{name}.aml");
        std::fs::write(dir.path().join(&file), &t.bytes).expect("write the table");
        let out = run(&["-d", &file]).expect("iasl ran before");
        let text = said(&out);
        assert!(out.status.success(), "{name}: {text}");
        assert!(
            !text.contains("Warning") && !text.contains("Error"),
            "{name}: {text}"
        );
        let listing = format!("{name}.dsl");
        let out = run(&["-p", "again", &listing]).expect("iasl ran before");
        let text = said(&out);
        assert!(out.status.success(), "{name}: {text}");
        if name == "DSDT" {
            assert!(text.contains("0 Errors, 0 Warnings"), "{name}: {text}");
        }
        assert!(!text.contains("Warning  "), "{name}: {text}");
        let again = std::fs::read(dir.path().join("again.aml")).expect("compiled table");
        // iasl writes its own creator id and revision (bytes 28 to 35), which changes the checksum.
        if name == "DSDT" {
            assert!(again[36..] == t.bytes[36..], "DSDT compiles to other AML");
        }
    }
}

fn said(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// Executes the script as firmware does: each file at an address of its own, pointers, then checksums.
fn placed() -> Vec<(String, u64, Vec<u8>)> {
    let files = loader::build(&AcpiConfig {
        vcpus: 2,
        hpet: true,
        ecam: Gpa(0xe000_0000),
        pci_low: Gpa(0x4000_0000),
        pci_high: 0x1_0000_0000..1 << 40,
    });
    let mut memory: Vec<(String, u64, Vec<u8>)> = Vec::new();
    let name = |bytes: &[u8]| {
        let end = bytes.iter().position(|&b| b == 0).expect("a zero");
        String::from_utf8(bytes[..end].to_vec()).expect("ASCII")
    };
    assert!(files.loader.len().is_multiple_of(128));
    for command in files.loader.chunks(128) {
        let file = name(&command[4..60]);
        let at = |memory: &[(String, u64, Vec<u8>)], file: &str| {
            let found = memory.iter().position(|m| m.0 == file);
            found.expect("allocated before it is used")
        };
        match u32_at(command, 0) {
            1 => {
                let (address, bytes) = match file.as_str() {
                    "etc/acpi/rsdp" => (0xf_5000, files.rsdp.clone()),
                    "etc/acpi/tables" => (0x3fff_0000, files.tables.clone()),
                    other => panic!("{other}"),
                };
                assert!(u32_at(command, 60).is_power_of_two());
                memory.push((file, address, bytes));
            }
            2 => {
                let source = at(&memory, &name(&command[60..116]));
                let add = memory[source].1;
                let (offset, size) = (u32_at(command, 116) as usize, command[120] as usize);
                let target = at(&memory, &file);
                let field = &mut memory[target].2[offset..offset + size];
                let mut word = [0; 8];
                word[..size].copy_from_slice(field);
                let value = u64::from_le_bytes(word) + add;
                field.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            3 => {
                let target = at(&memory, &file);
                let [offset, start, len] = [60, 64, 68].map(|i| u32_at(command, i) as usize);
                let bytes = &mut memory[target].2;
                assert_eq!(bytes[offset], 0, "OVMF expects a zero");
                let total = sum(&bytes[start..start + len]);
                bytes[offset] = total.wrapping_neg();
            }
            other => panic!("command {other}"),
        }
    }
    memory
}

#[test]
fn the_loaders_script_makes_a_tree_of_valid_tables() {
    let memory = placed();
    let bytes_at = |address: u64, len: usize| {
        let found = memory
            .iter()
            .find(|m| m.1 <= address && address < m.1 + m.2.len() as u64);
        let (_, base, bytes) = found.expect("a pointer into a file");
        let at = (address - base) as usize;
        bytes[at..at + len].to_vec()
    };
    let table_at = |address: u64| {
        let len = u32_at(&bytes_at(address, 8), 4) as usize;
        let table = bytes_at(address, len);
        assert_eq!(sum(&table), 0, "{:?}", String::from_utf8_lossy(&table[..4]));
        table
    };
    let rsdp = bytes_at(0xf_5000, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table_at(u64_at(&rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let listed: Vec<Vec<u8>> = (36..xsdt.len())
        .step_by(8)
        .map(|at| table_at(u64_at(&xsdt, at)))
        .collect();
    let names: Vec<&[u8]> = listed.iter().map(|t| &t[..4]).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"MCFG", b"HPET"]);
    let fadt = &listed[0];
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
    assert_eq!(&table_at(u64_at(fadt, 140))[..4], b"DSDT");
    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!((&bytes_at(facs, 4)[..], facs % 64), (&b"FACS"[..], 0));
    // MCFG (PCI Firmware 3.3 4.1.2): where firmware put ECAM.
    assert_eq!(u64_at(&listed[2], 44), 0xe000_0000);
}

#[test]
fn pci_windows_leave_ecam_out() {
    let config = |ecam: u64, low: u64| AcpiConfig {
        vcpus: 1,
        hpet: true,
        ecam: Gpa(ecam),
        pci_low: Gpa(low),
        pci_high: 0..0,
    };
    let windows = |ecam, low| config(ecam, low).pci_low_windows().collect::<Vec<_>>();
    assert_eq!(
        windows(0xb000_0000, 0xc000_0000),
        [(0xc000_0000, 0xfebf_ffff)]
    );
    assert_eq!(
        windows(0xe000_0000, 0x2000_0000),
        [(0x2000_0000, 0xdfff_ffff), (0xf000_0000, 0xfebf_ffff)]
    );
    assert_eq!(
        windows(0xb000_0000, 0xb000_0000),
        [(0xc000_0000, 0xfebf_ffff)]
    );
}
