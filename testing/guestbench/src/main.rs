//! A benchmark that runs on the host and, as the same file, inside guests of every level.
//!
//! It is a list of parts. Each part does a fixed number of *batches*, each the same fixed piece of work, checks the sum
//! of every batch against one that is known, and reports how long all of them and the fastest of them took. So two runs
//! of it do the same work, and a processor that computes wrongly fails. Time is the guest's own (`CLOCK_MONOTONIC`), so
//! a guest has to run on a clock that follows real time; the first and last line let the reader hold the guest's time
//! against its own.
//!
//! What it prints, one line each, all behind `NESTLING-BENCH <level>`:
//!
//! - `begin`
//! - `start <part>` when a part is prepared and its first batch begins
//! - `part <part> operations=N batches=N total_ns=N best_ns=N sum=X`, `operations` being those of one batch
//! - `lacks <part> <feature>` where the processor has not what a part needs
//! - `wrong <part> <why>` for a part that failed; the others still run
//! - `end <nanoseconds since begin>`
//!
//! The C library picks code by the processor it finds. So that its copies and searches are the same everywhere, the
//! program starts itself again with [`BASELINE`], which its children get as well.

mod aes;
mod busy;
mod computation;
mod control;
mod feature;
mod kernel;
mod measure;
mod memory;
mod pipes;
mod processor;
mod programs;
mod self_modifying;
mod sha;
mod vector;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use measure::{Measured, Part, Places, Wrong, measure};

/// How the lines begin.
const MARK: &str = "NESTLING-BENCH";
/// The variable by which glibc is told what to use of a processor (the GNU C Library, "Tunables").
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Nothing beyond SSE2, and no string instructions.
const BASELINE: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Fast_Unaligned_Load,\
                        -FMA,-FMA4,-BMI2,-ERMS,-FSRM,-SSE4_1,-SSE4_2,-SSSE3";
const USAGE: &str = "usage: guestbench --list
       guestbench --level NAME [--only PART|GROUP,...] [--quick] [--files DIR] [--scratch DIR]

  --list     print the parts: name, group, operation
  --level    the name in the lines
  --only     only these parts and groups [default: all]
  --quick    a twentieth of the batches
  --files    where Debian's programs and their libraries are [default: /]
  --scratch  where files may be written [default: /run]";

/// What the caller asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// The name in the lines.
    level: String,
    /// Names of parts and groups; empty for all.
    only: Vec<String>,
    quick: bool,
    places: Places,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    List,
    Run(Wanted),
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Task> {
    let mut level = None;
    let mut only = Vec::new();
    let mut quick = false;
    let mut places = Places {
        files: "/".into(),
        scratch: "/run".into(),
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => return args.next().is_none().then_some(Task::List),
            "--level" => level = Some(args.next()?),
            "--only" => only = args.next()?.split(',').map(String::from).collect(),
            "--quick" => quick = true,
            "--files" => places.files = PathBuf::from(args.next()?),
            "--scratch" => places.scratch = PathBuf::from(args.next()?),
            _ => return None,
        }
    }
    let wanted = Wanted {
        level: level?,
        only,
        quick,
        places,
    };
    let known = |name: &String| parts().any(|part| is_named(part, name));
    wanted.only.iter().all(known).then_some(Task::Run(wanted))
}

fn is_named(part: &Part, name: &str) -> bool {
    part.name == name || part.group.name() == name
}

/// All parts in the order they run.
fn parts() -> impl Iterator<Item = &'static Part> {
    const SINGLE: [Part; 3] = [self_modifying::PART, pipes::PART, processor::PART];
    const LISTS: [&[Part]; 10] = [
        &computation::PARTS,
        &memory::PARTS,
        &control::PARTS,
        &aes::PARTS,
        &sha::PARTS,
        &vector::PARTS,
        &SINGLE,
        &kernel::PARTS,
        &programs::PARTS,
        &busy::PARTS,
    ];
    LISTS.into_iter().flatten()
}

