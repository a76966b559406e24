//! The engines of this program, and what one must be able to do for a VM.

use kvm::KvmEngine;
use softcpu::SoftEngine;
use vcpu::{Capabilities, Engine, EngineError, NestedVirt};

use crate::config::MachineConfig;

/// The engine cannot run the VM as asked.
#[derive(Debug, thiserror::Error)]
pub enum UnfitEngine {
    /// The engine asked for cannot show the extension.
    #[error(
        "the {engine} engine cannot show {extension} to a guest here; choose --nested off or another engine"
    )]
    NoNested {
        /// Engine.
        engine: &'static str,
        /// "VT-x" or "AMD-V".
        extension: &'static str,
    },
    /// Too many vCPUs for the engine.
    #[error("the {engine} engine runs at most {most} vCPUs, {asked} were asked for; choose fewer")]
    TooManyVcpus {
        /// Engine.
        engine: &'static str,
        /// Its limit.
        most: u32,
        /// What was asked for.
        asked: u32,
    },
    /// The engine keeps real time only.
    #[error("the {0} engine cannot run on virtual time; choose --clock host or the soft engine")]
    VirtualClock(&'static str),
}

/// The engines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// The CPU in software; there on every x86-64 host.
    Soft,
    /// The host's KVM.
    Kvm,
}

/// Opens an engine.
///
/// # Errors
/// [`EngineError`] when the host does not offer it.
pub fn open(kind: EngineKind) -> Result<Box<dyn Engine>, EngineError> {
    Ok(match kind {
        EngineKind::Soft => match std::env::var("NESTLING_JIT")
            .ok()
            .and_then(|t| t.parse().ok())
        {
            Some(threshold) => {
                Box::new(SoftEngine::with_executors(std::sync::Arc::new(move || {
                    let translator =
                        jit::Translator::new(threshold).map_err(std::io::Error::other)?;
                    Ok(Box::new(translator))
                })))
            }
            None => Box::new(SoftEngine::new()),
        },
        EngineKind::Kvm => Box::new(KvmEngine::open()?),
    })
}

/// Checks what an engine must be able to do for `config`.
///
/// # Errors
/// The first thing it cannot do.
pub fn check(config: &MachineConfig, can: &Capabilities) -> Result<(), UnfitEngine> {
    let engine = can.name;
    let missing = match config.nested {
        NestedVirt::Intel if !can.nested_intel => Some("VT-x"),
        NestedVirt::Amd if !can.nested_amd => Some("AMD-V"),
        NestedVirt::Off | NestedVirt::Intel | NestedVirt::Amd => None,
    };
    if let Some(extension) = missing {
        return Err(UnfitEngine::NoNested { engine, extension });
    }
    if config.vcpus > can.max_vcpus {
        return Err(UnfitEngine::TooManyVcpus {
            engine,
            most: can.max_vcpus,
            asked: config.vcpus,
        });
    }
    if can.own_interrupt_controllers && config.clock == bus::ClockMode::Virtual {
        return Err(UnfitEngine::VirtualClock(engine));
    }
    Ok(())
}
