//! The seam between the program and the monitor: what a run asks for, what comes back, and who runs it. The
//! types know neither the command line nor the terminal.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use lifecycle::Lost;
use lifecycle::confine::{Confine, Confined, calls::CallSet};
use lifecycle::{Console, Profile, RunOptions, Statistics, Vm};
pub use machine::{BootProtocol, Frame, Image, Typed};
use machine::{
    DiskConfig, DisplayConfig, EngineKind, MachineConfig, MemoryContents, Module, Variables,
};
use vcpu::cpuid::CpuModel;
use vcpu::{Capabilities, NestedVirt};

use crate::artifacts::firmware::FirmwareFiles;
use crate::interrupt::Interrupt;
use crate::output;

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

/// Whether the soft engine translates what runs often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jit {
    /// It does not.
    Off,
    /// It does, if the host can run the code.
    On,
    /// It translates everything.
    Force,
}

impl From<Jit> for machine::Translation {
    fn from(jit: Jit) -> Self {
        match jit {
            Jit::Off => Self::Off,
            Jit::On => Self::On,
            Jit::Force => Self::Force,
        }
    }
}

/// Where the guest's time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockMode {
    /// It follows the host's time.
    Host,
    /// It advances with executed instructions and jumps over idle time.
    Virtual,
}

/// Whether the process gives up what a running VM does not need of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// As far as the host can; what it cannot is told.
    Auto,
    /// In full, or the VM is not started.
    Require,
    /// Not at all.
    Off,
}

impl Confinement {
    /// What the monitor is asked for, with a VM on `engine`.
    fn on(self, engine: Engine) -> Option<Confine> {
        let calls = match engine {
            Engine::Soft => CallSet::Soft,
            Engine::Kvm => CallSet::Kvm,
        };
        let confine = |required| Some(Confine { calls, required });
        match self {
            Self::Auto => confine(false),
            Self::Require => confine(true),
            Self::Off => None,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Soft => "soft",
            Self::Kvm => "kvm",
        })
    }
}

/// A raw image as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// By which protocol a kernel is booted, when `asked` for one.
///
/// # Errors
/// Why it cannot be booted, as half a sentence, and what to do.
pub fn identify(kernel: &[u8], asked: BootProtocol) -> Result<BootProtocol, (String, String)> {
    machine::boot::identify(kernel, asked).map_err(|e| split(&e.to_string()))
}

/// Whether firmware can start a kernel.
///
/// # Errors
/// As for [`identify`].
pub fn check_for_firmware(kernel: &[u8]) -> Result<(), (String, String)> {
    machine::boot::check_for_firmware(kernel).map_err(|e| split(&e.to_string()))
}

/// Firmware that a VM starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The files.
    pub files: FirmwareFiles,
    /// Where its variables are kept.
    pub variables: Option<PathBuf>,
}

/// A VM to be run until it ends. The files have been read and checked to be what they should.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// A kernel, which firmware starts if there is some.
    pub kernel: Option<Vec<u8>>,
    /// How it is booted without firmware.
    pub boot_protocol: BootProtocol,
    /// Firmware to start with.
    pub firmware: Option<Firmware>,
    /// Whether there is a display.
    pub display: bool,
    /// What is typed on the keyboard once the guest has enabled it.
    pub keys: Typed,
    /// Where the debug console goes, if there is one.
    pub debug_console: Option<DebugOutput>,
    /// The initial RAM disk.
    pub initrd: Option<Image>,
    /// More modules, each with what the kernel is told with it.
    pub modules: Vec<(Vec<u8>, String)>,
    /// The kernel's command line.
    pub append: String,
    /// Virtio disks.
    pub disks: Vec<Disk>,
    /// The image in the CD-ROM drive.
    pub cdrom: Option<PathBuf>,
    /// The guest's memory in bytes.
    pub memory_bytes: u64,
    /// The number of virtual processors, at least one.
    pub cpus: u8,
    /// The engine that was decided on.
    pub engine: Engine,
    /// Whether the soft engine translates.
    pub jit: Jit,
    /// The processor the guest sees.
    pub cpu: CpuModel,
    /// The virtualization the guest sees.
    pub nested: NestedChoice,
    /// Where its time comes from.
    pub clock: ClockMode,
    /// Whether a write to port 0xf4 ends the run.
    pub debug_exit: bool,
    /// Ends the run after so much of the host's time.
    pub timeout: Option<Duration>,
    /// Whether the process is confined while it runs.
    pub confinement: Confinement,
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

