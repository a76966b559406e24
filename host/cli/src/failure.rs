//! What a user is told when something cannot be done: what failed, why, and what to do about it, in one
//! line. Text that came from outside (a file, the network, another program, a guest) is made printable
//! before it gets in.

use std::fmt;
use std::io;
use std::path::Path;

/// A failure told to the user as `<what>: <why>; <what to do>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}; {advice}")]
pub struct Failure {
    /// What could not be done, as a short statement.
    pub what: String,
    /// Why, in words of the cause.
    pub why: String,
    /// What the user can do about it.
    pub advice: String,
}

impl Failure {
    /// A failure from its three parts. The parts are made printable and put on one line.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display, advice: impl fmt::Display) -> Self {
        Self {
            what: one_line(&what.to_string()),
            why: one_line(&without_error_numbers(&why.to_string())),
            advice: one_line(&advice.to_string()),
        }
    }

    /// A file that cannot be read, with advice by the kind of error.
    pub fn reading(path: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => {
                "make it readable for this user or take another file"
            }
            io::ErrorKind::IsADirectory => "name a file inside it",
            _ => "check the file and its disk",
        };
        Self::new(
            format_args!("cannot read {}", path.display()),
            cause(error),
            advice,
        )
    }

    /// A file or directory that cannot be written, with advice by the kind of error.
    pub fn writing(path: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space or point NESTLING_CACHE at another disk"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "point NESTLING_CACHE at a directory this user may write"
            }
            _ => "check the directory and its disk",
        };
        Self::new(
            format_args!("cannot write {}", path.display()),
            cause(error),
            advice,
        )
    }
}

/// The error in words, without the number the standard library appends.
pub fn cause(error: &io::Error) -> String {
    without_error_numbers(&error.to_string())
}

/// `text` without the ` (os error N)` that the standard library appends to the words of an error.
fn without_error_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |mut all, part| {
        match part
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .strip_prefix(')')
        {
            Some(rest) => all.push_str(rest),
            None => {
                all.push_str(" (os error ");
                all.push_str(part);
            }
        }
        all
    })
}

/// `text` on one line and free of control characters, of bounded length.
pub fn one_line(text: &str) -> String {
    const LONGEST: usize = 600;
    let mut line = String::with_capacity(text.len().min(LONGEST));
    for c in text.trim().chars() {
        if line.len() >= LONGEST {
            line.push_str("...");
            break;
        }
        match c {
            '\n' | '\t' | '\r' => line.push(' '),
            c if c.is_control() => line.push('?'),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_printable_line() {
        let failure = Failure::new("cannot read /x\x1b[2J", "bad\nthing", "look");
        assert_eq!(failure.to_string(), "cannot read /x?[2J: bad thing; look");
    }

    #[test]
    fn the_cause_has_no_error_number() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(cause(&error), "No such file or directory");
        let why = format!("cannot map it: {error} today");
        assert_eq!(
            Failure::new("x", why, "y").why,
            "cannot map it: No such file or directory today"
        );
        let other = "a (os error b) c (os error 5";
        assert_eq!(Failure::new("x", other, "y").why, other);
    }

    #[test]
    fn long_text_is_cut() {
        assert!(one_line(&"x".repeat(100_000)).len() < 700);
    }
}
