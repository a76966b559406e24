//! What this host's `/dev/kvm` is worth, for `nestling doctor` and the choice of engine.
//!
//! A probe never fails and never hangs: what cannot be found out is absent from the answer, and the measurement
//! has a deadline.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};

use crate::cpuid::HostCpuid;
use crate::speed::{self, Speed};

const DEVICE: &str = "/dev/kvm";
/// How long the measurement may take before it is given up; it needs about a tenth of a second.
const DEADLINE: Duration = Duration::from_secs(2);
/// A guest at this share of native speed, or above, runs on hardware. Emulation is below a hundredth, hardware
/// above nine tenths.
const HARDWARE_SHARE: f64 = 0.25;

/// State of the device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// It can be opened.
    Present,
    /// There is none.
    Absent,
    /// It is there, but not for this user.
    PermissionDenied {
        /// The group that owns the node, when the node is open to its group.
        group: Option<String>,
    },
    /// Another hypervisor holds the processor's extension.
    Busy,
    /// The node is there, but no module answers.
    NoDriver,
    /// Something else, as the system says it.
    Other(String),
}

/// A KVM vendor module that is loaded (or built in) and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmModule {
    /// `kvm_intel`, `kvm_amd`, or another.
    pub name: String,
    /// Parameter `nested`.
    pub nested: Option<bool>,
    /// Parameter `unrestricted_guest` (kvm_intel).
    pub unrestricted_guest: Option<bool>,
    /// Parameter `ept` (kvm_intel) or `npt` (kvm_amd).
    pub two_dimensional_paging: Option<bool>,
}

/// What was found out.
#[derive(Clone, Debug, PartialEq)]
pub struct KvmProbe {
    /// `/dev/kvm` itself.
    pub node: Node,
    /// KVM_GET_API_VERSION; 12 on every supported kernel.
    pub api_version: Option<i32>,
    /// KVM_CAP_NESTED_STATE: nested guests can be saved and restored.
    pub nested_state: bool,
    /// Most vCPUs in a VM; 0 when unknown.
    pub max_vcpus: u32,
    /// Guests can be shown VT-x.
    pub guest_vmx: bool,
    /// Guests can be shown AMD-V.
    pub guest_svm: bool,
    /// Vendor modules.
    pub modules: Vec<KvmModule>,
    /// Speed of a short loop in a guest's ring 0, 64-bit mode, in instructions a second.
    pub guest_instructions_per_s: Option<f64>,
    /// Speed of the same loop in this process.
    pub native_instructions_per_s: Option<f64>,
    /// Why there is no measurement.
    pub measurement_failure: Option<String>,
}

impl KvmProbe {
    /// Whether guests run at the speed of the hardware; `None` when it could not be measured.
    #[must_use]
    pub fn hardware_speed(&self) -> Option<bool> {
        let guest = self.guest_instructions_per_s?;
        let native = self.native_instructions_per_s?;
        Some(guest >= native * HARDWARE_SHARE)
    }
}

/// Looks at the host.
#[must_use]
pub fn probe() -> KvmProbe {
    let mut p = KvmProbe {
        node: Node::Absent,
        api_version: None,
        nested_state: false,
        max_vcpus: 0,
        guest_vmx: false,
        guest_svm: false,
        modules: modules(Path::new("/sys/module")),
        guest_instructions_per_s: None,
        native_instructions_per_s: None,
        measurement_failure: None,
    };
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => {
            p.node = refused(e.errno());
            return p;
        }
    };
    p.node = Node::Present;
    p.api_version = Some(kvm.get_api_version());
    p.nested_state = kvm.check_extension_int(Cap::NestedState) > 0;
    p.max_vcpus = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
    if let Ok(supported) = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES) {
        let cpuid = HostCpuid::new(&supported);
        p.guest_vmx = cpuid.has_vmx();
        p.guest_svm = cpuid.has_svm();
    }
    match measure() {
        Ok(speed) => {
            p.guest_instructions_per_s = Some(speed.guest_per_s);
            p.native_instructions_per_s = Some(speed.native_per_s);
        }
        Err(why) => p.measurement_failure = Some(why),
    }
    p
}

