//! The cache of fetched files: one folder an entry, with a manifest that names each file's size and
//! SHA-256.
//!
//! Invariants: an entry appears by one rename, complete and synced, so a reader sees all of it or nothing;
//! whoever fills the cache holds its lock; what an interrupted run left behind is removed by the next one
//! that takes the lock.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::progress::Progress;
use crate::failure::{Failure, cause};
use crate::interrupt::Interrupt;

/// The version of the manifest this program writes and reads.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const LOCK: &str = "lock";
/// Folders that are being filled, and folders on their way out.
const UNFINISHED: &str = ".unfinished-";
/// No manifest is larger.
const LARGEST_MANIFEST: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    package: String,
    version: String,
    deb_sha256: String,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    size_bytes: u64,
    sha256: String,
}

/// The content of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The package the files come from.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The SHA-256 of the `.deb`, as apt gave it and as it was checked.
    pub deb_sha256: String,
    /// The files by name. Names are plain: no `/`.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// What looking for an entry found.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup {
    /// There is none.
    Missing,
    /// There is one that cannot be used, and why.
    Broken(String),
    /// All files are as the manifest says.
    Good(Entry),
}

/// The cache's folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Holds the cache's lock while it lives.
#[derive(Debug)]
pub struct Locked {
    cache: Cache,
    _lock: File,
}

/// The cache's folder by the environment: `NESTLING_CACHE`, else `XDG_CACHE_HOME/nestling`, else
/// `HOME/.cache/nestling`. Empty variables count as unset, and so does a relative `XDG_CACHE_HOME` (XDG
/// Base Directory Specification).
pub fn folder(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(own) = set("NESTLING_CACHE") {
        return Some(own.into());
    }
    let xdg = set("XDG_CACHE_HOME").map(PathBuf::from);
    if let Some(xdg) = xdg.filter(|path| path.is_absolute()) {
        return Some(xdg.join("nestling"));
    }
    set("HOME").map(|home| Path::new(&home).join(".cache/nestling"))
}

impl Cache {
    /// The cache at the place the environment names.
    ///
    /// # Errors
    /// No variable that names a place.
    pub fn from_environment() -> Result<Self, Failure> {
        folder(|name| std::env::var_os(name))
            .map(|root| Self { root })
            .ok_or_else(|| {
                Failure::new(
                    "no place for the cache",
                    "HOME is not set",
                    "set NESTLING_CACHE to a directory this user may write",
                )
            })
    }

    /// The cache at `root`.
    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// Reads the entry `name` and checks every file of it.
    pub fn look_up(&self, name: &str) -> Lookup {
        let folder = self.root.join(name);
        if !folder.exists() {
            return Lookup::Missing;
        }
        match read_entry(&folder) {
            Ok(entry) => Lookup::Good(entry),
            Err(why) => Lookup::Broken(why),
        }
    }

    /// Takes the lock, waiting for another process that holds it, and clears what interrupted runs left.
    ///
    /// # Errors
    /// A folder that cannot be made or written, or an interrupt while waiting.
    pub fn lock(&self, interrupt: &Interrupt, progress: &Progress) -> Result<Locked, Failure> {
        std::fs::create_dir_all(&self.root).map_err(|e| Failure::writing(&self.root, &e))?;
        let path = self.root.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Failure::writing(&path, &e))?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if interrupt.is_requested() {
                        return Err(Failure::new(
                            "stopped while waiting for the cache",
                            "a signal asked for it",
                            "start again",
                        ));
                    }
                    if !told {
                        progress.say("waiting for another nestling that fills the cache");
                        told = true;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::Error(error)) => return Err(Failure::writing(&path, &error)),
            }
        }
        let locked = Locked {
            cache: self.clone(),
            _lock: lock,
        };
        locked.clear_unfinished()?;
        Ok(locked)
    }
}

