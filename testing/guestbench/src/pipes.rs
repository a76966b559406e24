//! Two processes that wake each other, by two pipes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use crate::kernel::failed;
use crate::measure::{Batch, Group, Part, Places, Wrong};

/// Ways there and back of a batch.
const ROUNDS: u32 = 300;
/// Bytes of a message.
const MESSAGE_BYTES: usize = 64;
/// What the other process adds to every byte.
const STEP: u8 = 3;

/// The part.
pub const PART: Part = Part {
    name: "pipe",
    group: Group::Kernel,
    operation: "message there and back",
    needs: &[],
    operations: ROUNDS,
    batches: 100,
    expected: Some(ROUNDS as u64 * MESSAGE_BYTES as u64),
    prepare,
};

/// The other process. It ends when nobody can write to it any more.
struct Echo {
    to: Option<File>,
    from: File,
    process: i32,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.to = None;
        let mut status = 0;
        // SAFETY: `status` is a place for one int; the child is ours and nobody else waits for it.
        unsafe { libc::waitpid(self.process, &raw mut status, 0) };
    }
}

fn pipe() -> Result<[File; 2], Wrong> {
    let mut ends = [0; 2];
    // SAFETY: `ends` is a place for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(failed("pipe"));
    }
    // SAFETY: both descriptors are new and belong to nobody else.
    Ok(ends.map(|end| File::from(unsafe { OwnedFd::from_raw_fd(end) })))
}

fn prepare(_: &Places) -> Result<Batch, Wrong> {
    let [mut theirs_in, to] = pipe()?;
    let [from, mut theirs_out] = pipe()?;
    // SAFETY: the child only reads, writes and ends, all of it by system calls, so that nothing other threads held at
    // the fork matters.
    let process = unsafe { libc::fork() };
    if process < 0 {
        return Err(failed("fork"));
    }
    if process == 0 {
        drop(to);
        let mut message = [0; MESSAGE_BYTES];
        while theirs_in.read_exact(&mut message).is_ok() {
            let answer = message.map(|byte| byte.wrapping_add(STEP));
            if theirs_out.write_all(&answer).is_err() {
                break;
            }
        }
        // SAFETY: _exit runs nothing of this process's.
        unsafe { libc::_exit(0) };
    }
    let mut echo = Echo {
        to: Some(to),
        from,
        process,
    };
    Ok(Box::new(move || talk(&mut echo)))
}

/// Gives how many bytes came back as they were to.
fn talk(echo: &mut Echo) -> Result<u64, Wrong> {
    let mut right = 0;
    let mut message = [0; MESSAGE_BYTES];
    for _ in 0..ROUNDS {
        let wrong = |error| Wrong(format!("a pipe: {error}"));
        let mut to = echo.to.as_ref().ok_or_else(|| Wrong("no pipe".into()))?;
        to.write_all(&message).map_err(wrong)?;
        let mut answer = [0; MESSAGE_BYTES];
        echo.from.read_exact(&mut answer).map_err(wrong)?;
        let pairs = message.iter().zip(&answer);
        right += pairs
            .filter(|(sent, got)| sent.wrapping_add(STEP) == **got)
            .count() as u64;
        message = answer;
    }
    Ok(right)
}
