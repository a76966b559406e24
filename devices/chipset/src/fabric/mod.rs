//! The interrupt fabric: local APICs, I/O APIC and 8259A pair, and the messages between them.
//!
//! Every local APIC, the I/O APIC and the 8259A pair have a lock of their own. Order: I/O APIC before local APIC;
//! at most one local APIC and never the 8259A pair together with another. A local APIC's operation returns
//! what it wants to send, and the fabric sends it after letting go. What a vCPU could take is mirrored in an
//! atomic word, so that asking costs one load. Signals are sent with no lock of these held.
//!
//! Numeric errors are a device with a lock of its own, which comes before all of these: like a device on the bus it
//! drives its line with it held, so that the line ends at the level that was last found.

mod routing;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bus::{IrqLine, LineSink, Msi, MsiSink, VirtualTime};

use crate::coprocessor::{self, ErrorLogic};
use crate::ioapic::IoApic;
use crate::lapic::{Lapic, LapicConfig, MsrFault, Outgoing, Summary, TscClock, regs};
use crate::message::InterruptMessage;
use crate::pic::PicPair;
use routing::{Delivery, LogicalId, VcpuSet};

/// The most vCPUs a fabric can have: eight-bit destinations of I/O APIC and MSI, less the broadcast.
pub const MAX_VCPUS: usize = 255;

/// How a vCPU's thread learns that it should look.
///
/// Called when a vCPU may have something new to take: interrupt, NMI, INIT or start-up IPI. The call may come from any
/// thread, also the vCPU's own, and with the lock of a device held: it must not call back into the fabric or the bus.
pub trait VcpuSignal: Send + Sync {
    /// Makes the vCPU look at the fabric soon, waking it if it waits.
    fn attention(&self);
}

/// What a fabric is built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricConfig {
    /// APIC ID of each vCPU, distinct and below 255; the first is the bootstrap processor.
    pub apic_ids: Vec<u32>,
    /// Input clock of the local APIC timers.
    pub bus_hz: u64,
    /// TSC frequency.
    pub tsc_hz: u64,
    /// MAXPHYADDR, 36 to 52.
    pub physical_address_bits: u8,
    /// CPUID advertises x2APIC.
    pub x2apic: bool,
    /// CPUID advertises the TSC deadline.
    pub tsc_deadline: bool,
}

const HINT_INTERRUPT: u32 = 1 << 0;
const HINT_NMI: u32 = 1 << 1;
const HINT_INIT: u32 = 1 << 2;
const HINT_SIPI: u32 = 1 << 3;
const HINT_EXT_INT: u32 = 1 << 4;
/// INTR of the 8259A pair reaches the processor.
const HINT_EXT_INT_OPEN: u32 = 1 << 5;
const HINT_LINT0_LISTENS: u32 = 1 << 6;
/// The bits that are something to take.
const HINT_PENDING: u32 = HINT_INTERRUPT | HINT_NMI | HINT_INIT | HINT_SIPI | HINT_EXT_INT;

fn hint(s: Summary) -> u32 {
    let bit = |on, mask| if on { mask } else { 0 };
    bit(s.interrupt, HINT_INTERRUPT)
        | bit(s.nmi, HINT_NMI)
        | bit(s.init, HINT_INIT)
        | bit(s.sipi, HINT_SIPI)
        | bit(s.ext_int, HINT_EXT_INT)
        | bit(s.ext_int_open, HINT_EXT_INT_OPEN)
        | bit(s.lint0_listens, HINT_LINT0_LISTENS)
}

/// One local APIC and what can be known of it without its lock.
struct Slot {
    lapic: Mutex<Lapic>,
    apic_id: u32,
    hint: AtomicU32,
    /// [`LogicalId`], packed.
    logical: AtomicU64,
    /// Nanoseconds; `u64::MAX` for none.
    deadline: AtomicU64,
    signal: OnceLock<Arc<dyn VcpuSignal>>,
}

