//! The rules of `layers` on made-up workspaces: each passes what it should and refuses what it should.

use super::*;

fn package(name: &str, folder: &str, dependencies: Vec<Dependency>) -> Package {
    Package {
        name: name.into(),
        folder: folder.into(),
        dependencies,
    }
}

fn ours(name: &str) -> Dependency {
    Dependency {
        name: name.into(),
        ours: true,
        dev: false,
    }
}

fn ours_dev(name: &str) -> Dependency {
    Dependency {
        dev: true,
        ..ours(name)
    }
}

fn external(name: &str) -> Dependency {
    Dependency {
        name: name.into(),
        ours: false,
        dev: false,
    }
}

fn external_dev(name: &str) -> Dependency {
    Dependency {
        dev: true,
        ..external(name)
    }
}

/// The findings for one package in its right folder.
fn findings(name: &str, dependencies: Vec<Dependency>) -> Vec<String> {
    let folder = house::room_named(name).expect("a room of the table").folder;
    check(&[package(name, folder, dependencies)])
}

fn refused(name: &str, dependency: Dependency) -> bool {
    !findings(name, vec![dependency]).is_empty()
}

#[test]
fn a_house_as_planned_passes() {
    let packages = [
        package("x86defs", "arch/x86defs", vec![external("bitflags")]),
        package(
            "guestmem",
            "arch/guestmem",
            vec![external("libc"), external_dev("proptest")],
        ),
        package(
            "softcpu",
            "engines/softcpu",
            vec![ours("vcpu"), ours("hostexec"), external("iced-x86")],
        ),
        package(
            "machine",
            "vmm/machine",
            vec![ours("softcpu"), ours("kvm"), ours("chipset"), ours("pci")],
        ),
        package(
            "nestling",
            "host/cli",
            vec![ours("lifecycle"), ours("kvm"), external("anyhow")],
        ),
        package(
            "conformance",
            "testing/conformance",
            vec![ours("softcpu"), ours("kvm"), ours("machine")],
        ),
        package("xtask", "xtask", vec![external("anyhow"), external("syn")]),
    ];
    assert_eq!(check(&packages), Vec::<String>::new());
}

#[test]
fn an_unknown_crate_is_refused_as_package_and_as_dependency() {
    let unknown = check(&[package("gadget", "devices/gadget", vec![])]);
    assert_eq!(
        unknown,
        ["devices/gadget/Cargo.toml:1: gadget is not in the table of xtask/src/house.rs"]
    );
    assert!(refused("machine", ours("gadget")));
}

#[test]
fn a_crate_in_the_wrong_folder_is_refused() {
    let moved = check(&[package("pci", "engines/pci", vec![])]);
    assert_eq!(
        moved,
        ["engines/pci/Cargo.toml:1: pci belongs into devices/pci (tier devices)"]
    );
}

#[test]
fn arch_uses_nothing_of_ours() {
    assert!(refused("x86defs", ours("guestmem")));
    assert!(refused("guestmem", ours("x86defs")));
    assert!(refused("guestmem", ours("vcpu")));
}

#[test]
fn engines_and_devices_do_not_know_each_other() {
    assert!(refused("softcpu", ours("bus")));
    assert!(refused("kvm", ours("chipset")));
    assert!(refused("chipset", ours("vcpu")));
    assert!(refused("pci", ours("softcpu")));
    assert!(refused("bus", ours("vcpu")));
}

#[test]
fn engines_keep_to_their_own_lists() {
    assert!(!refused("softcpu", ours("hostexec")));
    assert!(refused("kvm", ours("hostexec")));
    assert!(refused("kvm", ours("softcpu")));
    assert!(refused("hostexec", ours("guestmem")));
    assert!(!refused("jit", ours("softcpu")));
    assert!(refused("softcpu", ours("jit")));
    assert!(refused("vcpu", ours("softcpu")));
}

#[test]
fn only_machine_joins_engines_and_devices() {
    assert!(!refused("machine", ours("softcpu")));
    assert!(refused("lifecycle", ours("softcpu")));
    assert!(refused("lifecycle", ours("chipset")));
    assert!(refused("nestling", ours("softcpu")));
    assert!(refused("nestling", ours("bus")));
    assert!(refused("machine", ours("lifecycle")), "never up");
}

#[test]
fn xtask_stands_outside() {
    assert!(refused("xtask", ours("x86defs")));
    assert!(refused("xtask", ours_dev("x86defs")));
    assert!(refused("nestling", ours_dev("xtask")));
}

