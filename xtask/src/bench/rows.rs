//! From what was measured to the rows of the result. A ratio above 1 is in our favour: it is of the peer's times by
//! ours.

use std::collections::BTreeMap;

use serde::Serialize;

use super::catalogue::{Catalogue, PartInfo};
use super::console::COUNTS;
use super::figures::{Figure, Machine, Side, Work, mean_ratios, ratios};
use super::statistics::Spread;

/// The levels that parts run in.
const LEVELS: [u8; 2] = [1, 2];
/// The part that exits.
const EXIT: &str = "cpuid";
/// The groups with means of their own, and how they are called.
const GROUPS: [(&str, &str); 3] = [
    ("compute", "computing"),
    ("program", "programs"),
    ("kernel", "kernel"),
];

/// A line of the result. What is missing was not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// What it is about.
    pub what: String,
    /// The unit of `native`, `ours` and `peer`.
    pub unit: &'static str,
    /// The host's.
    pub native: Option<Spread>,
    /// Our monitor's.
    pub ours: Option<Spread>,
    /// The peer's.
    pub peer: Option<Spread>,
    /// The peer's by ours, run by run.
    pub peer_to_ours: Option<Spread>,
    /// The same of processor time.
    pub peer_to_ours_processor: Option<Spread>,
    /// Our monitor's processor time in seconds.
    pub ours_processor_s: Option<Spread>,
    /// The peer's.
    pub peer_processor_s: Option<Spread>,
}

/// A part in a level.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartRow {
    /// The level.
    pub level: u8,
    /// What it is about.
    pub group: String,
    /// What one operation is.
    pub operation: String,
    /// Operations of a batch.
    pub operations: Option<f64>,
    /// Batches of a run.
    pub batches: Option<f64>,
    /// Our time by the host's.
    pub slowdown: Option<Spread>,
    /// The peer's time by the host's.
    pub peer_slowdown: Option<Spread>,
    /// Its times.
    #[serde(flatten)]
    pub row: Row,
}

/// All that was measured.
pub struct Measured {
    /// The parts that were asked for.
    pub catalogue: Catalogue,
    /// How many runs.
    pub runs: usize,
    /// The host.
    pub native: Machine,
    /// Our monitor.
    pub ours: Machine,
    /// The peer.
    pub peer: Option<Machine>,
}

impl Measured {
    fn figure(&self, what: String, unit: &'static str, figure: &Figure) -> Row {
        let peer = self.peer.as_ref();
        let ratio = |side| ratios(self.runs, (peer?, figure), (&self.ours, figure), side);
        Row {
            what,
            unit,
            native: None,
            ours: self.ours.spread(figure),
            peer: peer.and_then(|peer| peer.spread(figure)),
            peer_to_ours: ratio(Side::Clock),
            peer_to_ours_processor: ratio(Side::Processor),
            ours_processor_s: self.ours.processor(figure),
            peer_processor_s: peer.and_then(|peer| peer.processor(figure)),
        }
    }

    /// The table in short: what a user of the whole notices, and means.
    pub fn summary(&self) -> Vec<Row> {
        let mut rows = self.boots();
        for level in LEVELS {
            rows.extend(self.means(level));
        }
        for side in [Side::Clock, Side::Processor] {
            rows.extend(LEVELS.map(|level| self.slowdown(level, side)));
            rows.push(self.inner_to_outer(side));
        }
        for level in [2, 3] {
            let what = format!("CPUID in L{level}");
            rows.push(self.figure(what, "ns", &Figure::part(level, EXIT)));
        }
        let what = "monitor's own memory after the boot of L2".to_string();
        rows.push(self.figure(what, "MiB", &Figure::Memory));
        rows.push(self.two_processors());
        rows.push(self.figure(
            "million instructions a second, boot".into(),
            "",
            &Figure::Speed,
        ));
        for (number, (counted, _)) in COUNTS.iter().enumerate() {
            let what = format!("{counted}, of a million instructions of the boot");
            rows.push(self.figure(what, "", &Figure::Count(number)));
        }
        rows.retain(|row| row.ours.is_some() || row.peer.is_some() || row.peer_to_ours.is_some());
        rows
    }

