//! The VMX-preemption timer (SDM Vol 3 26.5.1).
//!
//! It counts down by one whenever bit X of the TSC changes, X being [`PREEMPTION_TIMER_SHIFT`]: kept as the
//! TSC at which it reaches zero.

use vcpu::MpState;
use x86defs::vmx::control::{exit, pin};
use x86defs::vmx::{ExitReason, VmcsField as F};

use super::ExitRequest;
use super::caps::PREEMPTION_TIMER_SHIFT;
use crate::cpu::{Cpu, pending};

/// The timer of the running guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreemptionTimer {
    /// Count of timer ticks at which it expires, while active.
    expires: Option<u64>,
}

impl PreemptionTimer {
    /// Starts it with `value` at a TSC.
    #[must_use]
    pub fn start(value: u32, tsc: u64) -> Self {
        let now = tsc >> PREEMPTION_TIMER_SHIFT;
        Self {
            expires: Some(now.saturating_add(u64::from(value))),
        }
    }

    /// Its value at a TSC; `None` if it is not active.
    #[must_use]
    pub fn value(&self, tsc: u64) -> Option<u32> {
        let left = self.expires?.saturating_sub(tsc >> PREEMPTION_TIMER_SHIFT);
        // It started from 32 bits and only counts down.
        Some(left as u32)
    }

    /// The TSC at which it expires; `None` if it is not active.
    #[must_use]
    pub fn expires_tsc(&self) -> Option<u64> {
        Some(self.expires?.saturating_mul(1 << PREEMPTION_TIMER_SHIFT))
    }

    /// TSC ticks until it expires; `None` if it is not active.
    #[must_use]
    pub fn remaining_tsc(&self, tsc: u64) -> Option<u64> {
        Some(self.expires_tsc()?.saturating_sub(tsc))
    }
}

/// TSC ticks an instruction takes at least: how far ahead [`Cpu::vmx_polled`] looks.
const TSC_PER_INSTRUCTION: u64 = 4;
/// The shortest wait between two looks at the clock, in instructions.
const LEAST_BUDGET: i64 = 64;

impl Cpu {
    fn platform_tsc(&mut self) -> u64 {
        let retired = self.retired_now();
        self.platform.tsc(retired)
    }

    /// Starts the timer at VM entry, if it is to be active.
    pub(super) fn start_preemption_timer(&mut self) {
        if !self.vmx.pin(pin::PREEMPTION_TIMER) {
            return;
        }
        let value = self.vmx.current_vmcs().get32(F::PreemptionTimer);
        let tsc = self.platform_tsc();
        self.vmx.timer = PreemptionTimer::start(value, tsc);
        self.shorten_budget();
        self.pending |= pending::VMX;
    }

    /// Saves the timer's value at a VM exit, if asked to (SDM Vol 3 28.3.4).
    pub(super) fn save_preemption_timer(&mut self) {
        let tsc = self.platform_tsc();
        let value = self.vmx.timer.value(tsc);
        let vmcs = self.vmx.current_vmcs_mut();
        if vmcs.exit_controls() & exit::SAVE_PREEMPTION_TIMER != 0
            && let Some(value) = value
        {
            vmcs.set(F::PreemptionTimer, u64::from(value));
        }
    }

    /// To be called when the platform has been polled: brings the next poll forward so that the timer is
    /// noticed in time, and marks it for the next boundary when it has expired.
    pub fn vmx_polled(&mut self) {
        if self.vmx.timer.expires.is_none() {
            return;
        }
        self.shorten_budget();
    }

    fn shorten_budget(&mut self) {
        match self.vmx_timer_remaining() {
            Some(0) => self.pending |= pending::VMX,
            Some(left) => {
                let instructions = i64::try_from(left / TSC_PER_INSTRUCTION).unwrap_or(i64::MAX);
                self.shorten_slice(instructions.max(LEAST_BUDGET));
            }
            None => {}
        }
    }

    /// The platform's TSC at which the timer ends an inactive state: it counts in the states HLT, MWAIT and shutdown
    /// too, and not in wait-for-SIPI (SDM Vol 3 26.5.1).
    #[must_use]
    pub fn vmx_timer_wakes_at(&self) -> Option<u64> {
        if self.activity == MpState::WaitForSipi {
            return None;
        }
        self.vmx.timer.expires_tsc()
    }

    /// TSC ticks until the timer expires; `None` if it is not active.
    fn vmx_timer_remaining(&mut self) -> Option<u64> {
        self.vmx.timer.expires?;
        let tsc = self.platform_tsc();
        self.vmx.timer.remaining_tsc(tsc)
    }

    /// Whether the timer has expired; the exit is in [`Cpu::exit`] then.
    pub(super) fn preemption_timer_expired(&mut self) -> bool {
        self.vmx_timer_remaining() == Some(0)
            && self.request_exit(ExitRequest::boundary(ExitReason::PreemptionTimer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_changes_of_bit_x() {
        let t = PreemptionTimer::start(3, 31);
        assert_eq!(t.value(31), Some(3));
        assert_eq!(t.value(32), Some(2), "bit 5 changed at 32");
        assert_eq!(t.remaining_tsc(40), Some(96 - 40));
        assert_eq!(t.value(96), Some(0));
        assert_eq!(t.value(1000), Some(0), "stays at zero");
        assert_eq!(PreemptionTimer::start(0, 77).remaining_tsc(77), Some(0));
        assert_eq!(PreemptionTimer::default().value(5), None);
    }
}