#[test]
fn a_dev_dependency_may_look_sideways_and_down() {
    assert!(
        !refused("kvm", ours_dev("softcpu")),
        "to compare the engines"
    );
    assert!(!refused("pci", ours_dev("chipset")));
    assert!(!refused("lifecycle", ours_dev("softcpu")));
    assert!(!refused("x86defs", ours_dev("guestmem")));
}

#[test]
fn a_dev_dependency_never_looks_up_across_or_in_a_circle() {
    assert!(refused("guestmem", ours_dev("vcpu")));
    assert!(refused("softcpu", ours_dev("machine")));
    assert!(refused("softcpu", ours_dev("bus")));
    assert!(refused("chipset", ours_dev("vcpu")));
    assert!(
        refused("softcpu", ours_dev("jit")),
        "softcpu never names jit"
    );
    assert!(refused("vcpu", ours_dev("softcpu")));
    assert!(refused("bus", ours_dev("chipset")));
    assert!(refused("nestling", ours_dev("conformance")));
}

#[test]
fn arch_takes_nothing_that_does_io() {
    assert!(refused("guestmem", external("rustix")));
    assert!(refused("x86defs", external("tracing")));
    assert!(
        !refused("vcpu", external("tracing")),
        "the list is for arch only"
    );
}

#[test]
fn reserved_crates_stay_where_they_belong() {
    assert!(refused("machine", external("anyhow")));
    assert!(refused("softcpu", external_dev("anyhow")));
    assert!(!refused("nestling", external("anyhow")));
    assert!(refused("nestling", external("kvm-ioctls")));
    assert!(!refused("kvm", external("kvm-ioctls")));
}

#[test]
fn a_room_taken_from_a_registry_is_refused() {
    assert_eq!(
        findings("softcpu", vec![external("vcpu")]),
        [
            "engines/softcpu/Cargo.toml:1: softcpu takes vcpu from elsewhere, though the house has it"
        ]
    );
}

#[test]
fn the_message_says_what_is_allowed() {
    assert_eq!(
        findings("kvm", vec![ours("bus")]),
        ["engines/kvm/Cargo.toml:1: kvm uses bus; it may use vcpu, x86defs, guestmem"]
    );
    assert_eq!(
        findings("guestmem", vec![ours_dev("vcpu")]),
        ["arch/guestmem/Cargo.toml:1: guestmem tests with vcpu; it may use nothing of ours"]
    );
}

/// `cargo metadata` of a workspace of one package, with one dependency of each sort.
const METADATA: &str = r#"{
  "packages": [{
    "name": "pci", "version": "0.1.0", "id": "path+file:///w/devices/pci#0.1.0", "source": null,
    "description": null, "license": null, "license_file": null, "targets": [], "features": {},
    "manifest_path": "/w/devices/pci/Cargo.toml", "categories": [], "keywords": [], "readme": null,
    "repository": null, "homepage": null, "documentation": null, "edition": "2024", "links": null,
    "authors": [], "metadata": null, "publish": null, "default_run": null, "rust_version": null,
    "dependencies": [
      {"name": "bus", "source": null, "req": "*", "kind": null, "rename": "b", "optional": false,
       "uses_default_features": true, "features": [], "target": null, "registry": null, "path": "/w/devices/bus"},
      {"name": "proptest", "source": "registry+x", "req": "^1", "kind": "dev", "rename": null, "optional": false,
       "uses_default_features": true, "features": [], "target": null, "registry": null}
    ]
  }],
  "workspace_members": ["path+file:///w/devices/pci#0.1.0"],
  "workspace_default_members": ["path+file:///w/devices/pci#0.1.0"],
  "resolve": null, "target_directory": "/w/target", "version": 1, "workspace_root": "/w", "metadata": null
}"#;

#[test]
fn metadata_is_read_as_cargo_writes_it() {
    let metadata = MetadataCommand::parse(METADATA).expect("metadata as cargo writes it");
    let packages = packages(&metadata).expect("all packages inside the workspace");
    let [pci] = packages.as_slice() else {
        panic!("{packages:?}")
    };
    assert_eq!(
        (pci.name.as_str(), pci.folder.as_str()),
        ("pci", "devices/pci")
    );
    let dependencies: Vec<_> = pci
        .dependencies
        .iter()
        .map(|dependency| (dependency.name.as_str(), dependency.ours, dependency.dev))
        .collect();
    assert_eq!(
        dependencies,
        [("bus", true, false), ("proptest", false, true)]
    );
}
