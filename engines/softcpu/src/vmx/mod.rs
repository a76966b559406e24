//! VT-x (SDM Vol 3 chapters 24 to 31).

pub mod caps;
pub mod entry;
pub mod vmcs;
