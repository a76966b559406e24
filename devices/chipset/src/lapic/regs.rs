//! Register layout of the local APIC (SDM Vol 3 table 12-1 and table 12-6).
//!
//! A register's number is its MMIO offset divided by 16; its x2APIC MSR is 800h plus the number.

/// Physical address of the registers after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// Bytes of address space the registers take.
pub const MMIO_SIZE: u64 = 0x1000;

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First x2APIC MSR.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC MSR.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: the local APIC is on.
pub const BASE_EN: u64 = 1 << 11;

/// Local APIC ID.
pub const ID: u32 = 0x02;
/// Version.
pub const VERSION: u32 = 0x03;
/// Task priority.
pub const TPR: u32 = 0x08;
/// Arbitration priority; not present.
pub const ARBITRATION_PRIORITY: u32 = 0x09;
/// Processor priority.
pub const PPR: u32 = 0x0a;
/// End of interrupt.
pub const EOI: u32 = 0x0b;
/// Remote read; not present.
pub const REMOTE_READ: u32 = 0x0c;
/// Logical destination.
pub const LDR: u32 = 0x0d;
/// Destination format.
pub const DFR: u32 = 0x0e;
/// Spurious interrupt vector.
pub const SVR: u32 = 0x0f;
/// First in-service register.
pub const ISR: u32 = 0x10;
/// First trigger mode register.
pub const TMR: u32 = 0x18;
/// First interrupt request register.
pub const IRR: u32 = 0x20;
/// Error status.
pub const ESR: u32 = 0x28;
/// Interrupt command, low half (all of it in x2APIC mode).
pub const ICR_LOW: u32 = 0x30;
/// Interrupt command, high half.
pub const ICR_HIGH: u32 = 0x31;
/// First of the local vector table's entries.
pub const LVT: u32 = 0x32;
/// Timer's initial count.
pub const INITIAL_COUNT: u32 = 0x38;
/// Timer's current count.
pub const CURRENT_COUNT: u32 = 0x39;
/// Timer's divide configuration.
pub const DIVIDE: u32 = 0x3e;
/// Self IPI (x2APIC only).
pub const SELF_IPI: u32 = 0x3f;

/// Entries of the local vector table: timer, thermal, performance counters, LINT0, LINT1, error.
pub const LVT_COUNT: usize = 6;
/// Index of the timer's entry.
pub const LVT_TIMER: usize = 0;
/// Index of the performance counters' entry.
pub const LVT_PERFORMANCE: usize = 2;
/// Index of the LINT0 entry.
pub const LVT_LINT0: usize = 3;
/// Index of the LINT1 entry.
pub const LVT_LINT1: usize = 4;
/// Index of the error entry.
pub const LVT_ERROR: usize = 5;

/// LVT: masked.
pub const LVT_MASKED: u32 = 1 << 16;
/// LVT LINT0: remote IRR.
pub const LVT_REMOTE_IRR: u32 = 1 << 14;
/// LVT LINT0: level triggered.
pub const LVT_LEVEL: u32 = 1 << 15;

/// The bits software may set in each LVT entry (SDM Vol 3 figure 12-8).
pub const LVT_WRITABLE: [u32; LVT_COUNT] = [
    0xff | LVT_MASKED | 3 << 17,
    0x7ff | LVT_MASKED,
    0x7ff | LVT_MASKED,
    0x7ff | 1 << 13 | LVT_LEVEL | LVT_MASKED,
    0x7ff | 1 << 13 | LVT_LEVEL | LVT_MASKED,
    0xff | LVT_MASKED,
];

/// The read-only bits an LVT entry may have: delivery status, and remote IRR for the pins.
pub const LVT_READ_ONLY: u32 = 1 << 12 | LVT_REMOTE_IRR;

/// SVR: the local APIC is enabled by software.
pub const SVR_ENABLE: u32 = 1 << 8;
/// SVR: vector, enable, focus check. EOI-broadcast suppression is not offered.
pub const SVR_WRITABLE: u32 = 0x3ff;

/// Version: 15h, integrated; six LVT entries; no EOI-broadcast suppression.
pub const VERSION_VALUE: u32 = 0x15 | (LVT_COUNT as u32 - 1) << 16;

/// ESR: an IPI with a vector below 16 was to be sent.
pub const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: a message with a vector below 16 arrived.
pub const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: a reserved register was accessed.
pub const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// ICR: bits software may set; delivery status (12) is read-only and ignored.
pub const ICR_WRITABLE: u32 = 0x000c_cfff;
/// ICR in x2APIC mode: setting one of these gives #GP.
pub const ICR_RESERVED: u32 = 0xfff3_2000;
