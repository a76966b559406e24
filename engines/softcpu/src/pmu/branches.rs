//! Recording of branches, exceptions and interrupts on AMD processors (APM Vol 2 13.1.1).
//!
//! While DebugCtl.LBR is set the source and target of the last branch are kept in two MSRs. An exception or interrupt
//! copies them to two others, and is a branch itself then. A debug exception is not recorded and ends the recording.

use x86defs::exception;
use x86defs::msr::*;

use crate::cpu::{Cpu, Event, EventKind};

/// DebugCtl.LBR.
const LBR: u64 = 1;

impl Cpu {
    /// Branches are to be recorded.
    #[inline]
    pub fn records_branches(&self) -> bool {
        self.msr.debugctl & LBR != 0 && self.amd()
    }

    /// A branch was taken.
    pub fn record_branch(&mut self, from: u64, to: u64) {
        if self.records_branches() {
            self.msr.amd.last_branch = [from, to];
        }
    }

    /// An event went to its handler.
    #[inline]
    pub fn record_event(&mut self, event: &Event, from: u64) {
        if self.records_branches() {
            self.record_delivery(event, from);
        }
    }

    #[cold]
    fn record_delivery(&mut self, event: &Event, from: u64) {
        if event.vector == exception::DB && event.kind != EventKind::SoftwareInterrupt {
            self.msr.debugctl &= !LBR;
            self.branches_watched();
            return;
        }
        self.msr.amd.last_interrupt = self.msr.amd.last_branch;
        self.msr.amd.last_branch = [from, self.rip()];
    }

    /// Puts a saved value back into one of the MSRs, which no WRMSR can; false if it is none of them.
    pub fn restore_branch_record(&mut self, msr: u32, value: u64) -> bool {
        if !self.amd() {
            return false;
        }
        let m = &mut self.msr.amd;
        match msr {
            IA32_LASTBRANCHFROMIP => m.last_branch[0] = value,
            IA32_LASTBRANCHTOIP => m.last_branch[1] = value,
            IA32_LASTINTFROMIP => m.last_interrupt[0] = value,
            IA32_LASTINTTOIP => m.last_interrupt[1] = value,
            _ => return false,
        }
        true
    }
}
