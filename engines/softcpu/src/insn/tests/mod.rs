//! Single instructions against the manual.

mod debug;
mod decoding;
mod events;
mod gates;
mod paging;
mod real;
mod stack;
mod state;
mod system;
mod tasks;
mod v8086;
mod vendor;
mod vme;
mod x87;
