//! Starting a VM and holding on to it.

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use machine::{Machine, MachineConfig, MachineError, MemoryContents, Screen, Wiring};
use vcpu::Engine;

use crate::confine::{self, Confine, Confined};
use crate::console::{self, OutputEnd, Outputs};
use crate::driver::{Driver, Message, RunError, RunReport};
use crate::threads::panic_text;

/// What the first serial port and the debug console are connected to.
pub struct Console {
    /// Receives what the guest sends.
    pub output: Box<dyn Write + Send>,
    /// Receives what the guest writes to the debug console; without it there is no such port. What the host does not
    /// take is lost.
    pub debug: Option<Box<dyn Write + Send>>,
    /// Is read for what the guest receives, until its end.
    pub input: Option<Box<dyn Read + Send>>,
}

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Ends the run after so much real time.
    pub timeout: Option<Duration>,
    /// Confines this process before the guest runs. It cannot be undone.
    pub confine: Option<Confine>,
}

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A thread could not be started.
    #[error("cannot start a thread for {what}: {source}; check the limits on processes and memory")]
    Thread {
        /// What it was for.
        what: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
    /// The host cannot confine this process, and it was asked to be.
    #[error("this host cannot confine the process: {0}; see `nestling doctor`")]
    Unconfined(String),
}

type RunResult = Result<RunReport, RunError>;

#[derive(Default)]
struct Shared {
    result: Mutex<Option<RunResult>>,
    finished: Condvar,
}

impl Shared {
    fn publish(&self, result: RunResult) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.finished.notify_all();
    }
}

/// Virtual machines.
pub struct Vm;

/// A VM that was started. Dropping it stops the VM.
pub struct VmHandle {
    shared: Arc<Shared>,
    stopper: Stopper,
    engine: &'static str,
    confined: Option<Confined>,
    screen: Option<Screen>,
    memory: MemoryContents,
}

/// Stops a VM from anywhere.
#[derive(Clone)]
pub struct Stopper(Sender<Message>);

impl Stopper {
    /// Asks the VM to stop. No effect on one that has ended.
    pub fn stop(&self) {
        let _ = self.0.send(Message::Stop);
    }
}

impl Vm {
    /// Builds the machine on `engine` and starts it. If it is asked to, it confines the process in between: once
    /// all files are open and before the guest's first instruction.
    ///
    /// # Errors
    /// [`StartError`] when it cannot be built, confined or started.
    pub fn start(
        engine: &dyn Engine,
        config: &MachineConfig,
        console: Console,
        options: RunOptions,
    ) -> Result<VmHandle, StartError> {
        let (to_driver, messages) = channel();
        let outputs = Outputs {
            console: Arc::default(),
            debug: console.debug.as_ref().map(|_| Arc::default()),
        };
        let guest = to_driver.clone();
        let machine = Machine::build(
            engine,
            config,
            Wiring {
                console: Box::new(OutputEnd(Arc::clone(&outputs.console))),
                debug_console: (outputs.debug.as_ref())
                    .map(|output| Box::new(OutputEnd(Arc::clone(output))) as _),
                requests: Box::new(move |request| {
                    let _ = guest.send(Message::Guest(request));
                }),
            },
        )?;
        let over = Arc::new(AtomicBool::new(false));
        let without_files = options.confine.map(|_| confine::files::shut().err());
        start_console(&machine, console, &outputs, &over).inspect_err(|_| outputs.end())?;
        let confined = match (options.confine, without_files) {
            (Some(confine), Some(without_files)) => {
                let confined = confine_calls(confine, without_files);
                Some(confined.inspect_err(|_| outputs.end())?)
            }
            (None, _) | (_, None) => None,
        };

        let shared = Arc::new(Shared::default());
        let screen = machine.screen.clone();
        let memory = machine.memory.clone();
        let driver = Driver::new(
            Arc::clone(&machine.board),
            outputs.clone(),
            messages,
            options.timeout,
        );
        let (ours, result) = (to_driver.clone(), Arc::clone(&shared));
        let drive = move || {
            let run = AssertUnwindSafe(|| driver.run(machine, &ours));
            let report = catch_unwind(run).unwrap_or_else(|panic| {
                Err(RunError::Panic {
                    thread: "the driver".to_owned(),
                    text: panic_text(&*panic),
                })
            });
            over.store(true, Ordering::SeqCst);
            outputs.release();
            outputs.end();
            result.publish(report);
        };
        spawn("driver", drive)?;
        Ok(VmHandle {
            shared,
            stopper: Stopper(to_driver),
            engine: engine.capabilities().name,
            confined,
            screen,
            memory,
        })
    }
}

/// The second half of the confinement; the first one said what it lacks.
fn confine_calls(confine: Confine, without_files: Option<String>) -> Result<Confined, StartError> {
    let confined = Confined {
        without_files,
        without_calls: confine::calls::limit(confine.calls).err(),
    };
    match confined.shortfall() {
        Some(why) if confine.required => Err(StartError::Unconfined(why)),
        Some(_) | None => Ok(confined),
    }
}

fn spawn(what: &'static str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    thread::Builder::new()
        .name(what.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|source| StartError::Thread { what, source })
}

fn start_console(
    machine: &Machine,
    console: Console,
    outputs: &Outputs,
    over: &Arc<AtomicBool>,
) -> Result<(), StartError> {
    let writer = Arc::clone(&outputs.console);
    spawn("console-out", move || writer.write_to(console.output))?;
    if let (Some(to), Some(output)) = (console.debug, &outputs.debug) {
        let writer = Arc::clone(output);
        spawn("debug-out", move || {
            writer.write_to(to);
            if let Some(error) = writer.take_error() {
                tracing::warn!(%error, "the debug console cannot be written");
            }
        })?;
    }
    if let Some(input) = console.input {
        let port = machine.console_input.clone();
        let board = Arc::downgrade(&machine.board);
        let over = Arc::clone(over);
        let read = move || console::read_from(input, &port, &board, &over);
        spawn("console-in", read)?;
    }
    Ok(())
}

impl VmHandle {
    /// Waits for the end of the run. Every call returns the same.
    ///
    /// # Errors
    /// [`RunError`] when the run went wrong on the host's side.
    pub fn wait(&self) -> Result<RunReport, RunError> {
        let result = self
            .shared
            .result
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let result = self
            .shared
            .finished
            .wait_while(result, |r| r.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        (*result).clone().expect("waited until it is there")
    }

    /// Asks the VM to stop; [`VmHandle::wait`] then returns soon.
    pub fn stop(&self) {
        self.stopper.stop();
    }

    /// A handle with which another thread can stop the VM.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// The name of the engine it runs on.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// What the display shows, also after the end; `None` without a display.
    #[must_use]
    pub fn screen(&self) -> Option<&Screen> {
        self.screen.as_ref()
    }

    /// What is in the guest's memory. It stands still once [`VmHandle::wait`] has returned a report.
    #[must_use]
    pub fn memory(&self) -> &MemoryContents {
        &self.memory
    }

    /// How the process is confined; `None` if it was not asked to be.
    #[must_use]
    pub fn confined(&self) -> Option<&Confined> {
        self.confined.as_ref()
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
