use super::*;

/// Makes an ELF program for tests (System V ABI, "Object Files").
#[derive(Clone)]
pub(in crate::boot) struct Maker {
    pub long: bool,
    pub machine: u16,
    pub entry: u64,
    /// Linear address, physical address, bytes, size in memory.
    pub segments: Vec<(u64, u64, Vec<u8>, u64)>,
    pub notes: Vec<u8>,
}

impl Maker {
    /// A program of one segment linked and loaded at 1 MByte.
    pub fn new(long: bool) -> Self {
        Self {
            long,
            machine: if long { 62 } else { 3 },
            entry: 0x10_0010,
            segments: vec![(0x10_0000, 0x10_0000, (0..64).collect(), 0x1000)],
            notes: Vec::new(),
        }
    }

    pub fn file(&self) -> Vec<u8> {
        let (header, entry_size) = if self.long { (64, 56) } else { (52, 32) };
        let count = self.segments.len() + usize::from(!self.notes.is_empty());
        let mut at = header + entry_size * count;
        let mut table = Vec::new();
        let mut body = Vec::new();
        for (linear, physical, bytes, memory) in &self.segments {
            let sizes = [*linear, *physical, bytes.len() as u64, *memory];
            table.extend(self.program_header(1, at as u64, sizes));
            body.extend_from_slice(bytes);
            at += bytes.len();
        }
        if !self.notes.is_empty() {
            let size = self.notes.len() as u64;
            table.extend(self.program_header(4, at as u64, [0, 0, size, size]));
            body.extend_from_slice(&self.notes);
        }
        let mut file = b"\x7fELF".to_vec();
        file.extend([1 + u8::from(self.long), 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(2u16.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for word in [self.entry, header as u64, 0] {
            file.extend(self.word(word));
        }
        file.extend(0u32.to_le_bytes());
        for half in [header, entry_size, count, 0, 0, 0] {
            file.extend((half as u16).to_le_bytes());
        }
        file.extend(table);
        file.extend(body);
        file
    }

    fn word(&self, value: u64) -> Vec<u8> {
        let bytes = value.to_le_bytes();
        bytes[..if self.long { 8 } else { 4 }].to_vec()
    }

    fn program_header(
        &self,
        kind: u32,
        offset: u64,
        [linear, physical, file, memory]: [u64; 4],
    ) -> Vec<u8> {
        let mut h = kind.to_le_bytes().to_vec();
        let flags = 7u32.to_le_bytes();
        if self.long {
            h.extend(flags);
        }
        for v in [offset, linear, physical, file, memory] {
            h.extend(self.word(v));
        }
        if !self.long {
            h.extend(flags);
        }
        h.extend(self.word(4));
        h
    }
}

/// A note.
pub(in crate::boot) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut n = Vec::new();
    n.extend((name.len() as u32 + 1).to_le_bytes());
    n.extend((desc.len() as u32).to_le_bytes());
    n.extend(kind.to_le_bytes());
    n.extend_from_slice(name);
    n.push(0);
    n.resize(n.len().next_multiple_of(4), 0);
    n.extend_from_slice(desc);
    n.resize(n.len().next_multiple_of(4), 0);
    n
}

fn error(maker: &Maker) -> ElfError {
    Elf::parse(&maker.file()).err().expect("it is refused")
}

#[test]
fn both_classes_are_read() {
    for long in [false, true] {
        let mut maker = Maker::new(long);
        maker.segments.push((0x40_0000, 0x20_0000, vec![1, 2], 2));
        let file = maker.file();
        let elf = Elf::parse(&file).expect("it is sound");
        assert_eq!(elf.entry, 0x10_0010);
        assert_eq!(elf.pvh_entry, None);
        let [a, b] = &elf.segments[..] else {
            panic!("two segments");
        };
        assert_eq!(
            (a.linear, a.physical, a.memory_bytes),
            (0x10_0000, 0x10_0000, 0x1000)
        );
        assert_eq!(a.bytes, (0..64).collect::<Vec<u8>>());
        assert_eq!(
            (b.linear, b.physical, b.bytes),
            (0x40_0000, 0x20_0000, &[1, 2][..])
        );
    }
}

#[test]
fn the_entry_point_is_turned_into_a_physical_address() {
    let mut maker = Maker::new(true);
    maker.entry = 0xffff_ffff_8010_0020;
    maker.segments[0].0 = 0xffff_ffff_8010_0000;
    assert_eq!(
        Elf::parse(&maker.file()).map(|e| e.physical_entry()),
        Ok(0x10_0020)
    );
    // Outside of all segments it is taken as it is.
    maker.entry = 0x1234;
    assert_eq!(
        Elf::parse(&maker.file()).map(|e| e.physical_entry()),
        Ok(0x1234)
    );
}

#[test]
fn the_pvh_note_is_found_among_others() {
    for (long, desc) in [
        (false, &[0x78, 0x56, 0x34, 0x12][..]),
        (true, &[0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]),
    ] {
        let mut maker = Maker::new(long);
        maker.notes = note(b"GNU", 18, b"other name");
        maker.notes.extend(note(b"Xen", 5, b"xen-3.0"));
        maker.notes.extend(note(b"Xen", 18, desc));
        assert_eq!(
            Elf::parse(&maker.file()).map(|e| e.pvh_entry),
            Ok(Some(0x1234_5678))
        );
    }
}

#[test]
fn a_broken_note_is_refused() {
    let mut maker = Maker::new(true);
    maker.notes = note(b"Xen", 18, &[0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(error(&maker), ElfError::PvhNote);
    maker.notes = note(b"Xen", 18, &[0; 3]);
    assert_eq!(error(&maker), ElfError::PvhNote);
    maker.notes = note(b"Xen", 18, &[0; 4]);
    maker.notes[4..8].fill(0xff);
    assert_eq!(error(&maker), ElfError::Headers);
}

#[test]
fn broken_headers_are_refused() {
    let mut maker = Maker::new(true);
    maker.machine = 183;
    assert_eq!(error(&maker), ElfError::Machine);
    let mut maker = Maker::new(false);
    maker.segments.clear();
    assert_eq!(error(&maker), ElfError::Segments(0));
    maker.segments = vec![(0, 0, Vec::new(), 0); 257];
    assert_eq!(error(&maker), ElfError::Segments(257));
    let mut maker = Maker::new(true);
    maker.segments[0].3 = 63;
    assert_eq!(
        error(&maker),
        ElfError::Segment(0),
        "more in the file than in memory"
    );
    maker.segments[0].3 = u64::MAX;
    assert_eq!(error(&maker), ElfError::Segment(0), "it wraps");
    let mut object = Maker::new(true).file();
    object[16] = 1;
    assert_eq!(Elf::parse(&object).err(), Some(ElfError::Type));
    let mut big_endian = Maker::new(false).file();
    big_endian[5] = 2;
    assert!(Elf::parse(&big_endian).is_err());
}

#[test]
fn no_prefix_and_no_changed_byte_makes_it_panic() {
    for long in [false, true] {
        let mut maker = Maker::new(long);
        maker.notes = note(b"Xen", 18, &[0, 0, 0x10, 0]);
        let file = maker.file();
        for len in 0..file.len() {
            assert!(Elf::parse(&file[..len]).is_err(), "{len} bytes");
        }
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = file.clone();
                changed[at] = value;
                let _ = Elf::parse(&changed).map(|e| e.physical_entry());
            }
        }
    }
}
