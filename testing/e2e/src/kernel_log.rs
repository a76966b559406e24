//! What kernels say that is a warning or worse, held against what real hardware makes them say.
//!
//! The images print it with `images --log`: `NESTLING-LOG <level> <priority>[ time] text`, the form of `dmesg -r`.

/// How a line of a level's log begins.
const MARK: &str = "NESTLING-LOG ";

/// How messages begin that are no sign of a fault of ours, and why real hardware makes kernels say them too.
const EXPECTED: [(&str, &str); 3] = [
    (
        "i8042: PNP: PS/2 appears to have AUX port disabled",
        "a board without a mouse port says so in its ACPI tables",
    ),
    (
        "acpi PNP0A03:00: fail to add MMCONFIG information, can't access extended",
        "QEMU's default board has a conventional PCI bus: no ECAM, no MCFG table",
    ),
    (
        "RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks",
        "a named model without IBRS of a generation that has the flaw",
    ),
];

/// Words that no message may have, whatever it begins with, in lower case.
const NEVER: [&str; 9] = [
    "unchecked msr",
    "unhandled",
    "bug:",
    "stall",
    "lockup",
    "oops",
    "call trace",
    "cut here",
    "unstable",
];

/// Words that no line of a kernel's may have, a warning or not, in lower case: what Linux says of performance counters
/// that it cannot use, or of events that CPUID says are missing.
const NEVER_AT_ALL: [&str; 5] = [
    "unsupported p6",
    "no pmu driver",
    "cpuid marked event",
    "failed to access perfctr",
    "pmu not available",
];

/// A message of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Of which level.
    pub level: u8,
    /// 0 is an emergency, 4 a warning (Linux `include/linux/kern_levels.h`).
    pub priority: u8,
    /// Without the time.
    pub text: &'a str,
}

/// Reads a line of a console; `None` if it is none of a log.
#[must_use]
pub fn message(line: &str) -> Option<Message<'_>> {
    let (level, rest) = line.trim_end().strip_prefix(MARK)?.split_once(' ')?;
    let (priority, rest) = rest.strip_prefix('<')?.split_once('>')?;
    let text = match rest.strip_prefix('[') {
        Some(timed) => timed.split_once("] ")?.1,
        None => rest,
    };
    Some(Message {
        level: level.parse().ok()?,
        // The upper bits are the facility.
        priority: priority.parse::<u32>().ok()?.to_le_bytes()[0] & 7,
        text,
    })
}

/// Whether real hardware would make a kernel say this.
#[must_use]
pub fn is_expected(message: &Message<'_>) -> bool {
    let lower = message.text.to_lowercase();
    !NEVER.iter().any(|word| lower.contains(word))
        && EXPECTED
            .iter()
            .any(|(start, _)| message.text.starts_with(start))
}

/// The lines of `console` with messages that are not expected.
pub fn unexpected(console: &str) -> impl Iterator<Item = &str> {
    console
        .lines()
        .filter(|line| message(line).is_some_and(|message| !is_expected(&message)))
}

/// The lines of `console` that no processor of the models should make a kernel say, at whatever priority.
pub fn forbidden(console: &str) -> impl Iterator<Item = &str> {
    console.lines().filter(|line| {
        let lower = line.to_lowercase();
        NEVER_AT_ALL.iter().any(|word| lower.contains(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUX: &str =
        "NESTLING-LOG 1 <4>[    0.439264] i8042: PNP: PS/2 appears to have AUX port disabled, if\r";
    const MSR: &str = "NESTLING-LOG 2 <4>[    0.1] unchecked MSR access error: RDMSR from 0x34";

    #[test]
    fn messages_are_read() {
        let message = message(AUX).expect("a message");
        assert_eq!((message.level, message.priority), (1, 4));
        assert!(message.text.starts_with("i8042: PNP"));
        for other in [
            "",
            "NESTLING-LEVEL 1 enter",
            "[ 0.1] text",
            "NESTLING-LOG x",
        ] {
            assert_eq!(super::message(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_known_is_unexpected() {
        let console = format!("boot\n{AUX}\n{MSR}\nNESTLING-LOG 1 <3>[ 1.0] kvm: what is this");
        let found: Vec<_> = unexpected(&console).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], MSR);
    }

    #[test]
    fn some_lines_are_forbidden_at_any_priority() {
        let line = "[    0.140467] Performance Events: unsupported p6 CPU model 165 no PMU driver";
        let fine = "[    0.140468] Performance Events: Skylake events, Intel PMU driver.";
        let console = format!("{fine}\n{line}\n");
        assert_eq!(forbidden(&console).collect::<Vec<_>>(), [line]);
    }

    #[test]
    fn a_bad_word_spoils_an_expected_start() {
        let text = format!("{} BUG: here", EXPECTED[0].0);
        assert!(!is_expected(&Message {
            level: 1,
            priority: 4,
            text: &text
        }));
    }
}
