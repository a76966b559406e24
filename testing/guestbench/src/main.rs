//! A small benchmark that runs on the host and, as the same file, inside guests of every level.
//!
//! It is a list of parts. Each part does the same fixed piece of work (a *batch*) again and again until its share of
//! time is over, checks the result of every batch, and reports the time one operation took in the fastest batch:
//! whatever else ran on the machine can only make a batch slower. Time is the guest's own (`CLOCK_MONOTONIC`), so a
//! guest has to run on a clock that follows real time; the first and last line let the reader hold the guest's time
//! against its own.
//!
//! What it prints, one line each: `NESTLING-BENCH <level> begin`, then for every part
//! `NESTLING-BENCH <level> <part> <nanoseconds per operation>`, then `NESTLING-BENCH <level> end <nanoseconds>` with
//! the time since `begin`.

mod computation;
mod kernel;
mod measure;
mod processor;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use measure::{Part, Wrong, fastest};

/// How the lines begin.
const MARK: &str = "NESTLING-BENCH";
/// The time every part gets if the caller does not say.
const DEFAULT_SHARE: Duration = Duration::from_millis(300);
const USAGE: &str = "usage: guestbench --level NAME [--share-ms N] [--user-only]";

/// What the caller asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// The name in the lines.
    level: String,
    /// The time every part gets.
    share: Duration,
    /// Leaves out the parts that are about the kernel or the processor's exits.
    user_only: bool,
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Wanted> {
    let mut level = None;
    let mut share = DEFAULT_SHARE;
    let mut user_only = false;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--level" => level = Some(args.next()?),
            "--share-ms" => share = Duration::from_millis(args.next()?.parse().ok()?),
            "--user-only" => user_only = true,
            _ => return None,
        }
    }
    Some(Wanted {
        level: level?,
        share,
        user_only,
    })
}

/// The parts in the order they run.
fn parts(user_only: bool) -> Vec<Part> {
    let mut parts = computation::parts();
    if !user_only {
        parts.extend(kernel::parts());
        parts.push(processor::cpuid());
    }
    parts
}

fn run(wanted: &Wanted) -> Result<(), Wrong> {
    let level = &wanted.level;
    println!("{MARK} {level} begin");
    let started = Instant::now();
    for part in &mut parts(wanted.user_only) {
        let ns_per_operation = fastest(part, wanted.share)?;
        println!("{MARK} {level} {} {ns_per_operation:.3}", part.name);
    }
    println!("{MARK} {level} end {}", started.elapsed().as_nanos());
    Ok(())
}

fn main() -> ExitCode {
    let Some(wanted) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("guestbench: {wrong}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(line: &str) -> Option<Wanted> {
        parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn the_command_line_is_read() {
        assert_eq!(
            wanted("--level 2 --share-ms 7 --user-only"),
            Some(Wanted {
                level: "2".into(),
                share: Duration::from_millis(7),
                user_only: true,
            })
        );
        assert_eq!(wanted("--level 1").map(|w| w.share), Some(DEFAULT_SHARE));
        for wrong in ["", "--level", "--level 1 --share-ms x", "--level 1 more"] {
            assert_eq!(wanted(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_part_gives_the_right_result() {
        for part in &mut parts(false) {
            assert_eq!((part.batch)(), Ok(()), "{}", part.name);
        }
    }

    #[test]
    fn names_are_unique_words() {
        let names: Vec<_> = parts(false).iter().map(|part| part.name).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{name}"
            );
            assert!(!names[i + 1..].contains(name), "{name}");
            assert!(!["begin", "end"].contains(name));
        }
    }
}
