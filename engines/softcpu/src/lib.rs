//! See docs/architecture.md.
pub mod cpu;
pub mod vmx;
