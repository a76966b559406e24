//! The result, for people as Markdown and for programs as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::rows::{Measured, PartRow, Row};
use super::statistics::Spread;

/// What is said of the machine and the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Circumstances {
    /// The host's processor by its own name.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// How many processes were ready to run before it began, on average over a minute.
    pub load_before: Option<f64>,
    /// The same at the end.
    pub load_after: Option<f64>,
    /// How many runs.
    pub runs: usize,
    /// A twentieth of the work.
    pub quick: bool,
    /// What runs the inner levels under both monitors.
    pub inner_monitor: String,
}

impl Circumstances {
    /// Those of this host now.
    pub fn now(runs: usize, quick: bool, inner_monitor: &str) -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim());
        Self {
            processor: name.to_string(),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            load_before: load(),
            load_after: None,
            runs,
            quick,
            inner_monitor: inner_monitor.to_string(),
        }
    }

    /// Nothing is measured any more.
    pub fn end(&mut self) {
        self.load_after = load();
    }

    fn text(&self) -> String {
        let load = |load: Option<f64>| load.map_or("unknown".into(), |load| format!("{load:.1}"));
        format!(
            "{} x {}, load {} before and {} after; {} {}{}; {} in L1",
            self.processors,
            self.processor,
            load(self.load_before),
            load(self.load_after),
            self.runs,
            if self.runs == 1 { "run" } else { "runs" },
            if self.quick { ", quick" } else { "" },
            self.inner_monitor,
        )
    }
}

/// How many processes want to run, on average over the last minute.
fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// The result as `--format json` prints it. What is missing is null.
#[derive(Debug, Serialize)]
pub struct Data {
    circumstances: Circumstances,
    ours: String,
    peer: Option<String>,
    summary: Vec<Row>,
    parts: Vec<PartRow>,
    notes: Vec<String>,
    trouble: Vec<String>,
}

/// The result for programs.
pub fn data(circumstances: &Circumstances, measured: &Measured, trouble: &[String]) -> Data {
    Data {
        circumstances: circumstances.clone(),
        ours: measured.ours.name.clone(),
        peer: measured.peer.as_ref().map(|peer| peer.name.clone()),
        summary: measured.summary(),
        parts: measured.levels().flat_map(|l| measured.parts(l)).collect(),
        notes: measured.notes(),
        trouble: trouble.to_vec(),
    }
}

/// The result as Markdown.
pub fn text(circumstances: &Circumstances, measured: &Measured, trouble: &[String]) -> String {
    let mut text = format!("{}\n\n", circumstances.text());
    text += &table(&summary_cells(measured), 1);
    for level in measured.levels() {
        let _ = write!(text, "\nLevel {level}, nanoseconds an operation\n\n");
        text += &table(&part_cells(measured, level), 3);
    }
    let notes = measured.notes();
    let lines = trouble
        .iter()
        .map(|line| format!("wrong: {line}"))
        .chain(notes);
    for (number, line) in lines.enumerate() {
        let _ = writeln!(text, "{}- {line}", if number == 0 { "\n" } else { "" });
    }
    text
}

fn summary_cells(measured: &Measured) -> Vec<Vec<String>> {
    let mut head = vec!["what".to_string(), measured.ours.name.clone()];
    let peer = measured.peer.as_ref();
    if let Some(peer) = peer {
        head.extend([&peer.name, "peer/ours", "by processor time"].map(String::from));
    }
    let mut rows = vec![head];
    for row in measured.summary() {
        let mut cells = vec![row.what.clone(), with_unit(row.ours, row.unit)];
        if peer.is_some() {
            cells.extend([
                with_unit(row.peer, row.unit),
                with_range(row.peer_to_ours),
                with_range(row.peer_to_ours_processor),
            ]);
        }
        if let Some(native) = row.native {
            let _ = write!(cells[0], " (host: {})", with_unit(Some(native), row.unit));
        }
        rows.push(cells);
    }
    rows
}

