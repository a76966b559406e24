//! One instruction with its inputs, and what came of it.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::segments::{CS, SS, Segment, Setting};

/// Bytes of the memory window: two writable pages and one read-only page.
pub const WINDOW_BYTES: usize = 3 * 4096;

/// Offset in the window of its read-only page.
pub const READ_ONLY_OFFSET: usize = 2 * 4096;

/// Bytes of the code area (readable, writable, executable).
pub const CODE_BYTES: usize = 2 * 4096;

/// Where a subject has its memory, in linear addresses.
///
/// A slot is 1 MiB below 4 GiB, everything in it unmapped but the window and the code area. Workers that
/// run in one process use different slots. [`Layout::LOW`] is for cases without paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// First byte of the slot.
    pub slot: u64,
}

impl Layout {
    /// Bytes of a slot.
    pub const SLOT_BYTES: u64 = 1 << 20;

    /// Below 1 MiB, for real mode; nothing is unmapped.
    pub const LOW: Self = Self { slot: 0 };

    /// Slots there are room for.
    pub const WORKERS: u64 = 128;

    const FIRST_SLOT: u64 = 0x1000_0000;

    /// The slot of worker `index`, below [`Layout::WORKERS`].
    #[must_use]
    pub const fn worker(index: u64) -> Self {
        Self {
            slot: Self::FIRST_SLOT + index * Self::SLOT_BYTES,
        }
    }

    /// The slot that holds `address`.
    #[must_use]
    pub const fn of(address: u64) -> Option<Self> {
        let offset = address.wrapping_sub(Self::FIRST_SLOT);
        if offset < Self::WORKERS * Self::SLOT_BYTES {
            Some(Self::worker(offset / Self::SLOT_BYTES))
        } else {
            None
        }
    }

    /// Number of the worker.
    #[must_use]
    pub const fn index(self) -> u64 {
        self.slot.saturating_sub(Self::FIRST_SLOT) / Self::SLOT_BYTES
    }

    /// Whether this is [`Layout::LOW`].
    #[must_use]
    pub const fn is_low(self) -> bool {
        self.slot == 0
    }

    /// First byte of the memory window.
    #[must_use]
    pub const fn window(self) -> u64 {
        self.slot + if self.is_low() { 0x2_0000 } else { 0x4_0000 }
    }

    /// First byte of the code area.
    #[must_use]
    pub const fn code(self) -> u64 {
        self.slot + if self.is_low() { 0x3_0000 } else { 0xc_0000 }
    }

    /// Whether an access may be executed: inside the slot and clear of the code area.
    #[must_use]
    pub const fn allows(self, address: u64, size_bytes: u64) -> bool {
        if self.is_low() {
            // The window and as much as string instructions need around it.
            let offset = address.wrapping_sub(self.window() - 0x2000);
            return offset < 0x7000 && offset + size_bytes <= 0x7000;
        }
        address >= self.slot
            && size_bytes <= 0x8_0000
            && address.wrapping_sub(self.slot) <= 0x8_0000 - size_bytes
    }
}

/// x87, SSE and AVX state: the FXSAVE64 image (SDM Vol 1 10.5.1) and the upper halves of YMM0 to YMM15.
#[derive(Clone, PartialEq, Eq)]
pub struct Extended {
    /// FXSAVE64 image.
    pub legacy: [u8; 512],
    /// Upper halves of the YMM registers.
    pub ymm_high: [u128; 16],
}

impl Default for Extended {
    /// The state after FNINIT with MXCSR at its reset value.
    fn default() -> Self {
        let mut state = Self {
            legacy: [0; 512],
            ymm_high: [0; 16],
        };
        state.set_fcw(0x037f);
        state.set_mxcsr(0x1f80);
        state
    }
}

impl Extended {
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.legacy[at], self.legacy[at + 1]])
    }

    fn set_word(&mut self, at: usize, value: u16) {
        self.legacy[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// x87 control word.
    #[must_use]
    pub fn fcw(&self) -> u16 {
        self.word(0)
    }

    /// Sets the x87 control word.
    pub fn set_fcw(&mut self, value: u16) {
        self.set_word(0, value);
    }

    /// x87 status word.
    #[must_use]
    pub fn fsw(&self) -> u16 {
        self.word(2)
    }

    /// Sets the x87 status word.
    pub fn set_fsw(&mut self, value: u16) {
        self.set_word(2, value);
    }

    /// Abridged x87 tag word: bit i set when physical register i is not empty.
    #[must_use]
    pub fn abridged_tags(&self) -> u8 {
        self.legacy[4]
    }

    /// Sets the abridged tag word.
    pub fn set_abridged_tags(&mut self, value: u8) {
        self.legacy[4] = value;
    }

    /// MXCSR.
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        u32::from(self.word(24)) | u32::from(self.word(26)) << 16
    }

    /// Sets MXCSR.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.legacy[24..28].copy_from_slice(&value.to_le_bytes());
    }

    /// ST(i): 80 bits.
    #[must_use]
    pub fn st(&self, i: usize) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes.copy_from_slice(&self.legacy[32 + 16 * i..42 + 16 * i]);
        bytes
    }

    /// Sets ST(i).
    pub fn set_st(&mut self, i: usize, value: [u8; 10]) {
        self.legacy[32 + 16 * i..42 + 16 * i].copy_from_slice(&value);
    }

    /// XMMi.
    #[must_use]
    pub fn xmm(&self, i: usize) -> u128 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.legacy[160 + 16 * i..176 + 16 * i]);
        u128::from_le_bytes(bytes)
    }

    /// Sets XMMi.
    pub fn set_xmm(&mut self, i: usize, value: u128) {
        self.legacy[160 + 16 * i..176 + 16 * i].copy_from_slice(&value.to_le_bytes());
    }
}

