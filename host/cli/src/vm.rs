//! The seam between the program and the monitor: what a run asks for, what comes back, and who runs it. The
//! types know neither the command line nor the terminal.

#![allow(
    dead_code,
    reason = "the monitor that reads the request and gives the outcomes is wired in elsewhere"
)]

use std::fmt;
use std::io::Read;
use std::time::Duration;

use crate::interrupt::Interrupt;

/// Which way guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The CPU in software.
    Soft,
    /// The host's KVM.
    Kvm,
}

/// The engine a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// KVM where it can run the VM at hardware speed, software elsewhere.
    Auto,
    /// The CPU in software.
    Soft,
    /// The host's KVM.
    Kvm,
}

/// The virtualization a user asks to be shown to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NestedChoice {
    /// What the engine offers.
    Auto,
    /// Intel VT-x.
    Intel,
    /// AMD-V.
    Amd,
    /// None.
    Off,
}

/// Where the guest's time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockMode {
    /// It follows the host's time.
    Host,
    /// It advances with executed instructions and jumps over idle time.
    Virtual,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Soft => "soft",
            Self::Kvm => "kvm",
        })
    }
}

/// A VM to be run until it ends. The files have been read and checked to be what they should.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// A bzImage.
    pub kernel: Vec<u8>,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// The kernel's command line.
    pub append: String,
    /// The guest's memory in bytes.
    pub memory_bytes: u64,
    /// The number of virtual processors, at least one.
    pub cpus: u8,
    /// The engine that was decided on.
    pub engine: Engine,
    /// The virtualization the guest sees.
    pub nested: NestedChoice,
    /// Where its time comes from.
    pub clock: ClockMode,
    /// Whether a write to port 0xf4 ends the run.
    pub debug_exit: bool,
    /// Ends the run after so much of the host's time.
    pub timeout: Option<Duration>,
    /// Ends the run when somebody asks for it.
    pub interrupt: Interrupt,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// A processor shut down after a triple fault (Intel SDM volume 3, "Interrupt 8").
    TripleFault,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u8),
    /// The time was over.
    Timeout,
    /// Somebody asked to stop.
    Interrupted,
}

/// Why a run could not be started or went wrong on the host's side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The VM cannot be made as asked for.
    #[error("{why}")]
    Refused {
        /// Why, as half a sentence.
        why: String,
        /// What the user can do.
        advice: String,
    },
    /// The engine or a device failed on the host's side.
    #[error("{0}")]
    Failed(String),
}

/// Receives what the guest sends on its first serial port.
pub trait ConsoleSink: Send {
    /// Takes bytes in the order they were sent. It is called from the monitor's threads and must not wait for
    /// the guest.
    fn output(&mut self, bytes: &[u8]);
}

/// Runs VMs.
pub trait Runner {
    /// Runs the VM until it ends. `console` receives what the guest's first serial port sends; `input` is read
    /// for what it receives, blocking, until its end.
    ///
    /// # Errors
    /// A VM that cannot be made, or a failure of the host's side while it runs.
    fn run(
        &self,
        request: RunRequest,
        console: Box<dyn ConsoleSink>,
        input: Box<dyn Read + Send>,
    ) -> Result<RunOutcome, RunError>;
}

/// The monitor of this program.
#[derive(Debug, Clone, Copy, Default)]
pub struct Monitor;

impl Runner for Monitor {
    fn run(
        &self,
        request: RunRequest,
        _console: Box<dyn ConsoleSink>,
        _input: Box<dyn Read + Send>,
    ) -> Result<RunOutcome, RunError> {
        Err(RunError::Refused {
            why: format!("this build has no {} engine", request.engine),
            advice: "build a version that has one".into(),
        })
    }
}
