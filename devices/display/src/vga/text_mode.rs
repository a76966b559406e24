//! Text mode 3 as the display's firmware leaves it, for machines that start a kernel without firmware.

use font8x8::{
    BASIC_FONTS, BLOCK_FONTS, BOX_FONTS, GREEK_FONTS, LATIN_FONTS, MISC_FONTS, UnicodeFonts,
};

use super::Vga;

/// Register values of mode 3, 720 x 400 (IBM PS/2 Hardware Interface Technical Reference, "Mode Tables").
const OUTPUT: u8 = 0x67;
const SEQUENCER: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
const CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00,
    0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
const GRAPHICS: [u8; 9] = [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff];
const ATTRIBUTE: [u8; 21] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f,
    0x0c, 0x00, 0x0f, 0x08, 0x00,
];
/// The attribute controller shows the picture.
const SHOWN: u8 = 0x20;
/// Cells of the page.
const CELLS: usize = 80 * 25;
/// Light grey on black.
const NORMAL: u8 = 0x07;
/// Bytes a character takes in plane 2.
const GLYPH_BYTES: usize = 32;

/// Characters 80h to FFh of code page 437.
const UPPER_HALF: [u16; 128] = [
    0xc7, 0xfc, 0xe9, 0xe2, 0xe4, 0xe0, 0xe5, 0xe7, 0xea, 0xeb, 0xe8, 0xef, 0xee, 0xec, 0xc4, 0xc5,
    0xc9, 0xe6, 0xc6, 0xf4, 0xf6, 0xf2, 0xfb, 0xf9, 0xff, 0xd6, 0xdc, 0xa2, 0xa3, 0xa5, 0x20a7,
    0x192, 0xe1, 0xed, 0xf3, 0xfa, 0xf1, 0xd1, 0xaa, 0xba, 0xbf, 0x2310, 0xac, 0xbd, 0xbc, 0xa1,
    0xab, 0xbb, 0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563,
    0x2551, 0x2557, 0x255d, 0x255c, 0x255b, 0x2510, 0x2514, 0x2534, 0x252c, 0x251c, 0x2500, 0x253c,
    0x255e, 0x255f, 0x255a, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256c, 0x2567, 0x2568, 0x2564,
    0x2565, 0x2559, 0x2558, 0x2552, 0x2553, 0x256b, 0x256a, 0x2518, 0x250c, 0x2588, 0x2584, 0x258c,
    0x2590, 0x2580, 0x3b1, 0xdf, 0x393, 0x3c0, 0x3a3, 0x3c3, 0xb5, 0x3c4, 0x3a6, 0x398, 0x3a9,
    0x3b4, 0x221e, 0x3c6, 0x3b5, 0x2229, 0x2261, 0xb1, 0x2265, 0x2264, 0x2320, 0x2321, 0xf7,
    0x2248, 0xb0, 0x2219, 0xb7, 0x221a, 0x207f, 0xb2, 0x25a0, 0xa0,
];

/// The 16 lines of a character, the leftmost dot in bit 7; blank where the font has none.
pub(super) fn glyph(code: u8) -> [u8; 16] {
    let unicode = match code {
        0x80.. => UPPER_HALF[usize::from(code - 0x80)],
        _ => u16::from(code),
    };
    let found = char::from_u32(u32::from(unicode)).and_then(|c| {
        BASIC_FONTS
            .get(c)
            .or_else(|| LATIN_FONTS.get(c))
            .or_else(|| BOX_FONTS.get(c))
            .or_else(|| BLOCK_FONTS.get(c))
            .or_else(|| GREEK_FONTS.get(c))
            .or_else(|| MISC_FONTS.get(c))
    });
    // The font has 8 lines with the leftmost dot in bit 0.
    let lines = found.unwrap_or_default();
    std::array::from_fn(|line| lines[line / 2].reverse_bits())
}

impl Vga {
    /// Sets text mode 3: registers, colours, a font, a blank page.
    pub fn set_text_mode(&mut self) {
        self.reset();
        self.output = OUTPUT;
        self.sequencer = SEQUENCER;
        self.crtc = CRTC;
        self.graphics = GRAPHICS;
        self.attribute = ATTRIBUTE;
        self.attribute_index = SHOWN;
        for (i, colour) in (0u8..64).zip(&mut self.palette) {
            // Bits 5 to 3 are the weak red, green and blue, bits 2 to 0 the strong ones.
            *colour = [2, 1, 0].map(|c| (i >> c & 1) * 0x2a + (i >> (c + 3) & 1) * 0x15);
        }
        for code in 0..=u8::MAX {
            for (line, dots) in glyph(code).into_iter().enumerate() {
                self.set_byte(4 * (GLYPH_BYTES * usize::from(code) + line) + 2, dots);
            }
        }
        for cell in 0..CELLS {
            self.set_byte(4 * 2 * cell, b' ');
            self.set_byte(4 * 2 * cell + 1, NORMAL);
        }
    }
}
