//! The machine: from a configuration to a board with an engine, devices, memory map, ACPI tables and a
//! loaded kernel. It owns no threads; `lifecycle` runs it.
//!
//! Engines and devices meet here and only here: a vCPU reaches the devices through its
//! [`vcpu::Platform`], which is [`board::Board`]'s face for one vCPU; devices reach vCPUs through interrupt
//! lines, which end in the software interrupt controllers or in the engine's own.

pub mod acpi;
pub mod board;
pub mod boot;
pub mod config;
mod contents;
mod control;
mod devices;
mod disks;
pub mod engine;
pub mod firmware;
mod functions;
mod machine;
pub mod memory;
mod parking;
mod platform;
pub mod ports;
mod ports_platform;
mod signal;
pub mod smbios;

pub use board::Board;
pub use boot::BootProtocol;
pub use bus::ClockMode;
pub use chipset::i8042::Typed;
pub use chipset::serial::{SerialInput, SerialOutput};
pub use config::{ConfigError, DisplayConfig, Image, MachineConfig, Module};
pub use contents::MemoryContents;
pub use control::{GuestRequest, RequestSink};
pub use disks::{DiskConfig, MAX_DISKS};
pub use display::{Frame, Screen};
pub use engine::{EngineKind, Translation, UnfitEngine};
pub use firmware::{Firmware, FirmwareError, Variables};
pub use machine::{CRYSTAL_HZ, Machine, MachineError, Wiring};
pub use signal::VcpuLine;