    fn boots(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for depth in [2, 3] {
            for level in 1..=depth {
                let what = format!("{depth} levels: to L{level} user space");
                rows.push(self.figure(what, "s", &Figure::Up { depth, level }));
            }
            let what = format!("{depth} levels: to the end");
            rows.push(self.figure(what, "s", &Figure::End { depth }));
        }
        rows
    }

    /// Ratios of the parts of each group in a level, and of all of them.
    fn means(&self, level: u8) -> Vec<Row> {
        let mut rows = Vec::new();
        let all = [("all of these", ["compute", "program", "kernel"].as_slice())];
        let groups = GROUPS.map(|(group, words)| (words, [group]));
        let groups = groups
            .iter()
            .map(|(words, group)| (*words, group.as_slice()));
        for (words, groups) in groups.chain(all) {
            let parts = self.catalogue.iter();
            let pairs: Vec<_> = parts
                .filter(|part| groups.contains(&part.group.as_str()))
                .map(|part| {
                    (
                        Figure::part(level, &part.name),
                        Figure::part(level, &part.name),
                    )
                })
                .collect();
            let mean = |side| {
                let peer = self.peer.as_ref()?;
                mean_ratios(self.runs, peer, &self.ours, &pairs, side)
            };
            let (clock, processor) = (mean(Side::Clock), mean(Side::Processor));
            let count = clock.map_or(0, |(_, count)| count);
            rows.push(Row {
                what: format!("L{level}, {words}: mean of {count} parts"),
                peer_to_ours: clock.map(|(spread, _)| spread),
                peer_to_ours_processor: processor.map(|(spread, _)| spread),
                ..Row::default()
            });
        }
        rows
    }

    /// Whether ours has it, and the peer's if there is one: means are of the same parts.
    fn all_have(&self, figure: &Figure, side: Side) -> bool {
        let mut machines = [&self.ours].into_iter().chain(&self.peer);
        machines.all(|machine| machine.has(figure, side))
    }

    /// How much slower than the host: the mean of what the host and both monitors have figures for.
    fn slowdown(&self, level: u8, side: Side) -> Row {
        let pairs: Vec<_> = self
            .catalogue
            .iter()
            .filter(|part| part.group == "compute" || part.group == "program")
            .map(|part| (Figure::part(level, &part.name), Figure::part(0, &part.name)))
            .filter(|(here, _)| self.all_have(here, side))
            .collect();
        let mean = |machine: &Machine| {
            let found = mean_ratios(self.runs, machine, &self.native, &pairs, side);
            found.map(|(spread, _)| spread)
        };
        let (ours, peer) = (mean(&self.ours), self.peer.as_ref().and_then(mean));
        let what = format!("L{level} / native, computing and programs");
        self.of_means(what, side, ours, peer)
    }

    fn inner_to_outer(&self, side: Side) -> Row {
        let pairs: Vec<_> = self
            .catalogue
            .group("compute")
            .map(|part| (Figure::part(2, &part.name), Figure::part(1, &part.name)))
            .filter(|(inner, outer)| self.all_have(inner, side) && self.all_have(outer, side))
            .collect();
        let mean = |machine: &Machine| {
            let found = mean_ratios(self.runs, machine, machine, &pairs, side);
            found.map(|(spread, _)| spread)
        };
        let (ours, peer) = (mean(&self.ours), self.peer.as_ref().and_then(mean));
        self.of_means("L2 / L1, computing".into(), side, ours, peer)
    }

