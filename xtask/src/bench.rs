//! `cargo xtask bench`: how fast the software engine is, beside QEMU's on the same images and beside the host.
//!
//! Nothing here passes or fails by a time: figures are printed, for a person to compare within one run on one
//! machine. What fails it is a run that goes wrong, or a part whose result is not everywhere the same.
//!
//! 1. Build `nestling` and `guestbench`; fetch Debian's programs for the benchmark; let `nestling images` make the
//!    images of each scene.
//! 2. As often as asked for: the benchmark on the host, then every scene under our monitor and under the peer's, one
//!    directly after the other, each time the other one first. So whatever else the machine does meets both.
//! 3. Print medians, and ratios run by run.
//!
//! Our monitor is `nestling run --engine soft` (VT-x), the peer `qemu-system-x86_64 -accel tcg -cpu max` (AMD-V), if
//! it is installed. What runs the inner levels is the same program under both, with the vendor's KVM module.

mod catalogue;
mod console;
mod figures;
mod guest;
mod options;
mod packages;
mod process;
mod programs;
mod report;
mod rows;
mod statistics;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use catalogue::Catalogue;
use figures::Machine;
use guest::Monitor;
use options::{Format, Options, Scene};
use programs::{Images, Kind, Programs};
use report::Circumstances;
use rows::Measured;

pub use options::USAGE;

/// Memory of level 1 where there are two levels, and where there are three.
const MEMORY_MIB: u64 = 1024;
const DEEP_MEMORY_MIB: u64 = 2048;

