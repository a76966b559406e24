//! The three counters of the 8254.
//!
//! Time is in ticks of the input clock since time zero. A counter is never stepped: it is known by the tick at which
//! it held a known count, from which its value and its output at any later tick follow.

use super::regs;

/// The six modes (8254 datasheet, mode definitions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    TerminalCount = 0,
    OneShot = 1,
    RateGenerator = 2,
    SquareWave = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

impl Mode {
    fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    /// The gate's rising edge starts these.
    fn triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }

    fn periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }
}

/// Which bytes of the count are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    LowHigh = 3,
}

/// Where the counting element stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// No count since the control word.
    Idle,
    /// The gate holds it at this value.
    Stopped(u32),
    /// It held `from` at tick `start`. In the periodic modes `from` is the period.
    Counting { start: u64, from: u32 },
}

/// A count that a periodic mode takes over when its current cycle or half cycle ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reload {
    at: u64,
    period: u32,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    /// The count register, 1 to the modulus; zero before the first count.
    count: u32,
    run: Run,
    reload: Option<Reload>,
    /// Mode 0: terminal count was reached.
    expired: bool,
    /// Mode 1: the output was low already when it was triggered again.
    retriggered: bool,
    /// Status bit 6 is set before this tick.
    null_until: u64,
    /// Rising edges of the output up to this tick were reported.
    seen: u64,
    write_low: Option<u8>,
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    /// A counter after power-up: no count, output low. (The datasheet leaves it undefined.)
    #[must_use]
    pub fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            access: Access::LowHigh,
            bcd: false,
            gate,
            count: 0,
            run: Run::Idle,
            reload: None,
            expired: false,
            retriggered: false,
            null_until: u64::MAX,
            seen: 0,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    // ---- value and output ----

    /// The counting element, 0 to modulus - 1.
    fn value(&self, tick: u64) -> u32 {
        let modulus = self.modulus();
        let (start, from) = match self.run {
            Run::Idle => return 0,
            Run::Stopped(value) => return value % modulus,
            Run::Counting { start, from } => (start, from),
        };
        let elapsed = tick.saturating_sub(start);
        let value = match self.mode {
            Mode::RateGenerator => from - (elapsed % u64::from(from)) as u32,
            Mode::SquareWave => {
                let phase = (elapsed % u64::from(from)) as u32;
                let high = from.div_ceil(2);
                (from & !1) - 2 * if phase < high { phase } else { phase - high }
            }
            _ => from + modulus - (elapsed % u64::from(modulus)) as u32,
        };
        value % modulus
    }

    /// The output.
    #[must_use]
    pub fn output(&self, tick: u64) -> bool {
        let Run::Counting { start, from } = self.run else {
            return self.mode != Mode::TerminalCount || self.expired;
        };
        let begun = tick >= start;
        let elapsed = tick.saturating_sub(start);
        let from = u64::from(from);
        match self.mode {
            Mode::TerminalCount => self.expired || (begun && elapsed >= from),
            Mode::OneShot if !begun => !self.retriggered,
            Mode::OneShot => elapsed >= from,
            Mode::RateGenerator => !begun || elapsed % from != from - 1,
            Mode::SquareWave => !begun || elapsed % from < from.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => !begun || elapsed != from,
        }
    }

    /// The first tick after `tick` at which counting makes the output rise.
    fn next_rise(&self, tick: u64) -> Option<u64> {
        let Run::Counting { start, from } = self.run else {
            return None;
        };
        let from = u64::from(from);
        let at = match self.mode {
            Mode::TerminalCount if self.expired => return None,
            Mode::TerminalCount | Mode::OneShot => start.saturating_add(from),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => start.saturating_add(from + 1),
            // A period of one is illegal and has no edges.
            Mode::RateGenerator | Mode::SquareWave if from < 2 => return None,
            Mode::RateGenerator | Mode::SquareWave => {
                let cycles = tick.saturating_sub(start) / from + 1;
                start.saturating_add(cycles.saturating_mul(from))
            }
        };
        (at > tick).then_some(at)
    }

    /// The next tick at which [`Self::run_to`] has something to do.
    #[must_use]
    pub fn next_event(&self) -> Option<u64> {
        let rise = self.next_rise(self.seen);
        match self.reload {
            Some(reload) => Some(rise.map_or(reload.at, |r| r.min(reload.at))),
            None => rise,
        }
    }

    /// Lets time pass; true when the output rose at least once.
    pub fn run_to(&mut self, tick: u64) -> bool {
        let mut rose = false;
        if let Some(reload) = self.reload.filter(|r| r.at <= tick) {
            rose |= self.next_rise(self.seen).is_some_and(|at| at <= reload.at);
            self.seen = self.seen.max(reload.at);
            self.take_reload(reload);
        }
        rose |= self.next_rise(self.seen).is_some_and(|at| at <= tick);
        self.seen = self.seen.max(tick);
        if let (Mode::TerminalCount, Run::Counting { start, from }) = (self.mode, self.run) {
            self.expired |= tick >= start.saturating_add(u64::from(from));
        }
        rose
    }

    fn take_reload(&mut self, reload: Reload) {
        self.reload = None;
        // In mode 3 the new count may begin with the low half of the wave.
        let low_half = self.mode == Mode::SquareWave && !self.output(reload.at);
        let ahead = if low_half {
            u64::from(reload.period.div_ceil(2))
        } else {
            0
        };
        self.run = Run::Counting {
            start: reload.at.saturating_sub(ahead),
            from: reload.period,
        };
    }

    // ---- control word, count, gate ----

    /// A control word for this counter other than the latch commands.
    fn set_mode(&mut self, word: u8) {
        self.access = match word >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowHigh,
        };
        self.mode = Mode::from_bits(word >> 1);
        self.bcd = word & 1 != 0;
        self.run = Run::Idle;
        self.reload = None;
        self.expired = false;
        self.null_until = u64::MAX;
        self.write_low = None;
        self.read_high = false;
        self.latched_count = None;
        self.latched_status = None;
    }

    fn write(&mut self, byte: u8, tick: u64) {
        let count = match (self.access, self.write_low) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::LowHigh, None) => {
                self.write_low = Some(byte);
                if self.mode == Mode::TerminalCount {
                    // The first byte stops counting and sets the output low.
                    self.run = Run::Stopped(self.value(tick));
                    self.expired = false;
                }
                return;
            }
            (Access::LowHigh, Some(low)) => u16::from_le_bytes([low, byte]),
        };
        self.write_low = None;
        self.count = match if self.bcd {
            from_bcd(count)
        } else {
            u32::from(count)
        } {
            0 => self.modulus(),
            n => n,
        };
        self.count_written(tick);
    }

    fn count_written(&mut self, tick: u64) {
        self.null_until = u64::MAX;
        match (self.mode, self.run) {
            // These wait for a trigger.
            (Mode::OneShot | Mode::HardwareStrobe, _) => {}
            (Mode::RateGenerator | Mode::SquareWave, Run::Counting { start, from })
                if tick >= start =>
            {
                let at = self
                    .reload
                    .map_or_else(|| self.cycle_end(start, from, tick), |r| r.at);
                self.reload = Some(Reload {
                    at,
                    period: self.count,
                });
                self.null_until = at;
            }
            _ if self.gate => self.load(tick + 1),
            _ => {
                self.expired = false;
                self.run = Run::Stopped(self.count);
                self.null_until = tick + 1;
            }
        }
    }

    /// When the current cycle (mode 2) or half cycle (mode 3) ends.
    fn cycle_end(&self, start: u64, from: u32, tick: u64) -> u64 {
        let from = u64::from(from);
        let phase = (tick - start) % from;
        let high = from.div_ceil(2);
        let left = if self.mode == Mode::SquareWave && phase < high {
            high - phase
        } else {
            from - phase
        };
        tick.saturating_add(left)
    }

    fn load(&mut self, start: u64) {
        self.retriggered = self.mode == Mode::OneShot && !self.output(start.saturating_sub(1));
        self.expired = false;
        self.reload = None;
        self.run = Run::Counting {
            start,
            from: self.count,
        };
        self.null_until = start;
    }

    /// Drives the gate.
    pub fn set_gate(&mut self, gate: bool, tick: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        if self.count == 0 || (self.run == Run::Idle && !self.mode.triggered()) {
            return;
        }
        match (gate, self.mode, self.run) {
            (true, Mode::TerminalCount | Mode::SoftwareStrobe, Run::Stopped(value)) => {
                let from = if value == 0 { self.modulus() } else { value };
                self.run = Run::Counting { start: tick, from };
            }
            (true, mode, _) if mode.triggered() || mode.periodic() => self.load(tick + 1),
            (false, mode, Run::Counting { .. }) if !mode.triggered() => {
                self.reload = None;
                self.run = Run::Stopped(self.value(tick));
            }
            _ => {}
        }
    }

    // ---- reading ----

    fn displayed(&self, tick: u64) -> u16 {
        let value = self.value(tick);
        if self.bcd {
            to_bcd(value)
        } else {
            value as u16
        }
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.displayed(tick));
        }
    }

    fn latch_status(&mut self, tick: u64) {
        if self.latched_status.is_none() {
            self.latched_status = Some(
                u8::from(self.output(tick)) << 7
                    | u8::from(tick < self.null_until) << 6
                    | (self.access as u8) << 4
                    | (self.mode as u8) << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.displayed(tick))
            .to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::LowHigh => {
                let second = self.read_high;
                self.read_high = !second;
                (if second { high } else { low }, second)
            }
        };
        if last {
            self.latched_count = None;
        }
        byte
    }
}

