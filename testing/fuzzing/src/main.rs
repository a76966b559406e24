//! A campaign by hand: `cargo run --release -p fuzzing -- TARGET COUNT [SEED [FIRST]]`; `TARGET repeat` does the case
//! whose bytes a finding has printed.

use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;

use fuzzing::{Campaign, NAMES, target, tiers};

/// Cases between two lines of progress.
const LINE: u64 = 1_000_000;

fn number(text: Option<String>, default: u64) -> Option<u64> {
    let Some(text) = text else {
        return Some(default);
    };
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.replace('_', "").parse().ok(),
    }
}

/// Real code on all processors.
fn tiers(seed: u64, first: u64, count: u64) -> ExitCode {
    match tiers::campaign::run(seed, first, count) {
        Ok(figures) => {
            for (name, figure) in tiers::NAMES.iter().zip(figures.0) {
                println!("{name}: {figure}");
            }
            ExitCode::SUCCESS
        }
        Err(finding) => {
            eprintln!("{finding}");
            ExitCode::FAILURE
        }
    }
}

/// A case whose bytes come by standard input.
fn repeat(name: &str) -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    let bytes = read.ok().and_then(|_| tiers::campaign::from_hex(&text));
    let (Some(mut target), Some(bytes)) = (target(name), bytes) else {
        eprintln!(
            "usage: fuzzing TARGET repeat, with the bytes of a case in hexadecimal digits as input"
        );
        return ExitCode::FAILURE;
    };
    target.run(&bytes);
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    let name = words.next().unwrap_or_default();
    if words.next_if(|word| word == "repeat").is_some() {
        return repeat(&name);
    }
    let numbers = (
        number(words.next(), LINE),
        number(words.next(), 1),
        number(words.next(), 0),
    );
    let (Some(mut target), (Some(count), Some(seed), Some(first))) = (target(&name), numbers)
    else {
        eprintln!("usage: fuzzing TARGET COUNT [SEED [FIRST]]; targets: {NAMES:?}");
        return ExitCode::FAILURE;
    };
    let started = Instant::now();
    if name == "tiers" {
        return tiers(seed, first, count);
    }
    let mut done = 0;
    while done < count {
        let part = LINE.min(count - done);
        let campaign = Campaign {
            seed,
            first: first + done,
            count: part,
        };
        campaign.run(&mut *target);
        done += part;
        let seconds = started.elapsed().as_secs();
        println!("{name}: {done} cases of seed {seed:#x} from {first} on, {seconds} s");
    }
    println!("{name}: {:?}", target.figures());
    ExitCode::SUCCESS
}
