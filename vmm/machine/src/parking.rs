//! Waiting without lost wake-ups.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A place where one thread sleeps until a condition holds, a time is over, or it is nudged.
///
/// The condition is one that other threads make true by a sequentially consistent write before they call
/// [`Parking::wake`]. Why no wake-up is lost: the sleeper sets `parked`, then (after a fence) looks at the
/// condition, while holding the lock; the waker makes the condition true, then looks at `parked`. In the
/// one total order of these four either the sleeper sees the condition or the waker sees `parked`; and a
/// waker that sees it passes through the lock, so its notification cannot fall between look and sleep.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    parked: AtomicBool,
    nudged: Mutex<bool>,
    changed: Condvar,
}

impl Parking {
    /// Sleeps until `ready` holds, `timeout` is over, or [`Parking::nudge`] was called since the last time.
    pub(crate) fn park(&self, timeout: Option<Duration>, ready: impl Fn() -> bool) {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut nudged = self.nudged.lock().unwrap_or_else(PoisonError::into_inner);
        self.parked.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while !ready() && !*nudged {
            let Some(until) = until else {
                nudged = self
                    .changed
                    .wait(nudged)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            nudged = self
                .changed
                .wait_timeout(nudged, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        self.parked.store(false, Ordering::SeqCst);
        *nudged = false;
    }

    /// Wakes the sleeper, if there is one, after the condition it waits for was made true.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) {
            drop(self.nudged.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Makes the sleeper, or the next one, return whatever its condition.
    pub(crate) fn nudge(&self) {
        *self.nudged.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn a_true_condition_does_not_sleep() {
        Parking::default().park(None, || true);
    }

    #[test]
    fn a_timeout_ends_the_sleep() {
        let start = Instant::now();
        Parking::default().park(Some(Duration::from_millis(20)), || false);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_nudge_before_the_sleep_counts() {
        let p = Parking::default();
        p.nudge();
        p.park(None, || false);
        // It counts once.
        p.park(Some(Duration::from_millis(1)), || false);
    }

    /// Two threads hand a token back and forth; each step is a race between look and sleep. A lost
    /// wake-up shows as a step that takes the long timeout.
    #[test]
    fn no_wake_up_is_lost() {
        const STEPS: u32 = 20_000;
        let token = Arc::new(AtomicU32::new(0));
        let sides = [Arc::new(Parking::default()), Arc::new(Parking::default())];
        let start = Instant::now();
        let threads: Vec<_> = (0..2usize)
            .map(|me| {
                let (token, sides) = (Arc::clone(&token), sides.clone());
                thread::spawn(move || {
                    for step in 0..STEPS {
                        let mine = 2 * step + me as u32;
                        sides[me].park(LONG, || token.load(Ordering::Relaxed) == mine);
                        token.store(mine + 1, Ordering::SeqCst);
                        sides[1 - me].wake();
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().expect("no panic");
        }
        assert_eq!(token.load(Ordering::SeqCst), 2 * STEPS);
        assert!(
            start.elapsed() < Duration::from_secs(50),
            "a wake-up was lost"
        );
    }
}
