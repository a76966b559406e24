//! The result of a demo, as a tree for people and as data for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::levels::{LevelState, Levels, Stage};
use super::report::Seen;
use crate::engine::Decision;
use crate::output::{BAD, GOOD, PENDING};

/// The result as data; the fields' names are part of the program's interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoResult {
    /// Whether every level came up and switched itself off.
    pub ok: bool,
    /// How many levels there were to be.
    pub depth: usize,
    /// What ran level 1, and why.
    pub engine: Decision,
    /// The demo's time in seconds, from the start of level 1 to its end.
    pub seconds: f64,
    /// The levels, level 1 first.
    pub levels: Vec<LevelResult>,
    /// Why it did not succeed.
    pub failure: Option<String>,
    /// The last lines of the console if it did not succeed.
    pub console: Vec<String>,
}

/// One level as data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LevelResult {
    /// Its number, from 1.
    pub level: u8,
    /// `waiting`, `up`, `inside` or `down`.
    pub stage: &'static str,
    /// What it saw.
    #[serde(flatten)]
    pub seen: Option<Seen>,
    /// When it was up, in seconds from the start of level 1.
    pub up_at_seconds: Option<f64>,
    /// When it switched itself off, likewise.
    pub down_at_seconds: Option<f64>,
    /// The status it ended with.
    pub status: Option<i32>,
    /// The step that failed in it.
    pub failed_step: Option<String>,
}

impl DemoResult {
    /// The result of levels that ended like this after `total`.
    pub fn new(
        levels: &Levels,
        engine: Decision,
        total: Duration,
        failure: Option<String>,
        console: Vec<String>,
    ) -> Self {
        let results: Vec<LevelResult> = (1..)
            .zip(levels.iter())
            .map(|(number, level)| LevelResult::new(number, level))
            .collect();
        Self {
            ok: failure.is_none(),
            depth: results.len(),
            engine,
            seconds: rounded(total),
            levels: results,
            console: if failure.is_some() {
                console
            } else {
                Vec::new()
            },
            failure,
        }
    }
}

impl LevelResult {
    fn new(number: u8, level: &LevelState) -> Self {
        Self {
            level: number,
            stage: match level.stage {
                Stage::Waiting => "waiting",
                Stage::Up => "up",
                Stage::Inside => "inside",
                Stage::Down => "down",
            },
            seen: level.seen.clone(),
            up_at_seconds: level.up_at.map(rounded),
            down_at_seconds: level.down_at.map(rounded),
            status: level.status,
            failed_step: level.failed.as_ref().map(|(step, _)| step.clone()),
        }
    }
}

/// Seconds to the millisecond.
fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// What a level saw, in words.
pub fn describe(seen: &Seen) -> String {
    let mut text = format!("Linux {}", seen.kernel);
    match seen.hypervisor.as_str() {
        "none" => text.push_str(", no hypervisor seen"),
        name => {
            let _ = write!(text, " on {name}");
        }
    }
    match seen.virt.as_str() {
        "none" => text.push_str(", no vmx"),
        virt => {
            let _ = write!(text, ", {virt}");
        }
    }
    if let Some(kib) = seen.memory_kib {
        let _ = write!(text, ", {} MiB", kib / 1024);
    }
    if let Some(cpus) = seen.cpus.filter(|&cpus| cpus != 1) {
        let _ = write!(text, ", {cpus} processors");
    }
    text
}

/// What is known of a level, on one line, without colours.
pub fn level_line(level: &LevelState) -> String {
    let Some(seen) = &level.seen else {
        return "not up".into();
    };
    let mut line = describe(seen);
    if let Some(at) = level.up_at {
        let _ = write!(line, "; up at {}", seconds(at));
    }
    if let Some(uptime) = seen.uptime_seconds {
        let _ = write!(line, " (its uptime {uptime:.1} s)");
    }
    if let Some(at) = level.down_at {
        let _ = write!(line, ", off at {}", seconds(at));
    }
    line
}

