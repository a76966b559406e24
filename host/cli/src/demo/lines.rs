//! The guests' console as lines: split, bounded, and made printable. The stream is whatever the guests send.

use std::collections::VecDeque;

/// Bytes of a line beyond this are dropped.
pub const LONGEST_LINE: usize = 1024;
/// How many lines are remembered for a failure.
pub const REMEMBERED: usize = 30;

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct LineSplitter {
    line: Vec<u8>,
    dropped: bool,
}

impl LineSplitter {
    /// Takes bytes and hands every line that ended to `each`, printable. Empty lines are skipped.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(String)) {
        for &byte in bytes {
            if byte == b'\n' {
                if let Some(line) = self.take() {
                    each(line);
                }
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(byte);
            } else {
                self.dropped = true;
            }
        }
    }

    /// The line that has begun, printable; `None` if there is none.
    pub fn take(&mut self) -> Option<String> {
        let mut line = printable(&self.line);
        if self.dropped {
            line.push_str("...");
        }
        self.line.clear();
        self.dropped = false;
        (!line.is_empty()).then_some(line)
    }
}

/// `bytes` as printable ASCII: control sequences of terminals are left out, other bytes become `\xNN`.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b' '..=b'~' => text.push(char::from(byte)),
            b'\t' => text.push(' '),
            b'\r' => {}
            0x1b => rest = after_escape_sequence(after),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// What follows a control sequence (ECMA-48 section 5.4: parameters 0x30 to 0x3f, intermediates 0x20 to 0x2f,
/// one final byte) or a two-byte escape sequence whose ESC has been read.
fn after_escape_sequence(bytes: &[u8]) -> &[u8] {
    match bytes.split_first() {
        Some((b'[', parameters)) => {
            let end = parameters
                .iter()
                .position(|byte| !(0x20..=0x3f).contains(byte));
            match end {
                Some(end) if (0x40..=0x7e).contains(&parameters[end]) => &parameters[end + 1..],
                Some(end) => &parameters[end..],
                None => &[],
            }
        }
        Some((0x30..=0x7e, rest)) => rest,
        Some(_) | None => bytes,
    }
}

/// The last lines, for a failure.
#[derive(Debug, Default)]
pub struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    /// Remembers a line and forgets the oldest if there are too many.
    pub fn push(&mut self, line: String) {
        if self.lines.len() == REMEMBERED {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The remembered lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.feed(piece, |line| lines.push(line));
        }
        lines.extend(splitter.take());
        lines
    }

    #[test]
    fn lines_are_put_together() {
        assert_eq!(
            split(&[b"one\r\r\ntw", b"o\r\n\r\n", b"thr", b"ee"]),
            ["one", "two", "three"]
        );
    }

    #[test]
    fn an_endless_line_is_bounded() {
        let lines = split(&[&vec![b'x'; 10_000_000], b"\nnext\n"]);
        assert_eq!(lines[0].len(), LONGEST_LINE + 3);
        assert_eq!(lines[1], "next");
    }

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        assert_eq!(
            printable(b"\x1bc\x1b[?7l\x1b[2Jboot\x1b[1;31mred"),
            "bootred"
        );
        assert_eq!(printable(b"a\x00\x07\x9b\xff"), "a\\x00\\x07\\x9b\\xff");
        assert_eq!(printable(b"\x1b"), "");
        assert_eq!(printable(b"\x1b[12"), "");
        assert_eq!(printable(b"\x1b[1\x00x"), "\\x00x");
        assert_eq!(printable(b"\x1b]0;title\x07"), "0;title\\x07");
    }

    #[test]
    fn nothing_unprintable_gets_through() {
        let all: Vec<u8> = (0..=255).cycle().take(4096).collect();
        for start in 0..256 {
            let text = printable(&all[start..]);
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn only_the_last_lines_are_remembered() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(number.to_string());
        }
        assert_eq!(tail.lines().len(), REMEMBERED);
        assert_eq!(tail.lines()[REMEMBERED - 1], "99");
    }
}
