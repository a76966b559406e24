//! The lines of the guests' console that carry figures. Everything else on it is not for us.

/// A line that says something.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A level's user space runs.
    Up(u8),
    /// A level switches itself off, with the status of what it did.
    Down(u8, String),
    /// A level could not do a step.
    Fail(u8, String),
    /// A level begins to measure itself.
    Begin(u8),
    /// A part's nanoseconds an operation.
    Part {
        /// The level; 0 is the host.
        level: u8,
        /// The part.
        name: String,
        /// Nanoseconds an operation.
        ns: f64,
    },
    /// A level has measured itself, which took so many nanoseconds by its own clock.
    End(u8, f64),
}

/// What the line says, if it is one of ours: `NESTLING-LEVEL <level> ...` from the images' script,
/// `NESTLING-BENCH <level> ...` from `guestbench`. A terminal's control sequences may stand before it.
pub fn parse(line: &str) -> Option<Line> {
    let start = line.find("NESTLING-")?;
    let mut words = line[start..].split_whitespace();
    let mark = words.next()?;
    let level = words.next()?.parse().ok()?;
    let what = words.next()?;
    let rest: Vec<&str> = words.collect();
    match (mark, what) {
        ("NESTLING-LEVEL", "up") => Some(Line::Up(level)),
        ("NESTLING-LEVEL", "down") => {
            let status = rest.iter().find_map(|word| word.strip_prefix("status="))?;
            Some(Line::Down(level, status.to_string()))
        }
        ("NESTLING-LEVEL", "fail") => Some(Line::Fail(level, rest.join(" "))),
        ("NESTLING-BENCH", "begin") => Some(Line::Begin(level)),
        ("NESTLING-BENCH", "end") => Some(Line::End(level, positive(rest.first()?)?)),
        ("NESTLING-BENCH", name) => Some(Line::Part {
            level,
            name: name.to_string(),
            ns: positive(rest.first()?)?,
        }),
        _ => None,
    }
}

fn positive(word: &str) -> Option<f64> {
    word.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
}

/// What `nestling run --stats` says at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Instructions executed.
    pub instructions: u64,
    /// Those of them in a second of the host's time.
    pub instructions_per_second: u64,
}

/// The figures of a line of `--stats`; `None` for other lines, and where the engine does not count.
pub fn stats(line: &str) -> Option<Stats> {
    let (_, words) = line.split_once("stats engine=")?;
    let number = |key: &str| {
        let found = words
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
        found.parse().ok()
    };
    Some(Stats {
        instructions: number("instructions")?,
        instructions_per_second: number("instructions_per_second")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_figures_are_read() {
        let part = Line::Part {
            level: 2,
            name: "crc".into(),
            ns: 12.5,
        };
        for (line, says) in [
            ("\x1b[2JNESTLING-LEVEL 1 up kernel=6.1\r", Line::Up(1)),
            (
                "NESTLING-LEVEL 2 down status=7 uptime=1",
                Line::Down(2, "7".into()),
            ),
            (
                "NESTLING-LEVEL 1 fail step=bench status=1",
                Line::Fail(1, "step=bench status=1".into()),
            ),
            ("NESTLING-BENCH 1 begin\r\r", Line::Begin(1)),
            ("NESTLING-BENCH 2 crc 12.500", part),
            ("NESTLING-BENCH 2 end 5000", Line::End(2, 5000.0)),
        ] {
            assert_eq!(parse(line), Some(says), "{line}");
        }
    }

    #[test]
    fn other_lines_are_left_alone() {
        for line in [
            "",
            "Linux version",
            "NESTLING-BENCH",
            "NESTLING-BENCH x crc 1",
            "NESTLING-BENCH 999 crc 1",
            "NESTLING-BENCH 1 crc",
            "NESTLING-BENCH 1 crc NaN",
            "NESTLING-BENCH 1 crc -1",
            "NESTLING-BENCH 1 end 0",
            "NESTLING-LEVEL 1 enter",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn stats_are_read() {
        let line = "nestling: stats engine=soft instructions=30 wall_ms=20 guest_ms=4 instructions_per_second=15";
        let expected = Stats {
            instructions: 30,
            instructions_per_second: 15,
        };
        assert_eq!(stats(line), Some(expected));
        assert_eq!(stats("stats engine=kvm instructions=unknown"), None);
        assert_eq!(stats("nestling: engine soft: asked for"), None);
    }
}
