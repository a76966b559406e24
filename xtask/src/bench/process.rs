//! What Linux tells about a running monitor, from `/proc/<pid>` (proc(5)).

use std::collections::BTreeMap;
use std::fs;

/// The unit of times in `stat` for programs (`USER_HZ`).
const TICKS_A_SECOND: f64 = 100.0;

/// The processor time of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Processed {
    /// Seconds in user mode, of all its threads.
    pub user_s: f64,
    /// It has ended and waits for its parent.
    pub ended: bool,
}

/// The processor time of a process that runs or was not waited for.
pub fn processed(pid: u32) -> Option<Processed> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name, in parentheses, may hold anything, so the fields are counted from its end: the state is the 3rd, `utime`
/// the 14th.
fn parse_stat(stat: &str) -> Option<Processed> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u32 = fields.get(14 - 3)?.parse().ok()?;
    Some(Processed {
        user_s: f64::from(ticks) / TICKS_A_SECOND,
        ended: *fields.first()? == "Z",
    })
}

/// The seconds that the threads of a process have run, in user mode and in the kernel, to the nanosecond; threads that
/// have ended do not count.
pub fn run_seconds(pid: u32) -> Option<f64> {
    let mut sum = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread may end meanwhile.
        if let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) {
            sum += parse_schedstat(&text)?;
        }
    }
    Some(sum)
}

/// The first number is the time on a processor in nanoseconds (Linux, `Documentation/scheduler/sched-stats.rst`).
fn parse_schedstat(text: &str) -> Option<f64> {
    let nanoseconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

/// The memory of a process that is not its guest's, in bytes; `None` if it cannot be told apart.
pub fn own_memory(pid: u32, guest_bytes: u64) -> Option<u64> {
    own_of_maps(
        &fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?,
        guest_bytes,
    )
}

/// What is resident of all mappings but the guest's memory. That is what is readable, writable, not executable (as a
/// translator's code is), and at least half as large as the guest's memory. Of a shared file that is mapped twice, as
/// code is that is written by one address and executed at another, the memory counts once.
fn own_of_maps(smaps: &str, guest_bytes: u64) -> Option<u64> {
    let mut own_kib = 0;
    let mut guests = 0;
    let mut is_guest = false;
    // Offset, device, inode and name of a shared mapping, and what is resident of such a one.
    let mut shared_kib: BTreeMap<&str, u64> = BTreeMap::new();
    let mut shared = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        if let Some((start, end)) = first.split_once('-') {
            let address = |digits| u64::from_str_radix(digits, 16).ok();
            if let (Some(start), Some(end)) = (address(start), address(end)) {
                is_guest = second.starts_with("rw-") && end.checked_sub(start)? >= guest_bytes / 2;
                guests += u32::from(is_guest);
                let file = line.splitn(3, ' ').nth(2);
                shared = file.filter(|_| second.ends_with('s'));
            }
        } else if first == "Rss:" && !is_guest {
            let kib = second.parse::<u64>().ok()?;
            match shared {
                Some(file) => {
                    let most = shared_kib.entry(file).or_default();
                    *most = kib.max(*most);
                }
                None => own_kib += kib,
            }
        }
    }
    own_kib += shared_kib.values().sum::<u64>();
    (guests > 0).then_some(own_kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_time_is_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 1234 56 0 0 20 0 3 0";
        for name in ["qemu", "a) R 1 (b"] {
            let expected = Processed {
                user_s: 12.34,
                ended: false,
            };
            assert_eq!(parse_stat(&format!("7 ({name}) {rest}")), Some(expected));
        }
        let ended = parse_stat("7 (a) Z 1 2 3 4 5 6 7 8 9 10 0 0").expect("whole");
        assert!(ended.ended);
        for wrong in ["", "7 (a) S 1", "7 (a) S 1 2 3 4 5 6 7 8 9 10 x"] {
            assert_eq!(parse_stat(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn time_on_a_processor_comes_first() {
        assert_eq!(parse_schedstat("2500000000 7 8\n"), Some(2.5));
        assert_eq!(parse_schedstat(""), None);
        assert!(run_seconds(std::process::id()).is_some_and(|seconds| seconds > 0.0));
    }

    #[test]
    fn this_process_has_figures() {
        let own = processed(std::process::id()).expect("readable");
        assert!(!own.ended);
    }

    #[test]
    fn the_guests_memory_is_not_the_monitors_own() {
        let smaps = "\
7f0000000000-7f0040000000 rw-p 00000000 00:00 0
Size:            1048576 kB
Rss:              700000 kB
7f1000000000-7f1040000000 rwxp 00000000 00:00 0
Rss:               30000 kB
7f2000000000-7f2000100000 r-xp 00001000 08:01 42    /usr/bin/a name
Rss:                1000 kB
7f2000200000-7f2000300000 rw-p 00000000 00:00 0     [heap]
Rss:                 500 kB
VmFlags: rd wr
7f3000000000-7f3000100000 rw-s 00000000 00:01 43                       /memfd:code (deleted)
Rss:                 200 kB
7f4000000000-7f4000100000 r-xs 00000000 00:01 43                       /memfd:code (deleted)
Rss:                 180 kB
7f5000000000-7f5000100000 r-xs 00001000 00:01 43                       /memfd:code (deleted)
Rss:                   4 kB
7f6000000000-7f6000100000 r-xs 00000000 00:01 44                       /memfd:code (deleted)
Rss:                   2 kB
";
        assert_eq!(own_of_maps(smaps, 1 << 30), Some(31_706 * 1024));
        // Without the guest's memory nothing is told apart.
        assert_eq!(own_of_maps(smaps, 1 << 40), None);
        assert_eq!(own_of_maps("", 1 << 30), None);
    }
}
