//! What the host is, gathered in one place; what it means is judged elsewhere.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lifecycle::confine;
use serde::Serialize;

use crate::artifacts::apt::is_on_path;
use crate::engine::{HardwareVirtualization, KvmDevice, KvmFacts, KvmModule};
use crate::failure::cause;
use crate::guest_report::{field, hypervisor};

/// KVM's device.
const DEV_KVM: &str = "/dev/kvm";

/// The host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostFacts {
    /// The processor.
    pub processor: ProcessorFacts,
    /// How many processors this process may use.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The hypervisor this host runs under, from CPUID; `None` if none shows itself.
    pub hypervisor: Option<String>,
    /// KVM.
    pub kvm: KvmFacts,
    /// The kernel's lockdown mode; `None` if it has no lockdown.
    pub lockdown: Option<String>,
    /// What confines a running VM.
    pub confinement: ConfinementFacts,
    /// The memory.
    pub memory: MemoryFacts,
    /// Whether apt is there, to fetch the demo's files.
    pub apt: bool,
}

/// The processor, as Linux shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProcessorFacts {
    /// The vendor string.
    pub vendor: String,
    /// The model's name.
    pub model: String,
    /// Intel VT-x.
    pub vmx: bool,
    /// AMD-V.
    pub svm: bool,
}

/// What the kernel has to confine a process with; where something is missing, why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ConfinementFacts {
    /// Why there are no seccomp filters.
    pub no_seccomp: Option<String>,
    /// Why there is no Landlock.
    pub no_landlock: Option<String>,
}

/// The memory in KiB; `None` if Linux does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryFacts {
    /// All of it.
    pub total_kib: Option<u64>,
    /// What can be had without swapping.
    pub available_kib: Option<u64>,
}

/// Reads the first processor in the text of /proc/cpuinfo.
pub fn parse_processor(cpuinfo: &str) -> ProcessorFacts {
    let text = |key| field(cpuinfo, key).unwrap_or("unknown").to_string();
    let flags = field(cpuinfo, "flags").unwrap_or_default();
    let has = |wanted| flags.split_whitespace().any(|flag| flag == wanted);
    ProcessorFacts {
        vendor: text("vendor_id"),
        model: text("model name"),
        vmx: has("vmx"),
        svm: has("svm"),
    }
}

/// Reads the text of /proc/meminfo.
pub fn parse_memory(meminfo: &str) -> MemoryFacts {
    let kib = |key| field(meminfo, key)?.split_whitespace().next()?.parse().ok();
    MemoryFacts {
        total_kib: kib("MemTotal"),
        available_kib: kib("MemAvailable"),
    }
}

/// The chosen word of the text of /sys/kernel/security/lockdown, as `none [integrity] confidentiality`.
pub fn parse_lockdown(text: &str) -> Option<String> {
    let chosen = text.split_once('[')?.1.split_once(']')?.0;
    Some(chosen.to_string())
}

/// The name of group `gid` in the text of /etc/group, or its number.
fn group_name(groups: &str, gid: u32) -> String {
    groups
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let number: u32 = fields.nth(1)?.parse().ok()?;
            (number == gid).then(|| name.to_string())
        })
        .unwrap_or_else(|| gid.to_string())
}

fn text_of(path: &str) -> String {
    // What cannot be read is told as unknown.
    fs::read_to_string(path).unwrap_or_default()
}

/// Looks at this host.
pub fn gather() -> HostFacts {
    HostFacts {
        processor: parse_processor(&text_of("/proc/cpuinfo")),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get()),
        kernel: text_of("/proc/sys/kernel/osrelease").trim().to_string(),
        hypervisor: hypervisor(),
        kvm: kvm(),
        lockdown: parse_lockdown(&text_of("/sys/kernel/security/lockdown")),
        confinement: ConfinementFacts {
            no_seccomp: confine::calls::offered().err(),
            no_landlock: confine::files::offered().err(),
        },
        memory: parse_memory(&text_of("/proc/meminfo")),
        apt: is_on_path("apt-get") && is_on_path("apt-cache"),
    }
}

/// Looks at this host's KVM, and measures it if it opens.
pub fn kvm() -> KvmFacts {
    let device = kvm_device();
    let probe = kvm::probe();
    KvmFacts {
        hardware_speed: probe.hardware_speed(),
        device,
        api_version: probe.api_version,
        nested_state: probe.nested_state,
        instructions_per_second: probe.guest_instructions_per_s,
        trouble: probe.measurement_failure,
        modules: probe
            .modules
            .into_iter()
            .map(|module| KvmModule {
                name: module.name,
                nested: module.nested,
            })
            .collect(),
        virtualization: match (probe.guest_vmx, probe.guest_svm) {
            (true, _) => Some(HardwareVirtualization::Intel),
            (false, true) => Some(HardwareVirtualization::Amd),
            (false, false) => None,
        },
    }
}

/// Whether this host's KVM opens.
pub fn kvm_device() -> KvmDevice {
    device(Path::new(DEV_KVM))
}

fn device(path: &Path) -> KvmDevice {
    let Ok(metadata) = fs::metadata(path) else {
        return KvmDevice::Missing;
    };
    match fs::File::options().read(true).write(true).open(path) {
        Ok(_) => KvmDevice::Open,
        Err(error) => KvmDevice::Closed {
            why: cause(&error),
            permission: error.kind() == std::io::ErrorKind::PermissionDenied,
            group: group_name(&text_of("/etc/group"), metadata.gid()),
            group_may_open: metadata.mode() & 0o060 == 0o060,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_read() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Made Up CPU\n\
                    flags\t\t: fpu vmx sse2\n\nprocessor\t: 1\nvendor_id\t: Other\n";
        assert_eq!(
            parse_processor(text),
            ProcessorFacts {
                vendor: "GenuineIntel".into(),
                model: "Made Up CPU".into(),
                vmx: true,
                svm: false,
            }
        );
        assert_eq!(parse_processor("").vendor, "unknown");
    }

    #[test]
    fn the_memory_is_read() {
        let text = "MemTotal:       2048 kB\nMemFree: 5 kB\nMemAvailable:   1024 kB\n";
        let memory = parse_memory(text);
        assert_eq!(memory.total_kib, Some(2048));
        assert_eq!(memory.available_kib, Some(1024));
        assert_eq!(parse_memory("MemTotal: lots").total_kib, None);
    }

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        let text = "none [integrity] confidentiality\n";
        assert_eq!(parse_lockdown(text).as_deref(), Some("integrity"));
        assert_eq!(parse_lockdown(""), None);
    }

    #[test]
    fn groups_have_names() {
        let groups = "root:x:0:\nkvm:x:106:me,you\nbroken\n";
        assert_eq!(group_name(groups, 106), "kvm");
        assert_eq!(group_name(groups, 107), "107");
    }

    #[test]
    fn a_missing_device_is_missing() {
        assert_eq!(device(Path::new("/nonexistent/kvm")), KvmDevice::Missing);
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let facts = gather();
        assert!(facts.cpus >= 1);
        assert!(facts.memory.total_kib.is_some());
    }
}
