//! Kernel files: sound ones of every kind, and what is left of them after some changes.

use crate::Input;

/// Offsets of the fields of the setup header, and bytes around them (Linux `boot.rst`).
const LINUX_FIELDS: [usize; 20] = [
    0x1f1, 0x1f2, 0x1f4, 0x1fa, 0x1fe, 0x200, 0x201, 0x202, 0x206, 0x211, 0x214, 0x21c, 0x22c,
    0x230, 0x234, 0x236, 0x238, 0x248, 0x258, 0x260,
];
/// Bytes of the bzImage.
const LINUX_BYTES: usize = 0x800;
/// Where sound kernels are loaded: from here on, each segment in a MByte of its own.
const BASE: u64 = 1 << 20;
/// Most bytes of a segment in a file.
const SEGMENT_BYTES: usize = 0x300;
const MULTIBOOT: u32 = 0x1bad_b002;

/// A file, and what is known of it.
pub struct File {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it loads and where it is entered; `None` if it was changed, and may mean anything.
    pub sound: Option<Sound>,
    /// Why no loader takes it, if it is near to a sound one but for that.
    pub wrong: Option<&'static str>,
}

/// What a sound kernel asks for.
pub struct Sound {
    /// Address, bytes and size in memory of what is loaded.
    pub segments: Vec<(u64, Vec<u8>, u64)>,
    /// Where it is entered.
    pub entry: u64,
}

/// A bzImage of nothing but a header (Linux `Documentation/arch/x86/boot.rst`).
#[must_use]
pub fn bzimage() -> Vec<u8> {
    let mut image = vec![0; LINUX_BYTES];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &0x40u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x10_0000u64.to_le_bytes());
    put(0x260, &0x1000u32.to_le_bytes());
    image
}

/// Any file.
pub fn any(input: &mut Input<'_>) -> File {
    let kind = input.below(4);
    let (mut bytes, sound, fields) = match kind {
        0 => linux(input),
        1 => kludge(input),
        long => elf(input, long == 3),
    };
    if kind >= 2 && input.once_in(8) {
        return wrong_elf(input, bytes, kind == 3);
    }
    let changes = input.below(4);
    for _ in 0..changes {
        let at = match input.once_in(4) {
            true => input.below(bytes.len().min(0x300)),
            false => input.pick(&fields),
        };
        let number = input.number().to_le_bytes();
        let width = input.pick(&[1, 2, 4, 8]).min(bytes.len() - at);
        bytes[at..at + width].copy_from_slice(&number[..width]);
    }
    let cut = input.once_in(8);
    if cut {
        let length = input.below(bytes.len() + 1);
        bytes.truncate(length);
    }
    if input.once_in(64) {
        return File {
            bytes: input.bytes(SEGMENT_BYTES).to_vec(),
            sound: None,
            wrong: None,
        };
    }
    let sound = (changes == 0 && !cut).then_some(sound);
    File {
        bytes,
        sound,
        wrong: None,
    }
}

/// A sound ELF program whose first segment breaks a rule of its header (System V ABI, "Program Header").
fn wrong_elf(input: &mut Input<'_>, mut bytes: Vec<u8>, long: bool) -> File {
    // Where p_offset, p_filesz and p_memsz are in the first program header, and how wide they are.
    let (offset, file, memory, width) = match long {
        true => (64 + 8, 64 + 32, 64 + 40, 8),
        false => (52 + 4, 52 + 16, 52 + 20, 4),
    };
    let number = |bytes: &[u8], at: usize| {
        let mut number = [0; 8];
        number[..width].copy_from_slice(&bytes[at..at + width]);
        u64::from_le_bytes(number)
    };
    let in_file = number(&bytes, file);
    let (field, value, why) = match input.below(3) {
        0 => {
            let less = input.below(in_file as usize) as u64;
            (memory, less, "more bytes in the file than in memory")
        }
        1 => {
            let behind = bytes.len() as u64 - number(&bytes, offset) + 1;
            let more = behind + input.below(0x1000) as u64;
            bytes[memory..memory + width].copy_from_slice(&more.to_le_bytes()[..width]);
            (file, more, "bytes behind the file's end")
        }
        _ => {
            let behind = bytes.len() as u64 + input.below(0x1000) as u64;
            (offset, behind, "a start behind the file's end")
        }
    };
    bytes[field..field + width].copy_from_slice(&value.to_le_bytes()[..width]);
    File {
        bytes,
        sound: None,
        wrong: Some(why),
    }
}

