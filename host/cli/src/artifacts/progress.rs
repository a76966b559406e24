//! Tells the user on standard error what is being fetched: a bar on a terminal, one plain line elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress is told.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    bars: bool,
    quiet: bool,
}

impl Progress {
    /// Bars if standard error is a terminal, lines otherwise.
    pub fn on_standard_error() -> Self {
        Self {
            bars: std::io::stderr().is_terminal(),
            quiet: false,
        }
    }

    /// No progress at all.
    #[cfg(test)]
    pub fn silent() -> Self {
        Self {
            bars: false,
            quiet: true,
        }
    }

    /// One line.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            crate::output::say(line);
        }
    }

    /// A bar for something of `size_bytes` bytes; elsewhere than on a terminal one line with its size.
    pub fn bar(&self, label: &str, size_bytes: u64) -> ProgressBar {
        if !self.bars {
            self.say(&format!("{label} ({} KiB)", size_bytes.div_ceil(1024)));
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(size_bytes);
        // The template is constant; if it were wrong the default style is as good.
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label.to_string());
        bar
    }
}
