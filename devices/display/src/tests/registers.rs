//! The VGA's ports.

use bus::VirtualTime;

use super::{NOW, get, set, set_attribute, set_colour};
use crate::Vga;

#[test]
fn indexed_registers_keep_what_is_written() {
    let mut vga = Vga::new();
    vga.write(0x3c2, 1);
    for (port, count) in [(0x3c4, 5), (0x3ce, 9), (0x3d4, 0x19)] {
        for index in 0..count {
            set(&mut vga, port, index, 0x5a);
            assert_eq!(get(&mut vga, port, index), 0x5a, "{port:#x} {index}");
            set(&mut vga, port, index, 0);
        }
    }
    assert_eq!(vga.read(0x3cc, NOW), 1);
}

#[test]
fn the_crt_controller_is_at_3b4_or_3d4() {
    let mut vga = Vga::new();
    // Monochrome after power-up.
    set(&mut vga, 0x3b4, 0xc, 0x12);
    assert_eq!(get(&mut vga, 0x3b4, 0xc), 0x12);
    assert_eq!(get(&mut vga, 0x3d4, 0xc), 0xff);
    vga.write(0x3c2, 1);
    assert_eq!(get(&mut vga, 0x3d4, 0xc), 0x12);
    assert_eq!(get(&mut vga, 0x3b4, 0xc), 0xff);
}

/// Vertical retrace end register, bit 7: "Protect R0-7"; line compare bit 8 in the overflow register is not.
#[test]
fn registers_0_to_7_can_be_protected() {
    let mut vga = Vga::new();
    vga.write(0x3c2, 1);
    set(&mut vga, 0x3d4, 7, 0x0f);
    set(&mut vga, 0x3d4, 0x11, 0x80);
    set(&mut vga, 0x3d4, 0, 0x33);
    set(&mut vga, 0x3d4, 7, 0xf0);
    set(&mut vga, 0x3d4, 8, 0x33);
    assert_eq!(get(&mut vga, 0x3d4, 0), 0);
    assert_eq!(get(&mut vga, 0x3d4, 7), 0x1f);
    assert_eq!(get(&mut vga, 0x3d4, 8), 0x33);
}

#[test]
fn the_attribute_controller_takes_index_and_data_in_turn() {
    let mut vga = Vga::new();
    vga.write(0x3c2, 1);
    set_attribute(&mut vga, 3, 0x2a);
    vga.read(0x3da, NOW);
    vga.write(0x3c0, 3);
    assert_eq!(vga.read(0x3c1, NOW), 0x2a);
    assert_eq!(vga.read(0x3c0, NOW), 3);
    // The next write is data until input status 1 is read.
    vga.read(0x3da, NOW);
    vga.write(0x3c0, 5);
    assert_eq!(vga.read(0x3c1, NOW), 0);
}

#[test]
fn colours_are_written_and_read_component_by_component() {
    let mut vga = Vga::new();
    set_colour(&mut vga, 7, [1, 2, 0xff]);
    // The index advances by itself.
    assert_eq!(vga.read(0x3c8, NOW), 8);
    assert_eq!(vga.read(0x3c7, NOW), 0, "the last index was for writing");
    vga.write(0x3c7, 7);
    assert_eq!(vga.read(0x3c7, NOW), 3, "the last index was for reading");
    let read: [u8; 3] = std::array::from_fn(|_| vga.read(0x3c9, NOW));
    assert_eq!(read, [1, 2, 0x3f], "6 bits");
    vga.write(0x3c6, 0x0f);
    assert_eq!(vga.read(0x3c6, NOW), 0x0f);
}

/// Input status 1: bit 0 display enable (inverted), bit 3 vertical retrace.
#[test]
fn the_picture_has_a_retrace() {
    let mut vga = Vga::new();
    vga.write(0x3c2, 1);
    let mut seen = [0u32; 16];
    let steps = 2000;
    for step in 0..steps {
        let now = VirtualTime(step * 10_000);
        seen[usize::from(vga.read(0x3da, now) & 9)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0 && seen[9] > 0);
    assert_eq!(seen[8], 0, "retrace is outside of the picture");
}

#[test]
fn no_access_panics() {
    let mut vga = Vga::new();
    let mut random = 1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..20 {
        for _ in 0..2000 {
            let r = next();
            let value = (r >> 32) as u8;
            match r % 6 {
                0 => vga.write(0x3b0 + (r >> 8) as u16 % 0x30, value),
                1 => {
                    vga.read(0x3b0 + (r >> 8) as u16 % 0x30, NOW);
                }
                2 => vga.vbe_write((r >> 8) as u16 % 12, (r >> 32) as u16),
                3 => {
                    vga.vbe_read((r >> 8) as u16);
                }
                4 => vga.window_write((r >> 8) % 0x2_0100, value),
                _ => {
                    vga.window_read((r >> 8) % 0x2_0100);
                }
            }
        }
        let frame = vga.picture();
        assert_eq!(frame.rgb.len(), (frame.width * frame.height * 3) as usize);
    }
}
