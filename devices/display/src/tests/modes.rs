//! The mode registers of the Bochs VBE extension.

use crate::Vga;
use crate::vbe::{enable, index};

fn mode(vga: &mut Vga, width: u16, height: u16, bits: u16, flags: u16) {
    vga.vbe_write(index::ENABLE, 0);
    vga.vbe_write(index::X_RESOLUTION, width);
    vga.vbe_write(index::Y_RESOLUTION, height);
    vga.vbe_write(index::BITS_PER_PIXEL, bits);
    vga.vbe_write(index::ENABLE, enable::ENABLED | flags);
}

#[test]
fn the_interface_says_who_it_is_and_what_it_can() {
    let mut vga = Vga::new();
    assert_eq!(vga.vbe_read(index::ID), 0xb0c5);
    assert_eq!(vga.vbe_read(index::VIDEO_MEMORY_64K), 256);
    // Drivers write the version they want and read it back.
    vga.vbe_write(index::ID, 0xb0c2);
    assert_eq!(vga.vbe_read(index::ID), 0xb0c2);
    vga.vbe_write(index::ID, 0xb0c6);
    assert_eq!(vga.vbe_read(index::ID), 0xb0c2);
    vga.vbe_write(index::ENABLE, enable::CAPABILITIES);
    assert_eq!(vga.vbe_read(index::X_RESOLUTION), 2560);
    assert_eq!(vga.vbe_read(index::Y_RESOLUTION), 1600);
    assert_eq!(vga.vbe_read(index::BITS_PER_PIXEL), 32);
}

#[test]
fn pixels_of_every_depth() {
    // Half red, full green, no blue, as far as the depth goes.
    for (bits, bytes, expected) in [
        (32, vec![0x00, 0xff, 0x80, 0], [0x80, 0xff, 0]),
        (24, vec![0x00, 0xff, 0x80], [0x80, 0xff, 0]),
        (16, vec![0xe0, 0x87], [132, 255, 0]),
        (15, vec![0xe0, 0x43], [132, 255, 0]),
    ] {
        let mut vga = Vga::new();
        mode(&mut vga, 640, 400, bits, enable::LINEAR);
        let pitch = 640 * bytes.len();
        let at = 399 * pitch + 639 * bytes.len();
        for (i, byte) in bytes.into_iter().enumerate() {
            vga.set_byte(at + i, byte);
        }
        let frame = vga.picture();
        assert_eq!((frame.width, frame.height), (640, 400));
        assert_eq!(frame.pixel(639, 399), expected, "{bits} bits");
        assert_eq!(frame.pixel(638, 399), [0; 3], "{bits} bits");
    }
}

#[test]
fn eight_bits_go_through_the_palette() {
    let mut vga = Vga::new();
    mode(&mut vga, 320, 200, 8, enable::LINEAR);
    super::set_colour(&mut vga, 9, [63, 32, 0]);
    vga.set_byte(0, 9);
    assert_eq!(vga.picture().pixel(0, 0), [255, 130, 0]);
    // With an 8-bit DAC components are taken as they are.
    vga.vbe_write(index::ENABLE, enable::ENABLED | enable::DAC_8_BITS);
    super::set_colour(&mut vga, 9, [200, 100, 50]);
    assert_eq!(vga.picture().pixel(0, 0), [200, 100, 50]);
}

#[test]
fn enabling_clears_the_memory_unless_told_not_to() {
    let mut vga = Vga::new();
    vga.set_byte(1000, 7);
    mode(&mut vga, 640, 480, 32, enable::KEEP_MEMORY);
    assert_eq!(vga.byte(1000), 7);
    mode(&mut vga, 640, 480, 32, 0);
    assert_eq!(vga.byte(1000), 0);
}

#[test]
fn the_resolution_changes_only_while_disabled() {
    let mut vga = Vga::new();
    mode(&mut vga, 640, 480, 32, 0);
    vga.vbe_write(index::X_RESOLUTION, 800);
    vga.vbe_write(index::Y_RESOLUTION, 600);
    vga.vbe_write(index::BITS_PER_PIXEL, 16);
    let now = [
        index::X_RESOLUTION,
        index::Y_RESOLUTION,
        index::BITS_PER_PIXEL,
    ];
    assert_eq!(now.map(|r| vga.vbe_read(r)), [640, 480, 32]);
    vga.vbe_write(index::ENABLE, 0);
    for (register, value) in [
        (index::X_RESOLUTION, 2561),
        (index::Y_RESOLUTION, 1601),
        (index::BITS_PER_PIXEL, 7),
    ] {
        vga.vbe_write(register, value);
    }
    assert_eq!(now.map(|r| vga.vbe_read(r)), [640, 480, 32]);
}

#[test]
fn the_picture_can_be_a_part_of_a_larger_one() {
    let mut vga = Vga::new();
    mode(&mut vga, 640, 480, 32, 0);
    vga.vbe_write(index::VIRTUAL_WIDTH, 1024);
    assert_eq!(vga.vbe_read(index::VIRTUAL_WIDTH), 1024);
    // 16 MiB of lines of 4 KiB.
    assert_eq!(vga.vbe_read(index::VIRTUAL_HEIGHT), 4096);
    vga.vbe_write(index::X_OFFSET, 10);
    vga.vbe_write(index::Y_OFFSET, 20);
    vga.set_byte(20 * 4096 + 10 * 4, 0xff);
    assert_eq!(vga.picture().pixel(0, 0), [0, 0, 255]);
}

/// Eight pixels of 4 bits are a byte of each plane; a picture that starts within one starts with its byte.
#[test]
fn a_picture_of_planes_starts_with_the_byte_of_its_first_pixel() {
    let mut vga = Vga::new();
    vga.write(0x3c2, 1);
    mode(&mut vga, 640, 480, 4, 0);
    super::set_attribute(&mut vga, 15, 15);
    super::set_attribute(&mut vga, 0x12, 15);
    super::set_colour(&mut vga, 15, [63; 3]);
    (0..4).for_each(|plane| vga.set_byte(plane, 0xff));
    for (offset, lit) in [(0, true), (4, true), (7, true), (8, false)] {
        vga.vbe_write(index::X_OFFSET, offset);
        let expected = [if lit { 255 } else { 0 }; 3];
        assert_eq!(vga.picture().pixel(0, 0), expected, "{offset}");
    }
}

#[test]
fn a_picture_never_needs_more_than_the_memory() {
    let mut vga = Vga::new();
    mode(&mut vga, 2560, 1600, 32, 0);
    assert_eq!(vga.vbe_read(index::Y_RESOLUTION), 1600, "16,384,000 bytes");
    vga.vbe_write(index::VIRTUAL_WIDTH, 4096);
    assert_eq!(vga.vbe_read(index::VIRTUAL_WIDTH), 2560);
}

#[test]
fn the_window_shows_a_bank() {
    let mut vga = Vga::new();
    super::mode_13(&mut vga);
    mode(&mut vga, 640, 480, 8, 0);
    vga.vbe_write(index::BANK, 3);
    vga.window_write(5, 0x42);
    assert_eq!(vga.byte(3 * 65536 + 5), 0x42);
    assert_eq!(vga.window_read(5), 0x42);
}
