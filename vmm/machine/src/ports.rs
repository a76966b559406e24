//! The board's fixed I/O ports, as ACPI and the bus know them.

use chipset::acpi_pm::regs as pm;
use chipset::serial;

/// First serial port.
pub const COM1: u16 = serial::regs::COM1;
/// Its ISA interrupt.
pub const COM1_IRQ: u8 = serial::regs::COM1_IRQ as u8;
/// PM1a event block: status, enable (ACPI 6.5, 4.8.4.1).
pub const PM1A_EVENT: u16 = pm::PORT + pm::PM1_EVENT;
/// Its length.
pub const PM1A_EVENT_LEN: u8 = pm::PM1_EVENT_BYTES as u8;
/// PM1a control block (ACPI 6.5, 4.8.4.2).
pub const PM1A_CONTROL: u16 = pm::PORT + pm::PM1_CONTROL;
/// Its length.
pub const PM1A_CONTROL_LEN: u8 = pm::PM1_CONTROL_BYTES as u8;
/// PM timer (ACPI 6.5, 4.8.4.3).
pub const PM_TIMER: u16 = pm::PORT + pm::PM_TIMER;
/// Its length.
pub const PM_TIMER_LEN: u8 = pm::PM_TIMER_BYTES as u8;
/// General-purpose event block 0: status, enable (ACPI 6.5, 4.8.5.1).
pub const GPE0: u16 = pm::PORT + pm::GPE0;
/// Its length.
pub const GPE0_LEN: u8 = pm::GPE0_BYTES as u8;
/// The ICH9's reset control register.
pub const RESET_CONTROL: u16 = pm::RESET_PORT;
/// What a guest writes to it for a full reset (ICH9 datasheet 13.7.5).
pub const RESET_VALUE: u8 = pm::RESET_VALUE;
/// SLP_TYP of S5 (ICH9 datasheet 13.8.3.3).
pub const SLEEP_TYPE_S5: u8 = pm::SLP_TYP_S5 as u8;
