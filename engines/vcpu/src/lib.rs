//! The seam between engines and the monitor: what an engine is, what a vCPU is plugged into, and the
//! architectural state every engine shares.
//!
//! An [`Engine`] makes a [`Vm`], which makes [`Vcpu`]s. A vCPU runs on the thread that calls
//! [`Vcpu::run`] and reaches its board through the [`Platform`] it was given; what ends a run is a
//! [`RunExit`]. Other threads reach a running vCPU only through its [`Attention`].

pub mod cpuid;
mod engine;
mod platform;
mod profile;
mod state;

pub use engine::{Capabilities, Engine, EngineError, NestedVirt, RunExit, Vcpu, Vm, VmConfig};
pub use platform::{Attention, InterruptFault, Platform, REPRODUCIBLE_SEED, StartSignals, Wake};
pub use profile::Profile;
pub use state::{
    DescriptorTable, ExtendedState, Interruptibility, MpState, PendingEvent, SegmentRegister,
    SystemRegisters, VcpuState, reset,
};
