//! The result, for people and for programs. Where both have a figure, the peer's and the host's stand beside ours as
//! ratios: `ours/peer` of times is above 1 where ours is slower; `slowdown` is against the host itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::console::Stats;
use super::guest::Finished;

/// The parts in the order they are shown, and what an operation of each is.
const PARTS: [(&str, &str); 8] = [
    ("crc", "byte"),
    ("sieve", "number"),
    ("sort", "element"),
    ("float", "step of an orbit"),
    ("syscall", "getppid"),
    ("fork", "fork, exit, wait"),
    ("page-fault", "fresh 4 KiB page"),
    ("cpuid", "CPUID"),
];
/// The levels the parts run in.
const LEVELS: [u8; 2] = [1, 2];
/// A guest's clock may be off from the host's by so much before its figures are called doubtful.
const CLOCK_TOLERANCE: f64 = 0.1;

/// How a boot went, in seconds from the monitor's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Boot {
    /// Level 1 has user space.
    pub l1_up_s: Option<f64>,
    /// Level 2 has user space.
    pub l2_up_s: Option<f64>,
    /// The monitor ended by itself.
    pub end_s: Option<f64>,
    /// Instructions the software engine executed.
    pub instructions: Option<u64>,
    /// Those of them in a second, idle time included.
    pub instructions_per_second: Option<u64>,
}

impl Boot {
    /// The boot in a run.
    pub fn of(run: &Finished) -> Self {
        let up = |level| Some(run.up.get(&level)?.as_secs_f64());
        Self {
            l1_up_s: up(1),
            l2_up_s: up(2),
            end_s: run.end.map(|end| end.as_secs_f64()),
            instructions: run.stats.map(|Stats { instructions, .. }| instructions),
            instructions_per_second: run.stats.map(|stats| stats.instructions_per_second),
        }
    }

    fn times(&self) -> [(&'static str, Option<f64>); 3] {
        [
            ("to L1 user space", self.l1_up_s),
            ("to L2 user space", self.l2_up_s),
            ("to the end", self.end_s),
        ]
    }
}

/// What one monitor gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The monitor.
    pub name: String,
    /// What went wrong in its runs.
    pub trouble: Vec<String>,
    /// The run of the plain images.
    pub boot: Boot,
    /// Nanoseconds an operation, by level and part.
    pub parts: BTreeMap<u8, BTreeMap<String, f64>>,
    /// A guest's seconds for a second of the host, by level.
    pub clocks: BTreeMap<u8, f64>,
}

impl Measured {
    fn part(&self, level: u8, name: &str) -> Option<f64> {
        self.parts.get(&level)?.get(name).copied()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.trouble.clone();
        for (level, clock) in &self.clocks {
            if (clock - 1.0).abs() > CLOCK_TOLERANCE {
                notes.push(format!(
                    "{}, level {level}: its clock ran {clock:.2} s for each second of the host, so its figures are doubtful",
                    self.name
                ));
            }
        }
        notes
    }
}

/// Everything a run of the bench found.
#[derive(Debug)]
pub struct Outcome {
    /// The host's load before.
    load_before: Option<f64>,
    /// And after.
    pub load_after: Option<f64>,
    /// Nanoseconds an operation on the host.
    pub native: BTreeMap<String, f64>,
    /// Ours.
    pub nestling: Measured,
    /// The peer.
    pub peer: Option<Measured>,
}

/// The host's load average over a minute.
pub fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// The host's processor by its own name, and how many of them there are.
fn processor() -> (String, usize) {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (name.to_string(), count)
}

fn ratio(over: Option<f64>, under: Option<f64>) -> Option<f64> {
    let (over, under) = (over?, under?);
    (under > 0.0).then(|| over / under)
}