    /// A row of figures without a unit, whose ratio is of the medians.
    fn of_means(
        &self,
        what: String,
        side: Side,
        ours: Option<Spread>,
        peer: Option<Spread>,
    ) -> Row {
        let ratio = ours
            .zip(peer)
            .and_then(|(ours, peer)| Spread::of([peer.median / ours.median]));
        let (words, clock, processor) = match side {
            Side::Clock => ("", ratio, None),
            Side::Processor => (", by processor time", None, ratio),
        };
        Row {
            what: what + words,
            unit: "x",
            ours,
            peer,
            peer_to_ours: clock,
            peer_to_ours_processor: processor,
            ..Row::default()
        }
    }

    /// What two busy processors do, by what one does. No ratio: more is better here.
    fn two_processors(&self) -> Row {
        let gain = |machine: &Machine, level| {
            let [one, two] = ["one-busy", "two-busy"].map(|name| Figure::part(level, name));
            ratios(self.runs, (machine, &one), (machine, &two), Side::Clock)
        };
        Row {
            what: "two busy processors / one".into(),
            unit: "x",
            native: gain(&self.native, 0),
            ours: gain(&self.ours, 1),
            peer: self.peer.as_ref().and_then(|peer| gain(peer, 1)),
            ..Row::default()
        }
    }

    /// The parts of a level that ran.
    pub fn parts(&self, level: u8) -> Vec<PartRow> {
        let parts = self.catalogue.iter();
        parts
            .filter(|part| part.group != "processors")
            .map(|part| self.part(level, part))
            .filter(|part| part.row.ours.is_some() || part.row.peer.is_some())
            .collect()
    }

    fn part(&self, level: u8, part: &PartInfo) -> PartRow {
        let (here, native) = (Figure::part(level, &part.name), Figure::part(0, &part.name));
        let mut row = self.figure(part.name.clone(), "ns", &here);
        row.native = self.native.spread(&native);
        let slowdown = |machine: &Machine| {
            ratios(
                self.runs,
                (machine, &here),
                (&self.native, &native),
                Side::Clock,
            )
        };
        let work: BTreeMap<&str, &Work> = self
            .peer
            .iter()
            .chain([&self.ours])
            .flat_map(|machine| machine.work.iter())
            .map(|(name, work)| (name.as_str(), work))
            .collect();
        let work = work.get(part.name.as_str());
        PartRow {
            level,
            group: part.group.clone(),
            operation: part.operation.clone(),
            operations: work.map(|work| work.operations),
            batches: work.map(|work| work.batches),
            slowdown: slowdown(&self.ours),
            peer_slowdown: self.peer.as_ref().and_then(slowdown),
            row,
        }
    }

    /// The levels that have parts.
    pub fn levels(&self) -> impl Iterator<Item = u8> {
        LEVELS
            .into_iter()
            .filter(|level| !self.parts(*level).is_empty())
    }

