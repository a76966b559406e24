//! Files that go to guest RAM.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};

use guestmem::{Gpa, GuestRam};

use super::BootError;
use crate::config::Image;

trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

/// Bytes that go to guest RAM.
pub(super) struct Blob<'a> {
    source: Box<dyn Source + 'a>,
    what: &'static str,
    /// What messages call it.
    pub name: String,
    /// Its size when it was opened.
    pub size_bytes: u64,
}

impl<'a> Blob<'a> {
    /// Opens an image; `what` is its part in the boot, for messages.
    pub fn open(what: &'static str, image: &'a Image) -> Result<Self, BootError> {
        let name = image.name();
        let (source, size_bytes): (Box<dyn Source + 'a>, u64) = match image {
            Image::Bytes(bytes) => (Box::new(Cursor::new(bytes.as_slice())), bytes.len() as u64),
            Image::File(path) => {
                let open = || {
                    let file = File::open(path)?;
                    let meta = file.metadata()?;
                    if !meta.is_file() {
                        return Err(std::io::Error::other("it is not a regular file"));
                    }
                    Ok((file, meta.len()))
                };
                let (file, size) = open().map_err(|source| BootError::Unreadable {
                    what,
                    name: name.clone(),
                    source,
                })?;
                (Box::new(file), size)
            }
        };
        Ok(Self {
            source,
            what,
            name,
            size_bytes,
        })
    }

    fn unreadable(&self, source: std::io::Error) -> BootError {
        BootError::Unreadable {
            what: self.what,
            name: self.name.clone(),
            source,
        }
    }

    /// All of it.
    pub fn whole(&mut self) -> Result<Vec<u8>, BootError> {
        const MOST_BYTES: u64 = 2 << 30;
        if self.size_bytes > MOST_BYTES {
            return Err(self.unreadable(std::io::Error::other("it is larger than 2 GiB")));
        }
        let mut bytes = Vec::new();
        self.source
            .seek(SeekFrom::Start(0))
            .and_then(|_| (&mut self.source).take(MOST_BYTES).read_to_end(&mut bytes))
            .map_err(|e| self.unreadable(e))?;
        Ok(bytes)
    }

    /// Copies everything from `start` on to `gpa`; at most as much as the file had when it was opened.
    pub fn copy_to(&mut self, start: u64, ram: &GuestRam, gpa: Gpa) -> Result<(), BootError> {
        self.source
            .seek(SeekFrom::Start(start))
            .map_err(|e| self.unreadable(e))?;
        let mut left = self.size_bytes.saturating_sub(start);
        let mut at = gpa;
        let mut chunk = vec![0u8; 1 << 20];
        while left > 0 {
            let len = usize::try_from(left).map_or(chunk.len(), |l| l.min(chunk.len()));
            let part = &mut chunk[..len];
            self.source
                .read_exact(part)
                .map_err(|e| self.unreadable(e))?;
            ram.write(at, part)?;
            at = at.offset(part.len() as u64);
            left -= part.len() as u64;
        }
        Ok(())
    }
}
