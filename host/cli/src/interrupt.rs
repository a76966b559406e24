//! The one way a running command is told to stop: a signal, the terminal's escape key or a console that
//! went away. Whoever works for long asks [`Interrupt::is_requested`] or leaves a waker.
//!
//! The first signal asks politely. The second one ends the process at once, after the terminal has been
//! given back.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::failure::{Failure, cause};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;

/// Why a command was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A signal, by its number.
    Signal(i32),
    /// Ctrl-] on the terminal.
    EscapeKey,
    /// Nobody reads the console any more.
    ConsoleClosed,
}

type Waker = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Shared {
    reason: OnceLock<StopReason>,
    wakers: Mutex<Vec<Waker>>,
    /// Signals that are caught and that no thread hears yet.
    caught: Mutex<Option<Signals>>,
}

/// A request to stop, shared by those who may ask and those who must obey. Clones are the same request.
#[derive(Clone, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt")
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

impl Interrupt {
    /// A request nobody has made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop. Only the first reason counts; the wakers are called every time.
    pub fn request(&self, reason: StopReason) {
        // A later reason does not replace the first one.
        let _ = self.shared.reason.set(reason);
        let wakers = self
            .shared
            .wakers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for waker in wakers.iter() {
            waker();
        }
    }

    /// The first reason to stop, if one was given.
    pub fn reason(&self) -> Option<StopReason> {
        self.shared.reason.get().copied()
    }

    /// Whether somebody asked to stop.
    pub fn is_requested(&self) -> bool {
        self.reason().is_some()
    }

    /// Calls `waker` at each request from now on, and now if one has been made already. It is called from
    /// the thread that asks and must neither block nor make a request itself.
    pub fn on_request(&self, waker: impl Fn() + Send + Sync + 'static) {
        let mut wakers = self
            .shared
            .wakers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_requested() {
            waker();
        }
        wakers.push(Box::new(waker));
    }

    /// Turns SIGINT, SIGTERM, SIGHUP and SIGQUIT into requests, and gives the terminal back while the
    /// process is stopped by SIGTSTP.
    ///
    /// # Errors
    /// The host's refusal to install the handlers.
    pub fn watch_signals(&self) -> Result<(), Failure> {
        self.catch_signals()?;
        self.hear_signals().map_err(|e| cannot_watch(&e))
    }

    /// The first half of [`Interrupt::watch_signals`]: from now on signals wait for the second half. A thread that
    /// is started before the process is confined would not be confined in full.
    ///
    /// # Errors
    /// The host's refusal to install the handlers.
    pub fn catch_signals(&self) -> Result<(), Failure> {
        let watched = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT];
        let signals = Signals::new(watched).map_err(|e| cannot_watch(&e))?;
        *self.caught() = Some(signals);
        Ok(())
    }

    fn caught(&self) -> MutexGuard<'_, Option<Signals>> {
        let caught = &self.shared.caught;
        caught.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The second half of [`Interrupt::watch_signals`]: starts the thread that hears the signals. No effect where it
    /// has been started.
    ///
    /// # Errors
    /// The host's refusal to start a thread.
    pub fn hear_signals(&self) -> io::Result<()> {
        let Some(mut signals) = self.caught().take() else {
            return Ok(());
        };
        let interrupt = self.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    interrupt.handle_signal(signal);
                }
            })?;
        Ok(())
    }

    fn handle_signal(&self, signal: i32) {
        use crate::run::terminal;
        match signal {
            SIGTSTP => {
                terminal::restore_all();
                // If the host refuses to stop us we simply go on.
                let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
            }
            SIGCONT => terminal::make_raw_again(),
            _ if self.is_requested() => {
                terminal::restore_all();
                std::process::exit(128 + signal);
            }
            _ => self.request(StopReason::Signal(signal)),
        }
    }
}

fn cannot_watch(error: &io::Error) -> Failure {
    let advice = "check this process's limits";
    Failure::new("cannot watch for signals", cause(error), advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn the_first_reason_stays_and_wakers_are_called() {
        let interrupt = Interrupt::new();
        let calls = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&calls);
        interrupt.on_request(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert!(!interrupt.is_requested());
        interrupt.clone().request(StopReason::EscapeKey);
        interrupt.request(StopReason::Signal(15));
        assert_eq!(interrupt.reason(), Some(StopReason::EscapeKey));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_late_waker_is_called_at_once() {
        let interrupt = Interrupt::new();
        interrupt.request(StopReason::ConsoleClosed);
        let calls = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&calls);
        interrupt.on_request(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
