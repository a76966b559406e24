//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vcpu::cpuid::CpuModel;

use crate::artifacts::firmware::FirmwareChoice;
use crate::artifacts::{KERNEL_PACKAGE, OwnFiles};
use crate::initramfs::DEEPEST;
use crate::vm::{
    BootProtocol, ClockMode, Confinement, Disk, EngineChoice, Jit, NestedChoice, Typed,
};

/// A virtual machine monitor whose guests can be hypervisors.
#[derive(Debug, Parser)]
#[command(name = "nestling", version, propagate_version = true)]
#[command(
    after_help = "Start with `nestling demo`, or with `nestling doctor` to see what this host offers."
)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot Linux inside Linux inside Linux, and show the levels coming up
    #[command(long_about = DEMO_HELP, after_help = DEMO_STATUS)]
    Demo(DemoArgs),
    /// Run one virtual machine, its first serial port on this terminal
    #[command(long_about = RUN_HELP, after_help = RUN_STATUS)]
    Run(RunArgs),
    /// Say what this host offers, which engine is used, and why
    #[command(long_about = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Show the CPU models a guest can be given
    Cpu(CpuArgs),
    /// Print what this machine is, as a level of a demo does
    #[command(hide = true)]
    GuestReport(GuestReportArgs),
    /// Write the files a demo starts its first level with
    #[command(hide = true)]
    Images(ImagesArgs),
    /// Fetch Debian packages and unpack them into a folder, as tests need them
    #[command(hide = true)]
    Unpack(UnpackArgs),
}

const DEMO_HELP: &str = "\
Boot Linux inside Linux inside Linux, and show the levels coming up.

Debian's stock kernel boots as level 1, loads KVM and runs level 2 with the same kernel, and so on. The files
come from Debian's packages linux-image-cloud-amd64 and busybox-static, fetched once through this host's apt,
without root, into a cache: $NESTLING_CACHE, else $XDG_CACHE_HOME/nestling, else ~/.cache/nestling.";

const DEMO_STATUS: &str = "\
Exit status:
  0     every level came up and switched itself off
  1     one did not, or the demo could not be started
  2     the command line is wrong
  124   the time was over
  128+N signal N ended it";

/// Options of `nestling demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many levels of guests, one inside the other
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(DEEPEST)))]
    pub depth: u8,
    /// The virtualization the guests see
    #[arg(long, value_enum, default_value_t = Vendor::Intel)]
    pub virt: Vendor,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Memory of level 1, as 1536M or 2G; each inner level gets what the outer one can spare [default: 1G, or more if the depth needs it]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Virtual processors of each level
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cpus: u8,
    /// Give up after so many seconds
    #[arg(long, value_name = "S", default_value = "600", value_parser = seconds)]
    pub timeout: Duration,
    /// What runs level 1; the inner levels are always run by KVM in their outer level
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub engine: EngineArg,
    /// Whether the soft engine translates what runs often to code of the host
    #[arg(long, value_enum, default_value_t = JitArg::On)]
    pub jit: JitArg,
    /// How far this process gives up what a running machine does not need of the host
    #[arg(long, value_enum, default_value_t = ConfineArg::Auto, hide = true)]
    pub confine: ConfineArg,
    /// More words for the kernels' command lines, at all levels
    #[arg(long, value_name = "STRING", default_value = "", hide = true)]
    pub append: String,
    /// Also show what the guests write on their consoles
    #[arg(short, long)]
    pub verbose: bool,
    /// Files of your own.
    #[command(flatten)]
    pub files: FileArgs,
}

/// Files that replace the fetched ones.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files of your own, instead of Debian's")]
pub struct FileArgs {
    /// A Linux bzImage for all levels; needs --modules
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The modules of that kernel, usually /lib/modules/<release>
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// A static busybox
    #[arg(long, value_name = "FILE")]
    pub busybox: Option<PathBuf>,
}

impl FileArgs {
    /// The same without the command line.
    pub fn own(&self) -> OwnFiles {
        OwnFiles {
            kernel: self.kernel.clone(),
            modules: self.modules.clone(),
            busybox: self.busybox.clone(),
        }
    }
}

const RUN_HELP: &str = "\
Run one virtual machine until it ends.

Its first serial port is this terminal; Ctrl-] leaves. If standard input is
no terminal, the guest receives what is read from it.";

