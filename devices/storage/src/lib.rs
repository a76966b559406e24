//! What disks are made of: files of the host behind [`bus::BlockBackend`], and the SATA controller with its disks and
//! CD-ROM drives.

mod raw;

pub use raw::{Access, RawFile, RawFileError};
