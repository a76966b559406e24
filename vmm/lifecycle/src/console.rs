//! The way of the first serial port and of the debug console to the outside: a queue and a thread in each direction.
//!
//! A vCPU never writes to the host itself: it fills a bounded queue that a thread empties. When the reader
//! outside is slow the guest waits once a mebibyte is queued, as on a real line; when the run is stopped it no longer
//! does. What is queued when the guest ends the run is still written, as long as the reader takes some of it from time
//! to time; what is left then is lost, and counted.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use machine::{Board, SerialInput, SerialOutput};

/// Bytes that wait for the outside before the guest has to.
const OUTPUT_QUEUE_BYTES: usize = 1 << 20;
/// Bytes written at once, so that it is seen how far a slow reader has come.
const PIECE_BYTES: usize = 4096;
/// How long output is gathered before it is written, so that a line costs one write and not eighty.
const GATHER: Duration = Duration::from_millis(1);
/// How long the input thread waits for room before it looks whether the run is over.
const INPUT_STEP: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Bytes taken by the writer and not yet written.
    in_flight: usize,
    /// Bytes written.
    written: u64,
    /// No more bytes are wanted; pushing drops them.
    released: bool,
    /// No more bytes will come.
    ended: bool,
    error: Option<std::io::Error>,
}

impl Queue {
    fn unwritten(&self) -> usize {
        self.bytes.len() + self.in_flight
    }
}

/// The guest's output on its way out.
#[derive(Default)]
pub(crate) struct Output {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut queue = self.lock();
        while queue.bytes.len() >= OUTPUT_QUEUE_BYTES && !queue.released {
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if queue.released {
            return;
        }
        let first = queue.bytes.is_empty();
        queue.bytes.extend_from_slice(bytes);
        drop(queue);
        if first {
            self.changed.notify_all();
        }
    }

    /// Nobody waits for room any more; what comes now is dropped, what is queued is still written.
    pub(crate) fn release(&self) {
        self.lock().released = true;
        self.changed.notify_all();
    }

    /// No more output will come.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until all is written or the time is over; true when all is written.
    pub(crate) fn wait_written(&self, timeout: Duration) -> bool {
        let (queue, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |queue| queue.unwritten() > 0)
            .unwrap_or_else(PoisonError::into_inner);
        queue.unwritten() == 0
    }

    /// Bytes that wait to be written.
    fn unwritten(&self) -> u64 {
        self.lock().unwritten() as u64
    }

    /// Bytes that were written.
    fn written(&self) -> u64 {
        self.lock().written
    }

    /// The error that ended writing, if one did.
    pub(crate) fn take_error(&self) -> Option<std::io::Error> {
        self.lock().error.take()
    }

    /// The writing thread: returns when the output has ended and is written, or cannot be written.
    pub(crate) fn write_to(&self, mut out: Box<dyn Write + Send>) {
        loop {
            let mut queue = self.lock();
            while queue.bytes.is_empty() && !queue.ended {
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if queue.bytes.is_empty() {
                return;
            }
            let ended = |q: &mut Queue| !q.ended && q.bytes.len() < OUTPUT_QUEUE_BYTES;
            let (mut queue, _) = self
                .changed
                .wait_timeout_while(queue, GATHER, ended)
                .unwrap_or_else(PoisonError::into_inner);
            let bytes = std::mem::take(&mut queue.bytes);
            queue.in_flight = bytes.len();
            drop(queue);
            self.changed.notify_all();
            let result = self.write_pieces(&bytes, &mut *out);
            let mut queue = self.lock();
            queue.in_flight = 0;
            if let Err(e) = result {
                queue.error = Some(e);
                queue.released = true;
                queue.bytes.clear();
            }
            let broken = queue.error.is_some();
            drop(queue);
            self.changed.notify_all();
            if broken {
                return;
            }
        }
    }
}

impl Output {
    fn write_pieces(&self, bytes: &[u8], out: &mut dyn Write) -> std::io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            out.write_all(piece)?;
            out.flush()?;
            let mut queue = self.lock();
            queue.in_flight -= piece.len();
            queue.written += piece.len() as u64;
        }
        Ok(())
    }
}

/// Bytes of a guest's output that could not be written before the run was over, as nobody took them in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Those of the first serial port.
    pub console: u64,
    /// Those of the debug console.
    pub debug: u64,
}

/// All that a guest writes to.
#[derive(Clone, Default)]
pub(crate) struct Outputs {
    /// The first serial port.
    pub console: Arc<Output>,
    /// The debug console, if there is one.
    pub debug: Option<Arc<Output>>,
}

impl Outputs {
    fn all(&self) -> impl Iterator<Item = &Arc<Output>> {
        std::iter::once(&self.console).chain(&self.debug)
    }

    /// [`Output::release`] for each.
    pub(crate) fn release(&self) {
        self.all().for_each(|output| output.release());
    }

    /// [`Output::end`] for each.
    pub(crate) fn end(&self) {
        self.all().for_each(|output| output.end());
    }

    /// Bytes that were written, of all.
    pub(crate) fn written(&self) -> u64 {
        self.all().map(|output| output.written()).sum()
    }

    /// What was not written.
    pub(crate) fn unwritten(&self) -> Lost {
        Lost {
            console: self.console.unwritten(),
            debug: self.debug.as_ref().map_or(0, |output| output.unwritten()),
        }
    }

    /// Waits until all is written, for each at most so long; true when all is written.
    pub(crate) fn wait_written(&self, timeout: Duration) -> bool {
        // Whatever the first one says, the others are waited for too.
        let unwritten = self.all().filter(|output| !output.wait_written(timeout));
        unwritten.count() == 0
    }
}

/// The end of [`Output`] that the port holds.
pub(crate) struct OutputEnd(pub(crate) Arc<Output>);

impl SerialOutput for OutputEnd {
    fn write(&mut self, bytes: &[u8]) {
        self.0.push(bytes);
    }
}

/// The reading thread: passes `from` on to the guest until its end, an error, or the end of the run.
///
/// Reading cannot be interrupted, so nobody waits for this thread; it holds nothing of the VM but a weak
/// reference.
pub(crate) fn read_from(
    mut from: Box<dyn Read + Send>,
    port: &SerialInput,
    board: &Weak<Board>,
    over: &AtomicBool,
) {
    let mut chunk = [0; 1024];
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                tracing::warn!(error = %e, "console input cannot be read");
                return;
            }
        };
        let mut left = &chunk[..count];
        while !left.is_empty() {
            if over.load(Ordering::SeqCst) {
                return;
            }
            left = &left[port.push(left)..];
            match board.upgrade() {
                Some(board) => board.input_arrived(),
                None => return,
            }
            if !left.is_empty() {
                let _ = port.wait_for_room(INPUT_STEP);
            }
        }
    }
}
