//! Guest non-register state (SDM Vol 3 25.4.2).

/// Activity state (SDM Vol 3 25.4.2).
pub mod activity {
    /// Active.
    pub const ACTIVE: u32 = 0;
    /// HLT.
    pub const HLT: u32 = 1;
    /// Shutdown.
    pub const SHUTDOWN: u32 = 2;
    /// Wait-for-SIPI.
    pub const WAIT_FOR_SIPI: u32 = 3;
}

/// Interruptibility state (SDM Vol 3 Table 25-3).
pub mod interruptibility {
    /// Blocking by STI.
    pub const STI: u32 = 1;
    /// Blocking by MOV SS.
    pub const MOV_SS: u32 = 1 << 1;
    /// Blocking by SMI.
    pub const SMI: u32 = 1 << 2;
    /// Blocking by NMI.
    pub const NMI: u32 = 1 << 3;
    /// Enclave interruption.
    pub const ENCLAVE: u32 = 1 << 4;
}

/// Pending debug exceptions (SDM Vol 3 Table 25-4).
pub mod pending_debug {
    /// B3 to B0: breakpoint conditions met.
    pub const B: u64 = 0xf;
    /// Bus-lock detected.
    pub const BUS_LOCK: u64 = 1 << 11;
    /// At least one data or I/O breakpoint was met and was enabled in DR7.
    pub const ENABLED_BREAKPOINT: u64 = 1 << 12;
    /// A single-step condition is pending.
    pub const BS: u64 = 1 << 14;
    /// A debug exception or breakpoint occurred inside an RTM region.
    pub const RTM: u64 = 1 << 16;
}
