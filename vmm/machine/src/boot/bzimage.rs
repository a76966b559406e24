//! The setup header of a bzImage (boot.rst, "The Real-Mode Kernel Header").

use guestmem::Gpa;

/// Offset of the header in the file and in `boot_params`.
pub(super) const HEADER_START: usize = 0x1f1;
/// End of every field this module reads, in the file.
pub(super) const HEADER_END: usize = 0x280;

/// Offsets of the header's fields in the file.
pub(crate) mod field {
    pub(crate) const SETUP_SECTS: usize = 0x1f1;
    pub(crate) const SYSSIZE: usize = 0x1f4;
    pub(crate) const BOOT_FLAG: usize = 0x1fe;
    pub(crate) const JUMP_OFFSET: usize = 0x201;
    pub(crate) const MAGIC: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const TYPE_OF_LOADER: usize = 0x210;
    pub(crate) const LOADFLAGS: usize = 0x211;
    pub(crate) const RAMDISK_IMAGE: usize = 0x218;
    pub(crate) const RAMDISK_SIZE: usize = 0x21c;
    pub(crate) const HEAP_END_PTR: usize = 0x224;
    pub(crate) const CMD_LINE_PTR: usize = 0x228;
    pub(crate) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(crate) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(crate) const RELOCATABLE: usize = 0x234;
    pub(crate) const XLOADFLAGS: usize = 0x236;
    pub(crate) const CMDLINE_SIZE: usize = 0x238;
    pub(crate) const PREF_ADDRESS: usize = 0x258;
    pub(crate) const INIT_SIZE: usize = 0x260;
}

/// `type_of_loader` of a boot loader without an assigned number.
pub(crate) const UNDEFINED_LOADER: u8 = 0xff;
/// `loadflags`: the protected-mode code loads at 1 MByte and above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: the kernel has the 64-bit entry point at 200h.
const XLF_KERNEL_64: u16 = 1;
/// First protocol whose command line is given by `cmd_line_ptr`, and with `initrd_addr_max`.
const VERSION_OLDEST: u16 = 0x0203;
/// First protocol with `relocatable_kernel`.
const VERSION_RELOCATABLE: u16 = 0x0205;
/// First protocol with `cmdline_size`.
const VERSION_CMDLINE_SIZE: u16 = 0x0206;
/// First protocol with `pref_address` and `init_size`.
pub(crate) const VERSION_INIT_SIZE: u16 = 0x020a;
/// First protocol with `xloadflags`.
const VERSION_XLOADFLAGS: u16 = 0x020c;
/// Where a bzImage is loaded that does not say.
const DEFAULT_ADDRESS: u64 = 0x10_0000;
/// Longest command line of a kernel that does not say.
const DEFAULT_CMDLINE_LIMIT: usize = 255;
/// `syssize` counts paragraphs of this many bytes; the last need not be whole in the file.
const PARAGRAPH: u64 = 16;

/// Why a file is no Linux kernel that can be booted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No `HdrS` signature.
    #[error("it has no Linux boot header; give a bzImage (such as /boot/vmlinuz-*)")]
    NoSignature,
    /// A protocol older than any we serve.
    #[error("its boot protocol {}.{:02} is too old, 2.03 is needed; use Linux 2.4.18 or later", .0 >> 8, .0 & 0xff)]
    TooOld(u16),
    /// A zImage.
    #[error("it is a zImage, loaded below 1 MiB; use a bzImage")]
    LoadedLow,
    /// A kernel without 64-bit entry, which was asked for.
    #[error("it has no 64-bit entry point; leave out --boot-protocol")]
    No64BitEntry,
    /// The file ends before the code its header announces.
    #[error("it is cut short: {have_bytes} bytes of {need_bytes}; fetch it again")]
    Truncated {
        /// Size of the file.
        have_bytes: u64,
        /// Size the header announces.
        need_bytes: u64,
    },
    /// Header fields that contradict the protocol.
    #[error("its boot header is broken ({0}); build or fetch it again")]
    Broken(&'static str),
}

/// A checked setup header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    /// File bytes from 1F1h to the end of the header as the kernel states it.
    raw: Vec<u8>,
}

