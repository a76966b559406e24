//! The initramfs images of a demo, one inside the other: the image of level k carries everything its guest
//! needs, the image of level k + 1 included.

pub mod cpio;
pub mod folder;
pub mod memory;
pub mod program;
pub mod script;

use std::path::Path;

use crate::artifacts::{Artifacts, GuestFile, LARGEST_FILE_BYTES};
use crate::failure::Failure;
use crate::input_file;
use script::{Inner, Steps, Vmm, path};

/// How a guest's report lines begin.
pub const REPORT_MARK: &str = "NESTLING-LEVEL";
/// How lines of a guest's kernel log begin.
pub const LOG_MARK: &str = "NESTLING-LOG";
/// The most levels a demo may have.
pub const DEEPEST: u8 = 8;

/// Which level of how many; the host is level 0 and not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// 1 for the outermost guest.
    pub number: u8,
    /// How many levels there are.
    pub depth: u8,
}

/// What the images of a demo are built from.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Kernel, modules and busybox.
    pub artifacts: &'a Artifacts,
    /// Our own program, the loaded part of it.
    pub program: &'a [u8],
    /// How many levels, at least one.
    pub depth: u8,
    /// What runs the inner levels.
    pub vmm: Vmm<'a>,
    /// Options of the vendor's KVM module.
    pub module_options: &'a str,
    /// The memory of level 1 if the user gave it.
    pub memory_bytes: Option<u64>,
    /// The processors of all levels.
    pub cpus: u8,
    /// The kernel command line of all levels.
    pub append: &'a str,
    /// What every level runs once it is up.
    pub bench: Option<Bench<'a>>,
    /// Every level prints its kernel's log before it goes down.
    pub log: bool,
}

/// A program for every level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bench<'a> {
    /// The loaded part of a static program.
    pub program: &'a [u8],
    /// Its arguments after the level: plain words.
    pub arguments: &'a str,
    /// Files it finds.
    pub files: &'a [GuestFile],
}

impl Bench<'_> {
    fn bytes(&self) -> u64 {
        let files = self.files.iter().map(|file| file.content.len());
        (self.program.len() + files.sum::<usize>()) as u64
    }
}

/// What level 1 is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// The initramfs of level 1.
    pub outermost: Vec<u8>,
    /// The memory of each level, level 1 first.
    pub memory_bytes: Vec<u64>,
}

/// Builds the images.
///
/// # Errors
/// Too little memory for the levels, or images too large for their format.
pub fn build(plan: &Plan) -> Result<Images, Failure> {
    assert!(
        (1..=DEEPEST).contains(&plan.depth),
        "the depth is checked where it is parsed"
    );
    let memory_bytes = memory_of_levels(plan)?;
    let mut next: Option<Vec<u8>> = None;
    for number in (1..=plan.depth).rev() {
        let inner_memory = memory_bytes.get(usize::from(number)).copied();
        next = Some(one(plan, number, inner_memory, next.as_deref())?);
    }
    let outermost = next.expect("there is at least one level");
    Ok(Images {
        outermost,
        memory_bytes,
    })
}

/// The sizes of the images do not depend on the memory by more than some digits in a script, so they are
/// estimated first.
fn memory_of_levels(plan: &Plan) -> Result<Vec<u64>, Failure> {
    /// Script, headers and padding of an image.
    const SMALL_PARTS: u64 = 16 * 1024;
    let bytes = |content: &[u8]| content.len() as u64;
    let base = bytes(&plan.artifacts.busybox)
        + bytes(plan.program)
        + plan.bench.map_or(0, |bench| bench.bytes())
        + SMALL_PARTS;
    let modules: u64 = plan
        .artifacts
        .modules
        .iter()
        .map(|m| bytes(&m.content))
        .sum();
    let qemu: u64 = plan.artifacts.qemu.iter().map(|f| bytes(&f.content)).sum();
    let per_hypervisor = base + bytes(&plan.artifacts.kernel) + modules + qemu;
    let sizes: Vec<u64> = (0..u64::from(plan.depth))
        .rev()
        .map(|below| base + below * per_hypervisor)
        .collect();
    let mut memory = vec![memory::outermost(plan.memory_bytes, &sizes)?];
    for &size in &sizes[..sizes.len() - 1] {
        let outer = memory[memory.len() - 1];
        memory.push(memory::inner(outer, size));
    }
    Ok(memory)
}

