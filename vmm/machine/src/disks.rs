//! The files behind a machine's disks.

use std::path::PathBuf;

use storage::{Access, RawFile, RawFileError};

/// The most disks of a machine.
pub const MAX_DISKS: usize = 24;

/// A disk of the configuration: a raw image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// The images, opened and locked.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    pub disks: Vec<RawFile>,
    pub cdrom: Option<RawFile>,
}

impl Disks {
    /// Opens the images.
    pub fn open(disks: &[DiskConfig], cdrom: Option<&PathBuf>) -> Result<Self, RawFileError> {
        let open = |disk: &DiskConfig| {
            let access = match disk.read_only {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            };
            RawFile::open(&disk.path, access)
        };
        Ok(Self {
            disks: disks.iter().map(open).collect::<Result<_, _>>()?,
            cdrom: cdrom
                .map(|path| RawFile::open(path, Access::CdRom))
                .transpose()?,
        })
    }
}
