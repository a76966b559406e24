//! Shows a demo while it runs, on standard error: a tree redrawn in place on a terminal, one line an event
//! elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

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
        Box::new(LiveTree::new(depth, verbose))
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
    fn new(depth: u8, verbose: bool) -> Self {
        let lines = MultiProgress::new();
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
}