type Made = (Vec<u8>, Sound, Vec<usize>);

fn linux(input: &mut Input<'_>) -> Made {
    let mut file = bzimage();
    let long = input.once_in(2);
    file[0x236] = u8::from(long);
    // An older protocol has no 64-bit entry; its kernel is loaded at 1 MByte.
    let old = input.once_in(4);
    if old {
        let version = input.pick(&[0x203u16, 0x205, 0x206, 0x209, 0x20a, 0x20b]);
        file[0x206..0x208].copy_from_slice(&version.to_le_bytes());
    }
    for (at, byte) in file[0x400..].iter_mut().enumerate() {
        *byte = at as u8 ^ 0x6b;
    }
    let code = file[0x400..].to_vec();
    let size = code.len() as u64;
    let entry = if long && !old { BASE + 0x200 } else { BASE };
    let sound = Sound {
        segments: vec![(BASE, code, size)],
        entry,
    };
    (file, sound, LINUX_FIELDS.to_vec())
}

/// A multiboot header of these flags and the words after it (Multiboot 0.6.96, 3.1.1).
fn header(flags: u32, rest: &[u32]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(MULTIBOOT).wrapping_sub(flags);
    let words = [MULTIBOOT, flags, checksum];
    let words = words.iter().chain(rest);
    words.flat_map(|word| word.to_le_bytes()).collect()
}

/// Required flags: modules aligned, memory told; a video mode is not asked for.
fn flags(input: &mut Input<'_>) -> u32 {
    u32::from(input.any::<u8>() & 3)
}

/// A file with address fields (3.1.3).
fn kludge(input: &mut Input<'_>) -> Made {
    let at = 4 * input.below(64);
    let load = BASE as u32 + 0x1000 * input.below(64) as u32;
    // What lies before the header in the file may be left out.
    let skipped = input.below(at / 4 + 1) * 4;
    let total = at + 32 + input.below(SEGMENT_BYTES);
    let loaded = (total - skipped) as u32;
    let (load_end, known) = match input.below(3) {
        0 => (0, loaded),
        _ => {
            let least = (at - skipped + 32) as u32;
            let end = least + input.below((loaded - least + 1) as usize) as u32;
            (load + end, end)
        }
    };
    let bss_end = match input.below(2) {
        0 => 0,
        _ => load + known + input.below(0x1000) as u32,
    };
    let memory = if bss_end == 0 { known } else { bss_end - load };
    let entry = load + input.below(known as usize) as u32;
    let head = load + (at - skipped) as u32;
    let words = [head, load, load_end, bss_end, entry];
    let header = header(flags(input) | 1 << 16, &words);
    let mut file: Vec<u8> = (0..total).map(|n| n as u8 ^ 0x35).collect();
    file[at..at + header.len()].copy_from_slice(&header);
    let bytes = file[skipped..skipped + known as usize].to_vec();
    let sound = Sound {
        segments: vec![(load.into(), bytes, memory.into())],
        entry: entry.into(),
    };
    let fields = (at..at + header.len()).step_by(4).collect();
    (file, sound, fields)
}

