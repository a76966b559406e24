use std::sync::Arc;

use guestmem::Gpa;

use super::*;
use crate::boot::elf::tests::Maker;
use crate::boot::{BootProtocol, ImageError, load};
use crate::config::{Image, Module};

const MIB: u64 = 1 << 20;

/// The header's words: magic, flags, checksum, and what follows.
fn header(flags: u32, rest: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum]
        .iter()
        .chain(rest)
        .flat_map(|w| w.to_le_bytes())
        .collect()
}

/// An ELF file with a header at the start of its one segment, which has 16 bytes more.
fn elf(long: bool, flags: u32) -> Vec<u8> {
    let mut maker = Maker::new(long);
    maker.segments[0].2 = header(flags, &[]);
    maker.segments[0].2.extend([0x5a; 16]);
    maker.file()
}

struct Run {
    ram: GuestRam,
    result: Result<VcpuState, BootError>,
}

fn boot(file: Vec<u8>, modules: &[Module], cmdline: &str) -> Run {
    boot_with(file, modules, cmdline, false)
}

fn boot_with(file: Vec<u8>, modules: &[Module], cmdline: &str, text_screen: bool) -> Run {
    let map = MemoryMap::new(16 * MIB);
    let ram = GuestRam::new(&map.ram_regions()).expect("memory for a test");
    let request = BootRequest {
        kernel: &Image::Bytes(Arc::new(file)),
        initrd: None,
        modules,
        cmdline,
        rsdp: Gpa(0xe_0000),
        protocol: BootProtocol::Auto,
        text_screen,
    };
    let result = load(&ram, &map, &request);
    Run { ram, result }
}

