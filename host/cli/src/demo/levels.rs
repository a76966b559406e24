//! What is known of the levels of a demo: a pure state, moved by their reports.
//!
//! A level goes Waiting -> Up -> Inside (it runs the next level) -> Down; it can fail in any of them. A report
//! that does not fit where its level stands is ignored.

use std::time::Duration;

use super::report::{Event, Report, Seen};
use crate::run::{EXIT_RESET, EXIT_TRIPLE_FAULT};
use crate::vm::RunOutcome;

/// Where a level stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was heard of it.
    Waiting,
    /// Its kernel is up.
    Up,
    /// It runs the next level.
    Inside,
    /// It said that it switches itself off.
    Down,
}

/// One level.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelState {
    /// Where it stands.
    pub stage: Stage,
    /// What it saw, once it was up.
    pub seen: Option<Seen>,
    /// When it was up, from the start of the demo.
    pub up_at: Option<Duration>,
    /// When it switched itself off, from the start of the demo.
    pub down_at: Option<Duration>,
    /// The status it gave when it switched itself off.
    pub status: Option<i32>,
    /// The step that failed and its status.
    pub failed: Option<(String, Option<i32>)>,
}

/// All levels.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    levels: Vec<LevelState>,
}

impl Levels {
    /// `depth` levels of which nothing is known.
    pub fn new(depth: u8) -> Self {
        let waiting = LevelState {
            stage: Stage::Waiting,
            seen: None,
            up_at: None,
            down_at: None,
            status: None,
            failed: None,
        };
        Self {
            levels: vec![waiting; usize::from(depth)],
        }
    }

    /// Takes a report that came at `at`. Says whether anything changed.
    pub fn apply(&mut self, report: &Report, at: Duration) -> bool {
        let index = usize::from(report.level).checked_sub(1);
        let Some(level) = index.and_then(|index| self.levels.get_mut(index)) else {
            return false;
        };
        match (&report.event, level.stage) {
            (Event::Up(seen), Stage::Waiting) => {
                level.seen = Some(seen.clone());
                level.up_at = Some(at);
                level.stage = Stage::Up;
            }
            (Event::Enter, Stage::Up) => level.stage = Stage::Inside,
            (Event::Fail { step, status }, Stage::Waiting | Stage::Up | Stage::Inside)
                if level.failed.is_none() =>
            {
                level.failed = Some((step.clone(), *status));
            }
            (Event::Down { status, .. }, Stage::Waiting | Stage::Up | Stage::Inside) => {
                level.down_at = Some(at);
                level.status = *status;
                level.stage = Stage::Down;
            }
            _ => return false,
        }
        true
    }

    /// The levels, level 1 first.
    pub fn iter(&self) -> impl Iterator<Item = &LevelState> {
        self.levels.iter()
    }

    /// Why the demo did not succeed, as half a sentence; `None` if every level came up and switched itself off
    /// with status 0.
    pub fn why_not(&self, outcome: RunOutcome) -> Option<String> {
        let end = match outcome {
            RunOutcome::PowerOff => None,
            RunOutcome::Reset => Some("level 1 reset itself".to_string()),
            RunOutcome::TripleFault => Some("level 1 ended in a triple fault".to_string()),
            RunOutcome::DebugExit(value) => Some(format!("level 1 left with debug exit {value}")),
            RunOutcome::Timeout => Some("the time was over".to_string()),
            RunOutcome::Interrupted => Some("it was stopped".to_string()),
        };
        match (end, self.first_problem()) {
            (None, None) => None,
            (None, Some(problem)) => Some(problem),
            (Some(end), None) => Some(format!("{end} after all levels had said they go off")),
            (Some(end), Some(problem)) => Some(format!("{end}, and {problem}")),
        }
    }

    /// The problem nearest to its cause: what the deepest level that has one tells.
    fn first_problem(&self) -> Option<String> {
        let numbered: Vec<(u8, &LevelState)> = (1..).zip(&self.levels).collect();
        let deepest_first = || numbered.iter().rev().copied();
        let failed =
            deepest_first().find_map(|(number, level)| Some((number, level.failed.as_ref()?)));
        if let Some((number, (step, status))) = failed {
            let status = status.map_or(String::new(), |s| format!(" with status {s}"));
            return Some(format!("level {number} failed in step {step}{status}"));
        }
        if let Some((number, _)) = numbered.iter().find(|(_, l)| l.up_at.is_none()) {
            let outer = numbered.iter().find(|(outer, _)| outer + 1 == *number);
            let cause = outer.and_then(|(outer, level)| {
                let words = in_words(level.status.filter(|&status| status != 0)?);
                Some(format!(": its run in level {outer} ended with {words}"))
            });
            let cause = cause.unwrap_or_default();
            return Some(format!("level {number} did not come up{cause}"));
        }
        if let Some((number, _)) = deepest_first().find(|(_, l)| l.stage != Stage::Down) {
            return Some(format!("level {number} did not switch itself off"));
        }
        let bad = deepest_first().find(|(_, level)| level.status != Some(0));
        bad.map(|(number, level)| match level.status {
            Some(status) => format!("level {number} ended with {}", in_words(status)),
            None => format!("level {number} ended with an unreadable status"),
        })
    }
}