/// A note (System V ABI, "Note Section").
fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((name.len() as u32).to_le_bytes());
    note.extend((descriptor.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    for part in [name, descriptor] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// An ELF program with a PVH note, a multiboot header, or both: then multiboot is what it is booted by.
fn elf(input: &mut Input<'_>, long: bool) -> Made {
    const XEN_PHYS32_ENTRY: u32 = 18;
    let (head, each) = if long { (64, 56) } else { (52, 32) };
    let word = |value: u64| value.to_le_bytes()[..if long { 8 } else { 4 }].to_vec();
    let kinds = 1 + input.below(3);
    let (multiboot, pvh) = (kinds & 1 != 0, kinds & 2 != 0);
    let count = 1 + input.below(3);
    // Linked high or where it is loaded.
    let offset = match input.once_in(2) {
        true if long => 0xffff_ffff_8000_0000,
        true => 0xc000_0000,
        false => 0,
    };
    let mut segments: Vec<(u64, Vec<u8>, u64)> = (0..count as u64)
        .map(|n| {
            let mut bytes = vec![0x40 | n as u8; 64 + input.below(SEGMENT_BYTES - 64)];
            if n == 0 && multiboot {
                let header = header(flags(input), &[]);
                bytes[..header.len()].copy_from_slice(&header);
            }
            let memory = bytes.len() as u64 + u64::from(input.any::<u8>());
            let at = BASE + (n << 20) + 0x1000 * input.below(16) as u64;
            (at, bytes, memory)
        })
        .collect();
    // Segments need no order.
    if input.once_in(4) {
        segments[1..].reverse();
    }
    let into = input.below(64) as u64;
    let (start, pvh_entry) = (segments[0].0, segments[0].0 + 32);
    let notes = if pvh {
        let size = if long && input.once_in(2) { 8 } else { 4 };
        let mut notes = note(b"GNU\0", 1, &[0; 16]);
        let address = &pvh_entry.to_le_bytes()[..size];
        notes.extend(note(b"Xen\0", XEN_PHYS32_ENTRY, address));
        notes
    } else {
        Vec::new()
    };
    let headers = count + usize::from(pvh);
    let (mut at, mut table, mut body) = (head + each * headers, Vec::new(), Vec::<u8>::new());
    let header_of = |kind: u32, at: usize, physical: u64, file: usize, memory: u64| {
        let mut header = kind.to_le_bytes().to_vec();
        let flags = 7u32.to_le_bytes();
        if long {
            header.extend(flags);
        }
        let linear = physical.wrapping_add(offset);
        for value in [at as u64, linear, physical, file as u64, memory] {
            header.extend(word(value));
        }
        if !long {
            header.extend(flags);
        }
        header.extend(word(4));
        header
    };
    for (physical, bytes, memory) in &segments {
        table.extend(header_of(1, at, *physical, bytes.len(), *memory));
        body.extend(bytes);
        at += bytes.len();
    }
    if pvh {
        table.extend(header_of(4, at, 0, notes.len(), notes.len() as u64));
        body.extend(&notes);
    }
    let machine: u16 = if long { 62 } else { 3 };
    let mut file = b"\x7fELF".to_vec();
    file.extend([1 + u8::from(long), 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for value in [(start + into).wrapping_add(offset), head as u64, 0] {
        file.extend(word(value));
    }
    file.extend(0u32.to_le_bytes());
    for half in [head, each, headers, 0, 0, 0] {
        file.extend((half as u16).to_le_bytes());
    }
    // Fields of the file's header and of the programs' headers, the multiboot header, the notes.
    let mut fields: Vec<usize> = (16..head + table.len()).step_by(4).collect();
    let notes_at = head + table.len() + body.len() - notes.len();
    fields.extend((0..3).map(|n| head + table.len() + 4 * n));
    if !notes.is_empty() {
        fields.extend((notes_at..notes_at + notes.len()).step_by(4));
    }
    file.extend(table);
    file.extend(body);
    let entry = if multiboot { start + into } else { pvh_entry };
    (file, Sound { segments, entry }, fields)
}
