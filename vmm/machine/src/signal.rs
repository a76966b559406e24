//! How other threads reach a vCPU: its attention word and the place it sleeps at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus::VirtualTime;
use chipset::fabric::VcpuSignal;
use vcpu::Attention;

use crate::parking::Parking;

/// One vCPU's attention word and sleeping place.
#[derive(Debug)]
pub struct VcpuLine {
    attention: Attention,
    parking: Arc<Parking>,
    /// While it is idle: the nanosecond its engine waits for, [`NO_ALARM`] if for none.
    alarm: AtomicU64,
}

/// An alarm that never is.
const NO_ALARM: u64 = u64::MAX;

impl Default for VcpuLine {
    fn default() -> Self {
        let attention = Attention::new();
        let parking = Arc::new(Parking::default());
        let sleeper = Arc::clone(&parking);
        attention.set_waker(move || sleeper.wake());
        Self {
            attention,
            parking,
            alarm: AtomicU64::new(NO_ALARM),
        }
    }
}

impl VcpuLine {
    /// The attention word.
    #[must_use]
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Asks the vCPU to leave its run, waking it if it is idle.
    pub fn stop(&self) {
        self.attention.raise(Attention::STOP);
    }

    /// Makes an idle vCPU look at deadlines again.
    pub fn nudge(&self) {
        self.parking.nudge();
    }

    /// Says what an idle vCPU's engine waits for, beside the board's deadlines.
    pub(crate) fn set_alarm(&self, at: Option<VirtualTime>) {
        let at = at.map_or(NO_ALARM, |t| t.0);
        self.alarm.store(at, Ordering::SeqCst);
    }

    /// What an idle vCPU's engine waits for.
    pub(crate) fn alarm(&self) -> Option<VirtualTime> {
        let at = self.alarm.load(Ordering::SeqCst);
        (at != NO_ALARM).then_some(VirtualTime(at))
    }

    /// What it waits for has come.
    pub(crate) fn is_due(&self, now: VirtualTime) -> bool {
        self.alarm().is_some_and(|at| at <= now)
    }

    /// Sleeps until the attention word has something to wake for, the time is over, or somebody nudges.
    pub(crate) fn park(&self, timeout: Option<Duration>) {
        let wanted = || self.attention.get() & Attention::WAKES != 0;
        self.parking.park(timeout, wanted);
    }
}

impl VcpuSignal for VcpuLine {
    fn attention(&self) {
        self.attention.raise(Attention::INTERRUPT);
    }
}
