//! Debian's QEMU with what it needs to run in a guest: the program, its dynamic loader and libraries, SeaBIOS and the
//! option ROMs.
//!
//! The libraries are found by their names: a program asks for a SONAME (`DT_NEEDED`), and each library says its own
//! (`DT_SONAME`; System V ABI, "Dynamic Section"). The packages are gone through by their dependencies, a layer at a
//! time, until nothing is missing; so only packages that are needed are fetched, not all that are depended on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use object::elf::{DT_NEEDED, DT_SONAME, FileHeader64};
use object::read::elf::{Dyn, FileHeader};
use object::{Endianness, StringTable};

use super::apt::{Apt, PackageRecord};
use super::cache::Entry;
use super::deb::{self, PackagedFile};
use super::{GuestFile, missing};
use crate::failure::Failure;

/// The package of QEMU's system emulator for x86.
pub const PACKAGE: &str = "qemu-system-x86";
/// The packages of its firmware and its option ROMs.
const DATA_PACKAGES: [&str; 2] = ["seabios", "qemu-system-data"];
/// The program in its package and in a guest.
pub const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// The dynamic loader, by the name that programs ask for (System V ABI, AMD64 supplement, 5.2.1).
const LOADER: &str = "ld-linux-x86-64.so.2";
/// Where libraries are, in packages and in a guest.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
/// The files it reads with our options: the firmware, the VGA BIOS, what loads a kernel by `-kernel`, and the option
/// ROM that comes with a local APIC.
const DATA_FILES: [&str; 5] = [
    "usr/share/seabios/bios-256k.bin",
    "usr/share/seabios/vgabios-stdvga.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/multiboot_dma.bin",
    "usr/share/qemu/kvmvapic.bin",
];
/// How many layers of dependencies are looked at. Six are enough for the libraries of Debian 12.
const MOST_LAYERS: usize = 12;

/// Fetches it. The entry's files are named by the last part of their path.
pub fn fetch(apt: &Apt, package: &str) -> Result<Entry, Failure> {
    let fetched = apt.download_all(|apt| {
        let mut records = vec![apt.show(package)?];
        for name in DATA_PACKAGES {
            records.push(apt.show(name)?);
        }
        Ok(records)
    })?;
    let mut files = BTreeMap::new();
    for (record, deb) in &fetched {
        for file in take(deb, |path| path == PROGRAM || DATA_FILES.contains(&path))? {
            files.insert(file_name(&file.path).to_string(), file.content);
        }
        tracing::debug!(package = record.package, "unpacked");
    }
    for path in [PROGRAM].iter().chain(&DATA_FILES) {
        if !files.contains_key(file_name(path)) {
            return Err(missing(package, path));
        }
    }
    let record = fetched.into_iter().next().expect("it is the first").0;
    let program = &files[file_name(PROGRAM)];
    let dynamic = Dynamic::of(program).map_err(|why| missing(package, &why))?;
    files.extend(libraries(apt, &record, dynamic.needed)?);
    Ok(Entry {
        package: record.package,
        version: record.version,
        deb_sha256: record.sha256,
        files,
    })
}

