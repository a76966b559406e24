//! Engines, VMs and vCPUs.

use std::sync::Arc;

use guestmem::GuestRam;

use crate::{Attention, Platform, Profile, VcpuState, cpuid::CpuidTable};

/// Which virtualization extension a guest is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedVirt {
    /// None.
    Off,
    /// Intel VT-x.
    Intel,
    /// AMD-V.
    Amd,
}

/// What an engine can do on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The engine's name on the command line: "soft" or "kvm".
    pub name: &'static str,
    /// The engine brings interrupt controllers and PIT of its own (in-kernel).
    pub own_interrupt_controllers: bool,
    /// VT-x can be shown to guests.
    pub nested_intel: bool,
    /// AMD-V can be shown to guests.
    pub nested_amd: bool,
    /// Most vCPUs in a VM.
    pub max_vcpus: u32,
}

/// What a VM is made of, from the engine's view.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What CPUID answers; an engine may clear what it cannot do (KVM: what the host lacks), never add.
    pub cpuid: CpuidTable,
    /// The extension shown to the guest.
    pub nested: NestedVirt,
    /// TSC frequency in Hz, where the engine can choose it.
    pub tsc_hz: u64,
}

/// A failure of the engine or the host, not of the guest.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host refused an operation.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The engine cannot do what the configuration asks for.
    #[error("the {engine} engine cannot {what}; {advice}")]
    Unsupported {
        /// Engine's name.
        engine: &'static str,
        /// What it cannot do.
        what: String,
        /// What the user can do.
        advice: String,
    },
    /// The vCPU stopped in a way that leaves no way to go on.
    #[error("vCPU {vcpu} cannot go on: {why}")]
    Stuck {
        /// vCPU index.
        vcpu: u32,
        /// What the engine knows.
        why: String,
    },
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunExit {
    /// [`Attention::STOP`] was raised.
    Stopped,
    /// Triple fault: the processor is in shutdown (SDM Vol 3 6.15, "Double Fault").
    Shutdown,
}

/// A way to run guest code.
pub trait Engine: Send + Sync {
    /// What it can do here.
    fn capabilities(&self) -> Capabilities;

    /// Makes a VM over `ram`.
    ///
    /// # Errors
    /// [`EngineError`] when the host or the engine cannot.
    fn create_vm(&self, config: &VmConfig, ram: Arc<GuestRam>) -> Result<Arc<dyn Vm>, EngineError>;
}

/// A VM of an engine.
pub trait Vm: Send + Sync {
    /// Makes vCPU `index` (also its APIC id), plugged into `platform`. `attention` is how other threads
    /// reach it.
    ///
    /// # Errors
    /// [`EngineError`] when the host or the engine cannot.
    fn create_vcpu(
        &self,
        index: u32,
        platform: Box<dyn Platform>,
        attention: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError>;

    /// Drives a global system interrupt, for engines with interrupt controllers of their own.
    fn set_irq_line(&self, _gsi: u32, _high: bool) {}

    /// `GuestRam::set_legacy` changed the memory map, for engines that keep it outside of their vCPUs. vCPUs of the
    /// software engine hear of it by [`Attention::REMAP`].
    fn memory_changed(&self) {}

    /// Delivers an MSI, for engines with interrupt controllers of their own.
    fn signal_msi(&self, _address: u64, _data: u32) {}
}

/// A virtual processor; lives on one thread at a time.
pub trait Vcpu: Send {
    /// Runs until something the monitor must decide.
    ///
    /// # Errors
    /// [`EngineError`] when the engine cannot go on.
    fn run(&mut self) -> Result<RunExit, EngineError>;

    /// A handle with which another thread makes a blocked [`Vcpu::run`] look at its [`Attention`]. For the
    /// software engine raising the attention is enough; KVM also needs its thread interrupted.
    fn kicker(&self) -> Box<dyn Fn() + Send + Sync>;

    /// The architectural state, at an instruction boundary.
    ///
    /// # Errors
    /// [`EngineError`] when the host refuses.
    fn state(&mut self) -> Result<VcpuState, EngineError>;

    /// Replaces the architectural state.
    ///
    /// # Errors
    /// [`EngineError`] when the host refuses or the engine cannot hold the state.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError>;

    /// Instructions executed so far, when the engine counts them.
    fn retired(&self) -> Option<u64> {
        None
    }

    /// What its work was made of so far; empty where the engine does not look.
    fn profile(&self) -> Profile {
        Profile::default()
    }
}