impl Run {
    fn bytes(&self, gpa: u32, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        self.ram.read(Gpa(gpa.into()), &mut b).expect("inside RAM");
        b
    }
    fn u32(&self, gpa: u32) -> u32 {
        u32::from_le_bytes(self.bytes(gpa, 4).try_into().expect("4 bytes"))
    }
    fn u64(&self, gpa: u32) -> u64 {
        u64::from_le_bytes(self.bytes(gpa, 8).try_into().expect("8 bytes"))
    }
    fn state(&self) -> &VcpuState {
        self.result.as_ref().expect("it boots")
    }
    fn info(&self) -> u32 {
        self.state().gpr[3] as u32
    }
    fn error(self) -> ImageError {
        match self.result {
            Err(BootError::NotAKernel { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }
}

/// Section 3.2.
#[test]
fn the_machine_state_is_that_of_the_specification() {
    for long in [false, true] {
        let run = boot(elf(long, 0), &[], "");
        let s = run.state();
        assert_eq!(s.rip, 0x10_0010);
        assert_eq!(s.gpr[0], 0x2bad_b002);
        let [es, cs, ss, ds, fs, gs] = s.segments;
        for segment in [es, cs, ss, ds, fs, gs] {
            assert_eq!((segment.base, segment.limit), (0, 0xffff_ffff));
            assert!(segment.access.default_big() && !segment.access.long());
        }
        assert!(cs.access.is_code() && cs.access.readable());
        assert!(ds.access.writable() && ss.access.writable());
        assert_eq!(s.system.cr0 & 0x8000_0001, 1, "PE set, PG clear");
        assert_eq!(s.rflags & (1 << 17 | 1 << 9), 0, "VM and IF");
        assert_eq!(run.bytes(0x10_000c, 16), [0x5a; 16]);
    }
}

/// Section 3.3.
#[test]
fn the_information_has_every_field_in_its_place() {
    let module = |bytes: &[u8], text: &str| Module {
        image: Image::Bytes(Arc::new(bytes.to_vec())),
        text: text.into(),
    };
    let modules = [module(b"one", "one"), module(&[7; 5000], "/boot/two a b")];
    let run = boot(elf(false, 3), &modules, "dom0_mem=1G x");
    let info = run.info();
    // Memory, command line, modules, memory map, loader's name.
    assert_eq!(run.u32(info), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!(run.u32(info + 4), 639);
    assert_eq!(run.u32(info + 8), 15 * 1024);
    assert_eq!(run.bytes(run.u32(info + 16), 21), b"kernel dom0_mem=1G x\0");
    assert_eq!(run.bytes(run.u32(info + 64), 9), b"nestling\0");
    assert_eq!(run.u32(info + 20), 2);
    let list = run.u32(info + 24);
    let mut from = 0x10_1000;
    for (i, m) in modules.iter().enumerate() {
        let entry = list + 16 * i as u32;
        let (start, end) = (run.u32(entry), run.u32(entry + 4));
        let Image::Bytes(bytes) = &m.image else {
            unreachable!("made above");
        };
        // Page aligned and behind the kernel.
        assert!(start % 4096 == 0 && start >= from);
        assert_eq!((end - start) as usize, bytes.len());
        assert_eq!(&run.bytes(start, bytes.len()), &**bytes);
        let text = run.bytes(run.u32(entry + 8), m.text.len() + 1);
        assert_eq!(text, [m.text.as_bytes(), &[0]].concat());
        assert_eq!(run.u32(entry + 12), 0);
        from = end;
    }
    // The map: each entry is preceded by its size.
    let expected = MemoryMap::new(16 * MIB).e820();
    let (length, map) = (run.u32(info + 44), run.u32(info + 48));
    let mut at = map;
    for e in &expected {
        assert_eq!(run.u32(at), 20);
        assert_eq!(
            (run.u64(at + 4), run.u64(at + 12)),
            (e.base.0, e.size_bytes)
        );
        assert_eq!(run.u32(at + 20), e.kind as u32);
        at += run.u32(at) + 4;
    }
    assert_eq!(at, map + length);
}

#[test]
fn without_arguments_the_command_line_is_the_kernels_word() {
    let run = boot(elf(false, 0), &[], "");
    assert_eq!(run.bytes(run.u32(run.info() + 16), 7), b"kernel\0");
    assert_eq!(run.u32(run.info() + 20), 0, "no modules");
}

#[test]
fn the_header_is_found_only_where_it_may_be() {
    let at = |offset: usize, bytes: &[u8]| {
        let mut file = vec![0; offset];
        file.extend_from_slice(bytes);
        file.resize(file.len().max(16384), 0);
        Header::find(&file).is_some()
    };
    let good = header(0, &[]);
    assert!(at(0, &good) && at(4, &good) && at(8192 - 12, &good));
    assert!(!at(2, &good), "not at a multiple of 4");
    assert!(
        !at(8192 - 8, &good) && !at(8192, &good),
        "beyond 8192 bytes"
    );
    let mut wrong = good.clone();
    wrong[8] ^= 1;
    assert!(!at(0, &wrong), "its checksum is wrong");
    assert!(Header::find(&good[..11]).is_none());
    // Address fields cut off by the end of the file.
    assert!(Header::find(&header(1 << 16, &[0; 4])).is_none());
    assert!(Header::find(&header(1 << 16, &[0; 5])).is_some());
}

/// A flat file of 256 bytes: header at 32, loaded at 2 MByte.
fn flat(addresses: [u32; 5]) -> Vec<u8> {
    let mut file = vec![0xaa; 32];
    file.extend(header(1 << 16, &addresses));
    file.resize(256, 0xbb);
    file
}

#[test]
fn address_fields_load_a_file_that_is_no_elf_file() {
    let load = 0x20_0000;
    // From 16 bytes before the header to byte 100 of the file, 64 bytes of bss.
    let run = boot(
        flat([load + 16, load, load + 84, load + 148, load + 8]),
        &[],
        "",
    );
    assert_eq!(run.state().rip, u64::from(load) + 8);
    assert_eq!(run.bytes(load, 16), [0xaa; 16]);
    assert_eq!(run.u32(load + 16), 0x1bad_b002);
    assert_eq!(
        run.bytes(load + 80, 8),
        [0xbb, 0xbb, 0xbb, 0xbb, 0, 0, 0, 0]
    );
    // To the end of the file, no bss.
    let run = boot(flat([load + 16, load, 0, 0, load + 8]), &[], "");
    assert_eq!(
        run.bytes(load + 236, 8),
        [0xbb, 0xbb, 0xbb, 0xbb, 0, 0, 0, 0]
    );
}

#[test]
fn address_fields_are_used_instead_of_elf_headers() {
    let mut maker = Maker::new(false);
    let load = 0x30_0000;
    maker.segments[0].2 = header(1 << 16, &[load, load, 0, 0, load + 4]);
    let run = boot(maker.file(), &[], "");
    assert_eq!(run.state().rip, u64::from(load) + 4);
    assert_eq!(run.u32(load), 0x1bad_b002);
    assert_eq!(run.u32(0x10_0000), 0);
}

#[test]
fn broken_address_fields_are_refused() {
    let load = 0x20_0000;
    for addresses in [
        [load - 1, load, 0, 0, load],
        [load + 64, load, 0, 0, load],
        [load + 16, load, load - 1, 0, load],
        [load + 16, load, load + 1000, 0, load],
        [load + 16, load, 0, load + 8, load],
        [u32::MAX, 0, 0, 0, 0],
    ] {
        let error = boot(flat(addresses), &[], "").error();
        assert_eq!(
            error,
            ImageError::Multiboot(MultibootError::Addresses),
            "{addresses:x?}"
        );
    }
    // Sound in themselves, but not in RAM.
    for addresses in [
        [u32::MAX - 16, u32::MAX - 32, 0, 0, 0],
        [load + 16, load, 0, u32::MAX, load],
    ] {
        let result = boot(flat(addresses), &[], "").result;
        assert!(matches!(result, Err(BootError::SegmentOutsideRam { .. })));
    }
}

#[test]
fn what_is_required_and_not_there_is_refused() {
    for flags in [1 << 3, 1 << 15] {
        assert_eq!(
            boot(elf(false, flags), &[], "").error(),
            ImageError::Multiboot(MultibootError::Requirements(flags))
        );
    }
    // Flags 16 and above are optional.
    assert!(boot(elf(false, 1 << 17 | 1 << 31), &[], "").result.is_ok());
    assert_eq!(
        boot(elf(false, 1 << 2), &[], "").error(),
        ImageError::Multiboot(MultibootError::NoDisplay)
    );
    let mut text = header(0, &[]);
    text.resize(64, 0);
    assert_eq!(
        boot(text, &[], "").error(),
        ImageError::Multiboot(MultibootError::NoAddresses)
    );
}

#[test]
fn a_kernel_that_wants_video_gets_the_text_screen() {
    let run = boot_with(elf(false, 1 << 2), &[], "", true);
    let info = run.info();
    assert_eq!(run.u32(info) & 1 << 12, 1 << 12);
    assert_eq!(run.u64(info + 88), 0xb_8000);
    assert_eq!([96, 100, 104].map(|at| run.u32(info + at)), [160, 80, 25]);
    // Bits a cell, and the type: EGA text.
    assert_eq!(run.bytes(info + 108, 2), [16, 2]);
    // Without the header's flag it is not mentioned.
    let run = boot_with(elf(false, 0), &[], "", true);
    assert_eq!(run.u32(run.info()) & 1 << 12, 0);
}

#[test]
fn an_entry_beyond_32_bits_is_refused() {
    let mut maker = Maker::new(true);
    maker.segments[0].2 = header(0, &[]);
    maker.entry = 1 << 32;
    assert_eq!(
        boot(maker.file(), &[], "").error(),
        ImageError::Multiboot(MultibootError::HighEntry)
    );
}

/// Also just before and behind the one segment.
#[test]
fn an_entry_outside_the_segments_is_refused() {
    for (entry, good) in [(0xf_ffff, false), (0x10_0fff, true), (0x10_1000, false)] {
        let mut maker = Maker::new(false);
        maker.segments[0].2 = header(0, &[]);
        maker.entry = entry;
        let run = boot(maker.file(), &[], "");
        match good {
            true => assert_eq!(run.state().rip, entry),
            false => assert_eq!(run.error(), ImageError::EntryOutside(entry as u32)),
        }
    }
}

#[test]
fn no_changed_byte_makes_it_panic() {
    let load = 0x20_0000;
    let file = flat([load + 16, load, load + 84, load + 148, load + 8]);
    for at in 32..64 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[at] = value;
            if let Some(h) = Header::find(&changed) {
                let _ = h.program(&changed).map(|p| p.entry);
            }
        }
    }
}
