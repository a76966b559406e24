//! The guest `boot` by every boot protocol: it checks what it is told, and what it prints is what was given.

use std::sync::Arc;

use conformance::guest::{GuestRun, kernel_image, program, run_machine};
use machine::{BootProtocol, Image, MachineConfig, Module};
use softcpu::SoftEngine;

fn image(bytes: Vec<u8>) -> Image {
    Image::Bytes(Arc::new(bytes))
}

fn boot(change: impl FnOnce(&mut MachineConfig)) -> GuestRun {
    let mut config = MachineConfig {
        kernel: Some(image(program("boot").expect("it is built"))),
        cmdline: "one two=2".into(),
        ..MachineConfig::default()
    };
    change(&mut config);
    let run = run_machine(&SoftEngine::new(), config).expect("it starts");
    println!("{}", run.text);
    assert!(run.passed(), "{:?}", run.outcome);
    run
}

/// All lines are there, in this order.
fn assert_says(run: &GuestRun, lines: &[&str]) {
    let mut said = run.text.lines();
    for line in lines {
        assert!(said.any(|l| l == *line), "no {line:?} in\n{}", run.text);
    }
}

fn with_files(config: &mut MachineConfig) {
    config.initrd = Some(image(vec![3; 5000]));
    config.modules = vec![
        Module {
            image: image(b"abc".to_vec()),
            text: "/boot/abc -v".into(),
        },
        Module {
            image: image(Vec::new()),
            text: "empty".into(),
        },
    ];
}

/// 64 MiB without the kilobyte of EBDA and the 384 KiB below 1 MiB.
const RAM: &str = "ram_kib=65151";

#[test]
fn multiboot_elf64() {
    let run = boot(with_files);
    assert_says(
        &run,
        &[
            "protocol multiboot",
            "upper_kib=64512",
            "loader [nestling]",
            "cmdline [kernel one two=2]",
            "file [initrd] size=5000 sum=15000",
            "file [/boot/abc -v] size=3 sum=294",
            "file [empty] size=0 sum=0",
            RAM,
        ],
    );
}

#[test]
fn multiboot_elf32() {
    // The same program as an ELF32 file of one segment (System V ABI, "Object Files").
    let wide = program("boot").expect("it is built");
    let run = boot(|config| config.kernel = Some(image(narrow(&wide))));
    assert_says(
        &run,
        &["protocol multiboot", "cmdline [kernel one two=2]", RAM],
    );
}

#[test]
fn pvh() {
    let run = boot(|config| {
        with_files(config);
        config.boot_protocol = BootProtocol::Pvh;
    });
    assert_says(
        &run,
        &[
            "protocol pvh",
            "cmdline [one two=2]",
            "file [initrd] size=5000 sum=15000",
            "file [/boot/abc -v] size=3 sum=294",
            "file [empty] size=0 sum=0",
            RAM,
        ],
    );
}

#[test]
fn linux_in_64_bit_and_in_protected_mode() {
    let wrapped = kernel_image(&program("boot").expect("it is built")).expect("it can be wrapped");
    for (protocol, name) in [
        (BootProtocol::Auto, "protocol linux64"),
        (BootProtocol::Linux32, "protocol linux32"),
    ] {
        let run = boot(|config| {
            config.kernel = Some(image(wrapped.clone()));
            config.boot_protocol = protocol;
            config.initrd = Some(image(vec![3; 5000]));
        });
        assert_says(
            &run,
            &[name, "cmdline [one two=2]", "file size=5000 sum=15000", RAM],
        );
    }
}

/// An ELF32 file with the first segment and the entry point of an ELF64 one.
fn narrow(wide: &[u8]) -> Vec<u8> {
    const HEADER: u32 = 52 + 32;
    let word = |at: usize| u32::from_le_bytes(wide[at..at + 4].try_into().expect("4 bytes"));
    let (entry, table) = (word(24), word(32) as usize);
    let (offset, address) = (word(table + 8) as usize, word(table + 24));
    let (file_bytes, memory_bytes) = (word(table + 32), word(table + 40));
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // e_type EXEC, e_machine 386, then 32-bit words up to e_flags.
    file.extend([2, 0, 3, 0]);
    for v in [1, entry, 52, 0, 0] {
        file.extend(v.to_le_bytes());
    }
    // e_ehsize, e_phentsize, e_phnum, no sections.
    for v in [52u16, 32, 1, 0, 0, 0] {
        file.extend(v.to_le_bytes());
    }
    // PT_LOAD: offset, addresses, sizes, flags, alignment.
    for v in [1, HEADER, address, address, file_bytes, memory_bytes, 7, 4] {
        file.extend(v.to_le_bytes());
    }
    file.extend_from_slice(&wide[offset..offset + file_bytes as usize]);
    file
}
