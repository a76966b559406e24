//! Single instructions against the manual.

mod debug;
mod decoding;
mod descriptors;
mod events;
mod forms;
mod gates;
mod keys;
mod monitor;
mod paging;
mod real;
mod stack;
mod state;
mod strings;
mod system;
mod tasks;
mod v8086;
mod vendor;
mod vme;
mod x87;