/// The files of the cache entry with their places in a guest.
pub fn placed(entry: Entry) -> Vec<GuestFile> {
    let place = |name: String, content| {
        let known = [PROGRAM].into_iter().chain(DATA_FILES);
        let known = known.into_iter().find(|path| file_name(path) == name);
        let path = match known {
            Some(path) => path.to_string(),
            None if name == LOADER => format!("lib64/{name}"),
            None => format!("{LIBRARIES}/{name}"),
        };
        let mode = match known {
            Some(path) if path != PROGRAM => 0o644,
            _ => 0o755,
        };
        GuestFile {
            path,
            mode,
            content,
        }
    };
    let files = entry.files.into_iter();
    files.map(|(name, content)| place(name, content)).collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Takes files out of a package, which is no longer needed then.
fn take(deb: &Path, wanted: impl FnMut(&str) -> bool) -> Result<Vec<PackagedFile>, Failure> {
    let files = deb::extract(deb, wanted)?;
    std::fs::remove_file(deb).map_err(|e| Failure::writing(deb, &e))?;
    Ok(files)
}

/// What is known of libraries while they are gathered.
struct Gathering {
    /// All libraries seen, by SONAME.
    seen: BTreeMap<String, Vec<u8>>,
    /// Those that are needed.
    taken: BTreeMap<String, Vec<u8>>,
    /// SONAMEs that are needed and were not seen yet.
    wanted: BTreeSet<String>,
}

impl Gathering {
    fn want(&mut self, names: Vec<String>) -> Result<(), String> {
        let mut names = VecDeque::from(names);
        while let Some(name) = names.pop_front() {
            if self.taken.contains_key(&name) {
                continue;
            }
            match self.seen.remove(&name) {
                Some(content) => {
                    names.extend(Dynamic::of(&content)?.needed);
                    self.wanted.remove(&name);
                    self.taken.insert(name, content);
                }
                None => {
                    self.wanted.insert(name);
                }
            }
        }
        Ok(())
    }

    /// Adds the libraries of a package, and takes those that are wanted with all they need.
    fn add(&mut self, files: Vec<PackagedFile>) -> Result<(), String> {
        for file in files {
            // What lies there may be no library, and a library without a name cannot be asked for.
            let Ok(Dynamic {
                soname: Some(name), ..
            }) = Dynamic::of(&file.content)
            else {
                continue;
            };
            if !self.taken.contains_key(&name) {
                self.seen.insert(name, file.content);
            }
        }
        self.want(self.wanted.iter().cloned().collect())
    }
}

/// The libraries called `needed` and all that those need, by SONAME, from the packages that `record` depends on.
fn libraries(
    apt: &Apt,
    record: &PackageRecord,
    needed: Vec<String>,
) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let broken = |why: String| missing(&record.package, &format!("usable library ({why})"));
    let mut gathering = Gathering {
        seen: BTreeMap::new(),
        taken: BTreeMap::new(),
        wanted: BTreeSet::new(),
    };
    gathering.want(needed).map_err(broken)?;
    gathering.wanted.insert(LOADER.into());
    let mut layer = dependencies(&record.depends);
    let mut known: BTreeSet<String> = layer.iter().cloned().collect();
    for _ in 0..MOST_LAYERS {
        if gathering.wanted.is_empty() || layer.is_empty() {
            break;
        }
        let fetched = apt.download_all(|apt| apt.show_known(&layer))?;
        layer.clear();
        for (record, deb) in fetched {
            gathering.add(take(&deb, is_library)?).map_err(broken)?;
            let more = dependencies(&record.depends);
            layer.extend(more.into_iter().filter(|name| known.insert(name.clone())));
        }
    }
    match gathering.wanted.first() {
        None => Ok(gathering.taken),
        Some(name) => Err(missing(&record.package, &format!("library {name}"))),
    }
}

/// Whether a file of this path may be a shared library: directly in a folder where the loader looks.
fn is_library(path: &str) -> bool {
    path.rsplit_once('/').is_some_and(|(folder, name)| {
        folder.strip_prefix("usr/").unwrap_or(folder) == LIBRARIES && name.contains(".so")
    })
}

/// The packages of libraries among the dependencies (Debian Policy 7.1): the first of alternatives, without versions
/// and architectures.
fn dependencies(depends: &str) -> Vec<String> {
    depends
        .split(',')
        .filter_map(|alternatives| {
            let first = alternatives.split('|').next()?.trim();
            let name = first.split([' ', ':', '(']).next()?;
            let library = name.starts_with("lib") || name.starts_with("zlib");
            library.then(|| name.to_string())
        })
        .collect()
}

/// What an ELF file's dynamic section says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dynamic {
    needed: Vec<String>,
    soname: Option<String>,
}