/// A time for people.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Whether a level is as it should be, in a word and a colour.
fn verdict(level: &LevelState) -> String {
    let (style, word) = match (level.stage, level.status, &level.failed) {
        (_, _, Some(_)) => (BAD, "failed"),
        (Stage::Down, Some(0), None) => (GOOD, "ok"),
        (Stage::Down, _, None) => (BAD, "failed"),
        (Stage::Waiting, _, None) => (BAD, "missing"),
        (Stage::Up | Stage::Inside, _, None) => (PENDING, "left running"),
    };
    format!("{style}{word}{style:#}")
}

/// The whole tree, with colours.
pub fn tree(levels: &Levels, engine: &Decision, total: Duration) -> String {
    let mut text = format!("L0 this host, engine {}: {}\n", engine.engine, engine.why);
    for (number, level) in (1_usize..).zip(levels.iter()) {
        let indent = "   ".repeat(number - 1);
        let _ = writeln!(
            text,
            "{indent}`- L{number} {}: {}",
            level_line(level),
            verdict(level)
        );
        if let Some((step, status)) = &level.failed {
            let status = status.map_or(String::new(), |s| format!(", status {s}"));
            let _ = writeln!(text, "{indent}      failed in step {step}{status}");
        }
    }
    let _ = writeln!(text, "took {}", seconds(total));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::parse;
    use crate::vm::{Engine, RunOutcome};

    fn decision() -> Decision {
        Decision {
            engine: Engine::Soft,
            why: "/dev/kvm is not there".into(),
        }
    }

    fn levels(lines: &[(&str, u64)]) -> Levels {
        let mut levels = Levels::new(3);
        for (line, milliseconds) in lines {
            let report = parse(line).expect("a report");
            levels.apply(&report, Duration::from_millis(*milliseconds));
        }
        levels
    }

    fn good() -> Levels {
        levels(&[
            (
                "NESTLING-LEVEL 1 up kernel=6.1.0-9 hypervisor=Nestling virt=vmx uptime=1.88 memory_kib=1003456",
                2_100,
            ),
            ("NESTLING-LEVEL 1 enter", 2_500),
            (
                "NESTLING-LEVEL 2 up kernel=6.1.0-9 hypervisor=KVMKVMKVM virt=vmx uptime=3.12 memory_kib=803456 cpus=2",
                9_940,
            ),
            ("NESTLING-LEVEL 2 enter", 10_000),
            (
                "NESTLING-LEVEL 3 up kernel=6.1.0-9 hypervisor=KVMKVMKVM virt=none uptime=9 memory_kib=603456",
                31_000,
            ),
            ("NESTLING-LEVEL 3 down status=0 uptime=9.2", 31_500),
            ("NESTLING-LEVEL 2 down status=0 uptime=20.5", 32_000),
            ("NESTLING-LEVEL 1 down status=0 uptime=30.25", 33_250),
        ])
    }

    fn bad() -> Levels {
        levels(&[
            (
                "NESTLING-LEVEL 1 up kernel=6.1.0-9 hypervisor=none virt=none uptime=1.88 memory_kib=1003456",
                2_100,
            ),
            (
                "NESTLING-LEVEL 1 fail step=module-kvm-intel status=1",
                2_500,
            ),
            ("NESTLING-LEVEL 1 down status=1 uptime=30.25", 3_000),
        ])
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_good_tree() {
        let text = tree(&good(), &decision(), Duration::from_millis(33_300));
        insta::assert_snapshot!(plain(&text));
    }

    #[test]
    fn a_bad_tree() {
        let text = tree(&bad(), &decision(), Duration::from_millis(3_100));
        insta::assert_snapshot!(plain(&text));
    }

    fn json(levels: &Levels, console: Vec<String>) -> String {
        let failure = levels.why_not(RunOutcome::PowerOff);
        let total = Duration::from_millis(33_333);
        let result = DemoResult::new(levels, decision(), total, failure, console);
        serde_json::to_string_pretty(&result).expect("plain data")
    }

    #[test]
    fn a_good_result_as_data() {
        insta::assert_snapshot!(json(&good(), vec!["noise".into()]));
    }

    #[test]
    fn a_bad_result_as_data() {
        insta::assert_snapshot!(json(&bad(), vec!["insmod: no such device".into()]));
    }
}
