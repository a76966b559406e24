//! VM-execution, VM-exit and VM-entry controls (SDM Vol 3 25.6 to 25.8).

macro_rules! bits {
    ($t:ty; $($(#[$d:meta])* $name:ident = $bit:expr;)*) => { $($(#[$d])* pub const $name: $t = 1 << $bit;)* };
}

/// Pin-based VM-execution controls (SDM Vol 3 Table 25-5).
pub mod pin {
    bits! { u32;
        /// External-interrupt exiting.
        EXTERNAL_INTERRUPT_EXITING = 0;
        /// NMI exiting.
        NMI_EXITING = 3;
        /// Virtual NMIs.
        VIRTUAL_NMIS = 5;
        /// Activate VMX-preemption timer.
        PREEMPTION_TIMER = 6;
        /// Process posted interrupts.
        POSTED_INTERRUPTS = 7;
    }
    /// The default1 class (SDM Vol 3 A.3.1): bits 1, 2 and 4.
    pub const DEFAULT1: u32 = 0x16;
}

/// Primary processor-based VM-execution controls (SDM Vol 3 Table 25-6).
pub mod primary {
    bits! { u32;
        /// Interrupt-window exiting.
        INTERRUPT_WINDOW_EXITING = 2;
        /// Use TSC offsetting.
        TSC_OFFSETTING = 3;
        /// HLT exiting.
        HLT_EXITING = 7;
        /// INVLPG exiting.
        INVLPG_EXITING = 9;
        /// MWAIT exiting.
        MWAIT_EXITING = 10;
        /// RDPMC exiting.
        RDPMC_EXITING = 11;
        /// RDTSC exiting.
        RDTSC_EXITING = 12;
        /// CR3-load exiting.
        CR3_LOAD_EXITING = 15;
        /// CR3-store exiting.
        CR3_STORE_EXITING = 16;
        /// Activate tertiary controls.
        ACTIVATE_TERTIARY = 17;
        /// CR8-load exiting.
        CR8_LOAD_EXITING = 19;
        /// CR8-store exiting.
        CR8_STORE_EXITING = 20;
        /// Use TPR shadow.
        TPR_SHADOW = 21;
        /// NMI-window exiting.
        NMI_WINDOW_EXITING = 22;
        /// MOV-DR exiting.
        MOV_DR_EXITING = 23;
        /// Unconditional I/O exiting.
        UNCONDITIONAL_IO_EXITING = 24;
        /// Use I/O bitmaps.
        IO_BITMAPS = 25;
        /// Monitor trap flag.
        MONITOR_TRAP_FLAG = 27;
        /// Use MSR bitmaps.
        MSR_BITMAPS = 28;
        /// MONITOR exiting.
        MONITOR_EXITING = 29;
        /// PAUSE exiting.
        PAUSE_EXITING = 30;
        /// Activate secondary controls.
        ACTIVATE_SECONDARY = 31;
    }
    /// The default1 class (SDM Vol 3 A.3.2): bits 1, 4 to 6, 8, 13 to 16 and 26.
    pub const DEFAULT1: u32 = 0x0401_e172;
}

/// Secondary processor-based VM-execution controls (SDM Vol 3 Table 25-7).
pub mod secondary {
    bits! { u32;
        /// Virtualize APIC accesses.
        VIRTUALIZE_APIC_ACCESSES = 0;
        /// Enable EPT.
        ENABLE_EPT = 1;
        /// Descriptor-table exiting.
        DESCRIPTOR_TABLE_EXITING = 2;
        /// Enable RDTSCP.
        ENABLE_RDTSCP = 3;
        /// Virtualize x2APIC mode.
        VIRTUALIZE_X2APIC_MODE = 4;
        /// Enable VPID.
        ENABLE_VPID = 5;
        /// WBINVD exiting.
        WBINVD_EXITING = 6;
        /// Unrestricted guest.
        UNRESTRICTED_GUEST = 7;
        /// APIC-register virtualization.
        APIC_REGISTER_VIRTUALIZATION = 8;
        /// Virtual-interrupt delivery.
        VIRTUAL_INTERRUPT_DELIVERY = 9;
        /// PAUSE-loop exiting.
        PAUSE_LOOP_EXITING = 10;
        /// RDRAND exiting.
        RDRAND_EXITING = 11;
        /// Enable INVPCID.
        ENABLE_INVPCID = 12;
        /// Enable VM functions.
        ENABLE_VM_FUNCTIONS = 13;
        /// VMCS shadowing.
        VMCS_SHADOWING = 14;
        /// Enable ENCLS exiting.
        ENCLS_EXITING = 15;
        /// RDSEED exiting.
        RDSEED_EXITING = 16;
        /// Enable PML.
        ENABLE_PML = 17;
        /// EPT-violation #VE.
        EPT_VIOLATION_VE = 18;
        /// Conceal VMX from PT.
        CONCEAL_FROM_PT = 19;
        /// Enable XSAVES/XRSTORS.
        ENABLE_XSAVES = 20;
        /// Mode-based execute control for EPT.
        MODE_BASED_EXECUTE = 22;
        /// Sub-page write permissions for EPT.
        SUB_PAGE_WRITE = 23;
        /// Intel PT uses guest physical addresses.
        PT_GUEST_PHYSICAL = 24;
        /// Use TSC scaling.
        TSC_SCALING = 25;
        /// Enable user wait and pause.
        USER_WAIT_PAUSE = 26;
        /// Enable PCONFIG.
        ENABLE_PCONFIG = 27;
        /// Enable ENCLV exiting.
        ENCLV_EXITING = 28;
    }
}

/// Primary VM-exit controls (SDM Vol 3 Table 25-14).
pub mod exit {
    bits! { u32;
        /// Save debug controls.
        SAVE_DEBUG_CONTROLS = 2;
        /// Host address-space size.
        HOST_ADDRESS_SPACE_SIZE = 9;
        /// Load IA32_PERF_GLOBAL_CTRL.
        LOAD_PERF_GLOBAL_CTRL = 12;
        /// Acknowledge interrupt on exit.
        ACKNOWLEDGE_INTERRUPT = 15;
        /// Save IA32_PAT.
        SAVE_PAT = 18;
        /// Load IA32_PAT.
        LOAD_PAT = 19;
        /// Save IA32_EFER.
        SAVE_EFER = 20;
        /// Load IA32_EFER.
        LOAD_EFER = 21;
        /// Save VMX-preemption timer value.
        SAVE_PREEMPTION_TIMER = 22;
        /// Clear IA32_BNDCFGS.
        CLEAR_BNDCFGS = 23;
        /// Activate secondary controls.
        ACTIVATE_SECONDARY = 31;
    }
    /// The default1 class (SDM Vol 3 A.4): bits 0 to 8, 10, 11, 13, 14, 16 and 17.
    pub const DEFAULT1: u32 = 0x0003_6dff;
}

/// VM-entry controls (SDM Vol 3 Table 25-17).
pub mod entry {
    bits! { u32;
        /// Load debug controls.
        LOAD_DEBUG_CONTROLS = 2;
        /// IA-32e mode guest.
        IA32E_MODE_GUEST = 9;
        /// Entry to SMM.
        ENTRY_TO_SMM = 10;
        /// Deactivate dual-monitor treatment.
        DEACTIVATE_DUAL_MONITOR = 11;
        /// Load IA32_PERF_GLOBAL_CTRL.
        LOAD_PERF_GLOBAL_CTRL = 13;
        /// Load IA32_PAT.
        LOAD_PAT = 14;
        /// Load IA32_EFER.
        LOAD_EFER = 15;
        /// Load IA32_BNDCFGS.
        LOAD_BNDCFGS = 16;
    }
    /// The default1 class (SDM Vol 3 A.5): bits 0 to 8 and 12.
    pub const DEFAULT1: u32 = 0x0000_11ff;
}

/// The most CR3-target values the VMCS has fields for (SDM Vol 3 25.6.7).
pub const CR3_TARGETS: u32 = 4;

/// EPT pointer (SDM Vol 3 Table 25-9).
pub mod eptp {
    /// Memory type of the EPT paging structures, bits 2:0.
    pub const MEMORY_TYPE: u64 = 7;
    /// One less than the length of the page walk, bits 5:3.
    pub const WALK_LENGTH_SHIFT: u32 = 3;
    /// Enable accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = 1 << 6;
    /// Address of the EPT PML4 table, bits 51:12 (above the physical width: reserved).
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Byte offset of an MSR's read bit in the MSR bitmaps (SDM Vol 3 25.6.9); the bit is `msr & 7`. The write
/// bit lies 2048 bytes further. `None`: out of both ranges, always exits.
#[inline]
#[must_use]
pub const fn msr_bitmap_byte(msr: u32) -> Option<u64> {
    match msr {
        0..=0x1fff => Some((msr / 8) as u64),
        0xc000_0000..=0xc000_1fff => Some(1024 + ((msr & 0x1fff) / 8) as u64),
        _ => None,
    }
}
