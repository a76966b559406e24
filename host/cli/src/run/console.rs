//! The guest's serial port on our standard input and output.

use std::io::{self, Read, Write};

use crate::interrupt::{Interrupt, StopReason};
use crate::vm::ConsoleSink;

/// Ctrl-], the key that leaves.
pub const ESCAPE_KEY: u8 = 0x1d;

/// Writes what the guest sends to `out`, at once. When nobody reads it any more it asks the run to stop.
pub struct Output<W> {
    out: W,
    interrupt: Interrupt,
}

impl<W: Write> Output<W> {
    /// A sink into `out`.
    pub fn new(out: W, interrupt: Interrupt) -> Self {
        Self { out, interrupt }
    }
}

impl<W: Write + Send> ConsoleSink for Output<W> {
    fn output(&mut self, bytes: &[u8]) {
        let result = self.out.write_all(bytes).and_then(|()| self.out.flush());
        if result.is_err() {
            self.interrupt.request(StopReason::ConsoleClosed);
        }
    }
}

/// Reads keys from `keys` until Ctrl-], which asks the run to stop and ends the input.
pub struct Keys<R> {
    keys: R,
    interrupt: Interrupt,
    left: bool,
}

impl<R: Read> Keys<R> {
    /// Keys from `keys`.
    pub fn new(keys: R, interrupt: Interrupt) -> Self {
        Self {
            keys,
            interrupt,
            left: false,
        }
    }
}

impl<R: Read> Read for Keys<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left {
            return Ok(0);
        }
        let count = self.keys.read(buffer)?;
        match buffer[..count].iter().position(|&key| key == ESCAPE_KEY) {
            None => Ok(count),
            Some(before) => {
                self.left = true;
                self.interrupt.request(StopReason::EscapeKey);
                Ok(before)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_pass_until_the_escape_key() {
        let interrupt = Interrupt::new();
        let mut keys = Keys::new(&b"ls\r\x1drest"[..], interrupt.clone());
        let mut read = Vec::new();
        keys.read_to_end(&mut read).expect("memory");
        assert_eq!(read, b"ls\r");
        assert_eq!(interrupt.reason(), Some(StopReason::EscapeKey));
    }

    #[test]
    fn without_the_escape_key_all_passes() {
        let interrupt = Interrupt::new();
        let mut read = Vec::new();
        Keys::new(&b"abc"[..], interrupt.clone())
            .read_to_end(&mut read)
            .expect("memory");
        assert_eq!(read, b"abc");
        assert!(!interrupt.is_requested());
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_output_asks_to_stop() {
        let interrupt = Interrupt::new();
        Output::new(Closed, interrupt.clone()).output(b"x");
        assert_eq!(interrupt.reason(), Some(StopReason::ConsoleClosed));
    }
}
