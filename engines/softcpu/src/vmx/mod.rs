//! VT-x (SDM Vol 3 chapters 24 to 31).
//!
//! ```text
//!            VMXON                 VMLAUNCH, VMRESUME (entry)
//!   outside ------> root operation ------------------------> non-root operation
//!   (off)   <------              <--------------------------  (in_guest)
//!            VMXOFF                        VM exit (exit)
//! ```
//!
//! [`instr`] holds the instructions, [`entry`] VM entries by stage, [`exit`] VM exits by stage, [`intercept`]
//! the one question handlers ask, [`cr`] the guest/host masks, [`event`] what happens at event delivery and
//! at instruction boundaries, [`apic`] the TPR shadow and the APIC-access page, [`timer`] the preemption
//! timer, [`vmcs`] the VMCS, [`caps`] what the model offers.
//!
//! Invariants: `in_guest` implies a current VMCS; outside non-root operation `vpid`, `eptp`, `tsc_offset`
//! are zero and `apic_access_page` is `None`; a [`Trap::VmExit`] leaves what it is about in [`Cpu::exit`].

pub mod apic;
pub mod caps;
pub mod cr;
pub mod entry;
pub mod event;
pub mod exit;
pub mod instr;
mod intercept;
mod msr_list;
pub mod timer;
pub mod vmcs;

use guestmem::Gpa;
use x86defs::cr::{cr0, cr4, efer};
use x86defs::paging::pkru;
use x86defs::vmx::control::{primary, secondary};
use x86defs::vmx::{ExitReason, InterruptionInfo};

#[cfg(test)]
mod tests;

pub use instr::bind;
pub use intercept::{DescriptorAccess, Intercept, IoAccess};

use crate::cpu::{Cpu, Flow, Trap};
use crate::mem::{EptCache, Space};
use caps::{Caps, Features};
use timer::PreemptionTimer;
use vmcs::cache::{Slot, VmcsCache};
use vmcs::{Vmcs, region};

/// What a VM exit is caused by, as far as the saved state depends on it (SDM Vol 3 28.3.3, 28.3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// An instruction that exits, instead of executing.
    #[default]
    Instruction,
    /// An event that would have gone through the IDT; fault-like or not.
    Event {
        /// The frame would have shown RF set.
        fault: bool,
    },
    /// A memory access: EPT violation, EPT misconfiguration, APIC access.
    Access,
    /// Something between instructions: windows, timers, interrupts.
    Boundary,
    /// Between instructions, with debug exceptions left pending: INIT, TPR below threshold, MTF.
    BeforeDebug,
}

/// A VM exit to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitRequest {
    /// Basic exit reason.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest linear address.
    pub linear: u64,
    /// Guest-physical address (L2).
    pub physical: u64,
    /// Interruption information, for exits by events.
    pub interruption: InterruptionInfo,
    /// Error code of the event.
    pub error_code: u32,
    /// Instruction information; zero where [`exit`] derives it from the instruction.
    pub information: u32,
    /// What kind of exit it is.
    pub cause: Cause,
}

impl ExitRequest {
    /// An instruction that exits.
    #[must_use]
    pub fn instruction(reason: ExitReason, qualification: u64) -> Self {
        Self {
            reason: reason as u32,
            qualification,
            ..Self::default()
        }
    }

    /// Something between two instructions.
    #[must_use]
    pub fn boundary(reason: ExitReason) -> Self {
        Self {
            reason: reason as u32,
            cause: Cause::Boundary,
            ..Self::default()
        }
    }

    /// Something between two instructions, before pending debug exceptions.
    #[must_use]
    pub fn before_debug(reason: ExitReason) -> Self {
        Self {
            reason: reason as u32,
            cause: Cause::BeforeDebug,
            ..Self::default()
        }
    }

    /// EPT violation (reason 48).
    #[must_use]
    pub fn ept_violation(qualification: u64, linear: u64, physical: u64) -> Self {
        Self {
            reason: ExitReason::EptViolation as u32,
            qualification,
            linear,
            physical,
            cause: Cause::Access,
            ..Self::default()
        }
    }

    /// EPT misconfiguration (reason 49).
    #[must_use]
    pub fn ept_misconfiguration(physical: u64) -> Self {
        Self {
            reason: ExitReason::EptMisconfiguration as u32,
            physical,
            cause: Cause::Access,
            ..Self::default()
        }
    }
}

/// The current VMCS (SDM Vol 3 25.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// The current-VMCS pointer.
    pub pointer: Gpa,
    /// Where its data is kept.
    pub slot: Slot,
}

