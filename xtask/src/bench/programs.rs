//! The programs and images of a run: ours, built by cargo; the images, made by `nestling images`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

use super::catalogue::Catalogue;

/// Which images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// A name for their folder.
    pub name: &'static str,
    /// How many levels.
    pub depth: u8,
    /// Processors of level 1.
    pub cpus: u8,
    /// Memory of level 1 in MiB.
    pub memory_mib: u64,
    /// What runs the inner levels, as `nestling images --vmm` takes it.
    pub vmm: &'static str,
    /// The arguments of `guestbench` in every level, if it is to run.
    pub bench: Option<String>,
}

/// Images to start level 1 with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// The folder with `vmlinuz`, `initramfs.cpio` and `append.txt`.
    pub folder: PathBuf,
    /// How many levels.
    pub depth: u8,
    /// Processors of level 1.
    pub cpus: u8,
    /// Memory of level 1.
    pub memory_bytes: u64,
    /// The levels measure themselves, so their clocks have to be the host's.
    pub measures: bool,
}

/// Our programs, and a folder for images.
pub struct Programs {
    /// The monitor.
    pub nestling: PathBuf,
    /// Debian's programs for the benchmark, if they could be had.
    pub files: Option<PathBuf>,
    guestbench: PathBuf,
    /// Where images and files are kept.
    pub folder: PathBuf,
}

impl Programs {
    /// Builds them as for release.
    pub fn build(root: &Path) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(root)
            .args(["build", "--release", "--quiet"])
            .args(["--package", "nestling", "--package", "guestbench"])
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("the programs do not build");
        }
        let mut built = Vec::new();
        for message in Message::parse_stream(output.stdout.as_slice()) {
            if let Message::CompilerArtifact(artifact) = message?
                && let Some(program) = artifact.executable
            {
                built.push(program.into_std_path_buf());
            }
        }
        let named = |name: &str| {
            let found = built.iter().find(|program| program.ends_with(name));
            found
                .cloned()
                .with_context(|| format!("cargo built no {name}"))
        };
        let nestling = named("nestling")?;
        let folder = nestling
            .parent()
            .context("a program is in a folder")?
            .join("bench-images");
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            guestbench: named("guestbench")?,
            nestling,
            files: None,
            folder,
        })
    }

    /// The parts `guestbench` has.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::parse(&output(Command::new(&self.guestbench).arg("--list"))?)
            .context("guestbench --list says something else")
    }

    /// What `guestbench` prints on the host.
    pub fn natively(&self, only: &str, quick: bool) -> Result<String> {
        let scratch = self.folder.join("scratch");
        std::fs::create_dir_all(&scratch)?;
        let mut command = Command::new(&self.guestbench);
        command.args(["--level", "0", "--only", only, "--scratch"]);
        command.arg(&scratch);
        if let Some(files) = &self.files {
            command.arg("--files").arg(files);
        }
        if quick {
            command.arg("--quick");
        }
        output(&mut command)
    }

    /// Makes images for guests that see `virt`, as `nestling images --virt` takes it.
    pub fn images(&self, virt: &str, kind: &Kind) -> Result<Images> {
        let folder = self.folder.join(format!("{virt}-{}", kind.name));
        let memory = format!("{}M", kind.memory_mib);
        let mut command = Command::new(&self.nestling);
        command
            .args(["images", "--virt", virt, "--vmm", kind.vmm])
            .args(["--depth", &kind.depth.to_string(), "--memory", &memory]);
        if kind.vmm == "nestling" {
            // Our KVM engine cannot show AMD-V, and what has no inner level needs none.
            command.args(["--nested", "off"]);
        }
        if let Some(arguments) = &kind.bench {
            command.arg("--bench").arg(&self.guestbench);
            command.arg("--bench-args").arg(arguments);
            if let Some(files) = &self.files {
                command.arg("--bench-files").arg(files);
            }
        }
        output(command.arg("--output").arg(&folder))?;
        Ok(Images {
            folder,
            depth: kind.depth,
            cpus: kind.cpus,
            memory_bytes: kind.memory_mib << 20,
            measures: kind.bench.is_some(),
        })
    }
}

/// What a program that is to succeed prints.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8(output.stdout)
        .with_context(|| format!("{name} prints what is not UTF-8"))?;
    if !output.status.success() {
        let last = text.lines().last().unwrap_or_default();
        bail!("{name} failed: {}; it printed last: {last}", output.status);
    }
    Ok(text)
}
