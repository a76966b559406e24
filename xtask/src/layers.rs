//! `cargo xtask layers`: who may depend on whom.
//!
//! The rules, over the table in [`crate::house`]:
//! - Every package of the workspace is in the table, in the folder the table gives it.
//! - Dependencies and build-dependencies inside the house are those the table allows.
//! - A dev-dependency may also name any room of the package's own tier or of a tier below, as long as that room
//!   is not itself built on the package: tests may look sideways and down, never up, and never in a circle.
//!   Engines and devices stand side by side, so neither tests against the other.
//! - `arch` crates use nothing from crates.io that does I/O; some external crates are reserved for some rooms.
//!   For dev-dependencies only the second of these two holds.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::Report;
use crate::house::{self, ARCH_EXTERNAL, RESERVED_EXTERNAL, ROOMS, Room, Tier, Uses};

#[cfg(test)]
mod tests;

/// A package as far as the rules look at it.
#[derive(Debug)]
struct Package {
    name: String,
    /// Folder from the workspace root, `/` between its parts.
    folder: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug)]
struct Dependency {
    /// The package's real name, also where the manifest renames it.
    name: String,
    /// Whether it is a package of this workspace: one given by a path.
    ours: bool,
    dev: bool,
}

/// Checks the workspace at `root`.
pub fn run(root: &Path) -> Result<Report> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata failed")?;
    let packages = packages(&metadata)?;
    let edges: usize = packages
        .iter()
        .map(|package| package.dependencies.len())
        .sum();
    Ok(Report {
        findings: check(&packages),
        summary: format!(
            "layers: {} packages, {edges} dependencies checked",
            packages.len()
        ),
    })
}

fn packages(metadata: &Metadata) -> Result<Vec<Package>> {
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let folder = package
                .manifest_path
                .parent()
                .and_then(|folder| folder.strip_prefix(&metadata.workspace_root).ok())
                .with_context(|| format!("{} lies outside the workspace", package.manifest_path))?;
            let dependencies = package.dependencies.iter().map(|dependency| Dependency {
                name: dependency.name.clone(),
                ours: dependency.path.is_some(),
                dev: dependency.kind == DependencyKind::Development,
            });
            Ok(Package {
                name: package.name.to_string(),
                folder: folder.to_string(),
                dependencies: dependencies.collect(),
            })
        })
        .collect()
}

/// All findings, one line each, in the order of the packages.
fn check(packages: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages {
        let mut say =
            |what: String| findings.push(format!("{}/Cargo.toml:1: {what}", package.folder));
        let Some(room) = house::room_named(&package.name) else {
            say(format!(
                "{} is not in the table of xtask/src/house.rs",
                package.name
            ));
            continue;
        };
        if package.folder != room.folder {
            say(format!(
                "{} belongs into {} (tier {})",
                room.name,
                room.folder,
                room.tier.folder()
            ));
        }
        for dependency in &package.dependencies {
            let refusal = if dependency.ours || house::room_named(&dependency.name).is_some() {
                refuse_ours(room, dependency)
            } else {
                refuse_external(room, dependency)
            };
            if let Some(what) = refusal {
                say(what);
            }
        }
    }
    findings
}

fn refuse_ours(room: &Room, dependency: &Dependency) -> Option<String> {
    let name = &dependency.name;
    let Some(used) = house::room_named(name) else {
        return Some(format!(
            "{} uses {name}, which is not in the table of xtask/src/house.rs",
            room.name
        ));
    };
    if !dependency.ours {
        return Some(format!(
            "{} takes {name} from elsewhere, though the house has it",
            room.name
        ));
    }
    if may_use(room, used) || dependency.dev && may_test_with(room, used) {
        return None;
    }
    let allowed = match room.uses {
        Uses::Only([]) => "nothing of ours".to_string(),
        Uses::Only(uses) => uses.join(", "),
        Uses::Anything => unreachable!("a room that may use anything was refused {name}"),
    };
    let kind = if dependency.dev { "tests with" } else { "uses" };
    Some(format!("{} {kind} {name}; it may use {allowed}", room.name))
}

fn refuse_external(room: &Room, dependency: &Dependency) -> Option<String> {
    let name = dependency.name.as_str();
    if let Some(reserved) = RESERVED_EXTERNAL
        .iter()
        .find(|reserved| reserved.name == name)
        && !reserved.rooms.contains(&room.name)
    {
        let rooms = reserved.rooms.join(", ");
        return Some(format!(
            "{} uses {name}, reserved for {rooms}: {}",
            room.name, reserved.why
        ));
    }
    if room.tier == Tier::Arch && !dependency.dev && !ARCH_EXTERNAL.contains(&name) {
        let allowed = ARCH_EXTERNAL.join(", ");
        return Some(format!(
            "{} uses {name}; from crates.io an arch crate may use {allowed}",
            room.name
        ));
    }
    None
}

fn may_use(room: &Room, used: &Room) -> bool {
    match room.uses {
        Uses::Only(uses) => uses.contains(&used.name),
        Uses::Anything => true,
    }
}

fn may_test_with(room: &Room, used: &Room) -> bool {
    let in_reach = used.tier == room.tier || room.tier.is_above(used.tier);
    room.tier != Tier::Xtask && used.tier != Tier::Xtask && in_reach && !is_built_on(used, room)
}

/// Whether the table lets `upper` depend on `lower`, directly or through other rooms.
fn is_built_on(upper: &Room, lower: &Room) -> bool {
    if upper.name == lower.name {
        return true;
    }
    match upper.uses {
        Uses::Anything => true,
        Uses::Only(uses) => ROOMS
            .iter()
            .filter(|room| uses.contains(&room.name))
            .any(|room| is_built_on(room, lower)),
    }
}
