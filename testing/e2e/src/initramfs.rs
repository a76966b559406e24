//! An initial RAM disk for Debian's kernel: busybox, modules, a script (the "newc" format of Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use crate::packages;

/// What virtio disks need, in the order of their needs.
pub const VIRTIO_BLK: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

/// Types of files.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTERS: u32 = 0o020_600;

struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a small file");
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// An image that loads `modules` and runs the lines of `script`, in which `$b` is busybox, then switches the machine
/// off. `/proc`, `/sys` and `/dev` are there.
#[must_use]
pub fn with(modules: &[&str], script: &str) -> Vec<u8> {
    let mut archive = Archive {
        bytes: Vec::new(),
        entries: 0,
    };
    for folder in ["bin", "dev", "proc", "sys", "mnt", "modules"] {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    archive.add("dev/console", CHARACTERS, (5, 1), &[]);
    let busybox = packages::cached("busybox-static", "busybox");
    archive.add("bin/busybox", PROGRAM, (0, 0), &busybox);
    for name in modules {
        let content = packages::module(name);
        archive.add(&format!("modules/{name}.ko"), PROGRAM, (0, 0), &content);
    }
    let init = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n\
         $b mount -t proc proc /proc\n$b mount -t sysfs sysfs /sys\n$b mount -t devtmpfs dev /dev\n\
         for module in {}; do $b insmod /modules/$module.ko || echo \"no module $module\"; done\n\
         {script}\n$b poweroff -f\n",
        modules.join(" ")
    );
    archive.add("init", PROGRAM, (0, 0), init.as_bytes());
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    archive.bytes
}
