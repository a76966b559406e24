//! What was found of one machine, run by run: of our monitor, the peer's, or the host.

use std::collections::{BTreeMap, BTreeSet};

use super::console::{self, Line};
use super::guest::{Finished, Moment, PartRun};
use super::statistics::{Spread, geometric_mean, ratio};

/// A guest's clock may be off from the host's by so much before its figures are called doubtful.
const CLOCK_TOLERANCE: f64 = 0.1;

/// The host counts processor time at its ticks, so that shorter times say nothing.
const LEAST_PROCESSOR_S: f64 = 0.01;

/// Something that is measured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// A level is up, after so many seconds, with that many levels altogether.
    Up { depth: u8, level: u8 },
    /// The monitor of so many levels ended.
    End { depth: u8 },
    /// The monitor's own memory in MiB.
    Memory,
    /// Millions of instructions a second.
    Speed,
    /// One of [`super::console::COUNTS`] for a million instructions of the boot.
    Count(usize),
    /// A part in a level, in nanoseconds an operation.
    Part { level: u8, name: String },
}

impl Figure {
    /// A part's figure.
    pub fn part(level: u8, name: &str) -> Self {
        Self::Part {
            level,
            name: name.to_string(),
        }
    }
}

/// One run's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// By the clock, or what is no time.
    pub value: f64,
    /// Processor time of the monitor in seconds.
    pub processor_s: Option<f64>,
}

impl From<Moment> for Sample {
    fn from(moment: Moment) -> Self {
        Self {
            value: moment.wall_s,
            processor_s: moment.user_s,
        }
    }
}

/// Which side of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// By the clock.
    Clock,
    /// By processor time.
    Processor,
}

impl Sample {
    fn side(&self, side: Side) -> Option<f64> {
        match side {
            Side::Clock => Some(self.value),
            Side::Processor => self.processor_s,
        }
    }
}

/// The work of a part: operations of a batch, and batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Operations of a batch.
    pub operations: f64,
    /// Batches.
    pub batches: f64,
}

/// All of one machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// What it is called.
    pub name: String,
    /// What went wrong.
    pub trouble: Vec<String>,
    /// What is doubtful.
    pub notes: Vec<String>,
    /// Parts that could not run, with the feature they lack and the levels.
    pub lacks: BTreeMap<(String, String), BTreeSet<u8>>,
    /// The work of each part.
    pub work: BTreeMap<String, Work>,
    sums: BTreeMap<String, BTreeSet<String>>,
    samples: BTreeMap<Figure, BTreeMap<usize, Sample>>,
}

impl Machine {
    /// Nothing found yet.
    pub fn new(name: String) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Adds a value of a run, unless that run has one.
    pub fn add(&mut self, run: usize, figure: Figure, sample: Sample) {
        let samples = self.samples.entry(figure).or_default();
        samples.entry(run).or_insert(sample);
    }

    /// Adds a part of a run.
    fn add_part(&mut self, run: usize, level: u8, name: &str, part: &PartRun) {
        let figures = &part.figures;
        let sample = Sample {
            value: figures.best_ns / figures.operations,
            processor_s: part.run_s,
        };
        self.add(run, Figure::part(level, name), sample);
        let work = Work {
            operations: figures.operations,
            batches: figures.batches,
        };
        self.work.insert(name.to_string(), work);
        let sums = self.sums.entry(name.to_string()).or_default();
        sums.insert(figures.sum.clone());
    }

    fn add_lack(&mut self, level: u8, part: &str, feature: &str) {
        let key = (part.to_string(), feature.to_string());
        self.lacks.entry(key).or_default().insert(level);
    }

