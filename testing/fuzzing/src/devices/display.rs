//! A driver of the display, in any order and in the right one (IBM PS/2 Hardware Interface Technical Reference, "Video
//! Subsystem"; the mode registers of the Bochs VBE extension).

use machine::{Frame, Screen};

use super::hand::Hand;
use crate::Input;

/// The PCI function.
const FUNCTION: u32 = 1 << 3;
/// Its frame memory and its registers, by the driver's choice.
const MEMORY: u64 = 0xd000_0000;
const REGISTERS: u64 = 0xd100_0000;
const MEMORY_BYTES: u64 = 16 << 20;
/// Ports 3C0h to 3DFh and the mode registers among [`REGISTERS`].
const MAPPED_PORTS: u64 = REGISTERS + 0x400;
const MAPPED_MODE: u64 = REGISTERS + 0x500;
/// The window of a PC's display.
const WINDOW: u64 = 0xa_0000;
/// The highest resolution.
const HIGHEST: (u32, u32) = (2560, 1600);
/// Index ports, with the registers behind: sequencer, graphics, CRT controller with and without colour.
const INDEXED: [(u16, u8); 4] = [(0x3c4, 5), (0x3ce, 9), (0x3d4, 25), (0x3b4, 25)];
/// Mode registers.
const WIDTH: u16 = 1;
const HEIGHT: u16 = 2;
const BITS: u16 = 3;
const ENABLE: u16 = 4;
const ENABLED_LINEAR: u16 = 0x41;

/// Places its registers.
pub fn place(hand: &mut Hand<'_>) {
    hand.place(FUNCTION, 0, MEMORY);
    hand.place(FUNCTION, 2, REGISTERS);
    hand.enable(FUNCTION);
}

fn port(hand: &mut Hand<'_>, port: u16, value: u8) {
    hand.platform.pio_write(port, 1, value.into(), 0);
}

fn mode(hand: &mut Hand<'_>, register: u16, value: u16) {
    hand.platform.pio_write(0x1ce, 2, register.into(), 0);
    hand.platform.pio_write(0x1cf, 2, value.into(), 0);
}

fn set_mode(hand: &mut Hand<'_>, width: u16, height: u16, bits: u16, enable: u16) {
    let registers = [
        (ENABLE, 0),
        (WIDTH, width),
        (HEIGHT, height),
        (BITS, bits),
        (ENABLE, enable),
    ];
    for (register, value) in registers {
        mode(hand, register, value);
    }
}

/// A size, mostly a small one.
fn size(input: &mut Input<'_>) -> u16 {
    match input.below(16) {
        0 => input.any(),
        1 => input.pick(&[0, 1, 7, 8, 1600, 1601, 2560, 2561, 0xffff]),
        _ => u16::from(input.any::<u8>()),
    }
}

/// An offset in frame memory: often near an end.
fn offset(input: &mut Input<'_>) -> u64 {
    let near = u64::from(input.any::<u16>() & 0x3fff);
    match input.below(4) {
        0 => MEMORY_BYTES - 8 - (near & 0xff),
        1 => u64::from(input.any::<u32>()) % (MEMORY_BYTES - 8),
        2 => u64::from(input.any::<u32>() & 0xf_ffff),
        _ => near,
    }
}

