//! Exit-qualification formats (SDM Vol 3 28.2.1).

/// Control-register accesses (SDM Vol 3 Table 28-3).
pub mod cr {
    /// Access types, bits 5:4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Access {
        /// MOV to CR.
        MovTo = 0,
        /// MOV from CR.
        MovFrom = 1,
        /// CLTS.
        Clts = 2,
        /// LMSW.
        Lmsw = 3,
    }

    /// MOV to or from CR: control register `cr` (0, 3, 4 or 8), general-purpose register `gpr`.
    #[must_use]
    pub const fn mov(access: Access, cr: u8, gpr: u8) -> u64 {
        (cr & 0xf) as u64 | (access as u64) << 4 | ((gpr & 0xf) as u64) << 8
    }

    /// CLTS.
    pub const CLTS: u64 = (Access::Clts as u64) << 4;

    /// LMSW with its source data; from memory or from a register.
    #[must_use]
    pub const fn lmsw(source: u16, memory_operand: bool) -> u64 {
        (Access::Lmsw as u64) << 4 | (memory_operand as u64) << 6 | (source as u64) << 16
    }
}

/// MOV DR (SDM Vol 3 Table 28-4): debug register, direction, general-purpose register.
#[must_use]
pub const fn mov_dr(dr: u8, from_dr: bool, gpr: u8) -> u64 {
    (dr & 7) as u64 | (from_dr as u64) << 4 | ((gpr & 0xf) as u64) << 8
}

/// I/O instructions (SDM Vol 3 Table 28-5).
pub mod io {
    /// IN or INS.
    pub const IN: u64 = 1 << 3;
    /// INS or OUTS.
    pub const STRING: u64 = 1 << 4;
    /// REP prefixed.
    pub const REP: u64 = 1 << 5;
    /// The port is an immediate.
    pub const IMMEDIATE: u64 = 1 << 6;
    /// Size of the access (1, 2 or 4 bytes) and port; the flags above are or-ed in.
    #[must_use]
    pub const fn access(size_bytes: u8, port: u16) -> u64 {
        (size_bytes.wrapping_sub(1) & 7) as u64 | (port as u64) << 16
    }
}

/// Task switches (SDM Vol 3 Table 28-2): source of the switch, bits 31:30.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitchSource {
    /// CALL.
    Call = 0,
    /// IRET.
    Iret = 1,
    /// JMP.
    Jmp = 2,
    /// Task gate in the IDT.
    TaskGate = 3,
}

/// Task switches (SDM Vol 3 Table 28-2).
#[must_use]
pub const fn task_switch(source: TaskSwitchSource, selector: u16) -> u64 {
    (source as u64) << 30 | selector as u64
}

/// APIC accesses (SDM Vol 3 Table 28-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicAccess {
    /// Linear access for a data read.
    LinearRead = 0,
    /// Linear access for a data write.
    LinearWrite = 1,
    /// Linear access for an instruction fetch.
    LinearFetch = 2,
    /// Linear access during event delivery.
    LinearEventDelivery = 3,
    /// Guest-physical access during event delivery.
    PhysicalEventDelivery = 10,
    /// Guest-physical access for an instruction fetch or during instruction execution.
    PhysicalExecution = 15,
}

/// APIC accesses (SDM Vol 3 Table 28-6): offset inside the page, kind.
#[must_use]
pub const fn apic_access(kind: ApicAccess, offset: u16) -> u64 {
    (offset & 0xfff) as u64 | (kind as u64) << 12
}

/// EPT violations (SDM Vol 3 Table 28-7).
pub mod ept {
    /// The access was a data read.
    pub const READ: u64 = 1;
    /// The access was a data write.
    pub const WRITE: u64 = 1 << 1;
    /// The access was an instruction fetch.
    pub const FETCH: u64 = 1 << 2;
    /// The translation was readable.
    pub const READABLE: u64 = 1 << 3;
    /// The translation was writable.
    pub const WRITABLE: u64 = 1 << 4;
    /// The translation was executable.
    pub const EXECUTABLE: u64 = 1 << 5;
    /// The guest-linear-address field is valid.
    pub const LINEAR_VALID: u64 = 1 << 7;
    /// The access is to the translation of the linear address (clear: to a paging-structure entry).
    pub const LINEAR_TRANSLATION: u64 = 1 << 8;
    /// User-mode linear address (advanced information).
    pub const USER: u64 = 1 << 9;
    /// Read/write page (advanced information).
    pub const READ_WRITE_PAGE: u64 = 1 << 10;
    /// Execute-disable page (advanced information).
    pub const EXECUTE_DISABLE: u64 = 1 << 11;
    /// NMI unblocking due to IRET.
    pub const NMI_UNBLOCKING: u64 = 1 << 12;
}

/// Debug exceptions (SDM Vol 3 Table 28-1): the bits are those of DR6.
pub mod debug {
    /// B3 to B0.
    pub const B: u64 = 0xf;
    /// Debug register access detected.
    pub const BD: u64 = 1 << 13;
    /// Single step.
    pub const BS: u64 = 1 << 14;
}
