//! The 16550A as a state machine.
//!
//! Transmission takes no time: the holding register is empty again at once, yet each write takes the interrupt
//! request away and makes it anew, so that an edge-triggered controller sees it.

use std::collections::VecDeque;

use bus::VirtualTime;

use super::regs;

/// The chip's registers and receive FIFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    /// Overrun since LSR was last read.
    overrun: bool,
    /// The delta bits of MSR.
    msr_delta: u8,
    /// The holding register became empty and nobody was told.
    thre_pending: bool,
    rx: VecDeque<u8>,
    /// When a character timeout is due.
    timeout_at: Option<VirtualTime>,
    timed_out: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// The chip after master reset (PC16550D table III); the divisor, undefined there, is that of 9600 baud.
    #[must_use]
    pub fn new() -> Self {
        Self {
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            overrun: false,
            msr_delta: 0,
            thre_pending: false,
            rx: VecDeque::with_capacity(regs::FIFO),
            timeout_at: None,
            timed_out: false,
        }
    }

    fn fifos(&self) -> bool {
        self.fcr & regs::FCR_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos() { regs::FIFO } else { 1 }
    }

    /// How many characters the receiver takes without an overrun. None while in loopback, which cuts the line off.
    #[must_use]
    pub fn rx_room(&self) -> usize {
        if self.mcr & regs::MCR_LOOP != 0 {
            0
        } else {
            self.capacity().saturating_sub(self.rx.len())
        }
    }

    fn trigger_level(&self) -> usize {
        if !self.fifos() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    /// Four character times (PC16550D, FIFO interrupt mode operation).
    fn timeout_ns(&self) -> u64 {
        let data_bits = 5 + u64::from(self.lcr & 3);
        let stop_bits = 1 + u64::from(self.lcr >> 2 & 1);
        let parity_bits = u64::from(self.lcr >> 3 & 1);
        let character = 1 + data_bits + parity_bits + stop_bits;
        let divisor = if self.divisor == 0 {
            0x1_0000
        } else {
            u64::from(self.divisor)
        };
        4 * character * 16 * divisor * 1_000_000_000 / regs::CLOCK_HZ
    }

    fn restart_timeout(&mut self, now: VirtualTime) {
        self.timed_out = false;
        self.timeout_at = (self.fifos() && !self.rx.is_empty()).then(|| now + self.timeout_ns());
    }

    /// A character arrives.
    pub fn receive(&mut self, byte: u8, now: VirtualTime) {
        if self.rx.len() >= self.capacity() {
            // Without FIFOs the new character replaces the old; with them it is lost.
            self.overrun = true;
            if !self.fifos() {
                self.rx.clear();
                self.rx.push_back(byte);
            }
            return;
        }
        self.rx.push_back(byte);
        self.restart_timeout(now);
    }

    /// When a character timeout is due.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        if self.ier & regs::IER_RDA == 0 {
            None
        } else {
            self.timeout_at
        }
    }

    /// Lets time pass.
    pub fn advance(&mut self, now: VirtualTime) {
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.timeout_at = None;
            self.timed_out = true;
        }
    }

    /// The identification of the interrupt of highest priority (PC16550D table V).
    fn identify(&self) -> u8 {
        if self.ier & regs::IER_LINE != 0 && self.overrun {
            regs::IIR_LINE
        } else if self.ier & regs::IER_RDA != 0 && self.rx.len() >= self.trigger_level() {
            regs::IIR_RDA
        } else if self.ier & regs::IER_RDA != 0 && self.timed_out && !self.rx.is_empty() {
            regs::IIR_TIMEOUT
        } else if self.ier & regs::IER_THRE != 0 && self.thre_pending {
            regs::IIR_THRE
        } else if self.ier & regs::IER_MODEM != 0 && self.msr_delta != 0 {
            regs::IIR_MODEM
        } else {
            regs::IIR_NONE
        }
    }

    /// The interrupt line as a PC has it: gated by OUT2, which loopback holds inactive.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        let gate = self.mcr & (regs::MCR_OUT2 | regs::MCR_LOOP) == regs::MCR_OUT2;
        gate && self.identify() != regs::IIR_NONE
    }

    /// The modem status inputs: connected, or the modem control outputs in loopback.
    fn modem_inputs(&self) -> u8 {
        if self.mcr & regs::MCR_LOOP == 0 {
            return regs::MSR_CONNECTED;
        }
        let m = self.mcr;
        // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4
    }

    fn dlab(&self) -> bool {
        self.lcr & regs::LCR_DLAB != 0
    }

    /// Reads a register (0 to 7).
    pub fn read(&mut self, register: u8, now: VirtualTime) -> u8 {
        self.advance(now);
        match register & 7 {
            regs::DATA if self.dlab() => self.divisor as u8,
            regs::DATA => {
                let byte = self.rx.pop_front().unwrap_or(0);
                self.restart_timeout(now);
                byte
            }
            regs::IER if self.dlab() => (self.divisor >> 8) as u8,
            regs::IER => self.ier,
            regs::IIR_FCR => {
                let id = self.identify();
                if id == regs::IIR_THRE {
                    self.thre_pending = false;
                }
                id | if self.fifos() { regs::IIR_FIFOS } else { 0 }
            }
            regs::LCR => self.lcr,
            regs::MCR => self.mcr,
            regs::LSR => {
                let data = if self.rx.is_empty() { 0 } else { regs::LSR_DR };
                let overrun = if std::mem::take(&mut self.overrun) {
                    regs::LSR_OE
                } else {
                    0
                };
                regs::LSR_THRE_TEMT | data | overrun
            }
            regs::MSR => self.modem_inputs() | std::mem::take(&mut self.msr_delta),
            _ => self.scr,
        }
    }

    /// Writes a register (0 to 7); gives the byte that goes out on the line. `transmit_started` is called between the
    /// interrupt request's fall and its return.
    pub fn write(
        &mut self,
        register: u8,
        value: u8,
        now: VirtualTime,
        transmit_started: impl FnOnce(&Self),
    ) -> Option<u8> {
        self.advance(now);
        match register & 7 {
            regs::DATA if self.dlab() => self.divisor = self.divisor & 0xff00 | u16::from(value),
            regs::DATA => {
                self.thre_pending = false;
                transmit_started(self);
                self.thre_pending = true;
                if self.mcr & regs::MCR_LOOP == 0 {
                    return Some(value);
                }
                self.receive(value, now);
            }
            regs::IER if self.dlab() => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            regs::IER => {
                // Enabling the interrupt while the register is empty requests it at once.
                if value & !self.ier & regs::IER_THRE != 0 {
                    self.thre_pending = true;
                }
                self.ier = value & 0xf;
            }
            regs::IIR_FCR => self.write_fcr(value, now),
            regs::LCR => self.lcr = value,
            regs::MCR => self.write_mcr(value),
            // LSR and MSR are for factory tests only.
            regs::LSR | regs::MSR => {}
            _ => self.scr = value,
        }
        None
    }

    fn write_fcr(&mut self, value: u8, now: VirtualTime) {
        let toggled = (value ^ self.fcr) & regs::FCR_ENABLE != 0;
        // The other bits count only together with the enable bit.
        self.fcr = if value & regs::FCR_ENABLE != 0 {
            value & 0xc9
        } else {
            0
        };
        if toggled || value & regs::FCR_CLEAR_RX != 0 {
            self.rx.clear();
        }
        self.restart_timeout(now);
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.mcr = value & regs::MCR_WRITABLE;
        let after = self.modem_inputs();
        let changed = before ^ after;
        // Delta CTS, DSR, DCD on any change; RI only on its trailing edge.
        self.msr_delta |= changed >> 4 & 0b1011;
        if changed & 0x40 != 0 && after & 0x40 == 0 {
            self.msr_delta |= 0b0100;
        }
    }
}
