//! A function's configuration space: bytes, with masks that say which bits software may set and which it clears
//! by writing one. The sizing protocol of base address registers follows from the masks.

pub mod regs;

#[cfg(test)]
mod tests;

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class, subclass and programming interface: 24 bits.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere, prefetchable; takes two registers.
    Memory64,
}

/// The number under which the expansion ROM's base address register goes.
pub const ROM_BAR: u8 = 6;

/// A base address register that decodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number, 0 to 5, or [`ROM_BAR`].
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Where.
    pub base: u64,
    /// How many bytes.
    pub size_bytes: u64,
}

/// A function was laid out wrongly by its author.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The register does not exist or is taken.
    #[error("base address register {0} does not exist or is taken")]
    BarTaken(u8),
    /// The size is not a power of two, or outside what the kind allows.
    #[error("base address register {index} cannot have {size_bytes:#x} bytes")]
    BarSize {
        /// Which register.
        index: u8,
        /// The size asked for.
        size_bytes: u64,
    },
    /// The first 256 bytes have no room for the capability.
    #[error("no room for capability {0:#04x}")]
    NoRoom(u8),
    /// Message-signalled interrupts cannot be laid out for so many vectors.
    #[error("{0} interrupt vectors cannot be laid out")]
    Vectors(u16),
}

#[derive(Clone, Copy, Debug)]
enum BarSlot {
    Free,
    Base(BarKind, u64),
    /// Upper half of the register before.
    Upper,
}

/// A function's configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; regs::SIZE]>,
    /// What [`Self::reset`] goes back to.
    initial: Box<[u8; regs::SIZE]>,
    writable: Box<[u8; regs::SIZE]>,
    cleared: Box<[u8; regs::SIZE]>,
    bars: [BarSlot; 6],
    /// Size of the expansion ROM; zero for none.
    rom_bytes: u64,
    /// Where the next capability goes.
    free: u16,
    /// Where the pointer to the next capability goes.
    link: u16,
}

impl ConfigSpace {
    /// A type 0 header without base address registers or capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let zero = || Box::new([0; regs::SIZE]);
        let mut config = Self {
            bytes: zero(),
            initial: zero(),
            writable: zero(),
            cleared: zero(),
            bars: [BarSlot::Free; 6],
            rom_bytes: 0,
            free: regs::HEADER_END,
            link: regs::CAPABILITIES,
        };
        config.define(regs::VENDOR, &identity.vendor.to_le_bytes());
        config.define(regs::DEVICE, &identity.device.to_le_bytes());
        config.define(
            regs::REVISION,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        config.define(regs::SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.define(regs::SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        config.allow(regs::COMMAND, &regs::COMMAND_WRITABLE.to_le_bytes());
        config.allow(regs::CACHE_LINE, &[0xff]);
        config.allow(regs::INTERRUPT_LINE, &[0xff]);
        for (i, byte) in regs::STATUS_CLEARED.to_le_bytes().into_iter().enumerate() {
            config.cleared[usize::from(regs::STATUS) + i] = byte;
        }
        config
    }

    /// Lays down bytes that a reset brings back. What falls outside the space is dropped.
    pub fn define(&mut self, offset: u16, bytes: &[u8]) {
        for (i, &byte) in (usize::from(offset)..regs::SIZE).zip(bytes) {
            self.bytes[i] = byte;
            self.initial[i] = byte;
        }
    }

    /// Lets software set the bits of `mask`, and no others, in the bytes from `offset`.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (i, &byte) in (usize::from(offset)..regs::SIZE).zip(mask) {
            self.writable[i] = byte;
        }
    }

    /// Marks the device as one with several functions.
    pub fn set_multifunction(&mut self) {
        let header = self.bytes[usize::from(regs::HEADER_TYPE)] | regs::MULTIFUNCTION;
        self.define(regs::HEADER_TYPE, &[header]);
    }

