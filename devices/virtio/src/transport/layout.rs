//! Where things are in the PCI transport (4.1.4), and its capabilities.

use pci::{ConfigError, ConfigSpace, MsixLayout};

/// The base address register with the MSI-X table: 32-bit memory.
pub(super) const MSIX_BAR: u8 = 1;
/// Its size; the table is at its start, the pending bits in its second half.
pub(super) const MSIX_BYTES: u64 = 0x1000;
const MSIX_PENDING: u32 = 0x800;
/// The base address register with the structures: 64-bit memory.
pub(super) const BAR: u8 = 4;
/// Its size.
pub(super) const BAR_BYTES: u64 = 0x4000;
/// Bytes of each of the four structures' places in it.
const PLACE_BYTES: u64 = 0x1000;
/// A queue's notify address is this many bytes after that of the queue before (4.1.4.4).
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
/// Bytes of the common configuration (4.1.4.3), without the fields of features that are not offered.
const COMMON_BYTES: u32 = 0x38;

/// The structures, in the order of their places; the values are the capability's types (4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
}

impl Structure {
    const ALL: [Self; 4] = [Self::Common, Self::Notify, Self::Isr, Self::Device];

    /// The structure at an offset of the register, and the offset in it.
    pub fn at(offset: u64) -> Option<(Self, u64)> {
        let index = usize::try_from(offset / PLACE_BYTES).ok()?;
        Some((*Self::ALL.get(index)?, offset % PLACE_BYTES))
    }
}

/// The capability for access to the structures through the configuration space (4.1.4.9).
pub(super) const PCI_CFG_TYPE: u8 = 5;
/// Offsets in a capability of the vendor-specific kind.
pub(super) const CAP_BAR: u16 = 4;
pub(super) const CAP_OFFSET: u16 = 8;
pub(super) const CAP_LENGTH: u16 = 12;
/// `pci_cfg_data` in its own kind.
pub(super) const CAP_DATA: u16 = 16;

const VENDOR_SPECIFIC: u8 = 0x09;

/// A virtio capability's bytes after ID and next pointer (4.1.4).
fn body(kind: u8, bar: u8, offset: u32, length: u32, extra: Option<u32>) -> Vec<u8> {
    let bytes = if extra.is_some() { 20 } else { 16 };
    let mut body = vec![bytes, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(extra.iter().flat_map(|word| word.to_le_bytes()));
    body
}

/// Adds the capabilities of all structures. Gives the offset of the one for access through the configuration space.
pub(super) fn add_capabilities(
    config: &mut ConfigSpace,
    queues: u32,
    device_bytes: u32,
) -> Result<u16, ConfigError> {
    for (place, structure) in (0u32..).zip(Structure::ALL) {
        let (length, extra) = match structure {
            Structure::Common => (COMMON_BYTES, None),
            Structure::Notify => (queues * NOTIFY_MULTIPLIER, Some(NOTIFY_MULTIPLIER)),
            Structure::Isr => (1, None),
            Structure::Device => (device_bytes, None),
        };
        let offset = place * PLACE_BYTES as u32;
        let body = body(structure as u8, BAR, offset, length, extra);
        config.add_capability(VENDOR_SPECIFIC, &body, &[])?;
    }
    // Register, offset, length and data are the driver's.
    let body = body(PCI_CFG_TYPE, 0, 0, 0, Some(0));
    let mut writable = vec![0xff; body.len()];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    config.add_capability(VENDOR_SPECIFIC, &body, &writable)
}

/// MSI-X with a vector for each queue and one for configuration changes.
pub(super) fn msix(queues: u16) -> MsixLayout {
    MsixLayout {
        vectors: queues + 1,
        bar: MSIX_BAR,
        table: 0,
        pending: MSIX_PENDING,
    }
}