/// VT-x state of a vCPU.
pub struct Vmx {
    /// In VMX non-root operation.
    pub in_guest: bool,
    /// Cached guest-physical mappings.
    pub ept_cache: EptCache,
    /// The APIC-access page, when "virtualize APIC accesses" is in force.
    pub apic_access_page: Option<Gpa>,
    /// Added to the TSC in non-root operation with TSC offsetting.
    pub tsc_offset: u64,
    /// VPID of the running guest; 0 in root operation and without "enable VPID".
    pub vpid: u16,
    /// EPT pointer of the running guest; 0 in root operation and without "enable EPT".
    pub eptp: u64,
    /// What the model offers.
    pub caps: Caps,
    /// The running guest's hypervisor waits for its RFLAGS.IF ("interrupt-window exiting").
    pub watches_if: bool,
    /// The IRET being executed has ended blocking by NMI, and may still fault (SDM Vol 3 28.2.3).
    pub iret_unblocked: bool,
    /// The VMXON pointer, while in VMX operation.
    vmxon: Option<Gpa>,
    current: Option<Current>,
    /// The VMCS that VMREAD and VMWRITE of the running guest reach, with VMCS shadowing.
    shadow: Option<Slot>,
    cache: VmcsCache,
    timer: PreemptionTimer,
    mtf: event::Mtf,
    /// The shadowed TPR has fallen below the threshold: an exit is due at the next boundary.
    tpr_exit_pending: bool,
    /// A VMX abort has put the processor into shutdown (SDM Vol 3 28.7).
    aborted: bool,
}

impl Default for Vmx {
    fn default() -> Self {
        Self::new(Features::default())
    }
}

impl Vmx {
    /// Outside VMX operation, for a CPU model.
    #[must_use]
    pub fn new(features: Features) -> Self {
        Self {
            in_guest: false,
            ept_cache: EptCache::default(),
            apic_access_page: None,
            tsc_offset: 0,
            vpid: 0,
            eptp: 0,
            caps: Caps::new(features),
            watches_if: false,
            iret_unblocked: false,
            vmxon: None,
            current: None,
            shadow: None,
            cache: VmcsCache::default(),
            timer: PreemptionTimer::default(),
            mtf: event::Mtf::default(),
            tpr_exit_pending: false,
            aborted: false,
        }
    }

    /// In VMX operation, root or non-root (SDM Vol 3 24.3).
    #[inline(always)]
    #[must_use]
    pub fn in_operation(&self) -> bool {
        self.vmxon.is_some()
    }

    /// INIT is blocked in VMX root operation (SDM Vol 3 24.8).
    #[must_use]
    pub fn init_blocked(&self) -> bool {
        self.in_operation() && !self.in_guest
    }

    /// A VMX abort has happened; only RESET leaves that state.
    #[must_use]
    pub fn aborted(&self) -> bool {
        self.aborted
    }

    /// The current VMCS, which in non-root operation is the running guest's.
    #[inline(always)]
    fn current_vmcs(&self) -> &Vmcs {
        match &self.current {
            Some(c) => self.cache.get(c.slot),
            None => unreachable!("no current VMCS where one was checked for"),
        }
    }

    #[inline(always)]
    fn current_vmcs_mut(&mut self) -> &mut Vmcs {
        match &self.current {
            Some(c) => self.cache.get_mut(c.slot),
            None => unreachable!("no current VMCS where one was checked for"),
        }
    }

    /// Whether a primary processor-based control of the running guest is 1; false in root operation.
    #[inline(always)]
    fn primary(&self, control: u32) -> bool {
        self.in_guest && self.current_vmcs().primary() & control != 0
    }

    /// Whether a secondary processor-based control of the running guest is 1; false in root operation.
    #[inline(always)]
    fn secondary(&self, control: u32) -> bool {
        self.in_guest && self.current_vmcs().secondary() & control != 0
    }

    /// Whether a pin-based control of the running guest is 1; false in root operation.
    #[inline(always)]
    fn pin(&self, control: u32) -> bool {
        self.in_guest && self.current_vmcs().pin() & control != 0
    }

    /// Derives [`Vmx::watches_if`].
    fn watch_if(&mut self) {
        self.watches_if = self.primary(primary::INTERRUPT_WINDOW_EXITING);
    }

    /// Leaves VMX operation at once and forgets every VMCS (RESET, or INIT outside VMX operation).
    pub fn reset(&mut self) {
        self.vmxon = None;
        self.current = None;
        self.shadow = None;
        self.cache.forget();
        self.leave_guest();
        self.aborted = false;
    }

    fn leave_guest(&mut self) {
        self.in_guest = false;
        self.watches_if = false;
        self.apic_access_page = None;
        self.tsc_offset = 0;
        self.vpid = 0;
        self.eptp = 0;
        self.timer = PreemptionTimer::default();
        self.mtf = event::Mtf::default();
        self.tpr_exit_pending = false;
    }
}

