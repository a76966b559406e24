//! Printing that survives a closed pipe. Colours are dropped where they are not wanted: off a terminal, and
//! when NO_COLOR is set.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

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

/// Says one line on standard error, as `nestling: line`.
pub fn say(line: &str) {
    // If standard error is gone there is nobody to tell.
    let _ = writeln!(anstream::stderr(), "nestling: {line}");
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
