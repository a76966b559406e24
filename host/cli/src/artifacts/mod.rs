//! The files a demo is made of: a kernel, the modules that make it a hypervisor, and busybox. They are
//! Debian's, fetched through the host's apt and kept in a cache, or the user's own.

pub mod apt;
pub mod cache;
mod deb;
pub mod decompress;
pub mod firmware;
pub mod kernel_image;
pub mod modules;
pub mod progress;
pub mod qemu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::input_file;
use crate::interrupt::Interrupt;
use apt::Apt;
use cache::{Cache, Entry, Locked, Lookup};
use modules::{Module, ModuleDirectory, ModuleSource};
use progress::Progress;
use tempfile::TempDir;

/// The meta package of Debian's kernel for cloud machines.
pub const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// The package of the static busybox.
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// The name of the kernel's file in its cache entry.
const KERNEL_FILE: &str = "vmlinuz";
/// The name of busybox's file in its cache entry.
const BUSYBOX_FILE: &str = "busybox";
/// No kernel, module, busybox or other file for a guest of the user's has more.
pub const LARGEST_FILE_BYTES: u64 = 512 << 20;
/// The modules taken from a kernel package besides what they need.
const VENDOR_MODULES: [&str; 2] = ["kvm-intel", "kvm-amd"];
/// What those are known to need; anything else they turn out to need costs one more pass over the package.
const KNOWN_NEEDS: [&str; 3] = ["kvm", "irqbypass", "ccp"];

/// Files of the user's own, each of which replaces a fetched one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnFiles {
    /// A bzImage.
    pub kernel: Option<PathBuf>,
    /// A directory with that kernel's modules.
    pub modules: Option<PathBuf>,
    /// A static busybox.
    pub busybox: Option<PathBuf>,
}

/// What a demo is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifacts {
    /// The bzImage.
    pub kernel: Vec<u8>,
    /// The kernel's release, when the image names it.
    pub release: Option<String>,
    /// The modules in the order they are loaded.
    pub modules: Vec<Module>,
    /// The static busybox.
    pub busybox: Vec<u8>,
    /// QEMU, if it was asked for.
    pub qemu: Vec<GuestFile>,
}

/// A file and its place in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// The path, without a leading slash.
    pub path: String,
    /// The permission bits.
    pub mode: u32,
    /// The content.
    pub content: Vec<u8>,
}

/// What is wanted of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// `kvm-intel` or `kvm-amd`, or `None` if no guest is a hypervisor.
    pub vendor_module: Option<&'a str>,
    /// The package of the kernel, or a meta package that depends on it.
    pub kernel_package: &'a str,
    /// QEMU too.
    pub qemu: bool,
}

