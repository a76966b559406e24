//! The programs and images of a run: ours, built by cargo; the images, made by `nestling images`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

/// Memory of level 1, for both monitors.
pub const MEMORY: &str = "1G";
/// How many levels the images have.
const DEPTH: &str = "2";

/// Which images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// Those of a demo.
    Plain,
    /// The same with `guestbench`, run by every level.
    Bench,
}

/// Our programs, and a folder for images.
pub struct Programs {
    /// The monitor.
    pub nestling: PathBuf,
    guestbench: PathBuf,
    folder: PathBuf,
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
        Ok(Self {
            guestbench: named("guestbench")?,
            nestling,
            folder,
        })
    }

    /// What `guestbench` prints on the host, of the parts that only compute.
    pub fn guestbench_natively(&self) -> Result<String> {
        output(Command::new(&self.guestbench).args(["--level", "0", "--user-only"]))
    }

    /// Makes images and gives the folder with `vmlinuz`, `initramfs.cpio` and `append.txt`. `virt` is what
    /// `nestling images --virt` takes. L2 sees no virtualization under either monitor: it needs none, and our KVM
    /// engine, which runs it, cannot show it AMD-V.
    pub fn images(&self, virt: &str, kind: Images) -> Result<PathBuf> {
        let name = match kind {
            Images::Plain => format!("{virt}-plain"),
            Images::Bench => format!("{virt}-bench"),
        };
        let folder = self.folder.join(name);
        let mut command = Command::new(&self.nestling);
        command
            .args(["images", "--depth", DEPTH, "--virt", virt])
            .args(["--nested", "off", "--memory", MEMORY, "--output"])
            .arg(&folder);
        if kind == Images::Bench {
            command.arg("--bench").arg(&self.guestbench);
        }
        output(&mut command)?;
        Ok(folder)
    }
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} prints what is not UTF-8"))
}
