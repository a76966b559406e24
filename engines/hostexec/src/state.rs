//! The extended register state of a guest processor, as this crate works on it.

/// MXCSR after power-up and reset (SDM Vol. 1, 10.2.3).
pub const MXCSR_RESET: u32 = 0x1f80;
/// x87 control word after power-up and reset (SDM Vol. 3, 10.1, table "IA-32 and Intel 64 processor states").
pub const FCW_POWER_UP: u16 = 0x0040;
/// x87 control word after FNINIT (SDM Vol. 1, 8.1.5).
pub const FCW_FNINIT: u16 = 0x037f;
/// The MXCSR bits that exist: flags, DAZ, masks, rounding control and FTZ (SDM Vol. 1, 10.2.3).
pub const MXCSR_MASK: u32 = 0xffff;

/// Guest YMM registers, x87/MMX state and MXCSR.
///
/// `fx` is an FXSAVE image in its 64-bit form (SDM Vol. 1, 10.5.1) of which only the x87 part is
/// authoritative: FCW, FSW, abridged FTW, FOP, FIP, FDP and the ST/MM registers. Its MXCSR and XMM fields are
/// scratch. FCS and FDS are not kept: the modelled processor deprecates them
/// (CPUID.7.0:EBX\[13\]), they read as zero.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct ExtState {
    /// YMM0 to YMM15, least significant quadword first; the low two are the XMM register.
    pub ymm: [[u64; 4]; 16],
    /// FXSAVE64 image; see the type's documentation for what counts.
    pub fx: [u8; 512],
    /// The guest's MXCSR.
    pub mxcsr: u32,
}

/// Byte offset of ST0/MM0 in [`ExtState::fx`]; the registers are 16 bytes apart.
pub(crate) const FX_ST: usize = 32;

impl ExtState {
    /// The state after power-up (SDM Vol. 3, 10.1): FCW 0040h, FTW 5555h (all registers hold +0.0), MXCSR 1F80h.
    pub fn power_up() -> ExtState {
        let mut state = ExtState::zeroed();
        state.set_fcw(FCW_POWER_UP);
        state.fx[4] = 0xff;
        state
    }

    /// The state after power-up followed by FNINIT: FCW 037Fh, all x87 registers empty.
    pub fn initialized() -> ExtState {
        let mut state = ExtState::zeroed();
        state.set_fcw(FCW_FNINIT);
        state
    }

    fn zeroed() -> ExtState {
        ExtState {
            ymm: [[0; 4]; 16],
            fx: [0; 512],
            mxcsr: MXCSR_RESET,
        }
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fx[at], self.fx[at + 1]])
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.fx[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    /// x87 control word.
    #[inline]
    pub fn fcw(&self) -> u16 {
        self.u16_at(0)
    }

    /// Sets the x87 control word.
    #[inline]
    pub fn set_fcw(&mut self, fcw: u16) {
        self.fx[..2].copy_from_slice(&fcw.to_le_bytes());
    }

    /// x87 status word.
    #[inline]
    pub fn fsw(&self) -> u16 {
        self.u16_at(2)
    }

    /// Sets the x87 status word.
    #[inline]
    pub fn set_fsw(&mut self, fsw: u16) {
        self.fx[2..4].copy_from_slice(&fsw.to_le_bytes());
    }

    /// Abridged tag word: bit `r` is set when physical register R`r` is not empty.
    #[inline]
    pub fn ftw_abridged(&self) -> u8 {
        self.fx[4]
    }

    /// Sets the abridged tag word.
    #[inline]
    pub fn set_ftw_abridged(&mut self, ftw: u8) {
        self.fx[4] = ftw;
    }

    /// Opcode of the last non-control x87 instruction (11 bits).
    #[inline]
    pub fn fop(&self) -> u16 {
        self.u16_at(6)
    }

    /// Address of the last non-control x87 instruction.
    #[inline]
    pub fn fip(&self) -> u64 {
        self.u64_at(8)
    }

    /// Address of the operand of the last non-control x87 instruction.
    #[inline]
    pub fn fdp(&self) -> u64 {
        self.u64_at(16)
    }

    /// Sets the opcode of the last x87 instruction.
    #[inline]
    pub fn set_fop(&mut self, fop: u16) {
        self.fx[6..8].copy_from_slice(&(fop & 0x7ff).to_le_bytes());
    }

    /// Sets the last x87 instruction pointer.
    #[inline]
    pub fn set_fip(&mut self, fip: u64) {
        self.fx[8..16].copy_from_slice(&fip.to_le_bytes());
    }

    /// Sets the last x87 data pointer.
    #[inline]
    pub fn set_fdp(&mut self, fdp: u64) {
        self.fx[16..24].copy_from_slice(&fdp.to_le_bytes());
    }

    /// Whether an unmasked x87 exception is pending: a waiting x87 or MMX instruction takes #MF instead of
    /// executing (SDM Vol. 1, 8.6).
    #[inline]
    pub fn x87_pending(&self) -> bool {
        let fsw = self.fsw();
        fsw & FSW_ES != 0 || fsw & !self.fcw() & FSW_EXCEPTIONS != 0
    }

    /// Top-of-stack pointer.
    #[inline]
    pub(crate) fn top(&self) -> u8 {
        (self.fsw() >> 11 & 7) as u8
    }

    /// The ten bytes of ST(`i`).
    pub fn st(&self, i: u8) -> [u8; 10] {
        let mut bytes = [0; 10];
        let at = FX_ST + usize::from(i & 7) * 16;
        bytes.copy_from_slice(&self.fx[at..at + 10]);
        bytes
    }

    /// MMX register `number`: the low 64 bits of physical register R`number`. The image holds the registers
    /// in stack order, so its place depends on TOP.
    pub fn mm(&self, number: u8) -> u64 {
        let slot = number.wrapping_sub(self.top()) & 7;
        self.u64_at(FX_ST + usize::from(slot) * 16)
    }
}

/// FSW: error summary.
pub(crate) const FSW_ES: u16 = 1 << 7;
/// FSW: busy, a copy of ES.
pub(crate) const FSW_BUSY: u16 = 1 << 15;
/// FSW: the six exception flags; in FCW the six masks.
pub(crate) const FSW_EXCEPTIONS: u16 = 0x3f;
/// FSW: top-of-stack pointer.
pub(crate) const FSW_TOP: u16 = 7 << 11;

/// Memory operand of the instruction to run: the caller copies in what it reads and copies out what it writes.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Bounce(pub [u8; Bounce::SIZE]);

impl Bounce {
    /// Bytes: at least as many as the largest operand (108, FNSAVE).
    pub const SIZE: usize = 512;

    /// A buffer of zeros.
    pub const fn new() -> Bounce {
        Bounce([0; Bounce::SIZE])
    }
}

impl Default for Bounce {
    fn default() -> Bounce {
        Bounce::new()
    }
}
