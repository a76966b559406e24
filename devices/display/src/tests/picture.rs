//! What a monitor shows.

use super::{mode_12, mode_13, set, set_attribute, set_colour};
use crate::Vga;
use crate::vbe::{enable, index};
use font8x8::{BASIC_FONTS, UnicodeFonts};

const BLACK: [u8; 3] = [0; 3];
const WHITE: [u8; 3] = [255; 3];
/// Two thirds of full blue.
const BLUE: [u8; 3] = [0, 0, 170];

fn text() -> Vga {
    let mut vga = Vga::new();
    vga.set_text_mode();
    // No cursor.
    set(&mut vga, 0x3d4, 0xa, 0x20);
    vga
}

fn put(vga: &mut Vga, column: u64, row: u64, code: u8, look: u8) {
    let at = 0x1_8000 + 2 * (80 * row + column);
    vga.window_write(at, code);
    vga.window_write(at + 1, look);
}

#[test]
fn a_character_is_drawn_by_the_font_in_plane_2() {
    let mut vga = text();
    put(&mut vga, 79, 24, b'R', 0x1f);
    let frame = vga.picture();
    assert_eq!((frame.width, frame.height), (720, 400));
    let font = BASIC_FONTS.get('R').expect("a letter");
    for y in 0..16u32 {
        for x in 0..9u32 {
            let lit = x < 8 && font[y as usize / 2] >> x & 1 != 0;
            let expected = if lit { WHITE } else { BLUE };
            assert_eq!(frame.pixel(79 * 9 + x, 24 * 16 + y), expected, "{x} {y}");
        }
    }
    assert_eq!(frame.pixel(78 * 9, 24 * 16), BLACK);
}

#[test]
fn a_font_can_be_loaded() {
    let mut vga = text();
    // As firmware does it: plane 2 alone, sequential, at A0000h.
    set(&mut vga, 0x3c4, 2, 4);
    set(&mut vga, 0x3c4, 4, 7);
    set(&mut vga, 0x3ce, 5, 0);
    set(&mut vga, 0x3ce, 6, 4);
    // Character 41h of map 1, which lies at 16 KByte.
    vga.window_write(0x4000 + 32 * 0x41 + 3, 0x81);
    set(&mut vga, 0x3c4, 2, 3);
    set(&mut vga, 0x3c4, 4, 2);
    set(&mut vga, 0x3ce, 5, 0x10);
    set(&mut vga, 0x3ce, 6, 0xe);
    put(&mut vga, 0, 0, 0x41, 0x0f);
    put(&mut vga, 1, 0, 0x41, 0x07);
    // Attributes with bit 3 show map 1, the others map 0.
    set(&mut vga, 0x3c4, 3, 1 << 2);
    let frame = vga.picture();
    let lit = |x: u32, y: u32| frame.pixel(x, y) != BLACK;
    for y in 0..16 {
        for x in 0..8 {
            assert_eq!(lit(x, y), y == 3 && (x == 0 || x == 7), "{x} {y}");
        }
    }
    assert!((0..16).any(|y| lit(9 + 3, y)), "the other is an A still");
}

#[test]
fn the_ninth_dot_repeats_only_line_graphics() {
    let mut vga = text();
    put(&mut vga, 0, 0, 0xc4, 0x0f);
    put(&mut vga, 1, 0, 0xb0, 0x0f);
    let frame = vga.picture();
    let column = |x: u32| (0..16).any(|y| frame.pixel(x, y) == WHITE);
    assert!(column(7) && column(8));
    assert!(!column(17));
}

#[test]
fn the_page_starts_where_the_crt_controller_says_and_the_cursor_is_shown() {
    let mut vga = text();
    put(&mut vga, 0, 1, 0xdb, 0x0f);
    set(&mut vga, 0x3d4, 0xd, 80);
    assert_eq!(vga.picture().pixel(0, 0), WHITE);
    set(&mut vga, 0x3d4, 0xf, 82);
    set(&mut vga, 0x3d4, 0xa, 14);
    set(&mut vga, 0x3d4, 0xb, 15);
    let frame = vga.picture();
    let grey = [170; 3];
    assert_eq!(frame.pixel(18, 13), BLACK);
    assert_eq!([frame.pixel(18, 14), frame.pixel(26, 15)], [grey; 2]);
}

