//! What a VM is asked to be, and the checks that need no file and no engine.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bus::ClockMode;
use chipset::i8042::Typed;
use vcpu::NestedVirt;
use vcpu::cpuid::CpuModel;

use crate::disks::{DiskConfig, MAX_DISKS};
use crate::firmware::Firmware;

use crate::boot::BootProtocol;

/// Where the bytes of a kernel or an initial RAM disk come from.
#[derive(Clone)]
pub enum Image {
    /// A regular file, read when the machine is built.
    File(PathBuf),
    /// Bytes in memory.
    Bytes(Arc<Vec<u8>>),
}

impl Image {
    /// What messages call it: the path, or "(in memory)".
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Bytes(_) => "(in memory)".to_owned(),
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
        }
    }
}

/// A file for a kernel that is booted by multiboot or PVH.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its bytes.
    pub image: Image,
    /// What the kernel is told with it: by custom a name and arguments. Without NUL.
    pub text: String,
}

/// A display.
#[derive(Clone, Debug, Default)]
pub struct DisplayConfig {
    /// Its firmware, which a machine that starts with firmware finds in its expansion ROM. Empty for none.
    pub rom: Arc<Vec<u8>>,
}

/// Configuration of a VM.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// RAM in bytes; a multiple of 1 MByte.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// A kernel: a Linux bzImage, a multiboot image, or an ELF file with a PVH entry. With firmware, which starts it, a
    /// bzImage, or none.
    pub kernel: Option<Image>,
    /// How the kernel is booted without firmware.
    pub boot_protocol: BootProtocol,
    /// Initial RAM disk, if any; the first module of a kernel that takes modules.
    pub initrd: Option<Image>,
    /// More modules.
    pub modules: Vec<Module>,
    /// Kernel command line.
    pub cmdline: String,
    /// The processor the guest is shown.
    pub cpu: CpuModel,
    /// The virtualization extension the guest is shown.
    pub nested: NestedVirt,
    /// Where virtual time comes from.
    pub clock: ClockMode,
    /// Frequency of the TSC in Hz, where the engine can choose it.
    pub tsc_hz: u64,
    /// What the real-time clock shows at the start, in seconds since 1970; `None` for the host's time, or for
    /// a fixed date in virtual time.
    pub epoch_s: Option<i64>,
    /// Whether a write to port F4h ends the run with a status.
    pub debug_exit: bool,
    /// The display, if there is one.
    pub display: Option<DisplayConfig>,
    /// What is typed on the keyboard once the guest has enabled it.
    pub keys: Typed,
    /// Virtio disks.
    pub disks: Vec<DiskConfig>,
    /// The image in the CD-ROM drive, if there is one.
    pub cdrom: Option<PathBuf>,
    /// Firmware to start with.
    pub firmware: Option<Firmware>,
}

/// Least RAM the board works with, in bytes. A kernel needs more; that is checked when it is loaded.
pub const MIN_MEMORY_BYTES: u64 = 8 << 20;
/// Most RAM, in bytes: with the 32-bit hole it stays far below 46 bits of physical address.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;
/// Most vCPUs: APIC ids 0 to 254 are what every guest can address.
pub const MAX_VCPUS: u32 = 255;
/// Most bytes of the display's firmware.
pub const MAX_DISPLAY_ROM_BYTES: usize = 1 << 20;
/// TSC frequency when nothing else is asked for: one tick a nanosecond.
pub const DEFAULT_TSC_HZ: u64 = 1_000_000_000;

impl Default for MachineConfig {
    /// One vCPU, 1 GByte, host time, no kernel.
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            vcpus: 1,
            kernel: None,
            boot_protocol: BootProtocol::Auto,
            initrd: None,
            modules: Vec::new(),
            cmdline: String::new(),
            cpu: CpuModel::Max,
            nested: NestedVirt::Off,
            clock: ClockMode::Host,
            tsc_hz: DEFAULT_TSC_HZ,
            epoch_s: None,
            debug_exit: false,
            display: None,
            keys: Typed::default(),
            disks: Vec::new(),
            cdrom: None,
            firmware: None,
        }
    }
}

