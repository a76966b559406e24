//! The lines by which the levels report: `NESTLING-LEVEL 2 up key=value ...`. They come over a console that
//! anything in the guests can write to, so nothing about them is taken for granted.

use serde::Serialize;

use crate::initramfs::REPORT_MARK;

/// Values longer than this are cut.
const LONGEST_VALUE: usize = 64;

/// What a level says it sees when it is up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Seen {
    /// The kernel's release.
    pub kernel: String,
    /// The hypervisor's name from CPUID; `none` if there is none.
    pub hypervisor: String,
    /// `vmx`, `svm` or `none`, from the flags of its processor.
    pub virt: String,
    /// Its uptime in seconds when it reported.
    pub uptime_seconds: Option<f64>,
    /// Its memory in KiB.
    pub memory_kib: Option<u64>,
    /// Its processors.
    pub cpus: Option<u32>,
}

/// What a level reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its kernel is up.
    Up(Seen),
    /// It is a hypervisor now and starts the next level.
    Enter,
    /// A step failed with this status.
    Fail {
        /// The step's name.
        step: String,
        /// The exit status.
        status: Option<i32>,
    },
    /// It switches itself off.
    Down {
        /// 0 if all went well in it and below.
        status: Option<i32>,
        /// Its uptime in seconds.
        uptime_seconds: Option<f64>,
    },
}

/// A report of one level.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which level, from 1.
    pub level: u8,
    /// What it reports.
    pub event: Event,
}

/// Reads a report from a printable line of the console. Text before the mark is ignored: another program's
/// unfinished line may stand there.
pub fn parse(line: &str) -> Option<Report> {
    let start = line.rfind(REPORT_MARK)?;
    let mut words = line[start + REPORT_MARK.len()..].split_ascii_whitespace();
    let level = words.next()?.parse().ok()?;
    let kind = words.next()?;
    let pairs: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
    let get = |key: &str| pairs.iter().find(|(name, _)| *name == key).map(|(_, v)| *v);
    let text = |key: &str| -> String {
        get(key)
            .unwrap_or("unknown")
            .chars()
            .take(LONGEST_VALUE)
            .collect()
    };
    let uptime_seconds = get("uptime")
        .and_then(|value| value.parse::<f64>().ok())
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
    let status = get("status").and_then(|value| value.parse().ok());
    let event = match kind {
        "up" => Event::Up(Seen {
            kernel: text("kernel"),
            hypervisor: text("hypervisor"),
            virt: text("virt"),
            uptime_seconds,
            memory_kib: get("memory_kib").and_then(|value| value.parse().ok()),
            cpus: get("cpus").and_then(|value| value.parse().ok()),
        }),
        "enter" => Event::Enter,
        "fail" => Event::Fail {
            step: text("step"),
            status,
        },
        "down" => Event::Down {
            status,
            uptime_seconds,
        },
        _ => return None,
    };
    Some(Report { level, event })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_up_line_is_read() {
        let line = "NESTLING-LEVEL 2 up kernel=6.1.0-56-cloud-amd64 hypervisor=KVMKVMKVM virt=vmx \
                    uptime=1.88 memory_kib=1003456 cpus=2";
        let report = parse(line).expect("a report");
        assert_eq!(report.level, 2);
        let expected = Seen {
            kernel: "6.1.0-56-cloud-amd64".into(),
            hypervisor: "KVMKVMKVM".into(),
            virt: "vmx".into(),
            uptime_seconds: Some(1.88),
            memory_kib: Some(1_003_456),
            cpus: Some(2),
        };
        assert_eq!(report.event, Event::Up(expected));
    }

    #[test]
    fn the_other_lines_are_read() {
        assert_eq!(
            parse("[ 1.2] noise NESTLING-LEVEL 1 down status=0 uptime=12.5"),
            Some(Report {
                level: 1,
                event: Event::Down {
                    status: Some(0),
                    uptime_seconds: Some(12.5)
                }
            })
        );
        assert_eq!(
            parse("NESTLING-LEVEL 1 fail step=module-kvm status=1"),
            Some(Report {
                level: 1,
                event: Event::Fail {
                    step: "module-kvm".into(),
                    status: Some(1)
                }
            })
        );
        let enter = parse("NESTLING-LEVEL 1 enter").expect("a report");
        assert_eq!(enter.event, Event::Enter);
    }

    #[test]
    fn odd_lines_are_no_reports() {
        for line in [
            "",
            "NESTLING-LEVEL",
            "NESTLING-LEVEL up",
            "NESTLING-LEVEL 256 up",
            "NESTLING-LEVEL -1 up",
            "NESTLING-LEVEL 1 dance",
            "nestling-level 1 up",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn odd_values_are_left_out() {
        let line = format!(
            "NESTLING-LEVEL 1 up kernel={} uptime=NaN memory_kib=-5 = == a=b=c",
            "x".repeat(900)
        );
        let Some(Report {
            event: Event::Up(seen),
            ..
        }) = parse(&line)
        else {
            panic!("a report");
        };
        assert_eq!(seen.kernel.len(), LONGEST_VALUE);
        assert_eq!((seen.uptime_seconds, seen.memory_kib), (None, None));
        assert_eq!(seen.hypervisor, "unknown");
        let infinite = parse("NESTLING-LEVEL 1 down status=99999999999 uptime=inf");
        let expected = Event::Down {
            status: None,
            uptime_seconds: None,
        };
        assert_eq!(infinite.map(|r| r.event), Some(expected));
    }
}
