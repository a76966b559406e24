//! Delivery of exceptions and interrupts through the IDT (SDM Vol 3 chapter 6), segment loading, task switches.

mod deliver;
mod frame;
mod init;
mod segments;
mod task;
mod v8086;

pub use frame::Stack;
pub use segments::read_descriptor_access;
pub(crate) use segments::{null_stack, segment_of, v8086_segment};
pub use task::Via;