/// Gets everything a demo needs.
///
/// # Errors
/// Whatever keeps a file from being had, told for the user.
pub fn obtain(
    own: &OwnFiles,
    wanted: &Wanted,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Artifacts, Failure> {
    let vendor_module = wanted.vendor_module;
    let mut fetcher = Fetcher::new(interrupt, progress);
    let busybox = match &own.busybox {
        Some(path) => read(path)?,
        None => {
            let mut entry = fetcher.entry(BUSYBOX_PACKAGE, fetch_busybox)?;
            take(&mut entry, BUSYBOX_FILE)?
        }
    };
    let (kernel, kernel_place, modules) = match (&own.kernel, &own.modules) {
        (None, None) => {
            let mut entry = fetcher.entry(wanted.kernel_package, fetch_kernel)?;
            let kernel = take(&mut entry, KERNEL_FILE)?;
            let place = format!("{} {}", entry.package, entry.version);
            let modules = ordered(&PackageModules::of(entry), vendor_module)?;
            (kernel, place, modules)
        }
        (Some(kernel), Some(modules)) => {
            let source = ModuleDirectory::open(modules)?;
            let modules = ordered(&source, vendor_module)?;
            (read(kernel)?, kernel.display().to_string(), modules)
        }
        (Some(kernel), None) if vendor_module.is_none() => {
            (read(kernel)?, kernel.display().to_string(), Vec::new())
        }
        (Some(kernel), None) => {
            return Err(Failure::new(
                format_args!("cannot make {} a hypervisor", kernel.display()),
                "its modules are not given",
                "add --modules /lib/modules/<release> of the same kernel",
            ));
        }
        (None, Some(modules)) => {
            return Err(Failure::new(
                format_args!("cannot use the modules in {}", modules.display()),
                "the kernel they belong to is not given",
                "add --kernel /boot/vmlinuz-<release> of the same kernel",
            ));
        }
    };
    check_kernel(&kernel, &kernel_place)?;
    let release = kernel_image::release(&kernel);
    check_releases(release.as_deref(), &kernel_place, &modules)?;
    check_busybox(&busybox, own.busybox.as_deref())?;
    let qemu = match wanted.qemu {
        true => qemu::placed(fetcher.entry(qemu::PACKAGE, qemu::fetch)?),
        false => Vec::new(),
    };
    Ok(Artifacts {
        kernel,
        release,
        modules,
        busybox,
        qemu,
    })
}

/// A kernel as it is loaded: unpacked, if it is a file packed by gzip.
///
/// # Errors
/// Broken content, or [`std::io::ErrorKind::FileTooLarge`] for more than `limit` bytes.
pub fn unpacked(kernel: Vec<u8>, limit: usize) -> std::io::Result<Vec<u8>> {
    if kernel.starts_with(decompress::GZIP) {
        return decompress::all(&kernel, limit);
    }
    Ok(kernel)
}

/// Refuses what a demo cannot boot.
///
/// # Errors
/// Why `kernel`, which is from `place`, is no kernel.
pub fn check_kernel(kernel: &[u8], place: &str) -> Result<(), Failure> {
    kernel_image::check(kernel).map_err(|why| {
        Failure::new(
            format_args!("cannot boot {place}"),
            why,
            "give --kernel an x86-64 Linux bzImage, usually /boot/vmlinuz-<release>",
        )
    })
}

fn check_releases(
    release: Option<&str>,
    kernel_place: &str,
    modules: &[Module],
) -> Result<(), Failure> {
    let Some(release) = release else {
        return Ok(());
    };
    for module in modules {
        let built_for = modules::info(module).ok().and_then(|info| info.release);
        if let Some(built_for) = built_for.filter(|built_for| built_for != release) {
            return Err(Failure::new(
                format_args!("cannot load module {} into {kernel_place}", module.name),
                format_args!("the module is for {built_for}, the kernel is {release}"),
                "give --kernel and --modules of the same release",
            ));
        }
    }
    Ok(())
}

fn check_busybox(busybox: &[u8], path: Option<&Path>) -> Result<(), Failure> {
    crate::initramfs::program::check_static(busybox).map_err(|why| {
        let place = path.map_or_else(|| BUSYBOX_PACKAGE.to_string(), |p| p.display().to_string());
        Failure::new(
            format_args!("cannot use {place} as busybox"),
            why,
            "give --busybox a static busybox, as in Debian's package busybox-static",
        )
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    input_file::read_bounded(path, LARGEST_FILE_BYTES)
}

fn take(entry: &mut Entry, file: &str) -> Result<Vec<u8>, Failure> {
    entry
        .files
        .remove(file)
        .ok_or_else(|| missing(&entry.package, file))
}

fn missing(package: &str, file: &str) -> Failure {
    Failure::new(
        format_args!("cannot use the package {package}"),
        format_args!("it has no {file}"),
        "give --kernel, --modules and --busybox to use files of your own",
    )
}

fn ordered(source: &dyn ModuleSource, vendor: Option<&str>) -> Result<Vec<Module>, Failure> {
    match vendor {
        Some(vendor) => modules::load_order(source, vendor),
        None => Ok(Vec::new()),
    }
}

type Fetch = fn(&Apt, &str) -> Result<Entry, Failure>;

/// Gives entries of the cache and fetches those that are missing or broken. The lock is taken, and apt's folders
/// are made, when the first one has to be fetched; both stay for the others.
struct Fetcher<'a> {
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    session: Option<Session<'a>>,
}

struct Session<'a> {
    apt: Apt<'a>,
    // In this order: the folder goes while the lock is still held.
    _workspace: TempDir,
    locked: Locked,
}

impl<'a> Fetcher<'a> {
    fn new(interrupt: &'a Interrupt, progress: &'a Progress) -> Self {
        Self {
            interrupt,
            progress,
            session: None,
        }
    }

    fn entry(&mut self, package: &str, fetch: Fetch) -> Result<Entry, Failure> {
        let cache = Cache::from_environment()?;
        if let Lookup::Good(entry) = cache.look_up(package) {
            return Ok(entry);
        }
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(Session::new(&cache, self.interrupt, self.progress)?),
        };
        // Another run may have filled it while this one waited for the lock.
        match cache.look_up(package) {
            Lookup::Good(entry) => return Ok(entry),
            Lookup::Broken(why) => self.progress.say(&format!(
                "the cache's {package} is broken ({}); fetching it again",
                crate::failure::one_line(&why)
            )),
            Lookup::Missing => {}
        }
        let entry = fetch(&session.apt, package)?;
        session.locked.store(package, &entry)?;
        Ok(entry)
    }
}

impl<'a> Session<'a> {
    fn new(
        cache: &Cache,
        interrupt: &'a Interrupt,
        progress: &'a Progress,
    ) -> Result<Self, Failure> {
        let locked = cache.lock(interrupt, progress)?;
        let workspace = locked.workspace()?;
        Ok(Self {
            apt: Apt::new(workspace.path(), interrupt, progress)?,
            _workspace: workspace,
            locked,
        })
    }
}

