//! What a kernel finds when it is entered: held against what it was to be given, by the rules of its protocol.

use guestmem::GuestRam;
use machine::MachineConfig;
use vcpu::VcpuState;

use crate::board::{bytes, dword, qword};

/// Registers of the entry.
const RAX: usize = 0;
const RBX: usize = 3;
const RSI: usize = 6;
const MULTIBOOT_LOADER: u64 = 0x2bad_b002;
const PVH_START: u32 = 0x336e_c578;

/// A range of RAM with its first byte and its end.
type Range = (u64, u64);

/// What the guest was to be given.
pub struct Given<'a> {
    /// The machine.
    pub config: &'a MachineConfig,
    /// Initial RAM disk and modules, with the text of each.
    pub modules: &'a [(Vec<u8>, String)],
}

/// The protocols, as the entry shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux, in 64-bit or protected mode.
    Linux,
    /// Multiboot 1.
    Multiboot,
    /// PVH.
    Pvh,
}

/// Checks all of it; gives the protocol.
///
/// # Panics
/// Something is wrong.
pub fn check(ram: &GuestRam, state: &VcpuState, given: &Given<'_>) -> Protocol {
    let info = state.gpr[RBX];
    if state.gpr[RAX] == MULTIBOOT_LOADER {
        multiboot(ram, info, given);
        return Protocol::Multiboot;
    }
    if state.gpr[RSI] != 0 {
        linux(ram, state.gpr[RSI], given);
        return Protocol::Linux;
    }
    pvh(ram, info, given);
    Protocol::Pvh
}

fn text(ram: &GuestRam, at: u64, expected: &str) -> Range {
    let found = bytes(ram, at, expected.len() + 1);
    let (last, text) = found.split_last().expect("a zero");
    assert_eq!(*last, 0, "the text at {at:#x} ends");
    assert!(text == expected.as_bytes(), "the text at {at:#x}");
    (at, at + found.len() as u64)
}

fn module(ram: &GuestRam, at: u64, len: u64, expected: &[u8]) -> Range {
    assert_eq!(len, expected.len() as u64, "a module's size");
    assert_eq!(at % 4096, 0, "a module's page");
    assert!(
        bytes(ram, at, expected.len()) == expected,
        "a module's bytes"
    );
    (at, at + len)
}

/// Ranges of RAM the guest may use: ascending, apart, in RAM, and all but what the board keeps below 1 MByte.
fn memory(ram: &GuestRam, map: &[(u64, u64, u32)], given: &Given<'_>) {
    let mut usable = 0;
    for (n, &(base, len, kind)) in map.iter().enumerate() {
        assert!(len > 0, "an empty range at {base:#x}");
        if let Some(next) = map.get(n + 1) {
            assert!(base + len <= next.0, "ranges overlap at {base:#x}");
        }
        if kind == 1 {
            usable += len;
            let found = ram.find(guestmem::Gpa(base), len);
            assert!(found.is_some(), "{len:#x} bytes of RAM at {base:#x}");
        }
    }
    let all = given.config.memory_bytes;
    assert!(usable <= all && usable + (1 << 20) >= all, "{usable:#x}");
}

fn apart(mut ranges: Vec<Range>) {
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{:x?} and {:x?}", pair[0], pair[1]);
    }
}

/// Linux `zero-page.rst`.
fn linux(ram: &GuestRam, page: u64, given: &Given<'_>) {
    let mut ranges = vec![(page, page + 4096)];
    let cmdline = dword(ram, page + 0x228).into();
    ranges.push(text(ram, cmdline, &given.config.cmdline));
    let disk = (dword(ram, page + 0x218), dword(ram, page + 0x21c));
    let disk = (u64::from(disk.0), u64::from(disk.1));
    match given.modules {
        [] => assert_eq!(disk, (0, 0), "no initial RAM disk"),
        [(expected, _)] => ranges.push(module(ram, disk.0, disk.1, expected)),
        _ => panic!("Linux takes no modules"),
    }
    let count = u64::from(bytes(ram, page + 0x1e8, 1)[0]);
    let map: Vec<_> = (0..count)
        .map(|n| page + 0x2d0 + 20 * n)
        .map(|at| (qword(ram, at), qword(ram, at + 8), dword(ram, at + 16)))
        .collect();
    memory(ram, &map, given);
    apart(ranges);
}

/// Multiboot 0.6.96, 3.3.
fn multiboot(ram: &GuestRam, info: u64, given: &Given<'_>) {
    let field = |at: u64| u64::from(dword(ram, info + at));
    let flags = field(0);
    // Memory, command line, modules, memory map, name of the loader.
    assert_eq!(flags & 0x24d, 0x24d, "flags {flags:#x}");
    let mut ranges = vec![(info, info + 116)];
    let cmdline = match given.config.cmdline.as_str() {
        "" => "kernel".to_owned(),
        arguments => format!("kernel {arguments}"),
    };
    ranges.push(text(ram, field(16), &cmdline));
    assert_eq!(field(20), given.modules.len() as u64, "modules");
    let list = field(24);
    for (n, (expected, told)) in (0..).zip(given.modules) {
        let at = list + 16 * n;
        let (start, end) = (dword(ram, at).into(), u64::from(dword(ram, at + 4)));
        ranges.push(module(ram, start, end - start, expected));
        ranges.push(text(ram, dword(ram, at + 8).into(), told));
    }
    ranges.push((list, list + 16 * given.modules.len() as u64));
    let (len, at) = (field(44), field(48));
    ranges.push((at, at + len));
    let mut map = Vec::new();
    let mut next = at;
    while next < at + len {
        let entry = (
            qword(ram, next + 4),
            qword(ram, next + 12),
            dword(ram, next + 20),
        );
        map.push(entry);
        next += u64::from(dword(ram, next)) + 4;
    }
    assert_eq!(next, at + len, "the memory map's length");
    memory(ram, &map, given);
    apart(ranges);
}

/// Xen `hvm/start_info.h`.
fn pvh(ram: &GuestRam, info: u64, given: &Given<'_>) {
    assert_eq!(dword(ram, info), PVH_START, "the magic of PVH");
    assert!(dword(ram, info + 4) >= 1, "with a memory map");
    assert_eq!(dword(ram, info + 12), given.modules.len() as u32);
    let mut ranges = vec![(info, info + 56)];
    let list = qword(ram, info + 16);
    for (n, (expected, told)) in (0..).zip(given.modules) {
        let at = list + 32 * n;
        let place = (qword(ram, at), qword(ram, at + 8));
        ranges.push(module(ram, place.0, place.1, expected));
        ranges.push(text(ram, qword(ram, at + 16), told));
    }
    ranges.push((list, list + 32 * given.modules.len() as u64));
    ranges.push(text(ram, qword(ram, info + 24), &given.config.cmdline));
    let signature = bytes(ram, qword(ram, info + 32), 8);
    assert_eq!(signature, b"RSD PTR ", "the RSDP");
    let (at, count) = (qword(ram, info + 40), u64::from(dword(ram, info + 48)));
    ranges.push((at, at + 24 * count));
    let map: Vec<_> = (0..count)
        .map(|n| at + 24 * n)
        .map(|at| (qword(ram, at), qword(ram, at + 8), dword(ram, at + 16)))
        .collect();
    memory(ram, &map, given);
    apart(ranges);
}
