//! Which engine runs a VM, and why: a pure decision on what is known of the host's KVM.

use crate::failure::Failure;
use crate::vm::{ClockMode, Engine, EngineChoice, NestedChoice};

/// A KVM below this speed does not run guest code on the processor but emulates it.
pub const HARDWARE_INSTRUCTIONS_PER_SECOND: f64 = 100e6;

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
    /// Why something about it is not known.
    pub trouble: Option<String>,
    /// Which modules of KVM are loaded, as `kvm_intel`.
    pub modules: Vec<String>,
    /// The parameter `nested` of the vendor's module.
    pub nested_parameter: Option<bool>,
    /// The virtualization of the processor KVM runs on.
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

/// Why KVM cannot run guest code as it should, as half a sentence; `None` if it can.
pub fn why_not_kvm(facts: &KvmFacts) -> Option<String> {
    match &facts.device {
        KvmDevice::Missing => return Some("/dev/kvm is not there".into()),
        KvmDevice::Closed { why, .. } => return Some(format!("/dev/kvm does not open: {why}")),
        KvmDevice::Open => {}
    }
    match facts.api_version {
        Some(12) => {}
        Some(other) => return Some(format!("KVM speaks version {other}, not 12")),
        None => {
            let why = facts.trouble.as_deref().unwrap_or("no reason given");
            return Some(format!("KVM does not answer: {why}"));
        }
    }
    match facts.instructions_per_second {
        Some(speed) if speed >= HARDWARE_INSTRUCTIONS_PER_SECOND => None,
        Some(speed) => Some(format!(
            "KVM emulates instead of running on the processor ({} million instructions a second)",
            millions(speed)
        )),
        None => {
            let why = facts.trouble.as_deref().unwrap_or("no reason given");
            Some(format!("KVM runs no guest code: {why}"))
        }
    }
}

/// Why KVM cannot show a guest the virtualization `nested`, as half a sentence; `None` if it can.
pub fn why_not_nested(facts: &KvmFacts, nested: NestedChoice) -> Option<String> {
    let offered = facts.virtualization;
    let wanted = match nested {
        NestedChoice::Off => return None,
        NestedChoice::Auto => offered,
        NestedChoice::Intel => Some(HardwareVirtualization::Intel),
        NestedChoice::Amd => Some(HardwareVirtualization::Amd),
    };
    if offered.is_none() {
        return Some("KVM offers its guests no virtualization here".into());
    }
    if offered != wanted {
        return Some("the processor has the other vendor's virtualization".into());
    }
    if facts.nested_parameter == Some(false) {
        return Some("nesting is switched off in KVM's module".into());
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

/// Takes an engine for a VM. KVM is only looked at if it may be taken.
///
/// # Errors
/// KVM was asked for and is not to be had, or it lacks what the VM needs.
pub fn decide(
    choice: EngineChoice,
    needs: Needs,
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
            let facts = facts();
            if facts.device == KvmDevice::Open {
                return Ok(asked_for(Engine::Kvm));
            }
            Err(Failure::new(
                "cannot run on the kvm engine",
                why_not_kvm(&facts).unwrap_or_default(),
                format_args!("take --engine soft, or {}", device_advice(&facts.device)),
            ))
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

    /// A host whose KVM can do everything.
    pub fn good() -> KvmFacts {
        KvmFacts {
            device: KvmDevice::Open,
            api_version: Some(12),
            nested_state: true,
            instructions_per_second: Some(2.4e9),
            trouble: None,
            modules: vec!["kvm_intel".into()],
            nested_parameter: Some(true),
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
            trouble: None,
            modules: Vec::new(),
            nested_parameter: None,
            virtualization: None,
        }
    }

    fn auto(nested: NestedChoice, facts: KvmFacts) -> Decision {
        let needs = Needs {
            nested,
            clock: ClockMode::Host,
        };
        decide(EngineChoice::Auto, needs, || facts).expect("auto always finds one")
    }

    #[test]
    fn auto_takes_kvm_only_at_hardware_speed() {
        assert_eq!(auto(NestedChoice::Intel, good()).engine, Engine::Kvm);
        let slow = KvmFacts {
            instructions_per_second: Some(1.5e6),
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
            nested_parameter: Some(false),
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
        let failure = decide(EngineChoice::Kvm, needs, missing).expect_err("missing");
        assert_eq!(failure.why, "/dev/kvm is not there");
    }

    #[test]
    fn a_virtual_clock_needs_the_soft_engine() {
        let needs = Needs {
            nested: NestedChoice::Off,
            clock: ClockMode::Virtual,
        };
        let decision = decide(EngineChoice::Auto, needs, good).expect("soft has it");
        assert_eq!(decision.engine, Engine::Soft);
        assert!(decide(EngineChoice::Kvm, needs, good).is_err());
    }

    #[test]
    fn soft_asked_for_does_not_look_at_kvm() {
        let needs = Needs {
            nested: NestedChoice::Auto,
            clock: ClockMode::Host,
        };
        let decision = decide(EngineChoice::Soft, needs, || unreachable!("not asked"));
        assert_eq!(decision.expect("always there").engine, Engine::Soft);
    }
}
