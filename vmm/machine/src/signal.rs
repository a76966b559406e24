//! How other threads reach a vCPU: its attention word and the place it sleeps at.

use std::time::Duration;

use chipset::fabric::VcpuSignal;
use vcpu::Attention;

use crate::parking::Parking;

/// One vCPU's attention word and sleeping place.
#[derive(Debug, Default)]
pub struct VcpuLine {
    attention: Attention,
    parking: Parking,
}

impl VcpuLine {
    /// The attention word.
    #[must_use]
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Asks the vCPU to leave its run, waking it if it is idle.
    pub fn stop(&self) {
        self.raise(Attention::STOP);
    }

    /// Makes an idle vCPU look at deadlines again.
    pub fn nudge(&self) {
        self.parking.nudge();
    }

    fn raise(&self, bits: u32) {
        self.attention.raise(bits);
        self.parking.wake();
    }

    /// Sleeps until the attention word has something to wake for, the time is over, or somebody nudges.
    pub(crate) fn park(&self, timeout: Option<Duration>) {
        let wanted = || self.attention.get() & Attention::WAKES != 0;
        self.parking.park(timeout, wanted);
    }
}

impl VcpuSignal for VcpuLine {
    fn attention(&self) {
        self.raise(Attention::INTERRUPT);
    }
}
