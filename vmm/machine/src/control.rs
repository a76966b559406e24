//! What the guest asks of the machine around it: off, reset, the debug-exit port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chipset::SystemControl;

use crate::signal::VcpuLine;

/// A request of the guest that ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// ACPI S5.
    PowerOff,
    /// A reset by reset register, keyboard controller or port 92h.
    Reset,
    /// A write of this value to the debug-exit port.
    DebugExit(u8),
}

/// Who is told of the guest's request. Called once, on a vCPU's thread, with a device's lock held: it
/// notes the request and returns.
pub type RequestSink = Box<dyn Fn(GuestRequest) + Send + Sync>;

/// Passes on the first request and stops all vCPUs at their next instruction boundaries, so that a guest
/// does not run on after it has switched itself off.
pub(crate) struct Control {
    lines: Vec<Arc<VcpuLine>>,
    sink: RequestSink,
    requested: AtomicBool,
}

impl Control {
    pub(crate) fn new(lines: Vec<Arc<VcpuLine>>, sink: RequestSink) -> Self {
        Self {
            lines,
            sink,
            requested: AtomicBool::new(false),
        }
    }

    fn request(&self, request: GuestRequest) {
        if !self.requested.swap(true, Ordering::SeqCst) {
            (self.sink)(request);
        }
        for line in &self.lines {
            line.stop();
        }
    }
}

impl SystemControl for Control {
    fn power_off(&self) {
        self.request(GuestRequest::PowerOff);
    }
    fn reset(&self) {
        self.request(GuestRequest::Reset);
    }
    fn debug_exit(&self, code: u8) {
        self.request(GuestRequest::DebugExit(code));
    }
}
