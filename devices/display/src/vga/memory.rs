//! The processor's view of the planes through the window from A0000h (reference, "Graphics Controller").
//!
//! Byte `offset` of plane `p` is byte `4 * offset + p` of the frame memory.

use super::Vga;
use super::regs::{graphics, output, sequencer};

/// Bytes of a plane.
pub(super) const PLANE_BYTES: usize = 1 << 16;

/// A bit for each plane, as a byte mask for each.
fn planes(bits: u8) -> [u8; 4] {
    std::array::from_fn(|p| if bits & 1 << p != 0 { 0xff } else { 0 })
}

/// Where an access goes.
enum Target {
    /// Straight to a byte of the frame memory.
    Linear(usize),
    /// To all planes at an offset.
    Planar(usize),
    /// To planes 0 and 2, or 1 and 3.
    OddEven(usize, usize),
    /// To one plane.
    Chained(usize, usize),
}

impl Vga {
    /// Where `offset` from A0000h goes; `None` outside of the window.
    fn target(&self, offset: u64) -> Option<Target> {
        if self.output & output::MEMORY == 0 {
            return None;
        }
        let (start, length) = match self.graphics[graphics::MISCELLANEOUS] >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        let into = usize::try_from(offset.checked_sub(start)?).ok()?;
        if into >= length {
            return None;
        }
        if self.vbe.is_enabled() {
            let at = (into & 0xffff) + self.vbe.bank_offset();
            return Some(match self.vbe.bits() {
                4 => Target::Planar(at),
                _ => Target::Linear(at),
            });
        }
        let at = into & (PLANE_BYTES - 1);
        let mode = self.sequencer[sequencer::MEMORY_MODE];
        Some(if mode & sequencer::CHAIN_4 != 0 {
            // Bits 15 and 14 take the place of those that select the plane, as the CRT controller has them.
            Target::Chained(at & !3 | at >> 14, at & 3)
        } else if mode & sequencer::SEQUENTIAL == 0 {
            Target::OddEven(at & !1, at & 1)
        } else {
            Target::Planar(at)
        })
    }

    fn latch(&mut self, offset: usize) {
        for p in 0..4 {
            self.latches[p] = self.byte(4 * offset + p);
        }
    }

    /// A read through the window.
    pub(crate) fn window_read(&mut self, offset: u64) -> u8 {
        match self.target(offset) {
            None => 0xff,
            Some(Target::Linear(at)) => self.byte(at),
            Some(Target::Chained(at, plane)) => {
                self.latch(at);
                self.latches[plane]
            }
            Some(Target::Planar(at)) => {
                self.latch(at);
                self.read_latches(usize::from(self.graphics[graphics::READ_MAP] & 3))
            }
            Some(Target::OddEven(at, odd)) => {
                self.latch(at);
                self.read_latches(usize::from(self.graphics[graphics::READ_MAP] & 2) | odd)
            }
        }
    }

    fn read_latches(&self, plane: usize) -> u8 {
        if self.graphics[graphics::MODE] & graphics::READ_COMPARE == 0 {
            return self.latches[plane];
        }
        let care = planes(self.graphics[graphics::COLOUR_CARE]);
        let colour = planes(self.graphics[graphics::COLOUR_COMPARE]);
        let differs = (0..4).fold(0, |d, p| d | (self.latches[p] ^ colour[p]) & care[p]);
        !differs
    }

    /// A write through the window.
    pub(crate) fn window_write(&mut self, offset: u64, value: u8) {
        let mask = self.sequencer[sequencer::MAP_MASK] & 0xf;
        match self.target(offset) {
            None => {}
            Some(Target::Linear(at)) => self.set_byte(at, value),
            Some(Target::Chained(at, plane)) => {
                self.write_planes(at, value, mask & 1 << plane);
            }
            Some(Target::Planar(at)) => self.write_planes(at, value, mask),
            Some(Target::OddEven(at, odd)) => {
                self.write_planes(at, value, mask & (0b0101 << odd));
            }
        }
    }

    /// The four write modes.
    fn write_planes(&mut self, offset: usize, value: u8, enabled: u8) {
        let g = self.graphics;
        let rotated = value.rotate_right(u32::from(g[graphics::ROTATE] & 7));
        let set_reset = planes(g[graphics::SET_RESET]);
        let mut mask = g[graphics::BIT_MASK];
        let data: [u8; 4] = match g[graphics::MODE] & 3 {
            0 => {
                let by_register = planes(g[graphics::ENABLE_SET_RESET]);
                std::array::from_fn(|p| rotated & !by_register[p] | set_reset[p] & by_register[p])
            }
            1 => {
                for p in 0..4 {
                    self.set_plane(offset, p, self.latches[p], enabled);
                }
                return;
            }
            2 => planes(value),
            _ => {
                mask &= rotated;
                set_reset
            }
        };
        for (p, data) in data.into_iter().enumerate() {
            let latch = self.latches[p];
            let result = match g[graphics::ROTATE] >> 3 & 3 {
                0 => data,
                1 => data & latch,
                2 => data | latch,
                _ => data ^ latch,
            };
            self.set_plane(offset, p, result & mask | latch & !mask, enabled);
        }
    }

    fn set_plane(&mut self, offset: usize, plane: usize, value: u8, enabled: u8) {
        if enabled & 1 << plane != 0 {
            self.set_byte(4 * offset + plane, value);
        }
    }
}