/// Runs what is asked for; says whether all of it was right.
fn run(wanted: &Wanted) -> bool {
    let level = &wanted.level;
    println!("{MARK} {level} begin");
    let started = Instant::now();
    let mut right = true;
    let only = &wanted.only;
    for part in parts().filter(|part| only.is_empty() || only.iter().any(|n| is_named(part, n))) {
        if let Some(feature) = part.needs.iter().find(|feature| !feature.is_here()) {
            println!("{MARK} {level} lacks {} {}", part.name, feature.name());
            continue;
        }
        let batches = part.batches(wanted.quick);
        match one(part, wanted, batches) {
            Ok(Measured { total, best, sum }) => println!(
                "{MARK} {level} part {} operations={} batches={batches} total_ns={} best_ns={} sum={sum:x}",
                part.name,
                part.operations,
                total.as_nanos(),
                best.as_nanos(),
            ),
            Err(why) => {
                right = false;
                println!("{MARK} {level} wrong {} {why}", part.name);
            }
        }
    }
    println!("{MARK} {level} end {}", started.elapsed().as_nanos());
    right
}

fn one(part: &Part, wanted: &Wanted, batches: u32) -> Result<Measured, Wrong> {
    let mut batch = (part.prepare)(&wanted.places)?;
    println!("{MARK} {} start {}", wanted.level, part.name);
    measure(&mut batch, batches, part.expected)
}

/// Starts this program again with the baseline of the C library, unless it was started so. Gives why that failed.
fn start_again() -> Option<std::io::Error> {
    if std::env::var_os(TUNABLES).is_some_and(|set| set == *BASELINE) {
        return None;
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Some(error),
    };
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    Some(command.env(TUNABLES, BASELINE).exec())
}

fn main() -> ExitCode {
    let wanted = match parse(std::env::args().skip(1)) {
        Some(Task::Run(wanted)) => wanted,
        Some(Task::List) => {
            for part in parts() {
                println!("{} {} {}", part.name, part.group.name(), part.operation);
            }
            return ExitCode::SUCCESS;
        }
        None => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(error) = start_again() {
        eprintln!("guestbench: cannot start itself again: {error}");
        return ExitCode::FAILURE;
    }
    match run(&wanted) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use measure::Group;

    fn task(line: &str) -> Option<Task> {
        parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn the_command_line_is_read() {
        let wanted = Wanted {
            level: "2".into(),
            only: vec!["crc".into(), "kernel".into()],
            quick: true,
            places: Places {
                files: "/a".into(),
                scratch: "/b".into(),
            },
        };
        let line = "--level 2 --only crc,kernel --quick --files /a --scratch /b";
        assert_eq!(task(line), Some(Task::Run(wanted)));
        assert_eq!(task("--list"), Some(Task::List));
        for wrong in [
            "",
            "--level",
            "--level 1 more",
            "--list 1",
            "--level 1 --only nothing",
        ] {
            assert_eq!(task(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_part_gives_the_right_result() {
        let scratch = std::env::temp_dir().join(format!("guestbench-parts-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).expect("a folder");
        let places = Places {
            files: "/".into(),
            scratch: scratch.clone(),
        };
        // Programs are not everywhere; the bench itself fetches them.
        for part in parts().filter(|part| part.group != Group::Program) {
            if let Some(lacks) = part.needs.iter().find(|feature| !feature.is_here()) {
                eprintln!("skipped: {} for want of {}", part.name, lacks.name());
                continue;
            }
            let mut batch = (part.prepare)(&places).expect(part.name);
            let found = measure(&mut batch, 2, part.expected);
            assert!(found.is_ok(), "{}: {found:?}", part.name);
        }
        std::fs::remove_dir_all(scratch).expect("removed");
    }

    #[test]
    fn a_wrong_sum_fails() {
        let part = parts().find(|part| part.name == "sieve").expect("there");
        let places = Places {
            files: "/".into(),
            scratch: "/".into(),
        };
        let mut batch = (part.prepare)(&places).expect("prepared");
        assert!(measure(&mut batch, 1, part.expected.map(|sum| sum ^ 1)).is_err());
    }

    #[test]
    fn names_are_unique_words() {
        let all: Vec<_> = parts().collect();
        let groups: Vec<_> = all.iter().map(|part| part.group.name()).collect();
        for (i, part) in all.iter().enumerate() {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            assert!(part.name.bytes().all(plain), "{}", part.name);
            assert!(all[i + 1..].iter().all(|other| other.name != part.name));
            assert!(!groups.contains(&part.name));
        }
    }
}
