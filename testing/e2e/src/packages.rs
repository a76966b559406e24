//! Debian's packages unpacked: the kernel's modules, and the tools that make disks and discs. They are fetched by the
//! program, kept beside its cache, and need nothing of this machine but its C library.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::program::{self, Run};

/// GRUB, what makes discs, what makes FAT file systems, and their libraries.
const TOOLS: &[&str] = &[
    "grub-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "mtools",
    "xorriso",
    "libisoburn1",
    "libburn4",
    "libisofs6",
    "libjte2",
    "libdevmapper1.02.1",
    "libefiboot1",
    "libefivar1",
];
/// The entry of the cache with the kernel, and its manifest.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The folder with all packages, filled. Several test programs may come here at once.
///
/// # Panics
/// They cannot be had: the first time this needs apt and the network.
#[must_use]
pub fn unpacked() -> &'static Path {
    static UNPACKED: OnceLock<PathBuf> = OnceLock::new();
    UNPACKED.get_or_init(|| {
        let kernel = kernel_package();
        let folder = program::kept().join(format!("packages-{kernel}"));
        fs::create_dir_all(program::kept()).expect("a folder");
        let lock = File::create(program::kept().join("packages.lock")).expect("a lock");
        lock.lock().expect("locked");
        if !folder.exists() {
            // One folder at a time is kept; what an older kernel or an interrupted run left goes.
            let unfinished = program::kept().join("packages-unfinished");
            let _ = fs::remove_dir_all(&unfinished);
            Run::nestling(["unpack", "--output"])
                .args([&unfinished])
                .args(TOOLS)
                .args([&kernel])
                .cache(crate::cache::shared())
                .end()
                .expect_code(0);
            fs::rename(&unfinished, &folder).expect("renamed");
        }
        folder
    })
}

/// The package of the cached kernel, as `name=version`.
fn kernel_package() -> String {
    let manifest = crate::cache::shared().join(KERNEL).join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let field = |name: &str| manifest[name].as_str().expect("a text").to_owned();
    format!("{}={}", field("package"), field("version"))
}

/// A file of the cache.
///
/// # Panics
/// It cannot be read.
#[must_use]
pub fn cached(entry: &str, file: &str) -> Vec<u8> {
    fs::read(crate::cache::shared().join(entry).join(file)).expect("in the cache")
}

/// Debian's kernel.
#[must_use]
pub fn kernel() -> Vec<u8> {
    cached(KERNEL, "vmlinuz")
}

/// A module of that kernel by its name.
///
/// # Panics
/// There is no such module.
#[must_use]
pub fn module(name: &str) -> Vec<u8> {
    let file = format!("{name}.ko");
    let mut folders = vec![unpacked().join("lib/modules")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                folders.push(entry.path());
            } else if *entry.file_name() == *file {
                return fs::read(entry.path()).expect("readable");
            }
        }
    }
    panic!("no module {name}")
}

/// A file of the packages.
#[must_use]
pub fn file(path: &str) -> PathBuf {
    unpacked().join(path)
}

/// Runs a tool of the packages and gives what it prints.
///
/// # Panics
/// It fails.
pub fn tool(path: &str, arguments: &[&str]) -> String {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(file);
    let output = Command::new(file(path))
        .args(arguments)
        .env(
            "LD_LIBRARY_PATH",
            std::env::join_paths(libraries).expect("no colon"),
        )
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path} {arguments:?}: {said}");
    said.into_owned()
}