/// The CRT controller's counter has 16 bits.
#[test]
fn the_cursor_is_found_behind_the_end_of_memory() {
    let mut vga = text();
    for (register, value) in [(0xa, 0), (0xb, 0xf), (0xc, 0xff), (0xd, 0xff)] {
        set(&mut vga, 0x3d4, register, value);
    }
    // The cursor is at 0, the second cell of the page.
    let frame = vga.picture();
    assert_eq!([frame.pixel(8, 0), frame.pixel(9, 0)], [BLACK, [170; 3]]);
}

#[test]
fn blinking_or_16_backgrounds() {
    let mut vga = text();
    put(&mut vga, 0, 0, b' ', 0x90);
    assert_eq!(vga.picture().pixel(0, 0), BLUE, "blinks");
    set_attribute(&mut vga, 0x10, 4);
    assert_eq!(vga.picture().pixel(0, 0), [85, 85, 255], "light blue");
}

#[test]
fn mode_13h_has_a_byte_for_a_pixel() {
    let mut vga = Vga::new();
    mode_13(&mut vga);
    set_colour(&mut vga, 200, [63, 0, 21]);
    vga.window_write(320 * 199 + 319, 200);
    vga.window_write(320 * 2 + 5, 200);
    let frame = vga.picture();
    assert_eq!((frame.width, frame.height), (640, 400));
    let colour = [255, 0, 85];
    // Each pixel is two dots wide and two lines high.
    for (x, y) in [(638, 398), (639, 399), (10, 4), (11, 5)] {
        assert_eq!(frame.pixel(x, y), colour, "{x} {y}");
    }
    for (x, y) in [(9, 4), (12, 4), (10, 3), (10, 6)] {
        assert_eq!(frame.pixel(x, y), BLACK, "{x} {y}");
    }
}

#[test]
fn mode_12h_has_a_bit_in_each_plane_for_a_pixel() {
    let mut vga = Vga::new();
    mode_12(&mut vga);
    set_colour(&mut vga, 5, [63; 3]);
    set(&mut vga, 0x3c4, 2, 0b0101);
    vga.window_write(80 * 479 + 79, 1);
    let frame = vga.picture();
    assert_eq!((frame.width, frame.height), (640, 480));
    assert_eq!(frame.pixel(639, 479), WHITE);
    assert_eq!(frame.rgb.iter().filter(|&&c| c != 0).count(), 3);
}

#[test]
fn a_display_that_is_off_is_black() {
    let mut vga = text();
    put(&mut vga, 0, 0, 0xdb, 0x0f);
    set(&mut vga, 0x3c4, 1, 0x20);
    let black = |vga: &Vga| vga.picture().rgb.iter().all(|&c| c == 0);
    assert!(black(&vga));
    set(&mut vga, 0x3c4, 1, 0);
    assert!(!black(&vga));
    assert!(black(&Vga::new()));
}

/// However the registers are set, a picture is of bounded size, and memory beyond the end reads as ones.
#[test]
fn the_largest_pictures() {
    let mut vga = text();
    set(&mut vga, 0x3d4, 0x11, 0);
    for (register, value) in [(1, 0xff), (7, 0xff), (9, 0), (0x12, 0xff), (0x13, 0xff)] {
        set(&mut vga, 0x3d4, register, value);
    }
    let frame = vga.picture();
    assert_eq!((frame.width, frame.height), (256 * 9, 1024));
    // Every dot twice.
    set(&mut vga, 0x3c4, 1, 8);
    set_attribute(&mut vga, 0x10, 1);
    let frame = vga.picture();
    assert_eq!((frame.width, frame.height), (256 * 8 * 2, 1024));
    for bits in [4, 8, 15, 16, 24, 32] {
        for (register, value) in [
            (index::ENABLE, 0),
            (index::X_RESOLUTION, 2560),
            (index::Y_RESOLUTION, 1600),
            (index::BITS_PER_PIXEL, bits),
            (index::ENABLE, enable::ENABLED),
            (index::X_OFFSET, 0xffff),
            (index::Y_OFFSET, 0xffff),
        ] {
            vga.vbe_write(register, value);
        }
        set_colour(&mut vga, 0xff, [63; 3]);
        set_colour(&mut vga, 0xf, [63; 3]);
        let frame = vga.picture();
        assert_eq!((frame.width, frame.height), (2560, 1600));
        let corners = [(0, 0), (2559, 1599)].map(|(x, y)| frame.pixel(x, y));
        assert_eq!(corners, [WHITE; 2], "{bits} bits");
    }
}