const RUN_STATUS: &str = "\
Exit status:
  0     the guest switched itself off
  1     the machine could not be started or failed
  2     the command line is wrong
  10    the guest reset itself
  12    the guest's processor shut down after a triple fault
  14    you left with Ctrl-], or nobody reads the console
  124   the time of --timeout was over
  128+N signal N ended it
  With --debug-exit, a write of V to port 0xf4 ends it with (V << 1) | 1, always an odd number.";

/// Options of `nestling run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The kernel to boot: a Linux bzImage, a multiboot image, or an ELF file with a PVH entry; also packed by gzip
    #[arg(long, value_name = "FILE", required_unless_present_any = ["firmware", "disk", "cdrom"])]
    pub kernel: Option<PathBuf>,
    /// Start with firmware: Debian's SeaBIOS (bios), Debian's OVMF (uefi), or a ROM image of your own; it boots the bzImage of --kernel, or from disk and disc [default: bios, without --kernel]
    #[arg(long, value_name = "bios|uefi|FILE", value_parser = firmware, conflicts_with_all = ["module", "boot_protocol"])]
    pub firmware: Option<FirmwareChoice>,
    /// Keep the variables of UEFI firmware in this file; it is made if it does not exist
    #[arg(long, value_name = "FILE", requires = "firmware")]
    pub firmware_vars: Option<PathBuf>,
    /// The display [default: std with firmware or --screenshot, else none]
    #[arg(long, value_enum)]
    pub vga: Option<VgaArg>,
    /// Write a picture of the screen, as PNG, when the run ends
    #[arg(long, value_name = "FILE")]
    pub screenshot: Option<PathBuf>,
    /// Type this on the keyboard once the guest has enabled it; keys without a character as <ret>, <esc>, <f2>, <ctrl-alt-del>
    #[arg(long, value_name = "TEXT")]
    pub keys: Option<Typed>,
    /// Write what comes to the debug console, port 0x402, to a file, or to standard error for -
    #[arg(long, value_name = "FILE|-")]
    pub debugcon: Option<PathBuf>,
    /// How the kernel is booted without firmware
    #[arg(long, value_enum, default_value_t = BootArg::Auto)]
    pub boot_protocol: BootArg,
    /// The initial RAM disk; a multiboot or PVH kernel gets it as its first module
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// A module for a multiboot or PVH kernel, which gets the text FILE ARGS with it; can be repeated
    #[arg(long, value_name = "FILE[,ARGS]", value_parser = module, requires = "kernel")]
    pub module: Vec<ModuleArg>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "STRING",
        default_value = "console=ttyS0",
        requires = "kernel"
    )]
    pub append: String,
    /// A raw image as a virtio disk; may be given several times
    #[arg(long = "disk", value_name = "FILE[,readonly]", value_parser = disk)]
    pub disks: Vec<Disk>,
    /// An ISO image in a SATA CD-ROM drive
    #[arg(long, value_name = "FILE")]
    pub cdrom: Option<PathBuf>,
    /// The guest's memory, as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    pub memory: u64,
    /// The number of virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cpus: u8,
    /// The CPU model the guest sees, one of `nestling cpu list`
    #[arg(long, value_name = "MODEL", default_value = "max", value_parser = cpu_model)]
    pub cpu: CpuModel,
    /// What runs the guest's code
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub engine: EngineArg,
    /// Whether the soft engine translates what runs often to code of the host
    #[arg(long, value_enum, default_value_t = JitArg::On)]
    pub jit: JitArg,
    /// The virtualization the guest sees, so that it can be a hypervisor
    #[arg(long, value_enum, default_value_t = NestedArg::Auto)]
    pub nested: NestedArg,
    /// Where the guest's time comes from
    #[arg(long, value_enum, default_value_t = ClockArg::Host)]
    pub clock: ClockArg,
    /// End when the guest writes to port 0xf4
    #[arg(long)]
    pub debug_exit: bool,
    /// End after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// How far this process gives up what a running machine does not need of the host
    #[arg(long, value_enum, default_value_t = ConfineArg::Auto)]
    pub confine: ConfineArg,
    /// Say at the end how many instructions ran in how much time, and a hash of the guest's memory
    #[arg(long)]
    pub stats: bool,
}

/// Options of `nestling cpu`.
#[derive(Debug, Args)]
pub struct CpuArgs {
    /// What to show.
    #[command(subcommand)]
    pub command: CpuCommand,
}

