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

/// What the soft engine does with code that runs often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Translation {
    /// It is interpreted like all other.
    #[default]
    Off,
    /// It is translated to code of the host, if that has what it takes.
    On,
    /// All code is translated before it runs for the first time.
    Force,
}

impl Translation {
    /// How often a block is interpreted before it is translated; `None` for ever.
    fn threshold(self) -> Option<u16> {
        match self {
            Self::Off => None,
            // What runs a few times in a boot is not worth its translation.
            Self::On => Some(16),
            Self::Force => Some(0),
        }
    }
}

/// Opens an engine.
///
/// # Errors
/// [`EngineError`] when the host does not offer it, or not what translated code needs.
pub fn open(kind: EngineKind, translation: Translation) -> Result<Box<dyn Engine>, EngineError> {
    let threshold = match (kind, translation) {
        (EngineKind::Kvm, _) => return Ok(Box::new(KvmEngine::open()?)),
        (EngineKind::Soft, Translation::On) if jit::missing().is_some() => None,
        (EngineKind::Soft, _) => translation.threshold(),
    };
    let Some(threshold) = threshold else {
        return Ok(Box::new(SoftEngine::new()));
    };
    if let Some(missing) = jit::missing() {
        return Err(EngineError::Unsupported {
            engine: "soft",
            what: format!("translate code, which needs {missing} of the host's processor"),
            advice: "give --jit on, which does without where it must, or --jit off".into(),
        });
    }
    Ok(Box::new(SoftEngine::with_executors(std::sync::Arc::new(
        move |vcpus| {
            let translator =
                jit::Translator::new(threshold, vcpus).map_err(std::io::Error::other)?;
            Ok(Box::new(translator))
        },
    ))))
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
