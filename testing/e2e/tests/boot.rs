//! Firmware boots disks, discs and kernels: Debian's SeaBIOS and OVMF, Debian's GRUB, Debian's kernel to user space.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::boot_media::{self, BootFiles, UP};
use e2e::kernel::{self, HEADER, HEADER_BYTES, REGISTER_BYTES};
use e2e::program::{Ended, Run};
use e2e::{initramfs, packages};
use tempfile::TempDir;

/// A machine with firmware.
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

/// A word at `at`.
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn doubleword(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) | u32::from(word(bytes, at + 2)) << 16
}

fn written(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).expect("written");
    path
}

/// Linux boot.rst, "The Real-Mode Kernel Header" and "Running the Kernel".
#[test]
fn the_16_bit_entry_is_called_by_its_protocol() {
    const COMMAND_LINE: &str = "one two=2";
    const STACK_END: u16 = 0xe000;
    const INITRD_BYTES: u32 = 5000;
    let length = COMMAND_LINE.len() as u16 + 1;
    let image = kernel::real_mode_bzimage(&kernel::report_real_mode(STACK_END, length, 0x10));
    let folder = folder();
    let kernel = written(folder.path(), "kernel", &image);
    let initrd = written(folder.path(), "initrd", &[7; INITRD_BYTES as usize]);
    let ended = Run::nestling(["run", "--firmware", "bios", "--engine", "soft"])
        .args(["--memory", "128M", "--clock", "virtual", "--timeout", "60"])
        .args(["--debug-exit", "--append", COMMAND_LINE])
        .args(["--kernel".as_ref(), kernel.as_os_str()])
        .args(["--initrd".as_ref(), initrd.as_os_str()])
        .cache(e2e::cache::shared())
        .end();
    ended.expect_code(0x21);
    let bytes = usize::from(REGISTER_BYTES + HEADER_BYTES + length);
    let start = ended.output.len().checked_sub(bytes).expect("a report");
    let (registers, rest) = ended.output[start..].split_at(REGISTER_BYTES.into());
    let (header, line) = rest.split_at(HEADER_BYTES.into());

    let words: Vec<u16> = (0..8).map(|i| word(registers, 2 * i)).collect();
    let [sp, gs, fs, es, ds, ss, cs, flags] = words[..] else {
        unreachable!("eight words");
    };
    assert_eq!([gs, fs, es, ss], [ds; 4]);
    assert_eq!(cs, ds + 0x20);
    // Seven words were pushed.
    assert_eq!(sp + 14, STACK_END);
    assert_eq!(flags & 1 << 9, 0, "interrupts are off");

    let at = |field: u16| usize::from(field - HEADER);
    let base = u32::from(ds) << 4;
    assert_eq!(header[at(0x210)], 0xff, "type_of_loader: undefined");
    assert_eq!(header[at(0x211)], 0x81, "loadflags: and CAN_USE_HEAP");
    let initrd_at = doubleword(header, at(0x218));
    assert_eq!(doubleword(header, at(0x21c)), INITRD_BYTES);
    assert_eq!(word(header, at(0x224)), STACK_END - 0x200, "heap_end_ptr");
    let line_at = doubleword(header, at(0x228));
    assert_eq!(line_at, base + u32::from(STACK_END), "cmd_line_ptr");
    assert_eq!(line, format!("{COMMAND_LINE}\0").as_bytes());
    // On a page, behind what the kernel takes and below what the BIOS keeps of 128 MByte.
    assert!(initrd_at.is_multiple_of(4096));
    assert!(initrd_at > 17 << 20 && initrd_at + INITRD_BYTES < 128 << 20);
    // All else is as in the file.
    let mut unchanged = image[HEADER.into()..][..HEADER_BYTES.into()].to_vec();
    for field in [0x210..0x212, 0x218..0x220, 0x224..0x226, 0x228..0x22c] {
        let field = at(field.start)..at(field.end);
        unchanged[field.clone()].copy_from_slice(&header[field]);
    }
    assert_eq!(header, unchanged);
}

/// Debian's kernel with an initial RAM disk and a command line, by its firmware; to user space, where `script` is run.
fn run_kernel(firmware: &str, append: &str, script: &str) -> Ended {
    let folder = folder();
    let kernel = written(folder.path(), "vmlinuz", &packages::kernel());
    let script = format!("echo \"{UP} $($b cat /proc/cmdline)\"; {script}");
    let initrd = written(folder.path(), "initrd", &initramfs::with(&[], &script));
    let ended = run(firmware)
        .args(["--kernel".as_ref(), kernel.as_os_str()])
        .args(["--initrd".as_ref(), initrd.as_os_str()])
        .args(["--append", append])
        .end();
    ended.expect_code(0);
    ended
}

#[test]
fn seabios_starts_a_kernel_by_the_16_bit_protocol() {
    const APPEND: &str = "console=ttyS0 loglevel=3 panic=-1 one two=2";
    // What the kernel's real-mode code learnt from INT 15h, E801h: the field alt_mem_k of boot_params (zero-page.rst).
    let script = "echo \"alt_mem_k $($b od -A n -t u4 -j 480 -N 4 /sys/kernel/boot_params/data)\"";
    let ended = run_kernel("bios", APPEND, script);
    let console = ended.text();
    for part in [
        // By SeaBIOS; by the kernel's real-mode code, of which no other entry runs a part.
        "Booting from ROM...",
        "Probing EDD (edd=off to disable)...",
        &format!("{UP} {APPEND}"),
    ] {
        assert!(console.contains(part), "no `{part}` in: {console}");
    }
    let (_, rest) = console.split_once("alt_mem_k ").expect("it is printed");
    let kib: u32 = rest
        .split_whitespace()
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number");
    // RAM above 1 MByte, less what the BIOS keeps, in units of 64 KByte.
    let ram = 511 << 10;
    assert!(kib < ram && kib > ram - 1024, "{kib}");
}

#[test]
fn ovmf_starts_a_kernel() {
    const APPEND: &str = "console=ttyS0 quiet panic=-1 one two=2";
    let ended = run_kernel("uefi", APPEND, "echo \"firmware: $($b ls /sys/firmware)\"");
    let console = ended.text();
    // The firmware says where the initial RAM disk is by one word more.
    assert!(console.contains(&format!("{UP} {APPEND}")), "{console}");
    let (_, firmware) = console.split_once("firmware: ").expect("it is printed");
    assert!(
        firmware.split_whitespace().any(|name| name == "efi"),
        "{console}"
    );
}
