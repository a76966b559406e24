//! Register layout of the ACPI power-management block (ACPI 6.5 4.8; ICH9 datasheet 13.8.3).

/// Where the board puts the block.
pub const PORT: u16 = 0x600;
/// Ports the block takes.
pub const PORTS: u16 = 0x80;
/// ISA interrupt of the system control interrupt, level triggered.
pub const SCI_IRQ: u32 = 9;

/// Offset of PM1a_EVT_BLK: status, then enable.
pub const PM1_EVENT: u16 = 0x00;
/// Bytes of PM1a_EVT_BLK.
pub const PM1_EVENT_BYTES: u16 = 4;
/// Offset of PM1a_CNT_BLK.
pub const PM1_CONTROL: u16 = 0x04;
/// Bytes of PM1a_CNT_BLK.
pub const PM1_CONTROL_BYTES: u16 = 2;
/// Offset of PM_TMR_BLK.
pub const PM_TIMER: u16 = 0x08;
/// Bytes of PM_TMR_BLK; the counter has 32 bits (FADT flag TMR_VAL_EXT).
pub const PM_TIMER_BYTES: u16 = 4;
/// Offset of GPE0_BLK: status, then enable.
pub const GPE0: u16 = 0x20;
/// Bytes of GPE0_BLK.
pub const GPE0_BYTES: u16 = 16;
/// Offset of SMI_EN (ICH9 13.8.3.11).
pub const SMI_ENABLE: u16 = 0x30;
/// SMI_EN as it always reads: writes to the APM port make an SMI. By this SeaBIOS knows that system management mode
/// has been taken care of, and leaves it alone.
pub const SMI_ENABLE_VALUE: u8 = 1 << 5;

/// The PM timer's clock.
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// PM1 event: the timer's highest bit changed.
pub const PM1_TIMER: u16 = 1 << 0;
/// PM1 event: the global lock was released.
pub const PM1_GLOBAL: u16 = 1 << 5;
/// PM1 event: power button.
pub const PM1_POWER_BUTTON: u16 = 1 << 8;
/// PM1 event: sleep button.
pub const PM1_SLEEP_BUTTON: u16 = 1 << 9;
/// PM1 event: RTC alarm.
pub const PM1_RTC: u16 = 1 << 10;
/// PM1 event: woken from sleep; status only.
pub const PM1_WAKE: u16 = 1 << 15;
/// The events that can be enabled.
pub const PM1_ENABLES: u16 = PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC;

/// PM1 control: events raise SCI. Always set: the board has no legacy mode (FADT SMI_CMD is zero).
pub const SCI_EN: u16 = 1 << 0;
/// PM1 control: where the sleep type starts; three bits.
pub const SLP_TYP_SHIFT: u32 = 10;
/// PM1 control: enter the sleep type; reads zero.
pub const SLP_EN: u16 = 1 << 13;
/// PM1 control: the bits that keep what is written: BM_RLD, SLP_TYP.
pub const PM1_CONTROL_KEPT: u16 = 1 << 1 | 7 << SLP_TYP_SHIFT;
/// Sleep type of S5, for the DSDT's \_S5.
pub const SLP_TYP_S5: u16 = 7;
/// The sleep type by which firmware for virtual machines of this kind switches them off. The chip's manual has S0 there,
/// which nobody enters.
pub const SLP_TYP_OFF: u16 = 0;

/// The reset control port, for the FADT's RESET_REG.
pub const RESET_PORT: u16 = 0xcf9;
/// What the FADT's RESET_VALUE is to be: full reset.
pub const RESET_VALUE: u8 = 0x06;
/// Reset control: the rising edge of this resets.
pub const RESET_CPU: u8 = 1 << 2;
