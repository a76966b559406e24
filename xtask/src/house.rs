//! The plan of the house as data: every crate, where it lives, what it may use, whether it may be unsafe.
//!
//! This table is the one place for these facts. `layers` holds `cargo metadata` against it, `tidy` asks it
//! where `unsafe` is allowed. `docs/architecture.md` explains it in words.

/// A tier of the house, which is also the first folder of the path of its crates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Facts about the modelled machine: no behaviour, no I/O.
    Arch,
    /// Ways to run guest code; none knows a device.
    Engines,
    /// What the guest sees; none knows an engine.
    Devices,
    /// Where engines and devices meet.
    Vmm,
    /// The programs.
    Host,
    /// Test suites over everything.
    Testing,
    /// `cargo xtask`.
    Xtask,
}

impl Tier {
    /// The tier's folder.
    pub fn folder(self) -> &'static str {
        match self {
            Tier::Arch => "arch",
            Tier::Engines => "engines",
            Tier::Devices => "devices",
            Tier::Vmm => "vmm",
            Tier::Host => "host",
            Tier::Testing => "testing",
            Tier::Xtask => "xtask",
        }
    }

    /// Whether `self` stands on `other`. Engines and devices stand side by side, neither on the other.
    pub fn is_above(self, other: Tier) -> bool {
        self.height() > other.height()
    }

    fn height(self) -> u8 {
        match self {
            Tier::Arch => 0,
            Tier::Engines | Tier::Devices => 1,
            Tier::Vmm => 2,
            Tier::Host => 3,
            Tier::Testing => 4,
            // Uses nothing of ours, and nothing uses it.
            Tier::Xtask => 0,
        }
    }
}

/// The crates of ours a crate may name in its dependencies.
#[derive(Clone, Copy, Debug)]
pub enum Uses {
    /// Exactly these.
    Only(&'static [&'static str]),
    /// Any crate of the house.
    Anything,
}

/// One crate of the house.
#[derive(Debug)]
pub struct Room {
    /// Package name.
    pub name: &'static str,
    /// Folder, from the workspace root.
    pub folder: &'static str,
    /// Tier; `folder` starts with its name.
    pub tier: Tier,
    /// Allowed dependencies inside the house.
    pub uses: Uses,
    /// Whether this crate is an unsafe border.
    pub unsafe_border: bool,
}

const fn room(name: &'static str, folder: &'static str, tier: Tier, uses: Uses) -> Room {
    Room {
        name,
        folder,
        tier,
        uses,
        unsafe_border: false,
    }
}

const fn border(name: &'static str, folder: &'static str, tier: Tier, uses: Uses) -> Room {
    Room {
        name,
        folder,
        tier,
        uses,
        unsafe_border: true,
    }
}

/// Every crate the workspace may hold. A crate that is not here is an error of `layers`.
pub const ROOMS: &[Room] = &[
    room("x86defs", "arch/x86defs", Tier::Arch, Uses::Only(&[])),
    border("guestmem", "arch/guestmem", Tier::Arch, Uses::Only(&[])),
    room(
        "vcpu",
        "engines/vcpu",
        Tier::Engines,
        Uses::Only(&["x86defs", "guestmem"]),
    ),
    border(
        "hostexec",
        "engines/hostexec",
        Tier::Engines,
        Uses::Only(&[]),
    ),
    room(
        "softcpu",
        "engines/softcpu",
        Tier::Engines,
        Uses::Only(&["hostexec", "vcpu", "x86defs", "guestmem"]),
    ),
    border(
        "jit",
        "engines/jit",
        Tier::Engines,
        Uses::Only(&["softcpu", "hostexec", "vcpu", "x86defs", "guestmem"]),
    ),
    border(
        "kvm",
        "engines/kvm",
        Tier::Engines,
        Uses::Only(&["vcpu", "x86defs", "guestmem"]),
    ),
    room(
        "bus",
        "devices/bus",
        Tier::Devices,
        Uses::Only(&["guestmem"]),
    ),
    room(
        "chipset",
        "devices/chipset",
        Tier::Devices,
        Uses::Only(&["bus", "x86defs", "guestmem"]),
    ),
    room(
        "pci",
        "devices/pci",
        Tier::Devices,
        Uses::Only(&["bus", "x86defs", "guestmem"]),
    ),
    room(
        "virtio",
        "devices/virtio",
        Tier::Devices,
        Uses::Only(&["bus", "pci", "guestmem"]),
    ),
    room(
        "storage",
        "devices/storage",
        Tier::Devices,
        Uses::Only(&["bus", "pci", "guestmem"]),
    ),
    room(
        "display",
        "devices/display",
        Tier::Devices,
        Uses::Only(&["bus", "pci", "guestmem"]),
    ),
    room(
        "machine",
        "vmm/machine",
        Tier::Vmm,
        Uses::Only(&[
            "vcpu", "softcpu", "jit", "kvm", "bus", "chipset", "pci", "virtio", "storage",
            "display", "x86defs", "guestmem",
        ]),
    ),
    room(
        "lifecycle",
        "vmm/lifecycle",
        Tier::Vmm,
        // The traits of the two seams travel through `machine`'s signatures; the engines and chips do not.
        Uses::Only(&["machine", "vcpu", "bus"]),
    ),
    room(
        "nestling",
        "host/cli",
        Tier::Host,
        Uses::Only(&["lifecycle", "machine", "vcpu", "kvm"]),
    ),
    // A border because its oracle is the host's processor, which it gives the very bytes of each case.
    border(
        "conformance",
        "testing/conformance",
        Tier::Testing,
        Uses::Anything,
    ),
    room("e2e", "testing/e2e", Tier::Testing, Uses::Anything),
    room("fuzzing", "testing/fuzzing", Tier::Testing, Uses::Anything),
    // A border because it measures forks, fresh mappings, changing code and single instructions; it runs inside guests
    // and uses nothing of ours.
    border(
        "guestbench",
        "testing/guestbench",
        Tier::Testing,
        Uses::Only(&[]),
    ),
    room("xtask", "xtask", Tier::Xtask, Uses::Only(&[])),
];

