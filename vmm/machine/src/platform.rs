//! The board as one vCPU of the software engine sees it.
//!
//! # Time
//!
//! *Host mode*: virtual time is real time, less the lag of [`bus::Clock`] where the host has taken the processor away
//! in the middle of what the guest executes: RDTSC, device accesses and [`Platform::poll`] are looks, which move the
//! shown time by no more than the instructions since the last one can have taken. [`Platform::poll`] compares it with
//! the deadlines and gives the vCPU a slice of instructions, shorter when something is due soon; an idle vCPU sleeps
//! until real time has come to the earliest deadline, its engine's own included, or until its attention word is set.
//! Once all are idle there is no lag; as long as one runs, the others wait for time to be shown by those that run, and
//! ask them to look once they are due. A vCPU that gives way as it spins counts as idle meanwhile, unless it reads
//! clocks: who does so waits for a time, not for a vCPU.
//!
//! *Virtual mode*: one executed instruction is one nanosecond. A slice ends exactly at the next deadline, so
//! that with one vCPU every timer interrupt comes at the same instruction in every run. When all vCPUs are
//! idle, time jumps to the next deadline. With several vCPUs time is that of the one that is furthest
//! ahead, and a run depends on the host's scheduling.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bus::{ClockMode, VirtualTime};
use chipset::fabric::InterruptFabric;
use guestmem::Gpa;
use vcpu::{Attention, InterruptFault, Platform, StartSignals, Wake};

use crate::board::{Board, Jump, earlier};
use crate::signal::VcpuLine;

/// Most instructions between two looks at the time in host mode: about a third of a millisecond.
const HOST_SLICE: u64 = 32_768;
/// Fewest instructions between two looks in host mode, however near a deadline is.
const HOST_SLICE_MIN: u64 = 1_024;
/// log2 of the nanoseconds the software engine is taken to need for an instruction, for slices that end near
/// a deadline.
const NS_PER_INSTRUCTION_SHIFT: u32 = 3;
/// The same while lag is made up, when an instruction moves time by up to 128 ns.
const NS_PER_LAGGING_SHIFT: u32 = 7;
/// Nanoseconds of lag that are taken for none: a deadline may be missed by so much.
const NEGLIGIBLE_LAG: u64 = 100_000;
/// Most instructions between two looks in virtual mode: how late one vCPU sees what another, or a device's backend, did.
const VIRTUAL_SLICE: u64 = 16_384;
/// How long an idle vCPU waits before it looks at the time again, where others move virtual time.
const VIRTUAL_IDLE_STEP: Duration = Duration::from_millis(1);
/// Size of the local APIC's register page.
const APIC_PAGE_SIZE: u64 = 4096;

/// [`Platform`] for an engine without interrupt controllers.
pub(crate) struct SoftPlatform {
    index: usize,
    board: Arc<Board>,
    fabric: Arc<InterruptFabric>,
    line: Arc<VcpuLine>,
    tsc_hz: u64,
    apic_page: Option<Gpa>,
    /// The time at which this vCPU had executed `base_retired` instructions; in host mode, at its last look.
    base_time: VirtualTime,
    base_retired: u64,
    /// It has read a clock or a device since it last gave way.
    looked: bool,
    /// `retired` of the last idle that ended because of something pending. The engine comes back with the same
    /// number when it could not take it.
    refused_at: Option<u64>,
}

impl SoftPlatform {
    pub(crate) fn new(
        index: usize,
        board: Arc<Board>,
        fabric: Arc<InterruptFabric>,
        tsc_hz: u64,
    ) -> Self {
        let line = Arc::clone(&board.lines()[index]);
        let mut platform = Self {
            index,
            board,
            fabric,
            line,
            tsc_hz,
            apic_page: None,
            base_time: VirtualTime(0),
            base_retired: 0,
            looked: false,
            refused_at: None,
        };
        platform.find_apic_page();
        platform
    }

    fn find_apic_page(&mut self) {
        self.apic_page = self.fabric.mmio_base(self.index).map(Gpa);
    }

    /// Offset into the local APIC's page, if `gpa` lies in it.
    fn apic_offset(&self, gpa: Gpa) -> Option<u64> {
        let offset = gpa.0.checked_sub(self.apic_page?.0)?;
        (offset < APIC_PAGE_SIZE).then_some(offset)
    }

