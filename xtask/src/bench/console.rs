//! The lines of the guests' console that carry figures. Everything else on it is not for us.

/// What a part took. `operations` are those of one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Operations of a batch.
    pub operations: f64,
    /// Batches.
    pub batches: f64,
    /// Nanoseconds of all batches.
    pub total_ns: f64,
    /// Nanoseconds of the fastest batch.
    pub best_ns: f64,
    /// The sum of the results, in digits.
    pub sum: String,
}

/// A line that says something. The level of the host is 0.
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
    /// A part begins.
    Start(u8, String),
    /// A part's figures.
    Part(u8, String, Figures),
    /// A part that this level's processor has not all for: the part, the feature.
    Lacks(u8, String, String),
    /// A part that went wrong: the part, why.
    Wrong(u8, String, String),
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
    match mark {
        "NESTLING-LEVEL" => of_level(level, what, &rest),
        "NESTLING-BENCH" => of_bench(level, what, &rest),
        _ => None,
    }
}

fn of_level(level: u8, what: &str, rest: &[&str]) -> Option<Line> {
    match what {
        "up" => Some(Line::Up(level)),
        "down" => {
            let status = rest.iter().find_map(|word| word.strip_prefix("status="))?;
            Some(Line::Down(level, status.to_string()))
        }
        "fail" => Some(Line::Fail(level, rest.join(" "))),
        _ => None,
    }
}

fn of_bench(level: u8, what: &str, rest: &[&str]) -> Option<Line> {
    let (first, rest) = match rest.split_first() {
        Some((&first, rest)) => (first, rest),
        None if what == "begin" => return Some(Line::Begin(level)),
        None => return None,
    };
    let part = first.to_string();
    match what {
        "start" => Some(Line::Start(level, part)),
        "part" => Some(Line::Part(level, part, figures(rest)?)),
        "lacks" => Some(Line::Lacks(level, part, rest.join(" "))),
        "wrong" => Some(Line::Wrong(level, part, rest.join(" "))),
        "end" => Some(Line::End(level, positive(first)?)),
        _ => None,
    }
}

fn figures(words: &[&str]) -> Option<Figures> {
    let value = |key: &str| {
        let found = |word: &&str| word.strip_prefix(key)?.strip_prefix('=').map(String::from);
        words.iter().find_map(found)
    };
    let number = |key: &str| positive(&value(key)?);
    Some(Figures {
        operations: number("operations")?,
        batches: number("batches")?,
        total_ns: number("total_ns")?,
        best_ns: number("best_ns")?,
        sum: value("sum")?,
    })
}

fn positive(word: &str) -> Option<f64> {
    word.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
}

/// Instructions a second, as `nestling run --stats` says at its end; `None` for other lines, and where the engine does
/// not count.
pub fn instructions_per_second(line: &str) -> Option<f64> {
    let (_, words) = line.split_once("stats engine=")?;
    let key = "instructions_per_second=";
    let found = words
        .split_whitespace()
        .find_map(|word| word.strip_prefix(key));
    positive(found?)
}

/// What is counted of a run, and the words `nestling run --stats` has for it.
pub const COUNTS: [(&str, &[&str]); 7] = [
    ("blocks translated", &["blocks_translated"]),
    ("regions made", &["regions"]),
    ("blocks looked for outside code", &["left_for_block"]),
    ("handlers called", &["handled", "missed"]),
    ("TLB fills", &["tlb_fills"]),
    ("page walks", &["tlb_walks"]),
    ("events looked for outside code", &["left_for_event"]),
];

/// [`COUNTS`] for a million instructions, as `nestling run --stats` says at its end; `None` for other lines.
pub fn counts(line: &str) -> Option<[f64; COUNTS.len()]> {
    let (_, words) = line.split_once("nestling: profile ")?;
    let value = |key: &str| {
        let mut words = words.split_whitespace().filter_map(|w| w.split_once('='));
        let (_, found) = words.find(|(name, _)| *name == key)?;
        found.parse::<f64>().ok().filter(|n| n.is_finite())
    };
    let millions = value("instructions").filter(|n| *n > 0.0)? / 1e6;
    let sum = |keys: &[&str]| keys.iter().filter_map(|key| value(key)).sum::<f64>();
    Some(COUNTS.map(|(_, keys)| sum(keys) / millions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_levels_are_read() {
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
        ] {
            assert_eq!(parse(line), Some(says), "{line}");
        }
    }

    #[test]
    fn lines_of_the_benchmark_are_read() {
        let figures = Figures {
            operations: 10.0,
            batches: 3.0,
            total_ns: 900.0,
            best_ns: 250.0,
            sum: "1f".into(),
        };
        let part =
            "NESTLING-BENCH 2 part crc operations=10 batches=3 total_ns=900 best_ns=250 sum=1f";
        for (line, says) in [
            ("NESTLING-BENCH 1 begin\r\r", Line::Begin(1)),
            ("NESTLING-BENCH 1 start crc", Line::Start(1, "crc".into())),
            (part, Line::Part(2, "crc".into(), figures)),
            (
                "NESTLING-BENCH 1 lacks sha-instructions sha",
                Line::Lacks(1, "sha-instructions".into(), "sha".into()),
            ),
            (
                "NESTLING-BENCH 1 wrong crc its sum is off",
                Line::Wrong(1, "crc".into(), "its sum is off".into()),
            ),
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
            "NESTLING-BENCH x begin",
            "NESTLING-BENCH 999 begin",
            "NESTLING-BENCH 1 part",
            "NESTLING-BENCH 1 part crc operations=1 batches=1 total_ns=1 best_ns=1",
            "NESTLING-BENCH 1 part crc operations=1 batches=1 total_ns=1 best_ns=NaN sum=1",
            "NESTLING-BENCH 1 part crc operations=0 batches=1 total_ns=1 best_ns=1 sum=1",
            "NESTLING-BENCH 1 end 0",
            "NESTLING-BENCH 1 crc 5",
            "NESTLING-LEVEL 1 enter",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn counts_are_for_a_million_instructions() {
        let line = "nestling: profile blocks_translated=6 handled=4 instructions=2000000 missed=8 tlb_walks=3";
        assert_eq!(counts(line), Some([3.0, 0.0, 0.0, 6.0, 0.0, 1.5, 0.0]));
        assert_eq!(counts("nestling: profile handled=4"), None);
        assert_eq!(counts("nestling: profile handled=4 instructions=0"), None);
        assert_eq!(counts("nestling: stats instructions=2000000"), None);
    }

    #[test]
    fn the_speed_is_read() {
        let line = "nestling: stats engine=soft instructions=30 wall_ms=20 guest_ms=4 instructions_per_second=15";
        assert_eq!(instructions_per_second(line), Some(15.0));
        let unknown = "stats engine=kvm instructions=unknown instructions_per_second=unknown";
        assert_eq!(instructions_per_second(unknown), None);
        assert_eq!(instructions_per_second("engine soft: asked for"), None);
    }
}
