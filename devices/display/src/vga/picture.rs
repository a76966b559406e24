//! What a monitor shows (reference, "CRT Controller", "Attribute Controller"): a dot for each pixel, each scan
//! line once. Line compare, panning and preset row scan are not looked at.

use super::Vga;
use super::memory::PLANE_BYTES;
use super::regs::{attribute, crtc, graphics, sequencer};
use crate::Frame;

/// The picture while the display is off.
const OFF: (u32, u32) = (640, 480);
/// Bytes of a character's dots in plane 2.
const GLYPH_BYTES: usize = 32;
/// Lines the CRT controller can count.
const MAX_LINES: u32 = 1024;

/// Where a byte of a picture is: counter of the CRT controller and row in the character.
#[derive(Clone, Copy)]
struct Place {
    counter: usize,
    row: usize,
}

impl Vga {
    /// Makes a picture of the screen as it is now.
    #[must_use]
    pub fn picture(&self) -> Frame {
        if self.vbe.is_enabled() {
            return self.vbe_picture();
        }
        let off = self.sequencer[sequencer::CLOCKING] & sequencer::SCREEN_OFF != 0;
        if off || self.attribute_index & 0x20 == 0 {
            return Frame::black(OFF.0, OFF.1);
        }
        if self.attribute[attribute::MODE] & attribute::GRAPHICS == 0 {
            self.text_picture()
        } else {
            self.graphics_picture()
        }
    }

    /// A colour of the palette, 8 bits a component.
    fn colour(&self, index: u8) -> [u8; 3] {
        let colour = self.palette[usize::from(index & self.dac_mask)];
        if self.vbe.dac_8_bits() {
            return colour;
        }
        // 63 becomes 255.
        colour.map(|c| c << 2 | c >> 4)
    }

    /// The colour of four bits that come out of the planes or an attribute.
    fn attribute_colour(&self, bits: u8) -> [u8; 3] {
        let bits = bits & self.attribute[attribute::PLANE_ENABLE] & 0xf;
        let inner = self.attribute[usize::from(bits)];
        let select = self.attribute[attribute::COLOUR_SELECT];
        let low = match self.attribute[attribute::MODE] & attribute::PALETTE_SELECT {
            0 => inner & 0x3f,
            _ => inner & 0x0f | (select & 3) << 4,
        };
        self.colour(low | (select & 0xc) << 4)
    }

    fn crtc_word(&self, high: usize) -> usize {
        usize::from(self.crtc[high]) << 8 | usize::from(self.crtc[high + 1])
    }

    fn characters(&self) -> u32 {
        u32::from(self.crtc[crtc::DISPLAY_END]) + 1
    }

    fn lines(&self) -> u32 {
        let overflow = u32::from(self.crtc[crtc::OVERFLOW]);
        let end = u32::from(self.crtc[crtc::VERTICAL_DISPLAY_END])
            | (overflow >> 1 & 1) << 8
            | (overflow >> 6 & 1) << 9;
        (end + 1).min(MAX_LINES)
    }

    /// Scan lines of a row.
    fn row_lines(&self) -> u32 {
        u32::from(self.crtc[crtc::MAX_SCAN_LINE] & 0x1f) + 1
    }

    /// Scan lines that show the same.
    fn repeats(&self) -> u32 {
        1 + u32::from(self.crtc[crtc::MAX_SCAN_LINE] >> 7)
    }

    /// Where a scan line starts.
    fn line_start(&self, line: u32) -> Place {
        let line = line / self.repeats();
        let row = (line / self.row_lines()) as usize;
        let pitch = usize::from(self.crtc[crtc::OFFSET]) * 2;
        Place {
            counter: self.crtc_word(crtc::START_HIGH) + row * pitch,
            row: (line % self.row_lines()) as usize,
        }
    }

    /// The byte of a plane that the CRT controller reads.
    fn plane_byte(&self, place: Place, plane: usize) -> u8 {
        let mode = self.crtc[crtc::MODE];
        let counter = place.counter;
        let mut at = if self.crtc[crtc::UNDERLINE] & crtc::DOUBLEWORD != 0 {
            counter << 2 | counter >> 12 & 3
        } else if mode & crtc::BYTE == 0 {
            let wrapped = if mode & crtc::WRAP_15 != 0 { 15 } else { 13 };
            counter << 1 | counter >> wrapped & 1
        } else {
            counter
        };
        for (bit, kept) in [(13, crtc::NO_ROW_0), (14, crtc::NO_ROW_1)] {
            if mode & kept == 0 {
                at = at & !(1 << bit) | (place.row >> (bit - 13) & 1) << bit;
            }
        }
        self.byte(4 * (at % PLANE_BYTES) + plane)
    }

    fn text_picture(&self) -> Frame {
        let clocking = self.sequencer[sequencer::CLOCKING];
        let dots = if clocking & sequencer::DOTS_8 != 0 {
            8
        } else {
            9
        };
        let mut frame = Frame::black(self.characters() * dots, self.lines());
        for line in 0..frame.height {
            let start = self.line_start(line);
            for column in 0..self.characters() {
                let place = Place {
                    counter: start.counter + column as usize,
                    // Characters have their rows in the font, not in memory.
                    row: 0,
                };
                let cell = [self.plane_byte(place, 0), self.plane_byte(place, 1)];
                let cursor = self.has_cursor(place.counter, start.row);
                self.draw_cell(&mut frame, (column * dots, line), cell, start.row, cursor);
            }
        }
        frame
    }