    /// The time as it was shown last.
    fn now(&self) -> VirtualTime {
        self.board.clock.now()
    }

    /// The time after `retired` instructions; moves the clock there.
    fn now_at(&mut self, retired: u64) -> VirtualTime {
        let executed = retired.saturating_sub(self.base_retired);
        let clock = &self.board.clock;
        match clock.mode() {
            ClockMode::Host => {
                let now = clock.look(self.base_time, executed);
                // It may have counted some that were not executed after all.
                self.rebase(retired.max(self.base_retired), now);
                now
            }
            ClockMode::Virtual => {
                clock.advance_to(self.base_time + executed);
                clock.now()
            }
        }
    }

    /// The time at an access to a device.
    fn access_time(&mut self, retired: u64) -> VirtualTime {
        self.looked = true;
        self.now_at(retired)
    }

    /// Counts on from the clock's time, which others or an idle jump may have moved.
    fn rebase(&mut self, retired: u64, now: VirtualTime) {
        self.base_time = now;
        self.base_retired = retired;
    }

    fn own_deadline(&self) -> Option<VirtualTime> {
        earlier(self.board.bus.deadline(), self.fabric.deadline(self.index))
    }

    fn advance_own(&self, now: VirtualTime) {
        self.board.bus.advance(now);
        self.fabric.advance(self.index, now);
    }

    /// One step of waiting in host mode.
    fn sleep(&self, until: Option<VirtualTime>) {
        self.advance_own(self.board.idle_time());
        if self.line.attention().get() & Attention::WAKES == 0 {
            let deadline = earlier(self.own_deadline(), until);
            let timeout = deadline.map(|d| self.board.until(d));
            self.line.park(timeout);
        }
    }

    /// One step of waiting in virtual mode: jumps if nobody runs.
    fn jump(&self) {
        let board = &self.board;
        self.advance_own(self.now());
        if self.line.attention().get() & Attention::WAKES != 0 {
            return;
        }
        match board.jump() {
            Jump::Jumped => {}
            Jump::SomebodyRuns => self.line.park(Some(VIRTUAL_IDLE_STEP)),
            // Only input from outside can go on from here.
            Jump::Never => self.line.park(None),
        }
    }

    /// The time for this vCPU while it is idle.
    fn idle_time(&self) -> VirtualTime {
        match self.board.clock.mode() {
            ClockMode::Host => self.board.idle_time(),
            ClockMode::Virtual => self.now(),
        }
    }

    fn wait(&self, until: Option<VirtualTime>) -> Wake {
        loop {
            let attention = self.line.attention().get() & Attention::WAKES;
            if attention & Attention::STOP != 0 {
                return Wake::Stop;
            }
            if attention != 0 {
                return Wake::Event;
            }
            if until.is_some_and(|until| until <= self.idle_time()) {
                return Wake::Event;
            }
            match self.board.clock.mode() {
                ClockMode::Host => self.sleep(until),
                ClockMode::Virtual => self.jump(),
            }
        }
    }
}

impl Platform for SoftPlatform {
    fn seed(&mut self) -> u64 {
        match self.board.clock.mode() {
            ClockMode::Virtual => vcpu::REPRODUCIBLE_SEED,
            // The standard library keys its hashers from the host's entropy.
            ClockMode::Host => RandomState::new().hash_one(0u64),
        }
    }

    fn pio_read(&mut self, port: u16, size_bytes: u8, retired: u64) -> u32 {
        let mut data = [0; 4];
        let size = usize::from(size_bytes).min(data.len());
        let now = self.access_time(retired);
        self.board.bus.pio_read(port, &mut data[..size], now);
        u32::from_le_bytes(data)
    }

