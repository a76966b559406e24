//! `nestling guest-report`: the line by which a level of a demo says what it sees. It runs inside the guest.

use std::arch::x86_64::__cpuid;
use std::path::Path;

use crate::failure::Failure;
use crate::initramfs::REPORT_MARK;

/// CPUID leaf 1, ECX bit 31: set by hypervisors, never by a processor (Intel SDM volume 2, CPUID, table
/// "Feature Information Returned in the ECX Register"; AMD APM volume 3, appendix E.3.2).
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// The leaf where hypervisors name themselves.
const HYPERVISOR_LEAF: u32 = 0x4000_0000;

/// What a level sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `uname -r`.
    pub kernel: String,
    /// The hypervisor's name from CPUID, `None` if the processor says there is none.
    pub hypervisor: Option<String>,
    /// The flags of the first processor, from /proc/cpuinfo.
    pub flags: String,
    /// The first number of /proc/uptime, in seconds.
    pub uptime: String,
    /// How many processors are online.
    pub cpus: usize,
    /// `MemTotal` of /proc/meminfo, in KiB.
    pub memory_kib: String,
}

/// The hypervisor's name from CPUID, `None` if no hypervisor shows itself.
pub fn hypervisor() -> Option<String> {
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
        return None;
    }
    let leaf = __cpuid(HYPERVISOR_LEAF);
    let name: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
        .iter()
        .flat_map(|register| register.to_le_bytes())
        .collect();
    let name: String = name
        .iter()
        .map(|&byte| match byte {
            b' '..=b'~' => char::from(byte),
            0 => ' ',
            _ => '?',
        })
        .collect();
    Some(name.trim().to_string())
}

/// A value in a report line: what would break the line becomes `_`.
fn value(text: &str) -> String {
    const LONGEST: usize = 64;
    let value: String = text
        .trim()
        .chars()
        .take(LONGEST)
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || "._+-~:".contains(c) => c,
            _ => '_',
        })
        .collect();
    if value.is_empty() {
        "unknown".into()
    } else {
        value
    }
}

/// The report line of level `level`.
pub fn line(level: u8, seen: &Seen) -> String {
    let has = |flag| seen.flags.split_whitespace().any(|f| f == flag);
    let virtualization = if has("vmx") {
        "vmx"
    } else if has("svm") {
        "svm"
    } else {
        "none"
    };
    format!(
        "{REPORT_MARK} {level} up kernel={} hypervisor={} virt={virtualization} uptime={} memory_kib={} cpus={}",
        value(&seen.kernel),
        seen.hypervisor.as_deref().map_or("none".into(), value),
        value(&seen.uptime),
        value(&seen.memory_kib),
        seen.cpus,
    )
}

fn read(path: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::reading(Path::new(path), &e))
}

/// The value after `key` and a colon in one of the lines of `text`.
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    fields(text, key).next()
}

/// The same of every such line.
fn fields<'a>(text: &'a str, key: &str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

/// Prints the report line of this machine as level `level`.
///
/// # Errors
/// A /proc that cannot be read.
pub fn report(level: u8) -> Result<(), Failure> {
    let uptime = read("/proc/uptime")?;
    let memory = read("/proc/meminfo")?;
    let cpus = read("/proc/cpuinfo")?;
    let seen = Seen {
        kernel: read("/proc/sys/kernel/osrelease")?,
        hypervisor: hypervisor(),
        flags: field(&cpus, "flags").unwrap_or_default().to_string(),
        cpus: fields(&cpus, "processor").count(),
        uptime: uptime.split_whitespace().next().unwrap_or("").to_string(),
        memory_kib: field(&memory, "MemTotal")
            .and_then(|text| text.split_whitespace().next())
            .unwrap_or("")
            .to_string(),
    };
    crate::output::print(&format!("{}\n", line(level, &seen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_seen() {
        let seen = Seen {
            kernel: "6.1.0-56-cloud-amd64\n".into(),
            hypervisor: Some("KVMKVMKVM".into()),
            flags: "fpu vmx sse2".into(),
            uptime: "1.88".into(),
            memory_kib: "1003456".into(),
            cpus: 2,
        };
        assert_eq!(
            line(2, &seen),
            "NESTLING-LEVEL 2 up kernel=6.1.0-56-cloud-amd64 hypervisor=KVMKVMKVM virt=vmx \
             uptime=1.88 memory_kib=1003456 cpus=2"
        );
    }

    #[test]
    fn strange_values_cannot_break_the_line() {
        let seen = Seen {
            kernel: "a b\nNESTLING-LEVEL 1 down status=0".into(),
            hypervisor: Some("\u{fffd}\0 x=y".into()),
            flags: String::new(),
            uptime: String::new(),
            memory_kib: "1".into(),
            cpus: 1,
        };
        let line = line(1, &seen);
        assert_eq!(line.split(' ').count(), 9);
        assert!(line.contains("hypervisor=___x_y virt=none uptime=unknown"));
    }

    #[test]
    fn fields_are_found() {
        let text = "MemTotal:       16 kB\nflags\t\t: fpu vmx\n";
        assert_eq!(field(text, "flags"), Some("fpu vmx"));
        assert_eq!(field(text, "MemTotal"), Some("16 kB"));
        assert_eq!(field(text, "Mem"), None);
        let text = "processor : 0\nflags : fpu\n\nprocessor : 1\n";
        assert_eq!(fields(text, "processor").collect::<Vec<_>>(), ["0", "1"]);
    }
}
