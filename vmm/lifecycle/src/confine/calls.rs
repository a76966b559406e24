//! The system calls of a process that runs a VM, as a table, and the seccomp filters made of it.
//!
//! Three filters are installed one above the other; of their answers the kernel takes the strictest:
//!
//! | filter | calls | answer |
//! | --- | --- | --- |
//! | 1 | all that are neither in [`KEPT`] nor in the two tables below | the process ends (SIGSYS) |
//! | 2 | [`REFUSED`]: what libraries try and do without | EACCES |
//! | 3 | [`UNKNOWN`]: what the C library replaces by an older call that a filter can look into | ENOSYS |
//!
//! To let a new feature make a call, add a line to its group in [`KEPT`], as narrow as its arguments allow. `strace -f`
//! shows which call ended a process.

use std::collections::BTreeMap;

use libc::{
    CLONE_THREAD, CLONE_VM, EACCES, ENOSYS, MAP_SHARED, PR_SET_NAME, PR_SET_VMA, PROT_EXEC,
    PROT_WRITE, c_int, c_long,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Whose calls a process keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallSet {
    /// A VM on the software engine.
    Soft,
    /// A VM on KVM: KVM's ioctls too.
    Kvm,
}

/// Which calls of one number are meant.
#[derive(Clone, Copy, Debug)]
enum Only {
    /// All.
    Any,
    /// Those whose argument of this index is one of these (32 bits).
    Is(u8, &'static [u64]),
    /// Those of whose argument of this index the bits of the mask are these (32 bits).
    Bits(u8, u64, u64),
    /// As [`Only::Bits`], both.
    BothBits((u8, u64, u64), (u8, u64, u64)),
    /// Those whose argument of this index is this process.
    OwnProcess(u8),
}

use Only::{Any, Bits, BothBits, Is, OwnProcess};

type Line = (c_long, Only);

const W: u64 = PROT_WRITE as u64;
const X: u64 = PROT_EXEC as u64;
const SHARED: u64 = MAP_SHARED as u64;
const THREAD: u64 = (CLONE_THREAD | CLONE_VM) as u64;
/// `arch_prctl`: the base of GS of the calling thread.
const ARCH_SET_GS: u64 = 0x1001;
/// `AT_EMPTY_PATH` of `newfstatat` and `statx`: the descriptor itself is asked about.
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;
/// What may be asked of an open file.
const FILE_COMMANDS: &[u64] = &[
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_ADD_SEALS as u64,
    libc::F_GET_SEALS as u64,
];

/// Memory. Nothing writable becomes executable; code is mapped shared and read-only from a file in memory, as the
/// software engine does with the instructions it lets the host execute.
const MEMORY: &[Line] = &[
    (libc::SYS_brk, Any),
    (libc::SYS_mmap, Bits(2, X, 0)),
    (libc::SYS_mmap, BothBits((2, X | W, X), (3, SHARED, SHARED))),
    (libc::SYS_munmap, Any),
    (libc::SYS_mremap, Any),
    (libc::SYS_mprotect, Bits(2, X, 0)),
    (libc::SYS_madvise, Any),
    (libc::SYS_memfd_create, Any),
];

/// Threads and their locks. `clone` makes threads of this process, never another process.
const THREADS: &[Line] = &[
    (libc::SYS_clone, Bits(0, THREAD, THREAD)),
    (libc::SYS_set_robust_list, Any),
    (libc::SYS_rseq, Any),
    // Where programs may not set the base of GS themselves, translated code needs this.
    (libc::SYS_arch_prctl, Is(0, &[ARCH_SET_GS])),
    (
        libc::SYS_prctl,
        Is(0, &[PR_SET_NAME as u64, PR_SET_VMA as u64]),
    ),
    (libc::SYS_futex, Any),
    (libc::SYS_sched_yield, Any),
    (libc::SYS_sched_getaffinity, Any),
    (libc::SYS_membarrier, Any),
    (libc::SYS_gettid, Any),
    (libc::SYS_getpid, Any),
    (libc::SYS_exit, Any),
    (libc::SYS_exit_group, Any),
];

/// Time and random numbers.
const TIME: &[Line] = &[
    (libc::SYS_clock_gettime, Any),
    (libc::SYS_clock_getres, Any),
    (libc::SYS_clock_nanosleep, Any),
    (libc::SYS_nanosleep, Any),
    (libc::SYS_gettimeofday, Any),
    (libc::SYS_time, Any),
    (libc::SYS_getrandom, Any),
    (libc::SYS_restart_syscall, Any),
];

/// Signals: handlers, and signals to this process, as KVM's kick and a stop by the terminal are.
const SIGNALS: &[Line] = &[
    (libc::SYS_rt_sigaction, Any),
    (libc::SYS_rt_sigprocmask, Any),
    (libc::SYS_rt_sigreturn, Any),
    (libc::SYS_sigaltstack, Any),
    (libc::SYS_tgkill, OwnProcess(0)),
    (libc::SYS_kill, OwnProcess(0)),
];

/// Files that are open: the console, disks, a screenshot, flash variables.
const OPEN_FILES: &[Line] = &[
    (libc::SYS_read, Any),
    (libc::SYS_readv, Any),
    (libc::SYS_pread64, Any),
    (libc::SYS_preadv, Any),
    (libc::SYS_preadv2, Any),
    (libc::SYS_write, Any),
    (libc::SYS_writev, Any),
    (libc::SYS_pwrite64, Any),
    (libc::SYS_pwritev, Any),
    (libc::SYS_pwritev2, Any),
    (libc::SYS_lseek, Any),
    (libc::SYS_fsync, Any),
    (libc::SYS_fdatasync, Any),
    (libc::SYS_ftruncate, Any),
    (libc::SYS_fallocate, Any),
    (libc::SYS_flock, Any),
    // Not F_SETOWN and F_SETSIG, by which a file sends any signal to anybody.
    (libc::SYS_fcntl, Is(1, FILE_COMMANDS)),
    (libc::SYS_fstat, Any),
    (libc::SYS_newfstatat, Bits(3, EMPTY_PATH, EMPTY_PATH)),
    (libc::SYS_statx, Bits(2, EMPTY_PATH, EMPTY_PATH)),
    (libc::SYS_close, Any),
    // A signal comes through a pair of sockets that are open.
    (libc::SYS_recvfrom, Any),
    (libc::SYS_sendto, Any),
    (libc::SYS_poll, Any),
    (libc::SYS_ppoll, Any),
    (libc::SYS_epoll_wait, Any),
    (libc::SYS_epoll_pwait, Any),
    (libc::SYS_ioctl, Is(1, TERMINAL)),
];

/// Ioctls of the terminal: its settings and its size, never TIOCSTI, which types for its user.
const TERMINAL: &[u64] = &[
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
    libc::FIONREAD,
];

/// KVM's ioctls are those of type AEh (Linux `Documentation/userspace-api/ioctl/ioctl-number.rst`).
const KVM: &[Line] = &[(libc::SYS_ioctl, Bits(1, 0xff00, 0xae00))];

/// What every VM keeps.
const KEPT: &[&[Line]] = &[MEMORY, THREADS, TIME, SIGNALS, OPEN_FILES];

/// What a panic's backtrace, the memory allocator or the removal of a temporary file may try, and do without.
const REFUSED: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_uname,
];

/// `clone3` has its flags in memory, where no filter can look; the C library then takes `clone`.
const UNKNOWN: &[c_long] = &[libc::SYS_clone3];

/// Ends what the process cannot do any more, in all its threads.
///
/// # Errors
/// Why this host cannot, as half a sentence.
pub fn limit(set: CallSet) -> Result<(), String> {
    let refused = |e: seccompiler::Error| format!("seccomp refuses: {e}");
    // The strictest comes last: it does not keep the call that installs filters.
    for filter in filters(set).map_err(|e| format!("seccomp's filters are wrong: {e}"))? {
        seccompiler::apply_filter_all_threads(&filter).map_err(refused)?;
    }
    Ok(())
}

/// The lines of the table of `set`.
fn table(set: CallSet) -> impl Iterator<Item = Line> {
    let kvm = (set == CallSet::Kvm).then_some(KVM);
    KEPT.iter().copied().chain(kvm).flatten().copied()
}

/// The three filters, in the order in which they can be installed.
pub(super) fn filters(set: CallSet) -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let mut kept = Rules::new();
    for (number, only) in table(set) {
        let rules = kept.entry(number).or_default();
        rules.extend(only.rules()?);
    }
    for &number in REFUSED.iter().chain(UNKNOWN) {
        kept.insert(number, Vec::new());
    }
    let all_of = |numbers: &[c_long]| numbers.iter().map(|&n| (n, Vec::new())).collect();
    let (allow, kill) = (SeccompAction::Allow, SeccompAction::KillProcess);
    Ok([
        compile(all_of(UNKNOWN), allow.clone(), errno(ENOSYS))?,
        compile(all_of(REFUSED), allow.clone(), errno(EACCES))?,
        compile(kept, kill, allow)?,
    ])
}

