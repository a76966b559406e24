//! What the facts mean: a pure function from facts to a list of findings, each with what to do if it is not
//! as one would wish.

use serde::Serialize;

use super::facts::HostFacts;
use crate::engine::{
    self, Decision, HardwareVirtualization, KvmDevice, Needs, device_advice, millions,
};
use crate::vm::{ClockMode, NestedChoice};

/// What `nestling demo` wants to find free: level 1 and room for the program.
const WANTED_MEMORY_KIB: u64 = (1 << 20) + (256 << 10);

/// Whether a thing is as one would wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// Neither good nor bad, or not to be known here.
    Note,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub item: &'static str,
    /// Whether it is as one would wish.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// All findings, and what they lead to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The findings.
    pub findings: Vec<Finding>,
    /// The engine that `--engine auto` takes.
    pub engine: Decision,
}

fn yes(item: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        item,
        status: Status::Yes,
        found: found.into(),
        advice: None,
    }
}

fn no(item: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        item,
        status: Status::No,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn note(item: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        item,
        status: Status::Note,
        found: found.into(),
        advice: None,
    }
}

/// Judges the facts.
pub fn judge(facts: &HostFacts) -> Diagnosis {
    let findings = vec![
        processor(facts),
        place(facts),
        virtualization(facts),
        device(facts),
        opens(facts),
        answers(facts),
        speed(facts),
        nested_parameter(facts),
        guest_virtualization(facts),
        nested_state(facts),
        lockdown(facts),
        seccomp(facts),
        landlock(facts),
        memory(facts),
        apt(facts),
    ];
    let needs = Needs {
        nested: NestedChoice::Auto,
        clock: ClockMode::Host,
    };
    let engine = engine::automatic(needs, &facts.kvm);
    Diagnosis { findings, engine }
}

fn processor(facts: &HostFacts) -> Finding {
    let processor = &facts.processor;
    note(
        "processor",
        format!(
            "{}, {}, {} usable here",
            processor.vendor, processor.model, facts.cpus
        ),
    )
}

fn place(facts: &HostFacts) -> Finding {
    let item = "virtual machine";
    match &facts.hypervisor {
        None => note(item, "no, CPUID shows no hypervisor"),
        Some(name) if name.is_empty() => note(item, "yes, under a hypervisor without a name"),
        Some(name) => note(item, format!("yes, under {name}")),
    }
}

fn virtualization(facts: &HostFacts) -> Finding {
    let item = "VT-x or AMD-V";
    match (facts.processor.vmx, facts.processor.svm) {
        (true, _) => yes(item, "VT-x (flag vmx)"),
        (_, true) => yes(item, "AMD-V (flag svm)"),
        (false, false) if facts.hypervisor.is_some() => no(
            item,
            "neither flag vmx nor svm",
            "switch on nested virtualization for this VM where it is hosted; the soft engine does without",
        ),
        (false, false) => no(
            item,
            "neither flag vmx nor svm",
            "switch it on in the firmware setup; the soft engine does without",
        ),
    }
}

fn device(facts: &HostFacts) -> Finding {
    let item = "/dev/kvm";
    let names: Vec<&str> = facts.kvm.modules.iter().map(|m| m.name.as_str()).collect();
    let modules = match names.as_slice() {
        [] => "no vendor's module loaded".to_string(),
        [one] => format!("module {one}"),
        several => format!("modules {}", several.join(", ")),
    };
    match &facts.kvm.device {
        KvmDevice::Missing => no(
            item,
            format!("not there, {modules}"),
            device_advice(&KvmDevice::Missing),
        ),
        KvmDevice::Closed { .. } | KvmDevice::Open => yes(item, format!("there, {modules}")),
    }
}

fn opens(facts: &HostFacts) -> Finding {
    let item = "/dev/kvm opens";
    match &facts.kvm.device {
        KvmDevice::Missing => note(item, "not there"),
        KvmDevice::Open => yes(item, "for this user"),
        closed @ KvmDevice::Closed { why, group, .. } => no(
            item,
            format!("{why}; it belongs to group {group}"),
            device_advice(closed),
        ),
    }
}

fn answers(facts: &HostFacts) -> Finding {
    let item = "KVM's interface";
    match facts.kvm.api_version {
        Some(12) => yes(item, "version 12"),
        Some(other) => no(
            item,
            format!("version {other}"),
            "use a Linux kernel of today",
        ),
        None => unknown(item, facts),
    }
}