fn one(
    plan: &Plan,
    number: u8,
    inner_memory_bytes: Option<u64>,
    next: Option<&[u8]>,
) -> Result<Vec<u8>, Failure> {
    let level = Level {
        number,
        depth: plan.depth,
    };
    let inner = inner_memory_bytes.map(|memory_bytes| Inner {
        modules: plan
            .artifacts
            .modules
            .iter()
            .map(|module| module.name.as_str())
            .collect(),
        module_options: plan.module_options,
        memory_bytes,
        cpus: plan.cpus,
        vmm: plan.vmm,
        append: plan.append,
    });
    let steps = Steps {
        bench: plan.bench.map(|bench| bench.arguments),
        log: plan.log,
    };
    let init = script::init(level, steps, inner.as_ref());
    let mut archive = cpio::Archive::new();
    // Before all others: a file both bring is the other one's.
    for file in plan.bench.iter().flat_map(|bench| bench.files) {
        archive.file(&file.path, file.mode, &file.content);
    }
    archive.file(path::INIT, 0o755, init.as_bytes());
    archive.file(path::BUSYBOX, 0o755, &plan.artifacts.busybox);
    archive.file(path::PROGRAM, 0o755, plan.program);
    if let Some(bench) = plan.bench {
        archive.file(path::BENCH, 0o755, bench.program);
    }
    for folder in ["proc", "sys", "dev", "run"] {
        archive.directory(folder);
    }
    // The kernel opens it before /init mounts /dev (Linux admin-guide, devices.txt).
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    let names: Vec<String> = plan
        .artifacts
        .modules
        .iter()
        .map(|module| format!("{}/{}.ko", path::MODULES, module.name))
        .collect();
    if let Some(next) = next {
        archive.file(path::KERNEL, 0o644, &plan.artifacts.kernel);
        archive.file(path::NEXT, 0o644, next);
        for (name, module) in names.iter().zip(&plan.artifacts.modules) {
            archive.file(name, 0o644, &module.content);
        }
        for file in &plan.artifacts.qemu {
            archive.file(&file.path, file.mode, &file.content);
        }
    }
    archive.finish().ok_or_else(|| {
        Failure::new(
            format_args!("cannot build the image of level {number}"),
            "a file in it is larger than 4 GiB",
            "take a smaller --depth",
        )
    })
}

/// Our own program as a guest carries it.
///
/// # Errors
/// A program that cannot be read or is not static.
pub fn own_program() -> Result<Vec<u8>, Failure> {
    carried(
        Path::new("/proc/self/exe"),
        "this program",
        "build it with the project's .cargo/config.toml, which links it statically",
    )
}

/// Another program as a guest carries it.
///
/// # Errors
/// A program that cannot be read or is not static.
pub fn other_program(file: &Path) -> Result<Vec<u8>, Failure> {
    carried(
        file,
        &file.display().to_string(),
        "give a statically linked program",
    )
}

