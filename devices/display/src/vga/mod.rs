//! The VGA's registers and frame memory.

mod frame_memory;
mod memory;
mod picture;
pub(crate) mod regs;
mod text_mode;

use bus::VirtualTime;

use crate::vbe::{Effect, Vbe, index};
use frame_memory::FrameMemory;
use regs::{attribute, crtc, graphics, output, sequencer};

/// Colours of the palette.
const COLOURS: usize = 256;

/// The display's registers and memory, without a bus.
pub struct Vga {
    pub(crate) vbe: Vbe,
    vbe_index: u16,
    output: u8,
    sequencer_index: u8,
    sequencer: [u8; sequencer::COUNT],
    graphics_index: u8,
    graphics: [u8; graphics::COUNT],
    crtc_index: u8,
    crtc: [u8; crtc::COUNT],
    /// Bits 4 to 0 are the index, bit 5 says that the picture is shown.
    attribute_index: u8,
    /// Whether the next write to 3C0h is data.
    attribute_data: bool,
    attribute: [u8; attribute::COUNT],
    dac_mask: u8,
    dac_read: bool,
    dac_index: u8,
    dac_component: usize,
    palette: [[u8; 3]; COLOURS],
    latches: [u8; 4],
    memory: FrameMemory,
}

impl Vga {
    /// After power-up: registers and memory are zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            vbe: Vbe::new(),
            vbe_index: 0,
            output: 0,
            sequencer_index: 0,
            sequencer: [0; sequencer::COUNT],
            graphics_index: 0,
            graphics: [0; graphics::COUNT],
            crtc_index: 0,
            crtc: [0; crtc::COUNT],
            attribute_index: 0,
            attribute_data: false,
            attribute: [0; attribute::COUNT],
            dac_mask: 0xff,
            dac_read: false,
            dac_index: 0,
            dac_component: 0,
            palette: [[0; 3]; COLOURS],
            latches: [0; 4],
            memory: FrameMemory::new(),
        }
    }

    /// Registers back to their values after power-up; memory too.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// A byte of frame memory; ones beyond its end.
    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.memory.get(at).unwrap_or(0xff)
    }

    pub(crate) fn set_byte(&mut self, at: usize, value: u8) {
        self.memory.set(at, value);
    }

    /// The port of a CRT controller's register, as if it were in colour; `None` where nothing answers now.
    fn crtc_port(&self, port: u16) -> Option<u16> {
        let base = match self.output & output::COLOUR {
            0 => regs::MONO_BASE,
            _ => regs::COLOUR_BASE,
        };
        (port & !0xf == base).then_some(port & 0xf)
    }

    /// Reads a byte from a port from 3B0h to 3DFh.
    pub fn read(&mut self, port: u16, now: VirtualTime) -> u8 {
        match port {
            regs::ATTRIBUTE => self.attribute_index,
            regs::ATTRIBUTE_READ => {
                let at = usize::from(self.attribute_index & 0x1f);
                self.attribute.get(at).copied().unwrap_or(0)
            }
            // Input status 0: the switches sense a colour monitor.
            regs::MISCELLANEOUS => 0x10,
            regs::SEQUENCER_INDEX => self.sequencer_index,
            regs::SEQUENCER => register(&self.sequencer, self.sequencer_index),
            regs::DAC_MASK => self.dac_mask,
            // 3 while reading, 0 while writing.
            regs::DAC_READ_INDEX => {
                if self.dac_read {
                    3
                } else {
                    0
                }
            }
            regs::DAC_WRITE_INDEX => self.dac_index,
            regs::DAC_DATA => self.dac_data(None),
            regs::FEATURE_READ => 0,
            regs::MISCELLANEOUS_READ => self.output,
            regs::GRAPHICS_INDEX => self.graphics_index,
            regs::GRAPHICS => register(&self.graphics, self.graphics_index),
            _ => match self.crtc_port(port) {
                Some(regs::CRTC_INDEX) => self.crtc_index,
                Some(regs::CRTC) => register(&self.crtc, self.crtc_index),
                Some(regs::STATUS_1) => {
                    self.attribute_data = false;
                    status_1(now)
                }
                _ => 0xff,
            },
        }
    }

    /// Writes a byte to a port from 3B0h to 3DFh.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            regs::ATTRIBUTE => self.write_attribute(value),
            regs::MISCELLANEOUS => self.output = value,
            regs::SEQUENCER_INDEX => self.sequencer_index = value & 7,
            regs::SEQUENCER => set_register(&mut self.sequencer, self.sequencer_index, value),
            regs::DAC_MASK => self.dac_mask = value,
            regs::DAC_READ_INDEX | regs::DAC_WRITE_INDEX => {
                self.dac_read = port == regs::DAC_READ_INDEX;
                self.dac_index = value;
                self.dac_component = 0;
            }
            regs::DAC_DATA => {
                self.dac_data(Some(value));
            }
            regs::GRAPHICS_INDEX => self.graphics_index = value & 0xf,
            regs::GRAPHICS => set_register(&mut self.graphics, self.graphics_index, value),
            _ => match self.crtc_port(port) {
                Some(regs::CRTC_INDEX) => self.crtc_index = value & 0x3f,
                Some(regs::CRTC) => self.write_crtc(value),
                _ => {}
            },
        }
    }

    fn write_attribute(&mut self, value: u8) {
        if self.attribute_data {
            let at = usize::from(self.attribute_index & 0x1f);
            if let Some(register) = self.attribute.get_mut(at) {
                *register = value;
            }
        } else {
            self.attribute_index = value & 0x3f;
        }
        self.attribute_data = !self.attribute_data;
    }

    fn write_crtc(&mut self, value: u8) {
        let at = usize::from(self.crtc_index);
        let protected = self.crtc[crtc::RETRACE_END] & crtc::PROTECT != 0;
        match self.crtc.get_mut(at) {
            Some(register) if at == crtc::OVERFLOW && protected => {
                *register = *register & !crtc::LINE_COMPARE_8 | value & crtc::LINE_COMPARE_8;
            }
            Some(register) if at > crtc::OVERFLOW || !protected => *register = value,
            _ => {}
        }
    }

    /// Reads or writes the next component of a colour.
    fn dac_data(&mut self, write: Option<u8>) -> u8 {
        let bits = if self.vbe.dac_8_bits() { 0xff } else { 0x3f };
        let component = &mut self.palette[usize::from(self.dac_index)][self.dac_component];
        if let Some(value) = write {
            *component = value & bits;
        }
        let value = *component;
        self.dac_component += 1;
        if self.dac_component == 3 {
            self.dac_component = 0;
            self.dac_index = self.dac_index.wrapping_add(1);
        }
        value
    }

    /// Reads a mode register.
    pub(crate) fn vbe_read(&self, register: u16) -> u16 {
        self.vbe.read(register)
    }

    /// Writes a mode register.
    pub(crate) fn vbe_write(&mut self, register: u16, value: u16) {
        match self.vbe.write(register, value) {
            Effect::None => {}
            Effect::Clear(bytes) => self.memory.clear(bytes),
        }
    }

    /// The mode registers' index port.
    pub(crate) fn vbe_index(&mut self) -> &mut u16 {
        &mut self.vbe_index
    }

    /// Words of the mode registers.
    pub(crate) const VBE_REGISTERS: u16 = index::VIDEO_MEMORY_64K + 1;
}

impl Default for Vga {
    fn default() -> Self {
        Self::new()
    }
}

fn register(registers: &[u8], index: u8) -> u8 {
    registers.get(usize::from(index)).copied().unwrap_or(0)
}

fn set_register(registers: &mut [u8], index: u8, value: u8) {
    if let Some(register) = registers.get_mut(usize::from(index)) {
        *register = value;
    }
}

/// Input status 1 of a monitor at 70 Hz with 449 lines, 400 of them shown: bit 0 outside of the picture, bit 3
/// in vertical retrace.
fn status_1(now: VirtualTime) -> u8 {
    const LINE_NS: u64 = 31_778;
    const LINES: u64 = 449;
    const SHOWN_LINES: u64 = 400;
    const RETRACE_LINES: std::ops::Range<u64> = 412..414;
    const SHOWN_NS: u64 = 25_422;
    let now = now.0;
    let line = now / LINE_NS % LINES;
    let blank = line >= SHOWN_LINES || now % LINE_NS >= SHOWN_NS;
    u8::from(blank) | u8::from(RETRACE_LINES.contains(&line)) << 3
}
