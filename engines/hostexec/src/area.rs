//! Code memory: one anonymous file mapped twice, once writable, once executable.
//!
//! Invariants:
//! - No mapping is ever writable and executable.
//! - A byte that may have been executed is written again only by [`CodeArea::patch`], and by [`CodeArea::append`] after
//!   [`CodeArea::cut`]. Whoever uses one of these has the processor execute a serializing instruction before it executes
//!   there again: what is changed is fetched by another address than it was stored by (SDM Vol. 3, 9.1.3). The other
//!   areas only grow; to empty one is to replace it.
//! - The file is sealed against shrinking, so no access within `len` can fail with SIGBUS.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Every piece of code starts at a multiple of this.
const ALIGN: usize = 32;

/// `memfd_create` flag of Linux 6.3: the file itself can never be made executable (by `execve`).
const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;

/// Why there is no code memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot make memory for generated code ({step}): {source}")]
pub struct CodeMemoryError {
    /// The system call.
    pub step: &'static str,
    /// The host's answer.
    pub source: io::Error,
}

/// A bounded area of machine code.
#[derive(Debug)]
pub struct CodeArea {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    len: usize,
    used: usize,
}

// SAFETY: the mappings belong to the area alone and outlive it nowhere; writes need `&mut self`, and what
// `&self` gives out is an address of code that does not change meanwhile.
unsafe impl Send for CodeArea {}
// SAFETY: as above; `&self` methods only read plain fields.
unsafe impl Sync for CodeArea {}

fn host_error(step: &'static str) -> CodeMemoryError {
    CodeMemoryError {
        step,
        source: io::Error::last_os_error(),
    }
}

fn sealed_file(name: &CStr, len: usize) -> Result<OwnedFd, CodeMemoryError> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags| {
        // SAFETY: the name ends with NUL; the call touches no other memory of ours.
        unsafe { libc::memfd_create(name.as_ptr(), flags) }
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
    let size = libc::off_t::try_from(len).map_err(|_| CodeMemoryError {
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
    /// A new, empty area of `len` bytes (a multiple of the page size), whose file is called `name`.
    ///
    /// # Errors
    /// The host refuses the file or one of the mappings.
    pub fn new(name: &CStr, len: usize) -> Result<CodeArea, CodeMemoryError> {
        let file = sealed_file(name, len)?;
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
    pub fn next_address(&self) -> u64 {
        self.execute.as_ptr() as u64 + self.used as u64
    }

    /// The address `offset` runs at. `offset` comes from [`CodeArea::append`].
    pub fn address(&self, offset: u32) -> u64 {
        self.execute.as_ptr() as u64 + u64::from(offset)
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

    /// Copies the bytes that run at `address`.
    ///
    /// # Panics
    /// They are not in the area.
    pub fn read(&self, address: u64, bytes: &mut [u8]) {
        let at = address.wrapping_sub(self.execute.as_ptr() as u64) as usize;
        assert!(
            at < self.used && bytes.len() <= self.used - at,
            "what is read lies in code"
        );
        // SAFETY: the range is inside the mapping, as just checked, and `bytes` is other memory; nobody writes there
        // without a mutable borrow of the area.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.write.as_ptr().add(at),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
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

    /// Copies `code`, encoded for [`CodeArea::next_address`], into the area. Returns its offset, or `None`
    /// when it does not fit.
    pub fn append(&mut self, code: &[u8]) -> Option<u32> {
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
