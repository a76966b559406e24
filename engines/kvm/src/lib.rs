//! The KVM engine: guests on the host's virtualization hardware, through `/dev/kvm`.
//!
//! What is modelled where: the processor, the local APICs, the PIC, the I/O APIC and the PIT are the kernel's;
//! the board behind the ports and the memory holes is the monitor's, reached through
//! [`vcpu::Platform::pio_read`] and its three siblings. The TSC is the host's. CPUID is the given table less
//! what the host cannot do, with KVM's own leaves at 40000000h, so that guests use its paravirtual clock.
//!
//! Invariants: a vCPU holds its VM, a VM holds the guest's RAM, so memory the kernel has been told of outlives
//! every descriptor that can run a guest on it. One thread at a time is in [`vcpu::Vcpu::run`] (`&mut self`);
//! other threads touch only one byte of the page shared with the kernel, atomically.

mod cpuid;
mod engine;
mod kick;
mod msrs;
mod probe;
mod run_page;
mod speed;
mod state;
mod vcpu_fd;

#[cfg(test)]
mod tests;

pub use engine::KvmEngine;
pub use probe::{KvmModule, KvmProbe, Node, probe};

use vcpu::EngineError;

/// The name of the engine on the command line.
const NAME: &str = "kvm";

/// Makes an engine error of what an ioctl answered.
fn host(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> EngineError {
    move |e| EngineError::Host {
        what,
        source: std::io::Error::from_raw_os_error(e.errno()),
    }
}

/// Makes an engine error of the thread's `errno`.
fn host_errno(what: &'static str) -> EngineError {
    EngineError::Host {
        what,
        source: std::io::Error::last_os_error(),
    }
}

fn unsupported(what: impl Into<String>, advice: impl Into<String>) -> EngineError {
    EngineError::Unsupported {
        engine: NAME,
        what: what.into(),
        advice: advice.into(),
    }
}
