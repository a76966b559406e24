//! Exception vectors and error codes (SDM Vol 3 6.3, 6.13, 4.7).

/// Divide error.
pub const DE: u8 = 0;
/// Debug.
pub const DB: u8 = 1;
/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// Breakpoint.
pub const BP: u8 = 3;
/// Overflow.
pub const OF: u8 = 4;
/// BOUND range exceeded.
pub const BR: u8 = 5;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Device not available.
pub const NM: u8 = 7;
/// Double fault.
pub const DF: u8 = 8;
/// Invalid TSS.
pub const TS: u8 = 10;
/// Segment not present.
pub const NP: u8 = 11;
/// Stack fault.
pub const SS: u8 = 12;
/// General protection.
pub const GP: u8 = 13;
/// Page fault.
pub const PF: u8 = 14;
/// x87 floating-point error.
pub const MF: u8 = 16;
/// Alignment check.
pub const AC: u8 = 17;
/// Machine check.
pub const MC: u8 = 18;
/// SIMD floating-point.
pub const XM: u8 = 19;
/// Virtualization exception.
pub const VE: u8 = 20;

/// Whether the exception pushes an error code (SDM Vol 3 Table 6-1).
#[must_use]
pub const fn pushes_error_code(vector: u8) -> bool {
    matches!(vector, DF | TS | NP | SS | GP | PF | AC | 21)
}

/// Page-fault error code (SDM Vol 3 4.7).
pub mod pf {
    /// Protection violation (clear: page not present).
    pub const P: u32 = 1;
    /// Write.
    pub const W: u32 = 1 << 1;
    /// User mode.
    pub const U: u32 = 1 << 2;
    /// Reserved bit set.
    pub const RSVD: u32 = 1 << 3;
    /// Instruction fetch.
    pub const I: u32 = 1 << 4;
    /// The page's protection key forbids it.
    pub const PK: u32 = 1 << 5;
}

/// Selector error code (SDM Vol 3 6.13).
pub mod selector_error {
    /// External event.
    pub const EXT: u32 = 1;
    /// The index refers to a gate in the IDT.
    pub const IDT: u32 = 2;
    /// The index refers to the LDT.
    pub const TI: u32 = 4;
}
