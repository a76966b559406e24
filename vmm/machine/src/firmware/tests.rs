use std::fs;

use super::*;

const CODE: usize = 256 << 10;

fn firmware(code: usize, variables: Option<Variables>) -> Firmware {
    Firmware {
        code: Image::Bytes(Arc::new(vec![0x11; code])),
        variables,
    }
}

fn variables(bytes: usize, file: Option<PathBuf>) -> Variables {
    Variables {
        template: Image::Bytes(Arc::new(vec![0x22; bytes])),
        file,
    }
}

fn ram(loaded: &Loaded) -> GuestRam {
    let map = MemoryMap::new(16 << 20);
    GuestRam::with_layout(&loaded.layout(&map)).expect("a small machine")
}

#[test]
fn the_code_ends_at_4_gib_and_shows_below_1_mib() {
    let mut f = firmware(CODE, None);
    let mut code = vec![0x11; CODE];
    code[CODE - 16] = 0xea;
    code[CODE - (128 << 10)] = 0x77;
    f.code = Image::Bytes(Arc::new(code));
    let loaded = Loaded::read(&f).expect("good");
    let ram = ram(&loaded);
    loaded.place(&ram);
    let byte = |gpa| {
        let mut b = [0];
        ram.read(Gpa(gpa), &mut b).map(|()| b[0]).ok()
    };
    // The first instruction is at FFFFFFF0h (SDM Vol 3 10.1.4).
    assert_eq!(byte(0xffff_fff0), Some(0xea));
    assert_eq!(byte(0xfffc_0000), Some(0x11));
    assert_eq!(byte(0xfffb_ffff), None);
    ram.set_legacy(switches([0; PAMS]));
    assert_eq!(byte(0xf_fff0), Some(0xea));
    assert_eq!(byte(0xe_0000), Some(0x77));
    assert_eq!(byte(0xd_ffff), None);
}

/// 82G33 datasheet 5.1.18 to 5.1.24.
#[test]
fn each_attribute_nibble_has_its_segment() {
    let segments = [
        (0x90, 4, 0xf_0000, 0x1_0000),
        (0x91, 0, 0xc_0000, 0x4000),
        (0x91, 4, 0xc_4000, 0x4000),
        (0x92, 0, 0xc_8000, 0x4000),
        (0x92, 4, 0xc_c000, 0x4000),
        (0x93, 0, 0xd_0000, 0x4000),
        (0x93, 4, 0xd_4000, 0x4000),
        (0x94, 0, 0xd_8000, 0x4000),
        (0x94, 4, 0xd_c000, 0x4000),
        (0x95, 0, 0xe_0000, 0x4000),
        (0x95, 4, 0xe_4000, 0x4000),
        (0x96, 0, 0xe_8000, 0x4000),
        (0x96, 4, 0xe_c000, 0x4000),
    ];
    let loaded = Loaded::read(&firmware(CODE, None)).expect("good");
    let ram = ram(&loaded);
    for (register, shift, start, bytes) in segments {
        for (enable, read, write) in [(1u8, true, false), (2, false, true), (3, true, true)] {
            let mut pam = [0; PAMS];
            pam[register - 0x90] = enable << shift;
            ram.set_legacy(switches(pam));
            for gpa in (0xc_0000..0x10_0000u64).step_by(0x1000) {
                let inside = (start..start + bytes).contains(&gpa);
                let is_ram = ram.find(Gpa(gpa), 1).is_some_and(|at| at.0 == gpa);
                assert_eq!(is_ram, inside && read, "{register:x} {gpa:x} read");
                let is_written = ram.find_write(Gpa(gpa), 1).is_some();
                assert_eq!(is_written, inside && write, "{register:x} {gpa:x} write");
            }
        }
    }
    // The low nibble of PAM0 is reserved.
    assert_eq!(switches([0x0f, 0, 0, 0, 0, 0, 0]), LegacySwitches::BOARD);
    assert_eq!(switches([0x33; PAMS]), LegacySwitches::RAM);
}

#[test]
fn sizes_no_board_maps_are_refused() {
    for bytes in [0, 100, 64 << 10, (256 << 10) + 1, 17 << 20] {
        let error = Loaded::read(&firmware(bytes, None)).err().expect("refused");
        assert!(matches!(error, FirmwareError::CodeSize { .. }), "{error}");
    }
    for bytes in [0, 100, 16 << 20] {
        let bad = firmware(CODE, Some(variables(bytes, None)));
        let error = Loaded::read(&bad).err().expect("refused");
        assert!(
            matches!(error, FirmwareError::VariablesSize { .. }),
            "{error}"
        );
    }
    let missing = Firmware {
        code: Image::File("/nonexistent/rom".into()),
        variables: None,
    };
    let error = Loaded::read(&missing).err().expect("refused").to_string();
    assert!(error.contains("/nonexistent/rom"), "{error}");
}

#[test]
fn the_flash_lies_below_the_code_and_its_file_is_filled_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vars");
    let f = firmware(CODE, Some(variables(8192, Some(path.clone()))));
    let loaded = Loaded::read(&f).expect("good");
    assert_eq!(fs::read(&path).expect("made"), [0x22; 8192]);
    let (mut flash, base, bytes) = loaded.flash().expect("there");
    assert_eq!((base, bytes), (Gpa(0xfffc_0000 - 8192), 8192));
    // Program a byte: it is in the file, and stays there.
    let now = bus::VirtualTime(0);
    for value in [0x40, 0x02] {
        bus::Device::write(&mut flash, bus::Region(0), 5, &[value], now);
    }
    assert_eq!(fs::read(&path).expect("kept")[4..7], [0x22, 0x02, 0x22]);
    drop(flash);
    let again = Loaded::read(&f).expect("good");
    assert_eq!(again.variables.expect("there").0[5], 0x02);
    fs::write(&path, [0; 4096]).expect("written");
    let error = Loaded::read(&f).err().expect("refused").to_string();
    assert!(
        error.contains("4096 bytes") && error.contains("8192"),
        "{error}"
    );
}