    /// Takes what a run of guests gave. `what` says which in words; of images that measure themselves no times of the
    /// boot are taken.
    pub fn take(&mut self, run: usize, what: &str, depth: u8, measures: bool, found: &Finished) {
        let words = |why: &String| format!("{}, {what}, run {}: {why}", self.name, run + 1);
        self.trouble.extend(found.trouble.iter().map(words));
        for (&level, &clock) in &found.clocks {
            if (clock - 1.0).abs() > CLOCK_TOLERANCE {
                self.notes.push(format!(
                    "{}, {what}, run {}: level {level} counted {clock:.2} s a second, so its times are doubtful",
                    self.name,
                    run + 1
                ));
            }
        }
        for ((level, name), part) in &found.parts {
            let part = PartRun {
                run_s: part.run_s.filter(|run_s| *run_s >= LEAST_PROCESSOR_S),
                ..part.clone()
            };
            self.add_part(run, *level, name, &part);
        }
        for ((level, part), feature) in &found.lacks {
            self.add_lack(*level, part, feature);
        }
        if measures {
            return;
        }
        for (&level, &moment) in &found.up {
            self.add(run, Figure::Up { depth, level }, moment.into());
        }
        if let Some(moment) = found.end {
            self.add(run, Figure::End { depth }, moment.into());
        }
        let plain = |value| Sample {
            value,
            processor_s: None,
        };
        if depth == 2 {
            if let Some(bytes) = found.own_memory {
                self.add(
                    run,
                    Figure::Memory,
                    plain(bytes as f64 / f64::from(1 << 20)),
                );
            }
            if let Some(speed) = found.instructions_per_second {
                self.add(run, Figure::Speed, plain(speed / 1e6));
            }
            for (number, count) in found.counts.into_iter().flatten().enumerate() {
                self.add(run, Figure::Count(number), plain(count));
            }
        }
    }

    /// Takes what `guestbench` printed on the host. Its processor time is what all batches take at the speed of the
    /// fastest.
    pub fn take_native(&mut self, run: usize, text: &str) {
        for line in text.lines() {
            match console::parse(line) {
                Some(Line::Part(level, name, figures)) => {
                    let run_s = Some(figures.best_ns * figures.batches / 1e9);
                    let part = PartRun { figures, run_s };
                    self.add_part(run, level, &name, &part);
                }
                Some(Line::Lacks(level, part, feature)) => self.add_lack(level, &part, &feature),
                Some(Line::Wrong(_, part, why)) => {
                    self.trouble.push(format!("{}, {part}: {why}", self.name));
                }
                _ => {}
            }
        }
    }

    /// The value in a run.
    pub fn value(&self, run: usize, figure: &Figure, side: Side) -> Option<f64> {
        self.samples.get(figure)?.get(&run)?.side(side)
    }

    /// The values of all runs.
    pub fn spread(&self, figure: &Figure) -> Option<Spread> {
        let samples = self.samples.get(figure)?;
        Spread::of(samples.values().map(|sample| sample.value))
    }

    /// Whether any run has a value.
    pub fn has(&self, figure: &Figure, side: Side) -> bool {
        let samples = self.samples.get(figure).into_iter();
        samples
            .flat_map(BTreeMap::values)
            .any(|sample| sample.side(side).is_some())
    }

    /// The processor times of all runs, in seconds.
    pub fn processor(&self, figure: &Figure) -> Option<Spread> {
        let samples = self.samples.get(figure)?;
        Spread::of(samples.values().filter_map(|sample| sample.processor_s))
    }
}

/// The ratios of two figures in the runs that have both.
pub fn ratios(
    runs: usize,
    (over, of_over): (&Machine, &Figure),
    (under, of_under): (&Machine, &Figure),
    side: Side,
) -> Option<Spread> {
    Spread::of((0..runs).filter_map(|run| {
        ratio(
            over.value(run, of_over, side)?,
            under.value(run, of_under, side)?,
        )
    }))
}

/// The geometric mean of the ratios of many pairs of figures in each run, and of how many in the run with the most.
pub fn mean_ratios(
    runs: usize,
    over: &Machine,
    under: &Machine,
    pairs: &[(Figure, Figure)],
    side: Side,
) -> Option<(Spread, usize)> {
    let mut most = 0;
    let mut of_run = |run| {
        let ratios: Vec<f64> = pairs
            .iter()
            .filter_map(|(a, b)| ratio(over.value(run, a, side)?, under.value(run, b, side)?))
            .collect();
        most = most.max(ratios.len());
        geometric_mean(ratios)
    };
    let means: Vec<f64> = (0..runs).filter_map(&mut of_run).collect();
    Some((Spread::of(means)?, most))
}

