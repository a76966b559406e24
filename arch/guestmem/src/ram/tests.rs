use super::*;

fn ram() -> GuestRam {
    GuestRam::new(&[(Gpa(0), 0x4000), (Gpa(0x1_0000_0000), 0x2000)]).expect("six pages")
}

#[test]
fn finds_only_what_lies_in_one_region() {
    let r = ram();
    assert_eq!(r.find(Gpa(0x3fff), 1), Some(RamOffset(0x3fff)));
    assert_eq!(r.find(Gpa(0x3fff), 2), None);
    assert_eq!(r.find(Gpa(0x1_0000_1000), 0x1000), Some(RamOffset(0x5000)));
    assert_eq!(r.find(Gpa(u64::MAX), 8), None);
    assert_eq!(r.gpa_at(RamOffset(0x4010)), Some(Gpa(0x1_0000_0010)));
    assert_eq!(r.gpa_at(RamOffset(0x6000)), None);
}

#[test]
fn words_are_little_endian_at_any_alignment() {
    let r = ram();
    r.store(RamOffset(3), 0x1122_3344_5566_7788u64);
    assert_eq!(r.load::<u8>(RamOffset(3)), 0x88);
    assert_eq!(r.load::<u32>(RamOffset(7)), 0x1122_3344);
    assert_eq!(
        r.compare_exchange(RamOffset(8), r.load::<u16>(RamOffset(8)), 7),
        Ok(0x2233)
    );
}

/// Two threads count at every alignment a line has for them, beside a neighbour that must not change.
#[test]
fn compare_and_exchange_is_atomic_at_any_alignment() {
    const COUNT: u32 = 20_000;
    fn add(r: &GuestRam, at: RamOffset) {
        let mut old = r.load::<u32>(at);
        while let Err(now) = r.compare_exchange(at, old, old + 1) {
            old = now;
        }
    }
    let r = ram();
    for within in [0, 1, 2, 3, 57, 60] {
        let at = RamOffset(0x1000 + within);
        r.store(RamOffset(at.0 + 4), 0xabu8);
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| (0..COUNT).for_each(|_| add(&r, at)));
            }
        });
        assert_eq!(r.load::<u32>(at), 2 * COUNT, "at {within}");
        assert_eq!(r.load::<u8>(RamOffset(at.0 + 4)), 0xab);
        r.fill(RamOffset(0x1000), 0, 0x80);
    }
    let (old, new) = (5u128 << 100 | 1, 6u128 << 90 | 2);
    r.write_at(RamOffset(0x20), &old.to_le_bytes());
    if let Some(done) = r.compare_exchange_16(RamOffset(0x20), old, new) {
        assert_eq!(done, Ok(old));
        assert_eq!(
            r.compare_exchange_16(RamOffset(0x20), old, 0),
            Some(Err(new))
        );
    }
}

#[test]
#[should_panic(expected = "across lines")]
fn no_atomic_access_crosses_a_line() {
    let _ = ram().compare_exchange::<u32>(RamOffset(0x103d), 0, 1);
}

#[test]
#[should_panic(expected = "outside guest RAM")]
fn a_load_past_the_end_is_refused() {
    ram().load::<u64>(RamOffset(0x5ff9));
}

#[test]
fn bad_layouts_are_refused() {
    assert!(GuestRam::new(&[]).is_err());
    assert!(GuestRam::new(&[(Gpa(1), 0x1000)]).is_err());
    assert!(GuestRam::new(&[(Gpa(0), 0x2000), (Gpa(0x1000), 0x1000)]).is_err());
    assert!(GuestRam::new(&[(Gpa(u64::MAX - 0xfff), 0x2000)]).is_err());
}

const ROM: u64 = 0xffff_c000;
const BIOS: u64 = 0xfffc_0000;

/// 2 MByte of RAM, a ROM of 256 KByte that ends at 4 GByte, the legacy area.
fn pc() -> GuestRam {
    let ram = GuestRam::with_layout(&MemoryLayout {
        ram: vec![(Gpa(0), 2 << 20)],
        roms: vec![(Gpa(BIOS), 256 << 10)],
        legacy_area: true,
    })
    .expect("a valid layout");
    let rom = ram.find(Gpa(BIOS), 256 << 10).expect("it is read there");
    for page in 0..64 {
        ram.fill(RamOffset(rom.0 + page * PAGE_SIZE), page as u8, PAGE_SIZE);
    }
    ram
}

fn byte(ram: &GuestRam, gpa: u64) -> Option<u8> {
    ram.find(Gpa(gpa), 1).map(|at| ram.load(at))
}

