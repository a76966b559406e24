//! Debian packages through the host's apt, without root: apt is given state, lists and cache folders of our
//! own, reads the host's sources and keys, and neither locks nor changes anything of the host's.
//!
//! The host's package lists are taken when they know the package; when they do not, or when what they name
//! is gone from the archive, fresh lists are fetched once into our own folder.

mod messages;
mod process;

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::progress::Progress;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use messages::Trouble;
use process::Answer;

/// Where Debian keeps the host's lists.
const HOST_LISTS: &str = "/var/lib/apt/lists";
/// What every failure here advises when nothing better is known.
const OWN_FILES: &str = "give --kernel, --modules and --busybox to use files of your own";

/// What apt says about one version of a package.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackageRecord {
    /// The package's name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The size of the `.deb` in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of the `.deb` in lower-case hexadecimal digits.
    pub sha256: String,
    /// The field `Depends`, as it is.
    pub depends: String,
}

/// Parses the first record of `apt-cache show` (deb822(5) stanzas). `None` when a needed field is missing.
pub fn parse_record(text: &str) -> Option<PackageRecord> {
    let mut record = PackageRecord::default();
    let stanza = text.split("\n\n").next()?;
    for line in stanza.lines() {
        let Some((field, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match field {
            "Package" => record.package = value.into(),
            "Version" => record.version = value.into(),
            "Size" => record.size_bytes = value.parse().ok()?,
            "SHA256" => record.sha256 = value.to_ascii_lowercase(),
            "Depends" => record.depends = value.into(),
            _ => {}
        }
    }
    let digits = record.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    let complete = !record.package.is_empty() && !record.version.is_empty();
    (complete && digits && record.sha256.len() == 64).then_some(record)
}

/// The first dependency whose name starts with `prefix` and a digit: its name and, when it is pinned by
/// `(= V)`, its version.
pub fn dependency(depends: &str, prefix: &str) -> Option<(String, Option<String>)> {
    depends.split([',', '|']).find_map(|alternative| {
        let alternative = alternative.trim();
        let (name, rest) = alternative.split_once(' ').unwrap_or((alternative, ""));
        let name = name.split(':').next()?;
        let digit = name.strip_prefix(prefix)?.as_bytes().first()?;
        let version = rest
            .trim()
            .strip_prefix("(=")
            .and_then(|rest| rest.strip_suffix(')'))
            .map(|version| version.trim().to_string());
        digit.is_ascii_digit().then(|| (name.to_string(), version))
    })
}

/// The host's apt, with folders of its own below one directory.
pub struct Apt<'a> {
    root: PathBuf,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    own_lists: Cell<bool>,
}

impl<'a> Apt<'a> {
    /// Prepares the folders below `root`, which must exist and be this user's.
    ///
    /// # Errors
    /// No apt on this host, or folders that cannot be made.
    pub fn new(
        root: &Path,
        interrupt: &'a Interrupt,
        progress: &'a Progress,
    ) -> Result<Self, Failure> {
        if !is_on_path("apt-get") || !is_on_path("apt-cache") {
            return Err(Failure::new(
                "cannot fetch the demo's kernel",
                "this host has no apt",
                OWN_FILES,
            ));
        }
        for folder in [
            "lists/partial",
            "state",
            "cache/archives/partial",
            "fetched",
        ] {
            let folder = root.join(folder);
            std::fs::create_dir_all(&folder).map_err(|e| Failure::writing(&folder, &e))?;
        }
        let status = root.join("state/status");
        std::fs::write(&status, "").map_err(|e| Failure::writing(&status, &e))?;
        Ok(Self {
            root: root.to_path_buf(),
            interrupt,
            progress,
            own_lists: Cell::new(false),
        })
    }

    /// What apt knows about `package`, fetching fresh lists if the host's do not know it.
    ///
    /// # Errors
    /// No such package, no network, or whatever apt says.
    pub fn show(&self, package: &str) -> Result<PackageRecord, Failure> {
        if let Some(record) = self.show_once(package)? {
            return Ok(record);
        }
        let messages = if self.own_lists.get() {
            String::new()
        } else {
            self.update()?
        };
        match self.show_once(package)? {
            Some(record) => Ok(record),
            None if messages.is_empty() => {
                Err(self.failure(package, &format!("Unable to locate package {package}")))
            }
            None => Err(self.failure(package, &messages)),
        }
    }

    /// Fetches the package and checks it. Where the archive no longer has what the host's lists name, the
    /// lists are fetched afresh and `find` is asked for the package again.
    ///
    /// # Errors
    /// No network, a full disk, a package that is not what the lists say, or whatever apt says.
    pub fn download(
        &self,
        find: impl Fn(&Self) -> Result<PackageRecord, Failure>,
    ) -> Result<(PackageRecord, PathBuf), Failure> {
        let mut fetched = self.download_all(|apt| Ok(vec![find(apt)?]))?;
        Ok(fetched.pop().expect("as many come as were found"))
    }

    /// The same for several packages, in the order in which `find` gives them.
    ///
    /// # Errors
    /// As [`Self::download`].
    pub fn download_all(
        &self,
        find: impl Fn(&Self) -> Result<Vec<PackageRecord>, Failure>,
    ) -> Result<Vec<(PackageRecord, PathBuf)>, Failure> {
        let records = find(self)?;
        let messages = match self.download_once(&records)? {
            Ok(paths) => return Ok(records.into_iter().zip(paths).collect()),
            Err(messages) => messages,
        };
        let may_be_stale = match self.trouble(&messages) {
            Trouble::NoNetwork | Trouble::DiskFull => false,
            Trouble::NoSuchPackage | Trouble::Other => !self.own_lists.get(),
        };
        if !may_be_stale {
            return Err(self.failure(&names(&records), &messages));
        }
        self.update()?;
        let records = find(self)?;
        match self.download_once(&records)? {
            Ok(paths) => Ok(records.into_iter().zip(paths).collect()),
            Err(messages) => Err(self.failure(&names(&records), &messages)),
        }
    }

    /// What apt knows about each of `packages`, in the order asked for; those it does not know are left out.
    ///
    /// # Errors
    /// apt cannot be run.
    pub fn show_known(&self, packages: &[String]) -> Result<Vec<PackageRecord>, Failure> {
        let mut arguments = vec!["show", "--no-all-versions"];
        arguments.extend(packages.iter().map(String::as_str));
        let answer = self.ask("apt-cache", &arguments, &self.root, &|| {})?;
        let mut known: Vec<PackageRecord> = answer
            .output
            .split("\n\n")
            .filter_map(parse_record)
            .collect();
        known.sort_by_key(|record| packages.iter().position(|name| *name == record.package));
        Ok(known)
    }

    fn show_once(&self, package: &str) -> Result<Option<PackageRecord>, Failure> {
        let arguments = ["show", "--no-all-versions", package];
        let answer = self.ask("apt-cache", &arguments, &self.root, &|| {})?;
        Ok(parse_record(&answer.output))
    }

    /// Fetches lists into our own folder and uses them from now on. An unreachable source among several is
    /// no failure yet: what counts is whether the package is known afterwards. Gives apt's messages.
    fn update(&self) -> Result<String, Failure> {
        self.progress.say("fetching the package lists with apt");
        self.own_lists.set(true);
        let answer = self.ask("apt-get", &["update", "-q"], &self.root, &|| {})?;
        Ok(
            if answer.status.success() && !answer.messages.contains("W:") {
                String::new()
            } else {
                answer.messages
            },
        )
    }

    /// The inner error is apt's messages. No two packages have the same name.
    fn download_once(
        &self,
        records: &[PackageRecord],
    ) -> Result<Result<Vec<PathBuf>, String>, Failure> {
        let Some(first) = records.first() else {
            return Ok(Ok(Vec::new()));
        };
        let folder = self.root.join("fetched").join(&first.package);
        std::fs::create_dir_all(&folder).map_err(|e| Failure::writing(&folder, &e))?;
        let what = match records.len() {
            1 => format!("fetching {} {}", first.package, first.version),
            _ => format!("fetching {}", names(records)),
        };
        let bar = self
            .progress
            .bar(&what, records.iter().map(|record| record.size_bytes).sum());
        let targets: Vec<String> = records
            .iter()
            .map(|record| format!("{}={}", record.package, record.version))
            .collect();
        let mut arguments = vec!["download", "-q"];
        arguments.extend(targets.iter().map(String::as_str));
        let answer = self.ask("apt-get", &arguments, &folder, &|| {
            bar.set_position(process::folder_size(&folder));
        })?;
        if !answer.status.success() {
            bar.abandon();
            return Ok(Err(answer.messages));
        }
        bar.finish();
        let mut debs = Vec::new();
        for record in records {
            let deb =
                the_deb(&folder, &record.package).map_err(|e| Failure::reading(&folder, &e))?;
            let Some(deb) = deb else {
                return Ok(Err(format!("E: apt fetched no {}", record.package)));
            };
            check(&deb, record)?;
            debs.push(deb);
        }
        Ok(Ok(debs))
    }

    fn ask(
        &self,
        program: &str,
        arguments: &[&str],
        folder: &Path,
        tick: &dyn Fn(),
    ) -> Result<Answer, Failure> {
        let mut command = Command::new(program);
        command
            .args(self.options())
            .args(arguments)
            .current_dir(folder)
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut command, &self.root, self.interrupt, tick)
    }

    fn options(&self) -> Vec<String> {
        let below = |folder: &str| self.root.join(folder).display().to_string();
        let lists = if self.own_lists.get() {
            below("lists")
        } else {
            HOST_LISTS.to_string()
        };
        let settings = [
            format!("Dir::State={}", below("state")),
            format!("Dir::State::lists={lists}"),
            format!("Dir::State::status={}", below("state/status")),
            format!("Dir::Cache={}", below("cache")),
            // The cache of the lists is larger than the lists; one use is not worth the disk.
            "Dir::Cache::pkgcache=".into(),
            "Dir::Cache::srcpkgcache=".into(),
            "Debug::NoLocking=1".into(),
            // Only root may change users; without this root's apt warns that `_apt` cannot write here.
            "APT::Sandbox::User=".into(),
            "APT::Color=0".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false".into(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".into(),
            "Acquire::Retries=2".into(),
            "Acquire::http::Timeout=20".into(),
            "Acquire::https::Timeout=20".into(),
        ];
        settings
            .into_iter()
            .flat_map(|setting| ["-o".to_string(), setting])
            .collect()
    }

    fn trouble(&self, messages: &str) -> Trouble {
        if process::is_full(&self.root) {
            Trouble::DiskFull
        } else {
            messages::classify(messages)
        }
    }

    fn failure(&self, package: &str, messages: &str) -> Failure {
        let what = format!("cannot fetch the package {package}");
        match self.trouble(messages) {
            Trouble::NoNetwork => Failure::new(
                what,
                format_args!("no network: {}", messages::telling_line(messages)),
                format_args!("connect to the network and try again, or {OWN_FILES}"),
            ),
            Trouble::DiskFull => disk_full(&self.root),
            Trouble::NoSuchPackage => Failure::new(
                what,
                "the apt sources of this host do not have it",
                format_args!("add a Debian source to apt, or {OWN_FILES}"),
            ),
            Trouble::Other => Failure::new(
                what,
                format_args!("apt says: {}", messages::telling_line(messages)),
                format_args!("check the apt sources of this host, or {OWN_FILES}"),
            ),
        }
    }
}