/// What a refusal to open the node means.
fn refused(errno: i32) -> Node {
    match errno {
        libc::ENOENT => Node::Absent,
        libc::EACCES | libc::EPERM => Node::PermissionDenied {
            group: group_of(Path::new(DEVICE)),
        },
        libc::EBUSY => Node::Busy,
        libc::ENXIO | libc::ENODEV => Node::NoDriver,
        _ => Node::Other(std::io::Error::from_raw_os_error(errno).to_string()),
    }
}

/// The group that may read and write a node.
fn group_of(node: &Path) -> Option<String> {
    let meta = fs::metadata(node).ok()?;
    if meta.mode() & 0o060 != 0o060 {
        return None;
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    Some(group_name(&groups, meta.gid()).unwrap_or_else(|| meta.gid().to_string()))
}

/// The name of a group in the text of `/etc/group` (name:password:gid:members).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id = fields.nth(1)?.parse::<u32>().ok()?;
        (id == gid).then(|| name.to_owned())
    })
}

/// Vendor modules under `root`: every `kvm_*`.
fn modules(root: &Path) -> Vec<KvmModule> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"))
        .map(|name| {
            let parameter = |what: &str| {
                let path = root.join(&name).join("parameters").join(what);
                truth(fs::read_to_string(path).ok()?.trim())
            };
            KvmModule {
                nested: parameter("nested"),
                unrestricted_guest: parameter("unrestricted_guest"),
                two_dimensional_paging: parameter("ept").or_else(|| parameter("npt")),
                name: name.clone(),
            }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// A module parameter of type bool or int.
fn truth(text: &str) -> Option<bool> {
    match text {
        "Y" | "y" => Some(true),
        "N" | "n" => Some(false),
        number => number.parse::<i64>().ok().map(|n| n != 0),
    }
}

/// Measures on a thread of its own, which is left behind should it never answer.
fn measure() -> Result<Speed, String> {
    let (send, receive) = mpsc::channel();
    std::thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || {
            // The receiver may have given up; then no one is left to tell.
            let _ = send.send(speed::measure().map_err(|e| e.to_string()));
        })
        .map_err(|e| format!("cannot start a thread: {e}"))?;
    receive.recv_timeout(DEADLINE).unwrap_or_else(|_| {
        Err(format!(
            "a small guest did not finish within {} seconds",
            DEADLINE.as_secs()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(refused(libc::ENOENT), Node::Absent);
        assert_eq!(refused(libc::EBUSY), Node::Busy);
        assert_eq!(refused(libc::ENODEV), Node::NoDriver);
        assert!(matches!(
            refused(libc::EACCES),
            Node::PermissionDenied { .. }
        ));
        assert!(matches!(refused(libc::EIO), Node::Other(_)));
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nbroken\nkvm:x:104:user\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 5), None);
    }

    #[test]
    fn module_parameters_are_read_in_both_spellings() {
        let dir = std::env::temp_dir().join(format!("kvm-probe-{}", std::process::id()));
        let parameters = dir.join("kvm_intel/parameters");
        fs::create_dir_all(&parameters).expect("a directory in the temporary one");
        fs::write(parameters.join("nested"), "Y\n").expect("a file");
        fs::write(parameters.join("ept"), "0\n").expect("a file");
        fs::create_dir_all(dir.join("kvm")).expect("a directory");
        let found = modules(&dir);
        fs::remove_dir_all(&dir).expect("what was made can be removed");
        assert_eq!(
            found,
            [KvmModule {
                name: "kvm_intel".into(),
                nested: Some(true),
                unrestricted_guest: None,
                two_dimensional_paging: Some(false),
            }]
        );
        assert!(modules(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn a_probe_ends_and_says_why_it_has_no_measurement() {
        let p = probe();
        eprintln!("{p:#?}\nhardware speed: {:?}", p.hardware_speed());
        let measured = p.guest_instructions_per_s.is_some();
        let opened = p.node == Node::Present;
        assert_eq!(measured, opened && p.measurement_failure.is_none());
        assert_eq!(p.hardware_speed().is_some(), measured);
    }
}
