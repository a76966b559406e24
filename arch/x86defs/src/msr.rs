//! Model-specific registers (SDM Vol 4).

macro_rules! msrs {
    ($($(#[$d:meta])* $name:ident = $v:expr;)*) => { $($(#[$d])* pub const $name: u32 = $v;)* };
}

msrs! {
    /// Time-stamp counter.
    IA32_TSC = 0x10;
    /// Platform id.
    IA32_PLATFORM_ID = 0x17;
    /// Local APIC base.
    IA32_APIC_BASE = 0x1b;
    /// Feature control: lock, VMX outside SMX.
    IA32_FEATURE_CONTROL = 0x3a;
    /// TSC adjust.
    IA32_TSC_ADJUST = 0x3b;
    /// Speculation control.
    IA32_SPEC_CTRL = 0x48;
    /// Prediction command.
    IA32_PRED_CMD = 0x49;
    /// Microcode update trigger.
    IA32_BIOS_UPDT_TRIG = 0x79;
    /// Microcode revision.
    IA32_BIOS_SIGN_ID = 0x8b;
    /// First general-purpose performance counter.
    IA32_PMC0 = 0xc1;
    /// Ratios and limits of the platform (MSR_PLATFORM_INFO).
    MSR_PLATFORM_INFO = 0xce;
    /// MTRR capabilities.
    IA32_MTRRCAP = 0xfe;
    /// Architectural capabilities.
    IA32_ARCH_CAPABILITIES = 0x10a;
    /// Flush command.
    IA32_FLUSH_CMD = 0x10b;
    /// SYSENTER code segment.
    IA32_SYSENTER_CS = 0x174;
    /// SYSENTER stack pointer.
    IA32_SYSENTER_ESP = 0x175;
    /// SYSENTER instruction pointer.
    IA32_SYSENTER_EIP = 0x176;
    /// Machine-check capabilities.
    IA32_MCG_CAP = 0x179;
    /// Machine-check status.
    IA32_MCG_STATUS = 0x17a;
    /// Machine-check control.
    IA32_MCG_CTL = 0x17b;
    /// What the first general-purpose performance counter counts.
    IA32_PERFEVTSEL0 = 0x186;
    /// Current performance state.
    IA32_PERF_STATUS = 0x198;
    /// Wanted performance state.
    IA32_PERF_CTL = 0x199;
    /// Miscellaneous enables.
    IA32_MISC_ENABLE = 0x1a0;
    /// Debug control.
    IA32_DEBUGCTL = 0x1d9;
    /// Source of the last branch.
    IA32_LASTBRANCHFROMIP = 0x1db;
    /// Its target.
    IA32_LASTBRANCHTOIP = 0x1dc;
    /// Source of the last branch before the last exception or interrupt.
    IA32_LASTINTFROMIP = 0x1dd;
    /// Its target.
    IA32_LASTINTTOIP = 0x1de;
    /// First variable MTRR base.
    IA32_MTRR_PHYSBASE0 = 0x200;
    /// Fixed MTRR of the first 512 KByte.
    IA32_MTRR_FIX64K_00000 = 0x250;
    /// Fixed MTRR, 80000h to 9FFFFh.
    IA32_MTRR_FIX16K_80000 = 0x258;
    /// Fixed MTRR, A0000h to BFFFFh.
    IA32_MTRR_FIX16K_A0000 = 0x259;
    /// First of eight fixed MTRRs of 32 KByte each, C0000h to FFFFFh.
    IA32_MTRR_FIX4K_C0000 = 0x268;
    /// Last of them.
    IA32_MTRR_FIX4K_F8000 = 0x26f;
    /// Page attribute table.
    IA32_PAT = 0x277;
    /// MTRR default type.
    IA32_MTRR_DEF_TYPE = 0x2ff;
    /// First performance counter of fixed function.
    IA32_FIXED_CTR0 = 0x309;
    /// Abilities of performance monitoring.
    IA32_PERF_CAPABILITIES = 0x345;
    /// Control of the performance counters of fixed function.
    IA32_FIXED_CTR_CTRL = 0x38d;
    /// Which performance counters have overflowed.
    IA32_PERF_GLOBAL_STATUS = 0x38e;
    /// Which performance counters count.
    IA32_PERF_GLOBAL_CTRL = 0x38f;
    /// Clears bits of IA32_PERF_GLOBAL_STATUS.
    IA32_PERF_GLOBAL_OVF_CTRL = 0x390;
    /// Control of machine-check bank 0; each bank has four MSRs: control, status, address, miscellaneous.
    IA32_MC0_CTL = 0x400;
    /// First VMX capability MSR.
    IA32_VMX_BASIC = 0x480;
    /// Last VMX capability MSR we know (IA32_VMX_VMFUNC).
    IA32_VMX_VMFUNC = 0x491;
    /// TSC deadline.
    IA32_TSC_DEADLINE = 0x6e0;
    /// First x2APIC register.
    IA32_X2APIC_FIRST = 0x800;
    /// Last x2APIC register.
    IA32_X2APIC_LAST = 0x8ff;
    /// XSAVES supervisor state.
    IA32_XSS = 0xda0;
    /// Extended features.
    IA32_EFER = 0xc000_0080;
    /// SYSCALL selectors.
    IA32_STAR = 0xc000_0081;
    /// SYSCALL target in 64-bit mode.
    IA32_LSTAR = 0xc000_0082;
    /// SYSCALL target in compatibility mode.
    IA32_CSTAR = 0xc000_0083;
    /// SYSCALL flag mask.
    IA32_FMASK = 0xc000_0084;
    /// FS base.
    IA32_FS_BASE = 0xc000_0100;
    /// GS base.
    IA32_GS_BASE = 0xc000_0101;
    /// SWAPGS target.
    IA32_KERNEL_GS_BASE = 0xc000_0102;
    /// RDTSCP auxiliary value.
    IA32_TSC_AUX = 0xc000_0103;
    /// AMD: what the first of the performance counters counts (APM Vol 2 13.2.1).
    AMD_PERF_EVT_SEL0 = 0xc001_0000;
    /// AMD: the first performance counter.
    AMD_PERF_CTR0 = 0xc001_0004;
    /// AMD: system configuration (APM Vol 2 7.9).
    AMD_SYSCFG = 0xc001_0010;
    /// AMD: hardware configuration.
    AMD_HWCR = 0xc001_0015;
    /// AMD: base of the first I/O range (APM Vol 2 7.9.2).
    AMD_IORR_BASE0 = 0xc001_0016;
    /// AMD: its mask.
    AMD_IORR_MASK0 = 0xc001_0017;
    /// AMD: base of the second.
    AMD_IORR_BASE1 = 0xc001_0018;
    /// AMD: its mask.
    AMD_IORR_MASK1 = 0xc001_0019;
    /// AMD: end of memory below 4 GByte (APM Vol 2 7.9.4).
    AMD_TOP_MEM = 0xc001_001a;
    /// AMD: end of memory above.
    AMD_TOP_MEM2 = 0xc001_001d;
    /// AMD: northbridge configuration.
    AMD_NB_CFG = 0xc001_001f;
    /// AMD: first of the six MSRs that hold the name CPUID tells.
    AMD_NAME_STRING0 = 0xc001_0030;
    /// AMD: the last of them.
    AMD_NAME_STRING5 = 0xc001_0035;
    /// AMD: decode configuration.
    AMD_DE_CFG = 0xc001_1029;
}

/// IA32_SPEC_CTRL (SDM Vol 4 Table 2-2).
pub mod spec_ctrl {
    /// The branch history of CPL 3 does not choose the targets predicted for indirect branches of other levels.
    pub const BHI_DIS_S: u64 = 1 << 10;
}

/// IA32_ARCH_CAPABILITIES (SDM Vol 4 Table 2-2). A `_NO` bit says that the processor is not affected.
pub mod arch_capabilities {
    /// Rogue data cache load (Meltdown) and L1 terminal fault.
    pub const RDCL_NO: u64 = 1;
    /// Enhanced IBRS: set once, it protects in all modes.
    pub const IBRS_ALL: u64 = 1 << 1;
    /// A hypervisor need not flush the L1 data cache on VM entry.
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    /// Speculative store bypass.
    pub const SSB_NO: u64 = 1 << 4;
    /// Microarchitectural data sampling.
    pub const MDS_NO: u64 = 1 << 5;
    /// Machine check on a page size change without an invalidation.
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    /// IA32_TSX_CTRL exists.
    pub const TSX_CTRL: u64 = 1 << 7;
    /// TSX asynchronous abort.
    pub const TAA_NO: u64 = 1 << 8;
    /// Shared buffers data read and sideband stale data propagator.
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    /// Fill buffer stale data propagator.
    pub const FBSDP_NO: u64 = 1 << 14;
    /// Primary stale data propagator.
    pub const PSDP_NO: u64 = 1 << 15;
    /// Branch history injection.
    pub const BHI_NO: u64 = 1 << 20;
    /// Post-barrier return stack buffer predictions.
    pub const PBRSB_NO: u64 = 1 << 24;
    /// Gather data sampling.
    pub const GDS_NO: u64 = 1 << 26;
    /// Register file data sampling.
    pub const RFDS_NO: u64 = 1 << 27;
    /// Indirect target selection.
    pub const ITS_NO: u64 = 1 << 62;
}

/// IA32_MISC_ENABLE (SDM Vol 4 Table 2-2).
pub mod misc_enable {
    /// Fast strings; where it is clear, operating systems do not use REP MOVS and REP STOS to copy.
    pub const FAST_STRINGS: u64 = 1;
    /// Performance monitoring is there; read-only.
    pub const PERFORMANCE_MONITORING: u64 = 1 << 7;
    /// Branch trace storage is not there; read-only.
    pub const BTS_UNAVAILABLE: u64 = 1 << 11;
    /// Processor event based sampling is not there; read-only.
    pub const PEBS_UNAVAILABLE: u64 = 1 << 12;
    /// MONITOR and MWAIT.
    pub const MONITOR: u64 = 1 << 18;
    /// CPUID stops at leaf 3.
    pub const LIMIT_CPUID_MAXVAL: u64 = 1 << 22;
    /// CPUID.80000001H:EDX.NX reads as 0.
    pub const XD_DISABLE: u64 = 1 << 34;
}
