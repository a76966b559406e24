//! The driver: the one thread that decides about a VM.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use machine::{Board, GuestRequest, Machine};
use vcpu::{EngineError, Profile};

use crate::admission::{Event, State, admit};
use crate::console::{Lost, Outputs};
use crate::threads::{self, Left};

/// How often vCPUs that were asked to leave are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long vCPUs have to leave before the run is given up as failed.
const LEAVE_LIMIT: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });
/// How long output that the run left may take once the run was stopped from outside.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// How long it may take when the guest ended the run, and how long of that without anything being written.
const DRAIN_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 4 } else { 60 });
const STALL_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 5 });

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// A vCPU shut down after a triple fault (SDM Vol 3 6.15).
    TripleFault,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u8),
    /// The time limit was reached.
    Timeout,
    /// The user stopped it.
    Stopped,
}

/// Figures of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions executed by all vCPUs, where the engine counts them.
    pub retired: Option<u64>,
    /// Real time from start to end.
    pub wall: Duration,
    /// The guest's time from start to end.
    pub guest_time: Duration,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunReport {
    /// How it ended.
    pub outcome: RunOutcome,
    /// Figures.
    pub statistics: Statistics,
    /// What the vCPUs' work was made of.
    pub profile: Profile,
    /// Why the guest's output could not be written to its end, if it could not.
    pub console_error: Option<String>,
    /// What of the guest's output was not taken in time.
    pub lost: Lost,
}

/// A run that went wrong on the host's side.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    /// The engine cannot go on.
    #[error("vCPU {vcpu} stopped: {source}")]
    Engine {
        /// vCPU index.
        vcpu: u32,
        /// What the engine says.
        source: Arc<EngineError>,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for {what}: {source}; check the limits on processes and memory")]
    Thread {
        /// What it was for.
        what: String,
        /// The host's error.
        source: Arc<std::io::Error>,
    },
    /// A bug in this program.
    #[error("internal error in {thread}: {text}; please report it")]
    Panic {
        /// Whose thread.
        thread: String,
        /// The text of the panic.
        text: String,
    },
    /// A vCPU does not react.
    #[error("{count} vCPUs did not stop within {} s; please report it", LEAVE_LIMIT.as_secs())]
    Hung {
        /// How many.
        count: usize,
    },
}

/// What the driver is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The user wants the run to end.
    Stop,
    /// The guest asks for something.
    Guest(GuestRequest),
    /// The timer's thread panicked.
    TimerPanicked(String),
    /// A vCPU's thread is over.
    Left {
        index: u32,
        left: Left,
        retired: Option<u64>,
        profile: Profile,
    },
}

/// A kick for each vCPU.
type Kickers = Vec<Box<dyn Fn() + Send + Sync>>;

pub(crate) struct Driver {
    state: State,
    board: Arc<Board>,
    outputs: Outputs,
    messages: Receiver<Message>,
    kickers: Kickers,
    threads: Vec<JoinHandle<()>>,
    /// vCPU threads that are not over.
    running: usize,
    ending: Option<Result<RunOutcome, RunError>>,
    retired: Option<u64>,
    profile: Profile,
    started: Instant,
    deadline: Option<Instant>,
    /// When the vCPUs were first asked to leave.
    asked: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(
        board: Arc<Board>,
        outputs: Outputs,
        messages: Receiver<Message>,
        timeout: Option<Duration>,
    ) -> Self {
        let started = Instant::now();
        Self {
            state: State::Created,
            board,
            outputs,
            messages,
            kickers: Vec::new(),
            threads: Vec::new(),
            running: 0,
            ending: None,
            retired: Some(0),
            profile: Profile::default(),
            started,
            deadline: timeout.and_then(|t| started.checked_add(t)),
            asked: None,
        }
    }

    /// Runs the machine to its end.
    pub(crate) fn run(
        mut self,
        machine: Machine,
        to_driver: &Sender<Message>,
    ) -> Result<RunReport, RunError> {
        self.enter(Event::Start);
        self.start_threads(machine, to_driver);
        while self.state != State::Stopped {
            if self.running == 0 && self.state == State::Stopping {
                self.enter(Event::AllLeft);
                break;
            }
            self.step();
        }
        self.finish()
    }

    fn enter(&mut self, event: Event) {
        match admit(self.state, event) {
            Ok(state) => self.state = state,
            Err(refused) => unreachable!("{refused}"),
        }
    }

    fn start_threads(&mut self, machine: Machine, to_driver: &Sender<Message>) {
        self.kickers = machine.vcpus.iter().map(|v| v.kicker()).collect();
        if self.board.needs_timekeeper() {
            let board = Arc::clone(&self.board);
            let to_driver = to_driver.clone();
            let keep_time = move || threads::keep_time(&board, &to_driver);
            self.start_thread("timer".to_owned(), keep_time);
        }
        for (index, vcpu) in (0u32..).zip(machine.vcpus) {
            let to_driver = to_driver.clone();
            let run = move || threads::run(index, vcpu, &to_driver);
            if !self.start_thread(format!("vcpu{index}"), run) {
                break;
            }
            self.running += 1;
        }
    }