/// What can be shown of CPU models.
#[derive(Debug, Subcommand)]
pub enum CpuCommand {
    /// List the models, and whether this host can run them
    List {
        /// How the result is printed
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show what a model is: its features, and what CPUID answers with one vCPU and virtualization off
    Show {
        /// The model
        #[arg(value_parser = cpu_model)]
        model: CpuModel,
        /// How the result is printed
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

const DOCTOR_HELP: &str = "\
Say item by item what this host offers, which engine is used, and why. A `no` says what to do about it; nestling runs
without all of them, on its soft engine.";

/// Options of `nestling doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Options of `nestling guest-report`.
#[derive(Debug, Args)]
pub struct GuestReportArgs {
    /// Which level this is
    #[arg(long)]
    pub level: u8,
}

/// Options of `nestling images`.
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// How many levels of guests
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(DEEPEST)))]
    pub depth: u8,
    /// The virtualization the images use
    #[arg(long, value_enum, default_value_t = Vendor::Intel)]
    pub virt: Vendor,
    /// Memory of level 1
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Virtual processors of each inner level
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cpus: u8,
    /// More words for the kernels' command lines, at all levels
    #[arg(long, value_name = "STRING", default_value = "", hide = true)]
    pub append: String,
    /// How the inner levels are run.
    #[command(flatten)]
    pub inner: InnerArgs,
    /// What every level runs once it is up.
    #[command(flatten)]
    pub bench: BenchArgs,
    /// The directory to write vmlinuz, initramfs.cpio and append.txt to
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Files of your own.
    #[command(flatten)]
    pub files: FileArgs,
}

/// A program for every level of `nestling images`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct BenchArgs {
    /// A static program that every level runs once it is up, as FILE --level N
    #[arg(id = "bench", long = "bench", value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// More arguments for it, separated by spaces
    #[arg(id = "bench-args", long = "bench-args", value_name = "STRING", default_value = "", value_parser = bench_arguments, requires = "bench", allow_hyphen_values = true)]
    pub arguments: String,
    /// A folder whose files every level has, at the same places
    #[arg(
        id = "bench-files",
        long = "bench-files",
        value_name = "DIR",
        requires = "bench"
    )]
    pub files: Option<PathBuf>,
}

/// Options of `nestling unpack`.
#[derive(Debug, Args)]
pub struct UnpackArgs {
    /// The packages, each as NAME or NAME=VERSION
    #[arg(value_name = "PACKAGE", required = true)]
    pub packages: Vec<String>,
    /// The directory to unpack into
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
}

/// How the levels of `nestling images` run their guests.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct InnerArgs {
    /// What runs the inner levels
    #[arg(long, value_enum, default_value_t = VmmArg::Nestling)]
    pub vmm: VmmArg,
    /// The virtualization the inner levels see under nestling [default: that of --virt]
    #[arg(long, value_enum)]
    pub nested: Option<NestedArg>,
    /// What -cpu says to QEMU
    #[arg(long, value_name = "MODEL", default_value = "host")]
    pub qemu_cpu: String,
    /// Options of kvm-intel or kvm-amd, separated by spaces
    #[arg(long, value_name = "STRING", default_value = "", value_parser = module_options)]
    pub kvm_options: String,
    /// Debian's package of the kernel
    #[arg(long, value_name = "PACKAGE", default_value = KERNEL_PACKAGE, value_parser = package)]
    pub kernel_package: String,
    /// Print each kernel's warnings before its level goes down
    #[arg(long)]
    pub log: bool,
}

impl Default for InnerArgs {
    fn default() -> Self {
        Self {
            vmm: VmmArg::Nestling,
            nested: None,
            qemu_cpu: "host".into(),
            kvm_options: String::new(),
            kernel_package: KERNEL_PACKAGE.into(),
            log: false,
        }
    }
}

/// What runs a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VmmArg {
    /// This program with its KVM engine
    Nestling,
    /// Debian's QEMU with KVM
    Qemu,
}

/// Words that go into a script as they are, at most as many as it hands on.
fn module_options(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_=, ".contains(c);
    match text.chars().all(plain) && text.split_whitespace().count() <= 3 {
        true => Ok(text.to_string()),
        false => Err("at most three words of the form name=value".into()),
    }
}

/// Words that go into a script as they are.
fn bench_arguments(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-,./ ".contains(c);
    match text.chars().all(plain) {
        true => Ok(text.to_string()),
        false => Err("letters, digits, dashes, commas, points and slashes only".into()),
    }
}