impl Locked {
    /// A folder inside the cache for work in progress; it vanishes when dropped.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn workspace(&self) -> Result<TempDir, Failure> {
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.cache.root)
            .map_err(|e| Failure::writing(&self.cache.root, &e))
    }

    /// Puts `entry` under `name`, replacing what is there.
    ///
    /// # Errors
    /// A cache that cannot be written; nothing is left behind then.
    pub fn store(&self, name: &str, entry: &Entry) -> Result<(), Failure> {
        let workspace = self.workspace()?;
        write_entry(workspace.path(), entry)?;
        let target = self.cache.root.join(name);
        if target.exists() {
            let outgoing = self.workspace()?;
            let aside = outgoing.path().join("old");
            std::fs::rename(&target, &aside).map_err(|e| Failure::writing(&target, &e))?;
        }
        std::fs::rename(workspace.path(), &target).map_err(|e| Failure::writing(&target, &e))?;
        sync(&self.cache.root).map_err(|e| Failure::writing(&self.cache.root, &e))
    }

    fn clear_unfinished(&self) -> Result<(), Failure> {
        let root = &self.cache.root;
        for entry in std::fs::read_dir(root).map_err(|e| Failure::reading(root, &e))? {
            let entry = entry.map_err(|e| Failure::reading(root, &e))?;
            if is_unfinished(&entry.file_name()) {
                let path = entry.path();
                std::fs::remove_dir_all(&path).map_err(|e| Failure::writing(&path, &e))?;
            }
        }
        Ok(())
    }
}

fn is_unfinished(name: &OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with(UNFINISHED))
}

/// A name that stays inside the entry's folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']) && name != MANIFEST
}

fn read_entry(folder: &Path) -> Result<Entry, String> {
    let manifest_path = folder.join(MANIFEST);
    let size = std::fs::metadata(&manifest_path)
        .map_err(|e| format!("{MANIFEST}: {}", cause(&e)))?
        .len();
    if size > LARGEST_MANIFEST {
        return Err(format!("{MANIFEST} is too large"));
    }
    let text = std::fs::read(&manifest_path).map_err(|e| format!("{MANIFEST}: {}", cause(&e)))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| format!("{MANIFEST}: {e}"))?;
    if manifest.format != FORMAT {
        return Err(format!("it has format {}, not {FORMAT}", manifest.format));
    }
    let mut files = BTreeMap::new();
    for (name, record) in manifest.files {
        if !is_plain(&name) {
            return Err(format!("{MANIFEST} names a file {name:?}"));
        }
        let content =
            read_checked(&folder.join(&name), &record).map_err(|why| format!("{name}: {why}"))?;
        files.insert(name, content);
    }
    Ok(Entry {
        package: manifest.package,
        version: manifest.version,
        deb_sha256: manifest.deb_sha256,
        files,
    })
}

fn read_checked(path: &Path, record: &FileRecord) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|e| cause(&e))?.len();
    if size != record.size_bytes {
        return Err(format!("{size} bytes instead of {}", record.size_bytes));
    }
    let content = std::fs::read(path).map_err(|e| cause(&e))?;
    if sha256(&content) != record.sha256 {
        return Err("its checksum is wrong".into());
    }
    Ok(content)
}

fn write_entry(folder: &Path, entry: &Entry) -> Result<(), Failure> {
    let mut files = BTreeMap::new();
    for (name, content) in &entry.files {
        assert!(is_plain(name), "entries are made of plain names");
        write_synced(&folder.join(name), content)?;
        let record = FileRecord {
            size_bytes: content.len() as u64,
            sha256: sha256(content),
        };
        files.insert(name.clone(), record);
    }
    let manifest = Manifest {
        format: FORMAT,
        package: entry.package.clone(),
        version: entry.version.clone(),
        deb_sha256: entry.deb_sha256.clone(),
        files,
    };
    let path = folder.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| Failure::writing(&path, &io::Error::from(e)))?;
    write_synced(&path, &text)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
        .map_err(|e| Failure::writing(folder, &e))?;
    sync(folder).map_err(|e| Failure::writing(folder, &e))
}

