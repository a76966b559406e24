//! `nestling demo`: levels of Linux, one inside the other, timed.

pub mod images;
pub mod levels;
pub mod lines;
pub mod report;
pub mod result;
pub mod view;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::args::{BenchArgs, DemoArgs, Format, InnerArgs, Vendor};
use crate::doctor::facts;
use crate::engine::{self, Decision, Needs};
use crate::failure::Failure;
use crate::initramfs::script;
use crate::interrupt::Interrupt;
use crate::output;
use crate::run::{self, EXIT_TIMEOUT};
use crate::vm::{
    BootProtocol, ClockMode, ConsoleSink, Engine, Image, NestedChoice, RunOutcome, RunReport,
    RunRequest, Runner, Typed,
};
use images::Wanted;
use levels::Levels;
use lines::{LineSplitter, Tail};
use result::DemoResult;
use view::View;

/// What the console's threads and the command share while the demo runs.
struct Stage {
    splitter: LineSplitter,
    tail: Tail,
    levels: Levels,
    view: Box<dyn View>,
    started: Instant,
}

impl Stage {
    fn new(depth: u8, view: Box<dyn View>) -> Self {
        Self {
            splitter: LineSplitter::default(),
            tail: Tail::default(),
            levels: Levels::new(depth),
            view,
            started: Instant::now(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let Self {
            splitter,
            tail,
            levels,
            view,
            started,
        } = self;
        let at = started.elapsed();
        splitter.feed(bytes, |line| {
            view.console(&line);
            if let Some(report) = report::parse(&line)
                && levels.apply(&report, at)
            {
                view.report(levels, &report, at);
            }
            tail.push(line);
        });
    }

    /// Everything that was still under way when the machine ended.
    fn finish(&mut self) {
        self.feed(b"\n");
        self.view.finish();
    }
}

struct StageSink(Arc<Mutex<Stage>>);

impl ConsoleSink for StageSink {
    fn output(&mut self, bytes: &[u8]) {
        lock(&self.0).feed(bytes);
    }
}

fn lock(stage: &Mutex<Stage>) -> std::sync::MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the demo and gives the exit status.
///
/// # Errors
/// Whatever keeps it from being started, or a failure of the monitor.
pub fn run(args: &DemoArgs, runner: &dyn Runner) -> Result<u8, Failure> {
    if args.virt == Vendor::Amd {
        return Err(run::amd_comes_later());
    }
    let interrupt = Interrupt::new();
    interrupt.watch_signals()?;
    let needs = Needs {
        nested: NestedChoice::Intel,
        clock: ClockMode::Host,
    };
    let decision = engine::decide(args.engine.into(), needs, facts::kvm_device, facts::kvm)?;
    let append = script::command_line(&args.append);
    let wanted = Wanted {
        depth: args.depth,
        virt: args.virt,
        inner: &InnerArgs::default(),
        memory_bytes: args.memory,
        cpus: args.cpus,
        append: &append,
        files: &args.files,
        bench: &BenchArgs::default(),
    };
    let prepared = images::prepare(&wanted, &interrupt);
    let (artifacts, images) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) if interrupt.is_requested() => {
            output::say(&failure.to_string());
            return Ok(run::interrupted_status(interrupt.reason()));
        }
        Err(failure) => return Err(failure),
    };
    let view = view::on_standard_error(args.depth, args.verbose);
    let request = RunRequest {
        kernel: Some(artifacts.kernel),
        firmware: None,
        display: false,
        keys: Typed::default(),
        debug_console: None,
        initrd: Some(Image::Bytes(Arc::new(images.outermost))),
        boot_protocol: BootProtocol::Auto,
        modules: Vec::new(),
        append,
        disks: Vec::new(),
        cdrom: None,
        memory_bytes: images.memory_bytes[0],
        cpus: args.cpus,
        engine: decision.engine,
        jit: args.jit.into(),
        cpu: vcpu::cpuid::CpuModel::Max,
        nested: NestedChoice::Intel,
        clock: clock(decision.engine),
        debug_exit: false,
        timeout: Some(args.timeout),
        confinement: args.confine.into(),
        interrupt,
    };
    perform(request, args.depth, decision, args.format, view, runner)
}

/// The soft engine's own clock lets no busy host disturb the guests' timers and jumps over idle time.
fn clock(engine: Engine) -> ClockMode {
    match engine {
        Engine::Soft => ClockMode::Virtual,
        Engine::Kvm => ClockMode::Host,
    }
}

fn perform(
    request: RunRequest,
    depth: u8,
    decision: Decision,
    format: Format,
    view: Box<dyn View>,
    runner: &dyn Runner,
) -> Result<u8, Failure> {
    let interrupt = request.interrupt.clone();
    let timeout = request.timeout;
    let stage = Arc::new(Mutex::new(Stage::new(depth, view)));
    let sink = Box::new(StageSink(Arc::clone(&stage)));
    let result = runner.run(request, sink, Box::new(io::empty()));
    let mut stage = lock(&stage);
    stage.finish();
    let total = stage.started.elapsed();
    let (why, outcome) = match result {
        Ok(RunReport { outcome, .. }) => (stage.levels.why_not(outcome), Some(outcome)),
        Err(error) => {
            let failure = run::run_failure(error);
            print_tail(&stage.tail.lines());
            if format == Format::Json {
                let why = Some(failure.to_string());
                print_json(&stage, decision, total, why)?;
            }
            return Err(failure);
        }
    };
    match format {
        Format::Json => print_json(&stage, decision, total, why.clone())?,
        Format::Text => output::print(&result::tree(&stage.levels, &decision, total))?,
    }
    let Some(why) = why else {
        return Ok(0);
    };
    print_tail(&stage.tail.lines());
    output::say(&failed(why, outcome, timeout).to_string());
    Ok(match outcome {
        Some(RunOutcome::Timeout) => EXIT_TIMEOUT,
        Some(RunOutcome::Interrupted) => run::interrupted_status(interrupt.reason()),
        _ => 1,
    })
}

fn failed(why: String, outcome: Option<RunOutcome>, timeout: Option<Duration>) -> Failure {
    match (outcome, timeout) {
        (Some(RunOutcome::Timeout), Some(timeout)) => Failure::new(
            format_args!("the demo did not end in {} s", timeout.as_secs()),
            why,
            "give it more with --timeout, or look at the console with --verbose",
        ),
        _ => Failure::new(
            "the demo failed",
            why,
            "look at the guests' console with --verbose, and at `nestling doctor`",
        ),
    }
}

fn print_json(
    stage: &Stage,
    decision: Decision,
    total: Duration,
    why: Option<String>,
) -> Result<(), Failure> {
    let result = DemoResult::new(&stage.levels, decision, total, why, stage.tail.lines());
    output::print_json(&result)
}

fn print_tail(lines: &[String]) {
    if !lines.is_empty() {
        output::say("the last lines of the guests' console:");
        for line in lines {
            output::say(&format!("| {line}"));
        }
    }
}

#[cfg(test)]
mod tests;