/// Measures and prints.
pub fn run(root: &Path, args: &[&str]) -> Result<()> {
    let options = Options::parse(args)?;
    say("building");
    let mut programs = Programs::build(root)?;
    let mut catalogue = programs.catalogue()?;
    if !options.parts.is_empty() {
        catalogue = catalogue.chosen(&options.parts).map_err(|name| {
            let names: Vec<_> = catalogue.iter().map(|part| part.name.as_str()).collect();
            anyhow!("{name} is no part or group; there are {}", names.join(", "))
        })?;
    }
    if catalogue.group("program").next().is_some() {
        match packages::folder(&programs.nestling, &programs.folder) {
            Ok(files) => programs.files = Some(files),
            Err(error) => {
                say(&format!(
                    "the parts xz, zstd, tcc and sqlite are left out: Debian 12's packages cannot be had ({error:#})"
                ));
                catalogue = catalogue.filtered(|part| part.group != "program");
            }
        }
    }
    let inner = options.inner_monitor();
    let mut circumstances = Circumstances::now(options.runs, options.quick, inner);
    let measured = Bench::new(&options, &programs, catalogue)?.measure()?;
    circumstances.end();
    let trouble = trouble(&measured);
    if let Some(file) = &options.json {
        let data = report::data(&circumstances, &measured, &trouble);
        std::fs::write(file, serde_json::to_string_pretty(&data)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    match options.format {
        Format::Text => print!("{}", report::text(&circumstances, &measured, &trouble)),
        Format::Json => {
            let data = report::data(&circumstances, &measured, &trouble);
            println!("{}", serde_json::to_string_pretty(&data)?);
        }
    }
    match trouble.is_empty() {
        true => Ok(()),
        false => bail!("a run went wrong; the result says which"),
    }
}

/// What is being done, for the one who waits.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

fn trouble(measured: &Measured) -> Vec<String> {
    let machines = [&measured.native, &measured.ours].into_iter();
    let machines: Vec<&Machine> = machines.chain(&measured.peer).collect();
    let mut trouble: Vec<String> = Vec::new();
    for machine in &machines {
        trouble.extend(machine.trouble.iter().cloned());
    }
    trouble.extend(figures::different_sums(&machines));
    trouble
}

/// A monitor, what was found of it, and the images of all scenes.
struct Side {
    monitor: Monitor,
    machine: Machine,
    images: Vec<(Scene, Images)>,
}

impl Side {
    fn new(monitor: Monitor, programs: &Programs, kinds: &[(Scene, Kind)]) -> Result<Self> {
        let name = monitor.name();
        say(&format!("images for {name}"));
        let images = kinds
            .iter()
            .map(|(scene, kind)| Ok((*scene, programs.images(monitor.virt(), kind)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            monitor,
            machine: Machine::new(name),
            images,
        })
    }
}

struct Bench<'a> {
    options: &'a Options,
    programs: &'a Programs,
    catalogue: Catalogue,
    native: Machine,
    ours: Side,
    peer: Option<Side>,
    scenes: Vec<Scene>,
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options, programs: &'a Programs, catalogue: Catalogue) -> Result<Self> {
        let kinds = kinds(options, &catalogue);
        if kinds.is_empty() && !options.native {
            bail!("nothing is left to measure");
        }
        let peer = match options.peer {
            true => peer(),
            false => None,
        };
        Ok(Self {
            ours: Side::new(Monitor::Nestling, programs, &kinds)?,
            peer: peer
                .map(|peer| Side::new(peer, programs, &kinds))
                .transpose()?,
            scenes: kinds.into_iter().map(|(scene, _)| scene).collect(),
            native: Machine::new("host".into()),
            options,
            programs,
            catalogue,
        })
    }

    fn measure(mut self) -> Result<Measured> {
        for run in 0..self.options.runs {
            self.natively(run)?;
            for index in 0..self.scenes.len() {
                let mut sides: Vec<&mut Side> = vec![&mut self.ours];
                sides.extend(self.peer.as_mut());
                if run % 2 == 1 {
                    sides.reverse();
                }
                for side in sides {
                    scene(self.options, self.programs, run, side, index)?;
                }
            }
        }
        Ok(Measured {
            catalogue: self.catalogue,
            runs: self.options.runs,
            native: self.native,
            ours: self.ours.machine,
            peer: self.peer.map(|side| side.machine),
        })
    }

    fn natively(&mut self, run: usize) -> Result<()> {
        let parts = self.catalogue.filtered(catalogue::PartInfo::is_native);
        if let Some(only) = parts.names().filter(|_| self.options.native) {
            say(&format!(
                "run {} of {}: the host",
                run + 1,
                self.options.runs
            ));
            let text = self.programs.natively(&only, self.options.quick)?;
            self.native.take_native(run, &text);
        }
        Ok(())
    }
}

/// One scene on one side.
fn scene(
    options: &Options,
    programs: &Programs,
    run: usize,
    side: &mut Side,
    index: usize,
) -> Result<()> {
    let (scene, images) = &side.images[index];
    let (what, name) = (scene.words(), side.monitor.name());
    say(&format!(
        "run {} of {}: {what} in {name}",
        run + 1,
        options.runs
    ));
    let found = guest::run(&side.monitor, programs, images, options.timeout)?;
    side.machine
        .take(run, what, images.depth, images.measures, &found);
    Ok(())
}

fn peer() -> Option<Monitor> {
    let found = Monitor::qemu();
    if found.is_none() {
        say(
            "qemu-system-x86_64 is not installed, so there is no peer; Debian and Ubuntu have it in the package \
             qemu-system-x86",
        );
    }
    found
}

/// The images of the scenes that are asked for and for which there are parts.
fn kinds(options: &Options, catalogue: &Catalogue) -> Vec<(Scene, Kind)> {
    let quick = if options.quick { " --quick" } else { "" };
    let only = |parts: Catalogue| parts.names().map(|names| format!("--only {names}{quick}"));
    let mut kinds = Vec::new();
    for scene in Scene::ALL {
        if !options.scenes.contains(&scene) {
            continue;
        }
        let plain = Kind {
            name: scene.name(),
            depth: 2,
            cpus: 1,
            memory_mib: MEMORY_MIB,
            vmm: options.vmm,
            bench: None,
        };
        // Three levels always have QEMU inside: our KVM engine cannot show AMD-V.
        let deep = Kind {
            depth: 3,
            memory_mib: DEEP_MEMORY_MIB,
            vmm: "qemu",
            ..plain.clone()
        };
        let measuring = |kind: Kind, parts: Catalogue| {
            Some(Kind {
                bench: Some(only(parts)?),
                ..kind
            })
        };
        let kind = match scene {
            Scene::Boot => Some(plain),
            Scene::Deep => Some(deep),
            Scene::Parts => {
                let depth = options.levels;
                let parts = catalogue.filtered(|part| part.group != "processors");
                measuring(Kind { depth, ..plain }, parts)
            }
            Scene::Processors => {
                let parts = catalogue.filtered(|part| part.group == "processors");
                let (depth, cpus) = (1, 2);
                measuring(
                    Kind {
                        depth,
                        cpus,
                        ..plain
                    },
                    parts,
                )
            }
            Scene::Exits => measuring(deep, catalogue.filtered(|part| part.group == "exit")),
        };
        kinds.extend(kind.map(|kind| (scene, kind)));
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::catalogue::tests::sample;
    use super::*;

    #[test]
    fn every_scene_gets_its_images() {
        let options = Options::parse(&["--quick", "--levels", "1"]).expect("good");
        let kinds = kinds(&options, &sample());
        let found: Vec<_> = kinds
            .iter()
            .map(|(scene, kind)| (*scene, kind.depth, kind.bench.as_deref()))
            .collect();
        // The sample has no part for several processors.
        assert_eq!(
            found,
            [
                (Scene::Boot, 2, None),
                (Scene::Parts, 1, Some("--only crc,sort,cpuid --quick")),
                (Scene::Deep, 3, None),
                (Scene::Exits, 3, Some("--only cpuid --quick")),
            ]
        );
    }

    #[test]
    fn what_went_wrong_is_gathered() {
        let mut measured = rows::tests::measured();
        assert!(trouble(&measured).is_empty());
        measured.ours.trouble.push("ours broke".into());
        let line = "NESTLING-BENCH 0 part crc operations=4 batches=2 total_ns=90 best_ns=40 sum=";
        measured.native.take_native(0, &format!("{line}a\n{line}b"));
        assert_eq!(
            trouble(&measured),
            ["ours broke", "crc gave different results: a, b"]
        );
    }
}
