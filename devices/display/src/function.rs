//! The display on the buses: a PCI function, and the ports and the window of a PC's display.
//!
//! Base address register 0 is the frame memory, 2 the registers: EDID from 0, ports 3C0h to 3DFh from 400h, mode
//! registers from 500h, byte order of the frame memory at 604h.

use bus::{Device, Region, VirtualTime};
use pci::{BarKind, ConfigError, ConfigSpace, EndpointFunction, Identity, ROM_BAR};

use crate::vbe::MEMORY_BYTES;
use crate::vga::regs;
use crate::{Screen, Vga, edid};

/// "VGA-compatible controller" (PCI Code and ID Assignment, class 03h).
const CLASS: u32 = 0x03_0000;
const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x1111;
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
const SUBSYSTEM: u16 = 0x1100;
const REVISION: u8 = 2;
const MEMORY_BAR: u8 = 0;
const REGISTERS_BAR: u8 = 2;
const REGISTERS_BYTES: u64 = 4096;
/// Least an expansion ROM's register can decode.
const ROM_MIN_BYTES: u64 = 2048;

/// Offsets of what base address register 2 decodes.
mod offset {
    pub const PORTS: u64 = 0x400;
    pub const PORTS_END: u64 = 0x420;
    pub const MODE: u64 = 0x500;
    pub const EXTENSION: u64 = 0x600;
    pub const BYTE_ORDER: u64 = 0x604;
}
/// First port seen at [`offset::PORTS`].
const FIRST_MAPPED_PORT: u16 = 0x3c0;
/// Bytes of the extension registers, which the first of them says.
const EXTENSION_BYTES: u32 = 8;
/// Little endian, the only byte order there is.
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

/// The display as a PCI function.
pub struct DisplayFunction {
    config: ConfigSpace,
    edid: [u8; edid::BYTES],
    rom: Vec<u8>,
    screen: Screen,
}

impl DisplayFunction {
    /// A function of `screen` whose expansion ROM holds `rom`; none when it is empty.
    ///
    /// # Errors
    /// [`ConfigError::BarSize`]: a ROM larger than a base address register can decode.
    pub fn new(screen: Screen, rom: Vec<u8>) -> Result<Self, ConfigError> {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: REVISION,
            class: CLASS,
            subsystem_vendor: SUBSYSTEM_VENDOR,
            subsystem: SUBSYSTEM,
        });
        config.add_bar(MEMORY_BAR, BarKind::Memory32, MEMORY_BYTES as u64)?;
        config.add_bar(REGISTERS_BAR, BarKind::Memory32, REGISTERS_BYTES)?;
        if !rom.is_empty() {
            config.add_rom((rom.len() as u64).next_power_of_two().max(ROM_MIN_BYTES))?;
        }
        Ok(Self {
            config,
            edid: edid::block(),
            rom,
            screen,
        })
    }

    fn register_byte(&self, vga: &mut Vga, at: u64, now: VirtualTime) -> u8 {
        let byte = |word: u32, at: u64| word.to_le_bytes()[(at & 3) as usize];
        let mode_end = offset::MODE + 2 * u64::from(Vga::VBE_REGISTERS);
        match at {
            0..offset::PORTS => self.edid.get(at as usize).copied().unwrap_or(0),
            offset::PORTS..offset::PORTS_END => {
                vga.read(FIRST_MAPPED_PORT + (at - offset::PORTS) as u16, now)
            }
            offset::MODE.. if at < mode_end => {
                let value = vga.vbe_read(((at - offset::MODE) / 2) as u16);
                value.to_le_bytes()[(at & 1) as usize]
            }
            offset::EXTENSION..offset::BYTE_ORDER => byte(EXTENSION_BYTES, at),
            offset::BYTE_ORDER..=0x607 => byte(LITTLE_ENDIAN, at),
            _ => 0xff,
        }
    }
}