/// What is known after a run.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// How it ended.
    pub outcome: RunOutcome,
    /// Its figures.
    pub statistics: Statistics,
    /// What the vCPUs' work was made of.
    pub profile: Profile,
    /// What the display showed at the end, if there is one.
    pub picture: Option<Frame>,
    /// What its memory holds at the end.
    pub memory: Option<MemoryContents>,
    /// What of its output nobody took in time.
    pub lost: Lost,
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

/// Where the debug console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugOutput {
    /// A file, emptied when it is opened.
    File(PathBuf),
    /// This program's standard error.
    StandardError,
}

impl DebugOutput {
    /// Opens it to be written.
    fn open(&self) -> Result<Box<dyn Write + Send>, String> {
        match self {
            // Not by the library's own handle: whoever waits in that keeps others from saying anything.
            Self::StandardError => match io::stderr().as_fd().try_clone_to_owned() {
                Ok(error) => Ok(Box::new(File::from(error))),
                Err(error) => Err(format!(
                    "cannot write the debug console to standard error: {error}; name a file"
                )),
            },
            Self::File(path) => match File::create(path) {
                Ok(file) => Ok(Box::new(file)),
                Err(error) => {
                    let name = path.display();
                    Err(format!(
                        "cannot write the debug console's file {name}: {error}; check the path"
                    ))
                }
            },
        }
    }
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
    ) -> Result<RunReport, RunError>;
}

/// The monitor of this program.
#[derive(Debug, Clone, Copy, Default)]
pub struct Monitor;

impl Runner for Monitor {
    fn run(
        &self,
        request: RunRequest,
        console: Box<dyn ConsoleSink>,
        input: Box<dyn Read + Send>,
    ) -> Result<RunReport, RunError> {
        let engine =
            machine::engine::open(request.engine.into(), request.jit.into()).map_err(refused)?;
        let interrupt = request.interrupt.clone();
        let options = RunOptions {
            timeout: request.timeout,
            confine: request.confinement.on(request.engine),
        };
        let debug = request.debug_console.as_ref().map(DebugOutput::open);
        let debug = debug.transpose().map_err(refused)?;
        let config = machine_config(request, &engine.capabilities());
        let console = Console {
            output: Box::new(SinkWriter(console)),
            debug,
            input: Some(input),
        };
        let vm = Vm::start(&*engine, &config, console, options).map_err(refused)?;
        // The guest's memory has what it needs of the files in there.
        drop(config);
        interrupt.hear_signals().map_err(failed)?;
        if let Some(why) = vm.confined().and_then(Confined::shortfall) {
            let advice = "see `nestling doctor`, or give --confine off";
            output::say(&format!(
                "the process is not confined in full: {why}; {advice}"
            ));
        }
        let stopper = vm.stopper();
        interrupt.on_request(move || stopper.stop());
        let report = vm.wait().map_err(failed)?;
        tracing::info!(?report, "the run ended");
        Ok(RunReport {
            outcome: report.outcome.into(),
            statistics: report.statistics,
            profile: report.profile,
            picture: vm.screen().map(|screen| screen.picture()),
            memory: Some(vm.memory().clone()),
            lost: report.lost,
        })
    }
}

impl From<Disk> for DiskConfig {
    fn from(disk: Disk) -> Self {
        Self {
            path: disk.path,
            read_only: disk.read_only,
        }
    }
}

impl From<Engine> for EngineKind {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Soft => Self::Soft,
            Engine::Kvm => Self::Kvm,
        }
    }
}

impl From<lifecycle::RunOutcome> for RunOutcome {
    fn from(outcome: lifecycle::RunOutcome) -> Self {
        match outcome {
            lifecycle::RunOutcome::PowerOff => Self::PowerOff,
            lifecycle::RunOutcome::Reset => Self::Reset,
            lifecycle::RunOutcome::TripleFault => Self::TripleFault,
            lifecycle::RunOutcome::DebugExit(value) => Self::DebugExit(value),
            lifecycle::RunOutcome::Timeout => Self::Timeout,
            lifecycle::RunOutcome::Stopped => Self::Interrupted,
        }
    }
}