/// The 8254 and port 61h.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pit {
    channels: [Channel; 3],
    /// The writable bits of port 61h.
    control: u8,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// The chip after power-up. The gates of channels 0 and 1 are tied high, that of channel 2 is port 61h's.
    #[must_use]
    pub fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            control: 0,
        }
    }

    /// Lets time pass; true when channel 0's output rose at least once.
    pub fn run_to(&mut self, tick: u64) -> bool {
        let [timer, refresh, speaker] = &mut self.channels;
        refresh.run_to(tick);
        speaker.run_to(tick);
        timer.run_to(tick)
    }

    /// Channel `n`, 0 to 2.
    #[must_use]
    pub fn channel(&self, n: usize) -> &Channel {
        &self.channels[n % 3]
    }

    /// Reads port 40h + `offset`. The control word cannot be read.
    pub fn read(&mut self, offset: u64, tick: u64) -> u8 {
        self.run_to(tick);
        let channel = usize::try_from(offset)
            .ok()
            .and_then(|n| self.channels.get_mut(n));
        channel.map_or(0xff, |c| c.read(tick))
    }

    /// Writes port 40h + `offset`.
    pub fn write(&mut self, offset: u64, value: u8, tick: u64) {
        self.run_to(tick);
        if offset == regs::CONTROL_WORD {
            self.write_control_word(value, tick);
        } else if let Some(c) = usize::try_from(offset)
            .ok()
            .and_then(|n| self.channels.get_mut(n))
        {
            c.write(value, tick);
        }
    }

    fn write_control_word(&mut self, word: u8, tick: u64) {
        if let Some(channel) = self.channels.get_mut(usize::from(word >> 6)) {
            if word & 0x30 == 0 {
                channel.latch_count(tick)
            } else {
                channel.set_mode(word)
            }
            return;
        }
        for (n, channel) in self.channels.iter_mut().enumerate() {
            if word & 2 << n == 0 {
                continue;
            }
            if word & regs::READ_BACK_NO_COUNT == 0 {
                channel.latch_count(tick);
            }
            if word & regs::READ_BACK_NO_STATUS == 0 {
                channel.latch_status(tick);
            }
        }
    }

    /// Reads port 61h.
    pub fn read_control(&mut self, tick: u64) -> u8 {
        self.run_to(tick);
        let refresh = if (tick / regs::REFRESH_TICKS) & 1 != 0 {
            regs::CONTROL_REFRESH
        } else {
            0
        };
        let out2 = if self.channels[2].output(tick) {
            regs::CONTROL_OUT2
        } else {
            0
        };
        self.control | refresh | out2
    }

    /// Writes port 61h.
    pub fn write_control(&mut self, value: u8, tick: u64) {
        self.run_to(tick);
        self.control = value & regs::CONTROL_WRITABLE;
        self.channels[2].set_gate(value & regs::CONTROL_GATE2 != 0, tick);
    }
}

/// Four decimal digits; a digit above nine counts as nine.
fn from_bcd(count: u16) -> u32 {
    (0..4).rev().fold(0, |n, digit| {
        n * 10 + u32::from(count >> (4 * digit) & 0xf).min(9)
    })
}

fn to_bcd(value: u32) -> u16 {
    let digit = |n: u32| (n % 10) as u16;
    digit(value) | digit(value / 10) << 4 | digit(value / 100) << 8 | digit(value / 1000) << 12
}
