//! Reads and writes through the window (reference, "Graphics Controller").

use super::{mode_12, mode_13, set};
use crate::Vga;

const OFFSET: u64 = 0x123;

fn planar() -> Vga {
    let mut vga = Vga::new();
    mode_12(&mut vga);
    vga
}

/// What the planes hold at an offset, each read by the read map register.
fn planes(vga: &mut Vga, offset: u64) -> [u8; 4] {
    set(vga, 0x3ce, 5, 0);
    [0, 1, 2, 3].map(|plane| {
        set(vga, 0x3ce, 4, plane);
        vga.window_read(offset)
    })
}

/// Fills the planes at an offset.
fn fill(vga: &mut Vga, offset: u64, values: [u8; 4]) {
    set(vga, 0x3ce, 1, 0);
    set(vga, 0x3ce, 3, 0);
    set(vga, 0x3ce, 5, 0);
    set(vga, 0x3ce, 8, 0xff);
    for (plane, value) in values.into_iter().enumerate() {
        set(vga, 0x3c4, 2, 1 << plane);
        vga.window_write(offset, value);
    }
    set(vga, 0x3c4, 2, 0xf);
}

#[test]
fn the_map_mask_selects_planes() {
    let mut vga = planar();
    set(&mut vga, 0x3c4, 2, 0b0101);
    vga.window_write(OFFSET, 0xa5);
    assert_eq!(planes(&mut vga, OFFSET), [0xa5, 0, 0xa5, 0]);
}

#[test]
fn write_mode_0_rotates_sets_and_masks() {
    let mut vga = planar();
    fill(&mut vga, OFFSET, [0x0f; 4]);
    vga.window_read(OFFSET);
    set(&mut vga, 0x3ce, 3, 4);
    set(&mut vga, 0x3ce, 0, 0b0010);
    set(&mut vga, 0x3ce, 1, 0b0110);
    set(&mut vga, 0x3ce, 8, 0xf0);
    vga.window_write(OFFSET, 0x0c);
    // Planes 0 and 3: 0Ch rotated right by 4 is C0h; plane 1 is set, plane 2 reset; the low half is latched.
    assert_eq!(planes(&mut vga, OFFSET), [0xcf, 0xff, 0x0f, 0xcf]);
}

#[test]
fn data_and_latches_are_combined() {
    for (function, expected) in [(0, 0x3c), (1, 0x0c), (2, 0x3f), (3, 0x33)] {
        let mut vga = planar();
        fill(&mut vga, OFFSET, [0x0f; 4]);
        vga.window_read(OFFSET);
        set(&mut vga, 0x3ce, 3, function << 3);
        vga.window_write(OFFSET, 0x3c);
        assert_eq!(
            planes(&mut vga, OFFSET),
            [expected; 4],
            "function {function}"
        );
    }
}

#[test]
fn write_mode_1_copies_the_latches() {
    let mut vga = planar();
    fill(&mut vga, OFFSET, [1, 2, 3, 4]);
    vga.window_read(OFFSET);
    set(&mut vga, 0x3ce, 5, 1);
    vga.window_write(OFFSET + 1, 0xff);
    assert_eq!(planes(&mut vga, OFFSET + 1), [1, 2, 3, 4]);
}

#[test]
fn write_mode_2_writes_a_colour() {
    let mut vga = planar();
    fill(&mut vga, OFFSET, [0xff, 0xff, 0, 0]);
    vga.window_read(OFFSET);
    set(&mut vga, 0x3ce, 5, 2);
    set(&mut vga, 0x3ce, 8, 0x81);
    vga.window_write(OFFSET, 0b0101);
    assert_eq!(planes(&mut vga, OFFSET), [0xff, 0x7e, 0x81, 0]);
}

#[test]
fn write_mode_3_masks_by_the_data() {
    let mut vga = planar();
    fill(&mut vga, OFFSET, [0; 4]);
    vga.window_read(OFFSET);
    set(&mut vga, 0x3ce, 5, 3);
    set(&mut vga, 0x3ce, 0, 0b1001);
    set(&mut vga, 0x3ce, 8, 0x3f);
    vga.window_write(OFFSET, 0xf1);
    assert_eq!(planes(&mut vga, OFFSET), [0x31, 0, 0, 0x31]);
}

#[test]
fn read_mode_1_compares_colours() {
    let mut vga = planar();
    // Dots from the left: colours 0, 5, 7 and then 0.
    fill(&mut vga, OFFSET, [0x60, 0x20, 0x60, 0]);
    set(&mut vga, 0x3ce, 5, 8);
    set(&mut vga, 0x3ce, 2, 5);
    set(&mut vga, 0x3ce, 7, 0xf);
    assert_eq!(vga.window_read(OFFSET), 0x40);
    // Without plane 1, colours 5 and 7 are the same.
    set(&mut vga, 0x3ce, 7, 0b1101);
    assert_eq!(vga.window_read(OFFSET), 0x60);
}

#[test]
fn the_window_is_where_the_miscellaneous_register_says() {
    for (select, inside, outside) in [
        (0, [0, 0x1_ffff], None),
        (1, [0, 0xffff], Some([0x1_0000, 0x1_ffff])),
        (2, [0x1_0000, 0x1_7fff], Some([0xffff, 0x1_8000])),
        (3, [0x1_8000, 0x1_ffff], Some([0, 0x1_7fff])),
    ] {
        let mut vga = planar();
        set(&mut vga, 0x3ce, 6, select << 2 | 1);
        for at in inside {
            vga.window_write(at, 0x77);
            assert_eq!(vga.window_read(at), 0x77, "{select} {at:#x}");
        }
        for at in outside.into_iter().flatten() {
            vga.window_write(at, 0x77);
            assert_eq!(vga.window_read(at), 0xff, "{select} {at:#x}");
        }
    }
    // Not at all without "enable RAM".
    let mut vga = planar();
    vga.write(0x3c2, 1);
    vga.window_write(0, 0x77);
    assert_eq!(vga.window_read(0), 0xff);
}

#[test]
fn chained_addresses_select_the_plane() {
    let mut vga = Vga::new();
    mode_13(&mut vga);
    for i in 0..8 {
        vga.window_write(i, 0x10 + i as u8);
    }
    assert_eq!(vga.window_read(6), 0x16);
    // Unchained, as bytes of the planes: A1 and A0 went to the plane, the rest stayed.
    set(&mut vga, 0x3c4, 4, 6);
    assert_eq!(planes(&mut vga, 0), [0x10, 0x11, 0x12, 0x13]);
    assert_eq!(planes(&mut vga, 4), [0x14, 0x15, 0x16, 0x17]);
}

#[test]
fn text_lies_in_planes_0_and_1() {
    let mut vga = Vga::new();
    vga.set_text_mode();
    vga.window_write(0x1_8000 + 2, b'x');
    vga.window_write(0x1_8000 + 3, 0x1e);
    assert_eq!(vga.window_read(0x1_8002), b'x');
    assert_eq!(vga.window_read(0x1_8003), 0x1e);
    set(&mut vga, 0x3c4, 4, 6);
    set(&mut vga, 0x3ce, 6, 4);
    assert_eq!(planes(&mut vga, 2)[..2], [b'x', 0x1e]);
}
