//! What the monitor says of itself: an EDID 1.4 block (VESA E-EDID Standard, release A, revision 2).

/// Bytes of the block.
pub(crate) const BYTES: usize = 128;

/// The preferred mode: 1024 x 768 at 60 Hz (VESA DMT 10h).
struct Timing {
    /// Pixel clock in units of 10 kHz.
    clock_10khz: u16,
    horizontal: (u16, u16, u16, u16),
    vertical: (u16, u16, u16, u16),
}

/// Shown, blank, front porch, pulse.
const PREFERRED: Timing = Timing {
    clock_10khz: 6500,
    horizontal: (1024, 320, 24, 136),
    vertical: (768, 38, 3, 6),
};

/// Builds the block.
pub(crate) fn block() -> [u8; BYTES] {
    let mut b = [0; BYTES];
    b[0..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // Manufacturer "NST", five bits a letter, big endian; product 1.
    let id = [b'N', b'S', b'T']
        .iter()
        .fold(0u16, |id, c| id << 5 | u16::from(c - b'@'));
    b[8..10].copy_from_slice(&id.to_be_bytes());
    b[10] = 1;
    // Week not given, year 2025; EDID 1.4.
    (b[16], b[17], b[18], b[19]) = (0, 35, 1, 4);
    // Digital, 8 bits a colour; size not given; gamma 2.2; RGB 4:4:4, preferred timing is native.
    (b[20], b[23], b[24]) = (0xa0, 120, 0x06);
    // Chromaticity of sRGB.
    b[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // Established: 640 x 480, 800 x 600, 1024 x 768, all at 60 Hz.
    (b[35], b[36]) = (0x21, 0x08);
    // No standard timings.
    b[38..54].fill(1);
    b[54..72].copy_from_slice(&detailed(&PREFERRED));
    for (n, tag) in [0xfc, 0x10, 0x10].into_iter().enumerate() {
        b[72 + 18 * n + 3] = tag;
    }
    b[77..90].copy_from_slice(b"Nestling\n    ");
    let sum = b.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    b[127] = sum.wrapping_neg();
    b
}

/// A detailed timing descriptor (3.10.2).
fn detailed(t: &Timing) -> [u8; 18] {
    let (h, v) = (t.horizontal, t.vertical);
    let high = |a: u16, b: u16| (a >> 8 << 4 | b >> 8) as u8;
    let mut d = [0; 18];
    d[0..2].copy_from_slice(&t.clock_10khz.to_le_bytes());
    (d[2], d[3], d[4]) = (h.0 as u8, h.1 as u8, high(h.0, h.1));
    (d[5], d[6], d[7]) = (v.0 as u8, v.1 as u8, high(v.0, v.1));
    (d[8], d[9]) = (h.2 as u8, h.3 as u8);
    d[10] = (v.2 << 4 | v.3) as u8;
    d[11] = (h.2 >> 8 << 6 | h.3 >> 8 << 4 | v.2 >> 4 << 2 | v.3 >> 4) as u8;
    // Digital separate synchronization.
    d[17] = 0x18;
    d
}
