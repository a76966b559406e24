//! What a vCPU is plugged into.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use guestmem::Gpa;

/// An access the interrupt controller refuses with #GP(0) (reserved bits, absent MSR, wrong mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptFault;

/// Signals that start a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartSignals {
    /// An INIT.
    pub init: bool,
    /// A start-up IPI's vector; where there is an INIT too, it came after that.
    pub sipi: Option<u8>,
}

/// Why [`Platform::idle`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something may be pending; look again.
    Event,
    /// The monitor wants the vCPU to leave its run.
    Stop,
}

/// The board as one vCPU sees it: ports, memory-mapped devices, its local APIC, time.
///
/// The machine implements it; an engine owns it for the vCPU's life. `retired` is the number of
/// instructions the vCPU has executed since it was made: in virtual-time mode it is what moves the clock,
/// in host mode it tells how much time they can have taken. At accesses it may count those of the running block
/// that are still to come. An engine with an interrupt controller of its own (KVM) uses only the port and memory
/// accesses, and counts nothing.
///
/// What is not implemented is not there: ports and memory read as all ones, as on an empty bus, there is no local
/// APIC, so no interrupt ever comes, and nothing is ever due.
pub trait Platform: Send {
    /// Port input of 1, 2 or 4 bytes, zero-extended.
    fn pio_read(&mut self, _port: u16, size_bytes: u8, _retired: u64) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(size_bytes.clamp(1, 4)))
    }
    /// Port output of 1, 2 or 4 bytes. After this and the other writes the vCPU polls before its next block: they may
    /// have changed what is due first.
    fn pio_write(&mut self, _port: u16, _size_bytes: u8, _value: u32, _retired: u64) {}
    /// A read outside RAM of up to 8 bytes (inside one page).
    fn mmio_read(&mut self, _gpa: Gpa, data: &mut [u8], _retired: u64) {
        data.fill(0xff);
    }
    /// A write outside RAM of up to 8 bytes (inside one page).
    fn mmio_write(&mut self, _gpa: Gpa, _data: &[u8], _retired: u64) {}

    /// RDMSR of an APIC register (1Bh, 800h to 8FFh, 6E0h).
    ///
    /// # Errors
    /// [`InterruptFault`] where the access raises #GP(0).
    fn apic_msr_read(&mut self, _msr: u32, _retired: u64) -> Result<u64, InterruptFault> {
        Err(InterruptFault)
    }
    /// WRMSR of an APIC register.
    ///
    /// # Errors
    /// [`InterruptFault`] where the access raises #GP(0).
    fn apic_msr_write(
        &mut self,
        _msr: u32,
        _value: u64,
        _retired: u64,
    ) -> Result<(), InterruptFault> {
        Err(InterruptFault)
    }
    /// CR8: bits 7:4 of the TPR.
    fn cr8(&mut self) -> u8 {
        0
    }
    /// Writes CR8 (value 0 to 15).
    fn set_cr8(&mut self, _priority: u8) {}

    /// Whether a maskable interrupt could be taken now (priority considered, RFLAGS.IF not).
    fn interrupt_pending(&mut self) -> bool {
        false
    }
    /// Accepts the highest-priority interrupt: its vector, or nothing if it is gone.
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    /// Takes a pending NMI.
    fn take_nmi(&mut self) -> bool {
        false
    }
    /// Takes what is pending of INIT and start-up IPI, both in one moment. It changes nothing yet: an INIT may be held
    /// back or become a VM exit.
    fn take_start(&mut self) -> StartSignals {
        StartSignals::default()
    }
    /// The processor follows an INIT: so does its local APIC (SDM Vol 3 11.4.7.3).
    fn init_accepted(&mut self) {}

    /// A performance counter that is to interrupt has overflowed: the local APIC's entry for that, which it masks then
    /// if so told (SDM Vol 3 11.5.1).
    fn performance_interrupt(&mut self, _masks_entry: bool) {}

    /// Drives FERR#: an unmasked x87 exception is pending while CR0.NE is clear (SDM Vol 1 D.2.1).
    fn set_ferr(&mut self, _asserted: bool) {}
    /// IGNNE#: whether such exceptions are to be ignored.
    fn ignne(&mut self) -> bool {
        false
    }

    /// The time-stamp counter without the guest's IA32_TSC offset; a board without a clock counts instructions.
    fn tsc(&mut self, retired: u64) -> u64 {
        retired
    }
    /// The same for the processor's own counters, without anybody having read a clock.
    fn cycles(&mut self, retired: u64) -> u64 {
        self.tsc(retired)
    }
    /// Tells the new offset the guest put between [`Platform::tsc`] and its TSC (for the TSC deadline).
    fn set_tsc_offset(&mut self, _offset: u64) {}
    /// Lets due devices and timers act. Returns how many instructions the vCPU may execute before it has to
    /// ask again.
    fn poll(&mut self, _retired: u64) -> u64 {
        u64::MAX
    }
    /// The vCPU has nothing to do until an interrupt, or until [`Platform::tsc`] shows `until_tsc` (a timer of the
    /// engine's own): waits (host mode) or jumps ahead (virtual mode). Where no interrupt can come, the vCPU has to
    /// leave its run.
    fn idle(&mut self, _retired: u64, _until_tsc: Option<u64>) -> Wake {
        Wake::Stop
    }
    /// The vCPU spins and most likely waits for another one: lets others have the host's processor.
    fn give_way(&mut self, _retired: u64) {
        std::thread::yield_now();
    }
    /// What RDRAND and RDSEED start from: unpredictable, unless the run is to be reproducible.
    fn seed(&mut self) -> u64 {
        REPRODUCIBLE_SEED
    }
}

