//! Which engine runs a VM, and why: a pure decision on what is known of the host's KVM.

use crate::failure::Failure;
use crate::vm::{ClockMode, Engine, EngineChoice, NestedChoice};

/// The hardware virtualization of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HardwareVirtualization {
    /// Intel VT-x.
    Intel,
    /// AMD-V.
    Amd,
}

/// What opening /dev/kvm gave.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum KvmDevice {
    /// It is not there.
    Missing,
    /// It is there and cannot be opened.
    Closed {
        /// The error in words.
        why: String,
        /// Whether the reason is this user's permissions.
        permission: bool,
        /// The group that owns the device, by name or number.
        group: String,
        /// Whether that group may open it.
        group_may_open: bool,
    },
    /// It opens.
    Open,
}

/// A vendor's module of KVM.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KvmModule {
    /// Its name, as `kvm_intel`.
    pub name: String,
    /// Its parameter `nested`.
    pub nested: Option<bool>,
}

/// What is known of the host's KVM.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct KvmFacts {
    /// The device.
    pub device: KvmDevice,
    /// `KVM_GET_API_VERSION`; 12 is the only one in use.
    pub api_version: Option<i32>,
    /// Whether it can save and restore nested state (`KVM_CAP_NESTED_STATE`).
    pub nested_state: bool,
    /// Guest instructions a second, measured.
    pub instructions_per_second: Option<f64>,
    /// Whether that is the processor's own speed; `None` if it could not be measured.
    pub hardware_speed: Option<bool>,
    /// Why it could not be measured.
    pub trouble: Option<String>,
    /// The vendors' modules.
    pub modules: Vec<KvmModule>,
    /// The virtualization KVM can show to its guests.
    pub virtualization: Option<HardwareVirtualization>,
}

/// An engine and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Decision {
    /// The engine.
    #[serde(serialize_with = "as_text")]
    pub engine: Engine,
    /// Why, as half a sentence.
    pub why: String,
}

fn as_text<S: serde::Serializer>(engine: &Engine, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(engine)
}

/// What a VM needs of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The virtualization its guest shall see.
    pub nested: NestedChoice,
    /// Where its time comes from.
    pub clock: ClockMode,
}

/// Why the device cannot be used, as half a sentence; `None` if it can.
fn why_not_open(device: &KvmDevice) -> Option<String> {
    match device {
        KvmDevice::Missing => Some("/dev/kvm is not there".into()),
        KvmDevice::Closed { why, .. } => Some(format!("/dev/kvm does not open: {why}")),
        KvmDevice::Open => None,
    }
}

/// Why KVM cannot run guest code as it should, as half a sentence; `None` if it can.
pub fn why_not_kvm(facts: &KvmFacts) -> Option<String> {
    if let Some(why) = why_not_open(&facts.device) {
        return Some(why);
    }
    match facts.api_version {
        Some(12) => {}
        Some(other) => return Some(format!("KVM speaks version {other}, not 12")),
        None => return Some("KVM does not say which version it speaks".into()),
    }
    match (facts.hardware_speed, facts.instructions_per_second) {
        (Some(true), _) => None,
        (Some(false), Some(speed)) => Some(format!(
            "KVM emulates instead of running on the processor ({} million instructions a second)",
            millions(speed)
        )),
        (Some(false), None) => Some("KVM emulates instead of running on the processor".into()),
        (None, _) => {
            let why = facts.trouble.as_deref().unwrap_or("no reason given");
            Some(format!("KVM runs no guest code: {why}"))
        }
    }
}

/// Why KVM cannot show a guest the virtualization `nested`, as half a sentence; `None` if it can.
pub fn why_not_nested(facts: &KvmFacts, nested: NestedChoice) -> Option<String> {
    let wanted = match nested {
        NestedChoice::Off => return None,
        NestedChoice::Auto => facts.virtualization,
        NestedChoice::Intel => Some(HardwareVirtualization::Intel),
        NestedChoice::Amd => Some(HardwareVirtualization::Amd),
    };
    if facts.modules.iter().any(|m| m.nested == Some(false)) {
        return Some("nesting is switched off in KVM's module".into());
    }
    if facts.virtualization.is_none() {
        return Some("KVM can show its guests neither VT-x nor AMD-V".into());
    }
    if facts.virtualization != wanted {
        return Some("KVM can show its guests the other vendor's virtualization only".into());
    }
    if !facts.nested_state {
        return Some("KVM has no nested state to save (KVM_CAP_NESTED_STATE)".into());
    }
    None
}

/// A speed in millions, with one digit after the point below ten.
pub fn millions(speed: f64) -> String {
    let millions = speed / 1e6;
    if millions < 10.0 {
        format!("{millions:.1}")
    } else {
        format!("{millions:.0}")
    }
}

/// What `auto` takes for a VM on a host with this KVM. There is always the soft engine.
pub fn automatic(needs: Needs, facts: &KvmFacts) -> Decision {
    let why_not = match needs.clock {
        ClockMode::Virtual => Some("only the soft engine has a virtual clock".into()),
        ClockMode::Host => why_not_kvm(facts).or_else(|| why_not_nested(facts, needs.nested)),
    };
    match why_not {
        Some(why) => Decision {
            engine: Engine::Soft,
            why,
        },
        None => Decision {
            engine: Engine::Kvm,
            why: "KVM runs it at hardware speed".into(),
        },
    }
}

