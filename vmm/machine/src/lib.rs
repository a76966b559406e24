//! The board.

pub mod acpi;
pub mod boot;
pub mod config;
pub mod memory;
mod parking;
pub mod ports;
mod board;
mod platform;
mod signal;
