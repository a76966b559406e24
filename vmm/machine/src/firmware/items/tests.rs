use chipset::fw_cfg::FwCfg;

use super::*;

fn kernel() -> RealModeKernel {
    RealModeKernel {
        setup: vec![1; 1024],
        code: vec![2; 3000],
        initrd: Some((vec![3; 5000], Gpa(0x0123_4000))),
        cmdline: b"a=b\0".to_vec(),
    }
}

fn device(kernel: RealModeKernel) -> FwCfg {
    let mut items = Items::new();
    add_kernel(&mut items, kernel).expect("they fit");
    FwCfg::new(items)
}

fn bytes(device: &mut FwCfg, key: u16, count: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; count];
    device.select(key);
    device.read(&mut bytes);
    bytes
}

/// The keys and forms of QEMU's interface (include/standard-headers/linux/qemu_fw_cfg.h).
#[test]
fn the_items_of_a_kernel_have_their_keys() {
    let mut device = device(kernel());
    let mut number = |key| {
        let bytes = bytes(&mut device, key, 4);
        u32::from_le_bytes(bytes.try_into().expect("four"))
    };
    for (address, size, at, length) in [
        (0x07, 0x08, 0x10_0000, 3000),
        (0x0a, 0x0b, 0x0123_4000, 5000),
        (0x13, 0x14, 0x1_e000, 4),
        (0x16, 0x17, 0x1_0000, 1024),
    ] {
        assert_eq!(number(address), at, "{address:#x}");
        assert_eq!(number(size), length, "{size:#x}");
    }
    for (key, content) in [
        (0x11, vec![2; 3000]),
        (0x12, vec![3; 5000]),
        (0x15, b"a=b\0".to_vec()),
        (0x18, vec![1; 1024]),
    ] {
        assert!(
            bytes(&mut device, key, content.len()) == content,
            "{key:#x}"
        );
    }
}

#[test]
fn without_an_initrd_its_size_is_zero() {
    let mut device = device(RealModeKernel {
        initrd: None,
        ..kernel()
    });
    assert_eq!(bytes(&mut device, 0x0b, 4), [0; 4]);
}

/// A BIOS finds the ROM among `genroms/` and its name in the boot order, text with a zero at the end.
#[test]
fn the_rom_is_the_first_to_boot_from() {
    let mut device = device(kernel());
    let directory = bytes(&mut device, 0x19, 4 + 2 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    let mut files = directory[4..].chunks(64).map(|entry| {
        let size = u32::from_be_bytes(entry[..4].try_into().expect("four"));
        let key = u16::from_be_bytes(entry[4..6].try_into().expect("two"));
        let name = entry[8..].split(|&b| b == 0).next().expect("a name");
        (String::from_utf8_lossy(name).into_owned(), size, key)
    });
    let order = files.next().expect("a file");
    let rom = files.next().expect("a file");
    assert_eq!(order.0, "bootorder");
    assert!(rom.0.starts_with("genroms/"), "{}", rom.0);
    let expected = format!("/rom@{}\0", rom.0);
    assert_eq!(
        bytes(&mut device, order.2, order.1 as usize),
        expected.as_bytes()
    );
    assert!(bytes(&mut device, rom.2, rom.1 as usize) == rom::build());
}