/// The interrupt controllers of a board. vCPUs are numbered from zero in the order of the configuration.
///
/// # Panics
/// Methods that take a vCPU number panic when it is out of range; that is the caller's invariant.
pub struct InterruptFabric {
    slots: Box<[Slot]>,
    ioapic: Mutex<IoApic>,
    pic: Mutex<PicPair>,
    /// Numeric errors. Held while their line is driven, and taken with no other lock of the fabric held.
    coprocessor: Mutex<ErrorLogic>,
    /// INTR of the 8259A pair; written with its lock held.
    intr: AtomicBool,
    /// Where the next search for a lowest-priority target starts.
    turn: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InterruptFabric {
    /// A fabric after power-up.
    ///
    /// # Panics
    /// When the configuration has no vCPU, more than [`MAX_VCPUS`], or APIC IDs that repeat or exceed 254.
    #[must_use]
    pub fn new(config: &FabricConfig) -> Arc<Self> {
        let ids = &config.apic_ids;
        assert!(
            (1..=MAX_VCPUS).contains(&ids.len()),
            "a fabric has 1 to {MAX_VCPUS} vCPUs"
        );
        for (i, id) in ids.iter().enumerate() {
            assert!(
                *id < 255 && !ids[..i].contains(id),
                "APIC IDs are distinct and below 255"
            );
        }
        let slot = |(i, &apic_id): (usize, &u32)| {
            let lapic = Lapic::new(LapicConfig {
                apic_id,
                bootstrap: i == 0,
                bus_hz: config.bus_hz,
                tsc_hz: config.tsc_hz,
                physical_address_bits: config.physical_address_bits,
                x2apic: config.x2apic,
                tsc_deadline: config.tsc_deadline,
            });
            let slot = Slot {
                lapic: Mutex::new(lapic),
                apic_id,
                hint: AtomicU32::new(0),
                logical: AtomicU64::new(0),
                deadline: AtomicU64::new(u64::MAX),
                signal: OnceLock::new(),
            };
            slot.publish(&lock(&slot.lapic));
            slot
        };
        Arc::new(Self {
            slots: ids.iter().enumerate().map(slot).collect(),
            ioapic: Mutex::new(IoApic::new()),
            pic: Mutex::new(PicPair::new()),
            coprocessor: Mutex::new(ErrorLogic::default()),
            intr: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        })
    }

    /// Sets whom to tell when the vCPU may have something new to take. Once for each vCPU.
    ///
    /// # Panics
    /// When the vCPU is connected already.
    pub fn connect(&self, vcpu: usize, signal: Arc<dyn VcpuSignal>) {
        assert!(
            self.slots[vcpu].signal.set(signal).is_ok(),
            "vCPU {vcpu} is connected already"
        );
        if self.slots[vcpu].hint.load(Ordering::SeqCst) & HINT_PENDING != 0 {
            self.wake(vcpu);
        }
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.slots.len()
    }

    /// The APIC ID of a vCPU.
    #[must_use]
    pub fn apic_id(&self, vcpu: usize) -> u32 {
        self.slots[vcpu].apic_id
    }

    fn wake(&self, vcpu: usize) {
        if let Some(signal) = self.slots[vcpu].signal.get() {
            signal.attention();
        }
    }

    fn wake_all(&self, set: &VcpuSet) {
        set.iter().for_each(|vcpu| self.wake(vcpu));
    }

    /// Runs `f` on a local APIC, mirrors what changed, and says whether something new is there to take.
    fn on_lapic<R>(&self, vcpu: usize, f: impl FnOnce(&mut Lapic) -> R) -> (R, bool) {
        let slot = &self.slots[vcpu];
        let mut lapic = lock(&slot.lapic);
        // One that did not listen has not followed INTR: what passed so far is not to be taken for a change of now.
        lapic.set_lint(0, self.intr.load(Ordering::SeqCst));
        let result = f(&mut lapic);
        let mut new = slot.publish(&lapic);
        // The level is read after publishing that LINT0 listens, so no change of INTR falls between.
        if slot.hint.load(Ordering::SeqCst) & HINT_LINT0_LISTENS != 0 {
            lapic.set_lint(0, self.intr.load(Ordering::SeqCst));
            new |= slot.publish(&lapic);
        }
        (result, new)
    }

    /// As [`Self::on_lapic`] for an operation of the vCPU itself; signals it.
    fn own<R>(&self, vcpu: usize, f: impl FnOnce(&mut Lapic) -> R) -> R {
        let (result, new) = self.on_lapic(vcpu, f);
        if new {
            self.wake(vcpu);
        }
        result
    }

    /// Sends what a local APIC's operation left to send.
    fn send(&self, vcpu: usize, outgoing: Option<Outgoing>) {
        match outgoing {
            None => {}
            Some(Outgoing::Ipi(message)) => {
                let mut delivery = Delivery::new(self, Some(vcpu));
                delivery.route(message);
                delivery.finish();
            }
            Some(Outgoing::Eoi(vector)) => {
                self.on_ioapic(|ioapic, delivery| ioapic.eoi(vector, delivery));
            }
        }
    }

    fn on_ioapic<R>(&self, f: impl FnOnce(&mut IoApic, &mut Delivery<'_>) -> R) -> R {
        let mut delivery = Delivery::new(self, None);
        let result = f(&mut lock(&self.ioapic), &mut delivery);
        delivery.finish();
        result
    }

    /// Runs `f` on the 8259A pair and carries INTR on.
    pub(crate) fn with_pic<R>(&self, f: impl FnOnce(&mut PicPair) -> R) -> R {
        let mut pic = lock(&self.pic);
        let result = f(&mut pic);
        let level = pic.intr();
        let changed = self.intr.swap(level, Ordering::SeqCst) != level;
        drop(pic);
        if changed {
            self.carry_intr(level);
        }
        result
    }

    /// Tells those local APICs of a change of INTR that look at LINT0.
    fn carry_intr(&self, level: bool) {
        for (vcpu, slot) in self.slots.iter().enumerate() {
            let hint = slot.hint.load(Ordering::SeqCst);
            if hint & HINT_LINT0_LISTENS != 0 {
                // Takes the level as it is by then: the last caller leaves the last level.
                self.own(vcpu, |_| ());
            } else if hint & HINT_EXT_INT_OPEN != 0 && level {
                self.wake(vcpu);
            }
        }
    }

    // ---- what the vCPU's engine asks ----

    /// Whether the vCPU has an interrupt to take: one above its processor priority, or one of the 8259A pair.
    #[must_use]
    pub fn has_interrupt(&self, vcpu: usize) -> bool {
        let hint = self.slots[vcpu].hint.load(Ordering::SeqCst);
        hint & (HINT_INTERRUPT | HINT_EXT_INT) != 0
            || (hint & HINT_EXT_INT_OPEN != 0 && self.intr.load(Ordering::SeqCst))
    }

    /// Whether anything at all waits: interrupt, NMI, INIT, start-up IPI.
    #[must_use]
    pub fn has_pending(&self, vcpu: usize) -> bool {
        self.slots[vcpu].hint.load(Ordering::SeqCst) & HINT_PENDING != 0 || self.has_interrupt(vcpu)
    }

    /// The local APIC's vector that [`Self::acknowledge`] would give, leaving aside the 8259A pair.
    #[must_use]
    pub fn pending_vector(&self, vcpu: usize) -> Option<u8> {
        lock(&self.slots[vcpu].lapic).pending_vector()
    }

    /// The processor takes its interrupt: INTA to the 8259A pair if that asks, else IRR to ISR. `None` when there
    /// is no interrupt after all.
    pub fn acknowledge(&self, vcpu: usize) -> Option<u8> {
        let hint = self.slots[vcpu].hint.load(Ordering::SeqCst);
        if hint & HINT_EXT_INT != 0 && self.own(vcpu, Lapic::take_ext_int) {
            return Some(self.with_pic(PicPair::acknowledge));
        }
        if hint & HINT_EXT_INT_OPEN != 0 && self.intr.load(Ordering::SeqCst) {
            let vector = self.with_pic(|pic| pic.intr().then(|| pic.acknowledge()));
            if vector.is_some() {
                return vector;
            }
        }
        self.own(vcpu, Lapic::acknowledge)
    }

    /// Whether an NMI waits.
    #[must_use]
    pub fn has_nmi(&self, vcpu: usize) -> bool {
        self.slots[vcpu].hint.load(Ordering::SeqCst) & HINT_NMI != 0
    }

    /// Takes the pending NMI.
    pub fn take_nmi(&self, vcpu: usize) -> bool {
        self.has_nmi(vcpu) && self.own(vcpu, Lapic::take_nmi)
    }

    /// Whether an INIT waits.
    #[must_use]
    pub fn has_init(&self, vcpu: usize) -> bool {
        self.slots[vcpu].hint.load(Ordering::SeqCst) & HINT_INIT != 0
    }

    /// Whether a start-up IPI waits.
    #[must_use]
    pub fn has_sipi(&self, vcpu: usize) -> bool {
        self.slots[vcpu].hint.load(Ordering::SeqCst) & HINT_SIPI != 0
    }

    /// Takes the pending INIT and the pending start-up IPI's vector in one moment, so that one that follows an INIT
    /// is never taken for one before it. The local APIC changes only with [`Self::init_reset`], since an INIT may
    /// also become a VM exit. A processor that does not wait for a start-up IPI drops it.
    pub fn take_start(&self, vcpu: usize) -> (bool, Option<u8>) {
        if self.has_init(vcpu) || self.has_sipi(vcpu) {
            self.own(vcpu, |lapic| (lapic.take_init(), lapic.take_sipi()))
        } else {
            (false, None)
        }
    }

    /// What INIT does to the vCPU's local APIC.
    pub fn init_reset(&self, vcpu: usize) {
        self.own(vcpu, Lapic::init_reset);
    }

    /// The task-priority register; CR8 is its bits 7:4.
    #[must_use]
    pub fn tpr(&self, vcpu: usize) -> u8 {
        lock(&self.slots[vcpu].lapic).tpr()
    }

    /// Sets the task-priority register.
    pub fn set_tpr(&self, vcpu: usize, tpr: u8) {
        self.own(vcpu, |lapic| lapic.set_tpr(tpr));
    }

    /// Where the vCPU's xAPIC registers are; `None` when its local APIC is disabled or in x2APIC mode.
    #[must_use]
    pub fn mmio_base(&self, vcpu: usize) -> Option<u64> {
        lock(&self.slots[vcpu].lapic).mmio_base()
    }

    /// Reads the vCPU's xAPIC registers; `offset` is relative to [`Self::mmio_base`].
    pub fn mmio_read(&self, vcpu: usize, offset: u64, data: &mut [u8], now: VirtualTime) {
        self.own(vcpu, |lapic| lapic.mmio_read(offset, data, now));
    }

    /// Writes the vCPU's xAPIC registers.
    pub fn mmio_write(&self, vcpu: usize, offset: u64, data: &[u8], now: VirtualTime) {
        self.access(vcpu, |lapic| (lapic.mmio_write(offset, data, now), ()));
    }

    /// Whether an MSR belongs to the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE, 800h to 8FFh.
    #[must_use]
    pub fn owns_msr(msr: u32) -> bool {
        matches!(
            msr,
            regs::MSR_APIC_BASE | regs::MSR_TSC_DEADLINE | regs::MSR_X2APIC_FIRST
                ..=regs::MSR_X2APIC_LAST
        )
    }

    /// Reads one of the vCPU's local APIC MSRs.
    ///
    /// # Errors
    /// [`MsrFault`] where the manual gives #GP(0).
    pub fn msr_read(&self, vcpu: usize, msr: u32, now: VirtualTime) -> Result<u64, MsrFault> {
        self.own(vcpu, |lapic| lapic.msr_read(msr, now))
    }

    /// Writes one of the vCPU's local APIC MSRs.
    ///
    /// # Errors
    /// [`MsrFault`] where the manual gives #GP(0).
    pub fn msr_write(
        &self,
        vcpu: usize,
        msr: u32,
        value: u64,
        now: VirtualTime,
    ) -> Result<(), MsrFault> {
        self.access(vcpu, |lapic| match lapic.msr_write(msr, value, now) {
            Ok(outgoing) => (outgoing, Ok(())),
            Err(fault) => (None, Err(fault)),
        })
    }

    /// A write to a local APIC: sends what comes of it.
    fn access<R>(&self, vcpu: usize, f: impl FnOnce(&mut Lapic) -> (Option<Outgoing>, R)) -> R {
        let before = self.identity(vcpu);
        let ((outgoing, result), new) = self.on_lapic(vcpu, f);
        self.send(vcpu, outgoing);
        // A level that no local APIC took may be for this one now.
        if self.identity(vcpu).reaches_more_than(before) {
            self.on_ioapic(|ioapic, delivery| ioapic.retry(delivery));
        }
        if new {
            self.wake(vcpu);
        }
        result
    }

    /// By what a vCPU's local APIC is addressed now.
    fn identity(&self, vcpu: usize) -> LogicalId {
        LogicalId::unpack(self.slots[vcpu].logical.load(Ordering::SeqCst))
    }

    /// When the vCPU's timer next wants [`Self::advance`].
    #[must_use]
    pub fn deadline(&self, vcpu: usize) -> Option<VirtualTime> {
        let ns = self.slots[vcpu].deadline.load(Ordering::SeqCst);
        (ns != u64::MAX).then_some(VirtualTime(ns))
    }

    /// The earliest [`Self::deadline`] of all vCPUs.
    #[must_use]
    pub fn earliest_deadline(&self) -> Option<VirtualTime> {
        (0..self.slots.len())
            .filter_map(|vcpu| self.deadline(vcpu))
            .min()
    }

    /// Lets the vCPU's timer expire if it is due; one load if not.
    pub fn advance(&self, vcpu: usize, now: VirtualTime) {
        if self.slots[vcpu].deadline.load(Ordering::SeqCst) <= now.0 {
            self.own(vcpu, |lapic| lapic.advance(now));
        }
    }

    /// The vCPU's TSC as a function of virtual time.
    #[must_use]
    pub fn tsc_clock(&self, vcpu: usize) -> TscClock {
        lock(&self.slots[vcpu].lapic).tsc_clock()
    }

    /// Changes the vCPU's TSC offset: IA32_TSC and IA32_TSC_ADJUST writes.
    pub fn set_tsc_offset(&self, vcpu: usize, offset: u64, now: VirtualTime) {
        self.own(vcpu, |lapic| lapic.set_tsc_offset(offset, now));
    }

    /// A performance counter of this vCPU has overflowed ([`Lapic::performance_interrupt`]).
    pub fn performance_interrupt(&self, vcpu: usize, masks_entry: bool) {
        self.own(vcpu, |lapic| lapic.performance_interrupt(masks_entry));
    }

    /// Leaves the vCPU's local APIC as firmware does: enabled, LINT0 ExtINT, LINT1 NMI. For direct kernel boot.
    pub fn set_virtual_wire(&self, vcpu: usize) {
        self.own(vcpu, Lapic::set_virtual_wire);
    }

    /// A vCPU drives FERR#.
    pub fn set_ferr(&self, vcpu: usize, asserted: bool) {
        let mut errors = lock(&self.coprocessor);
        let irq = errors.set_ferr(vcpu, asserted);
        self.set_gsi(coprocessor::IRQ, irq);
    }

    /// IGNNE#: numeric errors are to be ignored.
    #[must_use]
    pub fn ignne(&self) -> bool {
        lock(&self.coprocessor).ignne()
    }

    // ---- the board's side ----

    /// Port F0h is written: the numeric error is being handled.
    pub(crate) fn acknowledge_ferr(&self) {
        let mut errors = lock(&self.coprocessor);
        let irq = errors.acknowledge();
        self.set_gsi(coprocessor::IRQ, irq);
    }

    /// Drives a global system interrupt. 0 to 15 are the ISA interrupts and reach both the 8259A pair and the I/O APIC
    /// (ISA 0 at pin 2; ISA 2 is the cascade and reaches nothing); 16 to 23 reach the I/O APIC only.
    pub fn set_gsi(&self, gsi: u32, high: bool) {
        if gsi == 2 {
            return;
        }
        if let Ok(irq @ 0..16) = u8::try_from(gsi) {
            self.with_pic(|pic| pic.set_line(irq, high));
        }
        let pin = if gsi == 0 { 2 } else { gsi };
        self.on_ioapic(|ioapic, delivery| ioapic.set_line(pin, high, delivery));
    }

    /// Interrupt line `gsi`, for a device to hold.
    #[must_use]
    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(self.clone(), gsi)
    }

    /// An edge on every local APIC's LINT1: the NMI button.
    pub fn pulse_lint1(&self) {
        for vcpu in 0..self.slots.len() {
            self.own(vcpu, |lapic| {
                lapic.set_lint(1, true);
                lapic.set_lint(1, false);
            });
        }
    }

    /// Delivers a message to the local APICs, as from a device.
    pub fn deliver(&self, message: InterruptMessage) {
        let mut delivery = Delivery::new(self, None);
        delivery.route(message);
        delivery.finish();
    }

    pub(crate) fn ioapic_read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.ioapic).read(offset, data);
    }

    pub(crate) fn ioapic_write(&self, offset: u64, data: &[u8]) {
        self.on_ioapic(|ioapic, delivery| ioapic.write(offset, data, delivery));
    }

    pub(crate) fn reset_ioapic(&self) {
        self.on_ioapic(|ioapic, _| ioapic.reset());
    }

    /// Resets every local APIC. The I/O APIC and the 8259A pair are reset through their bus devices.
    pub fn reset_lapics(&self) {
        for vcpu in 0..self.slots.len() {
            self.own(vcpu, Lapic::reset);
        }
    }
}

impl LineSink for InterruptFabric {
    fn set_line(&self, line: u32, high: bool) {
        self.set_gsi(line, high);
    }
}

impl MsiSink for InterruptFabric {
    fn signal(&self, msi: Msi) {
        if let Some(message) = InterruptMessage::from_msi(msi) {
            self.deliver(message);
        }
    }
}

impl Slot {
    /// Mirrors a local APIC's state; true when there is something to take that was not there before.
    fn publish(&self, lapic: &Lapic) -> bool {
        let new = hint(lapic.summary());
        self.logical
            .store(LogicalId::of(lapic).pack(), Ordering::SeqCst);
        self.deadline
            .store(lapic.deadline().map_or(u64::MAX, |t| t.0), Ordering::SeqCst);
        let old = self.hint.swap(new, Ordering::SeqCst);
        // Opening LINT0 to INTR may make an interrupt visible too.
        new & !old & (HINT_PENDING | HINT_EXT_INT_OPEN) != 0
    }
}
