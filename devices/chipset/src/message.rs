//! Interrupt messages on the way from an I/O APIC, an MSI or an ICR to the local APICs.
//!
//! Sources: SDM Vol 3 12.6 (IPIs), 12.6.2 (destinations), 12.11 (MSI address and data formats).

use bus::Msi;

/// How a message is to be taken (SDM Vol 3 figure 12-12, delivery mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to every target.
    Fixed,
    /// The vector, to the target of lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT request.
    Init,
    /// Start-up IPI; the vector is the page of the start address.
    StartUp,
    /// The vector comes from the 8259A.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the three-bit field; `None` for the reserved value 3.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// Edge or level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Edge: the local APIC clears the vector's TMR bit.
    Edge,
    /// Level: the local APIC sets the vector's TMR bit, and its EOI is broadcast to the I/O APIC.
    Level,
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC of this APIC ID.
    Physical(u32),
    /// The local APICs whose logical ID matches this message destination address (SDM Vol 3 12.6.2.2, 12.12.10.1).
    Logical(u32),
    /// All local APICs.
    All,
    /// All local APICs but the sender's.
    AllButSender,
}

impl Destination {
    /// The destination of an I/O APIC entry, an MSI or an xAPIC ICR, which has eight bits.
    #[must_use]
    pub fn from_xapic(id: u8, logical: bool) -> Self {
        match (logical, id) {
            (true, _) => Self::Logical(u32::from(id)),
            (false, 0xff) => Self::All,
            (false, _) => Self::Physical(u32::from(id)),
        }
    }

    /// The destination of an x2APIC ICR, which has 32 bits; all ones is a broadcast in both modes.
    #[must_use]
    pub fn from_x2apic(id: u32, logical: bool) -> Self {
        match (logical, id) {
            (_, u32::MAX) => Self::All,
            (true, _) => Self::Logical(id),
            (false, _) => Self::Physical(id),
        }
    }
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// Whom it is for.
    pub destination: Destination,
    /// How it is taken.
    pub mode: DeliveryMode,
    /// Vector, or start-up page.
    pub vector: u8,
    /// Edge or level.
    pub trigger: Trigger,
}

impl InterruptMessage {
    /// Decodes a message-signalled interrupt; `None` when the address is not FEEx_xxxxh, the delivery mode is reserved,
    /// or the message says that a level is no longer asserted.
    ///
    /// A set redirection hint asks for one target, so a fixed message with it is taken as lowest priority.
    #[must_use]
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xfee {
            return None;
        }
        let redirect = msi.address & (1 << 3) != 0;
        let logical = msi.address & (1 << 2) != 0;
        let mode = match DeliveryMode::from_bits(msi.data >> 8)? {
            DeliveryMode::Fixed if redirect => DeliveryMode::LowestPriority,
            DeliveryMode::StartUp => return None,
            mode => mode,
        };
        let trigger = match (msi.data & (1 << 15) != 0, msi.data & (1 << 14) != 0) {
            (true, true) => Trigger::Level,
            (true, false) => return None,
            // An edge is always an assertion.
            (false, _) => Trigger::Edge,
        };
        Some(Self {
            destination: Destination::from_xapic((msi.address >> 12) as u8, logical),
            mode,
            vector: msi.data as u8,
            trigger,
        })
    }
}

/// What takes messages: the set of local APICs.
pub trait LapicBus {
    /// Delivers the message; true when at least one local APIC accepted it.
    fn deliver(&mut self, message: InterruptMessage) -> bool;
}
