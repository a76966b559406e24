use super::*;

fn built(memory_bytes: u64) -> Smbios {
    build(&SmbiosConfig {
        vcpus: 3,
        memory: MemoryMap::new(memory_bytes),
        processor_id: (0x000a_0652, 0x1f8b_fbff),
        processor_hz: 2_100_000_000,
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// The structures of a table: formatted area and strings (6.1.2, 6.1.3).
fn structures(table: &[u8]) -> Vec<(&[u8], Vec<String>)> {
    let mut all = Vec::new();
    let mut rest = table;
    while !rest.is_empty() {
        let (formatted, behind) = rest.split_at(usize::from(rest[1]));
        let end = behind
            .windows(2)
            .position(|w| w == [0, 0])
            .expect("two zeros end a structure");
        let strings = behind[..end]
            .split(|&b| b == 0)
            .filter(|s| !s.is_empty())
            .map(|s| String::from_utf8(s.to_vec()).expect("ASCII"))
            .collect();
        all.push((formatted, strings));
        rest = &behind[end + 2..];
    }
    all
}

fn word(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn dword(b: &[u8], at: usize) -> u32 {
    u32::from(word(b, at)) | u32::from(word(b, at + 2)) << 16
}

/// DSP0134 5.2.1.
#[test]
fn the_entry_point_describes_the_table() {
    let s = built(1 << 30);
    let a = &s.anchor;
    assert_eq!(a.len(), 0x1f);
    assert_eq!((&a[..4], a[5], &a[6..8]), (&b"_SM_"[..], 0x1f, &[2, 8][..]));
    assert_eq!(&a[0x10..0x15], b"_DMI_");
    assert_eq!((sum(a), sum(&a[0x10..])), (0, 0));
    assert_eq!(usize::from(word(a, 0x16)), s.tables.len());
    let all = structures(&s.tables);
    assert_eq!(usize::from(word(a, 0x1c)), all.len());
    assert_eq!(a[0x1e], 0x28);
}

/// Lengths as DSP0134 2.8 gives them; handles are unique; string numbers have their strings.
#[test]
fn the_structures_are_those_of_the_specification() {
    let s = built(1 << 30);
    let all = structures(&s.tables);
    let kinds: Vec<(u8, u8)> = all.iter().map(|(f, _)| (f[0], f[1])).collect();
    assert_eq!(
        kinds,
        [
            (0, 0x18),
            (1, 0x1b),
            (3, 0x16),
            (4, 0x2a),
            (16, 0x17),
            (17, 0x28),
            (19, 0x1f),
            (32, 0x0b),
            (127, 4),
        ]
    );
    let mut handles: Vec<u16> = all.iter().map(|(f, _)| word(f, 2)).collect();
    handles.dedup();
    assert_eq!(handles.len(), all.len());
    let strings: Vec<usize> = all.iter().map(|(_, s)| s.len()).collect();
    assert_eq!(strings, [3, 3, 1, 3, 0, 2, 0, 0, 0]);
}

#[test]
fn processor_and_memory_are_the_machines() {
    let s = built(1 << 30);
    let all = structures(&s.tables);
    let find = |kind| all.iter().find(|(f, _)| f[0] == kind).expect("there").0;
    let cpu = find(4);
    assert_eq!((dword(cpu, 8), dword(cpu, 12)), (0x000a_0652, 0x1f8b_fbff));
    assert_eq!((word(cpu, 0x14), word(cpu, 0x16)), (2100, 2100));
    assert_eq!(cpu[0x23..0x26], [3, 3, 3]);
    let array = find(16);
    assert_eq!(dword(array, 7), 1 << 20, "in KByte");
    let device = find(17);
    assert_eq!(word(device, 4), word(array, 2), "the array's handle");
    assert_eq!(word(device, 0x0c), 1024, "in MByte");
    let mapped = find(19);
    assert_eq!((dword(mapped, 4), dword(mapped, 8)), (0, (1 << 20) - 1));
}

/// 7.18.5: 32 GByte less a MByte and more go to the extended size; 7.20: an address in KByte that does not fit 32 bits.
#[test]
fn large_memory_uses_the_extended_fields() {
    let bytes = 64u64 << 30;
    let s = built(bytes);
    let all = structures(&s.tables);
    let device = all.iter().find(|(f, _)| f[0] == 17).expect("there").0;
    assert_eq!(
        (word(device, 0x0c), dword(device, 0x1c)),
        (0x7fff, 64 << 10)
    );
    let mapped: Vec<_> = all.iter().filter(|(f, _)| f[0] == 19).collect();
    assert_eq!(mapped.len(), 2);
    assert_eq!(dword(mapped[1].0, 4), 4 << 20, "4 GByte in KByte");
}
