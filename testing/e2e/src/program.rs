//! The `nestling` program from outside: found or built, started with an environment of its own, ended by a
//! deadline, its streams collected.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// After so long a program that runs no guest, or a tiny one, is held to hang.
const DEADLINE: Duration = Duration::from_secs(600);
/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(10);

/// The folder of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A folder for what the tests keep between runs, beside the build's own files.
#[must_use]
pub fn kept() -> PathBuf {
    let program = path();
    let profile = program.parent().expect("the program is in a folder");
    profile.join("e2e")
}

/// Where the program is. It is built once in each run of the tests if it is not up to date; the profile is that of
/// the tests.
///
/// # Panics
/// The program does not build.
#[must_use]
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| build().expect("the program builds"))
}

/// Cargo only builds the programs of a package for that package's own tests, so it is asked for this one. It says
/// itself where it put it.
fn build() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests lie in a folder of the profile, other programs beside ours.
    let mut folders = own.iter().rev().skip(1).filter(|name| *name != "deps");
    let profile = match folders.next().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace())
        .args(["build", "--package", "nestling", "--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    // The programs of a target lie one folder deeper, in a folder that is tagged as well.
    let tagged = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    let inner = own.ancestors().find(tagged);
    let outer = inner.and_then(Path::parent).filter(tagged);
    if let Some(target) = outer.or(inner) {
        command.arg("--target-dir").arg(target);
    }
    // What cargo tells the tests about themselves would make this build differ from one started by hand.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_")) {
            command.env_remove(name);
        }
    }
    let output = command.output().context("cargo does not start")?;
    ensure!(output.status.success(), "cargo build: {}", output.status);
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["target"]["name"] == "nestling"
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(path.into());
        }
    }
    bail!("cargo names no program")
}

/// Where `setpriv` of util-linux is, which has a program killed when the thread that started it ends (PR_SET_PDEATHSIG).
/// Nothing where it is not, or cannot do that.
fn setpriv() -> Option<&'static Path> {
    static PLACE: OnceLock<Option<PathBuf>> = OnceLock::new();
    PLACE
        .get_or_init(|| {
            let folders = std::env::var_os("PATH")?;
            let mut places = std::env::split_paths(&folders).map(|folder| folder.join("setpriv"));
            places.find(|place| {
                let tried = Command::new(place)
                    .args(DIES_WITH_US)
                    .arg("/bin/true")
                    .stderr(Stdio::null())
                    .status();
                tried.is_ok_and(|status| status.success())
            })
        })
        .as_deref()
}

const DIES_WITH_US: [&str; 3] = ["--pdeathsig", "KILL", "--"];

/// The same command, killed when the thread that started it ends, where that can be had.
fn dying_with_us(command: Command) -> Command {
    let Some(setpriv) = setpriv() else {
        return command;
    };
    let mut dying = Command::new(setpriv);
    dying
        .args(DIES_WITH_US)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => dying.env(name, value),
            None => dying.env_remove(name),
        };
    }
    dying
}

/// A run of the program, or of another one, to be started. It ends with the test that started it, also if that is
/// killed.
#[derive(Debug)]
pub struct Run {
    command: Command,
    /// The user and group to run as, if not ours.
    user: Option<u32>,
    input: Vec<u8>,
    /// Standard input does not end: more may be typed.
    typed: bool,
    deadline: Duration,
}

/// A run that goes on.
#[derive(Debug)]
pub struct Running {
    child: Child,
    keys: Option<ChildStdin>,
    output: Stream,
    messages: Stream,
    deadline: Duration,
    started: Instant,
    what: String,
}

/// A run that ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error.
    pub messages: String,
}

