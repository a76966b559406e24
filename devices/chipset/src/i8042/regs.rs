//! Ports, status and command bits of the keyboard controller (IBM PS/2 Technical Reference, keyboard and auxiliary
//! device controller).

/// Region of port 60h.
pub const REGION_DATA: u8 = 0;
/// Region of port 64h.
pub const REGION_COMMAND: u8 = 1;
/// Region of port 92h.
pub const REGION_FAST: u8 = 2;
/// Data port.
pub const PORT_DATA: u16 = 0x60;
/// Command and status port.
pub const PORT_COMMAND: u16 = 0x64;
/// Fast A20 and reset port.
pub const PORT_FAST: u16 = 0x92;
/// ISA interrupt of the keyboard.
pub const KEYBOARD_IRQ: u32 = 1;
/// ISA interrupt of the auxiliary device.
pub const AUX_IRQ: u32 = 12;

/// Status: output buffer full.
pub const STATUS_OBF: u8 = 1 << 0;
/// Status: the self-test passed.
pub const STATUS_SYS: u8 = 1 << 2;
/// Status: the last write was a command.
pub const STATUS_COMMAND: u8 = 1 << 3;
/// Status: the keyboard is not locked.
pub const STATUS_UNLOCKED: u8 = 1 << 4;
/// Status: the output buffer's byte is the auxiliary device's.
pub const STATUS_AUX: u8 = 1 << 5;
/// Status: the device did not answer.
pub const STATUS_TIMEOUT: u8 = 1 << 6;

/// Controller command byte: keyboard interrupt.
pub const MODE_KEYBOARD_INT: u8 = 1 << 0;
/// Controller command byte: auxiliary interrupt.
pub const MODE_AUX_INT: u8 = 1 << 1;
/// Controller command byte: system flag.
pub const MODE_SYS: u8 = 1 << 2;
/// Controller command byte: keyboard disabled.
pub const MODE_KEYBOARD_OFF: u8 = 1 << 4;
/// Controller command byte: auxiliary device disabled.
pub const MODE_AUX_OFF: u8 = 1 << 5;
/// Controller command byte: scan codes are translated to set 1.
pub const MODE_TRANSLATE: u8 = 1 << 6;

/// Output port: the reset line, active low.
pub const OUTPUT_NOT_RESET: u8 = 1 << 0;
/// Output port: A20 is open.
pub const OUTPUT_A20: u8 = 1 << 1;
/// Output port: the keyboard's interrupt.
pub const OUTPUT_KEYBOARD_INT: u8 = 1 << 4;
/// Output port: the auxiliary device's interrupt.
pub const OUTPUT_AUX_INT: u8 = 1 << 5;
/// Output port: clock and data lines of both devices, high when idle.
pub const OUTPUT_LINES: u8 = 0xcc;

/// Test inputs: the keyboard's clock line.
pub const TEST_KEYBOARD_CLOCK: u8 = 1 << 0;
/// Test inputs: the auxiliary device's clock line.
pub const TEST_AUX_CLOCK: u8 = 1 << 1;

/// Port 92h: the rising edge of this resets.
pub const FAST_RESET: u8 = 1 << 0;
/// Port 92h: A20 is open.
pub const FAST_A20: u8 = 1 << 1;
