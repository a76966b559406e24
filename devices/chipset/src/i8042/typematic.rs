//! The repetition of a key that is held (IBM PS/2 Technical Reference, keyboard, "Typematic keys" and command F3h).
//!
//! Only the key that was pressed last repeats, until it goes up, whatever else is held. While the keyboard is kept from
//! sending, it leaves repetitions out: they must not fill its buffer. So a guest that reads slowly sees fewer of them, and
//! never several at once.

use bus::VirtualTime;

use super::keys::Key;

/// Rate and delay at power-up: 10.9 characters a second after half a second.
pub const AT_POWER_UP: u8 = 0x2b;

/// A rate and a delay, as the argument of command F3h says them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace(pub u8);

impl Pace {
    /// From the key's going down to the first repetition: bits 6:5 are quarters of a second, less one.
    #[must_use]
    pub fn delay_ns(self) -> u64 {
        (u64::from(self.0 >> 5 & 3) + 1) * 250_000_000
    }

    /// From one repetition to the next: (8 + bits 2:0) * 2 to the power of bits 4:3, in units of 1/240 s (4.17 ms).
    #[must_use]
    pub fn period_ns(self) -> u64 {
        let units = (8 + u64::from(self.0 & 7)) << (self.0 >> 3 & 3);
        (units * 1_000_000_000).div_ceil(240)
    }
}

/// Which key repeats, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Typematic {
    running: Option<(Key, VirtualTime)>,
}

impl Typematic {
    /// A key went down; none before it repeats any more.
    pub fn start(&mut self, key: Key, pace: Pace, now: VirtualTime) {
        self.running = Some((key, now + pace.delay_ns()));
    }

    /// Nothing repeats any more.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// A key went up.
    pub fn released(&mut self, key: Key) {
        if self.running.is_some_and(|(of, _)| of == key) {
            self.stop();
        }
    }

    /// When the next repetition is due, if nothing keeps it back.
    #[must_use]
    pub fn due(&self) -> Option<VirtualTime> {
        self.running.map(|(_, due)| due)
    }

    /// The key to send again, if it is due.
    pub fn take(&mut self, pace: Pace, now: VirtualTime) -> Option<Key> {
        let (key, due) = self.running?;
        if due > now {
            return None;
        }
        // What was left out does not come later: the next is a whole period away.
        self.running = Some((key, now + pace.period_ns()));
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the Technical Reference, in tenths of characters a second.
    #[test]
    fn rates_are_those_of_the_table() {
        let rates = [
            300, 267, 240, 218, 200, 185, 171, 160, 150, 133, 120, 109, 100, 92, 86, 80, 75, 67,
            60, 55, 50, 46, 43, 40, 37, 33, 30, 27, 25, 23, 21, 20,
        ];
        for (code, rate) in (0u8..).zip(rates) {
            let tenths = 10_000_000_000.0 / Pace(code).period_ns() as f64;
            assert!(
                (tenths - f64::from(rate)).abs() <= 0.6,
                "{code:#x}: {tenths}"
            );
        }
        let delays = [0, 0x20, 0x40, 0x60].map(|code| Pace(code).delay_ns() / 1_000_000);
        assert_eq!(delays, [250, 500, 750, 1000]);
    }
}