/// A driver without scruples.
pub fn any(hand: &mut Hand<'_>, input: &mut Input<'_>) {
    match input.below(12) {
        0 | 1 => {
            let (index, count) = input.pick(&INDEXED);
            let register = input.below(usize::from(count) + 1) as u8;
            let value = input.any::<u8>();
            match input.below(4) {
                0 => {
                    let word = u32::from(value) << 8 | u32::from(register);
                    hand.platform.pio_write(index, 2, word, 0);
                }
                1 if index >= 0x3c0 => {
                    let at = MAPPED_PORTS + u64::from(index - 0x3c0);
                    hand.write(at, u64::from(value) << 8 | u64::from(register), 2);
                }
                _ => {
                    port(hand, index, register);
                    port(hand, index + 1, value);
                }
            }
        }
        2 => {
            // A read of input status 1 has the next write be an index.
            hand.platform.pio_read(0x3da, 1, 0);
            hand.platform.pio_read(0x3ba, 1, 0);
            let on = if input.once_in(4) { 0 } else { 0x20 };
            port(hand, 0x3c0, input.below(0x20) as u8);
            port(hand, 0x3c0, input.any());
            port(hand, 0x3c0, on);
        }
        3 => port(hand, 0x3c2, input.any()),
        4 => {
            port(hand, 0x3c8, input.any());
            for _ in 0..3 {
                port(hand, 0x3c9, input.any());
            }
            port(hand, 0x3c6, input.pick(&[0xff, 0xff, 0x0f, 0]));
        }
        5 | 6 => {
            let register = input.below(12) as u16;
            let value = size(input);
            if input.once_in(2) {
                mode(hand, register, value);
            } else {
                hand.write(MAPPED_MODE + 2 * u64::from(register), value.into(), 2);
            }
        }
        7 => {
            let (width, height) = (size(input), size(input));
            let bits = input.pick(&[4, 8, 15, 16, 24, 32, 32, 0, 7]);
            let enable = ENABLED_LINEAR | u16::from(input.any::<u8>());
            set_mode(hand, width, height, bits, enable);
        }
        8 | 9 => {
            let bytes = input.pick(&[1, 2, 4, 8]);
            let (at, value) = (MEMORY + offset(input), input.any::<u64>());
            // What else was written may have moved it.
            place(hand);
            hand.write(at, value, bytes);
            let mask = u64::MAX >> (64 - 8 * bytes);
            assert_eq!(hand.read(at, bytes), value & mask, "frame memory {at:#x}");
        }
        10 => {
            let at = WINDOW + u64::from(input.any::<u32>() & 0x1_fff8);
            hand.write(at, input.any(), input.pick(&[1, 2, 4, 8]));
        }
        _ => {
            let at = WINDOW + u64::from(input.any::<u32>() & 0x1_fff8);
            hand.read(at, input.pick(&[1, 2, 4, 8]));
            hand.read(REGISTERS + u64::from(input.any::<u16>() & 0xff8), 8);
        }
    }
}

/// A picture is of the size it says, and no larger than the display can be.
pub fn check(picture: &Frame) {
    let (width, height) = (picture.width, picture.height);
    assert!(
        width <= HIGHEST.0 && height <= HIGHEST.1,
        "{width} x {height}"
    );
    let bytes = width as usize * height as usize * 3;
    assert_eq!(picture.rgb.len(), bytes, "{width} x {height}");
}

/// A mode of 32 bits shows what is in frame memory: blue, green, red of each pixel, black where nothing was written.
pub fn right(hand: &mut Hand<'_>, input: &mut Input<'_>, screen: &Screen) {
    let width = 8 * (1 + input.below(64)) as u16;
    let height = 1 + input.below(512) as u16;
    set_mode(hand, width, height, 32, ENABLED_LINEAR);
    let colour = input.any::<u32>() & 0xff_ffff;
    let (x, y) = (input.below(width.into()), input.below(height.into()));
    let at = y * usize::from(width) + x;
    place(hand);
    hand.write(MEMORY + 4 * at as u64, colour.into(), 4);
    let picture = screen.picture();
    check(&picture);
    assert_eq!(
        (picture.width, picture.height),
        (width.into(), height.into())
    );
    let [blue, green, red, _] = colour.to_le_bytes();
    for (n, pixel) in picture.rgb.chunks(3).enumerate() {
        let expected = if n == at { [red, green, blue] } else { [0; 3] };
        assert_eq!(pixel, expected, "pixel {n} of {width} x {height}");
    }
}