impl Dynamic {
    /// Reads it.
    ///
    /// # Errors
    /// Why `file` is no dynamic ELF64 file, in words.
    fn of(file: &[u8]) -> Result<Self, String> {
        let words = |error: object::Error| error.to_string();
        let header = FileHeader64::<Endianness>::parse(file).map_err(words)?;
        let endian = header.endian().map_err(words)?;
        let sections = header.sections(endian, file).map_err(words)?;
        let Some((entries, strings)) = sections.dynamic(endian, file).map_err(words)? else {
            return Err("it has no dynamic section".into());
        };
        let strings = sections.strings(endian, file, strings).map_err(words)?;
        let mut found = Self::default();
        for entry in entries {
            match entry.tag(endian) {
                DT_NEEDED => found.needed.push(text(entry, endian, strings)?),
                DT_SONAME => found.soname = Some(text(entry, endian, strings)?),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// The string an entry of the dynamic section means; it is to be the name of a file.
fn text(
    entry: &impl Dyn<Endian = Endianness>,
    endian: Endianness,
    strings: StringTable,
) -> Result<String, String> {
    let bytes = entry
        .string(endian, strings)
        .map_err(|error| error.to_string())?;
    let name = String::from_utf8_lossy(bytes).into_owned();
    let plain = name.contains(".so") && !name.starts_with('.') && !name.contains('/');
    plain
        .then_some(name)
        .ok_or_else(|| "a library with an unusable name".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::decompress;

    #[test]
    fn dependencies_are_the_libraries_without_versions() {
        let depends = "libaio1 (>= 0.3.93), zlib1g (>= 1:1.2.0), libfoo:any | libbar, seabios, \
                       libelogind0|libsystemd0, qemu-system-data (>> 1:7.2~)";
        assert_eq!(
            dependencies(depends),
            ["libaio1", "zlib1g", "libfoo", "libelogind0"]
        );
        assert!(dependencies("").is_empty());
    }

    #[test]
    fn libraries_are_where_the_loader_looks() {
        assert!(is_library("lib/x86_64-linux-gnu/libc.so.6"));
        assert!(is_library(
            "usr/lib/x86_64-linux-gnu/libglib-2.0.so.0.7400.6"
        ));
        assert!(!is_library("usr/lib/x86_64-linux-gnu/qemu/ui-sdl.so"));
        assert!(!is_library("usr/share/doc/libc6/copyright"));
    }

    #[test]
    fn files_go_to_their_places() {
        let names = ["qemu-system-x86_64", "bios-256k.bin", LOADER, "libz.so.1"];
        let placed = placed(Entry {
            package: PACKAGE.into(),
            version: "1".into(),
            deb_sha256: String::new(),
            files: names.map(|name| (name.to_string(), Vec::new())).into(),
        });
        let places: Vec<_> = placed.iter().map(|f| (f.path.as_str(), f.mode)).collect();
        assert_eq!(
            places,
            [
                ("usr/share/seabios/bios-256k.bin", 0o644),
                ("lib64/ld-linux-x86-64.so.2", 0o755),
                ("lib/x86_64-linux-gnu/libz.so.1", 0o755),
                ("usr/bin/qemu-system-x86_64", 0o755),
            ]
        );
    }

    #[test]
    fn what_is_no_library_has_no_dynamic_section() {
        assert!(Dynamic::of(b"").is_err());
        assert!(Dynamic::of(b"#!/bin/sh\n").is_err());
        assert!(Dynamic::of(&[0; 4096]).is_err());
        let static_program = crate::initramfs::program::tests::made_up(1);
        assert!(Dynamic::of(&static_program).is_err());
    }

    /// The host's own C library, where there is one, is called what it is asked for by.
    #[test]
    fn a_real_library_says_its_name_and_its_needs() {
        let Ok(libc) = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6") else {
            println!("skipped: this host has no libc.so.6 in its usual place");
            return;
        };
        let dynamic =
            Dynamic::of(&decompress::all(&libc, libc.len()).expect("plain")).expect("ELF");
        assert_eq!(dynamic.soname.as_deref(), Some("libc.so.6"));
        assert_eq!(dynamic.needed, [LOADER]);
    }
}
