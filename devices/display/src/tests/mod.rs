//! The display's tests, with what they share.

mod buses;
mod modes;
mod picture;
mod planes;
mod registers;

use bus::VirtualTime;

use crate::Vga;

const NOW: VirtualTime = VirtualTime(0);

/// Writes a register by its index and data port.
fn set(vga: &mut Vga, port: u16, index: u8, value: u8) {
    vga.write(port, index);
    vga.write(port + 1, value);
}

/// Reads a register by its index and data port.
fn get(vga: &mut Vga, port: u16, index: u8) -> u8 {
    vga.write(port, index);
    vga.read(port + 1, NOW)
}

/// Writes an attribute controller register.
fn set_attribute(vga: &mut Vga, index: u8, value: u8) {
    vga.read(0x3da, NOW);
    vga.write(0x3c0, index);
    vga.write(0x3c0, value);
    vga.write(0x3c0, 0x20);
}

/// Sets a colour of the palette.
fn set_colour(vga: &mut Vga, index: u8, colour: [u8; 3]) {
    vga.write(0x3c8, index);
    for component in colour {
        vga.write(0x3c9, component);
    }
}

/// Writes all registers of a mode (IBM PS/2 Hardware Interface Technical Reference, "Mode Tables").
fn set_mode(vga: &mut Vga, output: u8, sequencer: &[u8], crtc: &[u8], graphics: &[u8], mode: u8) {
    vga.write(0x3c2, output);
    for (port, values) in [(0x3c4, sequencer), (0x3ce, graphics)] {
        for (index, &value) in (0..).zip(values) {
            set(vga, port, index, value);
        }
    }
    set(vga, 0x3d4, 0x11, 0);
    for (index, &value) in (0..).zip(crtc) {
        set(vga, 0x3d4, index, value);
    }
    for index in 0..16 {
        set_attribute(vga, index, index);
    }
    set_attribute(vga, 0x10, mode);
    set_attribute(vga, 0x12, 0xf);
}

/// 320 x 200, 256 colours.
fn mode_13(vga: &mut Vga) {
    set_mode(
        vga,
        0x63,
        &[3, 1, 0xf, 0, 0xe],
        &[
            0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e,
            0x8f, 0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff,
        ],
        &[0, 0, 0, 0, 0, 0x40, 5, 0xf, 0xff],
        0x41,
    );
}

/// 640 x 480, 16 colours.
fn mode_12(vga: &mut Vga) {
    set_mode(
        vga,
        0xe3,
        &[3, 1, 0xf, 0, 6],
        &[
            0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x8c,
            0xdf, 0x28, 0, 0xe7, 4, 0xe3, 0xff,
        ],
        &[0, 0, 0, 0, 0, 0, 5, 0xf, 0xff],
        1,
    );
}