/// The user-visible registers.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP: an offset in the code segment.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Vector and floating-point state.
    pub extended: Extended,
}

/// Bytes put into the writable part of the window before a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Offset in the window.
    pub offset: usize,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// One instruction with its inputs.
#[derive(Clone)]
pub struct Case {
    /// The instruction as iced decodes it.
    pub instruction: Instruction,
    /// The encoding.
    pub bytes: Vec<u8>,
    /// Where the subject has its memory.
    pub layout: Layout,
    /// Mode and segments before.
    pub setting: Setting,
    /// Registers before; RIP is where the instruction lies.
    pub before: Registers,
    /// What differs from the window's background.
    pub patches: Vec<Patch>,
    /// Where a near branch goes when it is taken, as an offset in the code segment; the code area is filled
    /// with INT3 elsewhere.
    pub branch_target: Option<u64>,
}

impl Case {
    /// `bytes` in the middle of the code area in 64-bit mode, registers zero but RSP (middle of the window)
    /// and RFLAGS.
    #[must_use]
    pub fn new(layout: Layout, bytes: &[u8]) -> Self {
        Self::within(layout, Setting::long(layout), bytes)
    }

    /// The same in `setting`.
    #[must_use]
    pub fn within(layout: Layout, setting: Setting, bytes: &[u8]) -> Self {
        let mut before = Registers {
            rip: layout.code() + CODE_BYTES as u64 / 2 - setting.code().base,
            rflags: 0x202,
            ..Registers::default()
        };
        before.gpr[4] = layout.window() + 4096 - setting.segments[2].base;
        let instruction =
            Decoder::with_ip(setting.bits, bytes, before.rip, DecoderOptions::NONE).decode();
        Self {
            instruction,
            bytes: bytes.to_vec(),
            layout,
            setting,
            before,
            patches: Vec::new(),
            branch_target: None,
        }
    }

    /// Address of the next instruction: an offset in the code segment.
    #[must_use]
    pub fn next_rip(&self) -> u64 {
        self.before.rip + self.bytes.len() as u64
    }

    /// Linear address of the instruction.
    #[must_use]
    pub fn code(&self) -> u64 {
        self.setting.code().base + self.before.rip
    }

    /// Whether a trap of INT3 that left `rip` and `cs` comes from the code area's filling: a branch went
    /// where no exit is.
    #[must_use]
    pub fn is_elsewhere(&self, rip: u64, cs: u16) -> bool {
        let landed = rip.wrapping_sub(1);
        landed < self.before.rip
            || landed >= self.next_rip()
            || cs != self.setting.segments[CS].selector
    }

    /// The selectors before.
    #[must_use]
    pub fn selectors(&self) -> [u16; 6] {
        self.setting.segments.map(|s: Segment| s.selector)
    }
}

/// An exception as the processor reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector (SDM Vol 3 Table 6-1).
    pub vector: u8,
    /// Error code, zero for vectors without one.
    pub error_code: u32,
    /// CR2, for #PF; zero otherwise.
    pub cr2: u64,
}

/// What came of a case.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// ES, CS, SS, DS, FS, GS after.
    pub selectors: [u16; 6],
    /// Bases of FS and GS after, in 64-bit mode, where a program may read them.
    pub bases: [u64; 2],
    /// The exception the instruction raised, if it did.
    pub exception: Option<Exception>,
    /// Registers after; with an exception, as its handler would find them (RF apart, which is cleared).
    pub after: Registers,
    /// Window bytes that differ from what they were before: offset and new value, ascending.
    pub memory: Vec<(usize, u8)>,
}

impl Outcome {
    /// Clears what a change of mode leaves undefined: R8 to R15 and the upper halves of the others outside
    /// of 64-bit mode (SDM Vol 1 3.4.1.1). The RPL of a null selector goes when the host's kernel returns from
    /// an exception (SDM Vol 2, IRET, to an outer level).
    pub(crate) fn clear_undefined(&mut self, case: &Case) {
        for (register, selector) in self.selectors.iter_mut().enumerate() {
            if register != CS && register != SS && *selector < 4 {
                *selector = 0;
            }
        }
        if case.setting.bits == 64 && self.selectors[CS] == case.setting.segments[CS].selector {
            return;
        }
        for (i, value) in self.after.gpr.iter_mut().enumerate() {
            *value &= if i < 8 { 0xffff_ffff } else { 0 };
        }
        self.bases = [0; 2];
    }
}

/// Something that executes cases.
pub trait Subject {
    /// Executes one case at CPL 3.
    fn execute(&mut self, case: &Case) -> Outcome;
}