impl Run {
    /// `nestling` with `arguments` and without this environment's wishes about nestling.
    #[must_use]
    pub fn nestling<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self::program(path()).args(arguments)
    }

    /// Another program.
    #[must_use]
    pub fn program(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_remove("NESTLING_LOG").env_remove("APT_CONFIG");
        Self {
            command,
            user: None,
            input: Vec::new(),
            typed: false,
            deadline: DEADLINE,
        }
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable from the environment.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Keeps its cache in `folder`.
    #[must_use]
    pub fn cache(self, folder: &Path) -> Self {
        self.env("NESTLING_CACHE", folder)
    }

    /// What it reads from standard input, which then ends.
    #[must_use]
    pub fn input(mut self, input: &[u8]) -> Self {
        self.input = input.to_vec();
        self
    }

    /// Leaves standard input open for [`Running::send`].
    #[must_use]
    pub fn typed(mut self) -> Self {
        self.typed = true;
        self
    }

    /// Runs as the user and group `id`; only root can.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// The longest it may take.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// The host's refusal to start it.
    pub fn try_start(self) -> std::io::Result<Running> {
        let what = format!("{:?}", self.command);
        let mut command = match self.user {
            None => dying_with_us(self.command),
            // That this user cannot start the program is to be told from what the program says.
            Some(id) => {
                let mut command = self.command;
                command.uid(id).gid(id);
                command
            }
        };
        let mut child = command
            // What it starts ends with it at the deadline.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut keys = child.stdin.take();
        if !self.typed
            && let Some(mut pipe) = keys.take()
        {
            let input = self.input;
            // A program that reads nothing ends the pipe; that is its right.
            std::thread::spawn(move || pipe.write_all(&input));
        }
        Ok(Running {
            output: Stream::of(child.stdout.take().expect("it is piped")),
            messages: Stream::of(child.stderr.take().expect("it is piped")),
            child,
            keys,
            deadline: self.deadline,
            started: Instant::now(),
            what,
        })
    }

    /// Starts it.
    ///
    /// # Panics
    /// The host refuses.
    #[must_use]
    pub fn start(self) -> Running {
        self.try_start().expect("the program starts")
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It does not start, or not end by its deadline.
    #[must_use]
    pub fn end(self) -> Ended {
        self.start().end()
    }
}

impl Running {
    /// Waits until its standard output has `bytes` somewhere.
    ///
    /// # Panics
    /// It ends or reaches its deadline before.
    pub fn await_within_output(&mut self, bytes: &[u8]) {
        self.wait_until(|run| run.output.so_far().windows(bytes.len()).any(|w| w == bytes));
    }

    /// Types into standard input, which was left open.
    ///
    /// # Panics
    /// It was not, or the program does not take it.
    pub fn send(&mut self, bytes: &[u8]) {
        let keys = self.keys.as_mut().expect("standard input is open");
        keys.write_all(bytes).expect("the program reads");
    }

    /// The number of its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_child(&self.child);
        // It may have ended by itself in between.
        let _ = kill_process(id, signal);
    }

    /// Waits until its standard output begins with `bytes`.
    ///
    /// # Panics
    /// It ends, or its deadline comes, before that.
    pub fn await_output(&mut self, bytes: &[u8]) {
        self.wait_until(|run| run.output.so_far().starts_with(bytes));
    }

    /// Waits until `text` is on its standard error.
    ///
    /// # Panics
    /// It ends, or its deadline comes, before that.
    pub fn await_message(&mut self, text: &str) {
        self.wait_until(|run| run.messages.text().contains(text));
    }

    fn wait_until(&mut self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            // What it said last may have come between the two looks.
            assert!(
                !self.has_ended() || reached(self),
                "{} ended too early; it said\n{}",
                self.what,
                self.messages.text()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// Its deadline has come.
    pub fn has_ended(&mut self) -> bool {
        if self.child.try_wait().expect("it is our child").is_some() {
            return true;
        }
        if self.started.elapsed() > self.deadline {
            self.kill();
            panic!(
                "{} did not end in {:?}; it said\n{}",
                self.what,
                self.deadline,
                self.messages.text()
            );
        }
        false
    }

    /// Ends it and what it started.
    fn kill(&mut self) {
        // After a regular end this is in vain.
        if matches!(self.child.try_wait(), Ok(None)) {
            let group = Pid::from_child(&self.child);
            let _ = kill_process_group(group, Signal::KILL);
            let _ = self.child.wait();
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end by its deadline.
    #[must_use]
    pub fn end(mut self) -> Ended {
        while !self.has_ended() {
            std::thread::sleep(POLL);
        }
        let status = self.child.wait().expect("it is our child");
        self.output.finish();
        self.messages.finish();
        Ended {
            status,
            output: self.output.so_far(),
            messages: self.messages.text(),
        }
    }
}

impl Drop for Running {
    /// A test that failed leaves nothing running.
    fn drop(&mut self) {
        self.kill();
    }
}

/// What comes out of a pipe, read by a thread as it comes.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut part = [0; 4096];
            // What came before an error is what there is.
            while let Ok(count @ 1..) = pipe.read(&mut part) {
                let mut bytes = sink.lock().expect("no reader panics");
                bytes.extend_from_slice(&part[..count]);
            }
        });
        Self {
            bytes,
            thread: Some(thread),
        }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().expect("no reader panics").clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.so_far()).into_owned()
    }

    /// Waits for the end of the pipe.
    fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("reading does not panic");
        }
    }
}

