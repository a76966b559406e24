//! One run of images on one monitor: starts it, reads the guests' console, and notes when what is said.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::console::{self, Figures, Line};
use super::process;
use super::programs::{Images, Programs};

/// The peer's program.
const QEMU: &str = "qemu-system-x86_64";
/// Bytes of a line beyond this belong to the next one.
const LONGEST_LINE: u64 = 4096;
/// Clocks are compared over so many seconds at least, since a line takes its time to come through the console.
const CLOCK_SECONDS: f64 = 3.0;
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

    /// The command that runs `images`. Ours has a clock of its own, or follows the host's where a guest measures.
    fn command(&self, programs: &Programs, images: &Images, append: &str) -> Command {
        let memory = format!("{}M", images.memory_bytes >> 20);
        let cpus = images.cpus.to_string();
        let mut command;
        let dash = match self {
            Self::Nestling => {
                let clock = if images.measures { "host" } else { "virtual" };
                command = Command::new(&programs.nestling);
                command
                    .args(["run", "--engine", "soft", "--nested", "intel", "--stats"])
                    .args(["--clock", clock, "--memory", &memory, "--cpus", &cpus]);
                "--"
            }
            Self::Qemu { .. } => {
                command = Command::new(QEMU);
                command
                    .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"])
                    .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
                    .args(["-no-reboot", "-m", &memory, "-smp", &cpus]);
                "-"
            }
        };
        for (option, file) in [("kernel", "vmlinuz"), ("initrd", "initramfs.cpio")] {
            command
                .arg(format!("{dash}{option}"))
                .arg(images.folder.join(file));
        }
        command.arg(format!("{dash}append")).arg(append);
        command
    }
}

/// A point of a run: seconds from its start by the clock, and of the monitor's processor time in user mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// By the clock.
    pub wall_s: f64,
    /// Of processor time; `None` if the host does not tell.
    pub user_s: Option<f64>,
    /// The same of living threads, in user mode and in the kernel, but finer.
    pub run_s: Option<f64>,
}

/// What a part took in a run.
#[derive(Clone, Debug, PartialEq)]
pub struct PartRun {
    /// What the guest says.
    pub figures: Figures,
    /// The monitor's processor time in seconds.
    pub run_s: Option<f64>,
}

/// What a run gave.
#[derive(Debug, Default)]
pub struct Finished {
    /// When each level was up.
    pub up: BTreeMap<u8, Moment>,
    /// When the monitor ended, if it did so by itself.
    pub end: Option<Moment>,
    /// Instructions a second, as our monitor says.
    pub instructions_per_second: Option<f64>,
    /// What it counted ([`console::counts`]).
    pub counts: Option<[f64; console::COUNTS.len()]>,
    /// The monitor's own memory in bytes when the innermost level was up.
    pub own_memory: Option<u64>,
    /// What each part took, by level.
    pub parts: BTreeMap<(u8, String), PartRun>,
    /// The feature a part lacks, by level.
    pub lacks: BTreeMap<(u8, String), String>,
    /// Seconds on a level's own clock for a second of the host's, while it measured itself.
    pub clocks: BTreeMap<u8, f64>,
    /// What went wrong.
    pub trouble: Option<String>,
    begun: BTreeMap<u8, f64>,
    started: BTreeMap<(u8, String), Option<f64>>,
    down: BTreeMap<u8, String>,
    failed: Vec<String>,
    last_lines: Vec<String>,
}

impl Finished {
    fn take(&mut self, line: String, at: Moment) {
        match console::parse(&line) {
            Some(Line::Up(level)) => {
                self.up.entry(level).or_insert(at);
            }
            Some(Line::Down(level, status)) => {
                self.down.insert(level, status);
            }
            Some(Line::Fail(level, what)) => self.failed.push(format!("level {level}: {what}")),
            Some(Line::Wrong(level, part, why)) => {
                self.failed.push(format!("level {level}, {part}: {why}"));
            }
            Some(Line::Begin(level)) => {
                self.begun.insert(level, at.wall_s);
            }
            Some(Line::Start(level, part)) => {
                self.started.insert((level, part), at.run_s);
            }
            Some(Line::Part(level, part, figures)) => {
                let key = (level, part);
                let from = self.started.get(&key).copied().flatten();
                let run_s = at.run_s.zip(from).map(|(to, from)| to - from);
                self.parts.insert(key, PartRun { figures, run_s });
            }
            Some(Line::Lacks(level, part, feature)) => {
                self.lacks.insert((level, part), feature);
            }
            Some(Line::End(level, guest_ns)) => {
                if let Some(begun) = self.begun.get(&level) {
                    let host_s = at.wall_s - begun;
                    if host_s >= CLOCK_SECONDS {
                        self.clocks.insert(level, guest_ns / 1e9 / host_s);
                    }
                }
            }
            None => self.take_other(line),
        }
    }

    fn take_other(&mut self, line: String) {
        if let Some(speed) = console::instructions_per_second(&line) {
            self.instructions_per_second = Some(speed);
            return;
        }
        if let Some(counts) = console::counts(&line) {
            self.counts = Some(counts);
            return;
        }
        self.last_lines.push(line);
        if self.last_lines.len() > KEPT_LINES {
            self.last_lines.remove(0);
        }
    }

