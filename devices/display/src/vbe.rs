//! The mode registers of the Bochs VBE extension (Bochs vbe_display_interface; the "dispi" interface).

/// Registers by index.
pub(crate) mod index {
    pub const ID: u16 = 0;
    pub const X_RESOLUTION: u16 = 1;
    pub const Y_RESOLUTION: u16 = 2;
    pub const BITS_PER_PIXEL: u16 = 3;
    pub const ENABLE: u16 = 4;
    pub const BANK: u16 = 5;
    pub const VIRTUAL_WIDTH: u16 = 6;
    pub const VIRTUAL_HEIGHT: u16 = 7;
    pub const X_OFFSET: u16 = 8;
    pub const Y_OFFSET: u16 = 9;
    pub const VIDEO_MEMORY_64K: u16 = 10;
}

/// Bits of the enable register.
pub(crate) mod enable {
    pub const ENABLED: u16 = 1 << 0;
    /// Resolution registers read as the highest there are.
    pub const CAPABILITIES: u16 = 1 << 1;
    pub const DAC_8_BITS: u16 = 1 << 5;
    pub const LINEAR: u16 = 1 << 6;
    /// Enabling leaves the memory as it is.
    pub const KEEP_MEMORY: u16 = 1 << 7;
    pub const ALL: u16 = ENABLED | CAPABILITIES | DAC_8_BITS | LINEAR | KEEP_MEMORY;
}

/// The newest version of the interface.
const ID: u16 = 0xb0c5;
/// The oldest.
const ID_FIRST: u16 = 0xb0c0;
/// Highest resolution and depth.
const MAX_WIDTH: u16 = 2560;
const MAX_HEIGHT: u16 = 1600;
const MAX_BITS: u16 = 32;
/// Frame memory.
pub(crate) const MEMORY_BYTES: usize = 16 << 20;
const BANKS: u16 = (MEMORY_BYTES >> 16) as u16;

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vbe {
    id: u16,
    /// Width, height and depth, which may change while disabled.
    width: u16,
    height: u16,
    bits: u16,
    enable: u16,
    bank: u16,
    virtual_width: u16,
    x_offset: u16,
    y_offset: u16,
}

/// What a write asks of the display beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The frame memory of the mode is to be cleared.
    Clear(usize),
}

/// Bytes before pixel `pixels` of a line; of one plane with 4 bits. Lines have multiples of 8 pixels.
fn bytes(pixels: usize, bits: u16) -> usize {
    match bits {
        4 => pixels / 8,
        15 => pixels * 2,
        bits => pixels * usize::from(bits / 8),
    }
}

impl Vbe {
    pub fn new() -> Self {
        Self {
            id: ID,
            width: 0,
            height: 0,
            bits: 8,
            enable: 0,
            bank: 0,
            virtual_width: 0,
            x_offset: 0,
            y_offset: 0,
        }
    }

    pub fn is_enabled(&self) -> bool {
        self.enable & enable::ENABLED != 0
    }

    /// Whether colours of the palette have 8 bits.
    pub fn dac_8_bits(&self) -> bool {
        self.enable & enable::DAC_8_BITS != 0
    }

    pub fn width(&self) -> u16 {
        self.width
    }

    pub fn height(&self) -> u16 {
        self.height
    }

    pub fn bits(&self) -> u16 {
        self.bits
    }

    /// Where the 64-KByte window starts in frame memory.
    pub fn bank_offset(&self) -> usize {
        usize::from(self.bank) << 16
    }

    /// Bytes of a line in memory; of one plane with 4 bits.
    pub fn pitch(&self) -> usize {
        bytes(usize::from(self.virtual_width.max(self.width)), self.bits)
    }

    /// Where the picture starts.
    pub fn start(&self) -> usize {
        self.pitch() * usize::from(self.y_offset) + bytes(usize::from(self.x_offset), self.bits)
    }

    /// Lines of `pitch` that the memory holds.
    fn lines(&self) -> u16 {
        let memory = match self.bits {
            4 => MEMORY_BYTES / 4,
            _ => MEMORY_BYTES,
        };
        let lines = memory.checked_div(self.pitch()).unwrap_or(0);
        u16::try_from(lines).unwrap_or(u16::MAX)
    }

    pub fn read(&self, register: u16) -> u16 {
        let highest = self.enable & enable::CAPABILITIES != 0;
        match register {
            index::ID => self.id,
            index::X_RESOLUTION if highest => MAX_WIDTH,
            index::Y_RESOLUTION if highest => MAX_HEIGHT,
            index::BITS_PER_PIXEL if highest => MAX_BITS,
            index::X_RESOLUTION => self.width,
            index::Y_RESOLUTION => self.height,
            index::BITS_PER_PIXEL => self.bits,
            index::ENABLE => self.enable,
            index::BANK => self.bank,
            index::VIRTUAL_WIDTH => self.virtual_width.max(self.width),
            index::VIRTUAL_HEIGHT => self.lines(),
            index::X_OFFSET => self.x_offset,
            index::Y_OFFSET => self.y_offset,
            index::VIDEO_MEMORY_64K => BANKS,
            _ => 0,
        }
    }

    pub fn write(&mut self, register: u16, value: u16) -> Effect {
        match register {
            index::ID if (ID_FIRST..=ID).contains(&value) => self.id = value,
            index::X_RESOLUTION if !self.is_enabled() && value <= MAX_WIDTH => {
                self.width = value & !7;
            }
            index::Y_RESOLUTION if !self.is_enabled() && value <= MAX_HEIGHT => self.height = value,
            index::BITS_PER_PIXEL if !self.is_enabled() => match value {
                0 => self.bits = 8,
                4 | 8 | 15 | 16 | 24 | 32 => self.bits = value,
                _ => {}
            },
            index::ENABLE => return self.set_enable(value & enable::ALL),
            index::BANK => self.bank = value % BANKS,
            index::VIRTUAL_WIDTH if self.is_enabled() => {
                let before = self.virtual_width;
                self.virtual_width = value.max(self.width) & !7;
                if self.lines() < self.height {
                    self.virtual_width = before;
                }
            }
            index::X_OFFSET => self.x_offset = value,
            index::Y_OFFSET => self.y_offset = value,
            _ => {}
        }
        Effect::None
    }

    fn set_enable(&mut self, value: u16) -> Effect {
        let was = self.is_enabled();
        self.enable = value;
        if !self.is_enabled() {
            self.bank = 0;
            return Effect::None;
        }
        if was {
            return Effect::None;
        }
        self.virtual_width = self.width;
        (self.x_offset, self.y_offset) = (0, 0);
        if self.lines() < self.height {
            // The memory does not hold such a picture.
            self.height = self.lines();
        }
        if value & enable::KEEP_MEMORY != 0 {
            return Effect::None;
        }
        let planes = if self.bits == 4 { 4 } else { 1 };
        Effect::Clear(self.pitch() * usize::from(self.height) * planes)
    }
}
