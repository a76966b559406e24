//! One run of images on one monitor: starts it, reads the guests' console, and notes when what is said.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::console::{self, Line, Stats};
use super::programs::{MEMORY, Programs};

/// The peer's program.
const QEMU: &str = "qemu-system-x86_64";
/// Bytes of a line beyond this belong to the next one.
const LONGEST_LINE: u64 = 4096;
/// How many of the last lines are kept to say what went wrong.
const KEPT_LINES: usize = 3;

/// A monitor that runs level 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// Ours, on the software engine.
    Nestling,
    /// QEMU's translator.
    Qemu {
        /// What it says of its version.
        version: String,
    },
}

impl Monitor {
    /// QEMU, if it is installed.
    pub fn qemu() -> Option<Self> {
        let output = Command::new(QEMU)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(3)?;
        Some(Self::Qemu {
            version: version.to_string(),
        })
    }

    /// Its name in the report.
    pub fn name(&self) -> String {
        match self {
            Self::Nestling => "nestling soft".into(),
            Self::Qemu { version } => format!("QEMU {version} tcg"),
        }
    }

    /// The virtualization its guests see, as `nestling images --virt` takes it.
    pub fn virt(&self) -> &'static str {
        match self {
            Self::Nestling => "intel",
            Self::Qemu { .. } => "amd",
        }
    }

    /// The command that runs `images`; `clock` is for ours.
    fn command(&self, programs: &Programs, images: &Path, clock: &str, append: &str) -> Command {
        let mut command;
        let dash = match self {
            Self::Nestling => {
                command = Command::new(&programs.nestling);
                command
                    .args(["run", "--engine", "soft", "--nested", "intel", "--stats"])
                    .args(["--clock", clock, "--memory", MEMORY]);
                "--"
            }
            Self::Qemu { .. } => {
                command = Command::new(QEMU);
                command
                    .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"])
                    .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
                    .args(["-no-reboot", "-m", MEMORY]);
                "-"
            }
        };
        for (option, file) in [("kernel", "vmlinuz"), ("initrd", "initramfs.cpio")] {
            command
                .arg(format!("{dash}{option}"))
                .arg(images.join(file));
        }
        command.arg(format!("{dash}append")).arg(append);
        command
    }
}

/// What a run gave. Times are from its start.
#[derive(Debug, Default)]
pub struct Finished {
    /// When each level was up.
    pub up: BTreeMap<u8, Duration>,
    /// When the monitor ended, if it did so by itself.
    pub end: Option<Duration>,
    /// What our monitor says it executed.
    pub stats: Option<Stats>,
    /// What went wrong.
    pub trouble: Option<String>,
    parts: BTreeMap<u8, BTreeMap<String, f64>>,
    begun: BTreeMap<u8, Duration>,
    clocks: BTreeMap<u8, f64>,
    down: BTreeMap<u8, String>,
    failed: Option<String>,
    last_lines: Vec<String>,
}

impl Finished {
    /// Nanoseconds an operation, by level and part.
    pub fn parts(&self) -> BTreeMap<u8, BTreeMap<String, f64>> {
        self.parts.clone()
    }

    /// Seconds on a level's own clock for a second of the host's, while it measured itself.
    pub fn clocks(&self) -> BTreeMap<u8, f64> {
        self.clocks.clone()
    }

    fn take(&mut self, line: String, at: Duration) {
        match console::parse(&line) {
            Some(Line::Up(level)) => {
                self.up.entry(level).or_insert(at);
            }
            Some(Line::Down(level, status)) => {
                self.down.insert(level, status);
            }
            Some(Line::Fail(level, what)) => {
                self.failed = Some(format!("level {level}: {what}"));
            }
            Some(Line::Begin(level)) => {
                self.begun.insert(level, at);
            }
            Some(Line::Part { level, name, ns }) => {
                self.parts.entry(level).or_default().insert(name, ns);
            }
            Some(Line::End(level, guest_ns)) => {
                if let Some(begun) = self.begun.get(&level) {
                    let host_ns = at.saturating_sub(*begun).as_secs_f64() * 1e9;
                    self.clocks.insert(level, guest_ns / host_ns.max(1.0));
                }
            }
            None => {
                if let Some(stats) = console::stats(&line) {
                    self.stats = Some(stats);
                } else {
                    self.last_lines.push(line);
                    if self.last_lines.len() > KEPT_LINES {
                        self.last_lines.remove(0);
                    }
                }
            }
        }
    }

