//! A fixed number of cases of each target, the same in every run.

use fuzzing::{Campaign, target, tiers};

const SEED: u64 = 0x6e65_7374;

/// Runs `count` cases and gives the figures.
fn run(name: &str, count: u64) -> Vec<(&'static str, u64)> {
    let mut target = target(name).expect("there is one");
    let campaign = Campaign {
        seed: SEED,
        first: 0,
        count,
    };
    println!(
        "{name}: to repeat case N of these: cargo run --release -p fuzzing -- {name} 1 {SEED:#x} N"
    );
    campaign.run(&mut *target);
    let figures = target.figures();
    println!("{name}: {count} cases, {figures:?}");
    figures
}

fn figure(figures: &[(&'static str, u64)], what: &str) -> u64 {
    let found = figures.iter().find(|(name, _)| *name == what);
    found.expect("it is counted").1
}

/// Checks that a figure is at least one case in `of`.
fn reaches(figures: &[(&'static str, u64)], what: &str, count: u64, of: u64) {
    let found = figure(figures, what);
    assert!(found * of >= count, "{what}: only {found} of {count} cases");
}

#[test]
fn code() {
    const COUNT: u64 = 100_000;
    let figures = run("code", COUNT);
    reaches(&figures, "instructions", 4 * COUNT, 1);
    reaches(&figures, "ended in a handler", COUNT, 4);
}

#[test]
fn steps() {
    const COUNT: u64 = 20_000;
    let figures = run("steps", COUNT);
    reaches(&figures, "instructions", 40 * COUNT, 1);
    reaches(&figures, "compared", 4 * COUNT, 1);
    reaches(&figures, "halted", COUNT, 4);
    reaches(&figures, "shutdowns", COUNT, 10);
    reaches(&figures, "tasks", COUNT, 100);
    reaches(&figures, "repeats", COUNT, 40);
    // Few are given up.
    let apart = figure(&figures, "apart");
    assert!(apart * 100 < COUNT, "{apart} cases were not compared");
}

#[test]
fn translated() {
    const COUNT: u64 = 10_000;
    let figures = run("translated", COUNT);
    reaches(&figures, "instructions", 40 * COUNT, 1);
    reaches(&figures, "compared", 4 * COUNT, 1);
    reaches(&figures, "halted", COUNT, 4);
    reaches(&figures, "repeats", COUNT, 80);
    let apart = figure(&figures, "apart");
    assert!(apart * 50 < COUNT, "{apart} cases were not compared");
}

/// Real code interpreted and translated, on all processors.
#[test]
fn tiers() {
    const COUNT: u64 = 34_000;
    println!(
        "tiers: cases of this program's own code; cargo run --release -p fuzzing -- tiers COUNT {SEED:#x}"
    );
    let figures =
        tiers::campaign::run(SEED, 0, COUNT).unwrap_or_else(|finding| panic!("{finding}"));
    let figures: Vec<_> = tiers::NAMES.into_iter().zip(figures.0).collect();
    println!("tiers: {COUNT} cases, {figures:?}");
    assert!(figure(&figures, "blocks translated") >= 1_000_000);
    reaches(&figures, "turns", 20 * COUNT, 1);
    reaches(&figures, "instructions", 400 * COUNT, 1);
    reaches(&figures, "instructions translated", 200 * COUNT, 1);
    reaches(&figures, "entries", 20 * COUNT, 1);
    reaches(&figures, "joined", 5 * COUNT, 1);
    reaches(&figures, "misses", 5 * COUNT, 1);
    reaches(&figures, "dropped blocks", COUNT, 4);
    reaches(&figures, "checked blocks", 3 * COUNT, 1);
    // In machines with little room.
    reaches(&figures, "all dropped", 3 * COUNT, 2);
    reaches(&figures, "stores told", COUNT, 1);
    reaches(&figures, "interrupts", COUNT, 1);
    reaches(&figures, "NMIs", 3 * COUNT, 1);
    reaches(&figures, "page faults", 3 * COUNT, 1);
    reaches(&figures, "other faults", COUNT, 1);
    reaches(&figures, "debug exceptions", COUNT, 5);
    reaches(&figures, "to CPL 0", COUNT, 50);
    reaches(&figures, "to CPL 3", COUNT, 50);
    reaches(&figures, "to 32-bit code", COUNT, 50);
    reaches(&figures, "system calls", COUNT, 50);
    reaches(&figures, "flushes", 10 * COUNT, 1);
    reaches(&figures, "page flushes", 10 * COUNT, 1);
    reaches(&figures, "stepped turns", COUNT, 1);
    reaches(&figures, "on two pages", COUNT, 200);
    reaches(&figures, "strings", COUNT, 10);
    reaches(&figures, "by an alias", COUNT, 4);
    // Where undefined flags were used nothing can be compared any more.
    let excused = figure(&figures, "excused");
    assert!(
        excused * 100 < COUNT,
        "{excused} cases were not compared to their end"
    );
}

#[test]
fn paging() {
    const COUNT: u64 = 100_000;
    let figures = run("paging", COUNT);
    reaches(&figures, "translated", COUNT, 8);
    reaches(&figures, "page faults", COUNT, 1);
    reaches(&figures, "reserved bits", COUNT, 4);
}

#[test]
fn vmentry() {
    const COUNT: u64 = 10_000;
    let figures = run("vmentry", COUNT);
    reaches(&figures, "refused", COUNT, 8);
    reaches(&figures, "failed", COUNT, 8);
    reaches(&figures, "entered", COUNT, 8);
    reaches(&figures, "exits by CPUID", COUNT, 20);
}

#[test]
fn devices() {
    const COUNT: u64 = 3_000;
    let figures = run("devices", COUNT);
    reaches(&figures, "accesses", 50 * COUNT, 1);
    reaches(&figures, "answered", COUNT, 1);
    reaches(&figures, "interrupts", COUNT, 40);
    reaches(&figures, "blocks", COUNT, 1);
    reaches(&figures, "discs", COUNT, 1);
    reaches(&figures, "pictures", COUNT, 5);
}

#[test]
fn boot() {
    const COUNT: u64 = 3_000;
    let figures = run("boot", COUNT);
    reaches(&figures, "built", COUNT, 5);
    reaches(&figures, "refused", COUNT, 5);
    reaches(&figures, "sound", COUNT, 10);
    reaches(&figures, "wrong", COUNT, 20);
    reaches(&figures, "linux", COUNT, 40);
    reaches(&figures, "multiboot", COUNT, 10);
    reaches(&figures, "pvh", COUNT, 25);
}

#[test]
fn firmware() {
    const COUNT: u64 = 500;
    let figures = run("firmware", COUNT);
    reaches(&figures, "scripts", COUNT, 2);
    reaches(&figures, "refused", COUNT, 5);
    reaches(&figures, "operations", 5 * COUNT, 1);
    reaches(&figures, "errors", COUNT, 1);
    reaches(&figures, "flash", COUNT, 5);
}

#[test]
fn text() {
    const COUNT: u64 = 50_000;
    let figures = run("text", COUNT);
    reaches(&figures, "typed", COUNT, 20);
    reaches(&figures, "refused", COUNT, 2);
}
