//! Makes the fixtures of real mode and of 16- and 32-bit protected mode, by hand.
//!
//! `disk PATH CASES` writes a disk for a peer to boot from; `take PATH CASES FILE` reads the results it has
//! put there and writes the file of fixtures. CASES is the number of cases for each form.

use std::error::Error;
use std::{env, fs};

use conformance::fixtures::{generate, image, record};

const SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["disk", path, cases] => {
            let entries = generate(SEED, cases.parse()?);
            let (disk, _) = image::disk(&entries);
            fs::write(path, disk)?;
            println!("{} cases", entries.len());
        }
        ["take", path, cases, file] => {
            let entries = generate(SEED, cases.parse()?);
            let (_, at) = image::disk(&entries);
            let disk = fs::read(path)?;
            let results = image::results(&disk[at..], entries.len())?;
            let all: Vec<_> = entries.into_iter().zip(results).collect();
            let bytes = record::write(&all);
            fs::write(file, &bytes)?;
            println!("{} cases, {} bytes", all.len(), bytes.len());
        }
        _ => return Err("disk PATH CASES | take PATH CASES FILE".into()),
    }
    Ok(())
}