    fn has_cursor(&self, counter: usize, row: usize) -> bool {
        // The counter has 16 bits.
        let counter = counter & 0xffff;
        let start = self.crtc[crtc::CURSOR_START];
        let end = self.crtc[crtc::CURSOR_END];
        start & 0x20 == 0
            && counter == self.crtc_word(crtc::CURSOR_HIGH)
            && (usize::from(start & 0x1f)..=usize::from(end & 0x1f)).contains(&row)
    }

    /// Draws one line of a character.
    fn draw_cell(
        &self,
        frame: &mut Frame,
        (x, y): (u32, u32),
        [code, look]: [u8; 2],
        row: usize,
        cursor: bool,
    ) {
        let mode = self.attribute[attribute::MODE];
        let font = usize::from(look & 8 != 0);
        let at = self.font_offset(font) + GLYPH_BYTES * usize::from(code) + row;
        let dots = if cursor { 0xff } else { self.byte(4 * at + 2) };
        // What blinks is shown.
        let back = if mode & attribute::BLINK != 0 { 7 } else { 15 };
        let colours = [
            self.attribute_colour(look >> 4 & back),
            self.attribute_colour(look & 15),
        ];
        for dot in 0..8 {
            frame.set(x + dot, y, colours[usize::from(dots >> (7 - dot) & 1)]);
        }
        let ninth = self.sequencer[sequencer::CLOCKING] & sequencer::DOTS_8 == 0;
        if ninth {
            let repeats = mode & attribute::LINE_GRAPHICS != 0 && (0xc0..=0xdf).contains(&code);
            let lit = cursor || repeats && dots & 1 != 0;
            frame.set(x + 8, y, colours[usize::from(lit)]);
        }
    }

    /// Where a font starts in plane 2; font 1 is that of attributes with bit 3 set.
    fn font_offset(&self, font: usize) -> usize {
        let select = usize::from(self.sequencer[sequencer::CHARACTER_MAP]);
        let map = match font {
            0 => select & 3 | select >> 2 & 4,
            _ => select >> 2 & 3 | select >> 3 & 4,
        };
        // Maps 0 to 3 are at multiples of 16 KByte, 4 to 7 are 8 KByte behind them.
        (map & 3) << 14 | (map >> 2) << 13
    }

    fn graphics_picture(&self) -> Frame {
        let half = self.sequencer[sequencer::CLOCKING] & sequencer::HALF_CLOCK != 0;
        let scale = 1 + u32::from(half);
        let mut frame = Frame::black(self.characters() * 8 * scale, self.lines());
        for line in 0..frame.height {
            let start = self.line_start(line);
            for column in 0..self.characters() {
                let place = Place {
                    counter: start.counter + column as usize,
                    row: start.row,
                };
                let colours = self.eight_dots(place);
                for (dot, colour) in (0..).zip(colours) {
                    for part in 0..scale {
                        frame.set((column * 8 + dot) * scale + part, line, colour);
                    }
                }
            }
        }
        frame
    }

    /// The eight dots of a character clock.
    fn eight_dots(&self, place: Place) -> [[u8; 3]; 8] {
        let planes: [u8; 4] = std::array::from_fn(|p| self.plane_byte(place, p));
        let mode = self.graphics[graphics::MODE];
        if mode & graphics::SHIFT_256 != 0 {
            return std::array::from_fn(|dot| self.colour(planes[dot / 2]));
        }
        if mode & graphics::SHIFT_INTERLEAVED != 0 {
            return std::array::from_fn(|dot| {
                let (plane, shift) = (dot / 4, 6 - 2 * (dot % 4));
                let low = planes[plane] >> shift & 3;
                let high = planes[plane + 2] >> shift & 3;
                self.attribute_colour(high << 2 | low)
            });
        }
        std::array::from_fn(|dot| {
            let bits = (0..4).fold(0, |bits, p| bits | (planes[p] >> (7 - dot) & 1) << p);
            self.attribute_colour(bits)
        })
    }

    fn vbe_picture(&self) -> Frame {
        let (width, height) = (self.vbe.width(), self.vbe.height());
        let mut frame = Frame::black(width.into(), height.into());
        for y in 0..height {
            let line = self.vbe.start() + usize::from(y) * self.vbe.pitch();
            for x in 0..width {
                let colour = self.vbe_pixel(line, usize::from(x));
                frame.set(x.into(), y.into(), colour);
            }
        }
        frame
    }

    /// Pixel `x` of the line that starts at `line`; in memory blue is lowest.
    fn vbe_pixel(&self, line: usize, x: usize) -> [u8; 3] {
        let word = |at: usize| u16::from(self.byte(at)) | u16::from(self.byte(at + 1)) << 8;
        // 31 and 63 become 255.
        let five = |v: u16| ((v & 31) << 3 | (v & 31) >> 2) as u8;
        let six = |v: u16| ((v & 63) << 2 | (v & 63) >> 4) as u8;
        match self.vbe.bits() {
            4 => {
                let bit = 7 - x % 8;
                let bits = (0..4).fold(0, |bits, p| {
                    bits | (self.byte(4 * (line + x / 8) + p) >> bit & 1) << p
                });
                self.attribute_colour(bits)
            }
            8 => self.colour(self.byte(line + x)),
            15 => {
                let v = word(line + 2 * x);
                [five(v >> 10), five(v >> 5), five(v)]
            }
            16 => {
                let v = word(line + 2 * x);
                [five(v >> 11), six(v >> 5), five(v)]
            }
            bits => {
                let at = line + x * usize::from(bits / 8);
                [2, 1, 0].map(|c| self.byte(at + c))
            }
        }
    }
}