impl EndpointFunction for DisplayFunction {
    fn name(&self) -> &'static str {
        "display"
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn reset(&mut self) {
        self.config.reset();
        self.screen.lock().reset();
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8], now: VirtualTime) {
        match bar {
            MEMORY_BAR => {
                let vga = self.screen.lock();
                for (at, byte) in (offset..).zip(data) {
                    *byte = usize::try_from(at).map_or(0xff, |at| vga.byte(at));
                }
            }
            REGISTERS_BAR => {
                let screen = self.screen.clone();
                let mut vga = screen.lock();
                for (at, byte) in (offset..).zip(data) {
                    *byte = self.register_byte(&mut vga, at, now);
                }
            }
            ROM_BAR => {
                for (at, byte) in (offset..).zip(data) {
                    let at = usize::try_from(at).unwrap_or(usize::MAX);
                    *byte = self.rom.get(at).copied().unwrap_or(0xff);
                }
            }
            _ => {}
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8], _now: VirtualTime) {
        let mut vga = self.screen.lock();
        match bar {
            MEMORY_BAR => {
                for (at, &byte) in (offset..).zip(data) {
                    if let Ok(at) = usize::try_from(at) {
                        vga.set_byte(at, byte);
                    }
                }
            }
            REGISTERS_BAR => match offset {
                offset::PORTS..offset::PORTS_END => {
                    for (at, &byte) in (offset..offset::PORTS_END).zip(data) {
                        vga.write(FIRST_MAPPED_PORT + (at - offset::PORTS) as u16, byte);
                    }
                }
                // Mode registers are written as words.
                offset::MODE..offset::EXTENSION if offset.is_multiple_of(2) => {
                    for (n, word) in (0..).zip(data.chunks_exact(2)) {
                        let register = ((offset - offset::MODE) / 2) as u16 + n;
                        vga.vbe_write(register, u16::from_le_bytes([word[0], word[1]]));
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
}

/// The display at a PC's fixed addresses: ports 3B0h to 3DFh, mode registers at 1CEh, the window at A0000h.
pub struct LegacyWindow {
    screen: Screen,
}

impl LegacyWindow {
    /// The region of the VGA's ports.
    const VGA: Region = Region(0);
    /// The region of the mode registers' ports.
    const MODE: Region = Region(1);
    /// The region of the window.
    const WINDOW: Region = Region(2);
    /// Port ranges, for the bus.
    pub const PORTS: [(u16, u16, Region); 2] = [
        (regs::FIRST_PORT, regs::PORTS, Self::VGA),
        // Index, data, and data again where a word is aligned.
        (0x1ce, 3, Self::MODE),
    ];
    /// Start and length of the window, for the bus.
    pub const MEMORY: (guestmem::Gpa, u64, Region) =
        (guestmem::Gpa(0xa_0000), 0x2_0000, Self::WINDOW);

    /// The window of `screen`.
    #[must_use]
    pub fn new(screen: Screen) -> Self {
        Self { screen }
    }
}

impl Device for LegacyWindow {
    fn name(&self) -> &'static str {
        "display"
    }

    fn reset(&mut self) {
        self.screen.lock().reset();
    }

    fn read(&mut self, region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        let mut vga = self.screen.lock();
        match region {
            Self::VGA => {
                for (port, byte) in (regs::FIRST_PORT + offset as u16..).zip(data) {
                    *byte = vga.read(port, now);
                }
            }
            Self::MODE => {
                let index = *vga.vbe_index();
                let value = match offset {
                    0 => index,
                    _ => vga.vbe_read(index),
                };
                for (to, byte) in data.iter_mut().zip(value.to_le_bytes()) {
                    *to = byte;
                }
            }
            _ => {
                for (at, byte) in (offset..).zip(data) {
                    *byte = vga.window_read(at);
                }
            }
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8], _now: VirtualTime) {
        let mut vga = self.screen.lock();
        match region {
            // A word goes to index and data.
            Self::VGA => {
                for (port, &byte) in (regs::FIRST_PORT + offset as u16..).zip(data) {
                    vga.write(port, byte);
                }
            }
            Self::MODE => {
                let value = match *data {
                    [low] => u16::from(low),
                    [low, high, ..] => u16::from_le_bytes([low, high]),
                    [] => return,
                };
                match offset {
                    0 => *vga.vbe_index() = value,
                    _ => {
                        let index = *vga.vbe_index();
                        vga.vbe_write(index, value);
                    }
                }
            }
            _ => {
                for (at, &byte) in (offset..).zip(data) {
                    vga.window_write(at, byte);
                }
            }
        }
    }
}
