//! Keys that wait to be typed, at a pace that every guest can follow.
//!
//! The first goes down a while after the guest enabled the keyboard (command F4h), and each further one when the guest
//! has read what the one before sent, but not sooner than a person could type it.

use std::collections::VecDeque;

use bus::VirtualTime;

use super::keys::KeyEvent;

/// Least time from a key to the next, in nanoseconds.
pub const KEY_NS: u64 = 20_000_000;
/// Time from the moment the guest wants keys to the first one, in nanoseconds.
pub const START_NS: u64 = 200_000_000;

/// Keys that wait.
#[derive(Debug, Default)]
pub struct Typing {
    events: VecDeque<KeyEvent>,
    /// When the next key may go, once the guest wants keys.
    next: Option<VirtualTime>,
}

impl Typing {
    /// Adds keys at the end.
    pub fn extend(&mut self, events: &[KeyEvent]) {
        self.events.extend(events);
    }

    /// The guest must ask for keys anew.
    pub fn pause(&mut self) {
        self.next = None;
    }

    /// Notes that the guest wants keys now.
    pub fn wanted(&mut self, now: VirtualTime) {
        if self.next.is_none() {
            self.next = Some(now + START_NS);
        }
    }

    /// When the next key is due.
    #[must_use]
    pub fn due(&self) -> Option<VirtualTime> {
        self.next.filter(|_| !self.events.is_empty())
    }

    /// The next key, if it is due.
    pub fn take(&mut self, now: VirtualTime) -> Option<KeyEvent> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        self.next = Some(now + KEY_NS);
        self.events.pop_front()
    }
}