fn carried(file: &Path, name: &str, advice: &str) -> Result<Vec<u8>, Failure> {
    let content = input_file::read_bounded(file, LARGEST_FILE_BYTES)?;
    program::loaded_part(&content)
        .map_err(|why| Failure::new(format_args!("cannot put {name} into a guest"), why, advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::kernel_image;
    use crate::artifacts::modules::tests::made_up;

    fn artifacts() -> Artifacts {
        Artifacts {
            kernel: kernel_image::tests::made_up("6.1.0-made-up"),
            release: Some("6.1.0-made-up".into()),
            modules: vec![made_up("kvm", ""), made_up("kvm-intel", "kvm")],
            busybox: program::tests::made_up(1),
            qemu: Vec::new(),
        }
    }

    fn images(depth: u8) -> Images {
        images_with(depth, None)
    }

    fn images_with(depth: u8, bench: Option<Bench>) -> Images {
        let program = program::tests::made_up(1);
        build(&Plan {
            artifacts: &artifacts(),
            program: &program,
            depth,
            vmm: Vmm::Nestling { nested: "intel" },
            module_options: "",
            cpus: 1,
            memory_bytes: None,
            append: "quiet",
            bench,
            log: false,
        })
        .expect("built")
    }

    fn paths(entries: &[cpio::tests::Read]) -> Vec<&str> {
        entries.iter().map(|entry| entry.path.as_str()).collect()
    }

    #[test]
    fn images_are_nested_to_the_depth() {
        let images = images(3);
        assert_eq!(images.memory_bytes.len(), 3);
        let mut image = images.outermost;
        for number in 1..=3 {
            let entries = cpio::tests::parse(&image);
            let init = entries.iter().find(|e| e.path == "init").expect("there");
            let text = String::from_utf8_lossy(&init.content).into_owned();
            assert!(text.contains(&format!("# Level {number} of 3 ")), "{text}");
            let next = entries.into_iter().find(|e| e.path == "next.cpio");
            assert_eq!(next.is_some(), number < 3);
            image = next.map(|e| e.content).unwrap_or_default();
        }
    }

    #[test]
    fn a_hypervisor_carries_what_it_needs() {
        let entries = cpio::tests::parse(&images(2).outermost);
        assert_eq!(
            paths(&entries),
            [
                "bin",
                "bin/busybox",
                "bin/nestling",
                "dev",
                "dev/console",
                "dev/null",
                "init",
                "modules",
                "modules/kvm-intel.ko",
                "modules/kvm.ko",
                "next.cpio",
                "proc",
                "run",
                "sys",
                "vmlinuz",
            ]
        );
    }

    #[test]
    fn the_innermost_carries_no_kernel() {
        let entries = cpio::tests::parse(&images(1).outermost);
        assert!(!paths(&entries).contains(&"vmlinuz"));
        assert!(!paths(&entries).contains(&"modules"));
    }

    #[test]
    fn every_level_carries_the_program_it_shall_run() {
        let file = |path: &str| GuestFile {
            path: path.into(),
            mode: 0o644,
            content: path.into(),
        };
        let files = [file("usr/data"), file("bin/busybox")];
        let bench = Bench {
            program: b"a program",
            arguments: "--quick",
            files: &files,
        };
        let mut image = images_with(2, Some(bench)).outermost;
        for number in 1..=2 {
            let entries = cpio::tests::parse(&image);
            let content = |path: &str| {
                let entry = entries.iter().find(|e| e.path == path);
                &entry.expect("every level has it").content[..]
            };
            assert_eq!(content("bin/bench"), b"a program");
            assert_eq!(content("usr/data"), b"usr/data");
            assert_eq!(content("bin/busybox"), artifacts().busybox);
            let init = String::from_utf8_lossy(content("init")).into_owned();
            let line = format!("/bin/bench --level {number} --quick || fail bench $?\n");
            assert!(init.contains(&line), "{init}");
            let next = entries.into_iter().find(|e| e.path == "next.cpio");
            image = next.map(|e| e.content).unwrap_or_default();
        }
    }

    #[test]
    fn the_inner_memory_is_what_the_script_says() {
        let images = images(2);
        let entries = cpio::tests::parse(&images.outermost);
        let init = entries.iter().find(|e| e.path == "init").expect("there");
        let text = String::from_utf8_lossy(&init.content).into_owned();
        let expected = format!("--memory {}K", images.memory_bytes[1] / 1024);
        assert!(text.contains(&expected), "{text}");
        assert!(images.memory_bytes[1] < images.memory_bytes[0]);
    }
}
