//! What all vCPUs of a machine share: devices, time, and the way to reach each other.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::{Bus, Clock, ClockMode, VirtualTime};
use chipset::fabric::InterruptFabric;
use vcpu::Attention;

use crate::parking::Parking;
use crate::signal::VcpuLine;

/// How long an idle vCPU waits in host mode for those that run to show a time that has come: somewhat less than they
/// run between two looks.
const IDLE_STEP: Duration = Duration::from_micros(100);

/// What came of [`Board::jump`].
pub(crate) enum Jump {
    /// Time is that of the next deadline.
    Jumped,
    /// A vCPU moves time by what it executes.
    SomebodyRuns,
    /// Nothing is due, ever.
    Never,
}

/// The board around the vCPUs.
pub struct Board {
    pub(crate) bus: Bus,
    pub(crate) clock: Clock,
    /// The software interrupt controllers; `None` with an engine that has its own.
    pub(crate) fabric: Option<Arc<InterruptFabric>>,
    lines: Vec<Arc<VcpuLine>>,
    /// vCPUs that are not idle; decides when virtual time may jump.
    busy: AtomicUsize,
    /// Held by the vCPU that moves virtual time over idle.
    jumping: Mutex<()>,
    /// Where [`Board::keep_time`] sleeps.
    timer: Parking,
    /// Until when it sleeps, in nanoseconds; `u64::MAX` for ever.
    timer_until: AtomicU64,
    timer_stopped: AtomicBool,
}

impl Board {
    pub(crate) fn new(
        bus: Bus,
        clock: Clock,
        fabric: Option<Arc<InterruptFabric>>,
        lines: Vec<Arc<VcpuLine>>,
    ) -> Self {
        Self {
            busy: AtomicUsize::new(lines.len()),
            jumping: Mutex::default(),
            bus,
            clock,
            fabric,
            lines,
            timer: Parking::default(),
            timer_until: AtomicU64::new(u64::MAX),
            timer_stopped: AtomicBool::new(false),
        }
    }

    /// How to reach each vCPU.
    #[must_use]
    pub fn lines(&self) -> &[Arc<VcpuLine>] {
        &self.lines
    }

    /// Virtual time now, as the guest has seen it.
    #[must_use]
    pub fn now(&self) -> VirtualTime {
        self.clock.now()
    }

    /// Re-reads all deadlines after input reached a device beside the bus, and has whoever sleeps look at them.
    pub fn input_arrived(&self) {
        self.bus.reschedule();
        for line in &self.lines {
            line.nudge();
        }
        self.timer.nudge();
    }

    /// Asks every vCPU to leave its run.
    pub fn stop_vcpus(&self) {
        for line in &self.lines {
            line.stop();
        }
    }

    /// The earliest thing that is to happen: on the bus, in any local APIC, or what an idle vCPU waits for itself.
    pub(crate) fn earliest_deadline(&self) -> Option<VirtualTime> {
        let timers = self.fabric.as_ref().and_then(|f| f.earliest_deadline());
        let alarms = self.lines.iter().filter_map(|l| l.alarm()).min();
        earlier(earlier(self.bus.deadline(), timers), alarms)
    }

    /// Lets every device and local APIC act that is due.
    pub(crate) fn advance_all(&self, now: VirtualTime) {
        self.bus.advance(now);
        if let Some(fabric) = &self.fabric {
            for vcpu in 0..self.lines.len() {
                fabric.advance(vcpu, now);
            }
        }
    }

    /// A vCPU goes idle; whether all are.
    pub(crate) fn enter_idle(&self) {
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }

    /// A vCPU has something to do again.
    pub(crate) fn leave_idle(&self) {
        self.busy.fetch_add(1, Ordering::SeqCst);
    }