/// What a status of `nestling run`, which a level ends with, means.
fn in_words(status: i32) -> String {
    let meaning = match u8::try_from(status) {
        Ok(EXIT_RESET) => " (its guest reset itself)",
        Ok(EXIT_TRIPLE_FAULT) => " (its guest ended in a triple fault)",
        Ok(139) => " (segmentation fault)",
        Ok(137) => " (killed, perhaps for want of memory)",
        _ => "",
    };
    format!("status {status}{meaning}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::parse;

    const GOOD: [&str; 6] = [
        "NESTLING-LEVEL 1 up kernel=6.1 hypervisor=A virt=vmx uptime=1 memory_kib=1",
        "NESTLING-LEVEL 1 enter",
        "NESTLING-LEVEL 2 up kernel=6.1 hypervisor=KVMKVMKVM virt=vmx uptime=1 memory_kib=1",
        "NESTLING-LEVEL 2 down status=0 uptime=2",
        "NESTLING-LEVEL 1 down status=0 uptime=9",
        "NESTLING-LEVEL 1 down status=1 uptime=9",
    ];

    fn after(lines: &[&str]) -> Levels {
        let mut levels = Levels::new(2);
        for (second, line) in (1..).zip(lines) {
            let report = parse(line).expect("a report");
            levels.apply(&report, Duration::from_secs(second));
        }
        levels
    }

    #[test]
    fn a_good_demo_has_no_problem() {
        let levels = after(&GOOD);
        assert_eq!(levels.why_not(RunOutcome::PowerOff), None);
        let second = levels.iter().nth(1).expect("two levels");
        assert_eq!(second.up_at, Some(Duration::from_secs(3)));
        assert_eq!(second.down_at, Some(Duration::from_secs(4)));
    }

    #[test]
    fn the_problem_nearest_to_the_cause_is_told() {
        let why = |lines: &[&str]| after(lines).why_not(RunOutcome::PowerOff);
        assert_eq!(why(&[]).as_deref(), Some("level 1 did not come up"));
        assert_eq!(why(&GOOD[..2]).as_deref(), Some("level 2 did not come up"));
        assert_eq!(
            why(&GOOD[..4]).as_deref(),
            Some("level 1 did not switch itself off")
        );
        let mut failing = GOOD[..1].to_vec();
        failing.push("NESTLING-LEVEL 1 fail step=module-kvm status=1");
        failing.push("NESTLING-LEVEL 1 down status=1 uptime=9");
        assert_eq!(
            why(&failing).as_deref(),
            Some("level 1 failed in step module-kvm with status 1")
        );
        let mut early = GOOD[..2].to_vec();
        early.push("NESTLING-LEVEL 1 down status=12 uptime=9");
        assert_eq!(
            why(&early).as_deref(),
            Some(
                "level 2 did not come up: its run in level 1 ended with status 12 (its guest \
                 ended in a triple fault)"
            )
        );
        let mut inner = GOOD[..3].to_vec();
        inner.push("NESTLING-LEVEL 2 down status=7");
        inner.push("NESTLING-LEVEL 1 down status=0");
        assert_eq!(why(&inner).as_deref(), Some("level 2 ended with status 7"));
    }

    #[test]
    fn the_end_of_the_machine_counts() {
        let levels = after(&GOOD);
        assert_eq!(
            levels.why_not(RunOutcome::Reset).as_deref(),
            Some("level 1 reset itself after all levels had said they go off")
        );
        assert_eq!(
            after(&GOOD[..1]).why_not(RunOutcome::Timeout).as_deref(),
            Some("the time was over, and level 2 did not come up")
        );
    }

    #[test]
    fn reports_that_do_not_fit_are_ignored() {
        let mut levels = after(&GOOD);
        let before = levels.clone();
        for line in [
            "NESTLING-LEVEL 0 up",
            "NESTLING-LEVEL 3 up",
            "NESTLING-LEVEL 255 down status=0",
            "NESTLING-LEVEL 2 up kernel=forged",
            "NESTLING-LEVEL 1 enter",
            "NESTLING-LEVEL 1 fail step=late status=1",
        ] {
            let report = parse(line).expect("a report");
            assert!(!levels.apply(&report, Duration::ZERO), "{line}");
        }
        assert_eq!(levels, before);
    }
}
