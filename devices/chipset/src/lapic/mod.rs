//! The local APIC: one for each vCPU, with the xAPIC (MMIO) and x2APIC (MSR) interfaces.
//!
//! SDM Vol 3 chapter 12 (chapter 11 in editions before 2023). Six LVT entries (no CMCI), version 15h, no EOI-broadcast
//! suppression, no SMI. It has no bus wiring of its own, since each vCPU sees its own at the same address:
//! [`crate::fabric::InterruptFabric`] holds and joins them.
//!
//! ```text
//!            EN=1                 EXTD=1
//!  disabled ------> xAPIC mode ------------> x2APIC mode
//!     ^                |                          |
//!     +----------------+--------------------------+   EN=0, EXTD=0
//! ```

mod model;
pub mod regs;
mod timer;
mod vectors;

#[cfg(test)]
mod tests;

pub use model::{Acceptance, Lapic, LapicConfig, MsrFault, Outgoing, Summary};
pub use timer::{Timer, TimerMode, TscClock};
pub use vectors::VectorSet;
