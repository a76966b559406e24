//! Making a thread leave KVM_RUN.
//!
//! The order is what makes it race-free. The one who kicks raises the attention, sets `immediate_exit`, then
//! signals the thread that last announced itself. The vCPU's thread announces itself, then before each
//! KVM_RUN clears `immediate_exit` and only after that looks at the attention. So a kick either is seen in the
//! attention, or comes after that look and is found in `immediate_exit` by the kernel, or comes in guest
//! mode and is delivered by the signal.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use vcpu::EngineError;

use crate::run_page::RunPage;

/// What a vCPU shares with those who may interrupt it.
pub(crate) struct Kick {
    pub(crate) page: RunPage,
    /// Thread that is in `run`, 0 when none is.
    thread: AtomicI32,
}

impl Kick {
    pub(crate) fn new(page: RunPage) -> Self {
        Self {
            page,
            thread: AtomicI32::new(0),
        }
    }

    /// Announces the calling thread as the one to signal. Returns a guard that takes it back.
    pub(crate) fn announce(&self) -> Announced<'_> {
        unblock();
        // SAFETY: gettid has no preconditions.
        self.thread
            .store(unsafe { libc::gettid() }, Ordering::SeqCst);
        Announced(self)
    }

    /// Makes the vCPU leave KVM_RUN, now or as soon as it enters it.
    pub(crate) fn kick(&self) {
        self.page.set_immediate_exit(true);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: tgkill sends to a thread of this process only; where the thread is gone the kernel
            // refuses, where its id was reused the handler does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

/// See [`Kick::announce`].
pub(crate) struct Announced<'a>(&'a Kick);

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.0.thread.store(0, Ordering::SeqCst);
    }
}

/// The signal that interrupts KVM_RUN.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

/// Installs the signal's handler, once for the process. It does nothing, without SA_RESTART, so that system
/// calls return with EINTR.
pub(crate) fn install_handler() -> Result<(), EngineError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = *INSTALLED.get_or_init(|| {
        // SAFETY: all-zero is a valid `sigaction` (no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        // SAFETY: the handler touches nothing, so it is async-signal-safe.
        let r = unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) };
        if r == 0 {
            return Ok(());
        }
        Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    });
    installed.map_err(|e| EngineError::Host {
        what: "installing the vCPU signal's handler",
        source: std::io::Error::from_raw_os_error(e),
    })
}

/// Lets the signal through to the calling thread, whatever mask it inherited.
fn unblock() {
    // SAFETY: `set` is initialized by sigemptyset before it is read; the calls touch nothing else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
