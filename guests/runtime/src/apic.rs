//! The local APIC, by memory (xAPIC) or by MSRs (x2APIC): volume 3 chapter 11.

use crate::cpu::{read_msr, write_msr};

/// IA32_APIC_BASE.
pub const BASE_MSR: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const DEADLINE_MSR: u32 = 0x6e0;
/// Where the registers are after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;

/// Register offsets in the page (11.4.1, Table 11-1).
pub mod reg {
    /// ID.
    pub const ID: u32 = 0x20;
    /// Version.
    pub const VERSION: u32 = 0x30;
    /// Task priority.
    pub const TPR: u32 = 0x80;
    /// Processor priority.
    pub const PPR: u32 = 0xa0;
    /// End of interrupt.
    pub const EOI: u32 = 0xb0;
    /// Logical destination.
    pub const LDR: u32 = 0xd0;
    /// Destination format.
    pub const DFR: u32 = 0xe0;
    /// Spurious interrupt vector.
    pub const SVR: u32 = 0xf0;
    /// In-service, eight registers.
    pub const ISR: u32 = 0x100;
    /// Trigger mode, eight registers.
    pub const TMR: u32 = 0x180;
    /// Interrupt request, eight registers.
    pub const IRR: u32 = 0x200;
    /// Error status.
    pub const ESR: u32 = 0x280;
    /// Interrupt command, low half.
    pub const ICR: u32 = 0x300;
    /// Interrupt command, high half.
    pub const ICR_HIGH: u32 = 0x310;
    /// LVT timer.
    pub const LVT_TIMER: u32 = 0x320;
    /// LVT thermal sensor.
    pub const LVT_THERMAL: u32 = 0x330;
    /// LVT performance counters.
    pub const LVT_PERFORMANCE: u32 = 0x340;
    /// LVT LINT0.
    pub const LVT_LINT0: u32 = 0x350;
    /// LVT LINT1.
    pub const LVT_LINT1: u32 = 0x360;
    /// LVT error.
    pub const LVT_ERROR: u32 = 0x370;
    /// Timer's initial count.
    pub const INITIAL_COUNT: u32 = 0x380;
    /// Timer's current count.
    pub const CURRENT_COUNT: u32 = 0x390;
    /// Timer's divide configuration.
    pub const DIVIDE: u32 = 0x3e0;
}

/// Reads a register by memory.
pub fn read(register: u32) -> u32 {
    // SAFETY: the page of the local APIC, which is no RAM.
    unsafe { ((DEFAULT_BASE + u64::from(register)) as *const u32).read_volatile() }
}

/// Writes a register by memory.
pub fn write(register: u32, value: u32) {
    // SAFETY: the page of the local APIC, which is no RAM.
    unsafe { ((DEFAULT_BASE + u64::from(register)) as *mut u32).write_volatile(value) }
}

/// The MSR of a register in x2APIC mode (11.12.1.2).
pub const fn x2(register: u32) -> u32 {
    0x800 + (register >> 4)
}

/// Whether bit `vector` of the 256-bit register at `first` is set; by memory or MSR as the mode is.
pub fn bit(first: u32, vector: u8) -> bool {
    let register = first + u32::from(vector >> 5) * 0x10;
    let word = if read_msr(BASE_MSR) & 1 << 10 != 0 {
        read_msr(x2(register)) as u32
    } else {
        read(register)
    };
    word >> (vector & 31) & 1 != 0
}

/// Software enable, spurious vector FFh.
pub fn enable() {
    write(reg::SVR, 0x1ff);
}

/// Signals the end of an interrupt, in the mode that is on.
pub fn end_of_interrupt() {
    if read_msr(BASE_MSR) & 1 << 10 != 0 {
        write_msr(x2(reg::EOI), 0);
    } else {
        write(reg::EOI, 0);
    }
}
