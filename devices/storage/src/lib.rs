//! What disks are made of: files of the host behind [`bus::BlockBackend`], and the SATA controller with its disks and
//! CD-ROM drives.

mod ahci;
mod ata;
mod cdrom;
mod raw;
#[cfg(test)]
mod testing;

pub use ahci::AhciFunction;
pub use cdrom::CdRom;
pub use raw::{Access, RawFile, RawFileError};