impl Outcome {
    /// Nothing found yet.
    pub fn new(load_before: Option<f64>) -> Self {
        Self {
            load_before,
            load_after: None,
            native: BTreeMap::new(),
            nestling: Measured::default(),
            peer: None,
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.nestling.notes();
        notes.extend(self.peer.iter().flat_map(Measured::notes));
        notes
    }

    /// The result as Markdown tables.
    pub fn text(&self) -> String {
        let (name, count) = processor();
        let load = |load: Option<f64>| load.map_or("unknown".into(), |load| format!("{load:.1}"));
        let mut text = format!(
            "{count} x {name}, load {} before and {} after\n\n",
            load(self.load_before),
            load(self.load_after)
        );
        text += &table(&self.boot_rows());
        for level in LEVELS {
            let _ = write!(text, "\nLevel {level}, nanoseconds an operation\n\n");
            text += &table(&self.part_rows(level));
        }
        let notes = self.notes();
        if !notes.is_empty() {
            text += "\n";
        }
        for note in notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }

    fn peer_name(&self) -> Option<&str> {
        self.peer.as_ref().map(|peer| peer.name.as_str())
    }

    fn boot_rows(&self) -> Vec<Vec<String>> {
        let mut head = vec!["boot".to_string(), self.nestling.name.clone()];
        if let Some(peer) = self.peer_name() {
            head.extend([peer.to_string(), "ours/peer".into()]);
        }
        let mut rows = vec![head];
        let theirs = self.peer.as_ref().map(|peer| peer.boot.times());
        for (index, (what, ours)) in self.nestling.boot.times().into_iter().enumerate() {
            let mut row = vec![what.to_string(), with_unit(ours, "s")];
            if let Some(theirs) = theirs {
                let (_, theirs) = theirs[index];
                row.extend([with_unit(theirs, "s"), with_unit(ratio(ours, theirs), "x")]);
            }
            rows.push(row);
        }
        let millions = self.nestling.boot.instructions_per_second;
        let millions = millions.map_or("-".into(), |n| (n / 1_000_000).to_string());
        let mut row = vec!["million instructions a second".to_string(), millions];
        row.resize(rows[0].len(), "-".into());
        rows.push(row);
        rows
    }

    fn part_rows(&self, level: u8) -> Vec<Vec<String>> {
        let mut head: Vec<String> = ["part", "operation", "native", &self.nestling.name]
            .map(String::from)
            .into();
        head.push("slowdown".into());
        if let Some(peer) = self.peer_name() {
            head.extend([peer, "slowdown", "ours/peer"].map(String::from));
        }
        let mut rows = vec![head];
        for (name, operation) in PARTS {
            let native = self.native.get(name).copied();
            let ours = self.nestling.part(level, name);
            let mut row = vec![
                name.to_string(),
                operation.to_string(),
                figure(native),
                figure(ours),
                with_unit(ratio(ours, native), "x"),
            ];
            if let Some(peer) = &self.peer {
                let theirs = peer.part(level, name);
                row.extend([
                    figure(theirs),
                    with_unit(ratio(theirs, native), "x"),
                    with_unit(ratio(ours, theirs), "x"),
                ]);
            }
            rows.push(row);
        }
        rows
    }

    /// The result for programs.
    pub fn data(&self) -> Data {
        let (processor, processors) = processor();
        let part = |level, &(name, operation): &(&'static str, &'static str)| {
            let native_ns = self.native.get(name).copied();
            let nestling_ns = self.nestling.part(level, name);
            let peer_ns = self.peer.as_ref().and_then(|peer| peer.part(level, name));
            PartData {
                level,
                part: name,
                operation,
                native_ns,
                nestling_ns,
                peer_ns,
                nestling_slowdown: ratio(nestling_ns, native_ns),
                peer_slowdown: ratio(peer_ns, native_ns),
                ours_to_peer: ratio(nestling_ns, peer_ns),
            }
        };
        let parts = LEVELS
            .iter()
            .flat_map(|&level| PARTS.iter().map(move |p| part(level, p)));
        Data {
            processor,
            processors,
            load_before: self.load_before,
            load_after: self.load_after,
            peer: self.peer_name().map(String::from),
            nestling_boot: self.nestling.boot.clone(),
            peer_boot: self.peer.as_ref().map(|peer| peer.boot.clone()),
            parts: parts.collect(),
            nestling_clocks: self.nestling.clocks.clone(),
            peer_clocks: self.peer.as_ref().map(|peer| peer.clocks.clone()),
            notes: self.notes(),
        }
    }
}

/// The result as `--format json` prints it. A figure that is missing is null.
#[derive(Debug, Serialize)]
pub struct Data {
    processor: String,
    processors: usize,
    load_before: Option<f64>,
    load_after: Option<f64>,
    peer: Option<String>,
    nestling_boot: Boot,
    peer_boot: Option<Boot>,
    parts: Vec<PartData>,
    nestling_clocks: BTreeMap<u8, f64>,
    peer_clocks: Option<BTreeMap<u8, f64>>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PartData {
    level: u8,
    part: &'static str,
    operation: &'static str,
    native_ns: Option<f64>,
    nestling_ns: Option<f64>,
    peer_ns: Option<f64>,
    nestling_slowdown: Option<f64>,
    peer_slowdown: Option<f64>,
    ours_to_peer: Option<f64>,
}

/// A number with three digits that count, or all before the point.
fn figure(number: Option<f64>) -> String {
    match number {
        None => "-".into(),
        Some(n) if n < 10.0 => format!("{n:.2}"),
        Some(n) if n < 100.0 => format!("{n:.1}"),
        Some(n) => format!("{n:.0}"),
    }
}

fn with_unit(number: Option<f64>, unit: &str) -> String {
    match number {
        None => "-".into(),
        Some(_) => format!("{} {unit}", figure(number)),
    }
}

/// Rows as a Markdown table with straight columns; the first row is the head. The first column is of words, and so
/// is the second where it is called "operation"; the others are of numbers and stand to the right.
fn table(rows: &[Vec<String>]) -> String {
    let Some(head) = rows.first() else {
        return String::new();
    };
    let of_words = |column: usize| column == 0 || head[column] == "operation";
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match of_words(column) {
                true => write!(text, "| {cell:<width$} "),
                false => write!(text, "| {cell:>width$} "),
            };
        }
        text += "|\n";
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let _ = match of_words(column) {
                    true => write!(text, "| {:-<width$} ", ""),
                    false => write!(text, "| {:->width$}:", "", width = width),
                };
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(figures: &[(u8, &str, f64)]) -> BTreeMap<u8, BTreeMap<String, f64>> {
        let mut parts: BTreeMap<u8, BTreeMap<String, f64>> = BTreeMap::new();
        for &(level, name, ns) in figures {
            parts.entry(level).or_default().insert(name.into(), ns);
        }
        parts
    }

