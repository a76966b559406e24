//! Facts about the modelled processor: register bits, MSRs, descriptors, page-table bits, VMCS fields, exit
//! reasons. No behaviour beyond reading and writing bit fields. Each item names its manual section
//! ("SDM" is Intel's Software Developer's Manual, order number 325462, "APM" AMD's, publication 24593).

pub mod cr;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod rflags;
pub mod segment;
pub mod vmx;
