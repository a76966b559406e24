//! `nestling run`: one virtual machine on this terminal.

pub mod console;
pub mod screenshot;
pub mod stats;
pub mod terminal;

use std::io::{self, Read};
use std::path::Path;

use vcpu::cpuid::{CpuModel, Vendor};

use crate::args::{RunArgs, VgaArg};
use crate::artifacts;
use crate::artifacts::firmware::FirmwareChoice;
use crate::artifacts::progress::Progress;
use crate::doctor::facts;
use crate::engine::{self, Needs};
use crate::failure::{Failure, cause};
use crate::input_file;
use crate::interrupt::{Interrupt, StopReason};
use crate::output;
use crate::vm::{
    BootProtocol, DebugOutput, Engine, Firmware, Image, NestedChoice, RunError, RunOutcome,
    RunReport, RunRequest, Runner,
};
use console::{Keys, Output};
use screenshot::Screenshot;
use terminal::RawMode;

/// The guest reset itself.
pub const EXIT_RESET: u8 = 10;
/// A triple fault.
pub const EXIT_TRIPLE_FAULT: u8 = 12;
/// The user left, or nobody reads the console.
pub const EXIT_LEFT: u8 = 14;
/// The time was over, as timeout(1) says it.
pub const EXIT_TIMEOUT: u8 = 124;
/// What a kernel needs besides itself and its initial RAM disk.
const KERNEL_HEADROOM_BYTES: u64 = 64 << 20;
/// More is not unpacked.
const LARGEST_KERNEL_BYTES: usize = 1 << 30;

/// The exit status for the end of a run. With a debug exit of 128 and more the shift loses the top bit, as a
/// status has eight.
pub fn exit_status(outcome: RunOutcome, reason: Option<StopReason>) -> u8 {
    match outcome {
        RunOutcome::PowerOff => 0,
        RunOutcome::Reset => EXIT_RESET,
        RunOutcome::TripleFault => EXIT_TRIPLE_FAULT,
        RunOutcome::DebugExit(value) => (value << 1) | 1,
        RunOutcome::Timeout => EXIT_TIMEOUT,
        RunOutcome::Interrupted => interrupted_status(reason),
    }
}

/// The exit status for a stop on request.
pub fn interrupted_status(reason: Option<StopReason>) -> u8 {
    match reason {
        Some(StopReason::Signal(signal)) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        Some(StopReason::EscapeKey | StopReason::ConsoleClosed) | None => EXIT_LEFT,
    }
}

/// What an outcome that is not a power-off means, for standard error.
fn explanation(outcome: RunOutcome) -> Option<&'static str> {
    match outcome {
        RunOutcome::PowerOff | RunOutcome::DebugExit(_) => None,
        RunOutcome::Reset => Some("the guest reset itself"),
        RunOutcome::TripleFault => Some("the guest's processor shut down: triple fault"),
        RunOutcome::Timeout => Some(
            "the guest did not end in the time given by --timeout; give it more, or look at its console",
        ),
        RunOutcome::Interrupted => Some("stopped"),
    }
}

/// What is said of output that nobody took in time.
fn loss(what: &str, bytes: u64) -> Option<String> {
    (bytes > 0).then(|| {
        format!(
            "the last {bytes} bytes of the guest's {what} are lost: nobody took them in time; have them read, or send them to a file"
        )
    })
}

/// Tells the user of a run that could not be started or failed.
pub fn run_failure(error: RunError) -> Failure {
    match error {
        RunError::Refused { why, advice } => {
            Failure::new("cannot run the virtual machine", why, advice)
        }
        RunError::Failed(why) => Failure::new(
            "the virtual machine failed",
            why,
            "this is a fault of the host or of nestling; see `nestling doctor`",
        ),
    }
}

/// The virtualization a guest sees if the user leaves it to the engine.
pub fn resolve_nested(nested: NestedChoice, engine: Engine, cpu: CpuModel) -> NestedChoice {
    match (nested, engine) {
        (NestedChoice::Auto, Engine::Soft) => match cpu.vendor() {
            Vendor::Intel => NestedChoice::Intel,
            Vendor::Amd => NestedChoice::Off,
        },
        (nested, _) => nested,
    }
}

