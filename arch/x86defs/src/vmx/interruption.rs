//! Interruption-information fields: VM entry (SDM Vol 3 Table 25-18), VM exit (Table 25-20) and
//! IDT-vectoring (Table 25-21) share one layout.

/// Interruption type, bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventType {
    /// External interrupt.
    ExternalInterrupt = 0,
    /// Reserved.
    Reserved = 1,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Hardware exception.
    HardwareException = 3,
    /// Software interrupt (INT n).
    SoftwareInterrupt = 4,
    /// Privileged software exception (INT1).
    PrivilegedSoftwareException = 5,
    /// Software exception (INT3, INTO).
    SoftwareException = 6,
    /// Other event (VM entry only: pending MTF VM exit).
    Other = 7,
}

impl EventType {
    /// The type with this number; only the low 3 bits count.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::ExternalInterrupt,
            1 => Self::Reserved,
            2 => Self::Nmi,
            3 => Self::HardwareException,
            4 => Self::SoftwareInterrupt,
            5 => Self::PrivilegedSoftwareException,
            6 => Self::SoftwareException,
            _ => Self::Other,
        }
    }

    /// Whether an instruction raises the event, so that it has an instruction length (SDM Vol 3 27.2.1.3).
    #[must_use]
    pub const fn is_software(self) -> bool {
        matches!(
            self,
            Self::SoftwareInterrupt | Self::PrivilegedSoftwareException | Self::SoftwareException
        )
    }
}

/// An interruption-information field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptionInfo(pub u32);

impl InterruptionInfo {
    /// Error code is (to be) delivered.
    pub const ERROR_CODE: u32 = 1 << 11;
    /// NMI unblocking due to IRET (VM exit only).
    pub const NMI_UNBLOCKING: u32 = 1 << 12;
    /// The field is valid.
    pub const VALID: u32 = 1 << 31;
    /// Bits that are reserved in the VM-entry field: 30:12.
    pub const ENTRY_RESERVED: u32 = 0x7fff_f000;

    /// A valid field.
    #[must_use]
    pub const fn new(kind: EventType, vector: u8, error_code: bool) -> Self {
        let error = if error_code { Self::ERROR_CODE } else { 0 };
        Self(Self::VALID | (kind as u32) << 8 | error | vector as u32)
    }

    /// Vector, bits 7:0.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Type, bits 10:8.
    #[must_use]
    pub const fn event_type(self) -> EventType {
        EventType::from_bits((self.0 >> 8) as u8)
    }

    /// Whether there is an error code.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        self.0 & Self::ERROR_CODE != 0
    }

    /// Whether the field is valid.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }
}