/// Tells that the disk of `folder` is full.
fn disk_full(folder: &Path) -> Failure {
    Failure::new(
        "cannot fetch the demo's files",
        format_args!("no space left on the disk of {}", folder.display()),
        "free some space or point NESTLING_CACHE at another disk",
    )
}

/// Whether `program` is an executable file in one of the folders of PATH.
pub fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|folder| rustix::fs::access(folder.join(program), rustix::fs::Access::EXEC_OK).is_ok())
}

/// The packages of `records`, for a message.
fn names(records: &[PackageRecord]) -> String {
    match records {
        [] => "nothing".into(),
        [one] => one.package.clone(),
        [first, others @ ..] => format!("{} and {} others", first.package, others.len()),
    }
}

/// The file of `package` in `folder`: `<package>_<version>_<architecture>.deb`.
fn the_deb(folder: &Path, package: &str) -> std::io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_it = |name: &str| {
            name.ends_with(".deb")
                && name
                    .split_once('_')
                    .is_some_and(|(start, _)| start == package)
        };
        if name.is_some_and(is_it) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Holds a fetched file against its record.
fn check(deb: &Path, record: &PackageRecord) -> Result<(), Failure> {
    let found = sha256_of_file(deb).map_err(|e| Failure::reading(deb, &e))?;
    if found == record.sha256 {
        return Ok(());
    }
    Err(Failure::new(
        format_args!("cannot use the package {}", record.package),
        format_args!("its SHA-256 is {found}, the list says {}", record.sha256),
        "try again later, or use another mirror in the apt sources",
    ))
}

