//! The display as a PCI function, and at a PC's fixed addresses.

use bus::{Device, Region};
use pci::{EndpointFunction, ROM_BAR};

use super::NOW;
use crate::{DisplayFunction, LegacyWindow, Screen};

fn function(rom: Vec<u8>) -> (DisplayFunction, Screen) {
    let screen = Screen::new();
    let function = DisplayFunction::new(screen.clone(), rom).expect("it can be laid out");
    (function, screen)
}

fn read<const N: usize>(f: &mut DisplayFunction, bar: u8, offset: u64) -> [u8; N] {
    let mut data = [0xff; N];
    f.bar_read(bar, offset, &mut data, NOW);
    data
}

#[test]
fn the_function_is_a_vga_controller_with_two_windows() {
    let (mut f, _) = function(vec![0x55, 0xaa, 1]);
    assert_eq!(f.config().dword(0), 0x1111_1234);
    assert_eq!(f.config().dword(8) >> 8, 0x03_0000);
    for (register, size) in [(0x10, 16 << 20), (0x18, 4096u32)] {
        f.config_mut().write(register, &[0xff; 4]);
        assert_eq!(!(f.config().dword(register) & !0xf) + 1, size);
    }
    assert_eq!(read::<4>(&mut f, ROM_BAR, 0), [0x55, 0xaa, 1, 0xff]);
}

#[test]
fn the_edid_block_is_sound() {
    let (mut f, _) = function(Vec::new());
    let edid = read::<128>(&mut f, 2, 0);
    assert_eq!(edid[..8], [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    let sum = edid.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    assert_eq!(sum, 0);
    // The preferred timing: 1024 x 768 (bytes 56, 58 and 59, 61), 65 MHz.
    let shown = |low: usize, high: usize| u32::from(edid[low]) | u32::from(edid[high] >> 4) << 8;
    assert_eq!((shown(56, 58), shown(59, 61)), (1024, 768));
    assert_eq!(u16::from_le_bytes([edid[54], edid[55]]), 6500);
}

#[test]
fn registers_are_the_same_by_port_and_by_memory() {
    let (mut f, screen) = function(Vec::new());
    let mut window = LegacyWindow::new(screen);
    // Mode registers: index and data ports, and words from 500h.
    window.write(Region(1), 0, &1u16.to_le_bytes(), NOW);
    window.write(Region(1), 1, &800u16.to_le_bytes(), NOW);
    assert_eq!(read::<2>(&mut f, 2, 0x502), 800u16.to_le_bytes());
    f.bar_write(2, 0x504, &600u16.to_le_bytes(), NOW);
    window.write(Region(1), 0, &2u16.to_le_bytes(), NOW);
    for data_port in [1, 2] {
        let mut data = [0; 2];
        window.read(Region(1), data_port, &mut data, NOW);
        assert_eq!(data, 600u16.to_le_bytes());
    }
    // VGA ports from 400h; a word goes to index and data.
    window.write(Region(0), 0x14, &0x0702u16.to_le_bytes(), NOW);
    assert_eq!(read::<2>(&mut f, 2, 0x404), [2, 7]);
    f.bar_write(2, 0x404, &[2, 5], NOW);
    let mut data = [0];
    window.read(Region(0), 0x15, &mut data, NOW);
    assert_eq!(data, [5]);
    assert_eq!(read::<4>(&mut f, 2, 0x604), 0x1e1e_1e1eu32.to_le_bytes());
}

#[test]
fn the_frame_memory_is_linear() {
    let (mut f, screen) = function(Vec::new());
    f.bar_write(0, (16 << 20) - 2, &[1, 2, 3], NOW);
    assert_eq!(read::<3>(&mut f, 0, (16 << 20) - 2), [1, 2, 0xff]);
    f.reset();
    assert_eq!(read::<1>(&mut f, 0, (16 << 20) - 1), [0]);
    assert_eq!(screen.picture().rgb.len(), 640 * 480 * 3);
}

#[test]
fn odd_offsets_and_sizes_are_answered() {
    let (mut f, screen) = function(vec![1]);
    let mut window = LegacyWindow::new(screen);
    for len in 1..=8 {
        let mut data = vec![0xff; len];
        for offset in (0x3f8..0x430).chain(0x4f8..0x620).chain(0xff0..0x1010) {
            for bar in [0, 1, 2, 5, ROM_BAR] {
                f.bar_read(bar, offset, &mut data, NOW);
                f.bar_write(bar, offset, &data, NOW);
            }
        }
        for (region, offsets) in [
            (0, 0..0x30),
            (1, 0..3),
            (2, 0..0x10),
            (2, 0x1_fff0..0x2_0000),
        ] {
            for offset in offsets {
                window.read(Region(region), offset, &mut data, NOW);
                window.write(Region(region), offset, &data, NOW);
            }
        }
    }
}