/// The name of a package (Debian Policy 5.6.1).
fn package(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    match starts && text.len() > 1 && text.chars().all(plain) {
        true => Ok(text.to_string()),
        false => Err("that is no name of a Debian package".into()),
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Whose virtualization a demo uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vendor {
    /// VT-x
    Intel,
    /// AMD-V
    Amd,
}

/// `--engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// KVM where it can run this machine at hardware speed, else soft
    Auto,
    /// A processor in software; runs everywhere
    Soft,
    /// The host's KVM
    Kvm,
}

impl From<EngineArg> for EngineChoice {
    fn from(arg: EngineArg) -> Self {
        match arg {
            EngineArg::Auto => Self::Auto,
            EngineArg::Soft => Self::Soft,
            EngineArg::Kvm => Self::Kvm,
        }
    }
}

/// `--nested`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NestedArg {
    /// What the engine offers
    Auto,
    /// VT-x
    Intel,
    /// AMD-V
    Amd,
    /// None
    Off,
}

impl NestedArg {
    /// The word on a command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Intel => "intel",
            Self::Amd => "amd",
            Self::Off => "off",
        }
    }
}

impl From<NestedArg> for NestedChoice {
    fn from(arg: NestedArg) -> Self {
        match arg {
            NestedArg::Auto => Self::Auto,
            NestedArg::Intel => Self::Intel,
            NestedArg::Amd => Self::Amd,
            NestedArg::Off => Self::Off,
        }
    }
}

/// `--vga`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VgaArg {
    /// A VGA with a linear frame buffer, whose picture stays in memory
    Std,
    /// None
    None,
}

/// `--boot-protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BootArg {
    /// What the file is made for
    Auto,
    /// Linux, 64-bit entry
    Linux64,
    /// Linux, 32-bit entry
    Linux32,
    /// Multiboot 1
    Multiboot,
    /// The x86/HVM direct boot ABI
    Pvh,
}

impl From<BootArg> for BootProtocol {
    fn from(arg: BootArg) -> Self {
        match arg {
            BootArg::Auto => Self::Auto,
            BootArg::Linux64 => Self::Linux64,
            BootArg::Linux32 => Self::Linux32,
            BootArg::Multiboot => Self::Multiboot,
            BootArg::Pvh => Self::Pvh,
        }
    }
}

/// `--module`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleArg {
    /// The file.
    pub path: PathBuf,
    /// What the kernel is told with it.
    pub text: String,
}

/// Parses a module: a file's name, and after the first comma its arguments.
fn module(text: &str) -> Result<ModuleArg, String> {
    let (path, arguments) = match text.split_once(',') {
        Some((path, arguments)) => (path, Some(arguments)),
        None => (text, None),
    };
    if path.is_empty() {
        return Err("write the name of a file, and after a comma its arguments".into());
    }
    Ok(ModuleArg {
        path: path.into(),
        text: arguments.map_or_else(|| path.to_owned(), |more| format!("{path} {more}")),
    })
}

/// `--jit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JitArg {
    /// No: all code is interpreted
    Off,
    /// Yes, if the host's processor has what it takes
    On,
    /// All code, before it runs for the first time, or the machine is not started (for tests)
    Force,
}

impl From<JitArg> for Jit {
    fn from(arg: JitArg) -> Self {
        match arg {
            JitArg::Off => Self::Off,
            JitArg::On => Self::On,
            JitArg::Force => Self::Force,
        }
    }
}

/// `--clock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClockArg {
    /// It follows the host's time
    Host,
    /// It advances with the guest's instructions and jumps over idle time (soft engine only)
    Virtual,
}

impl From<ClockArg> for ClockMode {
    fn from(arg: ClockArg) -> Self {
        match arg {
            ClockArg::Host => Self::Host,
            ClockArg::Virtual => Self::Virtual,
        }
    }
}

/// `--confine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConfineArg {
    /// As far as the host can (seccomp, Landlock); what it cannot is told
    Auto,
    /// In full, or the machine is not started
    Require,
    /// Not at all
    Off,
}

impl From<ConfineArg> for Confinement {
    fn from(arg: ConfineArg) -> Self {
        match arg {
            ConfineArg::Auto => Self::Auto,
            ConfineArg::Require => Self::Require,
            ConfineArg::Off => Self::Off,
        }
    }
}

/// Parses the name of a firmware, or a path to one.
fn firmware(text: &str) -> Result<FirmwareChoice, String> {
    match text {
        "" => Err("write bios, uefi, or the path of a ROM image".into()),
        "bios" => Ok(FirmwareChoice::Bios),
        "uefi" => Ok(FirmwareChoice::Uefi),
        path => Ok(FirmwareChoice::File(path.into())),
    }
}

