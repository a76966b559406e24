//! The threads of a running VM: one for each vCPU, and the timer's where the board needs one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;

use machine::Board;
use vcpu::{EngineError, Profile, RunExit, Vcpu};

use crate::driver::Message;

/// Why a vCPU's thread is over.
#[derive(Debug)]
pub(crate) enum Left {
    /// It was asked to.
    Stopped,
    /// Triple fault.
    Shutdown,
    /// The engine failed.
    Failed(EngineError),
    /// A bug: the text of the panic.
    Panicked(String),
}

/// Runs the vCPU until it leaves and tells the driver, whatever happens.
pub(crate) fn run(index: u32, mut vcpu: Box<dyn Vcpu>, driver: &Sender<Message>) {
    let left = match catch_unwind(AssertUnwindSafe(|| vcpu.run())) {
        Ok(Ok(RunExit::Stopped)) => Left::Stopped,
        Ok(Ok(RunExit::Shutdown)) => Left::Shutdown,
        Ok(Err(e)) => Left::Failed(e),
        Err(panic) => Left::Panicked(panic_text(&*panic)),
    };
    // A vCPU that panicked may panic again when asked.
    let (retired, profile) = match left {
        Left::Panicked(_) => (None, Profile::default()),
        _ => {
            log_state(index, &mut *vcpu);
            (vcpu.retired(), vcpu.profile())
        }
    };
    // The driver outlives its vCPU threads unless it panicked itself; then nobody listens.
    let _ = driver.send(Message::Left {
        index,
        left,
        retired,
        profile,
    });
    let _ = catch_unwind(AssertUnwindSafe(|| drop(vcpu)));
}

/// Where the vCPU stands at the end, for whoever looks for the reason.
fn log_state(index: u32, vcpu: &mut dyn Vcpu) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    match vcpu.state() {
        Ok(s) => tracing::debug!(
            vcpu = index,
            rip = format_args!("{:#x}", s.rip),
            rflags = format_args!("{:#x}", s.rflags),
            cr0 = format_args!("{:#x}", s.system.cr0),
            cr2 = format_args!("{:#x}", s.system.cr2),
            cr3 = format_args!("{:#x}", s.system.cr3),
            cr4 = format_args!("{:#x}", s.system.cr4),
            gpr = format_args!("{:x?}", s.gpr),
            activity = ?s.mp_state,
            "the vCPU left its run"
        ),
        Err(error) => tracing::debug!(vcpu = index, %error, "the vCPU left its run"),
    }
}

/// Keeps the devices' time until the board is told to stop.
pub(crate) fn keep_time(board: &Board, driver: &Sender<Message>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| board.keep_time())) {
        let _ = driver.send(Message::TimerPanicked(panic_text(&*panic)));
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
