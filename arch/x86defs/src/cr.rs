//! Control registers, EFER and debug registers (SDM Vol 3 2.5, 2.2.1, 18.2).

/// CR0 (SDM Vol 3 2.5).
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulation.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type; always 1.
    pub const ET: u64 = 1 << 4;
    /// Numeric error.
    pub const NE: u64 = 1 << 5;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// Every bit that is defined.
    pub const DEFINED: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4 (SDM Vol 3 2.5).
pub mod cr4 {
    /// Virtual-8086 mode extensions.
    pub const VME: u64 = 1;
    /// Protected-mode virtual interrupts.
    pub const PVI: u64 = 1 << 1;
    /// Time stamp disable.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions.
    pub const DE: u64 = 1 << 3;
    /// Page size extensions.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine-check enable.
    pub const MCE: u64 = 1 << 6;
    /// Page global enable.
    pub const PGE: u64 = 1 << 7;
    /// Performance-monitoring counter enable.
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE and FXRSTOR support.
    pub const OSFXSR: u64 = 1 << 9;
    /// Unmasked SIMD exceptions support.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// 57-bit linear addresses.
    pub const LA57: u64 = 1 << 12;
    /// VMX enable.
    pub const VMXE: u64 = 1 << 13;
    /// SMX enable.
    pub const SMXE: u64 = 1 << 14;
    /// RDFSBASE and friends.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE enable.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages.
    pub const PKE: u64 = 1 << 22;
}

/// IA32_EFER (SDM Vol 3 2.2.1).
pub mod efer {
    /// SYSCALL enable.
    pub const SCE: u64 = 1;
    /// IA-32e mode enable.
    pub const LME: u64 = 1 << 8;
    /// IA-32e mode active.
    pub const LMA: u64 = 1 << 10;
    /// Execute disable enable.
    pub const NXE: u64 = 1 << 11;
    /// AMD: automatic IBRS enable (APM Vol 2 3.1.7).
    pub const AIBRSE: u64 = 1 << 21;
}

/// Debug registers (SDM Vol 3 18.2).
pub mod dr {
    /// DR6 bits that read as 1 (RTM bit 16 included: no transactional memory).
    pub const DR6_FIXED_1: u64 = 0xffff_0ff0;
    /// DR6 debug register access detected.
    pub const DR6_BD: u64 = 1 << 13;
    /// DR6 single step.
    pub const DR6_BS: u64 = 1 << 14;
    /// DR6 task switch.
    pub const DR6_BT: u64 = 1 << 15;
    /// DR6 bits a program can write.
    pub const DR6_WRITABLE: u64 = 0xe00f;
    /// DR7 bits that read as 1.
    pub const DR7_FIXED_1: u64 = 0x400;
    /// DR7 bits a program can write (RTM, bit 11, is reserved without transactional memory).
    pub const DR7_WRITABLE: u64 = 0xffff_23ff;
    /// DR7 general detect enable.
    pub const DR7_GD: u64 = 1 << 13;
}