    fn outcome() -> Outcome {
        let boot = |end| Boot {
            l1_up_s: Some(2.0),
            l2_up_s: Some(10.0),
            end_s: Some(end),
            instructions: Some(1_200_000_000),
            instructions_per_second: Some(120_500_000),
        };
        let mut outcome = Outcome::new(Some(0.25));
        outcome.native.insert("crc".into(), 2.0);
        outcome.nestling = Measured {
            name: "ours".into(),
            boot: boot(12.0),
            parts: parts(&[(1, "crc", 100.0), (1, "cpuid", 500.0), (2, "crc", 110.0)]),
            ..Measured::default()
        };
        outcome.peer = Some(Measured {
            name: "theirs".into(),
            trouble: vec!["theirs, parts: level 2 did not come up".into()],
            boot: boot(6.0),
            parts: parts(&[(1, "crc", 10.0)]),
            clocks: BTreeMap::from([(1, 0.5)]),
        });
        outcome
    }

    #[test]
    fn ratios_are_ours_over_the_others() {
        let data = outcome().data();
        let crc = &data.parts[0];
        assert_eq!((crc.level, crc.part), (1, "crc"));
        assert_eq!(crc.nestling_slowdown, Some(50.0));
        assert_eq!(crc.peer_slowdown, Some(5.0));
        assert_eq!(crc.ours_to_peer, Some(10.0));
        let inner = &data.parts[PARTS.len()];
        assert_eq!((inner.level, inner.part), (2, "crc"));
        assert_eq!(inner.ours_to_peer, None);
        assert_eq!(data.notes.len(), 2);
        assert!(data.notes[1].contains("0.50 s"), "{}", data.notes[1]);
        let json = serde_json::to_value(&data).expect("plain data");
        assert_eq!(json["parts"][0]["ours_to_peer"], 10.0);
        assert_eq!(json["nestling_clocks"], serde_json::json!({}));
    }

    #[test]
    fn the_text_has_a_row_for_every_part_and_level() {
        let text = outcome().text();
        for (name, _) in PARTS {
            let rows = text.matches(&format!("\n| {name} ")).count();
            assert_eq!(rows, LEVELS.len(), "{name} in\n{text}");
        }
        assert!(
            text.contains("| to the end                    | 12.0 s | 6.00 s |    2.00 x |"),
            "{text}"
        );
        assert!(text.contains("|    120 |"), "{text}");
        assert!(text.contains("- theirs, parts: level 2 did not come up\n"));
    }

    #[test]
    fn without_a_peer_its_columns_are_left_out() {
        let mut outcome = outcome();
        outcome.peer = None;
        let text = outcome.text();
        assert!(!text.contains("peer"), "{text}");
        assert!(text.contains("| slowdown |"), "{text}");
    }
}
