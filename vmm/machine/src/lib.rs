//! The board.

pub mod acpi;
pub mod boot;
pub mod config;
pub mod memory;
mod parking;
pub mod ports;
