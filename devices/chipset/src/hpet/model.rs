//! The HPET as a state machine.
//!
//! The main counter is known by the tick at which it held a known value. Each timer keeps the tick at which its
//! comparator next matches, recomputed whenever something that it depends on changes.

use bus::VirtualTime;

use super::regs;

/// One timer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Timer {
    /// The writable bits of its configuration register.
    config: u64,
    comparator: u64,
    /// The last value written to the comparator while periodic.
    period: u64,
    /// Tick of the next match; none while the main counter stands.
    due: Option<u64>,
}

impl Timer {
    fn mask(&self) -> u64 {
        if self.config & regs::TIMER_32BIT != 0 {
            0xffff_ffff
        } else {
            u64::MAX
        }
    }

    fn periodic(&self) -> bool {
        self.config & regs::TIMER_PERIODIC != 0
    }

    fn level(&self) -> bool {
        self.config & regs::TIMER_LEVEL != 0
    }

    fn enabled(&self) -> bool {
        self.config & regs::TIMER_INT_ENABLE != 0
    }

    /// The next match when the counter holds `counter` at `tick`. A counter that equals the comparator has matched
    /// already and does so again after it wraps.
    fn arm(&mut self, counter: u64, tick: u64) {
        let ahead = self.comparator.wrapping_sub(counter) & self.mask();
        let ahead = if ahead == 0 {
            self.mask().saturating_add(1)
        } else {
            ahead
        };
        self.due = tick.checked_add(ahead);
    }

    /// Lets time pass; true when the comparator matched.
    fn run_to(&mut self, tick: u64) -> bool {
        let Some(due) = self.due.filter(|&due| due <= tick) else {
            return false;
        };
        let mask = self.mask();
        let step = if self.periodic() && self.period & mask != 0 {
            self.period & mask
        } else {
            mask.saturating_add(1)
        };
        let matches = ((tick - due) / step).saturating_add(1);
        self.due = step
            .checked_mul(matches)
            .and_then(|ahead| due.checked_add(ahead));
        if self.periodic() {
            let moved = self.period.wrapping_mul(matches);
            self.comparator = self.comparator.wrapping_add(moved) & mask;
        }
        true
    }
}

/// The HPET's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hpet {
    config: u64,
    status: u64,
    /// The main counter held `value` at `tick`; while it stands, it holds `value`.
    value: u64,
    tick: u64,
    timers: [Timer; regs::TIMERS],
    /// Edges that are due to be driven, one bit for each timer.
    edges: u8,
}

impl Default for Hpet {
    fn default() -> Self {
        Self::new()
    }
}

impl Hpet {
    /// The HPET after reset: counter zero and standing.
    #[must_use]
    pub fn new() -> Self {
        let timer = Timer {
            config: 0,
            comparator: u64::MAX,
            period: 0,
            due: None,
        };
        Self {
            config: 0,
            status: 0,
            value: 0,
            tick: 0,
            timers: [timer.clone(), timer.clone(), timer],
            edges: 0,
        }
    }

    fn running(&self) -> bool {
        self.config & regs::CONFIG_ENABLE != 0
    }

    /// Timers 0 and 1 take the places of PIT and RTC.
    #[must_use]
    pub fn legacy(&self) -> bool {
        self.config & regs::CONFIG_LEGACY != 0
    }

    fn counter(&self, tick: u64) -> u64 {
        if !self.running() {
            return self.value;
        }
        self.value.wrapping_add(tick.saturating_sub(self.tick))
    }

    fn arm_all(&mut self, tick: u64) {
        let counter = self.counter(tick);
        let running = self.running();
        for timer in &mut self.timers {
            if running {
                timer.arm(counter, tick)
            } else {
                timer.due = None
            }
        }
    }

    /// Lets time pass.
    pub fn advance(&mut self, now: VirtualTime) {
        let tick = now.0 / regs::PERIOD_NS;
        for (n, timer) in self.timers.iter_mut().enumerate() {
            if timer.run_to(tick) {
                if timer.level() {
                    self.status |= 1 << n;
                } else if timer.enabled() {
                    self.edges |= 1 << n;
                }
            }
        }
    }

    /// Takes the timers whose edge is due, one bit for each.
    pub fn take_edges(&mut self) -> u8 {
        std::mem::take(&mut self.edges)
    }

    /// The timers whose level interrupt is asserted, one bit for each.
    #[must_use]
    pub fn levels(&self) -> u8 {
        let mut bits = 0;
        for (n, timer) in self.timers.iter().enumerate() {
            if timer.level() && timer.enabled() && self.running() && self.status & 1 << n != 0 {
                bits |= 1 << n;
            }
        }
        bits
    }

    /// The I/O APIC input of timer `n`, if its route is one it can have.
    #[must_use]
    pub fn route(&self, n: usize) -> Option<u32> {
        let route = (self.timers.get(n)?.config >> regs::TIMER_ROUTE_SHIFT & 0x1f) as u32;
        (regs::TIMER_ROUTES >> route & 1 != 0).then_some(route)
    }

