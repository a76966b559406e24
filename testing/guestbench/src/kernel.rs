//! The parts that are about the kernel: its entry, its address spaces, its page faults.

use std::io;
use std::ptr::NonNull;

use crate::measure::{Part, Wrong};

/// System calls of a batch.
const CALLS: u32 = 2_000;
/// Forks of a batch.
const FORKS: u32 = 10;
/// Pages of a batch of faults.
const PAGES: u32 = 1_024;
/// The size of a small page.
const PAGE_BYTES: usize = 4096;

/// The parts in the order they run.
pub fn parts() -> Vec<Part> {
    vec![
        Part::new("syscall", CALLS, system_calls),
        Part::new("fork", FORKS, forks),
        Part::new("page-fault", PAGES, page_faults),
    ]
}

fn failed(what: &str) -> Wrong {
    Wrong(format!("{what}: {}", io::Error::last_os_error()))
}

/// The cheapest system call there is, past the C library, which might remember the answer.
fn system_calls() -> Result<(), Wrong> {
    for _ in 0..CALLS {
        // SAFETY: getppid takes nothing, changes nothing and cannot fail.
        let parent = unsafe { libc::syscall(libc::SYS_getppid) };
        if parent < 0 {
            return Err(failed("getppid"));
        }
    }
    Ok(())
}

/// A fork of this small process, whose child ends at once, and the wait for it.
fn forks() -> Result<(), Wrong> {
    const STATUS: i32 = 7;
    for _ in 0..FORKS {
        // SAFETY: the child calls nothing but _exit, which is safe whatever other threads held at the fork.
        let child = unsafe { libc::fork() };
        match child {
            0 => {
                // SAFETY: _exit runs nothing of this process's.
                unsafe { libc::_exit(STATUS) }
            }
            1.. => {
                let mut status = 0;
                // SAFETY: `status` is a place for one int; the child is ours and nobody else waits for it.
                let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
                let right = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == STATUS;
                if ended != child || !right {
                    return Err(Wrong(format!("a child ended with {status:#x}")));
                }
            }
            _ => return Err(failed("fork")),
        }
    }
    Ok(())
}

/// Writes to every page of fresh memory, in small pages: one fault a page. The mapping's making and end are in the
/// time.
fn page_faults() -> Result<(), Wrong> {
    let fresh = Mapping::new(PAGES as usize * PAGE_BYTES)?;
    for page in 0..PAGES as usize {
        let byte = fresh.start.as_ptr().wrapping_add(page * PAGE_BYTES);
        // SAFETY: the byte is inside the mapping, which is readable, writable, and known to nobody else.
        unsafe { byte.write_volatile(1) };
    }
    Ok(())
}

/// Private memory of no file's, without huge pages. It is unmapped when it is dropped.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Result<Self, Wrong> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes touches no memory in use.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(failed("mmap"));
        }
        let start: NonNull<u8> =
            NonNull::new(start.cast()).ok_or_else(|| failed("mmap at zero"))?;
        // SAFETY: the range is this mapping; the advice changes the size of its pages and no content. A kernel
        // without huge pages does not know the advice and does not need it, so the answer is not looked at.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_NOHUGEPAGE) };
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and with `self` the last pointer into it goes.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
