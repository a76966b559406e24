//! The board.

pub mod acpi;
pub mod boot;
pub mod config;
pub mod memory;
pub mod ports;
