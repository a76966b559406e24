//! The terminal in raw mode, and back. Every way out gives it back as it was: leaving the scope, a panic, a
//! signal.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The terminal's settings as they were, while it is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal of standard input in raw mode while it lives.
#[derive(Debug)]
pub struct RawMode(());

/// Whether standard input is a terminal.
pub fn input_is_terminal() -> bool {
    isatty(io::stdin())
}

impl RawMode {
    /// Puts the terminal of standard input into raw mode.
    ///
    /// # Errors
    /// Standard input is no terminal, or it refuses.
    pub fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore_all();
                previous(panic);
            }));
        });
        let before = tcgetattr(io::stdin())?;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(before.clone());
        let guard = Self(());
        set_raw(&before)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_all();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn set_raw(before: &Termios) -> rustix::io::Result<()> {
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Flush, &raw)
}

/// Gives the terminal back, if it is raw. A [`RawMode`] that still lives can take it again.
pub fn restore_all() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = saved.as_ref() {
        // A terminal that has gone away needs nothing given back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
    }
}

/// Takes the terminal again after [`restore_all`], if a [`RawMode`] still lives.
pub fn make_raw_again() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = saved.as_ref() {
        // As above.
        let _ = set_raw(before);
    }
}
