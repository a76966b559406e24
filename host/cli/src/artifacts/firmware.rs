//! Firmware: Debian's SeaBIOS and OVMF, fetched and cached like the other files, or the user's own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::apt::Apt;
use super::cache::Entry;
use super::progress::Progress;
use super::{Fetcher, deb, take};
use crate::failure::Failure;
use crate::input_file;
use crate::interrupt::Interrupt;

/// The package of SeaBIOS and of its video BIOS.
const SEABIOS_PACKAGE: &str = "seabios";
/// The BIOS of a PC with PCI.
const SEABIOS_FILE: &str = "bios-256k.bin";
/// The video BIOS of our display.
const DISPLAY_FILE: &str = "vgabios-stdvga.bin";
/// The package of OVMF.
const OVMF_PACKAGE: &str = "ovmf";
/// OVMF without its variables, for a flash of 4 MByte, without secure boot and system management mode.
const OVMF_CODE_FILE: &str = "OVMF_CODE_4M.fd";
/// Its variables as they are at first.
const OVMF_VARIABLES_FILE: &str = "OVMF_VARS_4M.fd";
/// No firmware has more.
const LARGEST_BYTES: u64 = 16 << 20;
/// What to do when a package cannot be used.
const ADVICE: &str = "give --firmware a file of your own";

/// Which firmware a machine starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwareChoice {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
    /// A ROM image of the user's.
    File(PathBuf),
}

/// The files of a firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareFiles {
    /// Its code.
    pub code: Vec<u8>,
    /// The variables it starts with, if it keeps some.
    pub variables: Option<Vec<u8>>,
    /// The display's firmware, for one that has none built in.
    pub display: Option<Vec<u8>>,
}

/// Gets the files of a firmware.
///
/// # Errors
/// Whatever keeps a file from being had, told for the user.
pub fn obtain(
    choice: &FirmwareChoice,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<FirmwareFiles, Failure> {
    let mut fetcher = Fetcher::new(interrupt, progress);
    Ok(match choice {
        FirmwareChoice::Bios => {
            let mut entry = fetcher.entry(SEABIOS_PACKAGE, fetch_seabios)?;
            FirmwareFiles {
                code: take(&mut entry, SEABIOS_FILE)?,
                variables: None,
                display: Some(take(&mut entry, DISPLAY_FILE)?),
            }
        }
        FirmwareChoice::Uefi => {
            let mut entry = fetcher.entry(OVMF_PACKAGE, fetch_ovmf)?;
            FirmwareFiles {
                code: take(&mut entry, OVMF_CODE_FILE)?,
                variables: Some(take(&mut entry, OVMF_VARIABLES_FILE)?),
                display: None,
            }
        }
        FirmwareChoice::File(path) => FirmwareFiles {
            code: input_file::read_bounded(path, LARGEST_BYTES)?,
            variables: None,
            display: None,
        },
    })
}

fn fetch_seabios(apt: &Apt, _: &str) -> Result<Entry, Failure> {
    fetch(apt, SEABIOS_PACKAGE, "usr/share/seabios/", |name| {
        name == SEABIOS_FILE || name.starts_with("vgabios-")
    })
}

fn fetch_ovmf(apt: &Apt, _: &str) -> Result<Entry, Failure> {
    fetch(apt, OVMF_PACKAGE, "usr/share/OVMF/", |name| {
        [OVMF_CODE_FILE, OVMF_VARIABLES_FILE].contains(&name)
    })
}

/// Fetches the wanted files of a folder of a package; each goes by its own name.
fn fetch(
    apt: &Apt,
    package: &str,
    folder: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Entry, Failure> {
    let (record, file) = apt.download(|apt| apt.show(package))?;
    let found = deb::extract(&file, |path| path.strip_prefix(folder).is_some_and(&wanted))?;
    std::fs::remove_file(&file).map_err(|e| Failure::writing(&file, &e))?;
    if found.is_empty() {
        return Err(Failure::new(
            format_args!("cannot use the package {package}"),
            format_args!("it has no firmware in {folder}"),
            ADVICE,
        ));
    }
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    Ok(Entry {
        package: record.package,
        version: record.version,
        deb_sha256: record.sha256,
        files: found
            .into_iter()
            .map(|f| (name(&f.path), f.content))
            .collect::<BTreeMap<_, _>>(),
    })
}
