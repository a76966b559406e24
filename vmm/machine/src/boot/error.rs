//! Why a kernel cannot be booted.

use guestmem::RamError;

use super::{BootProtocol, ElfError, HeaderError, MultibootError};

/// Why a file is nothing that can be booted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// None of the forms of kernels.
    #[error(
        "it is no kernel: neither a Linux bzImage, nor a multiboot image, nor an ELF file with a PVH entry; give \
         a bzImage, usually /boot/vmlinuz-<release>"
    )]
    Unknown,
    /// An ELF file by no protocol.
    #[error(
        "it is an ELF file without a multiboot header and without a PVH entry; give one that has either"
    )]
    NoEntry,
    /// Not a bzImage, with firmware.
    #[error("firmware starts only a Linux bzImage, which it is not; leave out --firmware")]
    NotForFirmware,
    /// An entry point where nothing was loaded.
    #[error("its entry point {0:#x} is in no segment that it loads; link it again")]
    EntryOutside(u32),
    /// A file that is not of the protocol asked for.
    #[error("it cannot be booted by the protocol {0}; leave out --boot-protocol")]
    Protocol(BootProtocol),
    /// A bzImage that is broken or too old.
    #[error(transparent)]
    Linux(#[from] HeaderError),
    /// An ELF file that is broken.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A multiboot image that is broken or asks for what is not there.
    #[error(transparent)]
    Multiboot(#[from] MultibootError),
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("cannot read the {what} {name}: {source}")]
    Unreadable {
        /// "kernel", "initial RAM disk" or "module".
        what: &'static str,
        /// Which one.
        name: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// The file is nothing we can start.
    #[error("{name} is not a kernel that can be booted: {source}")]
    NotAKernel {
        /// Which one.
        name: String,
        /// What is wrong with it.
        source: ImageError,
    },
    /// The kernel does not fit into RAM.
    #[error(
        "{} MiB of memory is too little for the kernel {name}, which needs RAM up to {} MiB; give the VM more memory",
        have_bytes >> 20, (need_bytes >> 20) + 1
    )]
    KernelTooLarge {
        /// Which one.
        name: String,
        /// Low RAM there is.
        have_bytes: u64,
        /// Low RAM needed.
        need_bytes: u64,
    },
    /// A segment of the kernel goes where no RAM is, or where another one lies.
    #[error(
        "the kernel {name} loads {size_bytes:#x} bytes at {start:#x}, which is not free RAM below 4 GiB; link it \
         elsewhere or give the VM more memory"
    )]
    SegmentOutsideRam {
        /// Which kernel.
        name: String,
        /// First physical address.
        start: u64,
        /// Length in memory.
        size_bytes: u64,
    },
    /// The initial RAM disk does not fit beside the kernel.
    #[error(
        "the initial RAM disk {name} of {} MiB does not fit beside the kernel into {} MiB of memory; give the VM at least {} MiB",
        size_bytes.div_ceil(1 << 20), have_bytes >> 20, need_bytes.div_ceil(1 << 20)
    )]
    InitrdTooLarge {
        /// Which one.
        name: String,
        /// Its size.
        size_bytes: u64,
        /// Low RAM there is.
        have_bytes: u64,
        /// Low RAM that would be enough, as far as the kernel can reach.
        need_bytes: u64,
    },
    /// The initial RAM disk lies beyond what this kernel can reach, whatever the memory.
    #[error(
        "the initial RAM disk {name} of {size_bytes} bytes is larger than this kernel accepts; use a smaller one"
    )]
    InitrdBeyondKernel {
        /// Which one.
        name: String,
        /// Its size.
        size_bytes: u64,
    },
    /// A module does not fit.
    #[error(
        "the module {name} of {size_bytes} bytes does not fit beside the kernel; give the VM more memory"
    )]
    ModuleTooLarge {
        /// Which one.
        name: String,
        /// Its size.
        size_bytes: u64,
    },
    /// Modules for a kernel that takes none.
    #[error(
        "a Linux bzImage takes no modules, only an initial RAM disk; give the file by --initrd"
    )]
    NoModules,
    /// The command line is longer than the kernel takes.
    #[error(
        "the kernel command line has {length} characters, this kernel takes at most {limit}; shorten it"
    )]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// The longest there may be.
        limit: usize,
    },
    /// What the loader tells the kernel does not fit into conventional memory.
    #[error("the command lines and lists for the kernel need {0} bytes of free RAM; shorten them")]
    NoRoomForInformation(u64),
    /// The board's own tables do not fit (RAM is smaller than the board's minimum).
    #[error(transparent)]
    Ram(#[from] RamError),
}

impl BootError {
    /// An [`ImageError`] of the kernel `name`.
    pub(super) fn image(name: &str, source: impl Into<ImageError>) -> Self {
        Self::NotAKernel {
            name: name.to_owned(),
            source: source.into(),
        }
    }
}
