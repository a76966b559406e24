//! The file that keeps the variables.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use chipset::flash::FlashStore;

/// Writes each change through to a file. Firmware makes a change of its own valid by a last single byte, so what a
/// crash leaves is what a power failure leaves.
pub(super) struct FileStore {
    file: File,
    /// A failure was told already.
    failed: bool,
}

impl FileStore {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            failed: false,
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
}

impl FlashStore for FileStore {
    fn store(&mut self, offset: u64, bytes: &[u8]) {
        if let Err(error) = self.write(offset, bytes)
            && !self.failed
        {
            self.failed = true;
            tracing::error!(device = "flash", %error, "firmware variables cannot be kept");
        }
    }
}
