//! PCI Express: configuration space, the host with its configuration mechanisms and windows, bridge functions, INTx.
//!
//! Sources: PCI Local Bus 3.0, PCI Express Base 4.0. [`PciHost`] is the place of all functions on the bus: it decodes
//! configuration accesses (ports CF8h/CFCh and ECAM) and the functions' base address registers. A function holds a
//! [`ConfigSpace`] and, if it interrupts, [`Interrupts`].

mod config;
mod function;
mod host;
mod interrupts;
mod intx;
mod q35;

pub use config::{Bar, BarKind, ConfigError, ConfigSpace, Identity, ROM_BAR, regs};
pub use function::{Bdf, EndpointFunction, SharedFunction};
pub use host::{HostConfig, PciError, PciHost};
pub use interrupts::{FunctionWiring, INTA, Interrupts, MsixLayout};
pub use intx::{IntxRouter, PIRQS};
pub use q35::{HostBridge, IsaBridge, MemoryMapSink, PAMS};
