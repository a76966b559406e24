//! Disks and discs that boot by GRUB into Debian's kernel, made by Debian's own tools.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::initramfs;
use crate::packages::{self, file, tool};

const MIB: usize = 1 << 20;
const SECTOR: usize = 512;
/// Where the file system of a partitioned disk starts, in sectors: behind GRUB's core.
const PARTITION: u32 = 2048;
/// MBR: the partition table, and what ends the sector.
const TABLE: usize = 0x1be;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// MBR partition types: FAT32 by LBA.
const FAT32_LBA: u8 = 0x0c;
/// Size of the disks.
const DISK_BYTES: usize = 64 * MIB;
/// Modules of GRUB's core on a disk: disk, partition table, file system, and what the menu needs.
const MODULES: &[&str] = &[
    "biosdisk",
    "part_msdos",
    "fat",
    "normal",
    "linux",
    "serial",
    "terminal",
    "echo",
    "search",
];

/// Kernel, initial RAM disk and menu in a folder, as they go on the media.
#[derive(Debug)]
pub struct BootFiles {
    folder: TempDir,
}

/// The line the guest prints in user space, followed by its kernel's command line.
pub const UP: &str = "user space of";

impl BootFiles {
    /// The kernel with an initial RAM disk that says where it is and switches the machine off.
    ///
    /// # Panics
    /// They cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let grub = folder.path().join("boot/grub");
        fs::create_dir_all(&grub).expect("a folder");
        let script = format!("echo \"{UP} $($b cat /proc/cmdline)\"; echo disks: /dev/vd?");
        let initrd = initramfs::with(initramfs::VIRTIO_BLK, &script);
        let write = |name: &str, content: &[u8]| {
            fs::write(folder.path().join("boot").join(name), content).expect("written");
        };
        write("vmlinuz", &packages::kernel());
        write("initrd", &initrd);
        write("grub/grub.cfg", menu().as_bytes());
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).to_owned()
    }
}

impl Default for BootFiles {
    fn default() -> Self {
        Self::new()
    }
}

/// GRUB's menu: it says on which platform it runs, then boots.
fn menu() -> String {
    "set timeout=0\nserial --unit=0 --speed=115200\nterminal_output serial\n\
     echo \"GRUB on $grub_platform from $root\"\n\
     linux /boot/vmlinuz console=ttyS0 quiet panic=-1 loaded-by=grub-$grub_platform\n\
     initrd /boot/initrd\nboot\n"
        .into()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs one of mtools' programs on the file system at an offset of an image.
fn fat(program: &str, image: &Path, offset: usize, arguments: &[&str]) {
    let image = format!("{}@@{offset}", text(image));
    let mut all = vec!["-c", program, "-i", &image];
    all.extend(arguments);
    tool("usr/bin/mtools", &all);
}

/// Makes an empty FAT32 file system from `offset` to the end of the image.
fn make_fat(image: &Path, offset: usize) {
    let sectors = ((DISK_BYTES - offset) / SECTOR).to_string();
    let hidden = (offset / SECTOR).to_string();
    let arguments = [
        "-F", "-h", "64", "-s", "32", "-T", &sectors, "-H", &hidden, "::",
    ];
    fat("mformat", image, offset, &arguments);
}

/// A disk for a BIOS: GRUB in the master boot record and behind it, and one FAT partition.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn grub_disk(files: &BootFiles, folder: &Path) -> PathBuf {
    let core = folder.join("core.img");
    let modules = file("usr/lib/grub/i386-pc");
    let mut arguments = vec!["-O", "i386-pc", "-d", text(&modules), "-o", text(&core)];
    arguments.extend(["-p", "(hd0,msdos1)/boot/grub"]);
    arguments.extend(MODULES);
    tool("usr/bin/grub-mkimage", &arguments);
    let core = fs::read(&core).expect("made");
    // The first sector of the core loads the rest from the sectors behind it.
    assert!(core.len() < (PARTITION as usize - 1) * SECTOR, "it fits");
    let mut disk = vec![0; DISK_BYTES];
    let boot = fs::read(modules.join("boot.img")).expect("in the package");
    disk[..TABLE].copy_from_slice(&boot[..TABLE]);
    disk[TABLE] = 0x80;
    disk[TABLE + 4] = FAT32_LBA;
    disk[TABLE + 8..TABLE + 12].copy_from_slice(&PARTITION.to_le_bytes());
    let sectors = (DISK_BYTES / SECTOR) as u32 - PARTITION;
    disk[TABLE + 12..TABLE + 16].copy_from_slice(&sectors.to_le_bytes());
    disk[SECTOR - 2..SECTOR].copy_from_slice(&SIGNATURE);
    disk[SECTOR..SECTOR + core.len()].copy_from_slice(&core);
    let image = folder.join("grub.img");
    fs::write(&image, disk).expect("written");
    let offset = PARTITION as usize * SECTOR;
    make_fat(&image, offset);
    fat(
        "mcopy",
        &image,
        offset,
        &["-s", &files.path("boot"), "::/boot"],
    );
    image
}

/// A disk for UEFI: one FAT file system with GRUB where firmware looks for a loader.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn efi_disk(files: &BootFiles, folder: &Path) -> PathBuf {
    let image = folder.join("efi.img");
    fs::write(&image, vec![0; DISK_BYTES]).expect("written");
    make_fat(&image, 0);
    fat(
        "mmd",
        &image,
        0,
        &["::/EFI", "::/EFI/BOOT", "::/EFI/debian"],
    );
    // Debian's GRUB in one file looks for its menu in the distribution's folder.
    let grub = file("usr/lib/grub/x86_64-efi/monolithic/grubx64.efi");
    fat(
        "mcopy",
        &image,
        0,
        &[text(&grub), "::/EFI/BOOT/BOOTX64.EFI"],
    );
    fat(
        "mcopy",
        &image,
        0,
        &[&files.path("boot/grub/grub.cfg"), "::/EFI/debian/grub.cfg"],
    );
    fat("mcopy", &image, 0, &["-s", &files.path("boot"), "::/boot"]);
    image
}

/// A hybrid disc: it boots from a CD-ROM drive, and as a disk.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn hybrid_iso(files: &BootFiles, folder: &Path) -> PathBuf {
    let image = folder.join("grub.iso");
    let arguments = [
        format!("--directory={}", text(&file("usr/lib/grub/i386-pc"))),
        format!("--xorriso={}", text(&file("usr/bin/xorriso"))),
        "--fonts=".into(),
        "--locales=".into(),
        "--themes=".into(),
        format!("--output={}", text(&image)),
        text(files.folder.path()).into(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tool("usr/bin/grub-mkrescue", &arguments);
    image
}

/// A disc for UEFI: the disk of [`efi_disk`] as its boot image, kernel and menu in the disc's own file system.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn efi_iso(files: &BootFiles, folder: &Path) -> PathBuf {
    let content = folder.join("disc");
    fs::create_dir(&content).expect("a folder");
    let loader = efi_disk(files, folder);
    fs::rename(loader, content.join("efi.img")).expect("renamed");
    let image = folder.join("efi.iso");
    let boot = format!("/boot={}", files.path("boot"));
    let menu = format!("/EFI/debian/grub.cfg={}", files.path("boot/grub/grub.cfg"));
    let arguments = [
        "-as",
        "mkisofs",
        "-quiet",
        "-r",
        "-J",
        "-graft-points",
        "-o",
        text(&image),
        "-e",
        "efi.img",
        "-no-emul-boot",
        text(&content),
        &boot,
        &menu,
    ];
    tool("usr/bin/xorriso", &arguments);
    image
}
