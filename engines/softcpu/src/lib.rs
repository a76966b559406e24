//! The software CPU: an x86-64 processor with VT-x as an interpreter over cached decoded blocks.
//!
//! A [`SoftEngine`] implements the engine seam of crate `vcpu`. Inside, [`run::Runner`] runs blocks on a
//! [`cpu::Cpu`]; instructions are handlers in `insn`, memory is in `mem`, events in `event`, VT-x in `vmx`.

pub mod code;
pub mod cpu;
mod debug;
mod engine;
pub mod event;
pub mod flags;
pub mod hashing;
pub mod insn;
pub mod mem;
mod pmu;
pub mod run;
mod state;
#[cfg(test)]
mod testing;
pub mod vmx;
pub mod world;

pub use engine::{Executors, SoftEngine, model};
