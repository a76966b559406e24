//! VMX capability reporting (SDM Vol 3 appendix A).

/// IA32_VMX_BASIC (SDM Vol 3 A.1).
pub mod basic {
    /// VMCS revision identifier, bits 30:0.
    pub const REVISION: u64 = 0x7fff_ffff;
    /// Bytes of the VMXON and VMCS regions, bits 44:32.
    pub const REGION_SIZE_SHIFT: u32 = 32;
    /// Physical addresses of VMX structures are limited to 32 bits.
    pub const ADDRESSES_32BIT: u64 = 1 << 48;
    /// Dual-monitor treatment of SMI and SMM.
    pub const DUAL_MONITOR: u64 = 1 << 49;
    /// Memory type of VMX structures, bits 53:50.
    pub const MEMORY_TYPE_SHIFT: u32 = 50;
    /// Exits on INS and OUTS report instruction information.
    pub const INS_OUTS_INFORMATION: u64 = 1 << 54;
    /// Default1 controls may be cleared: the "true" capability MSRs exist.
    pub const TRUE_CONTROLS: u64 = 1 << 55;
    /// VM entry may inject any hardware exception with or without an error code.
    pub const ANY_ERROR_CODE: u64 = 1 << 56;
}

/// IA32_VMX_MISC (SDM Vol 3 A.6).
pub mod vmx_misc {
    /// The preemption timer counts down when bit X of the TSC changes: X in bits 4:0.
    pub const PREEMPTION_TIMER_RATE: u64 = 0x1f;
    /// VM exits store IA32_EFER.LMA into the "IA-32e mode guest" VM-entry control.
    pub const STORE_LMA: u64 = 1 << 5;
    /// Activity state HLT.
    pub const ACTIVITY_HLT: u64 = 1 << 6;
    /// Activity state shutdown.
    pub const ACTIVITY_SHUTDOWN: u64 = 1 << 7;
    /// Activity state wait-for-SIPI.
    pub const ACTIVITY_WAIT_FOR_SIPI: u64 = 1 << 8;
    /// Number of CR3-target values, bits 24:16.
    pub const CR3_TARGETS_SHIFT: u32 = 16;
    /// Recommended maximum of MSRs in a list: 512 times one more than bits 27:25.
    pub const MSR_LIST_SHIFT: u32 = 25;
    /// VMWRITE can write any supported field, VM-exit information too.
    pub const VMWRITE_ANY_FIELD: u64 = 1 << 29;
    /// Software interrupts and exceptions can be injected with instruction length 0.
    pub const INJECT_LENGTH_0: u64 = 1 << 30;
}

/// IA32_VMX_EPT_VPID_CAP (SDM Vol 3 A.10).
pub mod ept_vpid {
    /// Execute-only translations.
    pub const EXECUTE_ONLY: u64 = 1;
    /// Page-walk length of 4.
    pub const WALK_LENGTH_4: u64 = 1 << 6;
    /// Page-walk length of 5.
    pub const WALK_LENGTH_5: u64 = 1 << 7;
    /// EPT structures may be uncacheable.
    pub const MEMORY_TYPE_UC: u64 = 1 << 8;
    /// EPT structures may be write-back.
    pub const MEMORY_TYPE_WB: u64 = 1 << 14;
    /// 2-MByte pages.
    pub const PAGE_2M: u64 = 1 << 16;
    /// 1-GByte pages.
    pub const PAGE_1G: u64 = 1 << 17;
    /// INVEPT.
    pub const INVEPT: u64 = 1 << 20;
    /// Accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    /// Advanced VM-exit information for EPT violations.
    pub const ADVANCED_EXIT_INFORMATION: u64 = 1 << 22;
    /// INVEPT single-context.
    pub const INVEPT_SINGLE_CONTEXT: u64 = 1 << 25;
    /// INVEPT all-context.
    pub const INVEPT_ALL_CONTEXT: u64 = 1 << 26;
    /// INVVPID.
    pub const INVVPID: u64 = 1 << 32;
    /// INVVPID individual-address.
    pub const INVVPID_INDIVIDUAL_ADDRESS: u64 = 1 << 40;
    /// INVVPID single-context.
    pub const INVVPID_SINGLE_CONTEXT: u64 = 1 << 41;
    /// INVVPID all-context.
    pub const INVVPID_ALL_CONTEXT: u64 = 1 << 42;
    /// INVVPID single-context-retaining-globals.
    pub const INVVPID_RETAINING_GLOBALS: u64 = 1 << 43;
}

/// The VMX capability MSRs (SDM Vol 3 appendix A).
pub mod msr {
    /// Basic information.
    pub const IA32_VMX_BASIC: u32 = 0x480;
    /// Pin-based controls, default1 class fixed.
    pub const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
    /// Primary controls, default1 class fixed.
    pub const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
    /// VM-exit controls, default1 class fixed.
    pub const IA32_VMX_EXIT_CTLS: u32 = 0x483;
    /// VM-entry controls, default1 class fixed.
    pub const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
    /// Miscellaneous data.
    pub const IA32_VMX_MISC: u32 = 0x485;
    /// CR0 bits fixed to 1.
    pub const IA32_VMX_CR0_FIXED0: u32 = 0x486;
    /// CR0 bits that may be 1.
    pub const IA32_VMX_CR0_FIXED1: u32 = 0x487;
    /// CR4 bits fixed to 1.
    pub const IA32_VMX_CR4_FIXED0: u32 = 0x488;
    /// CR4 bits that may be 1.
    pub const IA32_VMX_CR4_FIXED1: u32 = 0x489;
    /// Highest index of a VMCS field.
    pub const IA32_VMX_VMCS_ENUM: u32 = 0x48a;
    /// Secondary controls.
    pub const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
    /// EPT and VPID capabilities.
    pub const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
    /// Pin-based controls.
    pub const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
    /// Primary controls.
    pub const IA32_VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
    /// VM-exit controls.
    pub const IA32_VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
    /// VM-entry controls.
    pub const IA32_VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
    /// VM functions.
    pub const IA32_VMX_VMFUNC: u32 = 0x491;
}

/// IA32_FEATURE_CONTROL (SDM Vol 4 Table 2-2).
pub mod feature_control {
    /// Lock.
    pub const LOCK: u64 = 1;
    /// Enable VMX in SMX operation.
    pub const VMX_IN_SMX: u64 = 1 << 1;
    /// Enable VMX outside SMX operation.
    pub const VMX_OUTSIDE_SMX: u64 = 1 << 2;
}
