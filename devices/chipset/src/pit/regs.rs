//! Ports and command bits of the 8254 and of port 61h (8254 datasheet 231164; ICH9 datasheet 13.3 and 13.7.1).

/// Region of the four ports at 40h.
pub const REGION_COUNTERS: u8 = 0;
/// Region of port 61h.
pub const REGION_CONTROL: u8 = 1;
/// First port of the counters.
pub const PORT_COUNTERS: u16 = 0x40;
/// NMI status and control port.
pub const PORT_CONTROL: u16 = 0x61;
/// ISA interrupt of channel 0.
pub const IRQ: u32 = 0;

/// The input clock of all three channels.
pub const CLOCK_HZ: u64 = 1_193_182;

/// Offset of the control word.
pub const CONTROL_WORD: u64 = 3;

/// Read-back: do not latch the count.
pub const READ_BACK_NO_COUNT: u8 = 1 << 5;
/// Read-back: do not latch the status.
pub const READ_BACK_NO_STATUS: u8 = 1 << 4;

/// Port 61h: gate of channel 2.
pub const CONTROL_GATE2: u8 = 1 << 0;
/// Port 61h: the bits software may set.
pub const CONTROL_WRITABLE: u8 = 0x0f;
/// Port 61h: toggles with each memory refresh.
pub const CONTROL_REFRESH: u8 = 1 << 4;
/// Port 61h: output of channel 2.
pub const CONTROL_OUT2: u8 = 1 << 5;
/// Input clocks between memory refreshes: 15.085 us.
pub const REFRESH_TICKS: u64 = 18;
