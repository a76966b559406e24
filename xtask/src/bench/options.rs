//! The command line of `cargo xtask bench`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What `cargo xtask bench --help` prints.
pub const USAGE: &str = "usage: cargo xtask bench [OPTIONS]

  --quick            a twentieth of the work of each part, and one run
  --runs N           how many runs [default: 3, quick 1]
  --scenes LIST      of boot, parts, processors, deep, exits [default: all]
  --parts LIST       of parts and of groups (compute, program, kernel, exit, processors) [default: all]
  --levels 1|2       how many levels run the parts [default: 2]
  --vmm qemu|nestling
                     what runs L2 inside L1, under both monitors [default: qemu]
  --no-peer          leave out QEMU even where it is installed
  --no-native        leave out the host
  --timeout S        give each monitor at most so many seconds [default: 1800]
  --format text|json how the result is printed [default: text]
  --json FILE        write it as JSON as well

Scenes:
  boot        two levels come up and go
  parts       the parts of the benchmark in L1 and in L2
  processors  two busy processors against one, in L1
  deep        three levels come up and go
  exits       CPUID in L3";

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As Markdown.
    Text,
    /// As JSON.
    Json,
}

/// Something that is run on every monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Two levels come up and go.
    Boot,
    /// The parts in L1 and in L2.
    Parts,
    /// Two busy processors against one.
    Processors,
    /// Three levels come up and go.
    Deep,
    /// CPUID in L3.
    Exits,
}

impl Scene {
    /// All, in the order in which they run.
    pub const ALL: [Self; 5] = [
        Self::Boot,
        Self::Parts,
        Self::Processors,
        Self::Deep,
        Self::Exits,
    ];

    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Parts => "parts",
            Self::Processors => "processors",
            Self::Deep => "deep",
            Self::Exits => "exits",
        }
    }

    /// What it is, in messages.
    pub fn words(self) -> &'static str {
        match self {
            Self::Boot => "boot of two levels",
            Self::Parts => "parts",
            Self::Processors => "two processors",
            Self::Deep => "boot of three levels",
            Self::Exits => "exits of three levels",
        }
    }
}

/// What the caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A twentieth of the work.
    pub quick: bool,
    /// How many runs.
    pub runs: usize,
    /// The scenes.
    pub scenes: Vec<Scene>,
    /// Names of parts and groups; empty for all.
    pub parts: Vec<String>,
    /// How many levels run the parts.
    pub levels: u8,
    /// What runs L2, as `nestling images --vmm` takes it.
    pub vmm: &'static str,
    /// With the peer, if it is there.
    pub peer: bool,
    /// With the host.
    pub native: bool,
    /// For each monitor.
    pub timeout: Duration,
    /// How the result is printed.
    pub format: Format,
    /// A file for the result as JSON.
    pub json: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[&str]) -> Result<Self> {
        let mut options = Self {
            quick: false,
            runs: 0,
            scenes: Scene::ALL.to_vec(),
            parts: Vec::new(),
            levels: 2,
            vmm: "qemu",
            peer: true,
            native: true,
            timeout: Duration::from_secs(1800),
            format: Format::Text,
            json: None,
        };
        let mut runs = None;
        let mut args = args.iter().copied();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg {
                "--quick" => options.quick = true,
                "--no-peer" => options.peer = false,
                "--no-native" => options.native = false,
                "--runs" => runs = Some(number(arg, value()?, 1..=99)?),
                "--timeout" => {
                    let seconds = number(arg, value()?, 1..=86_400)?;
                    options.timeout = Duration::from_secs(seconds as u64);
                }
                "--levels" => options.levels = number(arg, value()?, 1..=2)? as u8,
                "--parts" => options.parts = value()?.split(',').map(String::from).collect(),
                "--scenes" => options.scenes = scenes(value()?)?,
                "--vmm" => {
                    options.vmm = match value()? {
                        "qemu" => "qemu",
                        "nestling" => "nestling",
                        other => bail!("--vmm is qemu or nestling, not {other}"),
                    }
                }
                "--format" => {
                    options.format = match value()? {
                        "text" => Format::Text,
                        "json" => Format::Json,
                        other => bail!("--format is text or json, not {other}"),
                    }
                }
                "--json" => options.json = Some(PathBuf::from(value()?)),
                other => bail!("{other} is no option of bench\n\n{USAGE}"),
            }
        }
        options.runs = runs.unwrap_or(if options.quick { 1 } else { 3 });
        Ok(options)
    }

    /// What runs L2 inside L1.
    pub fn inner_monitor(&self) -> &'static str {
        match self.vmm {
            "qemu" => "Debian's QEMU",
            _ => "nestling",
        }
    }
}

fn number(option: &str, text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
    let found = text.parse().ok().filter(|number| range.contains(number));
    found.with_context(|| {
        let (low, high) = (range.start(), range.end());
        format!("{option} is a number from {low} to {high}, not {text}")
    })
}

fn scenes(list: &str) -> Result<Vec<Scene>> {
    let scene = |name: &str| {
        let found = Scene::ALL.into_iter().find(|scene| scene.name() == name);
        found.with_context(|| format!("{name} is no scene of bench"))
    };
    list.split(',').map(scene).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let found = parse(
            "--quick --runs 5 --scenes deep,boot --parts crc,kernel --levels 1 --vmm nestling --no-peer --no-native \
             --timeout 9 --format json --json a.json",
        );
        let expected = Options {
            quick: true,
            runs: 5,
            scenes: vec![Scene::Deep, Scene::Boot],
            parts: vec!["crc".into(), "kernel".into()],
            levels: 1,
            vmm: "nestling",
            peer: false,
            native: false,
            timeout: Duration::from_secs(9),
            format: Format::Json,
            json: Some("a.json".into()),
        };
        assert_eq!(found.expect("good"), expected);
        let runs = |line| parse(line).expect("good").runs;
        assert_eq!((runs(""), runs("--quick")), (3, 1));
    }

    #[test]
    fn wrong_options_are_refused() {
        for wrong in [
            "now",
            "--format",
            "--format xml",
            "--timeout x",
            "--timeout 0",
            "--runs 0",
            "--levels 3",
            "--scenes boots",
            "--vmm xen",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
