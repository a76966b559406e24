//! The VMCS region (SDM Vol 3 25.2): the form of a VMCS in memory while it is not active.
//!
//! | bytes   | content                                                        |
//! |---------|----------------------------------------------------------------|
//! | 0..4    | revision identifier, bit 31: shadow-VMCS indicator             |
//! | 4..8    | VMX-abort indicator                                            |
//! | 8..12   | launch state: 1 launched, anything else clear                  |
//! | 16..    | fields, 8 bytes each, in the order of the dense index          |
//!
//! The first 8 bytes are the guest's to write (and of a VMX abort); the processor writes from byte 8 on.
//! The layout is part of what [`REVISION`] identifies: a change to the order of fields changes it.

use x86defs::vmx::VmcsField;

use super::Vmcs;

/// VMCS revision identifier (SDM Vol 3 25.2).
pub const REVISION: u32 = 0x4e01;
/// Bit 31 of the first word: shadow VMCS (SDM Vol 3 25.10).
pub const SHADOW_INDICATOR: u32 = 1 << 31;
/// Offset of the VMX-abort indicator.
pub const ABORT_OFFSET: u64 = 4;
/// Offset of the launch state: where the part begins that the processor writes.
pub const DATA_OFFSET: usize = 8;
/// Bytes of the region in use.
pub const IMAGE_SIZE: usize = FIELDS_OFFSET + 8 * VmcsField::COUNT;
/// Bytes of a VMCS or VMXON region (IA32_VMX_BASIC bits 44:32).
pub const REGION_SIZE: u64 = 4096;

const FIELDS_OFFSET: usize = 16;
const LAUNCHED: u32 = 1;

/// The used bytes of a VMCS region.
pub type Image = [u8; IMAGE_SIZE];

/// The VMCS held by an image; its first 8 bytes are not looked at. Any bytes make a VMCS: what is wrong with
/// its fields is found by VM entry.
#[must_use]
pub fn decode(image: &Image) -> Vmcs {
    let mut vmcs = Vmcs::default();
    let (head, fields) = image.split_at(FIELDS_OFFSET);
    vmcs.launched = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) == LAUNCHED;
    for (field, bytes) in VmcsField::ALL.iter().zip(fields.as_chunks::<8>().0) {
        vmcs.set(*field, u64::from_le_bytes(*bytes));
    }
    vmcs
}

/// Writes a VMCS into an image, from [`DATA_OFFSET`] on.
pub fn encode(vmcs: &Vmcs, image: &mut Image) {
    let (head, fields) = image.split_at_mut(FIELDS_OFFSET);
    head[8..12].copy_from_slice(&u32::from(vmcs.launched).to_le_bytes());
    head[12..16].fill(0);
    for (field, bytes) in VmcsField::ALL.iter().zip(fields.as_chunks_mut::<8>().0) {
        *bytes = vmcs.get(*field).to_le_bytes();
    }
}

const _: () = assert!(IMAGE_SIZE <= REGION_SIZE as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut v = Vmcs {
            launched: true,
            ..Vmcs::default()
        };
        for (i, f) in VmcsField::ALL.iter().enumerate() {
            v.set(*f, 0x0101_0101_0101_0101 * (i as u64 & 0xff));
        }
        let mut image = [0xee; IMAGE_SIZE];
        encode(&v, &mut image);
        assert_eq!(image[..DATA_OFFSET], [0xee; DATA_OFFSET]);
        let back = decode(&image);
        assert!(back.launched);
        for f in VmcsField::ALL {
            assert_eq!(back.get(*f), v.get(*f));
        }
    }

    #[test]
    fn garbage_stays_inside_field_widths() {
        let v = decode(&[0xff; IMAGE_SIZE]);
        assert!(!v.launched);
        assert_eq!(v.get(VmcsField::Vpid), 0xffff);
        assert_eq!(v.get(VmcsField::ExitReason), 0xffff_ffff);
    }
}