/// Takes an engine for a VM. KVM is only measured (`facts`) if that matters; if it was asked for, it only has to
/// open (`device`).
///
/// # Errors
/// KVM was asked for and is not to be had, or it lacks what the VM needs.
pub fn decide(
    choice: EngineChoice,
    needs: Needs,
    device: impl FnOnce() -> KvmDevice,
    facts: impl FnOnce() -> KvmFacts,
) -> Result<Decision, Failure> {
    let asked_for = |engine| Decision {
        engine,
        why: "asked for".into(),
    };
    match choice {
        EngineChoice::Soft => Ok(asked_for(Engine::Soft)),
        EngineChoice::Auto => Ok(automatic(needs, &facts())),
        EngineChoice::Kvm if needs.clock == ClockMode::Virtual => Err(Failure::new(
            "cannot run on the kvm engine",
            "only the soft engine has a virtual clock",
            "take --clock host or --engine soft",
        )),
        EngineChoice::Kvm => {
            let device = device();
            match why_not_open(&device) {
                None => Ok(asked_for(Engine::Kvm)),
                Some(why) => Err(Failure::new(
                    "cannot run on the kvm engine",
                    why,
                    format_args!("take --engine soft, or {}", device_advice(&device)),
                )),
            }
        }
    }
}

/// What to do so that /dev/kvm opens.
pub fn device_advice(device: &KvmDevice) -> String {
    match device {
        KvmDevice::Open => "nothing needs to be done".into(),
        KvmDevice::Missing => {
            "load kvm_intel or kvm_amd, and switch on virtualization in the firmware or for this VM"
                .into()
        }
        KvmDevice::Closed {
            permission: true,
            group,
            group_may_open: true,
            ..
        } => format!("join the group {group} (sudo usermod -aG {group} $USER) and log in again"),
        KvmDevice::Closed {
            permission: true, ..
        } => "ask this host's administrator to let a group open it (chgrp kvm, chmod g+rw)".into(),
        KvmDevice::Closed { .. } => {
            "check that KVM's module is loaded and nothing else holds the processor's virtualization"
                .into()
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A vendor's module with nesting on or off.
    pub fn module(name: &str, nested: bool) -> KvmModule {
        KvmModule {
            name: name.into(),
            nested: Some(nested),
        }
    }

    /// A host whose KVM can do everything.
    pub fn good() -> KvmFacts {
        KvmFacts {
            device: KvmDevice::Open,
            api_version: Some(12),
            nested_state: true,
            instructions_per_second: Some(2.4e9),
            hardware_speed: Some(true),
            trouble: None,
            modules: vec![module("kvm_intel", true)],
            virtualization: Some(HardwareVirtualization::Intel),
        }
    }

    /// A host without /dev/kvm.
    pub fn missing() -> KvmFacts {
        KvmFacts {
            device: KvmDevice::Missing,
            api_version: None,
            nested_state: false,
            instructions_per_second: None,
            hardware_speed: None,
            trouble: None,
            modules: Vec::new(),
            virtualization: None,
        }
    }

    fn not_asked() -> KvmFacts {
        unreachable!("KVM is not measured when it does not matter")
    }

    fn auto(nested: NestedChoice, facts: KvmFacts) -> Decision {
        let needs = Needs {
            nested,
            clock: ClockMode::Host,
        };
        decide(
            EngineChoice::Auto,
            needs,
            || facts.device.clone(),
            || facts.clone(),
        )
        .expect("auto always finds one")
    }

    #[test]
    fn auto_takes_kvm_only_at_hardware_speed() {
        assert_eq!(auto(NestedChoice::Intel, good()).engine, Engine::Kvm);
        let slow = KvmFacts {
            instructions_per_second: Some(1.5e6),
            hardware_speed: Some(false),
            ..good()
        };
        let decision = auto(NestedChoice::Off, slow);
        assert_eq!(decision.engine, Engine::Soft);
        assert!(decision.why.contains("1.5 million"), "{}", decision.why);
    }

    #[test]
    fn auto_minds_the_nesting_asked_for() {
        assert_eq!(auto(NestedChoice::Amd, good()).engine, Engine::Soft);
        let off = KvmFacts {
            modules: vec![module("kvm_intel", false)],
            ..good()
        };
        assert_eq!(auto(NestedChoice::Intel, off.clone()).engine, Engine::Soft);
        assert_eq!(auto(NestedChoice::Off, off).engine, Engine::Kvm);
        let stateless = KvmFacts {
            nested_state: false,
            ..good()
        };
        assert_eq!(auto(NestedChoice::Auto, stateless).engine, Engine::Soft);
    }

    #[test]
    fn auto_without_a_device_is_soft() {
        let decision = auto(NestedChoice::Auto, missing());
        assert_eq!(decision.engine, Engine::Soft);
        assert_eq!(decision.why, "/dev/kvm is not there");
    }

    #[test]
    fn kvm_asked_for_and_not_there_is_an_error() {
        let needs = Needs {
            nested: NestedChoice::Off,
            clock: ClockMode::Host,
        };
        let failure = decide(EngineChoice::Kvm, needs, || KvmDevice::Missing, not_asked)
            .expect_err("missing");
        assert_eq!(failure.why, "/dev/kvm is not there");
    }

    #[test]
    fn a_virtual_clock_needs_the_soft_engine() {
        let needs = Needs {
            nested: NestedChoice::Off,
            clock: ClockMode::Virtual,
        };
        let decision =
            decide(EngineChoice::Auto, needs, || KvmDevice::Open, good).expect("soft has it");
        assert_eq!(decision.engine, Engine::Soft);
        assert!(decide(EngineChoice::Kvm, needs, || KvmDevice::Open, good).is_err());
    }

    #[test]
    fn soft_asked_for_does_not_look_at_kvm() {
        let needs = Needs {
            nested: NestedChoice::Auto,
            clock: ClockMode::Host,
        };
        let decision = decide(EngineChoice::Soft, needs, || KvmDevice::Missing, not_asked);
        assert_eq!(decision.expect("always there").engine, Engine::Soft);
    }
}