/// Parses a size of memory: a number and one of K, M, G, T, powers of 1024; whole MiB.
fn size(text: &str) -> Result<u64, String> {
    const HOW: &str = "write a number and a unit, as 512M or 2G";
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(HOW.into()),
    };
    let number: u64 = digits.parse().map_err(|_| HOW.to_string())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("it must be more than nothing".into()),
        Some(bytes) if bytes % (1 << 20) != 0 => Err("it must be a whole number of MiB".into()),
        Some(bytes) => Ok(bytes),
        None => Err("it is too large".into()),
    }
}

/// Parses a disk: a path, and perhaps `,readonly`. Only that word is taken for an option, since a path may have commas.
fn disk(text: &str) -> Result<Disk, String> {
    let (path, read_only) = match text.strip_suffix(",readonly") {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.is_empty() {
        return Err("write a path, as disk.img or disk.img,readonly".into());
    }
    let path = PathBuf::from(path);
    Ok(Disk { path, read_only })
}

/// Parses the name of a CPU model.
fn cpu_model(text: &str) -> Result<CpuModel, String> {
    CpuModel::from_name(text).ok_or_else(|| {
        let names: Vec<_> = CpuModel::ALL.iter().map(|m| m.name()).collect();
        format!("the models are {}", names.join(", "))
    })
}

/// Parses a time of at least one second and at most a year.
fn seconds(text: &str) -> Result<Duration, String> {
    const YEAR: u64 = 366 * 24 * 60 * 60;
    match text.parse() {
        Ok(seconds @ 1..=YEAR) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("write a whole number of seconds from 1 to {YEAR}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_word_of_a_value_is_what_is_parsed() {
        for value in NestedArg::value_variants() {
            let parsed = NestedArg::from_str(value.word(), false);
            assert_eq!(parsed.as_ref(), Ok(value));
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("4MiB"), Ok(4 << 20));
        assert_eq!(size("839680K"), Ok(820 << 20));
        assert!(size("839681K").is_err());
        for wrong in [
            "",
            "G",
            "512",
            "-1G",
            "1.5G",
            "99999999999T",
            "0G",
            "1GB2",
            "\u{e9}G",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_disk_is_a_path_and_perhaps_read_only() {
        let is = |text, path: &str, read_only| {
            let path = path.into();
            assert_eq!(disk(text), Ok(Disk { path, read_only }), "{text}");
        };
        is("a.img", "a.img", false);
        is("/x/a.img,readonly", "/x/a.img", true);
        is("a,b.img", "a,b.img", false);
        is("a,readonly,b", "a,readonly,b", false);
        assert!(disk("").is_err() && disk(",readonly").is_err());
    }

    #[test]
    fn a_module_has_a_file_and_arguments() {
        let parsed = |text: &str| {
            let found = module(text)?;
            Ok::<_, String>((found.path.display().to_string(), found.text))
        };
        let is = |path: &str, text: &str| Ok((path.to_owned(), text.to_owned()));
        assert_eq!(parsed("/boot/a"), is("/boot/a", "/boot/a"));
        assert_eq!(parsed("a,b c,d"), is("a", "a b c,d"));
        assert!(parsed("").is_err() && parsed(",b").is_err());
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(seconds("600"), Ok(Duration::from_secs(600)));
        for wrong in ["", "0", "-1", "1.5", "99999999999999999999"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_for_scripts_and_paths_are_plain() {
        assert_eq!(
            module_options("ept=0 nested=1"),
            Ok("ept=0 nested=1".into())
        );
        for wrong in ["ept=0; reboot", "a=$(b)", "a b c d"] {
            assert!(module_options(wrong).is_err(), "{wrong}");
        }
        assert!(package("linux-image-6.12-cloud-amd64").is_ok());
        for wrong in ["", "a", "../../x", "Linux", "-o=x", ".hidden"] {
            assert!(package(wrong).is_err(), "{wrong}");
        }
    }

    fn help(name: &str) -> String {
        let mut command = CommandLine::command().term_width(100);
        command.build();
        let found = command.find_subcommand_mut(name).expect("it exists");
        found.render_long_help().to_string()
    }

    #[test]
    fn the_help_texts() {
        let mut command = CommandLine::command().term_width(100);
        insta::assert_snapshot!("help", command.render_long_help().to_string());
        for name in ["demo", "run", "doctor", "cpu"] {
            insta::assert_snapshot!(format!("help_{name}"), help(name));
        }
    }
}
