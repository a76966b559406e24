//! The seam between the board and its devices: address decoding, interrupt lines, MSIs, virtual time; and between disk
//! devices and what they store their sectors in.
//!
//! A [`Device`] is a state machine that is told the virtual time on every call; it owns no clock, thread
//! or timer. When it wants to act later it says so through [`Device::deadline`]; the [`Bus`] re-reads that
//! after every access and every [`Device::advance`], so the board needs to look at one number only.

mod block;
mod clock;
mod decode;
mod line;
mod turn;

pub use block::{BlockBackend, BlockError, SECTOR_BYTES, check_range};
pub use clock::{Clock, ClockMode, RealTime, VirtualTime};
pub use decode::{Bus, BusBuilder, BusError, Device, Region, SharedDevice};
pub use line::{IrqLine, LineSink, Msi, MsiSink};
pub use turn::{TURN_BYTES, TURN_NS, Turn};
