//! Confinement: what this process may still ask of the host's kernel once its guest runs.
//!
//! The guest is hostile, and a hole in a device or an engine would give it this process. So before the first
//! instruction of a guest the process gives up what a running VM does not need:
//!
//! 1. [`files`], Landlock: nothing can be opened, made, removed or connected to any more. What is open stays open.
//! 2. [`calls`], seccomp: only the system calls of a list are possible, some with certain arguments only. Opening
//!    a file fails with "permission denied"; any other call that is not on the list ends the process at once.
//!
//! Both set `no_new_privs`, so no program it could start would have more rights. Nothing of this needs root. Both are
//! irrevocable, hold for all threads there are and will be, and are best effort: an old kernel gives less, and
//! [`Confined`] says what is missing. What a VM needs from the host is opened before; `docs/conventions.md`, section
//! Confinement, says what that means for new code.

pub mod calls;
pub mod files;

use calls::CallSet;

/// How a process that runs a VM is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confine {
    /// The system calls it keeps.
    pub calls: CallSet,
    /// Whether a VM that cannot be confined in full is not started.
    pub required: bool,
}

/// What was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confined {
    /// Why Landlock does not hold; `None` if it does.
    pub without_files: Option<String>,
    /// Why seccomp does not hold; `None` if it does.
    pub without_calls: Option<String>,
}

impl Confined {
    /// What is missing, as half a sentence; `None` if nothing is.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        let missing: Vec<&str> = [&self.without_files, &self.without_calls]
            .into_iter()
            .filter_map(|why| why.as_deref())
            .collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

#[cfg(test)]
mod tests;
