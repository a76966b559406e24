//! The local APIC of one processor as a state machine.
//!
//! Invariants: reserved register bits are zero; while the local APIC is disabled by software every LVT entry is
//! masked; IA32_APIC_BASE never holds EXTD without EN; vectors below 16 are never in IRR or ISR.

mod interface;

use bus::VirtualTime;

use super::regs;
use super::timer::{Timer, TimerMode, TscClock};
use super::vectors::VectorSet;
use crate::message::{DeliveryMode, Destination, InterruptMessage, Trigger};

/// What a local APIC is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LapicConfig {
    /// Initial APIC ID; also the x2APIC ID. Not writable by the guest.
    pub apic_id: u32,
    /// This is the bootstrap processor.
    pub bootstrap: bool,
    /// The timer's input clock.
    pub bus_hz: u64,
    /// The TSC's frequency.
    pub tsc_hz: u64,
    /// MAXPHYADDR, 36 to 52.
    pub physical_address_bits: u8,
    /// CPUID advertises x2APIC.
    pub x2apic: bool,
    /// CPUID advertises the TSC deadline.
    pub tsc_deadline: bool,
}

/// The MSR access is to be answered with #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrFault;

/// What an access makes the local APIC send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// An interprocessor interrupt.
    Ipi(InterruptMessage),
    /// The end of a level-triggered interrupt, for the I/O APIC.
    Eoi(u8),
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// Not taken: the local APIC is disabled, or the message is illegal.
    Refused,
    /// Taken; the same was pending already.
    Merged,
    /// Taken; something new is pending.
    New,
}

/// What the processor could take, and what routing needs to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// A vector above the processor priority is in IRR.
    pub interrupt: bool,
    /// An NMI waits.
    pub nmi: bool,
    /// An INIT waits.
    pub init: bool,
    /// A start-up IPI waits.
    pub sipi: bool,
    /// An ExtINT message waits.
    pub ext_int: bool,
    /// The 8259A's INTR reaches the processor as such.
    pub ext_int_open: bool,
    /// LINT0 is unmasked in a mode other than ExtINT.
    pub lint0_listens: bool,
}

/// The local APIC of one processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    config: LapicConfig,
    /// IA32_APIC_BASE.
    base: u64,
    tsc: TscClock,
    r: Registers,
    /// Levels of LINT0 and LINT1, as wired.
    lint: [bool; 2],
    nmi: bool,
    init: bool,
    sipi: Option<u8>,
    ext_int: bool,
}

/// All that a reset of the registers clears.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registers {
    tpr: u8,
    /// xAPIC logical ID, in bits 31:24.
    ldr: u32,
    dfr: u32,
    svr: u32,
    irr: VectorSet,
    isr: VectorSet,
    tmr: VectorSet,
    /// What ESR reads as.
    esr: u32,
    /// Errors since ESR was last written.
    errors: u32,
    /// The next error raises the error LVT's interrupt.
    error_armed: bool,
    icr: u64,
    lvt: [u32; regs::LVT_COUNT],
    timer: Timer,
}

impl Registers {
    /// SDM Vol 3 12.4.7.1.
    fn new(bus_hz: u64) -> Self {
        Self {
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            irr: VectorSet::default(),
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            esr: 0,
            errors: 0,
            error_armed: true,
            icr: 0,
            lvt: [regs::LVT_MASKED; regs::LVT_COUNT],
            timer: Timer::new(bus_hz),
        }
    }
}

impl Lapic {
    /// A local APIC after power-up.
    #[must_use]
    pub fn new(config: LapicConfig) -> Self {
        let bsp = if config.bootstrap { regs::BASE_BSP } else { 0 };
        Self {
            config,
            base: regs::DEFAULT_BASE | regs::BASE_EN | bsp,
            tsc: TscClock {
                hz: config.tsc_hz,
                offset: 0,
            },
            r: Registers::new(config.bus_hz),
            lint: [false; 2],
            nmi: false,
            init: false,
            sipi: None,
            ext_int: false,
        }
    }

