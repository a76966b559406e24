//! The fixed ACPI hardware as a state machine: PM1 event and control, PM timer, GPE0.

use bus::VirtualTime;

use super::regs;

const GPE_BYTES: usize = regs::GPE0_BYTES as usize / 2;

/// What a write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepRequest {
    /// Sleep type S5.
    PowerOff,
}

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: [u8; GPE_BYTES],
    gpe_enable: [u8; GPE_BYTES],
    /// The timer's bits 31 and up when it was last looked at.
    seen_half: u64,
}

impl AcpiPm {
    /// The registers after reset.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets TMR_STS when the timer's highest bit has changed.
    pub fn advance(&mut self, now: VirtualTime) {
        let half = now.to_ticks(regs::PM_TIMER_HZ) >> 31;
        if half != self.seen_half {
            self.seen_half = half;
            self.status |= regs::PM1_TIMER;
        }
    }

    /// When [`Self::advance`] is next needed: only while it would raise SCI.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        let wanted = self.enable & regs::PM1_TIMER != 0 && self.status & regs::PM1_TIMER == 0;
        wanted.then(|| VirtualTime::from_ticks((self.seen_half + 1) << 31, regs::PM_TIMER_HZ))
    }

    /// The level of SCI.
    #[must_use]
    pub fn sci(&self) -> bool {
        self.status & self.enable != 0
            || self
                .gpe_status
                .iter()
                .zip(&self.gpe_enable)
                .any(|(s, e)| s & e != 0)
    }

    /// Sets bits of PM1 status, as a button does.
    pub fn raise(&mut self, events: u16) {
        self.status |= events & (regs::PM1_ENABLES | regs::PM1_WAKE);
    }

    /// Sets general-purpose event `n`; those that do not exist are ignored.
    pub fn raise_gpe(&mut self, n: u8) {
        if let Some(byte) = self.gpe_status.get_mut(usize::from(n >> 3)) {
            *byte |= 1 << (n & 7);
        }
    }

    /// Reads the byte at `offset`.
    #[must_use]
    pub fn read(&self, offset: u16, now: VirtualTime) -> u8 {
        let byte_of = |value: u16, at: u16| value.to_le_bytes()[usize::from(at & 1)];
        match offset {
            0x00..=0x01 => byte_of(self.status, offset),
            0x02..=0x03 => byte_of(self.enable, offset),
            0x04..=0x05 => byte_of(self.control | regs::SCI_EN, offset),
            0x08..=0x0b => {
                let ticks = now.to_ticks(regs::PM_TIMER_HZ) as u32;
                ticks.to_le_bytes()[usize::from(offset & 3)]
            }
            0x20..=0x27 => self.gpe_status[usize::from(offset & 7)],
            0x28..=0x2f => self.gpe_enable[usize::from(offset & 7)],
            regs::SMI_ENABLE => regs::SMI_ENABLE_VALUE,
            _ => 0,
        }
    }

    /// Writes the byte at `offset`.
    pub fn write(&mut self, offset: u16, value: u8) -> Option<SleepRequest> {
        let shift = 8 * u32::from(offset & 1);
        let word = u16::from(value) << shift;
        let keep = !(0xff << shift);
        match offset {
            // Writing one clears.
            0x00..=0x01 => self.status &= !word,
            0x02..=0x03 => self.enable = (self.enable & keep | word) & regs::PM1_ENABLES,
            0x04..=0x05 => {
                self.control = (self.control & keep | word) & regs::PM1_CONTROL_KEPT;
                let sleep_type = self.control >> regs::SLP_TYP_SHIFT & 7;
                let off = [regs::SLP_TYP_S5, regs::SLP_TYP_OFF].contains(&sleep_type);
                if word & regs::SLP_EN != 0 && off {
                    return Some(SleepRequest::PowerOff);
                }
            }
            0x20..=0x27 => self.gpe_status[usize::from(offset & 7)] &= !value,
            0x28..=0x2f => self.gpe_enable[usize::from(offset & 7)] = value,
            _ => {}
        }
        None
    }
}
