//! How much a device does at once.
//!
//! Device code runs on a vCPU's thread, with the device's lock held. What a guest can make as long as it likes is
//! therefore done in turns: a turn moves at most [`TURN_BYTES`], and what is left goes on [`TURN_NS`] later, at the
//! device's deadline. So no request, however long, holds a processor or a lock for longer than a turn, and in virtual
//! time with one vCPU it goes on at the same instruction in every run. A short request is still done inside the access
//! that starts it.

/// Bytes a turn moves at most.
pub const TURN_BYTES: u64 = 1 << 20;
/// How long what is left waits for the next turn, in nanoseconds.
pub const TURN_NS: u64 = 10_000;

/// What is left of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    left: u64,
}

impl Turn {
    /// A whole turn.
    #[must_use]
    pub const fn new() -> Self {
        Self { left: TURN_BYTES }
    }

    /// Bytes that may still be moved.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Takes bytes that were moved, or work that costs as much as moving them, off the turn.
    pub const fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Ends the turn: what was just done may have taken as long as a whole one.
    pub const fn end(&mut self) {
        self.left = 0;
    }

    /// Whether nothing more is to be begun.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.left == 0
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_over_when_all_of_it_is_spent() {
        let mut turn = Turn::new();
        turn.spend(TURN_BYTES - 1);
        assert_eq!((turn.left(), turn.is_over()), (1, false));
        turn.spend(u64::MAX);
        assert!(turn.is_over());
        let mut turn = Turn::default();
        turn.end();
        assert!(turn.is_over());
    }
}
