//! Register layout of the I/O APIC (82093AA datasheet 3.1 and 3.2; ICH9 datasheet 13.5 for the EOI register).

/// Physical address of the registers.
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of address space the registers take.
pub const MMIO_SIZE: u64 = 0x1000;

/// Offset of the register select.
pub const IOREGSEL: u64 = 0x00;
/// Offset of the data window.
pub const IOWIN: u64 = 0x10;
/// Offset of the EOI register (version 20h).
pub const EOI: u64 = 0x40;

/// Index of the identification register.
pub const ID: u8 = 0x00;
/// Index of the version register.
pub const VERSION: u8 = 0x01;
/// Index of the arbitration register.
pub const ARBITRATION: u8 = 0x02;
/// Index of the first redirection entry's low half.
pub const REDIRECTION: u8 = 0x10;

/// Interrupt inputs.
pub const PINS: usize = 24;
/// Version 20h with 24 entries.
pub const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Entry: delivery status, read-only.
pub const DELIVERY_STATUS: u64 = 1 << 12;
/// Entry: logical destination mode.
pub const LOGICAL: u64 = 1 << 11;
/// Entry: remote IRR, read-only.
pub const REMOTE_IRR: u64 = 1 << 14;
/// Entry: level triggered.
pub const LEVEL: u64 = 1 << 15;
/// Entry: masked.
pub const MASKED: u64 = 1 << 16;
/// Entry: the bits software may set.
pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
