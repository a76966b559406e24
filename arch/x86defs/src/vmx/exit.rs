//! Exit reasons (SDM Vol 3 25.9.1 and appendix C).

macro_rules! reasons {
    ($($(#[$d:meta])* $name:ident = $v:expr;)*) => {
        /// Basic exit reason (SDM Vol 3 appendix C, Table C-1).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ExitReason { $($(#[$d])* $name = $v,)* }

        impl ExitReason {
            /// Every basic exit reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

reasons! {
    /// Exception or NMI.
    ExceptionOrNmi = 0;
    /// External interrupt.
    ExternalInterrupt = 1;
    /// Triple fault.
    TripleFault = 2;
    /// INIT signal.
    Init = 3;
    /// Start-up IPI.
    Sipi = 4;
    /// I/O system-management interrupt.
    IoSmi = 5;
    /// Other SMI.
    OtherSmi = 6;
    /// Interrupt window.
    InterruptWindow = 7;
    /// NMI window.
    NmiWindow = 8;
    /// Task switch.
    TaskSwitch = 9;
    /// CPUID.
    Cpuid = 10;
    /// GETSEC.
    Getsec = 11;
    /// HLT.
    Hlt = 12;
    /// INVD.
    Invd = 13;
    /// INVLPG.
    Invlpg = 14;
    /// RDPMC.
    Rdpmc = 15;
    /// RDTSC.
    Rdtsc = 16;
    /// RSM.
    Rsm = 17;
    /// VMCALL.
    Vmcall = 18;
    /// VMCLEAR.
    Vmclear = 19;
    /// VMLAUNCH.
    Vmlaunch = 20;
    /// VMPTRLD.
    Vmptrld = 21;
    /// VMPTRST.
    Vmptrst = 22;
    /// VMREAD.
    Vmread = 23;
    /// VMRESUME.
    Vmresume = 24;
    /// VMWRITE.
    Vmwrite = 25;
    /// VMXOFF.
    Vmxoff = 26;
    /// VMXON.
    Vmxon = 27;
    /// Control-register accesses.
    CrAccess = 28;
    /// MOV DR.
    MovDr = 29;
    /// I/O instruction.
    Io = 30;
    /// RDMSR.
    Rdmsr = 31;
    /// WRMSR.
    Wrmsr = 32;
    /// VM-entry failure due to invalid guest state.
    EntryFailureGuestState = 33;
    /// VM-entry failure due to MSR loading.
    EntryFailureMsrLoading = 34;
    /// MWAIT.
    Mwait = 36;
    /// Monitor trap flag.
    MonitorTrapFlag = 37;
    /// MONITOR.
    Monitor = 39;
    /// PAUSE.
    Pause = 40;
    /// VM-entry failure due to machine-check event.
    EntryFailureMachineCheck = 41;
    /// TPR below threshold.
    TprBelowThreshold = 43;
    /// APIC access.
    ApicAccess = 44;
    /// Virtualized EOI.
    VirtualizedEoi = 45;
    /// Access to GDTR or IDTR.
    GdtrIdtrAccess = 46;
    /// Access to LDTR or TR.
    LdtrTrAccess = 47;
    /// EPT violation.
    EptViolation = 48;
    /// EPT misconfiguration.
    EptMisconfiguration = 49;
    /// INVEPT.
    Invept = 50;
    /// RDTSCP.
    Rdtscp = 51;
    /// VMX-preemption timer expired.
    PreemptionTimer = 52;
    /// INVVPID.
    Invvpid = 53;
    /// WBINVD or WBNOINVD.
    Wbinvd = 54;
    /// XSETBV.
    Xsetbv = 55;
    /// APIC write.
    ApicWrite = 56;
    /// RDRAND.
    Rdrand = 57;
    /// INVPCID.
    Invpcid = 58;
    /// VMFUNC.
    Vmfunc = 59;
    /// ENCLS.
    Encls = 60;
    /// RDSEED.
    Rdseed = 61;
    /// Page-modification log full.
    PmlFull = 62;
    /// XSAVES.
    Xsaves = 63;
    /// XRSTORS.
    Xrstors = 64;
}

/// Exit-reason field, bit 31: the exit is a VM-entry failure (SDM Vol 3 Table 25-19).
pub const ENTRY_FAILURE: u32 = 1 << 31;

/// VM-entry failure: the exit qualification of reason 33 (SDM Vol 3 27.8).
pub mod entry_failure {
    /// Any check without a number of its own.
    pub const DEFAULT: u64 = 0;
    /// A PDPTE failed its checks.
    pub const PDPTE: u64 = 2;
    /// An NMI was to be injected while blocking by STI was in effect.
    pub const NMI_INJECTION: u64 = 3;
    /// The VMCS link pointer is invalid.
    pub const VMCS_LINK_POINTER: u64 = 4;
}

/// VMX-abort indicators (SDM Vol 3 28.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AbortIndicator {
    /// A failure in saving guest MSRs.
    SaveGuestMsrs = 1,
    /// Host checking of the PDPTEs failed.
    HostPdptes = 2,
    /// The current VMCS has been corrupted.
    CorruptVmcs = 3,
    /// A failure in loading host MSRs.
    LoadHostMsrs = 4,
    /// A machine-check event during the VM exit.
    MachineCheck = 5,
    /// The processor was in IA-32e mode and the host address-space size is 32 bits.
    HostAddressSpaceSize = 6,
}
