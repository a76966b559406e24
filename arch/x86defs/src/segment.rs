//! Selectors, access rights, descriptors and gates (SDM Vol 3 3.4, 6.11).

/// A segment selector (SDM Vol 3 3.4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selector(pub u16);

impl Selector {
    /// Requested privilege level.
    #[must_use]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
    /// Whether the selector is null (index 0 of the GDT).
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
    /// Whether the selector refers to the LDT.
    #[must_use]
    pub const fn is_ldt(self) -> bool {
        self.0 & 4 != 0
    }
    /// Byte offset of the descriptor in its table.
    #[must_use]
    pub const fn table_offset(self) -> u64 {
        (self.0 & !7) as u64
    }
    /// The selector part of an error code: index and TI, without RPL (SDM Vol 3 6.13).
    #[must_use]
    pub const fn error_code(self) -> u32 {
        (self.0 & !3) as u32
    }
}

/// Access rights in the format of the VMCS (SDM Vol 3 25.4.1, Table 25-2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access(pub u32);

impl Access {
    /// "Segment unusable".
    pub const UNUSABLE: Self = Self(1 << 16);

    /// Segment type, 4 bits (SDM Vol 3 3.4.5.1, 3.5).
    #[must_use]
    pub const fn segment_type(self) -> u8 {
        (self.0 & 0xf) as u8
    }
    /// S: code or data, not system.
    #[must_use]
    pub const fn is_code_or_data(self) -> bool {
        self.0 & 0x10 != 0
    }
    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    /// Present.
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & 0x80 != 0
    }
    /// 64-bit code segment.
    #[must_use]
    pub const fn long(self) -> bool {
        self.0 & 1 << 13 != 0
    }
    /// Default operation size is 32 bits, or big stack.
    #[must_use]
    pub const fn default_big(self) -> bool {
        self.0 & 1 << 14 != 0
    }
    /// Granularity.
    #[must_use]
    pub const fn granularity(self) -> bool {
        self.0 & 1 << 15 != 0
    }
    /// Unusable.
    #[must_use]
    pub const fn unusable(self) -> bool {
        self.0 & 1 << 16 != 0
    }
    /// A usable code segment.
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.0 & 0x18 == 0x18
    }
    /// A conforming code segment.
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.0 & 0x1c == 0x1c
    }
    /// A readable code or any data segment.
    #[must_use]
    pub const fn readable(self) -> bool {
        self.0 & 0x10 != 0 && (self.0 & 8 == 0 || self.0 & 2 != 0)
    }
    /// A writable data segment.
    #[must_use]
    pub const fn writable(self) -> bool {
        self.0 & 0x1a == 0x12
    }
    /// An expand-down data segment.
    #[must_use]
    pub const fn expand_down(self) -> bool {
        self.0 & 0x1c == 0x14
    }
}

/// An 8-byte segment descriptor (SDM Vol 3 3.4.5, Figure 3-8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base, bits 31:0.
    #[must_use]
    pub const fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 32 & 0xff00_0000)
    }
    /// Limit in bytes, granularity applied.
    #[must_use]
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff) as u32 | (self.0 >> 32 & 0xf_0000) as u32;
        if self.access().granularity() {
            raw << 12 | 0xfff
        } else {
            raw
        }
    }
    /// Access rights.
    #[must_use]
    pub const fn access(self) -> Access {
        Access((self.0 >> 40 & 0xf0ff) as u32)
    }
    /// The accessed bit of a code or data descriptor.
    pub const ACCESSED: u64 = 1 << 40;
    /// The busy bit of a TSS descriptor.
    pub const TSS_BUSY: u64 = 1 << 41;
}

/// System descriptor types (SDM Vol 3 Table 3-2).
pub mod system_type {
    /// LDT.
    pub const LDT: u8 = 2;
    /// Available 32- or 64-bit TSS.
    pub const TSS_AVAILABLE: u8 = 9;
    /// Busy 32- or 64-bit TSS.
    pub const TSS_BUSY: u8 = 11;
    /// Available 16-bit TSS.
    pub const TSS16_AVAILABLE: u8 = 1;
    /// Busy 16-bit TSS.
    pub const TSS16_BUSY: u8 = 3;
    /// Call gate.
    pub const CALL_GATE: u8 = 12;
    /// 16-bit call gate.
    pub const CALL_GATE16: u8 = 4;
    /// Task gate.
    pub const TASK_GATE: u8 = 5;
    /// 16-bit interrupt gate.
    pub const INTERRUPT_GATE16: u8 = 6;
    /// 16-bit trap gate.
    pub const TRAP_GATE16: u8 = 7;
    /// Interrupt gate.
    pub const INTERRUPT_GATE: u8 = 14;
    /// Trap gate.
    pub const TRAP_GATE: u8 = 15;
}