    fn start_thread(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> bool {
        match thread::Builder::new().name(name.clone()).spawn(run) {
            Ok(handle) => {
                self.threads.push(handle);
                true
            }
            Err(e) => {
                self.end(Err(RunError::Thread {
                    what: name,
                    source: Arc::new(e),
                }));
                false
            }
        }
    }

    /// Waits for one message or the next time something is due.
    fn step(&mut self) {
        let due = match self.state {
            State::Stopping => Some(Instant::now() + ASK_AGAIN),
            _ => self.deadline,
        };
        let received = match due {
            None => self
                .messages
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => self
                .messages
                .recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match received {
            Ok(Message::Stop) => self.end(Ok(RunOutcome::Stopped)),
            Ok(Message::Guest(request)) => self.end(Ok(match request {
                GuestRequest::PowerOff => RunOutcome::PowerOff,
                GuestRequest::Reset => RunOutcome::Reset,
                GuestRequest::DebugExit(code) => RunOutcome::DebugExit(code),
            })),
            Ok(Message::TimerPanicked(text)) => self.end(Err(RunError::Panic {
                thread: "the timer".to_owned(),
                text,
            })),
            Ok(Message::Left {
                index,
                left,
                retired,
                profile,
            }) => {
                self.profile.add(&profile);
                self.left(index, left, retired);
            }
            Err(RecvTimeoutError::Timeout) if self.state == State::Stopping => self.ask_to_leave(),
            Err(RecvTimeoutError::Timeout) => self.end(Ok(RunOutcome::Timeout)),
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the driver's own thread holds a sender")
            }
        }
    }

    fn left(&mut self, index: u32, left: Left, retired: Option<u64>) {
        self.running -= 1;
        self.retired = self
            .retired
            .zip(retired)
            .map(|(all, one)| all.saturating_add(one));
        self.end(match left {
            Left::Stopped => Ok(RunOutcome::Stopped),
            Left::Shutdown => Ok(RunOutcome::TripleFault),
            Left::Failed(e) => Err(RunError::Engine {
                vcpu: index,
                source: Arc::new(e),
            }),
            Left::Panicked(text) => Err(RunError::Panic {
                thread: format!("vCPU {index}"),
                text,
            }),
        });
    }

    /// The run is to end with this. The first reason counts, but a failure beats an outcome.
    fn end(&mut self, ending: Result<RunOutcome, RunError>) {
        let first = self.ending.is_none();
        if first || (ending.is_err() && matches!(self.ending, Some(Ok(_)))) {
            self.ending = Some(ending);
        }
        self.enter(Event::End);
        if first {
            self.asked = Some(Instant::now());
            self.ask_to_leave();
        }
    }

    fn ask_to_leave(&mut self) {
        self.outputs.release();
        self.board.stop_vcpus();
        for kick in &self.kickers {
            kick();
        }
        let overdue = self.asked.is_some_and(|t| t.elapsed() >= LEAVE_LIMIT);
        if overdue && self.running > 0 {
            // Their threads are left behind: waiting for them would hang the caller too.
            self.ending = Some(Err(RunError::Hung {
                count: self.running,
            }));
            self.threads.clear();
            self.running = 0;
        }
    }

    fn finish(mut self) -> Result<RunReport, RunError> {
        let wall = self.started.elapsed();
        let guest_time = Duration::from_nanos(self.board.now().0);
        self.board.stop_timekeeper();
        for thread in self.threads.drain(..) {
            // Every thread catches its panics and reports them as a message.
            let _ = thread.join();
        }
        let lost = self.flush();
        let ending = self.ending.take();
        Ok(RunReport {
            outcome: ending.expect("a stopped run has a reason")?,
            statistics: Statistics {
                retired: self.retired,
                wall,
                guest_time,
            },
            profile: self.profile,
            console_error: self.outputs.console.take_error().map(|e| e.to_string()),
            lost,
        })
    }

    /// Gives the output time to be written: as long as somebody takes it, but not for ever, when the guest ended the
    /// run; shortly when somebody outside did or does now. Gives what was not.
    fn flush(&self) -> Lost {
        self.outputs.end();
        let hurried = matches!(
            self.ending,
            Some(Ok(RunOutcome::Stopped | RunOutcome::Timeout)) | Some(Err(_))
        );
        let begin = Instant::now();
        let soon = begin + FLUSH_LIMIT;
        let mut limit = match hurried {
            true => soon,
            false => begin + DRAIN_LIMIT,
        };
        if let Some(deadline) = self.deadline {
            limit = limit.min(deadline.max(soon));
        }
        let (mut written, mut moved) = (self.outputs.written(), begin);
        while !self.outputs.wait_written(ASK_AGAIN) {
            while let Ok(message) = self.messages.try_recv() {
                if matches!(message, Message::Stop) {
                    limit = Instant::now();
                }
            }
            let now = Instant::now();
            let so_far = self.outputs.written();
            if so_far != written {
                (written, moved) = (so_far, now);
            }
            if now >= limit || now >= moved + STALL_LIMIT {
                break;
            }
        }
        self.outputs.unwritten()
    }
}