fn unknown(item: &'static str, facts: &HostFacts) -> Finding {
    let why = match (&facts.kvm.device, &facts.kvm.trouble) {
        (KvmDevice::Open, Some(trouble)) => format!("not known: {trouble}"),
        (KvmDevice::Open, None) => "not known".to_string(),
        (KvmDevice::Missing | KvmDevice::Closed { .. }, _) => {
            "not known without /dev/kvm".to_string()
        }
    };
    note(item, why)
}

fn speed(facts: &HostFacts) -> Finding {
    let item = "KVM at hardware speed";
    match (facts.kvm.hardware_speed, facts.kvm.instructions_per_second) {
        (Some(true), Some(speed)) => yes(
            item,
            format!("{} million guest instructions a second", millions(speed)),
        ),
        (Some(false), Some(speed)) => no(
            item,
            format!(
                "{} million guest instructions a second: it emulates them",
                millions(speed)
            ),
            "take the soft engine, which is faster than this KVM; or a host with VT-x or AMD-V",
        ),
        (None, _) | (_, None) => unknown(item, facts),
    }
}

fn nested_parameter(facts: &HostFacts) -> Finding {
    let item = "nesting in KVM's module";
    let told = facts.kvm.modules.iter().find(|m| m.nested.is_some());
    match told.map(|module| (module.name.as_str(), module.nested)) {
        Some((name, Some(true))) => yes(item, format!("{name} nested=1")),
        Some((name, _)) => no(
            item,
            format!("{name} nested=0"),
            format!(
                "write `options {name} nested=1` to a file in /etc/modprobe.d and load it anew"
            ),
        ),
        None if facts.kvm.modules.is_empty() => note(item, "no vendor's module loaded"),
        None => note(item, "the module does not say"),
    }
}

fn guest_virtualization(facts: &HostFacts) -> Finding {
    let item = "VT-x or AMD-V for guests";
    match (facts.kvm.virtualization, facts.kvm.api_version) {
        (Some(HardwareVirtualization::Intel), _) => yes(item, "VT-x"),
        (Some(HardwareVirtualization::Amd), _) => yes(item, "AMD-V"),
        (None, Some(_)) => no(
            item,
            "KVM can show its guests neither",
            "switch on nesting in KVM's module; the soft engine shows VT-x everywhere",
        ),
        (None, None) => unknown(item, facts),
    }
}

fn nested_state(facts: &HostFacts) -> Finding {
    let item = "KVM saves nested state";
    match (facts.kvm.nested_state, facts.kvm.api_version) {
        (true, _) => yes(item, "KVM_CAP_NESTED_STATE"),
        (false, Some(_)) => no(
            item,
            "no KVM_CAP_NESTED_STATE",
            "use Linux 4.20 or later on a processor with VT-x or AMD-V; the soft engine saves it",
        ),
        (false, None) => unknown(item, facts),
    }
}

fn lockdown(facts: &HostFacts) -> Finding {
    let item = "kernel lockdown";
    match facts.lockdown.as_deref() {
        None => note(item, "this kernel has none"),
        Some("none") => note(item, "off"),
        Some(mode) => note(
            item,
            format!("{mode}; unsigned modules do not load, nestling needs none"),
        ),
    }
}