    /// What a reader has to know besides the figures.
    pub fn notes(&self) -> Vec<String> {
        let machines = [&self.native, &self.ours].into_iter().chain(&self.peer);
        let mut notes = Vec::new();
        for machine in machines {
            for ((part, feature), levels) in &machine.lacks {
                let levels: Vec<String> = levels.iter().map(|level| format!("L{level}")).collect();
                let place = match levels.join(", ").as_str() {
                    "L0" => String::new(),
                    levels => format!(" in {levels}"),
                };
                notes.push(format!("{part}: {} has no {feature}{place}", machine.name));
            }
            notes.extend(machine.notes.iter().cloned());
        }
        notes
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::catalogue::tests::sample;
    use super::super::figures::Sample;
    use super::super::figures::tests::machine;
    use super::*;

    /// Ours is ten times slower than the host and half as fast as the peer; sort has no figure of the peer's.
    pub fn measured() -> Measured {
        let native = machine("host", &[(0, 0, "crc", 1.0), (0, 0, "sort", 2.0)]);
        let mut ours = machine(
            "ours",
            &[
                (0, 1, "crc", 10.0),
                (0, 1, "sort", 90.0),
                (0, 2, "crc", 20.0),
                (0, 2, "cpuid", 100.0),
                (0, 3, "cpuid", 900.0),
                (0, 1, "one-busy", 8.0),
                (0, 1, "two-busy", 5.0),
            ],
        );
        let mut peer = machine(
            "peer",
            &[
                (0, 1, "crc", 5.0),
                (0, 2, "crc", 5.0),
                (0, 2, "cpuid", 800.0),
            ],
        );
        let lack = ("sort".to_string(), "sha".to_string());
        peer.lacks.entry(lack).or_default().extend([1, 2]);
        for (machine, value) in [(&mut ours, 30.0), (&mut peer, 15.0)] {
            let sample = Sample {
                value,
                processor_s: Some(value / 3.0),
            };
            machine.add(0, Figure::End { depth: 2 }, sample);
        }
        Measured {
            catalogue: sample(),
            runs: 1,
            native,
            ours,
            peer: Some(peer),
        }
    }

    fn row(rows: &[Row], what: &str) -> Row {
        let found = rows.iter().find(|row| row.what == what);
        found
            .unwrap_or_else(|| panic!("no row {what} in {rows:#?}"))
            .clone()
    }

    fn median(spread: Option<Spread>) -> Option<f64> {
        spread.map(|spread| (spread.median * 1e6).round() / 1e6)
    }

    #[test]
    fn the_summary_has_the_peers_by_ours() {
        let rows = measured().summary();
        let ratio = |what| median(row(&rows, what).peer_to_ours);
        assert_eq!(ratio("2 levels: to the end"), Some(0.5));
        assert_eq!(ratio("L1, computing: mean of 1 parts"), Some(0.5));
        assert_eq!(ratio("L2, computing: mean of 1 parts"), Some(0.25));
        assert_eq!(ratio("CPUID in L2"), Some(8.0));
        let end = row(&rows, "2 levels: to the end");
        assert_eq!(median(end.peer_to_ours_processor), Some(0.5));
        assert_eq!(median(end.ours_processor_s), Some(10.0));
        let deep = row(&rows, "CPUID in L3");
        assert_eq!((median(deep.ours), median(deep.peer)), (Some(900.0), None));
        // What was not measured has no row.
        assert!(!rows.iter().any(|row| row.what.starts_with("3 levels")));
    }

    #[test]
    fn slowdowns_and_levels_are_means() {
        let rows = measured().summary();
        let native = row(&rows, "L1 / native, computing and programs");
        assert_eq!(
            (median(native.ours), median(native.peer)),
            (Some(10.0), Some(5.0))
        );
        assert_eq!(median(native.peer_to_ours), Some(0.5));
        let processor = row(
            &rows,
            "L1 / native, computing and programs, by processor time",
        );
        assert_eq!(median(processor.peer_to_ours_processor), Some(0.5));
        assert_eq!(processor.peer_to_ours, None);
        let levels = row(&rows, "L2 / L1, computing");
        assert_eq!(
            (median(levels.ours), median(levels.peer)),
            (Some(2.0), Some(1.0))
        );
        let two = row(&rows, "two busy processors / one");
        assert_eq!((median(two.ours), two.peer_to_ours), (Some(1.6), None));
    }

    #[test]
    fn parts_have_all_machines() {
        let measured = measured();
        assert_eq!(measured.levels().collect::<Vec<_>>(), [1, 2]);
        let parts = measured.parts(1);
        let names: Vec<_> = parts.iter().map(|part| part.row.what.as_str()).collect();
        assert_eq!(names, ["crc", "sort"]);
        assert_eq!(median(parts[0].slowdown), Some(10.0));
        assert_eq!(median(parts[0].peer_slowdown), Some(5.0));
        assert_eq!(median(parts[0].row.peer_to_ours), Some(0.5));
        assert_eq!(parts[1].row.peer_to_ours, None);
        assert_eq!(measured.notes(), ["sort: peer has no sha in L1, L2"]);
    }
}
