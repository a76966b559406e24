//! Debian's programs for the benchmark, with their libraries, as a folder that every machine gets the same copy of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::programs::output;

/// The packages, of Debian 12.
const PACKAGES: [&str; 11] = [
    "libc6",
    "xz-utils",
    "liblzma5",
    "zstd",
    "zlib1g",
    "liblz4-1",
    "tcc",
    "sqlite3",
    "libsqlite3-0",
    "libreadline8",
    "libtinfo6",
];
/// The programs.
const PROGRAMS: [&str; 4] = ["xz", "zstd", "tcc", "sqlite3"];
/// What they and their libraries ask for.
const LIBRARIES: [&str; 10] = [
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "liblzma.so.5",
    "libz.so.1",
    "liblz4.so.1",
    "libsqlite3.so.0",
    "libreadline.so.8",
    "libtinfo.so.6",
];
const LOADER: &str = "ld-linux-x86-64.so.2";
const LIBRARY_FOLDER: &str = "lib/x86_64-linux-gnu";

/// The folder, in which `guestbench` finds them as in a guest's root. It is made once below `keep`.
///
/// # Errors
/// The packages cannot be had, or have other files than those of Debian 12.
pub fn folder(nestling: &Path, keep: &Path) -> Result<PathBuf> {
    let folder = keep.join("files");
    if folder.exists() {
        return Ok(folder);
    }
    let [packages, unfinished] = ["packages", "files-unfinished"].map(|name| keep.join(name));
    for left_over in [&packages, &unfinished] {
        if left_over.exists() {
            fs::remove_dir_all(left_over)?;
        }
    }
    output(
        Command::new(nestling)
            .args(["unpack", "--output"])
            .arg(&packages)
            .args(PACKAGES),
    )?;
    compose(&packages, &unfinished)?;
    fs::rename(&unfinished, &folder)?;
    fs::remove_dir_all(&packages)?;
    Ok(folder)
}

/// Copies what is needed. Libraries come to one folder, wherever the packages have them; links are followed, except
/// that the loader's one leads out of the folder, so its target is taken.
fn compose(packages: &Path, to: &Path) -> Result<()> {
    for program in PROGRAMS {
        let path = format!("usr/bin/{program}");
        copy(&packages.join(&path), &to.join(&path))?;
    }
    for library in LIBRARIES.into_iter().chain([LOADER]) {
        let places = ["", "usr"].map(|up| packages.join(up).join(LIBRARY_FOLDER).join(library));
        let Some(found) = places.iter().find(|place| place.exists()) else {
            bail!("the packages {} have no {library}", PACKAGES.join(", "));
        };
        copy(found, &to.join(LIBRARY_FOLDER).join(library))?;
    }
    let loader = to.join(LIBRARY_FOLDER).join(LOADER);
    copy(&loader, &to.join("lib64").join(LOADER))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("a copy goes into a folder")?;
    fs::create_dir_all(parent)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