/// Folders outside the workspace whose programs run on bare metal, where `unsafe` is the normal case. Reasons
/// are asked for there as well.
pub const BARE_METAL: &[&str] = &["guests"];

/// What an `arch` crate may use from crates.io: nothing that does I/O or starts threads.
pub const ARCH_EXTERNAL: &[&str] = &["bitflags", "libc", "thiserror"];

/// Crates from crates.io that only some rooms may use, and why.
pub const RESERVED_EXTERNAL: &[Reserved] = &[
    Reserved {
        name: "anyhow",
        rooms: &["nestling", "xtask", "e2e"],
        why: "libraries name their errors",
    },
    Reserved {
        name: "kvm-ioctls",
        rooms: &["kvm"],
        why: "one engine speaks to KVM",
    },
    Reserved {
        name: "kvm-bindings",
        rooms: &["kvm"],
        why: "one engine speaks to KVM",
    },
];

/// A crate from crates.io reserved for some rooms.
#[derive(Debug)]
pub struct Reserved {
    /// Its name on crates.io.
    pub name: &'static str,
    /// Who may use it, also as a dev-dependency.
    pub rooms: &'static [&'static str],
    /// The reason, for the message.
    pub why: &'static str,
}

/// The room of that package name.
pub fn room_named(name: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.name == name)
}

/// The room a file belongs to, by its path from the workspace root.
pub fn room_of(path: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| is_under(path, room.folder))
}

/// Whether `unsafe` may be written in the file at `path`.
pub fn may_be_unsafe(path: &str) -> bool {
    room_of(path).is_some_and(|room| room.unsafe_border)
        || BARE_METAL.iter().any(|folder| is_under(path, folder))
}

fn is_under(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_room_lives_in_the_folder_of_its_tier() {
        for room in ROOMS {
            assert_eq!(
                room.folder.split('/').next(),
                Some(room.tier.folder()),
                "{}",
                room.name
            );
        }
    }

    #[test]
    fn the_table_names_only_rooms_and_none_twice() {
        for (i, room) in ROOMS.iter().enumerate() {
            assert!(
                ROOMS[i + 1..]
                    .iter()
                    .all(|other| other.name != room.name && other.folder != room.folder)
            );
            if let Uses::Only(uses) = room.uses {
                for used in uses {
                    assert!(room_named(used).is_some(), "{} uses {used}", room.name);
                }
            }
        }
        for reserved in RESERVED_EXTERNAL {
            assert!(
                reserved.rooms.iter().all(|name| room_named(name).is_some()),
                "{}",
                reserved.name
            );
        }
    }

    #[test]
    fn the_table_keeps_the_rules_between_tiers() {
        for room in ROOMS {
            let Uses::Only(uses) = room.uses else {
                continue;
            };
            for used in uses.iter().map(|name| room_named(name).unwrap()) {
                assert!(
                    !used.tier.is_above(room.tier),
                    "{} reaches up to {}",
                    room.name,
                    used.name
                );
                assert!(
                    room.tier != Tier::Devices || used.tier != Tier::Engines,
                    "{} is a device and knows an engine",
                    room.name
                );
                assert!(
                    room.tier != Tier::Engines || used.tier != Tier::Devices,
                    "{} is an engine and knows a device",
                    room.name
                );
            }
        }
    }

    #[test]
    fn unsafe_is_allowed_in_the_borders_and_nowhere_else() {
        let borders: Vec<_> = ROOMS
            .iter()
            .filter(|room| room.unsafe_border)
            .map(|room| room.name)
            .collect();
        assert_eq!(
            borders,
            [
                "guestmem",
                "hostexec",
                "jit",
                "kvm",
                "conformance",
                "guestbench"
            ]
        );
        assert!(may_be_unsafe("arch/guestmem/src/lib.rs"));
        assert!(may_be_unsafe("guests/boot/src/main.rs"));
        assert!(!may_be_unsafe("engines/softcpu/src/lib.rs"));
        assert!(
            !may_be_unsafe("engines/kvmtool/src/lib.rs"),
            "a longer name is another folder"
        );
        assert!(!may_be_unsafe("build.rs"));
    }
}
