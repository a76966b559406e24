//! MONITOR and MWAIT (SDM Vol 2; Vol 3 9.10.4).
//!
//! The monitored line of 64 bytes is named in the map of decoded code all vCPUs and devices look at when they have
//! stored ([`guestmem::CodeMap`]), so that a store by another wakes this vCPU, and nobody else's stores cost more. What
//! this vCPU stores itself between MONITOR and MWAIT is seen by comparing the line. A wait may end for no reason; it
//! does for lines outside RAM.

use guestmem::RamOffset;
use iced_x86::Mnemonic;
use vcpu::{Attention, MpState};
use x86defs::msr::misc_enable;

use super::form::Form;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, gpr, pending};
use crate::mem::Access;
use crate::vmx::Intercept;

/// Bytes of a line: leaf 5 of CPUID.
pub const LINE_BYTES: usize = 64;
/// MWAIT, ECX bit 0: an interrupt ends the wait though RFLAGS.IF is clear.
const MASKED_INTERRUPTS: u32 = 1;

/// The monitor hardware of a vCPU.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// MONITOR has armed it, and nothing has disarmed it since.
    armed: bool,
    /// The line, if it is in RAM.
    line: Option<RamOffset>,
    /// What it held when it was armed.
    before: [u8; LINE_BYTES],
    /// Another has stored to it.
    stored: bool,
    /// The vCPU is in MWAIT; its activity is [`MpState::Halted`] then.
    waiting: bool,
    /// Masked interrupts end the wait.
    masked: bool,
    /// The line whose page is named in the shared map. It stays there until another page is monitored.
    watched: Option<RamOffset>,
}

impl Default for Monitor {
    fn default() -> Self {
        Self {
            armed: false,
            line: None,
            before: [0; LINE_BYTES],
            stored: false,
            waiting: false,
            masked: false,
            watched: None,
        }
    }
}

impl Cpu {
    /// The processor is in MWAIT.
    pub fn in_mwait(&self) -> bool {
        self.monitor.waiting && self.activity == MpState::Halted
    }

    /// Follows a store to the monitored line.
    pub fn monitored_store(&mut self) {
        self.attention.clear(Attention::MONITOR);
        self.monitor.stored = true;
    }

    /// Whether MWAIT ends for what HLT would not: a store, an interrupt that RFLAGS.IF masks.
    pub fn mwait_wakes(&mut self) -> bool {
        self.in_mwait()
            && (self.monitor.stored || (self.monitor.masked && self.platform.interrupt_pending()))
    }

    /// Ends MWAIT, if the processor is in it: it is active again (SDM Vol 3 25.4.2: MWAIT is no activity state of a
    /// VMCS). Any event disarms the monitor.
    pub fn end_mwait(&mut self) {
        if self.in_mwait() {
            self.activity = MpState::Running;
            self.pending &= !pending::INACTIVE;
        }
        self.monitor.waiting = false;
        self.monitor.armed = false;
        self.code_pages.mailbox.monitor(None);
    }

    /// Whether both instructions exist: CPUID shows them, and IA32_MISC_ENABLE does not disable them.
    pub fn monitor_enabled(&self) -> bool {
        self.model.monitor && self.msr.misc_enable & misc_enable::MONITOR != 0
    }

    fn monitor_allowed(&mut self) -> Flow {
        if self.cpl != 0 || !self.monitor_enabled() {
            return self.ud();
        }
        Ok(())
    }

    fn arm(&mut self, line: Option<RamOffset>) {
        self.attention.clear(Attention::MONITOR);
        self.monitor.stored = false;
        self.monitor.armed = true;
        self.monitor.line = line;
        let Some(line) = line else { return };
        let page = |at: RamOffset| at.0 >> 12;
        let old = self.monitor.watched.replace(line);
        let new_page = old.is_none_or(|old| page(old) != page(line));
        self.code_pages.mailbox.monitor(Some(line));
        if old != Some(line) {
            self.ram.code().add(line, LINE_BYTES as u64, new_page);
        }
        if let Some(old) = old.filter(|_| new_page) {
            self.ram.code().remove(old);
        }
        self.ram.read_at(line, &mut self.monitor.before);
    }

    /// Whether the line is as it was when the monitor was armed.
    fn line_unchanged(&self) -> bool {
        let mut now = [0; LINE_BYTES];
        let Some(line) = self.monitor.line else {
            return false;
        };
        self.ram.read_at(line, &mut now);
        now == self.monitor.before
    }
}

fn monitor(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.monitor_allowed()?;
    cpu.intercept(Intercept::Monitor)?;
    if cpu.regs[gpr::RCX] as u32 != 0 {
        return cpu.gp0();
    }
    // A byte load, for faults and accessed bits.
    let va = cpu.linear(op, 1, false)?;
    cpu.probe_read(va)?;
    let at = cpu.translate(va, Access::Read)?.ram;
    cpu.arm(at.map(|at| RamOffset(at.0 & !(LINE_BYTES as u64 - 1))));
    Ok(())
}

fn mwait(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.monitor_allowed()?;
    let armed = cpu.monitor.armed;
    cpu.intercept(Intercept::Mwait { armed })?;
    let extensions = cpu.regs[gpr::RCX] as u32;
    if extensions & !MASKED_INTERRUPTS != 0 {
        return cpu.gp0();
    }
    let stored = cpu.monitor.stored || cpu.attention.get() & Attention::MONITOR != 0;
    if armed && !stored && cpu.line_unchanged() {
        cpu.monitor.waiting = true;
        cpu.monitor.masked = extensions & MASKED_INTERRUPTS != 0;
        cpu.activity = MpState::Halted;
        cpu.pending |= pending::INACTIVE;
    } else {
        cpu.end_mwait();
    }
    super::fall_through(cpu, op)
}

pub fn bind_monitor(form: &Form, op: &mut Op) -> Option<Handler> {
    if form.mnemonic() == Mnemonic::Mwait {
        return Some(mwait);
    }
    form.address_in_rax(op);
    Some(monitor)
}