/// Refuses AMD-V where it is not built yet.
///
/// # Errors
/// AMD-V on the soft engine.
pub fn check_nested(nested: NestedChoice, engine: Engine) -> Result<(), Failure> {
    if nested == NestedChoice::Amd && engine == Engine::Soft {
        return Err(amd_comes_later());
    }
    Ok(())
}

/// What AMD-V is answered with as long as the soft engine has none.
pub fn amd_comes_later() -> Failure {
    Failure::new(
        "cannot show AMD-V to the guest",
        "AMD-V comes later, the soft engine has VT-x",
        "take intel",
    )
}

/// Runs the machine and gives the exit status.
///
/// # Errors
/// A machine that cannot be started, or a failure while it runs.
pub fn run(args: &RunArgs, runner: &dyn Runner) -> Result<u8, Failure> {
    let request = request(args)?;
    let screenshot = args.screenshot.as_deref();
    let screenshot = screenshot.map(Screenshot::create).transpose()?;
    let engine = request.engine;
    let interrupt = request.interrupt.clone();
    interrupt.catch_signals()?;
    let output = Box::new(Output::new(io::stdout(), interrupt.clone()));
    let (raw_mode, input): (_, Box<dyn Read + Send>) = if terminal::input_is_terminal() {
        let raw_mode = RawMode::enter().map_err(|e| {
            Failure::new(
                "cannot use the terminal",
                cause(&e),
                "connect standard input to something else, as </dev/null",
            )
        })?;
        let keys = Keys::new(io::stdin(), interrupt.clone());
        (Some(raw_mode), Box::new(keys))
    } else {
        (None, Box::new(io::stdin()))
    };
    let result = runner.run(request, output, input);
    drop(raw_mode);
    let RunReport {
        outcome,
        statistics,
        profile,
        picture,
        memory,
        lost,
    } = result.map_err(run_failure)?;
    for (what, bytes) in [("console", lost.console), ("debug console", lost.debug)] {
        if let Some(text) = loss(what, bytes) {
            output::say(&text);
        }
    }
    if let (Some(screenshot), Some(picture)) = (screenshot, picture) {
        screenshot.write(&picture)?;
    }
    if args.stats {
        let memory = memory.map(|memory| memory.hash());
        output::say(&stats::line(engine, &statistics, memory.as_deref()));
        for line in stats::profile(&profile) {
            output::say(&line);
        }
    }
    if let Some(text) = explanation(outcome) {
        output::say(text);
    }
    Ok(exit_status(outcome, interrupt.reason()))
}

fn request(args: &RunArgs) -> Result<RunRequest, Failure> {
    let interrupt = Interrupt::new();
    let KernelFiles {
        kernel,
        boot_protocol,
        initrd,
        modules,
    } = kernel_files(args)?;
    let firmware = firmware(args, &interrupt)?;
    let needs = Needs {
        nested: args.nested.into(),
        clock: args.clock.into(),
    };
    let decision = engine::decide(args.engine.into(), needs, facts::kvm_device, facts::kvm)?;
    check_nested(needs.nested, decision.engine)?;
    output::say(&format!("engine {}: {}", decision.engine, decision.why));
    Ok(RunRequest {
        kernel,
        boot_protocol,
        firmware,
        display: has_display(args)?,
        keys: args.keys.clone().unwrap_or_default(),
        debug_console: args.debugcon.as_ref().map(|path| match path.as_os_str() {
            path if path == "-" => DebugOutput::StandardError,
            _ => DebugOutput::File(path.clone()),
        }),
        initrd,
        modules,
        append: args.append.clone(),
        disks: args.disks.clone(),
        cdrom: args.cdrom.clone(),
        memory_bytes: args.memory,
        cpus: args.cpus,
        engine: decision.engine,
        jit: args.jit.into(),
        cpu: args.cpu,
        nested: resolve_nested(needs.nested, decision.engine, args.cpu),
        clock: needs.clock,
        debug_exit: args.debug_exit,
        timeout: args.timeout,
        confinement: args.confine.into(),
        interrupt,
    })
}

/// Whether there is a display: with firmware, which needs one to be used, and where a picture is asked for.
fn has_display(args: &RunArgs) -> Result<bool, Failure> {
    match args.vga {
        Some(VgaArg::None) if args.screenshot.is_some() => Err(Failure::new(
            "cannot make a picture of the screen",
            "--vga none leaves the display out",
            "give --vga std, or leave --screenshot out",
        )),
        Some(choice) => Ok(choice == VgaArg::Std),
        None => {
            let firmware = args.firmware.is_some() || args.kernel.is_none();
            Ok(firmware || args.screenshot.is_some())
        }
    }
}

