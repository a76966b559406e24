//! `cargo xtask bench`: how fast the software engine is, beside QEMU's on the same images and beside the host.
//!
//! Nothing here passes or fails by a time: figures are printed, for a person to compare within one run on one
//! machine. The steps:
//!
//! 1. Build `nestling` and `guestbench`; let `nestling images` make the images of a demo of two levels, once plain and
//!    once with `guestbench` in every level.
//! 2. *Boot*: run the plain images and note when each level says it is up.
//! 3. *Parts*: run the others, in which each level measures itself; also `guestbench` natively.
//!
//! 2 and 3 are done on `nestling run --engine soft` (VT-x) and on the peer, `qemu-system-x86_64 -accel tcg -cpu max`
//! (AMD-V), if it is installed. What runs L2 inside L1 is `nestling run --engine kvm` under both.

mod console;
mod guest;
mod programs;
mod report;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use guest::{Finished, Monitor};
use programs::{Images, Programs};
use report::{Boot, Measured, Outcome};

/// What `cargo xtask bench --help` prints.
pub const USAGE: &str = "usage: cargo xtask bench [--format text|json] [--no-peer] [--timeout S]

  --format   how the result is printed [default: text]
  --no-peer  leave out QEMU even where it is installed
  --timeout  give each of the runs at most so many seconds [default: 300]";

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// What the caller asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    format: Format,
    peer: bool,
    timeout: Duration,
}

fn parse(args: &[&str]) -> Result<Options> {
    let mut options = Options {
        format: Format::Text,
        peer: true,
        timeout: Duration::from_secs(300),
    };
    let mut args = args.iter();
    while let Some(&arg) = args.next() {
        let mut value = || {
            args.next()
                .copied()
                .with_context(|| format!("{arg} needs a value"))
        };
        match arg {
            "--no-peer" => options.peer = false,
            "--format" => {
                options.format = match value()? {
                    "text" => Format::Text,
                    "json" => Format::Json,
                    other => bail!("--format is text or json, not {other}"),
                }
            }
            "--timeout" => {
                let seconds = value()?.parse().context("--timeout is a number")?;
                options.timeout = Duration::from_secs(seconds);
            }
            other => bail!("{other} is no option of bench\n\n{USAGE}"),
        }
    }
    Ok(options)
}

/// Measures and prints.
pub fn run(root: &Path, args: &[&str]) -> Result<()> {
    let options = parse(args)?;
    let load_before = report::load();
    say("building");
    let programs = Programs::build(root)?;
    let mut outcome = Outcome::new(load_before);
    say("native parts");
    outcome.native = native(&programs)?;
    outcome.nestling = measure(&programs, &Monitor::Nestling, &options)?;
    if let Some(peer) = peer(&options) {
        outcome.peer = Some(measure(&programs, &peer, &options)?);
    }
    outcome.load_after = report::load();
    match options.format {
        Format::Text => print!("{}", outcome.text()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&outcome.data())?),
    }
    if !outcome.nestling.trouble.is_empty() {
        bail!("a run of ours went wrong; the notes say how");
    }
    Ok(())
}

/// What is being done, for the one who waits.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

fn peer(options: &Options) -> Option<Monitor> {
    if !options.peer {
        return None;
    }
    let found = Monitor::qemu();
    if found.is_none() {
        say("qemu-system-x86_64 is not installed, so there is no peer");
    }
    found
}

/// The parts that only compute, on the host's processor.
fn native(programs: &Programs) -> Result<BTreeMap<String, f64>> {
    let lines = programs.guestbench_natively()?;
    let mut parts = BTreeMap::new();
    for line in lines.lines() {
        if let Some(console::Line::Part { name, ns, .. }) = console::parse(line) {
            parts.insert(name, ns);
        }
    }
    if parts.is_empty() {
        bail!("guestbench printed no figures");
    }
    Ok(parts)
}

/// Both runs on one monitor.
fn measure(programs: &Programs, monitor: &Monitor, options: &Options) -> Result<Measured> {
    let name = monitor.name();
    say(&format!("images for {name}"));
    let plain = programs.images(monitor.virt(), Images::Plain)?;
    let bench = programs.images(monitor.virt(), Images::Bench)?;
    say(&format!("boot of {name}"));
    let boot = guest::run(monitor, programs, &plain, "virtual", options.timeout)?;
    say(&format!("parts in {name}"));
    let parts = guest::run(monitor, programs, &bench, "host", options.timeout)?;
    let trouble = |what: &str, run: &Finished| {
        let why = run.trouble.as_ref()?;
        Some(format!("{name}, {what}: {why}"))
    };
    let trouble = [trouble("boot", &boot), trouble("parts", &parts)];
    Ok(Measured {
        trouble: trouble.into_iter().flatten().collect(),
        boot: Boot::of(&boot),
        parts: parts.parts(),
        clocks: parts.clocks(),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        assert_eq!(
            parse(&["--format", "json", "--no-peer", "--timeout", "9"]).expect("good"),
            Options {
                format: Format::Json,
                peer: false,
                timeout: Duration::from_secs(9),
            }
        );
        let wrongs: [&[&str]; 4] = [
            &["--format"],
            &["--format", "xml"],
            &["--timeout", "x"],
            &["now"],
        ];
        for wrong in wrongs {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
