//! The PC board's chips: interrupt controllers, timers, clock, serial port, keyboard controller, power management, and
//! what firmware needs: its configuration device and the flash for its variables.
//!
//! Each device is a folder: `mod` is its wiring to the bus, `regs` its layout, `model` the state machine, which knows
//! no bus and no clock but the virtual time it is given.

pub mod acpi_pm;
pub mod control;
pub mod coprocessor;
pub mod debug_ports;
pub mod fabric;
pub mod flash;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
mod line;
pub mod message;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod serial;

pub use control::SystemControl;

#[cfg(test)]
mod testing;
