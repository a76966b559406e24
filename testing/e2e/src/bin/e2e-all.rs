//! `cargo xtask e2e-all`: every combination of hypervisors, one after the other, with its time. The tests of this
//! package run a few of them.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use e2e::nested::{SETUPS, Setup};

/// On a busy machine of two slow processors.
const PATIENCE: Duration = Duration::from_secs(3600);

const USAGE: &str = "usage: cargo xtask e2e-all [--list] [NAME...]

  --list   print the names
  NAME     run only these; a name may end in * for all that begin so";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("-h" | "--help") => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        Some("--list") => {
            for setup in &SETUPS {
                say(setup.name);
            }
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let wanted: Vec<&Setup> = SETUPS
        .iter()
        .filter(|setup| arguments.is_empty() || arguments.iter().any(|a| matches(a, setup.name)))
        .collect();
    if wanted.is_empty() {
        say(USAGE);
        return ExitCode::from(2);
    }
    let mut failed = 0;
    for setup in wanted {
        match setup.run(PATIENCE) {
            Ok(time) => say(&format!(
                "{:32} {:6.1} s  ok",
                setup.name,
                time.as_secs_f64()
            )),
            Err(error) => {
                failed += 1;
                say(&format!("{:32}           FAILED\n{error:#}", setup.name));
            }
        }
    }
    if failed > 0 {
        say(&format!("{failed} failed"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // If standard output is gone there is nobody to tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
