//! Shows a demo while it runs, on standard error: a tree redrawn in place on a terminal, one line an event
//! elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::levels::{LevelState, Levels, Stage};
use super::report::{Event, Report};
use super::result::{describe, level_line, seconds};
use crate::output;

/// Shows what happens.
pub trait View: Send {
    /// A report changed the levels.
    fn report(&mut self, levels: &Levels, report: &Report, at: Duration);

    /// A line of the guests' console, printable.
    fn console(&mut self, line: &str);

    /// The demo is over; what was drawn in place is taken away.
    fn finish(&mut self);
}

/// The view that suits standard error. `verbose` shows the console too.
pub fn on_standard_error(depth: u8, verbose: bool) -> Box<dyn View> {
    if std::io::stderr().is_terminal() {
        Box::new(LiveTree::new(depth, verbose, ProgressDrawTarget::stderr()))
    } else {
        Box::new(EventLines { verbose })
    }
}

/// One line an event.
#[derive(Debug)]
struct EventLines {
    verbose: bool,
}

/// An event in words.
pub fn event_line(report: &Report, at: Duration) -> String {
    let at = seconds(at);
    let level = report.level;
    match &report.event {
        Event::Up(seen) => format!("{at}: level {level} is up: {}", describe(seen)),
        Event::Enter => format!("{at}: level {level} starts the next level"),
        Event::Fail { step, .. } => format!("{at}: level {level} failed in step {step}"),
        Event::Down { status, .. } => match status {
            Some(0) => format!("{at}: level {level} switches itself off"),
            Some(status) => format!("{at}: level {level} switches itself off, status {status}"),
            None => format!("{at}: level {level} switches itself off, status unreadable"),
        },
    }
}

impl View for EventLines {
    fn report(&mut self, _levels: &Levels, report: &Report, at: Duration) {
        output::say(&event_line(report, at));
    }

    fn console(&mut self, line: &str) {
        if self.verbose {
            output::say(&format!("| {line}"));
        }
    }

    fn finish(&mut self) {}
}

/// A tree redrawn in place.
struct LiveTree {
    lines: MultiProgress,
    bars: Vec<ProgressBar>,
    verbose: bool,
}

impl LiveTree {
    fn new(depth: u8, verbose: bool, target: ProgressDrawTarget) -> Self {
        let lines = MultiProgress::with_draw_target(target);
        let bars: Vec<ProgressBar> = (1..=usize::from(depth))
            .map(|number| {
                let bar = lines.add(ProgressBar::new_spinner());
                // The template is constant; if it were wrong the default style is as good.
                if let Ok(style) = ProgressStyle::with_template("{prefix} {spinner} {wide_msg}") {
                    bar.set_style(style.tick_chars("|/-\\ "));
                }
                bar.set_prefix(format!("{}`- L{number}", "   ".repeat(number - 1)));
                bar
            })
            .collect();
        let mut tree = Self {
            lines,
            bars,
            verbose,
        };
        tree.draw(&Levels::new(depth));
        tree
    }

    fn draw(&mut self, levels: &Levels) {
        let mut outer_is_ready = true;
        for (bar, level) in self.bars.iter().zip(levels.iter()) {
            bar.set_message(live_line(level, outer_is_ready));
            let busy = match level.stage {
                Stage::Waiting => outer_is_ready,
                Stage::Up => true,
                Stage::Inside | Stage::Down => false,
            };
            if busy {
                bar.enable_steady_tick(Duration::from_millis(120));
            } else {
                bar.disable_steady_tick();
            }
            outer_is_ready = level.stage == Stage::Inside;
        }
    }
}

/// What is shown of a level while the demo runs.
fn live_line(level: &LevelState, outer_is_ready: bool) -> String {
    let state = match (&level.failed, level.stage) {
        (Some((step, _)), _) => return format!("failed in step {step}"),
        (None, Stage::Waiting) if outer_is_ready => return "booting".into(),
        (None, Stage::Waiting) => return "waiting".into(),
        (None, Stage::Up | Stage::Inside) => "",
        (None, Stage::Down) => " (off)",
    };
    format!("{}{state}", level_line(level))
}

impl View for LiveTree {
    fn report(&mut self, levels: &Levels, _report: &Report, _at: Duration) {
        self.draw(levels);
    }

    fn console(&mut self, line: &str) {
        if self.verbose {
            // If standard error is gone there is nobody to tell.
            let _ = self.lines.println(format!("| {line}"));
        }
    }

    fn finish(&mut self) {
        for bar in &self.bars {
            bar.finish_and_clear();
        }
        // As above.
        let _ = self.lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::parse;
    use indicatif::InMemoryTerm;

    fn told(line: &str) -> String {
        event_line(
            &parse(line).expect("a report"),
            Duration::from_millis(4_250),
        )
    }

    #[test]
    fn events_in_words() {
        assert_eq!(
            told(
                "NESTLING-LEVEL 1 up kernel=6.1 hypervisor=none virt=vmx uptime=1 memory_kib=2048"
            ),
            "4.2 s: level 1 is up: Linux 6.1, no hypervisor seen, vmx, 2 MiB"
        );
        assert_eq!(
            told("NESTLING-LEVEL 1 down status=3 uptime=1"),
            "4.2 s: level 1 switches itself off, status 3"
        );
        assert_eq!(
            told("NESTLING-LEVEL 2 fail step=module-kvm status=1"),
            "4.2 s: level 2 failed in step module-kvm"
        );
    }

    /// The terminal's lines without what turns while a level is busy.
    fn still(terminal: &InMemoryTerm) -> String {
        let turning = |c: char| "|/-\\".contains(c);
        let lines = terminal.contents();
        let still: Vec<String> = lines
            .lines()
            .map(|line| match line.split_once("L") {
                Some((branch, rest)) => format!("{branch}L{}", rest.replace(turning, "~")),
                None => line.to_string(),
            })
            .collect();
        still.join("\n")
    }

    #[test]
    fn the_live_tree_follows_the_levels() {
        let terminal = InMemoryTerm::new(10, 100);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let mut levels = Levels::new(3);
        let mut tree = LiveTree::new(3, true, target);
        let mut shown = Vec::new();
        for (second, line) in (2..).step_by(2).zip([
            "NESTLING-LEVEL 1 up kernel=6.1 hypervisor=none virt=vmx uptime=1 memory_kib=2048",
            "NESTLING-LEVEL 1 enter",
            "NESTLING-LEVEL 2 up kernel=6.1 hypervisor=KVMKVMKVM virt=vmx uptime=1 memory_kib=1024",
            "NESTLING-LEVEL 2 fail step=module-kvm status=1",
        ]) {
            let at = Duration::from_secs(second);
            let report = parse(line).expect("a report");
            levels.apply(&report, at);
            tree.report(&levels, &report, at);
            // What turns is drawn at its own pace; a pause lets the last message be drawn too.
            std::thread::sleep(Duration::from_millis(300));
            shown.push(still(&terminal));
        }
        tree.console("a guest's line");
        shown.push(still(&terminal));
        tree.finish();
        shown.push(still(&terminal));
        insta::assert_snapshot!(shown.join("\n---\n"));
    }
}
