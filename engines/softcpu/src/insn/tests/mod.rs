//! Single instructions against the manual.

mod decoding;
mod events;
mod paging;
mod stack;
mod state;
mod system;
mod v8086;
mod vendor;
