//! Checks and chores of the workspace, run as `cargo xtask <command>`.
//!
//! `tidy` reads the tracked files and holds them against `docs/conventions.md`; `layers` reads
//! `cargo metadata` and holds it against the table in [`house`]. Both print `path:line: what` for each
//! finding. `bench` measures and prints figures, `e2e-all` runs the long end-to-end tests. Exit status: 0 nothing found,
//! 1 findings, 2 the check itself could not run.

mod bench;
mod house;
mod layers;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask <command>

  tidy     size, left-overs, unsafe, names, module docs, white space of the tracked files
  layers   who may depend on whom, from cargo metadata
  e2e-all  every combination of hypervisors end to end; e2e-all --help
  bench    how fast the software engine is, beside QEMU's and the host; bench --help";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["tidy"] => workspace_root().and_then(|root| tidy::run(&root)),
        ["layers"] => workspace_root().and_then(|root| layers::run(&root)),
        ["bench", "-h" | "--help"] => {
            println!("{}", bench::USAGE);
            return ExitCode::SUCCESS;
        }
        ["e2e-all", options @ ..] => {
            let done = workspace_root().and_then(|root| e2e_all(&root, options));
            return done.unwrap_or_else(|error| could_not_run(&error));
        }
        ["bench", options @ ..] => {
            let done = workspace_root().and_then(|root| bench::run(&root, options));
            return done.map_or_else(|error| could_not_run(&error), |()| ExitCode::SUCCESS);
        }
        ["-h" | "--help" | "help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(Report { findings, summary }) if findings.is_empty() => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Ok(Report { findings, summary }) => {
            for finding in &findings {
                println!("{finding}");
            }
            println!("{summary}; {} to mend", findings.len());
            ExitCode::FAILURE
        }
        Err(error) => could_not_run(&error),
    }
}

/// Runs the program of the package `e2e` that runs all combinations; its exit status becomes ours.
fn e2e_all(root: &Path, options: &[&str]) -> Result<ExitCode> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["run", "--quiet", "--release", "--package", "e2e", "--bin"])
        .args(["e2e-all", "--"])
        .args(options)
        .status()
        .context("cannot run cargo")?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn could_not_run(error: &anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    ExitCode::from(2)
}

/// What a check has to say: the findings as printable lines, and one line on how much was looked at.
struct Report {
    findings: Vec<String>,
    summary: String,
}

/// The folder of the workspace's own Cargo.toml, from the checkout the command is run in.
fn workspace_root() -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["locate-project", "--workspace", "--message-format", "plain"])
        .output()
        .context("cannot run cargo to find the workspace")?;
    if !output.status.success() {
        bail!(
            "not inside the workspace: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let manifest = String::from_utf8(output.stdout).context("the workspace's path is not UTF-8")?;
    let root = Path::new(manifest.trim())
        .parent()
        .context("the workspace manifest has no folder")?;
    Ok(root.to_path_buf())
}