fn sha256_of_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(super::hexadecimal(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "Package: linux-image-cloud-amd64\n\
        Version: 6.1.192-2\n\
        Depends: linux-base (>= 4.3), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\
        Size: 1504\n\
        SHA256: 00be21c0c17f08ddf26e82d3b53fe7a41efa4a288938da6bb69e89c4b25c281d\n\
        \n\
        Package: other\n";

    #[test]
    fn a_record_is_read() {
        let record = parse_record(RECORD).expect("complete");
        assert_eq!(record.package, "linux-image-cloud-amd64");
        assert_eq!(record.version, "6.1.192-2");
        assert_eq!(record.size_bytes, 1504);
        assert!(record.sha256.starts_with("00be21c0"));
    }

    #[test]
    fn an_incomplete_record_is_none() {
        assert_eq!(parse_record(""), None);
        assert_eq!(
            parse_record("Package: x\nVersion: 1\nSHA256: short\n"),
            None
        );
        assert_eq!(parse_record(&RECORD.replace("1504", "many")), None);
    }

    #[test]
    fn the_kernel_behind_the_meta_package_is_found() {
        let record = parse_record(RECORD).expect("complete");
        assert_eq!(
            dependency(&record.depends, "linux-image-"),
            Some((
                "linux-image-6.1.0-56-cloud-amd64".into(),
                Some("6.1.192-2".into())
            ))
        );
        assert_eq!(
            dependency("a | linux-image-7:any", "linux-image-"),
            Some(("linux-image-7".into(), None))
        );
        assert_eq!(dependency("linux-image-cloud", "linux-image-"), None);
        assert_eq!(dependency("linux-image-", "linux-image-"), None);
    }
}
