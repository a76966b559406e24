//! The file system and the network, shut by Landlock.
//!
//! A domain without a single rule: of the rights the kernel knows, none is left. The rights are those of Landlock's
//! ABI 6 (Linux 6.12): paths, TCP ports, abstract Unix sockets and signals to processes outside. An older kernel
//! takes those it knows.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictSelfAttr, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest rights that are given up.
const RIGHTS: ABI = ABI::V6;

/// Gives up all access to files that are not open, for this thread and those it will start; where the kernel can
/// (ABI 8), for all threads.
///
/// # Errors
/// Why this host cannot, as half a sentence.
pub fn shut() -> Result<(), String> {
    judge(restrict(true))
}

/// Whether this kernel has Landlock; asked in a thread of its own, which is restricted and ends.
///
/// # Errors
/// Why it has not, as half a sentence.
pub fn offered() -> Result<(), String> {
    std::thread::spawn(|| judge(restrict(false)))
        .join()
        .unwrap_or_else(|_| Err("Landlock cannot be asked".to_owned()))
}

fn restrict(all_threads: bool) -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .handle_access(AccessNet::from_all(RIGHTS))?
        .scope(Scope::from_all(RIGHTS))?
        .create()?
        .all_threads(all_threads)?
        .restrict_self()
}

fn judge(result: Result<RestrictionStatus, RulesetError>) -> Result<(), String> {
    let status = result.map_err(|e| format!("Landlock refuses: {e}"))?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced, _) => Ok(()),
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            Err("Landlock is off in this kernel".to_owned())
        }
        (RulesetStatus::NotEnforced, _) => Err("this kernel has no Landlock".to_owned()),
    }
}