/// The seed of reproducible runs (the fractional part of the golden ratio, times 2^64).
pub const REPRODUCIBLE_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The one word other threads use to make a vCPU look up.
///
/// Engines read it at every block boundary (one relaxed load) and clear bits as they handle them.
#[derive(Clone, Debug, Default)]
pub struct Attention(Arc<Word>);

struct Word {
    bits: AtomicU32,
    /// [`Attention::QUIET`], or zero: something was raised since [`Attention::arm`].
    poll: AtomicU64,
    /// Wakes the vCPU where it sleeps.
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Default for Word {
    fn default() -> Self {
        Self {
            bits: AtomicU32::new(0),
            poll: AtomicU64::new(0),
            waker: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.bits.load(Ordering::Relaxed))
    }
}

impl Attention {
    /// Interrupt, NMI, INIT or SIPI may be pending.
    pub const INTERRUPT: u32 = 1;
    /// The monitor wants [`crate::Vcpu::run`] to return.
    pub const STOP: u32 = 2;
    /// For engines: code this vCPU has decoded may have changed. Nothing an idle vCPU has to wake for.
    pub const CODE: u32 = 4;
    /// For engines: another vCPU wants to be alone for a moment. Nothing an idle vCPU has to wake for.
    pub const PAUSE: u32 = 8;
    /// Guest-physical addresses lead elsewhere than before (`GuestRam::set_legacy`): cached
    /// translations must go. Nothing an idle vCPU has to wake for.
    pub const REMAP: u32 = 16;
    /// For engines: somebody has stored to the line this vCPU monitors.
    pub const MONITOR: u32 = 32;
    /// For engines that call [`Platform::poll`]: the board wants that now. Nothing an idle vCPU has to wake for.
    pub const LOOK: u32 = 64;
    /// What ends [`Platform::idle`].
    pub const WAKES: u32 = Self::INTERRUPT | Self::STOP | Self::MONITOR;

    /// What the word at [`Attention::poll_address`] holds while nothing was raised: the sign bit.
    pub const QUIET: u64 = 1 << 63;

    /// A word with nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the word its waker: called after one of [`Attention::WAKES`] was raised, on the thread that raised it,
    /// to end [`Platform::idle`]. Only the first one counts.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.waker.set(Box::new(waker));
    }

    /// Sets bits, and wakes the vCPU if they are something to wake for.
    pub fn raise(&self, bits: u32) {
        self.0.bits.fetch_or(bits, Ordering::SeqCst);
        self.trip();
        if bits & Self::WAKES != 0
            && let Some(waker) = self.0.waker.get()
        {
            waker();
        }
    }

    /// Clears bits.
    pub fn clear(&self, bits: u32) {
        self.0.bits.fetch_and(!bits, Ordering::SeqCst);
    }

    /// For generated code: the address of a word of 64 bits that is [`Attention::QUIET`] after [`Attention::arm`]
    /// and zero from the next [`Attention::raise`] or [`Attention::trip`] on. It lives as long as the attention.
    #[must_use]
    pub fn poll_address(&self) -> u64 {
        self.0.poll.as_ptr() as u64
    }

    /// Makes the polled word quiet, unless bits are set.
    #[inline]
    pub fn arm(&self) {
        if self.0.poll.load(Ordering::Relaxed) != Self::QUIET {
            self.0.poll.store(Self::QUIET, Ordering::SeqCst);
            if self.0.bits.load(Ordering::SeqCst) != 0 {
                self.trip();
            }
        }
    }

    /// Has whoever polls the word look up.
    #[inline]
    pub fn trip(&self) {
        self.0.poll.store(0, Ordering::SeqCst);
    }

    /// The word now.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> u32 {
        self.0.bits.load(Ordering::Relaxed)
    }
}
