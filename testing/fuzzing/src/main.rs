//! A campaign by hand: `cargo run --release -p fuzzing -- TARGET COUNT [SEED [FIRST]]`.

use std::process::ExitCode;
use std::time::Instant;

use fuzzing::{Campaign, NAMES, target};

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

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
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