/// Fetches packages, each a name or `name=version`, and unpacks all of them into `folder`. Nothing is cached.
///
/// # Errors
/// Whatever keeps a package from being had or unpacked, told for the user.
pub fn unpack(
    packages: &[String],
    folder: &Path,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::writing(folder, &e))?;
    let session = Session::new(&Cache::from_environment()?, interrupt, progress)?;
    for package in packages {
        let (_, deb) = session.apt.download(|apt| apt.show(package))?;
        deb::unpack(&deb, folder)?;
        std::fs::remove_file(&deb).map_err(|e| Failure::writing(&deb, &e))?;
    }
    Ok(())
}

fn fetch_busybox(apt: &Apt, package: &str) -> Result<Entry, Failure> {
    let (record, deb) = apt.download(|apt| apt.show(package))?;
    let files = deb::extract(&deb, |path| {
        path == "bin/busybox" || path == "usr/bin/busybox"
    })?;
    std::fs::remove_file(&deb).map_err(|e| Failure::writing(&deb, &e))?;
    let file = files.into_iter().next();
    let content = file.ok_or_else(|| missing(&record.package, BUSYBOX_FILE))?;
    Ok(Entry {
        package: record.package,
        version: record.version,
        deb_sha256: record.sha256,
        files: BTreeMap::from([(BUSYBOX_FILE.to_string(), content.content)]),
    })
}

fn fetch_kernel(apt: &Apt, package: &str) -> Result<Entry, Failure> {
    let (record, deb) = apt.download(|apt| {
        let meta = apt.show(package)?;
        match apt::dependency(&meta.depends, "linux-image-") {
            Some((name, Some(version))) => apt.show(&format!("{name}={version}")),
            Some((name, None)) => apt.show(&name),
            // It is the kernel's own package.
            None if package.starts_with("linux-image-") => Ok(meta),
            None => Err(missing(package, "dependency on a kernel")),
        }
    })?;
    let mut entry = Entry {
        package: record.package,
        version: record.version,
        deb_sha256: record.sha256,
        files: BTreeMap::new(),
    };
    let mut wanted: Vec<String> = VENDOR_MODULES
        .iter()
        .chain(&KNOWN_NEEDS)
        .map(|name| name.to_string())
        .collect();
    let mut first = true;
    while first || !wanted.is_empty() {
        let found = deb::extract(&deb, |path| {
            (first && path.starts_with("boot/vmlinuz-"))
                || modules::name_of_file(path).is_some_and(|name| wanted.contains(&name))
        })?;
        first = false;
        let before = entry.files.len();
        for file in found {
            keep(&mut entry, &file)?;
        }
        if entry.files.len() == before {
            break;
        }
        wanted = unmet_needs(&entry)?;
    }
    std::fs::remove_file(&deb).map_err(|e| Failure::writing(&deb, &e))?;
    if !entry.files.contains_key(KERNEL_FILE) {
        return Err(missing(&entry.package, KERNEL_FILE));
    }
    let source = PackageModules::of(entry.clone());
    for vendor in VENDOR_MODULES {
        modules::load_order(&source, vendor)?;
    }
    Ok(entry)
}

fn keep(entry: &mut Entry, file: &deb::PackagedFile) -> Result<(), Failure> {
    match modules::name_of_file(&file.path) {
        Some(name) => {
            let module = modules::unpack(&name, &file.content).map_err(|why| {
                Failure::new(
                    format_args!("cannot unpack {} of {}", file.path, entry.package),
                    why,
                    "give --kernel, --modules and --busybox to use files of your own",
                )
            })?;
            entry.files.insert(format!("{name}.ko"), module.content);
        }
        None => {
            entry.files.insert(KERNEL_FILE.into(), file.content.clone());
        }
    }
    Ok(())
}

/// The modules that those in `entry` need and that are not in it.
fn unmet_needs(entry: &Entry) -> Result<Vec<String>, Failure> {
    let mut unmet = Vec::new();
    for (file, content) in &entry.files {
        let Some(name) = modules::name_of_file(file) else {
            continue;
        };
        let module = Module {
            name,
            content: content.clone(),
        };
        let info = modules::info(&module)
            .map_err(|why| missing(&entry.package, &format!("usable {file} ({why})")))?;
        unmet.extend(
            info.depends
                .into_iter()
                .filter(|need| !entry.files.contains_key(&format!("{need}.ko"))),
        );
    }
    Ok(unmet)
}

/// The modules of a cache entry. What is not in the entry was not in the package, thus is built in.
struct PackageModules {
    entry: Entry,
}

impl PackageModules {
    fn of(entry: Entry) -> Self {
        Self { entry }
    }
}

impl ModuleSource for PackageModules {
    fn find(&self, name: &str) -> Result<Option<Module>, Failure> {
        let content = self.entry.files.get(&format!("{name}.ko"));
        Ok(content.map(|content| Module {
            name: name.to_string(),
            content: content.clone(),
        }))
    }

    fn is_built_in(&self, name: &str) -> bool {
        !VENDOR_MODULES.contains(&name)
    }

    fn place(&self) -> String {
        format!("{} {}", self.entry.package, self.entry.version)
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