/// A configuration no machine can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too little RAM for the board.
    #[error(
        "{} MiB of memory is too little; a VM needs at least {} MiB, and a Linux kernel about 128 MiB",
        .0 >> 20, MIN_MEMORY_BYTES >> 20
    )]
    TooLittleMemory(u64),
    /// More RAM than the address map has room for.
    #[error("{} MiB of memory is too much; the most is {} MiB", .0 >> 20, MAX_MEMORY_BYTES >> 20)]
    TooMuchMemory(u64),
    /// RAM that is no whole number of MByte.
    #[error("{0} bytes of memory is not a whole number of MiB; round it to a multiple of 1048576")]
    UnalignedMemory(u64),
    /// No vCPU, or too many.
    #[error("{0} vCPUs cannot be had; choose 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// Virtualization of the other vendor.
    #[error(
        "the CPU model {0} cannot have {1}; choose --nested off or a model of the other vendor"
    )]
    OtherVendor(CpuModel, &'static str),
    /// A frequency no guest could work with.
    #[error("a TSC of {0} Hz cannot be had; choose 10 MHz to 10 GHz")]
    TscHz(u64),
    /// More disks than there are places for.
    #[error("{0} disks are too many; the most is {MAX_DISKS}")]
    Disks(usize),
    /// A NUL would end the command line early.
    #[error("the kernel command line contains a NUL character; remove it")]
    CmdlineNul,
    /// A display's firmware that no expansion ROM holds.
    #[error(
        "the display's firmware has {0} bytes; give one of at most {MAX_DISPLAY_ROM_BYTES} bytes"
    )]
    DisplayRom(usize),
    /// The same in the text of a module.
    #[error("the arguments of a module contain a NUL character; remove it")]
    ModuleNul,
    /// Neither kernel nor firmware.
    #[error("there is neither a kernel nor firmware to start; give one of them")]
    NothingToStart,
}

impl MachineConfig {
    /// Checks everything that can be checked without looking at files or the host.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.memory_bytes < MIN_MEMORY_BYTES {
            return Err(ConfigError::TooLittleMemory(self.memory_bytes));
        }
        if self.memory_bytes > MAX_MEMORY_BYTES {
            return Err(ConfigError::TooMuchMemory(self.memory_bytes));
        }
        if !self.memory_bytes.is_multiple_of(1 << 20) {
            return Err(ConfigError::UnalignedMemory(self.memory_bytes));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        let other = match self.nested {
            NestedVirt::Intel => Some("VT-x"),
            NestedVirt::Amd => Some("AMD-V"),
            NestedVirt::Off => None,
        };
        if let Some(extension) = other
            && !self.cpu.follows_host()
            && self.cpu.vendor().nested() != self.nested
        {
            return Err(ConfigError::OtherVendor(self.cpu, extension));
        }
        if !(10_000_000..=10_000_000_000).contains(&self.tsc_hz) {
            return Err(ConfigError::TscHz(self.tsc_hz));
        }
        if self.disks.len() > MAX_DISKS {
            return Err(ConfigError::Disks(self.disks.len()));
        }
        if self.cmdline.contains('\0') {
            return Err(ConfigError::CmdlineNul);
        }
        let rom_bytes = self.display.as_ref().map_or(0, |d| d.rom.len());
        if rom_bytes > MAX_DISPLAY_ROM_BYTES {
            return Err(ConfigError::DisplayRom(rom_bytes));
        }
        if self.modules.iter().any(|m| m.text.contains('\0')) {
            return Err(ConfigError::ModuleNul);
        }
        if self.kernel.is_none() && self.firmware.is_none() {
            return Err(ConfigError::NothingToStart);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut MachineConfig)) -> Result<(), ConfigError> {
        let mut config = MachineConfig {
            kernel: Some(Image::File("kernel".into())),
            ..MachineConfig::default()
        };
        change(&mut config);
        config.validate()
    }

    #[test]
    fn the_default_with_something_to_start_is_valid() {
        assert_eq!(with(|_| ()), Ok(()));
        let nothing = with(|c| c.kernel = None);
        assert_eq!(nothing, Err(ConfigError::NothingToStart));
    }

    #[test]
    fn impossible_sizes_are_refused_by_name() {
        assert_eq!(
            with(|c| c.memory_bytes = 1 << 20),
            Err(ConfigError::TooLittleMemory(1 << 20))
        );
        assert_eq!(
            with(|c| c.memory_bytes = u64::MAX),
            Err(ConfigError::TooMuchMemory(u64::MAX))
        );
        assert!(matches!(
            with(|c| c.memory_bytes += 1),
            Err(ConfigError::UnalignedMemory(_))
        ));
        assert_eq!(with(|c| c.vcpus = 0), Err(ConfigError::Vcpus(0)));
        assert_eq!(with(|c| c.vcpus = 256), Err(ConfigError::Vcpus(256)));
        assert_eq!(with(|c| c.tsc_hz = 0), Err(ConfigError::TscHz(0)));
        assert_eq!(
            with(|c| (c.cpu, c.nested) = (CpuModel::NestlingAmd, NestedVirt::Intel)),
            Err(ConfigError::OtherVendor(CpuModel::NestlingAmd, "VT-x"))
        );
        assert_eq!(
            with(|c| c.cmdline = "a\0b".into()),
            Err(ConfigError::CmdlineNul)
        );
    }

    #[test]
    fn errors_say_what_and_what_to_do() {
        let text = ConfigError::TooLittleMemory(4 << 20).to_string();
        assert!(
            text.contains("4 MiB") && text.contains("at least 8 MiB"),
            "{text}"
        );
    }
}