fn part_cells(measured: &Measured, level: u8) -> Vec<Vec<String>> {
    let mut head: Vec<String> = ["part", "operation", "work", "native", &measured.ours.name]
        .map(String::from)
        .into();
    head.push("slowdown".into());
    let peer = measured.peer.as_ref();
    if let Some(peer) = peer {
        let more = [&peer.name, "slowdown", "peer/ours", "by processor time"];
        head.extend(more.map(String::from));
    }
    let mut rows = vec![head];
    for part in measured.parts(level) {
        let work = part.operations.zip(part.batches);
        let mut cells = vec![
            part.row.what.clone(),
            part.operation.clone(),
            work.map_or("-".into(), |(operations, batches)| {
                format!("{batches} x {operations}")
            }),
            figure(part.row.native),
            figure(part.row.ours),
            with_unit(part.slowdown, "x"),
        ];
        if peer.is_some() {
            cells.extend([
                figure(part.row.peer),
                with_unit(part.peer_slowdown, "x"),
                with_range(part.row.peer_to_ours),
                with_range(part.row.peer_to_ours_processor),
            ]);
        }
        rows.push(cells);
    }
    rows
}

/// Three digits that count, or all before the point.
fn digits(number: f64) -> String {
    match number {
        n if n < 0.1 => format!("{n:.3}"),
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

fn figure(spread: Option<Spread>) -> String {
    spread.map_or("-".into(), |spread| digits(spread.median))
}

fn with_unit(spread: Option<Spread>, unit: &str) -> String {
    let text = figure(spread);
    match (spread, unit) {
        (None, _) | (_, "") => text,
        _ => format!("{text} {unit}"),
    }
}

/// A ratio with the smallest and the largest of the runs, if they differ.
fn with_range(spread: Option<Spread>) -> String {
    let Some(Spread { median, low, high }) = spread else {
        return "-".into();
    };
    let (low, high) = (digits(low), digits(high));
    match low == high {
        true => format!("{} x", digits(median)),
        false => format!("{} x ({low} to {high})", digits(median)),
    }
}

/// Rows as a Markdown table with straight columns; the first row is the head. The first `of_words` columns stand to
/// the left, the others, of numbers, to the right.
fn table(rows: &[Vec<String>], of_words: usize) -> String {
    let Some(head) = rows.first() else {
        return String::new();
    };
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column < of_words {
                true => write!(text, "| {cell:<width$} "),
                false => write!(text, "| {cell:>width$} "),
            };
        }
        text += "|\n";
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let _ = match column < of_words {
                    true => write!(text, "| {:-<width$} ", ""),
                    false => write!(text, "| {:->width$}:", ""),
                };
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::measured;
    use super::*;

    fn circumstances() -> Circumstances {
        Circumstances {
            processor: "a processor".into(),
            processors: 2,
            load_before: Some(0.25),
            load_after: None,
            runs: 1,
            quick: true,
            inner_monitor: "QEMU".into(),
        }
    }

    #[test]
    fn the_text_has_a_row_for_everything() {
        let text = text(&circumstances(), &measured(), &["it broke".to_string()]);
        let first =
            "2 x a processor, load 0.2 before and unknown after; 1 run, quick; QEMU in L1\n";
        assert!(text.starts_with(first), "{text}");
        let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for row in [
            "| 2 levels: to the end | 30.0 s | 15.0 s | 0.50 x | 0.50 x |",
            "| CPUID in L3 | 900 ns | - | - | - |",
            "| crc | byte | - | 1.00 | 10.0 | 10.0 x | 5.00 | 5.00 x | 0.50 x | 0.50 x |",
            "- wrong: it broke - sort: peer has no sha in L1, L2",
        ] {
            assert!(squeezed.contains(row), "{row} is not in\n{text}");
        }
    }

    #[test]
    fn without_a_peer_its_columns_are_left_out() {
        let mut measured = measured();
        measured.peer = None;
        let text = text(&circumstances(), &measured, &[]);
        assert!(!text.contains("peer"), "{text}");
        assert!(text.contains("| slowdown |"), "{text}");
    }

    #[test]
    fn the_data_has_the_same() {
        let data = data(&circumstances(), &measured(), &[]);
        let json = serde_json::to_value(&data).expect("plain data");
        let part = &json["parts"][0];
        assert_eq!((&part["what"], &part["level"]), (&"crc".into(), &1.into()));
        assert_eq!(part["peer_to_ours"]["median"], 0.5);
        assert_eq!(json["circumstances"]["quick"], true);
    }

    #[test]
    fn ranges_are_shown_where_runs_differ() {
        let spread = |low, median, high| Some(Spread { median, low, high });
        assert_eq!(with_range(spread(0.5, 1.0, 2.0)), "1.00 x (0.50 to 2.00)");
        assert_eq!(with_range(spread(1.0, 1.001, 1.002)), "1.00 x");
        assert_eq!(with_range(None), "-");
        assert_eq!(digits(0.012_34), "0.012");
        assert_eq!(digits(1234.5), "1234");
    }
}
