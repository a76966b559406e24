//! Real mode and 16- and 32-bit protected mode at CPL 0: the software CPU against what a peer did.

use std::collections::BTreeMap;

use conformance::compare::describe;
use conformance::fixtures::{Entry, MODES, differences, excluded, forms, machine, record};

/// Made by the example `fixtures` with Bochs 2.7 (`docs/testing.md`).
const FILE: &[u8] = include_bytes!("fixtures/bochs.bin");

/// Failures shown.
const SHOWN: usize = 40;

#[test]
fn softcpu_agrees_with_the_peer() {
    let all = record::read(FILE).expect("a file of fixtures");
    let entries: Vec<Entry> = all.iter().map(|(entry, _)| entry.clone()).collect();
    let results = machine::run(&entries)
        .expect("the software CPU runs everywhere")
        .expect("the program comes to its end");
    let mut left_out: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failed = 0;
    for (number, ((entry, expected), actual)) in all.iter().zip(&results).enumerate() {
        if let Some(why) = excluded::reason(entry, expected) {
            *left_out.entry(why).or_default() += 1;
            continue;
        }
        let lines = differences(entry, expected, actual);
        if !lines.is_empty() {
            failed += 1;
            if failed <= SHOWN {
                println!(
                    "case {number} of {:?} mode: {}  {}",
                    entry.world,
                    describe(&entry.case),
                    lines.join("\n  ")
                );
            }
        }
    }
    let mut ended: BTreeMap<u32, u64> = BTreeMap::new();
    for (_, raw) in &all {
        *ended.entry(raw.ended).or_default() += 1;
    }
    println!(
        "{} cases, {failed} differ from the peer; ended (100h: next instruction, 101h: branch):",
        all.len()
    );
    println!("{ended:x?}");
    for (world, bits) in MODES {
        let (compared, left) = forms::count(world, bits);
        println!("{world:?}, {bits} bits: {compared} forms");
        for (why, count) in left {
            println!("  skipped {count:5} forms: {why}");
        }
    }
    for (why, count) in &left_out {
        println!("left out {count:5} cases: {why}");
    }
    assert!(all.len() > 25_000, "fixtures are missing");
    assert!(left_out.values().sum::<u64>() < 100, "too many left out");
    assert_eq!(failed, 0, "{failed} cases differ");
}
