//! The parts that are about the kernel: its entry, its address spaces, its page faults.

use std::fs;
use std::io;
use std::ptr::NonNull;

use crate::measure::{Batch, Group, Part, Places, Wrong, sum_of};

/// System calls of a batch.
const CALLS: u32 = 5_000;
/// Forks of a batch.
const FORKS: u32 = 10;
/// Pages of a batch of faults.
const PAGES: u32 = 512;
/// Mappings of a batch.
const MAPPINGS: u32 = 300;
/// Pages of such a mapping.
const MAPPING_PAGES: usize = 16;
/// Files of a batch.
const FILES: u32 = 40;
/// The size of a small page.
const PAGE_BYTES: usize = 4096;

/// The parts in the order they run.
pub const PARTS: [Part; 5] = [
    part("syscall", "getppid", CALLS, 100, |_| {
        Ok(Box::new(system_calls))
    }),
    part("fork", "fork, exit, wait", FORKS, 60, |_| {
        Ok(Box::new(forks))
    }),
    part("page-fault", "fresh 4 KiB page", PAGES, 100, |_| {
        Ok(Box::new(page_faults))
    }),
    part("mmap", "mmap, touch, munmap", MAPPINGS, 100, |_| {
        Ok(Box::new(mappings))
    }),
    part("file", "write, rename, read, remove", FILES, 60, files),
];

const fn part(
    name: &'static str,
    operation: &'static str,
    operations: u32,
    batches: u32,
    prepare: fn(&Places) -> Result<Batch, Wrong>,
) -> Part {
    Part {
        name,
        group: Group::Kernel,
        operation,
        needs: &[],
        operations,
        batches,
        expected: Some(operations as u64),
        prepare,
    }
}

/// What the last system call says of its failure.
pub fn failed(what: &str) -> Wrong {
    Wrong(format!("{what}: {}", io::Error::last_os_error()))
}

/// The cheapest system call there is, past the C library, which might remember the answer.
fn system_calls() -> Result<u64, Wrong> {
    let mut done = 0;
    for _ in 0..CALLS {
        // SAFETY: getppid takes nothing, changes nothing and cannot fail.
        let parent = unsafe { libc::syscall(libc::SYS_getppid) };
        if parent < 0 {
            return Err(failed("getppid"));
        }
        done += 1;
    }
    Ok(done)
}

/// A fork of this small process, whose child ends at once, and the wait for it.
fn forks() -> Result<u64, Wrong> {
    const STATUS: i32 = 7;
    let mut done = 0;
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
        done += 1;
    }
    Ok(done)
}

/// Writes to every page of fresh memory, in small pages: one fault a page. The mapping's making and end are in the
/// time.
fn page_faults() -> Result<u64, Wrong> {
    touch(&Mapping::new(PAGES as usize * PAGE_BYTES)?, PAGES)
}

/// Writes to the first `pages` pages, which are to be empty before.
fn touch(fresh: &Mapping, pages: u32) -> Result<u64, Wrong> {
    for page in 0..pages as usize {
        let byte = fresh.start().wrapping_add(page * PAGE_BYTES);
        // SAFETY: the byte is inside the mapping, which is readable, writable, and known to nobody else.
        let was = unsafe {
            byte.write_volatile(1);
            byte.wrapping_add(1).read_volatile()
        };
        if was != 0 {
            return Err(Wrong("a fresh page is not empty".into()));
        }
    }
    Ok(u64::from(pages))
}

/// Mappings that come and go, of which one page is touched.
fn mappings() -> Result<u64, Wrong> {
    (0..MAPPINGS)
        .map(|_| touch(&Mapping::new(MAPPING_PAGES * PAGE_BYTES)?, 1))
        .sum()
}

/// Small files in the folder to write to, each written, renamed, read and removed.
fn files(places: &Places) -> Result<Batch, Wrong> {
    let content = [0x6e; 3 * 1024];
    let names = ["one", "two"].map(|name| places.scratch.join(name));
    Ok(Box::new(move || {
        let wrong = |error: io::Error| Wrong(format!("a file: {error}"));
        let mut right = 0;
        for _ in 0..FILES {
            let [one, two] = &names;
            fs::write(one, content).map_err(wrong)?;
            fs::rename(one, two).map_err(wrong)?;
            let read = fs::read(two).map_err(wrong)?;
            fs::remove_file(two).map_err(wrong)?;
            right += u64::from(sum_of(&read) == sum_of(&content));
        }
        Ok(right)
    }))
}

/// Private memory of no file's, without huge pages. It is unmapped when it is dropped.
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Result<Self, Wrong> {
        Self::with(bytes, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Memory to write code to and to run it from.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn executable(bytes: usize) -> Result<Self, Wrong> {
        Self::with(bytes, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
    }

    /// Its first byte.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    fn with(bytes: usize, protection: i32) -> Result<Self, Wrong> {
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
