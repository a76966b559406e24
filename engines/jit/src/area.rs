//! Code memory: one anonymous file mapped twice, once writable, once executable.
//!
//! Invariants:
//! - No mapping is ever writable and executable.
//! - What has been written is changed only by [`CodeArea::patch`], on the thread that executes it.
//! - The file is sealed against shrinking, so no access within the mappings can fail with SIGBUS.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Why there is no code memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot make memory for generated code ({step}): {source}")]
pub struct CodeMemoryError {
    /// The system call.
    step: &'static str,
    /// The host's answer.
    source: io::Error,
}

/// Every piece of code starts at a multiple of this.
const ALIGN: usize = 16;

/// `memfd_create` flag of Linux 6.3: the file itself can never be made executable (by `execve`).
const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;

/// A bounded area of machine code.
#[derive(Debug)]
pub struct CodeArea {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    len: usize,
    used: usize,
}

// SAFETY: the mappings belong to the area alone; writes need `&mut self`.
unsafe impl Send for CodeArea {}

fn host_error(step: &'static str) -> CodeMemoryError {
    CodeMemoryError {
        step,
        source: io::Error::last_os_error(),
    }
}

fn sealed_file(len: usize) -> Result<OwnedFd, CodeMemoryError> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags| {
        // SAFETY: the name is a NUL-terminated constant; the call touches no other memory of ours.
        unsafe { libc::memfd_create(c"nestling-translations".as_ptr(), flags) }
    };
    let mut raw = create(flags | MFD_NOEXEC_SEAL);
    if raw < 0 {
        raw = create(flags);
    }
    if raw < 0 {
        return Err(host_error("memfd_create"));
    }
    // SAFETY: `raw` is a descriptor just created and owned by nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: a plain system call on our own descriptor.
    if unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } != 0 {
        return Err(host_error("ftruncate"));
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a plain system call on our own descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(host_error("seal"));
    }
    Ok(file)
}

fn map(
    file: &OwnedFd,
    len: usize,
    protection: libc::c_int,
) -> Result<NonNull<u8>, CodeMemoryError> {
    // SAFETY: a new mapping at an address the kernel chooses cannot overlap anything in use.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(host_error("mmap"));
    }
    NonNull::new(address.cast()).ok_or_else(|| host_error("mmap"))
}

impl CodeArea {
    /// A new, empty area of `len` bytes (a multiple of the page size, below 2 GByte).
    ///
    /// # Errors
    /// The host refuses the file or one of the mappings.
    pub fn new(len: usize) -> Result<Self, CodeMemoryError> {
        let file = sealed_file(len)?;
        let write = map(&file, len, libc::PROT_READ | libc::PROT_WRITE)?;
        let execute = match map(&file, len, libc::PROT_READ | libc::PROT_EXEC) {
            Ok(execute) => execute,
            Err(error) => {
                // SAFETY: `write` is a mapping of `len` bytes made above and not handed out.
                unsafe { libc::munmap(write.as_ptr().cast(), len) };
                return Err(error);
            }
        };
        Ok(Self {
            write,
            execute,
            len,
            used: 0,
        })
    }

    /// The address the next piece of code will run at.
    pub fn next_address(&self) -> u64 {
        self.execute.as_ptr() as u64 + self.used as u64
    }

    /// Bytes used so far.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes left.
    pub fn room(&self) -> usize {
        self.len - self.used
    }

    /// Forgets everything behind the first `used` bytes. None of it may run any more.
    pub fn cut(&mut self, used: usize) {
        self.used = used.min(self.used);
    }

    /// Copies `code`, encoded for [`CodeArea::next_address`], into the area; false when it does not fit.
    pub fn append(&mut self, code: &[u8]) -> bool {
        let start = self.used;
        let Some(end) = start.checked_add(code.len()).filter(|end| *end <= self.len) else {
            return false;
        };
        // SAFETY: `start..end` is inside the writable mapping, which nothing else refers to, and `code` is
        // Rust memory, so the two do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.write.as_ptr().add(start),
                code.len(),
            );
        }
        self.used = end.next_multiple_of(ALIGN).min(self.len);
        true
    }

    /// Changes bytes that run at `address`.
    ///
    /// # Panics
    /// They are not in the area.
    pub fn patch(&mut self, address: u64, bytes: &[u8]) {
        let at = address.wrapping_sub(self.execute.as_ptr() as u64) as usize;
        assert!(
            at < self.used && bytes.len() <= self.used - at,
            "a patch lies in code"
        );
        // SAFETY: the range is inside the writable mapping, as just checked, and `bytes` is Rust memory. The code
        // is not running: that needs a borrow of the owner.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.write.as_ptr().add(at), bytes.len());
        }
    }
}

impl Drop for CodeArea {
    fn drop(&mut self) {
        // SAFETY: both mappings were made by `new` with this length; no code of the area is running, since
        // running needs a borrow of the owner.
        unsafe {
            libc::munmap(self.write.as_ptr().cast(), self.len);
            libc::munmap(self.execute.as_ptr().cast(), self.len);
        }
    }
}