    /// When [`Self::advance`] is next needed.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        let due = self
            .timers
            .iter()
            .filter(|t| t.enabled())
            .filter_map(|t| t.due)
            .min()?;
        Some(VirtualTime(due.saturating_mul(regs::PERIOD_NS)))
    }

    fn read_register(&self, register: u64, tick: u64) -> u64 {
        match register {
            regs::CAPABILITIES => regs::CAPABILITIES_VALUE,
            regs::CONFIG => self.config,
            regs::STATUS => self.status,
            regs::COUNTER => self.counter(tick),
            _ => match self.timer_register(register) {
                Some((n, 0)) => {
                    let periodic = if n == 0 { regs::TIMER_PERIODIC_CAP } else { 0 };
                    self.timers[n].config
                        | periodic
                        | regs::TIMER_SIZE_CAP
                        | u64::from(regs::TIMER_ROUTES) << 32
                }
                Some((n, 8)) => self.timers[n].comparator & self.timers[n].mask(),
                // FSB routes are not offered; the rest is reserved.
                _ => 0,
            },
        }
    }

    fn timer_register(&self, register: u64) -> Option<(usize, u64)> {
        let n = usize::try_from(register.checked_sub(regs::TIMER)? >> 5).ok()?;
        (n < regs::TIMERS).then_some((n, register & 0x18))
    }

    /// Writes the bits of a register that `lanes` selects.
    fn write_register(&mut self, register: u64, value: u64, lanes: u64, tick: u64) {
        let merged = self.read_register(register, tick) & !lanes | value & lanes;
        match register {
            regs::CONFIG => {
                self.value = self.counter(tick);
                self.tick = tick;
                let started = merged & regs::CONFIG_ENABLE != self.config & regs::CONFIG_ENABLE;
                self.config = merged & (regs::CONFIG_ENABLE | regs::CONFIG_LEGACY);
                if started {
                    self.arm_all(tick);
                }
            }
            // Writing one clears.
            regs::STATUS => self.status &= !(value & lanes),
            regs::COUNTER => {
                self.value = merged;
                self.tick = tick;
                self.arm_all(tick);
            }
            _ => match self.timer_register(register) {
                Some((n, 0)) => self.write_timer_config(n, merged, tick),
                Some((n, 8)) => self.write_comparator(n, value, lanes, tick),
                _ => {}
            },
        }
    }

    fn write_timer_config(&mut self, n: usize, value: u64, tick: u64) {
        let counter = self.counter(tick);
        let running = self.running();
        let timer = &mut self.timers[n];
        let mut writable = regs::TIMER_LEVEL
            | regs::TIMER_INT_ENABLE
            | regs::TIMER_32BIT
            | 0x1f << regs::TIMER_ROUTE_SHIFT;
        if n == 0 {
            writable |= regs::TIMER_PERIODIC | regs::TIMER_VALUE_SET;
        }
        timer.config = value & writable;
        if !timer.periodic() {
            timer.config &= !regs::TIMER_VALUE_SET;
        }
        if !timer.level() {
            self.status &= !(1 << n);
        }
        timer.comparator &= timer.mask();
        if running {
            timer.arm(counter, tick);
        }
    }

    /// In periodic mode a write sets the period, and the accumulator only together with VALUE_SET (2.3.9.2.2).
    fn write_comparator(&mut self, n: usize, value: u64, lanes: u64, tick: u64) {
        let counter = self.counter(tick);
        let running = self.running();
        let timer = &mut self.timers[n];
        let mask = timer.mask();
        if !timer.periodic() || timer.config & regs::TIMER_VALUE_SET != 0 {
            timer.comparator = (timer.comparator & !lanes | value & lanes) & mask;
        }
        if timer.periodic() {
            timer.period = (timer.period & !lanes | value & lanes) & mask;
        }
        timer.config &= !regs::TIMER_VALUE_SET;
        if running {
            timer.arm(counter, tick);
        }
    }

    /// Reads bytes from the register block.
    pub fn read(&mut self, offset: u64, data: &mut [u8], now: VirtualTime) {
        self.advance(now);
        let tick = now.0 / regs::PERIOD_NS;
        let bytes = self.read_register(offset & !7, tick).to_le_bytes();
        let first = (offset & 7) as usize;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(first + i).copied().unwrap_or(0);
        }
    }

    /// Writes to the register block; only aligned doublewords and quadwords count.
    pub fn write(&mut self, offset: u64, data: &[u8], now: VirtualTime) {
        self.advance(now);
        let tick = now.0 / regs::PERIOD_NS;
        let (value, lanes) = match (offset & 7, data) {
            (0, &[a, b, c, d]) => (u64::from(u32::from_le_bytes([a, b, c, d])), 0xffff_ffff),
            (4, &[a, b, c, d]) => (
                u64::from(u32::from_le_bytes([a, b, c, d])) << 32,
                0xffff_ffff << 32,
            ),
            (0, &[a, b, c, d, e, f, g, h]) => {
                (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::MAX)
            }
            _ => return,
        };
        self.write_register(offset & !7, value, lanes, tick);
    }
}
