//! Runs one of apt's programs: watched for a stall and a full disk, ended when somebody asks to stop, its answers
//! read with a bound.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{OWN_FILES, disk_full};
use crate::failure::{Failure, cause};
use crate::interrupt::Interrupt;

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(50);
/// After so long without a byte more on the disk it is given up.
const STALL: Duration = Duration::from_secs(120);
/// apt can wait for ever for room on a disk; it gets this long.
const STALL_ON_A_FULL_DISK: Duration = Duration::from_secs(3);
/// What is kept of its answers and messages.
const LONGEST_OUTPUT: u64 = 1 << 20;

/// What a program gave.
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// The start of its standard output.
    pub output: String,
    /// The start of its standard error.
    pub messages: String,
}

/// Runs `command` to its end. It works below the folder `growing`, whose size shows that it goes on; `tick` is
/// called while it runs.
///
/// # Errors
/// It cannot be started, it was told to stop, it stalls, or the disk is full.
pub fn run(
    command: &mut Command,
    growing: &Path,
    interrupt: &Interrupt,
    tick: &dyn Fn(),
) -> Result<Answer, Failure> {
    let program = command.get_program().display().to_string();
    let failed = |error: io::Error| {
        Failure::new(
            format_args!("cannot run {program}"),
            cause(&error),
            OWN_FILES,
        )
    };
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its helpers end with it, and a signal from the terminal is ours to pass on.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let output = Captured::of(child.stdout.take());
    let messages = Captured::of(child.stderr.take());
    let status = match wait(&mut child, growing, interrupt, tick) {
        Ok(status) => status.map_err(failed)?,
        Err(failure) => {
            end_group(&mut child);
            return Err(failure);
        }
    };
    Ok(Answer {
        status,
        output: output.text(),
        messages: messages.text(),
    })
}

/// Waits for `child`. The outer error is the reason to end it.
fn wait(
    child: &mut Child,
    growing: &Path,
    interrupt: &Interrupt,
    tick: &dyn Fn(),
) -> Result<io::Result<ExitStatus>, Failure> {
    let mut size = 0;
    let mut last_growth = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Ok(Ok(status)),
            Err(error) => return Ok(Err(error)),
        }
        if interrupt.is_requested() {
            return Err(Failure::new(
                "stopped while fetching",
                "a signal asked for it",
                "start again to fetch anew",
            ));
        }
        let now = folder_size(growing);
        if now != size {
            size = now;
            last_growth = Instant::now();
        }
        let stalled = last_growth.elapsed();
        if stalled > STALL_ON_A_FULL_DISK && is_full(growing) {
            return Err(disk_full(growing));
        }
        if stalled > STALL {
            return Err(Failure::new(
                "cannot fetch with apt",
                format_args!("nothing came for {} s", STALL.as_secs()),
                format_args!("check the network and try again, or {OWN_FILES}"),
            ));
        }
        tick();
        std::thread::sleep(POLL);
    }
}

/// What a child writes into a pipe: the first part is kept, all of it is read.
struct Captured(Option<JoinHandle<Vec<u8>>>);

impl Captured {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        Self(pipe.map(|pipe| std::thread::spawn(move || read_all_keep_start(pipe))))
    }

    fn text(self) -> String {
        let bytes = self.0.and_then(|thread| thread.join().ok());
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }
}

fn read_all_keep_start(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    // A pipe that fails has ended.
    let _ = pipe.by_ref().take(LONGEST_OUTPUT).read_to_end(&mut kept);
    let _ = io::copy(&mut pipe, &mut io::sink());
    kept
}

/// Ends the child and the helpers it started.
fn end_group(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id())
        && let Some(group) = rustix::process::Pid::from_raw(id)
    {
        // It may have ended by itself in between.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

/// Whether nothing more can be written to the disk of `folder`.
pub fn is_full(folder: &Path) -> bool {
    const NOTHING_BYTES: u64 = 64 * 1024;
    rustix::fs::statvfs(folder)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < NOTHING_BYTES)
}

/// The size of the files below `folder` in bytes, as far as it can be read.
pub fn folder_size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => folder_size(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::StopReason;

    fn shell(script: &str, interrupt: &Interrupt) -> Result<Answer, Failure> {
        let folder = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(&mut command, folder.path(), interrupt, &|| {})
    }

    #[test]
    fn both_streams_and_the_status_come_back() {
        let answer = shell("echo out; echo err >&2; exit 3", &Interrupt::new()).expect("runs");
        assert_eq!(answer.status.code(), Some(3));
        assert_eq!(
            (answer.output.as_str(), answer.messages.as_str()),
            ("out\n", "err\n")
        );
    }

    #[test]
    fn a_talkative_program_is_cut() {
        let script = "i=0; while [ $i -lt 300 ]; do printf '%10000d' 0; i=$((i+1)); done";
        let answer = shell(script, &Interrupt::new()).expect("runs");
        assert_eq!(answer.output.len() as u64, LONGEST_OUTPUT);
        assert!(answer.status.success());
    }

    #[test]
    fn a_request_to_stop_ends_it_and_its_children() {
        let interrupt = Interrupt::new();
        interrupt.request(StopReason::Signal(2));
        let before = Instant::now();
        assert!(shell("sleep 60 & sleep 60", &interrupt).is_err());
        assert!(before.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("/nonexistent/apt-get");
        let result = run(&mut command, folder.path(), &Interrupt::new(), &|| {});
        let failure = result.err().expect("not there");
        assert_eq!(failure.what, "cannot run /nonexistent/apt-get");
    }
}