/// A kernel and what comes with it.
struct KernelFiles {
    kernel: Option<Vec<u8>>,
    boot_protocol: BootProtocol,
    initrd: Option<Image>,
    modules: Vec<(Vec<u8>, String)>,
}

/// Reads the kernel and what comes with it; nothing without a kernel.
fn kernel_files(args: &RunArgs) -> Result<KernelFiles, Failure> {
    let read = |path: &Path| input_file::read_for_guest(path, args.memory);
    let Some(path) = &args.kernel else {
        return Ok(KernelFiles {
            kernel: None,
            boot_protocol: BootProtocol::Auto,
            initrd: None,
            modules: Vec::new(),
        });
    };
    let kernel = kernel(path, args.memory)?;
    let boot_protocol = match args.firmware {
        Some(_) => for_firmware(&kernel, path)?,
        None => protocol(&kernel, path, args.boot_protocol.into())?,
    };
    let initrd = args
        .initrd
        .as_deref()
        .map(|path| input_file::image_for_guest(path, args.memory))
        .transpose()?;
    let (initrd, initrd_bytes) = initrd.unzip();
    let modules = args
        .module
        .iter()
        .map(|m| Ok((read(&m.path)?, m.text.clone())))
        .collect::<Result<Vec<_>, Failure>>()?;
    if args.firmware.is_some() || boot_protocol == BootProtocol::Linux64 {
        check_memory(
            args.memory,
            kernel.len() as u64,
            initrd_bytes.unwrap_or_default(),
        )?;
    }
    Ok(KernelFiles {
        kernel: Some(kernel),
        boot_protocol,
        initrd,
        modules,
    })
}

/// Reads a kernel, and unpacks it if it is packed.
fn kernel(path: &Path, memory_bytes: u64) -> Result<Vec<u8>, Failure> {
    let file = input_file::read_for_guest(path, memory_bytes)?;
    artifacts::unpacked(file, LARGEST_KERNEL_BYTES).map_err(|e| Failure::reading(path, &e))
}

/// How the kernel is booted, when `asked` for a way.
fn protocol(kernel: &[u8], path: &Path, asked: BootProtocol) -> Result<BootProtocol, Failure> {
    crate::vm::identify(kernel, asked).map_err(|why| cannot_boot(path, why))
}

/// The same with firmware, which has its own way.
fn for_firmware(kernel: &[u8], path: &Path) -> Result<BootProtocol, Failure> {
    crate::vm::check_for_firmware(kernel).map_err(|why| cannot_boot(path, why))?;
    Ok(BootProtocol::Auto)
}

fn cannot_boot(path: &Path, (why, advice): (String, String)) -> Failure {
    Failure::new(format_args!("cannot boot {}", path.display()), why, advice)
}

/// Gets the firmware, if one is asked for or there is no kernel.
fn firmware(args: &RunArgs, interrupt: &Interrupt) -> Result<Option<Firmware>, Failure> {
    let choice = match &args.firmware {
        Some(choice) => choice,
        None if args.kernel.is_none() => &FirmwareChoice::Bios,
        None => return Ok(None),
    };
    let files = artifacts::firmware::obtain(choice, interrupt, &Progress::on_standard_error())?;
    if args.firmware_vars.is_some() && files.variables.is_none() {
        return Err(Failure::new(
            "cannot keep the firmware's variables",
            "this firmware has none in a flash",
            "take --firmware uefi, or leave --firmware-vars out",
        ));
    }
    Ok(Some(Firmware {
        files,
        variables: args.firmware_vars.clone(),
    }))
}

fn check_memory(memory_bytes: u64, kernel: u64, initrd: u64) -> Result<(), Failure> {
    let needed = KERNEL_HEADROOM_BYTES
        .saturating_add(kernel)
        .saturating_add(initrd.saturating_mul(2));
    if memory_bytes >= needed {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Failure::new(
        "too little memory for the guest",
        format_args!(
            "--memory gives {}M, the kernel, the unpacked initial RAM disk and headroom need {}M",
            memory_bytes >> 20,
            mib(needed)
        ),
        format_args!("give --memory {}M or more", mib(needed)),
    ))
}

#[cfg(test)]
mod tests;