    /// Moves virtual time to the next deadline and lets what is due act, unless a vCPU runs or is about to. One at a
    /// time: whoever comes second has to see what the first one's jump woke.
    pub(crate) fn jump(&self) -> Jump {
        let _one = self.jumping.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.all_idle() {
            return Jump::SomebodyRuns;
        }
        let Some(deadline) = self.earliest_deadline() else {
            return Jump::Never;
        };
        self.clock.advance_to(deadline);
        let now = self.now();
        self.advance_all(now);
        for line in self.lines.iter().filter(|l| l.is_due(now)) {
            line.nudge();
        }
        Jump::Jumped
    }

    /// Whether no vCPU runs or is about to. A vCPU first counts as busy, then takes its attention or its alarm down;
    /// so these are looked at in the other order.
    fn all_idle(&self) -> bool {
        let now = self.now();
        let rests =
            |l: &Arc<VcpuLine>| l.attention().get() & Attention::WAKES == 0 && !l.is_due(now);
        let all_rest = self.lines.iter().all(rests);
        fence(Ordering::SeqCst);
        all_rest && self.busy() == 0
    }

    /// Whether devices need a thread that lives through [`Board::keep_time`]: with an engine whose idle
    /// vCPUs do not call back.
    #[must_use]
    pub fn needs_timekeeper(&self) -> bool {
        self.fabric.is_none()
    }

    /// Lets devices act when they are due, until [`Board::stop_timekeeper`].
    pub fn keep_time(&self) {
        let stopped = || self.timer_stopped.load(Ordering::SeqCst);
        while !stopped() {
            let now = self.clock.now();
            self.bus.advance(now);
            let deadline = self.bus.deadline();
            self.timer_until
                .store(nanoseconds(deadline), Ordering::SeqCst);
            let timeout = deadline.map(|d| Duration::from_nanos(d - now));
            self.timer
                .park(timeout, || stopped() || self.bus.deadline() != deadline);
        }
    }

    /// Ends [`Board::keep_time`].
    pub fn stop_timekeeper(&self) {
        self.timer_stopped.store(true, Ordering::SeqCst);
        self.timer.wake();
    }

    /// Wakes [`Board::keep_time`] if a device now wants to act earlier than it sleeps.
    ///
    /// Either this sees what the sleeper wrote to `timer_until`, or the sleeper, which looks at the deadline
    /// after that, sees the new one.
    pub(crate) fn deadlines_changed(&self) {
        fence(Ordering::SeqCst);
        if nanoseconds(self.bus.deadline()) < self.timer_until.load(Ordering::SeqCst) {
            self.timer.wake();
        }
    }

    /// The time for an idle vCPU, in host mode. Where no other runs, nobody has reads that a leap could tear apart.
    pub(crate) fn idle_time(&self) -> VirtualTime {
        debug_assert_eq!(self.clock.mode(), ClockMode::Host);
        if self.anybody_runs() {
            self.clock.watch()
        } else {
            self.clock.catch_up()
        }
    }

    /// How long an idle vCPU is to sleep for what is due at `deadline`, in host mode: until real time is there. Where
    /// that has come and is not shown yet, the vCPUs that run are asked to look at the clock, which shows it.
    pub(crate) fn until(&self, deadline: VirtualTime) -> Duration {
        debug_assert_eq!(self.clock.mode(), ClockMode::Host);
        let left = deadline - self.clock.real();
        if left == 0 && self.anybody_runs() {
            // Those that are idle, the caller too, look once more than they have to when they run again.
            for line in &self.lines {
                line.attention().raise(Attention::LOOK);
            }
            IDLE_STEP
        } else {
            Duration::from_nanos(left)
        }
    }

    fn anybody_runs(&self) -> bool {
        self.busy() != 0
    }

    /// How many vCPUs are not idle.
    pub(crate) fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }
}

/// The earlier of two deadlines.
pub(crate) fn earlier(a: Option<VirtualTime>, b: Option<VirtualTime>) -> Option<VirtualTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, None) => a,
        (None, b) => b,
    }
}

fn nanoseconds(deadline: Option<VirtualTime>) -> u64 {
    deadline.map_or(u64::MAX, |d| d.0)
}

#[cfg(test)]
mod tests;
