//! How other threads reach a vCPU: its attention word and the place it sleeps at.

use std::sync::Arc;
use std::time::Duration;

use chipset::fabric::VcpuSignal;
use vcpu::Attention;

use crate::parking::Parking;

/// One vCPU's attention word and sleeping place.
#[derive(Debug)]
pub struct VcpuLine {
    attention: Attention,
    parking: Arc<Parking>,
}

impl Default for VcpuLine {
    fn default() -> Self {
        let attention = Attention::new();
        let parking = Arc::new(Parking::default());
        let sleeper = Arc::clone(&parking);
        attention.set_waker(move || sleeper.wake());
        Self { attention, parking }
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