/// By number, what a call must be like; an empty list takes all.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn errno(number: c_int) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

fn compile(
    rules: Rules,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?.try_into()
}

impl Only {
    fn rules(self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let bits = |(index, mask, value)| condition(index, SeccompCmpOp::MaskedEq(mask), value);
        let conditions = match self {
            Any => return Ok(Vec::new()),
            Is(index, values) => {
                let one =
                    |&value| SeccompRule::new(vec![condition(index, SeccompCmpOp::Eq, value)?]);
                return values.iter().map(one).collect();
            }
            Bits(index, mask, value) => vec![bits((index, mask, value))?],
            BothBits(first, second) => vec![bits(first)?, bits(second)?],
            OwnProcess(index) => {
                let id = u64::from(std::process::id());
                vec![condition(index, SeccompCmpOp::Eq, id)?]
            }
        };
        Ok(vec![SeccompRule::new(conditions)?])
    }
}

fn condition(
    index: u8,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
}

/// Whether this kernel can filter system calls as it is done here.
///
/// # Errors
/// Why it cannot, as half a sentence.
pub fn offered() -> Result<(), String> {
    const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";
    let actions = std::fs::read_to_string(ACTIONS)
        .map_err(|_| "this kernel does not say that it has seccomp filters".to_owned())?;
    let has = |wanted| actions.split_whitespace().any(|action| action == wanted);
    if has("kill_process") && has("errno") {
        Ok(())
    } else {
        Err(format!(
            "this kernel's seccomp only has: {}",
            actions.trim()
        ))
    }
}

/// The numbers of the kept calls, each with whether any call of that number is.
#[cfg(test)]
pub(super) fn lines(set: CallSet) -> impl Iterator<Item = (c_long, bool)> {
    table(set).map(|(number, only)| (number, matches!(only, Any)))
}

/// The numbers of the calls that fail.
#[cfg(test)]
pub(super) fn refused() -> impl Iterator<Item = c_long> {
    REFUSED.iter().chain(UNKNOWN).copied()
}
