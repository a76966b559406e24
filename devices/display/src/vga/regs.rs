//! Ports and register bits (IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem", "VGA").

/// First and last port of the display's own.
pub(crate) const FIRST_PORT: u16 = 0x3b0;
/// Number of ports from [`FIRST_PORT`] on: up to 3DFh.
pub(crate) const PORTS: u16 = 0x30;

pub(crate) const ATTRIBUTE: u16 = 0x3c0;
pub(crate) const ATTRIBUTE_READ: u16 = 0x3c1;
/// Written: miscellaneous output. Read: input status 0.
pub(crate) const MISCELLANEOUS: u16 = 0x3c2;
pub(crate) const SEQUENCER_INDEX: u16 = 0x3c4;
pub(crate) const SEQUENCER: u16 = 0x3c5;
pub(crate) const DAC_MASK: u16 = 0x3c6;
/// Written: index for reading. Read: state.
pub(crate) const DAC_READ_INDEX: u16 = 0x3c7;
pub(crate) const DAC_WRITE_INDEX: u16 = 0x3c8;
pub(crate) const DAC_DATA: u16 = 0x3c9;
pub(crate) const FEATURE_READ: u16 = 0x3ca;
pub(crate) const MISCELLANEOUS_READ: u16 = 0x3cc;
pub(crate) const GRAPHICS_INDEX: u16 = 0x3ce;
pub(crate) const GRAPHICS: u16 = 0x3cf;
/// At 3D0h with colour, at 3B0h without: CRT controller index, data, and input status 1.
pub(crate) const COLOUR_BASE: u16 = 0x3d0;
pub(crate) const MONO_BASE: u16 = 0x3b0;
pub(crate) const CRTC_INDEX: u16 = 4;
pub(crate) const CRTC: u16 = 5;
pub(crate) const STATUS_1: u16 = 0xa;

/// Sequencer registers.
pub(crate) mod sequencer {
    pub const CLOCKING: usize = 1;
    pub const MAP_MASK: usize = 2;
    pub const CHARACTER_MAP: usize = 3;
    pub const MEMORY_MODE: usize = 4;
    pub const COUNT: usize = 5;
    /// CLOCKING: characters are 8 dots wide, not 9.
    pub const DOTS_8: u8 = 1 << 0;
    /// CLOCKING: every dot takes two clocks.
    pub const HALF_CLOCK: u8 = 1 << 3;
    /// CLOCKING: the screen is off.
    pub const SCREEN_OFF: u8 = 1 << 5;
    /// MEMORY_MODE: addresses are sequential, not odd and even.
    pub const SEQUENTIAL: u8 = 1 << 2;
    /// MEMORY_MODE: the two low address bits select the plane.
    pub const CHAIN_4: u8 = 1 << 3;
}

/// Graphics controller registers.
pub(crate) mod graphics {
    pub const SET_RESET: usize = 0;
    pub const ENABLE_SET_RESET: usize = 1;
    pub const COLOUR_COMPARE: usize = 2;
    pub const ROTATE: usize = 3;
    pub const READ_MAP: usize = 4;
    pub const MODE: usize = 5;
    pub const MISCELLANEOUS: usize = 6;
    pub const COLOUR_CARE: usize = 7;
    pub const BIT_MASK: usize = 8;
    pub const COUNT: usize = 9;
    /// MODE: reads compare colours.
    pub const READ_COMPARE: u8 = 1 << 3;
    /// MODE: two bits of a pixel in one plane (CGA).
    pub const SHIFT_INTERLEAVED: u8 = 1 << 5;
    /// MODE: 256 colours.
    pub const SHIFT_256: u8 = 1 << 6;
}

/// CRT controller registers.
pub(crate) mod crtc {
    pub const DISPLAY_END: usize = 0x01;
    pub const OVERFLOW: usize = 0x07;
    pub const MAX_SCAN_LINE: usize = 0x09;
    pub const CURSOR_START: usize = 0x0a;
    pub const CURSOR_END: usize = 0x0b;
    pub const START_HIGH: usize = 0x0c;
    pub const CURSOR_HIGH: usize = 0x0e;
    pub const RETRACE_END: usize = 0x11;
    pub const VERTICAL_DISPLAY_END: usize = 0x12;
    pub const OFFSET: usize = 0x13;
    pub const UNDERLINE: usize = 0x14;
    pub const MODE: usize = 0x17;
    pub const COUNT: usize = 0x19;
    /// RETRACE_END: registers 0 to 7 cannot be written.
    pub const PROTECT: u8 = 1 << 7;
    /// OVERFLOW: the one bit that can be written all the same (line compare, bit 8).
    pub const LINE_COMPARE_8: u8 = 1 << 4;
    /// UNDERLINE: addresses are doublewords.
    pub const DOUBLEWORD: u8 = 1 << 6;
    /// MODE: address bit 13 is not replaced by row scan bit 0.
    pub const NO_ROW_0: u8 = 1 << 0;
    /// MODE: address bit 14 is not replaced by row scan bit 1.
    pub const NO_ROW_1: u8 = 1 << 1;
    /// MODE: the highest address bit, not bit 13, becomes bit 0 of word addresses.
    pub const WRAP_15: u8 = 1 << 5;
    /// MODE: addresses are bytes, not words.
    pub const BYTE: u8 = 1 << 6;
}

/// Attribute controller registers.
pub(crate) mod attribute {
    pub const MODE: usize = 0x10;
    pub const PLANE_ENABLE: usize = 0x12;
    pub const COLOUR_SELECT: usize = 0x14;
    pub const COUNT: usize = 0x15;
    /// MODE: graphics.
    pub const GRAPHICS: u8 = 1 << 0;
    /// MODE: the ninth dot of characters C0h to DFh repeats the eighth.
    pub const LINE_GRAPHICS: u8 = 1 << 2;
    /// MODE: attribute bit 7 blinks.
    pub const BLINK: u8 = 1 << 3;
    /// MODE: bits 5 and 4 of a colour come from COLOUR_SELECT.
    pub const PALETTE_SELECT: u8 = 1 << 7;
}

/// Bits of the miscellaneous output register.
pub(crate) mod output {
    /// Ports at 3Dxh.
    pub const COLOUR: u8 = 1 << 0;
    /// The processor reaches the memory.
    pub const MEMORY: u8 = 1 << 1;
}