fn write_synced(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|e| Failure::writing(path, &e))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn sha256(content: &[u8]) -> String {
    super::hexadecimal(&Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn entry() -> Entry {
        Entry {
            package: "busybox-static".into(),
            version: "1:1.35".into(),
            deb_sha256: "ab".repeat(32),
            files: BTreeMap::from([
                ("busybox".to_string(), b"box".to_vec()),
                ("kvm.ko".to_string(), vec![0; 5000]),
            ]),
        }
    }

    fn filled() -> (TempDir, Cache) {
        let root = tempfile::tempdir().expect("a directory");
        let cache = Cache::at(root.path());
        cache
            .lock(&Interrupt::new(), &Progress::silent())
            .and_then(|locked| locked.store("one", &entry()))
            .expect("stored");
        (root, cache)
    }

    #[test]
    fn what_is_stored_is_found() {
        let (_root, cache) = filled();
        assert_eq!(cache.look_up("one"), Lookup::Good(entry()));
        assert_eq!(cache.look_up("two"), Lookup::Missing);
    }

    #[test]
    fn storing_again_replaces() {
        let (root, cache) = filled();
        let mut newer = entry();
        newer.version = "2".into();
        newer.files.remove("kvm.ko");
        let locked = cache
            .lock(&Interrupt::new(), &Progress::silent())
            .expect("locked");
        locked.store("one", &newer).expect("stored");
        assert_eq!(cache.look_up("one"), Lookup::Good(newer));
        let mut names: Vec<OsString> = std::fs::read_dir(root.path())
            .expect("readable")
            .map(|e| e.expect("readable").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["lock", "one"]);
    }

    #[test]
    fn damage_is_seen() {
        let damages: [(&str, &[u8]); 4] = [
            ("busybox", b"bix"),
            ("busybox", b"longer"),
            ("manifest.json", b"{"),
            ("manifest.json", b"{\"format\":9,\"package\":\"\",\"version\":\"\",\"deb_sha256\":\"\",\"files\":{}}"),
        ];
        for (file, content) in damages {
            let (root, cache) = filled();
            std::fs::write(root.path().join("one").join(file), content).expect("written");
            assert!(
                matches!(cache.look_up("one"), Lookup::Broken(_)),
                "{file} {content:?}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_damage() {
        let (root, cache) = filled();
        std::fs::remove_file(root.path().join("one/busybox")).expect("removed");
        assert_eq!(
            cache.look_up("one"),
            Lookup::Broken("busybox: No such file or directory".into())
        );
    }

    #[test]
    fn a_manifest_cannot_point_outside() {
        let (root, cache) = filled();
        let path = root.path().join("one/manifest.json");
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(&path, text.replace("\"busybox\": {", "\"../x\": {")).expect("written");
        assert!(
            matches!(cache.look_up("one"), Lookup::Broken(why) if why.contains("names a file"))
        );
    }

    #[test]
    fn the_next_run_clears_up() {
        let (root, cache) = filled();
        let left = root.path().join(".unfinished-abc/deep");
        std::fs::create_dir_all(&left).expect("created");
        cache
            .lock(&Interrupt::new(), &Progress::silent())
            .expect("locked");
        assert!(!root.path().join(".unfinished-abc").exists());
        assert!(matches!(cache.look_up("one"), Lookup::Good(_)));
    }

    #[test]
    fn a_second_run_waits_and_can_be_interrupted() {
        let (_root, cache) = filled();
        let held = cache
            .lock(&Interrupt::new(), &Progress::silent())
            .expect("locked");
        let interrupt = Interrupt::new();
        interrupt.request(crate::interrupt::StopReason::Signal(2));
        assert!(cache.lock(&interrupt, &Progress::silent()).is_err());
        drop(held);
        assert!(cache.lock(&interrupt, &Progress::silent()).is_ok());
    }

    #[test]
    fn the_place_follows_the_environment() {
        let with = |pairs: &'static [(&str, &str)]| {
            folder(move |name| {
                let pair = pairs.iter().find(|(key, _)| *key == name)?;
                Some(OsString::from(pair.1))
            })
        };
        assert_eq!(
            with(&[
                ("NESTLING_CACHE", "/n"),
                ("XDG_CACHE_HOME", "/x"),
                ("HOME", "/h")
            ]),
            Some("/n".into())
        );
        assert_eq!(
            with(&[
                ("NESTLING_CACHE", ""),
                ("XDG_CACHE_HOME", "/x"),
                ("HOME", "/h")
            ]),
            Some("/x/nestling".into())
        );
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]),
            Some("/h/.cache/nestling".into())
        );
        assert_eq!(with(&[]), None);
    }
}
