//! Code memory: one anonymous file mapped twice, once writable, once executable.
//!
//! Invariants:
//! - No mapping is ever writable and executable.
//! - A byte that may have been executed is written again only by [`CodeArea::patch`], and by [`CodeArea::append`] after
//!   [`CodeArea::cut`]. Whoever uses one of these has the processor execute a serializing instruction before it executes
//!   there again: what is changed is fetched by another address than it was stored by (SDM Vol. 3, 9.1.3). The other
//!   areas only grow; to empty one is to replace it.
//! - The file is sealed against shrinking, so no access within `len` can fail with SIGBUS.
//!
//! A guest's kernel has translated code on hundreds of small pages, more than a processor holds translations of. So both
//! mappings of an area that is large enough begin where a large page can, and have one wherever code comes to, if the
//! host has one to give.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Every piece of code starts at a multiple of this.
const ALIGN: usize = 32;

/// A large page of the host.
const LARGE: usize = 2 << 20;

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
    /// Bytes from the start for which large pages were asked.
    asked: usize,
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

/// Maps all of the file, from a multiple of a large page on if it is as long as one.
fn map(
    file: &OwnedFd,
    len: usize,
    protection: libc::c_int,
) -> Result<NonNull<u8>, CodeMemoryError> {
    let mapped = |at: *mut u8, len, protection, flags, file| {
        // SAFETY: a new mapping: at an address the kernel chooses it cannot overlap anything in use, and the only other
        // one is inside what was reserved just before.
        let address = unsafe { libc::mmap(at.cast(), len, protection, flags, file, 0) };
        if address == libc::MAP_FAILED {
            return Err(host_error("mmap"));
        }
        NonNull::new(address.cast::<u8>()).ok_or_else(|| host_error("mmap"))
    };
    let unmap = |at: *mut u8, len| {
        if len > 0 {
            // SAFETY: part of what was reserved below, not handed out.
            unsafe { libc::munmap(at.cast(), len) };
        }
    };
    let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
    if len < LARGE {
        return mapped(null, len, protection, libc::MAP_SHARED, fd);
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = mapped(null, len + LARGE, libc::PROT_NONE, flags, -1)?.as_ptr();
    let before = reserved.addr().next_multiple_of(LARGE) - reserved.addr();
    let start = reserved.wrapping_add(before);
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let done = mapped(start, len, protection, flags, fd);
    if done.is_err() {
        unmap(reserved, len + LARGE);
        return done;
    }
    unmap(reserved, before);
    unmap(start.wrapping_add(len), LARGE - before);
    done
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
            asked: 0,
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

    /// Has the host put large pages where code has come to, if it can. It does where there is something already; that is
    /// little as long as this is asked each time.
    fn ask_for_large_pages(&mut self) {
        // Of Linux 6.1.
        const MADV_COLLAPSE: libc::c_int = 25;
        while self.asked < self.used && self.asked + LARGE <= self.len {
            for mapping in [self.write, self.execute] {
                // SAFETY: advice on our own mapping; the bytes there stay what they are. Failure is harmless.
                unsafe {
                    let at = mapping.as_ptr().add(self.asked);
                    libc::madvise(at.cast(), LARGE, MADV_COLLAPSE);
                }
            }
            self.asked += LARGE;
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
        self.ask_for_large_pages();
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

#[cfg(test)]
mod tests;
