//! What a disk device reads and writes.

/// The unit that offsets and lengths are multiples of.
pub const SECTOR_BYTES: u64 = 512;

/// A request a backend cannot do.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It reaches past the end, or is not made of whole sectors.
    #[error("{len} bytes at {offset:#x} are not sectors of the disk")]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A write to what can only be read.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The host failed.
    #[error("the host cannot do it: {0}")]
    Host(#[from] std::io::Error),
}

/// Sectors that a disk device keeps its guest's data in.
///
/// Requests are done when the call returns. Offsets and lengths are multiples of [`SECTOR_BYTES`] and inside the size;
/// an implementation refuses others ([`check_range`]).
///
/// One that can only be read need not say how it is written: it refuses that.
pub trait BlockBackend: Send {
    /// How large it is; a multiple of [`SECTOR_BYTES`].
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        true
    }

    /// Fills `data` from `offset` on.
    ///
    /// # Errors
    /// [`BlockError::Range`], [`BlockError::Host`].
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BlockError>;

    /// Writes `data` from `offset` on.
    ///
    /// # Errors
    /// Any [`BlockError`].
    fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    /// Makes `len` bytes from `offset` on read as zero; with `unmap` their storage may be given back.
    ///
    /// # Errors
    /// Any [`BlockError`].
    fn write_zeroes(&mut self, _offset: u64, _len: u64, _unmap: bool) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    /// The content of `len` bytes from `offset` on is of no more interest.
    ///
    /// # Errors
    /// Any [`BlockError`].
    fn discard(&mut self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    /// Brings everything written before to where it survives a crash of the host.
    ///
    /// # Errors
    /// [`BlockError::Host`].
    fn flush(&mut self) -> Result<(), BlockError>;
}

/// Checks that `len` bytes from `offset` on are whole sectors of a disk of `size_bytes`.
///
/// # Errors
/// [`BlockError::Range`].
pub fn check_range(size_bytes: u64, offset: u64, len: u64) -> Result<(), BlockError> {
    let inside = offset.checked_add(len).is_some_and(|end| end <= size_bytes);
    if inside && (offset | len).is_multiple_of(SECTOR_BYTES) {
        Ok(())
    } else {
        Err(BlockError::Range { offset, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says no more than how it is read.
    struct Blank;
    impl BlockBackend for Blank {
        fn size_bytes(&self) -> u64 {
            1024
        }
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BlockError> {
            check_range(1024, offset, data.len() as u64)?;
            data.fill(0);
            Ok(())
        }
        fn flush(&mut self) -> Result<(), BlockError> {
            Ok(())
        }
    }

    #[test]
    fn what_is_only_read_refuses_changes() {
        let mut disk = Blank;
        assert!(disk.is_read_only());
        assert!(disk.read(512, &mut [1; 512]).is_ok());
        for refused in [
            disk.write(0, &[1; 512]),
            disk.write_zeroes(0, 512, true),
            disk.discard(0, 512),
        ] {
            assert!(matches!(refused, Err(BlockError::ReadOnly)), "{refused:?}");
        }
    }

    #[test]
    fn ranges_are_whole_sectors_inside_the_disk() {
        assert!(check_range(1024, 0, 1024).is_ok());
        assert!(check_range(1024, 1024, 0).is_ok());
        for (offset, len) in [
            (0, 1536),
            (512, 1024),
            (1, 512),
            (0, 511),
            (u64::MAX - 511, 512),
        ] {
            assert!(check_range(1024, offset, len).is_err(), "{offset} {len}");
        }
    }
}
