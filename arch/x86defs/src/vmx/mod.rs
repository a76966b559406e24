//! VT-x: VMCS fields, controls, capabilities, exit reasons and the formats of their fields
//! (SDM Vol 3 chapters 24 to 31 and appendices A to C).
//!
//! Section numbers follow the SDM in which the VMCS is chapter 25 and VM entries are chapter 27.

pub mod capability;
pub mod control;
pub mod exit;
pub mod field;
pub mod guest;
pub mod instruction;
pub mod interruption;
pub mod qualification;

pub use exit::ExitReason;
pub use field::{FieldAccess, FieldType, FieldWidth, VmcsField};
pub use instruction::InstructionError;
pub use interruption::{EventType, InterruptionInfo};
