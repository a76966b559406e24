//! Printing that survives a closed pipe. Colours are dropped where they are not wanted: off a terminal, and
//! when NO_COLOR is set.

use std::io::{self, Write};
use std::os::fd::AsFd;

use anstyle::{AnsiColor, Style};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{Failure, cause};

/// For what is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// For what is not.
pub const BAD: Style = AnsiColor::Red.on_default();
/// For what is on its way.
pub const PENDING: Style = AnsiColor::Yellow.on_default();

/// Prints `text` on standard output. A reader that has gone away is no failure.
///
/// # Errors
/// Standard output cannot be written for another reason.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    let result = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            "cannot write the result",
            cause(&error),
            "check where standard output goes",
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// How long a line waits for the reader of standard error.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Says one line on standard error, as `nestling: line`. One that nobody takes is dropped: it must not hold up the end
/// of the program.
pub fn say(line: &str) {
    if !takes_more(&io::stderr()) {
        return;
    }
    // If standard error is gone there is nobody to tell.
    let _ = writeln!(anstream::stderr(), "nestling: {line}");
}

/// Whether `out` takes a line without making its writer wait.
fn takes_more(out: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(out, PollFlags::OUT)];
    // What cannot be asked is tried.
    !matches!(poll(&mut polled, Some(&PATIENCE)), Ok(0))
}

/// Prints `data` as JSON on standard output.
///
/// # Errors
/// As [`print`].
pub fn print_json(data: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(data).map_err(|e| {
        Failure::new(
            "cannot print the result as JSON",
            e,
            "report this as a fault of nestling",
        )
    })?;
    print(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_takes_no_more() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        assert!(takes_more(&writer));
        rustix::io::ioctl_fionbio(&writer, true).expect("it is a pipe");
        while writer.write(&[0; 4096]).is_ok() {}
        assert!(!takes_more(&writer));
        drop(reader);
        assert!(takes_more(&writer), "its writer hears that nobody reads");
    }
}