    fn pio_write(&mut self, port: u16, size_bytes: u8, value: u32, retired: u64) {
        let data = value.to_le_bytes();
        let size = usize::from(size_bytes).min(data.len());
        let now = self.access_time(retired);
        self.board.bus.pio_write(port, &data[..size], now);
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8], retired: u64) {
        let now = self.access_time(retired);
        match self.apic_offset(gpa) {
            Some(offset) => self.fabric.mmio_read(self.index, offset, data, now),
            None => self.board.bus.mmio_read(gpa, data, now),
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8], retired: u64) {
        let now = self.access_time(retired);
        match self.apic_offset(gpa) {
            Some(offset) => self.fabric.mmio_write(self.index, offset, data, now),
            None => self.board.bus.mmio_write(gpa, data, now),
        }
    }

    fn apic_msr_read(&mut self, msr: u32, retired: u64) -> Result<u64, InterruptFault> {
        let now = self.access_time(retired);
        self.fabric
            .msr_read(self.index, msr, now)
            .map_err(|_| InterruptFault)
    }

    fn apic_msr_write(&mut self, msr: u32, value: u64, retired: u64) -> Result<(), InterruptFault> {
        let now = self.access_time(retired);
        let result = self.fabric.msr_write(self.index, msr, value, now);
        if msr == x86defs::msr::IA32_APIC_BASE {
            self.find_apic_page();
        }
        result.map_err(|_| InterruptFault)
    }

    fn cr8(&mut self) -> u8 {
        self.fabric.tpr(self.index) >> 4
    }

    fn set_cr8(&mut self, priority: u8) {
        self.fabric.set_tpr(self.index, priority << 4);
    }

    fn interrupt_pending(&mut self) -> bool {
        self.fabric.has_interrupt(self.index)
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.fabric.acknowledge(self.index)
    }

    fn take_nmi(&mut self) -> bool {
        self.fabric.take_nmi(self.index)
    }

    fn take_start(&mut self) -> StartSignals {
        let (init, sipi) = self.fabric.take_start(self.index);
        StartSignals { init, sipi }
    }

    fn init_accepted(&mut self) {
        self.fabric.init_reset(self.index);
        self.find_apic_page();
    }

    fn performance_interrupt(&mut self, masks_entry: bool) {
        self.fabric.performance_interrupt(self.index, masks_entry);
    }

    fn set_ferr(&mut self, asserted: bool) {
        self.fabric.set_ferr(self.index, asserted);
    }

    fn ignne(&mut self) -> bool {
        self.fabric.ignne()
    }

    fn tsc(&mut self, retired: u64) -> u64 {
        self.looked = true;
        self.cycles(retired)
    }

    fn cycles(&mut self, retired: u64) -> u64 {
        let now = self.now_at(retired);
        // The usual frequency spares a wide division.
        if self.tsc_hz == crate::config::DEFAULT_TSC_HZ {
            now.0
        } else {
            now.to_ticks(self.tsc_hz)
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.fabric.set_tsc_offset(self.index, offset, self.now());
    }

    fn poll(&mut self, retired: u64) -> u64 {
        let now = self.now_at(retired);
        self.advance_own(now);
        let left = self.own_deadline().map_or(u64::MAX, |d| d - now);
        match self.board.clock.mode() {
            ClockMode::Host => {
                let shift = match self.board.clock.lag() {
                    0..NEGLIGIBLE_LAG => NS_PER_INSTRUCTION_SHIFT,
                    _ => NS_PER_LAGGING_SHIFT,
                };
                (left >> shift).clamp(HOST_SLICE_MIN, HOST_SLICE)
            }
            ClockMode::Virtual => {
                self.rebase(retired, now);
                left.clamp(1, VIRTUAL_SLICE)
            }
        }
    }

    fn idle(&mut self, retired: u64, until_tsc: Option<u64>) -> Wake {
        self.now_at(retired);
        if self.fabric.has_pending(self.index) && self.refused_at != Some(retired) {
            self.refused_at = Some(retired);
            return Wake::Event;
        }
        let until = until_tsc.map(|tsc| VirtualTime::from_ticks(tsc, self.tsc_hz));
        self.line.set_alarm(until);
        self.board.enter_idle();
        let wake = self.wait(until);
        let now = self.idle_time();
        self.board.leave_idle();
        self.line.set_alarm(None);
        self.rebase(retired, now);
        wake
    }

    fn give_way(&mut self, retired: u64) {
        if self.board.clock.mode() == ClockMode::Virtual {
            thread::yield_now();
            return;
        }
        // Who reads a clock as it spins waits for a time. That comes without others, and should not leap.
        if std::mem::take(&mut self.looked) {
            return;
        }
        self.now_at(retired);
        self.board.enter_idle();
        thread::yield_now();
        let now = self.board.idle_time();
        self.board.leave_idle();
        self.rebase(retired.max(self.base_retired), now);
    }
}

#[cfg(test)]
mod tests;