impl Ended {
    /// Its exit status as a shell gives it: 128 and the signal's number if a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        let signal = || self.status.signal().map(|signal| 128 + signal);
        self.status.code().or_else(signal).expect("it ended")
    }

    /// Checks the exit status.
    ///
    /// # Panics
    /// It is another one, or the program panicked.
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(!self.messages.contains("panicked"), "{}", self.messages);
        assert_eq!(self.code(), code, "it said\n{}", self.messages);
        self
    }

    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Its standard output as JSON.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let parsed = serde_json::from_slice(&self.output);
        parsed.unwrap_or_else(|e| panic!("{e} in\n{}\nit said\n{}", self.text(), self.messages))
    }

    /// Checks that it failed as the program shall fail: status 1, and one line of standard error that says what, why
    /// and what to do. Lines before it may tell how far it came. Gives that line.
    ///
    /// # Panics
    /// It did not.
    #[must_use]
    pub fn failure(&self) -> &str {
        self.expect_code(1);
        let lines: Vec<&str> = self.messages.lines().collect();
        let (last, before) = lines.split_last().expect("it says why it failed");
        assert_is_failure(last);
        for line in before {
            let told = ["engine ", "fetching ", "the cache's ", "waiting for "];
            let text = line.strip_prefix("nestling: ");
            assert!(
                text.is_some_and(|text| told.iter().any(|start| text.starts_with(start))),
                "more than one line: {}",
                self.messages
            );
        }
        last
    }
}

/// Checks that `line` has the form `nestling: <what>: <why>; <what to do>`.
fn assert_is_failure(line: &str) {
    let parts = line
        .strip_prefix("nestling: ")
        .and_then(|text| text.split_once(": "))
        .and_then(|(what, rest)| Some((what, rest.rsplit_once("; ")?)));
    let Some((what, (why, advice))) = parts else {
        panic!("not what, why and what to do: {line}");
    };
    for part in [what, why, advice] {
        assert!(part.trim().len() > 3, "an empty part: {line}");
    }
    assert!(
        line.chars().all(|c| !c.is_control()) && line.len() < 2_000,
        "not one readable line: {line:?}"
    );
    for unfit in ["panicked", "os error", "RUST_BACKTRACE", "Some("] {
        assert!(!line.contains(unfit), "not for a user: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "program::tests::a_killed_test_leaves_nothing_running";
    /// Tells the test that it is the one to be killed.
    const TO_BE_KILLED: &str = "NESTLING_E2E_TO_BE_KILLED";
    const MARK: &str = "its child is ";

    /// Whether a process runs; one that ended and was not collected does not.
    fn runs(id: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
        let state = stat.ok().and_then(|stat| {
            let (_, rest) = stat.rsplit_once(") ")?;
            rest.chars().next()
        });
        !matches!(state, None | Some('Z' | 'X'))
    }

    #[test]
    fn a_killed_test_leaves_nothing_running() {
        let busy = || Run::program("/bin/sh").args(["-c", "while :; do :; done"]);
        if std::env::var_os(TO_BE_KILLED).is_some() {
            let child = busy().start();
            println!("{MARK}{}.", child.id());
            std::thread::sleep(DEADLINE);
            return;
        }
        if setpriv().is_none() {
            crate::skipped("this machine has no setpriv that knows --pdeathsig");
            return;
        }
        let own = std::env::current_exe().expect("it runs");
        let mut test = Run::program(own)
            .args(["--exact", NAME, "--nocapture"])
            .env(TO_BE_KILLED, "1")
            .start();
        test.await_within_output(b".\n");
        test.signal(Signal::KILL);
        let output = test.end().text();
        let child = output
            .split_once(MARK)
            .and_then(|(_, rest)| rest.split_once('.'))
            .map(|(id, _)| id.to_owned())
            .expect("it tells");
        let begin = Instant::now();
        while runs(&child) {
            assert!(begin.elapsed() < Duration::from_secs(20), "{child} runs");
            std::thread::sleep(POLL);
        }
    }
}