    fn judge(&mut self, status: Option<ExitStatus>, timeout: Duration) {
        let mut why = Vec::new();
        match status {
            None => why.push(format!("it did not end in {} s", timeout.as_secs())),
            Some(status) if !status.success() => why.push(format!("it ended with {status}")),
            Some(_) => {}
        }
        why.extend(self.failed.take());
        for level in 1..=2 {
            match self.down.get(&level).map(String::as_str) {
                Some("0") => {}
                Some(status) => why.push(format!("level {level} ended with status {status}")),
                None if self.up.contains_key(&level) => {
                    why.push(format!("level {level} did not switch itself off"));
                }
                None => why.push(format!("level {level} did not come up")),
            }
        }
        if !why.is_empty() {
            why.push(format!("last lines: {}", self.last_lines.join(" | ")));
            self.trouble = Some(why.join("; "));
        }
    }
}

/// Sends what is read, line by line, with the time.
fn read_lines(from: impl Read, started: Instant, to: &Sender<(Duration, String)>) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        match from
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text: String = text.chars().filter(|c| !c.is_control()).collect();
                if !text.is_empty() && to.send((started.elapsed(), text)).is_err() {
                    return;
                }
            }
        }
    }
}

/// Takes lines until both streams end or the time is over.
fn collect(lines: &Receiver<(Duration, String)>, deadline: Instant, finished: &mut Finished) {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok((at, line)) => finished.take(line, at),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return,
        }
    }
}

/// The end of a child whose output has ended, or `None` if it was still running at the deadline and was killed.
fn end(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `images` on `monitor` and waits for the end, at most for `timeout`.
///
/// # Errors
/// A monitor that cannot be started. One that fails gives what it gave until then, and the trouble.
pub fn run(
    monitor: &Monitor,
    programs: &Programs,
    images: &Path,
    clock: &str,
    timeout: Duration,
) -> Result<Finished> {
    let append = std::fs::read_to_string(images.join("append.txt"))
        .with_context(|| format!("cannot read append.txt in {}", images.display()))?;
    let mut command = monitor.command(programs, images, clock, append.trim());
    let started = Instant::now();
    let deadline = started + timeout;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", monitor.name()))?;
    let (send, lines) = channel();
    let errors = (child.stderr.take(), send.clone());
    let output = (child.stdout.take(), send);
    let mut finished = Finished::default();
    thread::scope(|threads| -> Result<()> {
        threads.spawn(move || {
            if let (Some(stream), send) = errors {
                read_lines(stream, started, &send);
            }
        });
        threads.spawn(move || {
            if let (Some(stream), send) = output {
                read_lines(stream, started, &send);
            }
        });
        collect(&lines, deadline, &mut finished);
        let status = end(&mut child, deadline)?;
        finished.end = status.map(|_| started.elapsed());
        finished.judge(status, timeout);
        Ok(())
    })?;
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 6] = [
        "NESTLING-LEVEL 1 up kernel=6.1",
        "NESTLING-BENCH 1 begin",
        "NESTLING-BENCH 1 crc 2.0",
        "NESTLING-BENCH 1 end 3000000000",
        "NESTLING-LEVEL 2 up kernel=6.1",
        "NESTLING-LEVEL 2 down status=0 uptime=1",
    ];

    /// One line a second.
    fn after(lines: &[&str]) -> Finished {
        let mut finished = Finished::default();
        for (second, line) in (1..).zip(lines) {
            finished.take(line.to_string(), Duration::from_secs(second));
        }
        finished
    }

    #[test]
    fn figures_and_their_times_are_noted() {
        let finished = after(&GOOD);
        assert_eq!(finished.up[&1], Duration::from_secs(1));
        assert_eq!(finished.up[&2], Duration::from_secs(5));
        assert_eq!(finished.parts()[&1]["crc"], 2.0);
        // Three seconds by the guest's clock, two by ours.
        assert!((finished.clocks()[&1] - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_run_is_good_if_both_levels_went_off() {
        use std::os::unix::process::ExitStatusExt;
        let judged = |lines: &[&str], status| {
            let mut finished = after(lines);
            finished.judge(status, Duration::from_secs(9));
            finished.trouble
        };
        let success = Some(ExitStatus::from_raw(0));
        let mut whole = GOOD.to_vec();
        whole.push("NESTLING-LEVEL 1 down status=0 uptime=2");
        assert_eq!(judged(&whole, success), None);
        assert!(judged(&GOOD, success).is_some_and(|why| why.contains("level 1 did not switch")));
        assert!(judged(&whole, None).is_some_and(|why| why.contains("did not end in 9 s")));
        let mut failing = GOOD[..1].to_vec();
        failing.push("something says why");
        failing.push("NESTLING-LEVEL 1 fail step=bench status=1");
        let why = judged(&failing, success).expect("trouble");
        assert!(why.contains("level 1: step=bench status=1"), "{why}");
        assert!(why.contains("level 2 did not come up"), "{why}");
        assert!(why.ends_with("something says why"), "{why}");
    }
}
