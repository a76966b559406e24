//! The life of a VM: its threads and the one driver that decides.
//!
//! ```text
//!            Start             Stop, guest request,
//!            |                 shutdown, failure, time over
//!  Created --+--> Running ----------------------------------> Stopping --> Stopped
//!     |                                                           (all vCPUs have left)
//!     +------------------ Stop -------------------------------------------^
//! ```
//!
//! One driver thread owns a VM. Everything that happens to it (a request of the user, a request of the
//! guest, a vCPU that leaves its run, the time limit) is a message to the driver; what is admitted in which
//! state is the pure function [`admission::admit`]. Invariants: a VM has exactly one result; [`VmHandle::wait`]
//! always returns; a panic on any of its threads becomes an error of the run.

pub mod admission;
pub mod confine;
mod console;
mod driver;
mod handle;
mod threads;

pub use console::Lost;
pub use driver::{RunError, RunOutcome, RunReport, Statistics};
pub use handle::{Console, RunOptions, StartError, Stopper, Vm, VmHandle};
pub use vcpu::Profile;

#[cfg(test)]
mod tests;