    /// Back to the state after power-up (SDM Vol 3 12.4.7.1). The TSC offset is the processor's, and stays.
    pub fn reset(&mut self) {
        let tsc = self.tsc;
        *self = Self::new(self.config);
        self.tsc = tsc;
    }

    /// INIT: as reset, but IA32_APIC_BASE and the APIC ID stay (SDM Vol 3 12.4.7.3). A start-up IPI that came after
    /// the INIT stays pending.
    pub fn init_reset(&mut self) {
        self.r = Registers::new(self.config.bus_hz);
        self.nmi = false;
        self.ext_int = false;
    }

    /// Enables the local APIC with LINT0 as ExtINT and LINT1 as NMI: what firmware leaves behind for the
    /// virtual wire mode of the MultiProcessor Specification 3.6.2.2.
    pub fn set_virtual_wire(&mut self) {
        self.r.svr = regs::SVR_ENABLE | 0xff;
        self.r.lvt[regs::LVT_LINT0] = 0x700;
        self.r.lvt[regs::LVT_LINT1] = 0x400;
    }

    /// The configuration it was built with.
    #[must_use]
    pub fn config(&self) -> &LapicConfig {
        &self.config
    }

    /// IA32_APIC_BASE.EN.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.base & regs::BASE_EN != 0
    }

    /// In x2APIC mode.
    #[must_use]
    pub fn x2apic_mode(&self) -> bool {
        self.base & regs::BASE_EXTD != 0
    }

    /// Enabled by IA32_APIC_BASE and by SVR: fixed interrupts are accepted.
    #[must_use]
    pub fn software_enabled(&self) -> bool {
        self.enabled() && self.r.svr & regs::SVR_ENABLE != 0
    }

    /// Where the registers are in physical memory; `None` when disabled or in x2APIC mode.
    #[must_use]
    pub fn mmio_base(&self) -> Option<u64> {
        (self.enabled() && !self.x2apic_mode()).then_some(self.base & !0xfff)
    }

    /// What LDR reads as.
    #[must_use]
    pub fn logical_id(&self) -> u32 {
        if self.x2apic_mode() {
            let id = self.config.apic_id;
            return (id >> 4) << 16 | 1 << (id & 15);
        }
        self.r.ldr
    }

    /// DFR selects the flat model; of no meaning in x2APIC mode.
    #[must_use]
    pub fn flat_model(&self) -> bool {
        self.r.dfr >> 28 == 0xf
    }

    /// What the processor could take.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let lint0 = self.r.lvt[regs::LVT_LINT0];
        let unmasked = lint0 & regs::LVT_MASKED == 0;
        let ext_int = DeliveryMode::from_bits(lint0 >> 8) == Some(DeliveryMode::ExtInt);
        Summary {
            interrupt: self.pending_vector().is_some(),
            nmi: self.nmi,
            init: self.init,
            sipi: self.sipi.is_some(),
            ext_int: self.ext_int,
            ext_int_open: !self.enabled() || (unmasked && ext_int),
            lint0_listens: self.enabled() && unmasked && !ext_int,
        }
    }

    // ---- priorities and taking interrupts (SDM Vol 3 12.8) ----

    /// The task-priority register.
    #[must_use]
    pub fn tpr(&self) -> u8 {
        self.r.tpr
    }

    /// Sets the task-priority register.
    pub fn set_tpr(&mut self, tpr: u8) {
        self.r.tpr = tpr;
    }

    /// The processor priority (SDM Vol 3 12.8.3.1).
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let in_service = self.r.isr.highest().unwrap_or(0) & 0xf0;
        if self.r.tpr & 0xf0 >= in_service {
            self.r.tpr
        } else {
            in_service
        }
    }

    /// The vector that would be dispensed now: the highest in IRR, if its class is above the processor priority's.
    #[must_use]
    pub fn pending_vector(&self) -> Option<u8> {
        let vector = self.r.irr.highest()?;
        (self.enabled() && vector & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// Dispenses [`Self::pending_vector`]: moves it from IRR to ISR.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending_vector()?;
        self.r.irr.remove(vector);
        self.r.isr.insert(vector);
        Some(vector)
    }

    /// Takes the pending NMI.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// Takes the pending INIT. What it does to the processor and to this local APIC is the caller's to say.
    pub fn take_init(&mut self) -> bool {
        std::mem::take(&mut self.init)
    }

    /// Takes the pending start-up IPI.
    pub fn take_sipi(&mut self) -> Option<u8> {
        self.sipi.take()
    }

    /// Takes the pending ExtINT message.
    pub fn take_ext_int(&mut self) -> bool {
        std::mem::take(&mut self.ext_int)
    }

    /// An end of interrupt (SDM Vol 3 12.8.5).
    fn eoi(&mut self) -> Option<Outgoing> {
        let vector = self.r.isr.highest()?;
        self.r.isr.remove(vector);
        if !self.r.tmr.contains(vector) {
            return None;
        }
        let lint0 = self.r.lvt[regs::LVT_LINT0];
        if lint0 & regs::LVT_REMOTE_IRR != 0 && lint0 as u8 == vector {
            self.r.lvt[regs::LVT_LINT0] &= !regs::LVT_REMOTE_IRR;
            self.evaluate_lint0();
        }
        Some(Outgoing::Eoi(vector))
    }

    // ---- taking messages ----

    /// Takes a message that was routed here.
    pub fn accept(&mut self, mode: DeliveryMode, vector: u8, trigger: Trigger) -> Acceptance {
        if !self.enabled() {
            return Acceptance::Refused;
        }
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept_vector(vector, trigger)
            }
            DeliveryMode::Nmi => latch(&mut self.nmi),
            DeliveryMode::Init => self.request_init(),
            DeliveryMode::StartUp => {
                let new = self.sipi.replace(vector) != Some(vector);
                if new {
                    Acceptance::New
                } else {
                    Acceptance::Merged
                }
            }
            DeliveryMode::ExtInt => latch(&mut self.ext_int),
            // The board has no system management mode.
            DeliveryMode::Smi => Acceptance::Refused,
        }
    }

    /// An INIT, after which a start-up IPI that came before it is void.
    fn request_init(&mut self) -> Acceptance {
        self.sipi = None;
        latch(&mut self.init)
    }

    fn accept_vector(&mut self, vector: u8, trigger: Trigger) -> Acceptance {
        if !self.software_enabled() {
            return Acceptance::Refused;
        }
        if vector < 16 {
            self.error(regs::ESR_RECEIVE_ILLEGAL_VECTOR);
            return Acceptance::Refused;
        }
        self.request(vector, trigger)
    }

    fn request(&mut self, vector: u8, trigger: Trigger) -> Acceptance {
        match trigger {
            Trigger::Edge => self.r.tmr.remove(vector),
            Trigger::Level => {
                self.r.tmr.insert(vector);
            }
        }
        if self.r.irr.insert(vector) {
            Acceptance::New
        } else {
            Acceptance::Merged
        }
    }

    /// Logs an error, and raises the error LVT's interrupt unless it has since ESR was last written (SDM Vol 3 12.5.3).
    fn error(&mut self, bit: u32) {
        self.r.errors |= bit;
        let entry = self.r.lvt[regs::LVT_ERROR];
        if entry & regs::LVT_MASKED != 0 || !std::mem::take(&mut self.r.error_armed) {
            return;
        }
        if entry as u8 >= 16 {
            self.request(entry as u8, Trigger::Edge);
        } else {
            // An error entry with an illegal vector adds to the log and cannot raise an interrupt about itself.
            self.r.errors |= regs::ESR_RECEIVE_ILLEGAL_VECTOR;
        }
    }

    /// Raises the interrupt of an LVT entry on an edge of its source.
    fn trigger_local(&mut self, index: usize) {
        let entry = self.r.lvt[index];
        if entry & regs::LVT_MASKED != 0 {
            return;
        }
        let mode = if index == regs::LVT_TIMER || index == regs::LVT_ERROR {
            Some(DeliveryMode::Fixed)
        } else {
            DeliveryMode::from_bits(entry >> 8)
        };
        match mode {
            Some(DeliveryMode::Fixed) => {
                self.accept_vector(entry as u8, Trigger::Edge);
            }
            Some(DeliveryMode::Nmi) => self.nmi = true,
            Some(DeliveryMode::Init) => {
                self.request_init();
            }
            // ExtINT is a level that the fabric sees through the summary; the others are reserved or SMI.
            Some(DeliveryMode::ExtInt | DeliveryMode::Smi)
            | Some(DeliveryMode::LowestPriority | DeliveryMode::StartUp)
            | None => {}
        }
    }

    /// Takes the interrupt of the performance counters. Intel's local APIC masks the entry then, until software clears
    /// the mask (SDM Vol 3 12.5.1).
    pub fn performance_interrupt(&mut self, masks_entry: bool) {
        self.trigger_local(regs::LVT_PERFORMANCE);
        if masks_entry {
            self.r.lvt[regs::LVT_PERFORMANCE] |= regs::LVT_MASKED;
        }
    }

    /// Drives LINT0 (`pin` 0) or LINT1 (`pin` 1).
    pub fn set_lint(&mut self, pin: usize, high: bool) {
        let Some(level) = self.lint.get_mut(pin) else {
            return;
        };
        let rising = high && !*level;
        *level = high;
        match pin {
            0 if !self.enabled() => {}
            0 if self.lint0_is_level() => self.evaluate_lint0(),
            0 if rising => self.trigger_local(regs::LVT_LINT0),
            1 if rising && !self.enabled() => self.nmi = true,
            1 if rising => self.trigger_local(regs::LVT_LINT1),
            _ => {}
        }
    }

    /// LINT0 is programmed as fixed and level triggered; other modes than fixed have their trigger given
    /// (SDM Vol 3 12.5.1, trigger mode).
    fn lint0_is_level(&self) -> bool {
        let entry = self.r.lvt[regs::LVT_LINT0];
        entry & regs::LVT_LEVEL != 0
            && DeliveryMode::from_bits(entry >> 8) == Some(DeliveryMode::Fixed)
    }

    /// A level-triggered LINT0 requests again after each EOI while the pin is high.
    fn evaluate_lint0(&mut self) {
        let entry = self.r.lvt[regs::LVT_LINT0];
        let blocked = entry & (regs::LVT_MASKED | regs::LVT_REMOTE_IRR) != 0;
        if self.lint[0]
            && !blocked
            && self.lint0_is_level()
            && self.accept_vector(entry as u8, Trigger::Level) != Acceptance::Refused
        {
            self.r.lvt[regs::LVT_LINT0] |= regs::LVT_REMOTE_IRR;
        }
    }

    // ---- time ----

    /// When [`Self::advance`] is next needed. A masked timer needs none: its registers follow the time anyway.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        let entry = self.r.lvt[regs::LVT_TIMER];
        if entry & regs::LVT_MASKED != 0 {
            None
        } else {
            self.r.timer.due()
        }
    }

    /// Lets the timer expire if it is due.
    pub fn advance(&mut self, now: VirtualTime) {
        if self.r.timer.advance(now) {
            self.trigger_local(regs::LVT_TIMER);
        }
    }

    /// How this processor's TSC relates to virtual time.
    #[must_use]
    pub fn tsc_clock(&self) -> TscClock {
        self.tsc
    }

    /// Changes the TSC offset, as an IA32_TSC or IA32_TSC_ADJUST write does.
    pub fn set_tsc_offset(&mut self, offset: u64, now: VirtualTime) {
        self.advance(now);
        self.tsc.offset = offset;
        self.r.timer.retime(self.tsc, now);
    }

    // ---- registers ----

    /// Reads a register that both interfaces have; `None` when it is reserved.
    fn read_register(&mut self, register: u32, now: VirtualTime) -> Option<u32> {
        self.advance(now);
        Some(match register {
            regs::VERSION => regs::VERSION_VALUE,
            regs::TPR => u32::from(self.r.tpr),
            regs::PPR => u32::from(self.ppr()),
            regs::LDR => self.logical_id(),
            regs::SVR => self.r.svr,
            regs::ISR..regs::TMR => self.r.isr.word(register - regs::ISR),
            regs::TMR..regs::IRR => self.r.tmr.word(register - regs::TMR),
            regs::IRR..regs::ESR => self.r.irr.word(register - regs::IRR),
            regs::ESR => self.r.esr,
            regs::LVT..regs::INITIAL_COUNT => self.r.lvt[(register - regs::LVT) as usize],
            regs::INITIAL_COUNT => self.r.timer.initial_count(),
            regs::CURRENT_COUNT => self.r.timer.current_count(now),
            regs::DIVIDE => self.r.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that both interfaces have, with reserved bits already checked or dropped; `None` when
    /// it is reserved or read-only.
    fn write_register(
        &mut self,
        register: u32,
        value: u32,
        now: VirtualTime,
    ) -> Option<Option<Outgoing>> {
        self.advance(now);
        match register {
            regs::TPR => self.r.tpr = value as u8,
            regs::EOI => return Some(self.eoi()),
            regs::SVR => self.write_svr(value),
            regs::ESR => {
                self.r.esr = self.r.errors;
                self.r.errors = 0;
                self.r.error_armed = true;
            }
            regs::LVT..regs::INITIAL_COUNT => {
                self.write_lvt((register - regs::LVT) as usize, value)
            }
            regs::INITIAL_COUNT => self.r.timer.set_initial_count(value, now),
            regs::DIVIDE => self.r.timer.set_divide(value, now),
            _ => return None,
        }
        Some(None)
    }

    fn write_svr(&mut self, value: u32) {
        self.r.svr = value & regs::SVR_WRITABLE;
        if value & regs::SVR_ENABLE == 0 {
            for entry in &mut self.r.lvt {
                *entry |= regs::LVT_MASKED;
            }
        }
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let mut entry = value & regs::LVT_WRITABLE[index];
        if self.r.svr & regs::SVR_ENABLE == 0 {
            entry |= regs::LVT_MASKED;
        }
        if index == regs::LVT_LINT0 && entry & regs::LVT_LEVEL != 0 {
            entry |= self.r.lvt[index] & regs::LVT_REMOTE_IRR;
        }
        if index == regs::LVT_TIMER && !self.config.tsc_deadline {
            entry &= !(1 << 18);
        }
        self.r.lvt[index] = entry;
        match index {
            regs::LVT_TIMER => self.r.timer.set_mode(TimerMode::from_lvt(entry)),
            regs::LVT_LINT0 if self.enabled() => self.evaluate_lint0(),
            _ => {}
        }
    }

    /// Sends what the interrupt command register says (SDM Vol 3 12.6.1 and table 12-3).
    fn send(&mut self) -> Option<Outgoing> {
        let icr = self.r.icr as u32;
        let vector = icr as u8;
        let logical = icr & 1 << 11 != 0;
        let deassert = icr & (1 << 14 | 1 << 15) == 1 << 15;
        let mode = DeliveryMode::from_bits(icr >> 8)?;
        let has_vector = match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => true,
            DeliveryMode::Init if deassert => return None,
            DeliveryMode::ExtInt => return None,
            DeliveryMode::Smi | DeliveryMode::Nmi | DeliveryMode::Init | DeliveryMode::StartUp => {
                false
            }
        };
        if has_vector && vector < 16 {
            self.error(regs::ESR_SEND_ILLEGAL_VECTOR);
            // To oneself it arrives, and is an error there too.
            if icr >> 18 & 3 == 1 {
                self.accept_vector(vector, Trigger::Edge);
            }
            return None;
        }
        let destination = match icr >> 18 & 3 {
            0 if self.x2apic_mode() => Destination::from_x2apic((self.r.icr >> 32) as u32, logical),
            0 => Destination::from_xapic((self.r.icr >> 56) as u8, logical),
            1 if mode == DeliveryMode::Fixed => {
                self.accept_vector(vector, Trigger::Edge);
                return None;
            }
            2 if mode == DeliveryMode::Fixed => Destination::All,
            3 => Destination::AllButSender,
            _ => return None,
        };
        Some(Outgoing::Ipi(InterruptMessage {
            destination,
            mode,
            vector,
            trigger: Trigger::Edge,
        }))
    }
}

fn latch(bit: &mut bool) -> Acceptance {
    if std::mem::replace(bit, true) {
        Acceptance::Merged
    } else {
        Acceptance::New
    }
}
