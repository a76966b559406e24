//! A raw image: byte n of the file is byte n of the disk.

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bus::{BlockBackend, BlockError, SECTOR_BYTES, check_range};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

/// Bytes of a CD-ROM's sector.
pub(crate) const CD_SECTOR_BYTES: u64 = 2048;
/// Zeroes are written in pieces of so many bytes where the host cannot do better.
const ZERO_PIECE_BYTES: usize = 64 << 10;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A disk to read and write; nobody else may have the file.
    ReadWrite,
    /// A disk to read; others may read it too.
    ReadOnly,
    /// A CD-ROM: to read, and what is missing of its last sector reads as zero.
    CdRom,
}

/// A file that cannot be a disk. The path is for the message; the rest says why and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RawFileError {
    /// The host does not open it.
    #[error("cannot open {path}: {source}; check the path and your rights to it")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("{0} is no regular file and no block device; give a disk image")]
    Kind(PathBuf),
    /// It is no whole number of sectors.
    #[error(
        "{path} has {size_bytes} bytes, which is no whole number of 512-byte sectors; give a raw image"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// There is nothing in it.
    #[error("{0} is empty; give it a size, for example with truncate --size 1G")]
    Empty(PathBuf),
    /// Another process, or another disk of this VM, has it.
    #[error(
        "{0} is in use by another disk or program; end that first, or give both the disk read-only"
    )]
    Locked(PathBuf),
}

/// A raw image, locked as long as it is open.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    /// Bytes that are there.
    stored_bytes: u64,
    /// Bytes of the disk.
    size_bytes: u64,
    read_only: bool,
}

impl RawFile {
    /// Opens and locks the file at `path`. The lock is advisory (`flock`), exclusive for writing and shared for reading.
    ///
    /// # Errors
    /// [`RawFileError`].
    pub fn open(path: &Path, access: Access) -> Result<Self, RawFileError> {
        let read_only = access != Access::ReadWrite;
        let open_error = |source| RawFileError::Open {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A pipe must not keep us waiting for its other end.
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(open_error)?;
        let kind = file.metadata().map_err(open_error)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(RawFileError::Kind(path.to_owned()));
        }
        let locked = match read_only {
            true => file.try_lock_shared(),
            false => file.try_lock(),
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RawFileError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(open_error(source)),
        }
        // Unlike the metadata's length this is right for block devices too.
        let stored_bytes = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        if stored_bytes == 0 {
            return Err(RawFileError::Empty(path.to_owned()));
        }
        if access != Access::CdRom && !stored_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(RawFileError::Size {
                path: path.to_owned(),
                size_bytes: stored_bytes,
            });
        }
        let size_bytes = match access {
            Access::CdRom => stored_bytes.next_multiple_of(CD_SECTOR_BYTES),
            Access::ReadWrite | Access::ReadOnly => stored_bytes,
        };
        Ok(Self {
            file,
            stored_bytes,
            size_bytes,
            read_only,
        })
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::ReadOnly);
        }
        check_range(self.size_bytes, offset, len)
    }

    /// Asks the file system to change a range; false where it cannot.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool, BlockError> {
        match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => Ok(false),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

impl BlockBackend for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BlockError> {
        check_range(self.size_bytes, offset, data.len() as u64)?;
        let there = self.stored_bytes.saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(data.len());
        let (stored, missing) = data.split_at_mut(there);
        missing.fill(0);
        Ok(self.file.read_exact_at(stored, offset)?)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.check_write(offset, data.len() as u64)?;
        Ok(self.file.write_all_at(data, offset)?)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), BlockError> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let how = match unmap {
            true => FallocateFlags::PUNCH_HOLE,
            false => FallocateFlags::ZERO_RANGE,
        };
        if self.allocate(how, offset, len)? {
            return Ok(());
        }
        let zeroes = vec![0; ZERO_PIECE_BYTES];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZERO_PIECE_BYTES as u64);
            let zeroes = &zeroes[..piece as usize];
            self.file.write_all_at(zeroes, offset + done)?;
            done += piece;
        }
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.check_write(offset, len)?;
        if len != 0 {
            // Where it cannot be done the content just stays.
            self.allocate(FallocateFlags::PUNCH_HOLE, offset, len)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        if self.read_only {
            return Ok(());
        }
        Ok(self.file.sync_data()?)
    }
}
