//! Code memory: one anonymous file mapped twice, once writable, once executable.
//!
//! Invariants:
//! - No mapping is ever writable and executable.
//! - The area only grows: a byte that may have been executed is never written again, so no processor can hold
//!   an old form of it (SDM Vol. 3, 9.1.3 needs no further care). To empty an area is to replace it.
//! - The file is sealed against shrinking, so no access within `len` can fail with SIGBUS.

use crate::HostExecError;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Every piece of code starts at a multiple of this.
const ALIGN: usize = 32;

/// `memfd_create` flag of Linux 6.3: the file itself can never be made executable (by `execve`).
const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;

/// A bounded area of machine code.
#[derive(Debug)]
pub(crate) struct CodeArea {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    len: usize,
    used: usize,
}

// SAFETY: the mappings belong to the area alone and outlive it nowhere; writes need `&mut self`, and what
// `&self` gives out is an address of code that does not change any more.
unsafe impl Send for CodeArea {}
// SAFETY: as above; `&self` methods only read plain fields.
unsafe impl Sync for CodeArea {}

fn host_error(step: &'static str) -> HostExecError {
    HostExecError::CodeMemory {
        step,
        source: io::Error::last_os_error(),
    }
}

fn sealed_file(len: usize) -> Result<OwnedFd, HostExecError> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags| {
        // SAFETY: the name is a NUL-terminated constant; the call touches no other memory of ours.
        unsafe { libc::memfd_create(c"nestling-code".as_ptr(), flags) }
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
    let size = libc::off_t::try_from(len).map_err(|_| HostExecError::CodeMemory {
        step: "size",
        source: io::Error::from(io::ErrorKind::InvalidInput),
    })?;
    // SAFETY: a plain system call on our own descriptor.
    if unsafe { libc::ftruncate(file.as_raw_fd(), size) } != 0 {
        return Err(host_error("ftruncate"));
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a plain system call on our own descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(host_error("seal"));
    }
    Ok(file)
}

fn map(file: &OwnedFd, len: usize, protection: libc::c_int) -> Result<NonNull<u8>, HostExecError> {
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
    /// A new, empty area of `len` bytes (a multiple of the page size).
    ///
    /// # Errors
    /// The host refuses the file or one of the mappings.
    pub(crate) fn new(len: usize) -> Result<CodeArea, HostExecError> {
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
        Ok(CodeArea {
            write,
            execute,
            len,
            used: 0,
        })
    }

    /// The address the next piece of code will run at.
    pub(crate) fn next_address(&self) -> u64 {
        self.execute.as_ptr() as u64 + self.used as u64
    }

    /// The address `offset` runs at. `offset` comes from [`CodeArea::append`].
    pub(crate) fn address(&self, offset: u32) -> u64 {
        self.execute.as_ptr() as u64 + u64::from(offset)
    }

    /// Bytes used so far.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Copies `code`, encoded for [`CodeArea::next_address`], into the area. Returns its offset, or `None`
    /// when it does not fit.
    pub(crate) fn append(&mut self, code: &[u8]) -> Option<u32> {
        let start = self.used;
        let end = start.checked_add(code.len())?;
        if end > self.len {
            return None;
        }
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
        u32::try_from(start).ok()
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
