use std::process::Command;

use super::*;
use crate::ports;

fn tables(vcpus: u32) -> Vec<Table> {
    build(&AcpiConfig {
        vcpus,
        hpet: true,
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