/// What is wrong with the sums: a part that gave different ones.
pub fn different_sums(machines: &[&Machine]) -> Vec<String> {
    let mut sums: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for machine in machines {
        for (part, found) in &machine.sums {
            let all = sums.entry(part).or_default();
            all.extend(found.iter().map(String::as_str));
        }
    }
    sums.into_iter()
        .filter(|(_, sums)| sums.len() > 1)
        .map(|(part, sums)| {
            let sums: Vec<&str> = sums.into_iter().collect();
            format!("{part} gave different results: {}", sums.join(", "))
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A machine with values of parts: run, level, part, nanoseconds; its processor time is as many seconds.
    pub fn machine(name: &str, parts: &[(usize, u8, &str, f64)]) -> Machine {
        let mut machine = Machine::new(name.into());
        for &(run, level, part, value) in parts {
            let sample = Sample {
                value,
                processor_s: Some(value),
            };
            machine.add(run, Figure::part(level, part), sample);
        }
        machine
    }

    #[test]
    fn ratios_are_of_the_same_run() {
        let ours = machine(
            "ours",
            &[(0, 1, "crc", 10.0), (1, 1, "crc", 40.0), (2, 1, "crc", 1.0)],
        );
        let peer = machine("peer", &[(0, 1, "crc", 20.0), (1, 1, "crc", 20.0)]);
        let crc = Figure::part(1, "crc");
        let found = ratios(3, (&peer, &crc), (&ours, &crc), Side::Clock).expect("two runs");
        assert_eq!((found.low, found.median, found.high), (0.5, 1.25, 2.0));
        let other = Figure::part(2, "crc");
        assert_eq!(ratios(3, (&peer, &other), (&ours, &crc), Side::Clock), None);
    }

    #[test]
    fn means_are_of_parts_both_have() {
        let ours = machine(
            "ours",
            &[(0, 1, "a", 1.0), (0, 1, "b", 1.0), (0, 1, "c", 1.0)],
        );
        let peer = machine("peer", &[(0, 1, "a", 2.0), (0, 1, "b", 8.0)]);
        let pairs = ["a", "b", "c"].map(|name| (Figure::part(1, name), Figure::part(1, name)));
        let (mean, count) = mean_ratios(1, &peer, &ours, &pairs, Side::Processor).expect("two");
        assert!((mean.median - 4.0).abs() < 1e-9);
        assert_eq!(count, 2);
    }

    #[test]
    fn a_native_run_is_taken_and_sums_are_compared() {
        let line = |sum| {
            format!(
                "NESTLING-BENCH 0 part crc operations=4 batches=2 total_ns=90 best_ns=40 sum={sum}\n"
            )
        };
        let mut host = Machine::new("host".into());
        host.take_native(0, &line("a"));
        host.take_native(
            1,
            "NESTLING-BENCH 0 lacks sha-plain sha\nNESTLING-BENCH 0 wrong xz it is off",
        );
        assert_eq!(
            host.spread(&Figure::part(0, "crc")).map(|s| s.median),
            Some(10.0)
        );
        assert_eq!(host.work["crc"].batches, 2.0);
        assert_eq!(host.lacks.len(), 1);
        assert_eq!(host.trouble, ["host, xz: it is off"]);
        let mut other = Machine::new("other".into());
        other.take_native(0, &line("a"));
        assert!(different_sums(&[&host, &other]).is_empty());
        other.take_native(1, &line("b"));
        assert_eq!(
            different_sums(&[&host, &other]),
            ["crc gave different results: a, b"]
        );
    }

    #[test]
    fn a_run_of_guests_is_taken() {
        let moment = |wall_s| Moment {
            wall_s,
            user_s: Some(wall_s / 2.0),
            run_s: None,
        };
        let mut found = Finished::default();
        found.up.insert(1, moment(2.0));
        found.end = Some(moment(9.0));
        found.own_memory = Some(3 << 20);
        found.clocks.insert(1, 0.5);
        found.trouble = Some("it broke".into());
        let mut ours = Machine::new("ours".into());
        ours.take(0, "boot", 2, false, &found);
        let up = Figure::Up { depth: 2, level: 1 };
        assert_eq!(ours.value(0, &up, Side::Clock), Some(2.0));
        assert_eq!(ours.value(0, &up, Side::Processor), Some(1.0));
        assert_eq!(ours.spread(&Figure::Memory).map(|s| s.median), Some(3.0));
        assert_eq!(ours.trouble, ["ours, boot, run 1: it broke"]);
        assert!(ours.notes[0].contains("counted 0.50 s"), "{:?}", ours.notes);
        // A run that measures parts says nothing of a boot.
        ours.take(1, "parts", 2, true, &found);
        assert_eq!(ours.value(1, &up, Side::Clock), None);
    }
}
