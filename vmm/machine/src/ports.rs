//! The board's fixed I/O ports, as ACPI and the bus know them.

/// First serial port.
pub const COM1: u16 = 0x3f8;
/// Its ISA interrupt.
pub const COM1_IRQ: u8 = 4;
/// PM1a event block: status, enable (ACPI 6.5, 4.8.4.1).
pub const PM1A_EVENT: u16 = 0x600;
/// Its length.
pub const PM1A_EVENT_LEN: u8 = 4;
/// PM1a control block (ACPI 6.5, 4.8.4.2).
pub const PM1A_CONTROL: u16 = 0x604;
/// Its length.
pub const PM1A_CONTROL_LEN: u8 = 2;
/// PM timer (ACPI 6.5, 4.8.4.3).
pub const PM_TIMER: u16 = 0x608;
/// Its length.
pub const PM_TIMER_LEN: u8 = 4;
/// The ICH9's reset control register.
pub const RESET_CONTROL: u16 = 0xcf9;
/// What a guest writes to it for a full reset: system reset and CPU reset (ICH9 datasheet 13.7.5).
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of S5 (ICH9 datasheet 13.8.3.3).
pub const SLEEP_TYPE_S5: u8 = 7;