    /// Sets the interrupt pin: 1 for INTA to 4 for INTD.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.define(regs::INTERRUPT_PIN, &[pin]);
    }

    /// Adds a base address register.
    ///
    /// # Errors
    /// [`ConfigError::BarTaken`], [`ConfigError::BarSize`].
    pub fn add_bar(
        &mut self,
        index: u8,
        kind: BarKind,
        size_bytes: u64,
    ) -> Result<(), ConfigError> {
        let registers = if kind == BarKind::Memory64 { 2 } else { 1 };
        let at = usize::from(index);
        let free = |n: usize| matches!(self.bars.get(n), Some(BarSlot::Free));
        if !(at..at + registers).all(free) {
            return Err(ConfigError::BarTaken(index));
        }
        let range = match kind {
            BarKind::Io => 4..=256,
            BarKind::Memory32 => 16..=1 << 31,
            BarKind::Memory64 => 16..=1 << 62,
        };
        if !size_bytes.is_power_of_two() || !range.contains(&size_bytes) {
            return Err(ConfigError::BarSize { index, size_bytes });
        }
        let offset = regs::BAR + 4 * u16::from(index);
        let mask = !(size_bytes - 1);
        let flags = match kind {
            BarKind::Io => 1,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => {
                self.bars[at + 1] = BarSlot::Upper;
                self.allow(offset + 4, &((mask >> 32) as u32).to_le_bytes());
                0b1100u32
            }
        };
        self.bars[at] = BarSlot::Base(kind, size_bytes);
        self.define(offset, &flags.to_le_bytes());
        self.allow(offset, &(mask as u32).to_le_bytes());
        Ok(())
    }

    /// Adds the expansion ROM's base address register (6.2.5.2). The function answers reads of [`ROM_BAR`].
    ///
    /// # Errors
    /// [`ConfigError::BarTaken`], [`ConfigError::BarSize`].
    pub fn add_rom(&mut self, size_bytes: u64) -> Result<(), ConfigError> {
        if self.rom_bytes != 0 {
            return Err(ConfigError::BarTaken(ROM_BAR));
        }
        if !size_bytes.is_power_of_two() || !(2 << 10..=16 << 20).contains(&size_bytes) {
            return Err(ConfigError::BarSize {
                index: ROM_BAR,
                size_bytes,
            });
        }
        self.rom_bytes = size_bytes;
        let mask = !(size_bytes - 1) as u32 | regs::ROM_ENABLE;
        self.allow(regs::ROM, &mask.to_le_bytes());
        Ok(())
    }

    /// Adds a capability whose bytes after ID and next pointer are `body`, of which software may set the bits of
    /// `writable`. Gives its offset.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, ConfigError> {
        let offset = self.free;
        let length = 2 + body.len();
        if usize::from(offset) + length > 256 {
            return Err(ConfigError::NoRoom(id));
        }
        self.define(self.link, &[offset as u8]);
        self.define(offset, &[id, 0]);
        self.define(offset + 2, body);
        self.allow(offset + 2, &writable[..writable.len().min(body.len())]);
        self.link = offset + 1;
        self.free = offset + (length as u16).next_multiple_of(4);
        let status = self.word(regs::STATUS) | regs::STATUS_CAPABILITIES;
        self.define(regs::STATUS, &status.to_le_bytes());
        Ok(offset)
    }

    /// Back to the values laid down.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial[..]);
    }

    /// Reads bytes; those outside the space read as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(i).copied().unwrap_or(0xff);
        }
    }

    /// A write by software: only what the masks allow changes.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (i, &byte) in (usize::from(offset)..regs::SIZE).zip(data) {
            let mask = self.writable[i];
            self.bytes[i] = self.bytes[i] & !mask & !(self.cleared[i] & byte) | byte & mask;
        }
    }

    /// The word at `offset`; ones outside the space.
    #[must_use]
    pub fn word(&self, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The doubleword at `offset`; ones outside the space.
    #[must_use]
    pub fn dword(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Changes bytes on the device's behalf, whatever the masks say; a reset undoes it.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        for (i, &byte) in (usize::from(offset)..regs::SIZE).zip(bytes) {
            self.bytes[i] = byte;
        }
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.word(regs::COMMAND)
    }

    /// The base address registers whose space the command register enables, where they point now.
    pub fn bars(&self) -> impl Iterator<Item = Bar> + '_ {
        let command = self.command();
        self.bars
            .iter()
            .zip(0u8..)
            .filter_map(move |(slot, index)| {
                let BarSlot::Base(kind, size_bytes) = *slot else {
                    return None;
                };
                let offset = regs::BAR + 4 * u16::from(index);
                let low = u64::from(self.dword(offset));
                let (enable, base) = match kind {
                    BarKind::Io => (regs::COMMAND_IO, low & 0xfffc),
                    BarKind::Memory32 => (regs::COMMAND_MEMORY, low & !0xf),
                    BarKind::Memory64 => {
                        let high = u64::from(self.dword(offset + 4));
                        (regs::COMMAND_MEMORY, high << 32 | low & !0xf)
                    }
                };
                (command & enable != 0).then_some(Bar {
                    index,
                    kind,
                    base,
                    size_bytes,
                })
            })
            .chain(self.rom())
    }

    /// The expansion ROM, where it decodes: memory space and the register's own bit are enabled.
    fn rom(&self) -> Option<Bar> {
        let register = self.dword(regs::ROM);
        let enabled =
            self.command() & regs::COMMAND_MEMORY != 0 && register & regs::ROM_ENABLE != 0;
        (self.rom_bytes != 0 && enabled).then_some(Bar {
            index: ROM_BAR,
            kind: BarKind::Memory32,
            base: u64::from(register & !regs::ROM_ENABLE),
            size_bytes: self.rom_bytes,
        })
    }
}