impl SetupHeader {
    /// Checks the header in the first bytes of a file that is `file_bytes` long.
    ///
    /// # Errors
    /// [`HeaderError`] when the file can be booted neither by the 32-bit nor by the 64-bit protocol.
    pub fn parse(start: &[u8], file_bytes: u64) -> Result<Self, HeaderError> {
        if start.len() < HEADER_END
            || start[field::BOOT_FLAG..field::BOOT_FLAG + 2] != [0x55, 0xaa]
            || start[field::MAGIC..field::MAGIC + 4] != *b"HdrS"
        {
            return Err(HeaderError::NoSignature);
        }
        // The header ends at 202h plus the displacement of the jump at 200h.
        let end = field::MAGIC + usize::from(start[field::JUMP_OFFSET]);
        let header = Self {
            raw: start[HEADER_START..end.clamp(field::MAGIC, HEADER_END)].to_vec(),
        };
        let version = header.u16(field::VERSION);
        if version < VERSION_OLDEST {
            return Err(HeaderError::TooOld(version));
        }
        if header.u8(field::LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(HeaderError::LoadedLow);
        }
        header.check_sizes(file_bytes)?;
        Ok(header)
    }

    fn check_sizes(&self, file_bytes: u64) -> Result<(), HeaderError> {
        let need_bytes =
            self.protected_mode_offset() + PARAGRAPH * u64::from(self.u32(field::SYSSIZE));
        if file_bytes + PARAGRAPH <= need_bytes || file_bytes < self.protected_mode_offset() {
            return Err(HeaderError::Truncated {
                have_bytes: file_bytes,
                need_bytes,
            });
        }
        if self.has(VERSION_INIT_SIZE) && self.u32(field::INIT_SIZE) == 0 {
            return Err(HeaderError::Broken("init_size is zero"));
        }
        if self.cmdline_limit() == 0 {
            return Err(HeaderError::Broken("cmdline_size is zero"));
        }
        let preferred = self.preferred_address().0;
        if preferred < DEFAULT_ADDRESS || preferred & 0xfff != 0 {
            return Err(HeaderError::Broken(
                "pref_address is below 1 MiB or unaligned",
            ));
        }
        if self.is_relocatable() && !self.u32(field::KERNEL_ALIGNMENT).is_power_of_two() {
            return Err(HeaderError::Broken(
                "kernel_alignment is not a power of two",
            ));
        }
        Ok(())
    }

    /// Whether the protocol is at least that of `version`.
    fn has(&self, version: u16) -> bool {
        self.u16(field::VERSION) >= version
    }

    /// Whether the kernel can be entered in 64-bit mode.
    #[must_use]
    pub fn has_64_bit_entry(&self) -> bool {
        self.has(VERSION_XLOADFLAGS) && self.u16(field::XLOADFLAGS) & XLF_KERNEL_64 != 0
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let from = at - HEADER_START;
        // A header that ends before the field has it as zero.
        std::array::from_fn(|i| self.raw.get(from + i).copied().unwrap_or(0))
    }
    fn u8(&self, at: usize) -> u8 {
        self.bytes::<1>(at)[0]
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    /// The header's bytes, which belong at 1F1h of `boot_params`.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    fn is_relocatable(&self) -> bool {
        self.has(VERSION_RELOCATABLE) && self.u8(field::RELOCATABLE) != 0
    }

    /// Where the protected-mode code starts in the file.
    #[must_use]
    pub fn protected_mode_offset(&self) -> u64 {
        // For historical reasons 0 means 4.
        let sectors = match self.u8(field::SETUP_SECTS) {
            0 => 4,
            n => u64::from(n),
        };
        (sectors + 1) * 512
    }

    /// Where the kernel would like to be.
    #[must_use]
    pub fn preferred_address(&self) -> Gpa {
        if self.has(VERSION_INIT_SIZE) {
            Gpa(u64::from_le_bytes(self.bytes(field::PREF_ADDRESS)))
        } else {
            Gpa(DEFAULT_ADDRESS)
        }
    }

    /// The lowest place a relocatable kernel can be put: its alignment, but not below 1 MByte.
    #[must_use]
    pub fn lowest_address(&self) -> Option<Gpa> {
        self.is_relocatable()
            .then(|| Gpa(u64::from(self.u32(field::KERNEL_ALIGNMENT)).max(0x10_0000)))
    }

    /// Contiguous memory needed from the load address on, for a file of `file_bytes`.
    #[must_use]
    pub fn memory_needed(&self, file_bytes: u64) -> u64 {
        let init_size = match self.has(VERSION_INIT_SIZE) {
            true => u64::from(self.u32(field::INIT_SIZE)),
            false => 0,
        };
        init_size.max(file_bytes.saturating_sub(self.protected_mode_offset()))
    }

    /// First address after the highest the initial RAM disk may occupy.
    #[must_use]
    pub fn initrd_end_limit(&self) -> u64 {
        u64::from(self.u32(field::INITRD_ADDR_MAX)) + 1
    }

    /// Longest command line, without the terminating zero.
    #[must_use]
    pub fn cmdline_limit(&self) -> usize {
        if self.has(VERSION_CMDLINE_SIZE) {
            self.u32(field::CMDLINE_SIZE) as usize
        } else {
            DEFAULT_CMDLINE_LIMIT
        }
    }
}
