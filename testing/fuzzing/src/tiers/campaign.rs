//! Many cases of real code, on as many threads as the host has processors.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::case::{CHOICES, TURNS_AT};
use super::corpus::{case, own_code};
use super::{Figures, Tiers};

/// Runs cases of a seed, from `first` on, until `count` are done or something was found.
///
/// # Errors
/// A finding: what differs, and the bytes of a small case that shows it by itself.
pub fn run(seed: u64, first: u64, count: u64) -> Result<Figures, String> {
    let code = own_code();
    if count == 1 {
        // Whatever becomes of it.
        eprintln!("CASE is {}", hex(&case(seed, first, &code)));
    }
    let next = AtomicU64::new(first);
    let end = first.saturating_add(count);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut target = Tiers::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                return Ok(target.all_figures());
            }
            let data = case(seed, number, &code);
            if let Err(difference) = target.try_run(&data) {
                next.store(end, Ordering::Relaxed);
                return Err(told(seed, number, &data, &difference));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = Figures::default();
        for worker in workers {
            sum.join(&worker.join().expect("it says what it found")?);
        }
        Ok(sum)
    })
}

/// A finding in words.
fn told(seed: u64, number: u64, data: &[u8], difference: &str) -> String {
    let head = format!("seed {seed:#x}, case {number}: interpreted, translated: {difference}\n");
    if Tiers::new().try_run(data).is_ok() {
        return head + "by itself the case is without difference\n";
    }
    let small = shrunk(data);
    let difference = Tiers::new().try_run(&small).err().unwrap_or_default();
    format!(
        "{head}made smaller: {difference}\nto repeat it: echo CASE | cargo run --release -p fuzzing -- tiers repeat\n\
         CASE is {}\n",
        hex(&small)
    )
}

fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Fewer turns, fewer choices, less code, that still differ.
fn shrunk(data: &[u8]) -> Vec<u8> {
    let mut small = data.to_vec();
    let mut target = Tiers::new();
    let mut fails = |candidate: &[u8]| target.try_run(candidate).is_err();
    for turns in 0..96u16 {
        let mut fewer = small.clone();
        fewer[TURNS_AT..TURNS_AT + 2].copy_from_slice(&turns.to_le_bytes());
        if fails(&fewer) {
            small = fewer;
            break;
        }
    }
    for step in [256, 64, 16, 4, 1] {
        let mut from = TURNS_AT + 2;
        while from < small.len() {
            let to = (from + step).min(small.len());
            // Where code is, NOPs.
            let simple = if from < CHOICES { 0 } else { 0x90 };
            if small[from..to].iter().any(|b| *b != simple) {
                let mut simpler = small.clone();
                simpler[from..to].fill(simple);
                if fails(&simpler) {
                    small = simpler;
                }
            }
            from = to;
        }
    }
    small
}

/// The bytes of a case from what a finding has printed.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().as_bytes();
    let pairs = text.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    pairs.collect()
}
