//! Firmware boots disks and discs: Debian's SeaBIOS and OVMF, Debian's GRUB, Debian's kernel to user space.

use std::path::Path;

use e2e::boot_media::{self, BootFiles, UP};
use e2e::program::{Ended, Run};
use tempfile::TempDir;

/// A machine with firmware and no kernel of ours.
fn run(firmware: &str) -> Run {
    Run::nestling([
        "run",
        "--firmware",
        firmware,
        "--engine",
        "soft",
        "--memory",
        "512M",
    ])
    .args(["--nested", "off", "--clock", "virtual", "--timeout", "500"])
    .cache(e2e::cache::shared())
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// GRUB ran on `platform`, and Linux, loaded by it, came to user space and saw `disks`.
fn assert_booted(ended: &Ended, platform: &str, disks: &str) {
    ended.expect_code(0);
    let console = ended.text();
    for part in [
        &format!("GRUB on {platform} from "),
        &format!("loaded-by=grub-{platform}"),
        UP,
        &format!("disks: {disks}"),
    ] {
        assert!(console.contains(part), "no `{part}` in: {console}");
    }
}

fn disk(image: &Path, read_only: bool) -> String {
    let image = image.to_str().expect("UTF-8");
    format!("{image}{}", if read_only { ",readonly" } else { "" })
}

#[test]
fn seabios_boots_a_grub_disk() {
    let folder = folder();
    let image = boot_media::grub_disk(&BootFiles::new(), folder.path());
    let ended = run("bios").args(["--disk", &disk(&image, false)]).end();
    assert_booted(&ended, "pc", "/dev/vda");
}

#[test]
fn seabios_boots_a_hybrid_disc_from_the_drive_and_as_a_disk() {
    let folder = folder();
    let image = boot_media::hybrid_iso(&BootFiles::new(), folder.path());
    let ended = run("bios")
        .args(["--cdrom".as_ref(), image.as_os_str()])
        .end();
    assert_booted(&ended, "pc", "/dev/vd?");
    let ended = run("bios").args(["--disk", &disk(&image, true)]).end();
    assert_booted(&ended, "pc", "/dev/vda");
}

#[test]
fn ovmf_boots_a_grub_efi_disk() {
    let folder = folder();
    let image = boot_media::efi_disk(&BootFiles::new(), folder.path());
    let ended = run("uefi").args(["--disk", &disk(&image, false)]).end();
    assert_booted(&ended, "efi", "/dev/vda");
}

#[test]
fn ovmf_boots_a_grub_efi_disc() {
    let folder = folder();
    let image = boot_media::efi_iso(&BootFiles::new(), folder.path());
    let ended = run("uefi")
        .args(["--cdrom".as_ref(), image.as_os_str()])
        .end();
    assert_booted(&ended, "efi", "/dev/vd?");
    assert!(
        ended.text().contains("from cd0"),
        "the menu was not the disc's"
    );
}