impl Cpu {
    /// VPID and EPT pointer translations belong to now (SDM Vol 3 29.4.1); PCID left zero.
    #[must_use]
    pub fn vmx_space(&self) -> Space {
        Space {
            vpid: self.vmx.vpid,
            eptp: self.vmx.eptp,
            pcid: 0,
            rules: self.translation_rules(),
        }
    }

    /// What of the mode is folded into cached translations. Making it part of the address space keeps
    /// translations apart when a VM entry brings other values for the same VPID.
    fn translation_rules(&self) -> u16 {
        let keys = self.cr4 & cr4::PKE != 0;
        let key0 = if keys { pkru::of(self.pkru, 0) } else { 0 };
        let bits = [
            self.cr0 & cr0::WP,
            self.cr0 & cr0::PG,
            self.cr4 & cr4::SMEP,
            self.cr4 & cr4::SMAP,
            self.cr4 & cr4::PAE,
            self.cr4 & cr4::PSE,
            self.efer & efer::NXE,
            self.efer & efer::LMA,
            self.cr4 & cr4::PKE,
            u64::from(key0 & pkru::ACCESS_DISABLE),
            u64::from(key0 & pkru::WRITE_DISABLE),
        ];
        bits.iter()
            .enumerate()
            .fold(0, |rules, (i, bit)| rules | u16::from(*bit != 0) << i)
    }

    /// #UD for RDTSCP and RDPID in non-root operation without "enable RDTSCP" (SDM Vol 3 26.3). To be asked
    /// before anything else about the instruction.
    ///
    /// # Errors
    /// [`Trap::Exception`] with #UD.
    #[inline]
    pub fn vmx_rdtscp_enabled(&mut self) -> Flow {
        self.vmx_enabled(secondary::ENABLE_RDTSCP)
    }

    /// The same for INVPCID and "enable INVPCID".
    ///
    /// # Errors
    /// [`Trap::Exception`] with #UD.
    #[inline]
    pub fn vmx_invpcid_enabled(&mut self) -> Flow {
        self.vmx_enabled(secondary::ENABLE_INVPCID)
    }

    /// The same for XSAVES and XRSTORS and "enable XSAVES/XRSTORS".
    ///
    /// # Errors
    /// [`Trap::Exception`] with #UD.
    #[inline]
    pub fn vmx_xsaves_enabled(&mut self) -> Flow {
        self.vmx_enabled(secondary::ENABLE_XSAVES)
    }

    fn vmx_enabled(&mut self, control: u32) -> Flow {
        if self.vmx.in_guest && !self.vmx.secondary(control) {
            return self.ud();
        }
        Ok(())
    }

    /// A VMX capability MSR; `None` if the model does not have it.
    #[must_use]
    pub fn vmx_capability(&self, msr: u32) -> Option<u64> {
        self.vmx.caps.msr(msr)
    }

    /// An MSR the processor virtualizes for the guest: none, the model does not virtualize x2APIC mode.
    #[inline]
    pub fn vmx_read_virtualized_msr(&mut self, _msr: u32) -> Option<u64> {
        None
    }

    /// The same for writes: whether the write was taken.
    ///
    /// # Errors
    /// [`Trap::VmExit`] if the write exits.
    #[inline]
    pub fn vmx_write_virtualized_msr(&mut self, _msr: u32, _value: u64) -> Result<bool, Trap> {
        Ok(false)
    }

    /// Traps into a VM exit.
    #[cold]
    #[inline(never)]
    fn vm_exit<T>(&mut self, exit: ExitRequest) -> Result<T, Trap> {
        self.exit = exit;
        Err(Trap::VmExit)
    }

    /// Writes every active VMCS to its region, so that memory holds all of the VT-x state but registers.
    pub fn vmx_write_back(&mut self) {
        let mut written = Vec::new();
        self.vmx
            .cache
            .write_back_all(&self.ram, |w| written.push(w));
        for w in written {
            self.region_written(w);
        }
    }

    /// Follows a write to a VMCS region: code decoded from it is stale.
    fn region_written(&mut self, written: vmcs::cache::Written) {
        self.note_store(written.0, region::REGION_SIZE);
    }

    /// Whether the running guest has its TPR shadowed.
    #[inline(always)]
    fn tpr_shadowed(&self) -> bool {
        self.vmx.primary(primary::TPR_SHADOW)
    }

    /// Whether the running guest may run without CR0.PE and CR0.PG.
    fn unrestricted_guest(&self) -> bool {
        self.vmx.secondary(secondary::UNRESTRICTED_GUEST)
    }
}
