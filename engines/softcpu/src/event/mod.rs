//! Delivery of exceptions and interrupts through the IDT (SDM Vol 3 chapter 6), and segment loading.

mod deliver;
mod init;
mod segments;
mod v8086;

pub use segments::read_descriptor_access;
pub(crate) use segments::segment_of;