fn seccomp(facts: &HostFacts) -> Finding {
    let item = "seccomp";
    match &facts.confinement.no_seccomp {
        None => yes(item, "a running VM keeps the system calls it needs"),
        Some(why) => no(
            item,
            why,
            "use a kernel of Linux 4.14 or later with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn landlock(facts: &HostFacts) -> Finding {
    let item = "Landlock";
    match &facts.confinement.no_landlock {
        None => yes(item, "a running VM keeps the files that are open"),
        Some(why) => no(
            item,
            why,
            "use Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK and `landlock` in its lsm= parameter",
        ),
    }
}

fn memory(facts: &HostFacts) -> Finding {
    let item = "memory";
    let mib = |kib: u64| kib / 1024;
    match (facts.memory.available_kib, facts.memory.total_kib) {
        (Some(available), Some(total)) => {
            let found = format!("{} MiB of {} MiB available", mib(available), mib(total));
            if available >= WANTED_MEMORY_KIB {
                yes(item, found)
            } else {
                no(
                    item,
                    found,
                    format!(
                        "free some: the demo takes up to {} MiB; or give it less with --memory",
                        mib(WANTED_MEMORY_KIB)
                    ),
                )
            }
        }
        _ => note(item, "not known"),
    }
}

fn apt(facts: &HostFacts) -> Finding {
    let item = "apt";
    if facts.apt {
        yes(item, "there, it fetches the demo's kernel without root")
    } else {
        no(
            item,
            "not there",
            "give the demo --kernel, --modules and --busybox",
        )
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::doctor::facts::{ConfinementFacts, MemoryFacts, ProcessorFacts};
    use crate::engine::tests::{good, missing, module};
    use crate::vm::Engine;

    /// A host on which all is well.
    pub fn fine_host() -> HostFacts {
        HostFacts {
            processor: ProcessorFacts {
                vendor: "GenuineIntel".into(),
                model: "Made Up CPU 3000".into(),
                vmx: true,
                svm: false,
            },
            cpus: 8,
            kernel: "6.1.0-made-up".into(),
            hypervisor: None,
            kvm: good(),
            lockdown: Some("none".into()),
            confinement: ConfinementFacts::default(),
            memory: MemoryFacts {
                total_kib: Some(16 << 20),
                available_kib: Some(12 << 20),
            },
            apt: true,
        }
    }

    /// A small VM without any of it.
    pub fn poor_host() -> HostFacts {
        HostFacts {
            processor: ProcessorFacts {
                vendor: "AuthenticAMD".into(),
                model: "Made Up CPU 10".into(),
                vmx: false,
                svm: false,
            },
            cpus: 1,
            hypervisor: Some("KVMKVMKVM".into()),
            kvm: missing(),
            lockdown: None,
            confinement: ConfinementFacts {
                no_seccomp: Some("this kernel does not say that it has seccomp filters".into()),
                no_landlock: Some("this kernel has no Landlock".into()),
            },
            memory: MemoryFacts {
                total_kib: Some(1 << 20),
                available_kib: Some(1 << 19),
            },
            apt: false,
            ..fine_host()
        }
    }

    /// A host whose KVM opens for its group only.
    pub fn closed_host() -> HostFacts {
        HostFacts {
            kvm: engine::KvmFacts {
                device: KvmDevice::Closed {
                    why: "Permission denied".into(),
                    permission: true,
                    group: "kvm".into(),
                    group_may_open: true,
                },
                api_version: None,
                nested_state: false,
                instructions_per_second: None,
                hardware_speed: None,
                modules: vec![module("kvm_intel", false)],
                virtualization: None,
                ..good()
            },
            lockdown: Some("integrity".into()),
            ..fine_host()
        }
    }

    /// A host whose KVM opens and emulates.
    pub fn emulating_host() -> HostFacts {
        let mut facts = poor_host();
        facts.kvm.device = KvmDevice::Open;
        facts.kvm.api_version = Some(12);
        facts.kvm.instructions_per_second = Some(1.5e6);
        facts.kvm.hardware_speed = Some(false);
        facts.kvm.modules = vec![engine::KvmModule {
            name: "kvm_pvm".into(),
            nested: None,
        }];
        facts
    }

    #[test]
    fn every_no_says_what_to_do() {
        for facts in [fine_host(), poor_host(), closed_host(), emulating_host()] {
            let diagnosis = judge(&facts);
            for finding in diagnosis.findings {
                assert_eq!(
                    finding.status == Status::No,
                    finding.advice.is_some(),
                    "{finding:?}"
                );
            }
        }
    }

    #[test]
    fn a_fine_host_has_nothing_to_do() {
        let diagnosis = judge(&fine_host());
        assert!(diagnosis.findings.iter().all(|f| f.status != Status::No));
        assert_eq!(diagnosis.engine.engine, Engine::Kvm);
    }

    #[test]
    fn an_emulating_kvm_is_not_taken() {
        let diagnosis = judge(&emulating_host());
        assert_eq!(diagnosis.engine.engine, Engine::Soft);
        let speed = diagnosis
            .findings
            .iter()
            .find(|f| f.item == "KVM at hardware speed");
        assert_eq!(speed.map(|f| f.status), Some(Status::No));
    }
}