    fn judge(&mut self, status: Option<ExitStatus>, timeout: Duration, depth: u8) {
        let mut why = std::mem::take(&mut self.failed);
        match status {
            None => why.push(format!("it did not end in {} s", timeout.as_secs())),
            Some(status) if !status.success() => why.push(format!("it ended with {status}")),
            Some(_) => {}
        }
        for level in 1..=depth {
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

/// What is watched of a monitor while it runs.
struct Watched<'a> {
    pid: u32,
    started: Instant,
    deadline: Instant,
    images: &'a Images,
}

impl Watched<'_> {
    fn moment(&self, at: Duration) -> Moment {
        Moment {
            wall_s: at.as_secs_f64(),
            user_s: process::processed(self.pid).map(|found| found.user_s),
            run_s: process::run_seconds(self.pid),
        }
    }

    /// Takes lines until both streams end or the time is over.
    fn collect(&self, lines: &Receiver<(Duration, String)>, finished: &mut Finished) {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok((at, line)) => {
                    finished.take(line, self.moment(at));
                    if finished.own_memory.is_none() && finished.up.contains_key(&self.images.depth)
                    {
                        finished.own_memory =
                            process::own_memory(self.pid, self.images.memory_bytes);
                    }
                }
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return,
            }
        }
    }

    /// The end of a child whose output has ended and its moment, or `None` if it was still running at the deadline and
    /// was killed. It is waited for only when it has ended, since then its processor time is gone.
    fn end(&self, child: &mut Child) -> Result<Option<(ExitStatus, Moment)>> {
        loop {
            let moment = self.moment(self.started.elapsed());
            if process::processed(self.pid).is_none_or(|found| found.ended) {
                return Ok(Some((child.wait()?, moment)));
            }
            if Instant::now() >= self.deadline {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs `images` on `monitor` and waits for the end, at most for `timeout`.
///
/// # Errors
/// A monitor that cannot be started. One that fails gives what it gave until then, and the trouble.
pub fn run(
    monitor: &Monitor,
    programs: &Programs,
    images: &Images,
    timeout: Duration,
) -> Result<Finished> {
    let append = std::fs::read_to_string(images.folder.join("append.txt"))
        .with_context(|| format!("cannot read append.txt in {}", images.folder.display()))?;
    let mut command = monitor.command(programs, images, append.trim());
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", monitor.name()))?;
    let watched = Watched {
        pid: child.id(),
        started,
        deadline: started + timeout,
        images,
    };
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
        watched.collect(&lines, &mut finished);
        let end = watched.end(&mut child)?;
        finished.end = end.map(|(_, moment)| moment);
        finished.judge(end.map(|(status, _)| status), timeout, images.depth);
        Ok(())
    })?;
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const GOOD: [&str; 8] = [
        "NESTLING-LEVEL 1 up kernel=6.1",
        "NESTLING-BENCH 1 begin",
        "NESTLING-BENCH 1 start crc",
        "NESTLING-BENCH 1 part crc operations=4 batches=2 total_ns=90 best_ns=40 sum=a",
        "NESTLING-BENCH 1 end 3000000000",
        "NESTLING-LEVEL 2 up kernel=6.1",
        "NESTLING-LEVEL 2 down status=0 uptime=1",
        "NESTLING-LEVEL 1 down status=0 uptime=1",
    ];
    const MINUTE: Duration = Duration::from_secs(60);

    /// One line a second, half of it processor time.
    fn after(lines: &[&str]) -> Finished {
        let mut finished = Finished::default();
        for (second, line) in (1..).zip(lines) {
            let moment = Moment {
                wall_s: f64::from(second),
                user_s: None,
                run_s: Some(f64::from(second) / 2.0),
            };
            finished.take(line.to_string(), moment);
        }
        finished
    }

    fn trouble(lines: &[&str], status: Option<i32>) -> Option<String> {
        let mut finished = after(lines);
        finished.judge(status.map(ExitStatus::from_raw), MINUTE, 2);
        finished.trouble
    }

    #[test]
    fn a_good_run_has_its_figures_and_no_trouble() {
        let finished = after(&GOOD);
        let part = &finished.parts[&(1, "crc".to_string())];
        assert_eq!((part.figures.best_ns, part.run_s), (40.0, Some(0.5)));
        assert_eq!(finished.up[&2].wall_s, 6.0);
        // Three seconds by both clocks.
        assert_eq!(finished.clocks[&1], 1.0);
        assert_eq!(trouble(&GOOD, Some(0)), None);
    }

    #[test]
    fn a_bad_run_says_why() {
        let why = |lines: &[&str], status| trouble(lines, status).expect("there is trouble");
        assert!(why(&GOOD, None).contains("did not end in 60 s"));
        assert!(why(&GOOD, Some(256)).contains("exit status: 1"));
        assert!(why(&GOOD[..5], Some(0)).contains("level 2 did not come up"));
        assert!(why(&GOOD[..6], Some(0)).contains("level 2 did not switch itself off"));
        let mut wrong = GOOD;
        wrong[3] = "NESTLING-BENCH 1 wrong crc its sum is 1, not 2";
        assert!(why(&wrong, Some(0)).contains("level 1, crc: its sum is 1, not 2"));
        wrong[3] = "NESTLING-LEVEL 1 fail step=bench status=1";
        assert!(why(&wrong, Some(0)).contains("level 1: step=bench status=1"));
    }

    #[test]
    fn lines_are_cut_and_control_characters_dropped() {
        let (send, lines) = channel();
        let text = format!("one\r\n\x1b[2Jtwo\n{}\n", "x".repeat(5000));
        read_lines(text.as_bytes(), Instant::now(), &send);
        drop(send);
        let lines: Vec<String> = lines.iter().map(|(_, line)| line).collect();
        assert_eq!(lines[..2], ["one", "[2Jtwo"]);
        assert_eq!(lines[2..].iter().map(String::len).sum::<usize>(), 5000);
    }
}
