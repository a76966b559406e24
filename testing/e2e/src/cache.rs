//! The cache of fetched packages that all tests share, so that a fresh clone fetches once. It is the one that
//! `NESTLING_CACHE` names, else one beside the build's files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::program::{self, Run};

/// The shared cache, filled with what a demo needs; other entries may come in time. Tests only read it; several test
/// programs may come here at once, since the program locks its cache.
///
/// # Panics
/// It cannot be filled: the first time this needs apt and the network.
#[must_use]
pub fn shared() -> &'static Path {
    static SHARED: OnceLock<PathBuf> = OnceLock::new();
    SHARED.get_or_init(|| {
        let folder = std::env::var_os("NESTLING_CACHE")
            .filter(|value| !value.is_empty())
            .map_or_else(|| program::kept().join("cache"), PathBuf::from);
        images_of(2, &folder).expect_code(0);
        folder
    })
}

/// What writing the images of a demo of `depth` levels gave, with the cache in `folder`.
fn images_of(depth: u8, folder: &Path) -> program::Ended {
    let output = tempfile::tempdir().expect("a directory");
    write_images(depth, output.path()).cache(folder).end()
}

/// A run that writes the images of a demo of `depth` levels to `output`; it needs the files of the cache and
/// starts no guest.
#[must_use]
pub fn write_images(depth: u8, output: &Path) -> Run {
    let depth = depth.to_string();
    Run::nestling(["images", "--depth", &depth, "--output"]).args([output])
}

/// What a demo needs of the cache.
const OF_A_DEMO: [&str; 2] = ["busybox-static", "linux-image-cloud-amd64"];

/// A copy of what a demo needs of the shared cache, which a test may spoil.
///
/// # Panics
/// It cannot be copied.
#[must_use]
pub fn copy() -> TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    for entry in OF_A_DEMO {
        copy_folder(&shared().join(entry), &folder.path().join(entry));
    }
    folder
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder is made");
    for entry in fs::read_dir(from).expect("the folder is readable") {
        let entry = entry.expect("the folder is readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("the file is copied");
        }
    }
}

/// The names in `folder`, sorted, hidden ones too; nothing if there is no such folder.
#[must_use]
pub fn names(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

/// Checks that `folder` holds the lock at most and these entries, complete.
///
/// # Panics
/// There is something else in it, or something is missing.
pub fn assert_holds(folder: &Path, entries: &[&str]) {
    let mut found = names(folder);
    found.retain(|name| name != "lock");
    assert_eq!(found, entries, "the cache at {}", folder.display());
    for entry in entries {
        let manifest = fs::read(folder.join(entry).join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        let files = manifest["files"].as_object().expect("files");
        assert!(!files.is_empty());
        for (name, record) in files {
            let path = folder.join(entry).join(name);
            let size = fs::metadata(&path).expect("the file is there").len();
            assert_eq!(record["size_bytes"], size, "{}", path.display());
        }
    }
}