/// The machine a request describes, on an engine with these capabilities.
fn machine_config(request: RunRequest, can: &Capabilities) -> MachineConfig {
    let image = |bytes| Image::Bytes(Arc::new(bytes));
    let cpu = request.cpu;
    let shows = |extension| cpu.follows_host() || cpu.vendor().nested() == extension;
    let display_rom = request
        .firmware
        .as_ref()
        .and_then(|firmware| firmware.files.display.clone());
    MachineConfig {
        memory_bytes: request.memory_bytes,
        vcpus: u32::from(request.cpus),
        kernel: request.kernel.map(image),
        boot_protocol: request.boot_protocol,
        initrd: request.initrd,
        modules: request
            .modules
            .into_iter()
            .map(|(bytes, text)| Module {
                image: image(bytes),
                text,
            })
            .collect(),
        cmdline: request.append,
        cpu: request.cpu,
        nested: match request.nested {
            NestedChoice::Auto if can.nested_intel && shows(NestedVirt::Intel) => NestedVirt::Intel,
            NestedChoice::Auto if can.nested_amd && shows(NestedVirt::Amd) => NestedVirt::Amd,
            NestedChoice::Auto | NestedChoice::Off => NestedVirt::Off,
            NestedChoice::Intel => NestedVirt::Intel,
            NestedChoice::Amd => NestedVirt::Amd,
        },
        clock: match request.clock {
            ClockMode::Host => machine::ClockMode::Host,
            ClockMode::Virtual => machine::ClockMode::Virtual,
        },
        debug_exit: request.debug_exit,
        disks: request.disks.into_iter().map(DiskConfig::from).collect(),
        cdrom: request.cdrom,
        display: request.display.then(|| DisplayConfig {
            rom: Arc::new(display_rom.unwrap_or_default()),
        }),
        keys: request.keys,
        firmware: request.firmware.map(|firmware| machine::Firmware {
            code: image(firmware.files.code),
            variables: firmware.files.variables.map(|bytes| Variables {
                template: image(bytes),
                file: firmware.variables,
            }),
        }),
        ..MachineConfig::default()
    }
}

/// The monitor's messages are `<why>; <what to do>`.
fn refused(error: impl fmt::Display) -> RunError {
    let (why, advice) = split(&error.to_string());
    RunError::Refused { why, advice }
}

fn split(text: &str) -> (String, String) {
    let (why, advice) = text
        .rsplit_once("; ")
        .unwrap_or((text, "see `nestling doctor`"));
    (why.to_owned(), advice.to_owned())
}

fn failed(error: impl fmt::Display) -> RunError {
    RunError::Failed(error.to_string())
}

/// A console as a place to write to.
struct SinkWriter(Box<dyn ConsoleSink>);

impl Write for SinkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_monitor_is_split_into_why_and_advice() {
        let split = |text: &str| match refused(text) {
            RunError::Refused { why, advice } => (why, advice),
            RunError::Failed(text) => panic!("{text}"),
        };
        assert_eq!(split("no; yes; do it"), ("no; yes".into(), "do it".into()));
        assert_eq!(split("no").1, "see `nestling doctor`");
    }

    #[test]
    fn the_engine_decides_what_auto_nesting_is() {
        let request = RunRequest {
            kernel: Some(vec![1]),
            firmware: None,
            display: false,
            keys: Typed::default(),
            debug_console: None,
            initrd: None,
            boot_protocol: BootProtocol::Auto,
            modules: Vec::new(),
            append: String::new(),
            disks: Vec::new(),
            cdrom: None,
            memory_bytes: 1 << 30,
            cpus: 1,
            engine: Engine::Kvm,
            jit: Jit::Off,
            cpu: CpuModel::Max,
            nested: NestedChoice::Auto,
            clock: ClockMode::Host,
            debug_exit: false,
            timeout: None,
            confinement: Confinement::Auto,
            interrupt: Interrupt::new(),
        };
        let can = |nested_intel, nested_amd| Capabilities {
            name: "kvm",
            own_interrupt_controllers: true,
            nested_intel,
            nested_amd,
            max_vcpus: 1,
        };
        let nested = |can| machine_config(request.clone(), &can).nested;
        let named = RunRequest {
            cpu: CpuModel::NestlingAmd,
            ..request.clone()
        };
        assert_eq!(
            machine_config(named, &can(true, false)).nested,
            NestedVirt::Off
        );
        assert_eq!(nested(can(true, false)), NestedVirt::Intel);
        assert_eq!(nested(can(false, true)), NestedVirt::Amd);
        assert_eq!(nested(can(false, false)), NestedVirt::Off);
    }
}