#[test]
fn rom_is_read_and_not_written() {
    let r = pc();
    assert_eq!(byte(&r, 0xffff_fff0), Some(63));
    assert_eq!(r.find_write(Gpa(0xffff_fff0), 1), None);
    assert!(r.write(Gpa(ROM), &[1]).is_err());
    assert_eq!(byte(&r, ROM), Some(60));
    // The last byte of the address space, and none beyond.
    assert!(r.find(Gpa(0xffff_ffff), 1).is_some());
    assert_eq!(r.find(Gpa(0xffff_ffff), 2), None);
}

#[test]
fn video_memory_is_never_ram() {
    let r = pc();
    for gpa in [0xa_0000, 0xb_8000, 0xb_ffff] {
        assert_eq!(r.find(Gpa(gpa), 1), None);
        assert_eq!(r.find_write(Gpa(gpa), 1), None);
    }
    assert_eq!(r.find(Gpa(0x9_ffff), 2), None);
    assert!(r.find(Gpa(0x9_ffff), 1).is_some());
}

#[test]
fn the_four_settings_of_a_piece() {
    let r = pc();
    r.write(Gpa(0xf_0000), &[0xaa]).expect("RAM at first");
    // Reads ROM, writes dropped. F0000h is 64 KByte before the ROM's end: page 48.
    assert!(r.set_legacy(LegacySwitches::BOARD));
    assert_eq!(byte(&r, 0xf_0000), Some(48));
    assert_eq!(r.find_write(Gpa(0xf_0000), 1), None);
    // Nothing is below the last 128 KByte.
    assert_eq!(byte(&r, 0xd_ffff), None);
    let f = |read, write| LegacySwitches::BOARD.with(0xf_0000, 0xf_ffff, read, write);
    // Reads ROM, writes RAM.
    r.set_legacy(f(false, true));
    r.write(Gpa(0xf_0000), &[0xbb]).expect("RAM");
    assert_eq!(byte(&r, 0xf_0000), Some(48));
    // Reads RAM, writes dropped.
    r.set_legacy(f(true, false));
    assert_eq!(byte(&r, 0xf_0000), Some(0xbb));
    assert_eq!(r.find_write(Gpa(0xf_0000), 1), None);
    // Neighbours keep theirs.
    assert_eq!(byte(&r, 0xe_f000), Some(47));
    r.set_legacy(f(true, true));
    assert_eq!(r.find(Gpa(0xf_0000), 1), r.find_write(Gpa(0xf_0000), 1));
    assert!(!r.set_legacy(f(true, true)), "no change");
}

#[test]
fn a_run_does_not_hide_a_change_of_backing() {
    let r = pc();
    r.set_legacy(LegacySwitches::BOARD.with(0xe_4000, 0xe_7fff, true, true));
    assert!(r.find(Gpa(0xe_3fff), 1).is_some());
    assert_eq!(r.find(Gpa(0xe_3fff), 2), None);
    assert!(r.find(Gpa(0xe_4000), 0x4000).is_some());
    assert_eq!(r.find(Gpa(0xe_4000), 0x4001), None);
    // The board's own accesses go piece by piece.
    let mut two = [0; 2];
    r.read(Gpa(0xe_3fff), &mut two).expect("ROM, then RAM");
    assert_eq!(two, [32 + 3, 0]);
    assert!(r.write(Gpa(0xe_3fff), &two).is_err());
}

#[test]
fn runs_are_what_is_found() {
    let r = pc();
    let check = |r: &GuestRam| {
        let runs = r.runs();
        for gpa in (0..2 << 20).chain(BIOS..1 << 32).step_by(4096) {
            let run = runs
                .iter()
                .find(|run| run.base.0 <= gpa && gpa - run.base.0 < run.size_bytes);
            let offset = run.map(|run| RamOffset(run.offset.0 + gpa - run.base.0));
            assert_eq!(offset, r.find(Gpa(gpa), 1), "{gpa:#x}");
            let writable = run.filter(|run| run.writable).and(offset);
            let write = r.find_write(Gpa(gpa), 1).filter(|w| Some(*w) == offset);
            assert_eq!(writable, write, "{gpa:#x}");
        }
    };
    check(&r);
    assert_eq!(r.runs().len(), 4);
    for switches in [
        LegacySwitches::BOARD,
        LegacySwitches::BOARD.with(0xf_0000, 0xf_ffff, true, false),
        LegacySwitches::RAM.with(0xc_8000, 0xc_bfff, false, true),
    ] {
        r.set_legacy(switches);
        check(&r);
    }
}

#[test]
fn a_legacy_area_needs_ram() {
    let layout = MemoryLayout {
        ram: vec![(Gpa(0), 0xf_0000)],
        roms: Vec::new(),
        legacy_area: true,
    };
    assert!(GuestRam::with_layout(&layout).is_err());
}
