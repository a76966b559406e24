//! Offsets and bits of a type 0 configuration header (PCI Local Bus 3.0 chapter 6).

/// Bytes of a function's configuration space.
pub const SIZE: usize = 4096;

/// Vendor ID.
pub const VENDOR: u16 = 0x00;
/// Device ID.
pub const DEVICE: u16 = 0x02;
/// Command.
pub const COMMAND: u16 = 0x04;
/// Status.
pub const STATUS: u16 = 0x06;
/// Revision ID; the class code follows.
pub const REVISION: u16 = 0x08;
/// Cache line size.
pub const CACHE_LINE: u16 = 0x0c;
/// Header type.
pub const HEADER_TYPE: u16 = 0x0e;
/// First base address register.
pub const BAR: u16 = 0x10;
/// Subsystem vendor ID; the subsystem ID follows.
pub const SUBSYSTEM: u16 = 0x2c;
/// Expansion ROM base address register.
pub const ROM: u16 = 0x30;
/// In it: the ROM decodes.
pub const ROM_ENABLE: u32 = 1;
/// Capabilities pointer.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin.
pub const INTERRUPT_PIN: u16 = 0x3d;
/// End of the header.
pub const HEADER_END: u16 = 0x40;

/// Command: I/O space.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: memory space.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: bus master.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: INTx is off.
pub const COMMAND_INTX_OFF: u16 = 1 << 10;
/// Command: the bits software may set.
pub const COMMAND_WRITABLE: u16 = 0x0547;

/// Status: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Status: INTx is asserted.
pub const STATUS_INTX: u16 = 1 << 3;
/// Status: the bits that writing one clears.
pub const STATUS_CLEARED: u16 = 0xf900;

/// Header type: the device has further functions.
pub const MULTIFUNCTION: u8 = 1 << 7;
